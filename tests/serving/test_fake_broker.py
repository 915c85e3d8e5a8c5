"""The fake broker answers as Alpaca does: shapes, refusals, clock and prices."""

from __future__ import annotations

import json
import select
import subprocess
import sys
from collections.abc import Iterator
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import polars as pl
import pytest
from desk import NEW_YORK, TODAY_AT_TEN, Desk, flat_bars, order_of

from data_pipeline.errors import LiveError
from data_pipeline.sources.bundled import BundledBars
from data_pipeline.sources.files import FileBars
from loopback import served
from serving.fake.app import app
from serving.fake.broker import FakeBroker
from serving.fake.faults import Fault
from serving.fake.market import BarsQuery

# exchange_calendars reads a pandas property that pandas 3.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")

KEYS = {"APCA-API-KEY-ID": "k", "APCA-API-SECRET-KEY": "s"}
SCHEMAS = Path(__file__).parents[3] / "shared" / "schemas" / "alpaca"
# Fields that the service answers and its description leaves out.
UNDESCRIBED = {"position_market_value", "subtag", "source"}


@pytest.fixture
def alpaca(desk: Desk) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=desk.broker_url, headers=KEYS, trust_env=False) as client:
        yield client


def post(alpaca: httpx.Client, **changes: Any) -> httpx.Response:
    order = {"symbol": "AAA", "qty": "10", "side": "buy", "type": "market", "time_in_force": "day"}
    return alpaca.post("/v2/orders", json={**order, **changes})


def test_request_without_keys_is_unauthorised(desk: Desk) -> None:
    answer = httpx.get(f"{desk.broker_url}/v2/account")
    assert (answer.status_code, answer.json()) == (401, {"message": "forbidden."})


def test_market_order_fills_and_moves_cash_and_position(alpaca: httpx.Client) -> None:
    order = post(alpaca).json()
    assert (order["status"], order["filled_qty"], order["filled_avg_price"]) == ("filled", "10", "100.0")
    assert order["position_intent"] == "buy_to_open"
    account, position = alpaca.get("/v2/account").json(), alpaca.get("/v2/positions").json()[0]
    assert (account["cash"], account["equity"]) == ("99000.00", "100000.00")
    assert (position["qty"], position["side"], position["cost_basis"]) == ("10", "long", "1000.00")


def test_average_price_of_two_buys_and_of_a_partial_sale(tmp_path: Path) -> None:
    bars = flat_bars({"AAA": 100.0})
    rising = bars.with_columns(
        *((bars[name] + 20.0 * (bars["session"] > TODAY_AT_TEN.date())).alias(name) for name in ("open", "high"))
    )
    rising.write_parquet(tmp_path / "bars.parquet")
    broker = FakeBroker(FileBars(tmp_path / "bars.parquet"), TODAY_AT_TEN, positions={"AAA": 10.0})
    broker.move_to(TODAY_AT_TEN + timedelta(days=3))  # Monday opens at 120
    broker.submit(order_of("AAA", 30, "buy"))
    assert (broker.lots["AAA"].shares, broker.lots["AAA"].price) == (40.0, 115.0)
    broker.submit(order_of("AAA", 15, "sell"))
    assert (broker.lots["AAA"].shares, broker.lots["AAA"].price) == (25.0, 115.0)


@pytest.mark.parametrize(
    ("order", "status", "code", "message"),
    [
        ({"symbol": "ZZZ"}, 422, 42210000, "not found"),
        ({"qty": "0"}, 422, 42210000, "qty"),
        ({"qty": "1.5"}, 422, 42210000, "whole number"),
        ({"qty": None}, 422, 42210000, "qty"),
        ({"type": "stop"}, 422, 42210000, "type"),
        ({"type": "limit"}, 422, 42210000, "limit price"),
        ({"client_order_id": "x" * 129}, 422, 42210000, "client_order_id"),
        ({"colour": "red"}, 422, 42210000, "colour"),
        ({"qty": "5000"}, 403, 40310000, "insufficient buying power"),
        (
            {"position_intent": "buy_to_close"},
            403,
            40310000,
            "position intent mismatch, inferred: buy to open",
        ),
        ({"side": "sell", "position_intent": "sell_to_close"}, 403, 40310000, "position intent mismatch"),
    ],
)
def test_order_that_alpaca_refuses_is_refused(
    alpaca: httpx.Client, order: dict[str, Any], status: int, code: int, message: str
) -> None:
    answer = post(alpaca, **order)
    assert (answer.status_code, answer.json()["code"]) == (status, code)
    assert message in answer.json()["message"]
    assert alpaca.get("/v2/orders", params={"status": "all"}).json() == []


def test_duplicate_client_order_id_is_refused(alpaca: httpx.Client) -> None:
    assert post(alpaca, client_order_id="a.1").status_code == 200
    again = post(alpaca, client_order_id="a.1")
    assert (again.status_code, again.json()["code"]) == (422, 40010001)
    assert again.json()["message"] == "client_order_id must be unique"


def test_sale_that_crosses_zero_is_refused(alpaca: httpx.Client) -> None:
    post(alpaca)
    answer = post(alpaca, side="sell", qty="11")
    assert answer.status_code == 403
    assert answer.json()["available"] == "10"
    assert "insufficient qty available for order (requested: 11, available: 10)" in answer.json()["message"]


def test_resting_limit_order_reserves_shares_and_can_be_cancelled(alpaca: httpx.Client) -> None:
    post(alpaca)
    resting = post(alpaca, side="sell", qty="4", type="limit", limit_price="500").json()
    assert resting["status"] == "new"
    assert alpaca.get("/v2/positions").json()[0]["qty_available"] == "6"
    assert post(alpaca, side="sell", qty="7").status_code == 403
    assert "wash trade" in post(alpaca).json()["message"]
    assert [order["id"] for order in alpaca.get("/v2/orders").json()] == [resting["id"]]
    assert alpaca.delete(f"/v2/orders/{resting['id']}").status_code == 204
    assert alpaca.get(f"/v2/orders/{resting['id']}").json()["status"] == "canceled"
    again = alpaca.delete(f"/v2/orders/{resting['id']}")
    assert (again.status_code, again.json()["code"]) == (422, 42210000)


def test_cancel_all_answers_one_line_per_open_order(alpaca: httpx.Client) -> None:
    resting = post(alpaca, type="limit", limit_price="1").json()
    post(alpaca, symbol="BBB")
    answer = alpaca.delete("/v2/orders")
    assert (answer.status_code, answer.json()) == (207, [{"id": resting["id"], "status": 200}])


def test_orders_are_found_by_id_and_by_client_id_or_answer_404(alpaca: httpx.Client) -> None:
    order = post(alpaca, client_order_id="a.1").json()
    by_client_id = alpaca.get("/v2/orders:by_client_order_id", params={"client_order_id": "a.1"})
    assert by_client_id.json() == alpaca.get(f"/v2/orders/{order['id']}").json() == order
    missing = alpaca.get("/v2/orders:by_client_order_id", params={"client_order_id": "a.2"})
    assert (missing.status_code, missing.json()["code"]) == (404, 40410000)
    assert alpaca.get("/v2/assets/ZZZ").status_code == 404


def test_order_sent_while_closed_fills_at_the_next_open(desk: Desk, alpaca: httpx.Client) -> None:
    desk.broker.move_to(datetime(2012, 6, 15, 17, 0, tzinfo=NEW_YORK))
    assert post(alpaca).json()["status"] == "accepted"
    desk.broker.move_to(datetime(2012, 6, 18, 9, 30, tzinfo=NEW_YORK))
    assert alpaca.get("/v2/orders", params={"status": "closed"}).json()[0]["status"] == "filled"


def test_day_order_that_did_not_fill_expires_at_the_close(desk: Desk, alpaca: httpx.Client) -> None:
    order = post(alpaca, type="limit", limit_price="1").json()
    desk.broker.move_to(datetime(2012, 6, 15, 16, 0, tzinfo=NEW_YORK))
    assert alpaca.get(f"/v2/orders/{order['id']}").json()["status"] == "expired"


def test_clock_and_calendar_know_half_days(desk: Desk, alpaca: httpx.Client) -> None:
    desk.broker.move_to(datetime(2012, 11, 23, 13, 0, tzinfo=NEW_YORK))
    clock = alpaca.get("/v2/clock").json()
    assert clock["is_open"] is False
    assert clock["next_open"] == "2012-11-26T09:30:00-05:00"
    days = alpaca.get("/v2/calendar", params={"start": "2012-11-21", "end": "2012-11-23"}).json()
    assert [(day["date"], day["open"], day["close"]) for day in days] == [
        ("2012-11-21", "09:30", "16:00"),
        ("2012-11-23", "09:30", "13:00"),
    ]


@pytest.mark.parametrize(
    ("moment", "price"),
    [((15, 9, 29), 14.5), ((15, 9, 30), 15.0), ((16, 12, 0), 15.5), ((20, 10, 0), 15.5)],
)
def test_price_is_the_open_of_the_day_or_the_last_close(
    tmp_path: Path, moment: tuple[int, int, int], price: float
) -> None:
    # The day of the month is the open, half more the close; nothing after the 15th.
    day = pl.col("session").dt.day().cast(pl.Float64)
    bars = flat_bars({"AAA": 1.0}, until=TODAY_AT_TEN.date())
    bars = bars.with_columns(day.alias("open"), day.alias("low"), *((day + 0.5).alias(n) for n in ("high", "close")))
    bars.write_parquet(tmp_path / "bars.parquet")
    number, hour, minute = moment
    now = datetime(2012, 6, number, hour, minute, tzinfo=NEW_YORK)
    assert FakeBroker(FileBars(tmp_path / "bars.parquet"), now).price("AAA") == price


def test_bars_are_paged_and_end_with_the_last_completed_session(desk: Desk, alpaca: httpx.Client) -> None:
    desk.broker.move_to(datetime(2012, 6, 15, 9, 29, tzinfo=NEW_YORK))
    asked = {
        "symbols": "AAA,BBB",
        "timeframe": "1Day",
        "start": "2012-06-13",
        "end": "2012-06-20",
        "limit": 3,
    }
    first = alpaca.get("/v2/stocks/bars", params=asked).json()
    second = alpaca.get("/v2/stocks/bars", params={**asked, "page_token": first["next_page_token"]}).json()
    assert [bar["t"][:10] for bar in first["bars"]["AAA"]] == ["2012-06-13", "2012-06-14"]
    assert len(first["bars"]["BBB"]) == len(second["bars"]["BBB"]) == 1
    assert second["next_page_token"] is None


@pytest.mark.parametrize(
    ("start", "days"),
    [
        ("2012-06-13", ["13", "14", "15"]),
        ("2012-06-13T00:00:00Z", ["13", "14", "15"]),
        ("2012-06-13T04:00:00Z", ["13", "14", "15"]),
        ("2012-06-13T04:00:01Z", ["14", "15"]),
    ],
)
def test_bars_start_is_compared_with_new_york_midnight(alpaca: httpx.Client, start: str, days: list[str]) -> None:
    bars = alpaca.get("/v2/stocks/bars", params={"symbols": "AAA", "timeframe": "1Day", "start": start}).json()
    assert [bar["t"][8:10] for bar in bars["bars"]["AAA"]] == days


def test_bar_of_the_session_in_progress_holds_its_open_only(tmp_path: Path, bars: pl.DataFrame) -> None:
    broker = FakeBroker(BundledBars(), datetime(2012, 8, 15, 12, 0, tzinfo=NEW_YORK))
    full = bars.filter(symbol="IBM", session=date(2012, 8, 15)).row(0, named=True)
    query = BarsQuery(symbols="IBM", timeframe="1Day", start="2012-08-14")
    before, today = broker.market.bars(query, broker.now)["bars"]["IBM"]
    assert [today[name] for name in "ohlc"] == [full["open"]] * 4
    assert 0 < today["v"] < full["volume"]
    assert before["h"] > before["l"]
    broker.move_to(datetime(2012, 8, 15, 16, 20, tzinfo=NEW_YORK))
    assert broker.market.bars(query, broker.now)["bars"]["IBM"][1]["c"] == full["close"]


def test_adjusted_bars_take_later_splits_and_dividends_out(bars: pl.DataFrame) -> None:
    market = FakeBroker(BundledBars(), datetime(2013, 3, 2, tzinfo=NEW_YORK)).market
    # Microsoft split 2:1 on 18 February 2003.
    asked = {"symbols": "MSFT", "timeframe": "1Day", "start": "2003-02-14", "end": "2003-02-18"}

    def answered(adjustment: str) -> tuple[dict[str, Any], dict[str, Any]]:
        query = BarsQuery.model_validate({**asked, "adjustment": adjustment})
        friday, tuesday = market.bars(query, datetime(2013, 3, 2, tzinfo=NEW_YORK))["bars"]["MSFT"]
        return friday, tuesday

    raw, split, paid, both = map(answered, ("raw", "split", "dividend", "all"))
    assert split[0]["c"] == raw[0]["c"] / 2
    assert split[0]["v"] == raw[0]["v"] * 2
    assert split[1] == raw[1]
    assert paid[0]["v"] == raw[0]["v"]
    assert paid[0]["c"] < raw[0]["c"]
    assert both[0]["c"] == pytest.approx(paid[0]["c"] / 2, rel=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"timeframe": "7Min"}, "multiples of 5Min"),
        ({"timeframe": "5Min"}, "daily bars only"),
        ({"adjustment": "wild"}, "adjustment"),
        ({"feed": "otc"}, "feed"),
        ({"asof": "soon"}, "asof"),
        ({"limit": "0"}, "limit"),
        ({"limit": "10001"}, "limit"),
        ({"colour": "red"}, "colour"),
        ({"page_token": "?"}, "page_token"),
        ({"start": "soon"}, "soon"),
    ],
)
def test_query_that_is_not_simulated_is_refused_by_name(
    alpaca: httpx.Client, change: dict[str, str], message: str
) -> None:
    answer = alpaca.get("/v2/stocks/bars", params={"symbols": "AAA", "timeframe": "1Day", **change})
    assert answer.status_code in {400, 422}
    assert message in answer.json()["message"]


def test_recent_sip_bars_are_for_subscribers(alpaca: httpx.Client) -> None:
    asked = {"symbols": "AAA", "timeframe": "1Day", "start": "2012-06-14", "end": "2012-06-15T13:46:00Z"}
    refused = alpaca.get("/v2/stocks/bars", params={**asked, "feed": "sip"})
    assert (refused.status_code, refused.json()["code"]) == (403, 42210000)
    assert "recent SIP data" in refused.json()["message"]
    assert alpaca.get("/v2/stocks/bars", params={**asked, "feed": "iex"}).status_code == 200
    older = {**asked, "feed": "sip", "end": "2012-06-15T13:45:00Z"}
    assert alpaca.get("/v2/stocks/bars", params=older).status_code == 200


def test_answers_tell_the_request_limit(alpaca: httpx.Client) -> None:
    headers = alpaca.get("/v2/clock").headers
    assert (headers["x-ratelimit-limit"], headers["x-ratelimit-remaining"]) == ("200", "199")
    assert int(headers["x-ratelimit-reset"]) == int(TODAY_AT_TEN.timestamp()) + 60


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    ("fault", "seen"),
    [
        ({"kind": "status", "status": 504, "body": "<html>"}, 504),
        ({"kind": "status", "status": 429, "headers": {"Retry-After": "1"}}, 429),
        ({"kind": "drop"}, httpx.RemoteProtocolError),
        ({"kind": "hang"}, httpx.ReadTimeout),
    ],
)
def test_fault_set_over_http_hits_the_order_before_or_after_it_is_booked(
    desk: Desk, alpaca: httpx.Client, fault: dict[str, Any], seen: Any, after: bool
) -> None:
    setting = [{**fault, "path": "/v2/orders", "method": "POST", "after": after, "skip": 1}]
    assert alpaca.put("/fake/faults", json=setting).status_code == 200
    alpaca.timeout = 0.3
    assert post(alpaca).status_code == 200
    assert alpaca.get("/v2/orders").status_code == 200
    if isinstance(seen, int):
        assert post(alpaca).status_code == seen
    else:
        with pytest.raises(seen):
            post(alpaca)
    assert len(desk.broker.orders) == (2 if after else 1)
    assert alpaca.get("/fake/faults").json() == []
    assert post(alpaca).status_code == 200


@pytest.mark.parametrize("fault", [{"kind": "flood"}, {"kind": "drop", "count": 0}, {"kind": "drop", "when": "now"}])
def test_fault_that_is_none_is_refused(desk: Desk, alpaca: httpx.Client, fault: dict[str, Any]) -> None:
    assert alpaca.put("/fake/faults", json=[fault]).status_code == 422
    assert desk.broker.faults.pending == []


def test_body_is_broken_off_in_the_middle(desk: Desk, alpaca: httpx.Client) -> None:
    desk.broker.faults.put(Fault(kind="drop_half", path="/v2/cl*"))
    with alpaca.stream("GET", "/v2/clock") as answer:
        assert int(answer.headers["content-length"]) > 100
        with pytest.raises(httpx.TransportError):
            answer.read()


def test_starting_position_in_unknown_symbol_is_a_user_error(desk: Desk) -> None:
    with pytest.raises(LiveError, match="ZZZ"):
        FakeBroker(desk.source, TODAY_AT_TEN, positions={"ZZZ": 1.0})


def test_command_prints_its_address_when_it_listens(desk: Desk) -> None:
    command = [sys.executable, "-m", "serving.cli", "fake-broker", "--now", "2012-06-15T10:00"]
    command += ["--bars", str(desk.folder / "bars.parquet"), "--position", "AAA=20", "--cash", "5000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 30)[0]
        url = json.loads(process.stdout.readline())["url"]
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/v2/account", headers=KEYS).json()["equity"] == "7000.00"
        process.terminate()


def test_answers_satisfy_alpaca_pys_own_models(desk: Desk, alpaca: httpx.Client) -> None:
    from alpaca.data.historical.stock import StockHistoricalDataClient
    from alpaca.data.requests import StockBarsRequest
    from alpaca.data.timeframe import TimeFrame
    from alpaca.trading.client import TradingClient
    from alpaca.trading.requests import GetCalendarRequest

    order = post(alpaca).json()
    trading = TradingClient("k", "s", paper=True, url_override=desk.broker_url)
    assert trading.get_account().equity == "100000.00"
    assert trading.get_clock().timestamp == TODAY_AT_TEN
    assert trading.get_calendar(GetCalendarRequest(start=TODAY_AT_TEN.date(), end=TODAY_AT_TEN.date()))
    assert trading.get_asset("AAA").tradable
    assert trading.get_all_positions()[0].qty == "10"
    assert str(trading.get_order_by_id(order["id"]).id) == order["id"]
    data = StockHistoricalDataClient("k", "s", url_override=desk.broker_url)
    start = datetime(2012, 6, 13, tzinfo=NEW_YORK)
    bars = data.get_stock_bars(StockBarsRequest(symbol_or_symbols="AAA", timeframe=TimeFrame.Day, start=start))
    assert [bar.timestamp.astimezone(NEW_YORK).day for bar in bars["AAA"]] == [13, 14, 15]


def described(file: str, *path: str) -> dict[str, Any]:
    """Returns the schema of the 200 answer to GET `path`, or of the body of POST, as JSON Schema."""
    if not SCHEMAS.is_dir():
        pytest.skip("Alpaca's OpenAPI files are not beside this repository")
    document = _as_json_schema(json.loads((SCHEMAS / file).read_text()))
    node = document["paths"]
    for part in path:
        node = node[part]
    return {**node["content"]["application/json"]["schema"], "components": document["components"]}


def _as_json_schema(node: Any) -> Any:
    """Returns OpenAPI 3.0 with `nullable` said as JSON Schema says it."""
    if isinstance(node, list):
        return [_as_json_schema(item) for item in node]
    if not isinstance(node, dict):
        return node
    converted = {key: _as_json_schema(value) for key, value in node.items()}
    if converted.pop("nullable", False) is True and isinstance(converted.get("type"), str):
        converted["type"] = [converted["type"], "null"]
    return converted


def resolved(schema: dict[str, Any]) -> dict[str, Any]:
    """Returns the object schema behind references and arrays."""
    node, components = schema, schema["components"]["schemas"]
    while "properties" not in node:
        node = components[node["$ref"].rpartition("/")[2]] if "$ref" in node else node["items"]
    return node


@pytest.mark.parametrize(
    "route",
    [
        "/v2/account",
        "/v2/clock",
        "/v2/calendar",
        "/v2/positions",
        "/v2/orders",
        "/v2/assets/{symbol_or_asset_id}",
        "/v2/orders/{order_id}",
        "/v2/orders:by_client_order_id",
    ],
)
def test_trading_answer_fits_alpacas_description(alpaca: httpx.Client, route: str) -> None:
    schema = described("trading-api.json", route, "get", "responses", "200")
    order = post(alpaca, client_order_id="a.1").json()
    post(alpaca, symbol="BBB", side="sell")
    post(alpaca, type="limit", limit_price="1")
    url = route.format(symbol_or_asset_id="AAA", order_id=order["id"])
    asked = {"status": "all", "client_order_id": "a.1", "start": "2012-06-01", "end": "2012-06-20"}
    answer = alpaca.get(url, params=asked).json()
    jsonschema.validate(answer, schema)
    rows = answer if isinstance(answer, list) else [answer]
    assert rows
    assert {key for row in rows for key in row} - UNDESCRIBED <= set(resolved(schema)["properties"])


@pytest.mark.parametrize("route", ["/v2/stocks/trades/latest", "/v2/stocks/bars"])
def test_data_answer_fits_alpacas_description(alpaca: httpx.Client, route: str) -> None:
    schema = described("market-data-api.json", route, "get", "responses", "200")
    asked = {"symbols": "AAA,BBB", "timeframe": "1Day", "start": "2012-06-01"}
    answer = alpaca.get(route, params=asked).json()
    assert set(next(iter(answer.values()))) == {"AAA", "BBB"}
    jsonschema.validate(answer, schema)


def test_corporate_actions_fit_alpacas_description(bars: pl.DataFrame) -> None:
    schema = described("market-data-api.json", "/v1/corporate-actions", "get", "responses", "200")
    broker = FakeBroker(BundledBars(), TODAY_AT_TEN)
    with served(app(broker)) as (url,):
        asked = {"symbols": "IBM,MSFT", "start": "2003-01-01", "end": "2003-12-31"}
        answer = httpx.get(f"{url}/v1/corporate-actions", params=asked, headers=KEYS, trust_env=False).json()
    jsonschema.validate(answer, schema)
    assert set(answer["corporate_actions"]) == {"forward_splits", "cash_dividends"}
    assert len(answer["corporate_actions"]["cash_dividends"]) >= 4


def test_order_that_the_executor_sends_fits_alpacas_description(desk: Desk) -> None:
    schema = described("trading-api.json", "/v2/orders", "post", "requestBody")
    desk.cycle("paper")
    for body in desk.broker.requests:
        assert set(body) <= set(schema["properties"])
        # alpaca-py sends the quantity as a number, which the service takes too.
        jsonschema.validate({**body, "qty": str(body["qty"])}, schema)
