"""Alpaca's bars through the real client, against the fake server over loopback."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jsonschema
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from data_pipeline.alpaca_http import tame
from data_pipeline.errors import AlpacaError, BarsError, ConfigError, StoreError, UnknownSymbolError
from data_pipeline.sessions import schedule
from data_pipeline.sources.alpaca import AlpacaBars, AlpacaConfig
from data_pipeline.sources.alpaca_actions import Action, with_actions
from data_pipeline.sources.bundled import BundledBars
from data_pipeline.sources.files import FileBars
from loopback import served
from product import ROOT
from serving.fake.app import app
from serving.fake.broker import FakeBroker
from serving.fake.faults import Fault

KEYS = {"ALPACA_API_KEY": "key-81c0ffee", "ALPACA_SECRET_KEY": "secret-5eed5eed"}
NEW_YORK = ZoneInfo("America/New_York")
SCHEMA = Path(__file__).parents[3] / "shared" / "schemas" / "alpaca" / "market-data-api.json"
BARS = "/v2/stocks/bars"
ACTIONS = "/v1/corporate-actions"
SPAN = (["AAPL", "IBM"], date(2012, 8, 1), date(2012, 8, 31))


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)


@dataclass
class Clock:
    """A present that only sleeping moves."""

    now: datetime
    slept: list[float] = field(default_factory=list)

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += timedelta(seconds=seconds)


@dataclass
class Server:
    """The fake, and a source of bars that asks it."""

    broker: FakeBroker
    url: str
    clock: Clock

    def source(self, cache: Path | None = None, patience: dict[str, Any] | None = None, **changes: Any) -> AlpacaBars:
        bounds = {"read_timeout_s": 20, "attempts": 3, **(patience or {})}
        config = AlpacaConfig.of({"url": self.url, "patience": bounds, **changes})
        return AlpacaBars(config, cache, now=lambda: self.clock.now, sleep=self.clock.sleep)

    def fail(self, *faults: Fault) -> None:
        self.broker.faults.put(*faults)

    def asked(self, path: str = BARS) -> list[dict[str, str]]:
        return [dict(call.query) for call in self.broker.faults.calls if call.path == path]


def served_fake(broker: FakeBroker) -> Iterator[Server]:
    with served(app(broker)) as (url,):
        yield Server(broker, url, Clock(broker.now))


@pytest.fixture(scope="module")
def bundled() -> pl.DataFrame:
    return BundledBars().fetch()


@pytest.fixture
def server() -> Iterator[Server]:
    """The bundled history on the evening after it ends."""
    yield from served_fake(FakeBroker(BundledBars(), datetime(2013, 3, 2, 10, 0, tzinfo=NEW_YORK)))


def within(bars: pl.DataFrame, symbols: list[str], start: date, end: date) -> pl.DataFrame:
    return bars.filter(pl.col("symbol").is_in(symbols), pl.col("session").is_between(start, end))


# ---- what is returned


def test_daily_history_with_its_actions_equals_the_source(server: Server, bundled: pl.DataFrame) -> None:
    symbols = ["AAPL", "GOOG", "IBM", "MSFT"]
    bars = server.source(symbols_per_request=3).fetch(symbols, date(2000, 3, 1), date(2013, 3, 1))
    assert_frame_equal(bars, within(bundled, symbols, date(2000, 3, 1), date(2013, 3, 1)), check_exact=True)
    assert bars.filter(pl.col("split") != 1)["symbol"].to_list() == ["AAPL", "AAPL", "MSFT"]
    assert bars.filter(pl.col("dividend") > 0).height > 50


@pytest.mark.parametrize("size", [1, 7, 23, 46, 10_000])
def test_pages_of_any_size_give_the_same_bars(server: Server, bundled: pl.DataFrame, size: int) -> None:
    bars = server.source(bars_per_page=size, spare_pages=0).fetch(*SPAN)
    assert_frame_equal(bars, within(bundled, *SPAN), check_exact=True)
    assert len(server.asked()) == -(-bars.height // size)


def test_actions_through_many_pages_are_complete(
    server: Server, bundled: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_pipeline.sources.alpaca._ACTIONS_PER_PAGE", 3)
    span = (["IBM", "MSFT"], date(2010, 1, 4), date(2012, 12, 31))
    assert_frame_equal(server.source().fetch(*span), within(bundled, *span), check_exact=True)
    assert len(server.asked(ACTIONS)) > 5


@pytest.mark.parametrize("symbol", ["AAPL", "IBM"])
def test_adjusted_feed_has_neutral_actions_and_the_total_return(
    server: Server, bundled: pl.DataFrame, symbol: str
) -> None:
    span = ([symbol], date(2004, 6, 1), date(2006, 6, 1))
    source = server.source(adjustment="all")
    bars = source.fetch(*span)
    assert bars.select(pl.col("split").max(), pl.col("dividend").max()).row(0) == (1.0, 0.0)
    raw = within(bundled, *span)
    held = raw["close"].shift(1) / raw["split"] - raw["dividend"]
    assert (raw["split"].max(), raw["dividend"].max()) > (1.0, 0.0)
    assert (bars["close"] / bars["close"].shift(1) / (raw["close"] / held) - 1).abs().max() < 1e-12
    assert server.asked(ACTIONS) == []
    assert source.provenance()["actions"].startswith("neutral")
    assert source.provenance()["unhandled_actions"] == "not asked for"


@pytest.mark.parametrize(
    ("moment", "last"),
    [
        ((2012, 8, 15, 9, 0), date(2012, 8, 14)),
        ((2012, 8, 15, 15, 0), date(2012, 8, 14)),
        ((2012, 8, 15, 16, 14), date(2012, 8, 14)),
        ((2012, 8, 15, 16, 15), date(2012, 8, 15)),
        ((2012, 11, 23, 13, 14), date(2012, 11, 21)),
        ((2012, 11, 23, 13, 15), date(2012, 11, 23)),
        ((2012, 8, 18, 12, 0), date(2012, 8, 17)),
    ],
)
@pytest.mark.parametrize("end", [None, date(2030, 1, 1)])
def test_session_counts_once_its_close_is_a_quarter_of_an_hour_old(
    server: Server, bundled: pl.DataFrame, moment: tuple[int, ...], last: date, end: date | None
) -> None:
    server.clock.now = datetime(*moment, tzinfo=NEW_YORK)  # type: ignore[misc,arg-type]
    server.broker.move_to(server.clock.now)
    bars = server.source().fetch(["AAPL"], date(2012, 8, 1), end)
    assert_frame_equal(bars, within(bundled, ["AAPL"], date(2012, 8, 1), last), check_exact=True)


def test_session_still_open_alone_is_refused(server: Server) -> None:
    server.clock.now = datetime(2012, 8, 15, 12, 0, tzinfo=NEW_YORK)
    with pytest.raises(BarsError, match="no session from 2012-08-15 to 2012-08-15 is over"):
        server.source().fetch(["AAPL"], date(2012, 8, 15))


def test_clock_ahead_of_alpaca_meets_the_free_plan_and_says_what_to_do(server: Server) -> None:
    server.broker.move_to(datetime(2012, 8, 15, 16, 10, tzinfo=NEW_YORK))
    server.clock.now = datetime(2012, 8, 15, 16, 20, tzinfo=NEW_YORK)
    with pytest.raises(AlpacaError, match=r"15 minutes old.*earlier end, feed = iex"):
        server.source().fetch(["AAPL"], date(2012, 8, 1))
    assert server.source(feed="iex").fetch(["AAPL"], date(2012, 8, 1)).height == 11
    assert server.clock.slept == []


# ---- intraday

DST_AND_HALF_DAYS = [date(2012, 3, 9), date(2012, 3, 12), date(2012, 11, 2), date(2012, 11, 5), date(2012, 11, 23)]


def five_minutes() -> pl.DataFrame:
    """Five-minute bars from 04:00 to 20:00; outside the regular hours prices are ten times as high."""
    rows = []
    for day in DST_AND_HALF_DAYS:
        bells = schedule(day, day).row(0, named=True)
        end = datetime(day.year, day.month, day.day, 4, 5, tzinfo=NEW_YORK)
        for number in range(16 * 12):
            closes_at = end.astimezone(UTC) + timedelta(minutes=5 * number)
            regular = bells["open"] < closes_at <= bells["close"]
            price = (100.0 + number + day.day / 100) * (1 if regular else 10)
            rows.append(("AAA", day, closes_at, price, price + 0.5, price - 0.5, price + 0.25, 1000.0 + number))
    names = ["symbol", "session", "end", "open", "high", "low", "close", "volume"]
    return pl.DataFrame(rows, names, orient="row").with_columns(pl.col("end").cast(pl.Datetime("us", "UTC")))


@pytest.fixture
def intraday(tmp_path: Path) -> Iterator[Server]:
    ticks = five_minutes()
    daily = ticks.group_by("symbol", "session").agg(pl.col("open", "high", "low", "close", "volume").first())
    daily.sort("session").write_parquet(tmp_path / "daily.parquet")
    now = datetime(2012, 12, 3, 10, 0, tzinfo=NEW_YORK)
    yield from served_fake(FakeBroker(FileBars(tmp_path / "daily.parquet"), now, intraday=ticks))


def new_york(instants: pl.Series) -> list[str]:
    return instants.dt.convert_time_zone(NEW_YORK.key).dt.strftime("%m-%d %H:%M").to_list()


@pytest.mark.parametrize("size", [10_000, 100])
def test_five_minutes_are_labelled_by_their_end_in_regular_hours_only(intraday: Server, size: int) -> None:
    bars = intraday.source(bars_per_page=size).fetch(["AAA"], date(2012, 3, 1), date(2012, 11, 30), "5Min")
    # 16 hours from 04:00: the bar that ends at 09:35 is number 66, the one at 16:00 number 143, at 13:00 number 107.
    expected = five_minutes().filter(pl.col("open") < 1000.0)
    assert_frame_equal(bars, expected, check_exact=True)
    assert bars.group_by("session", maintain_order=True).len()["len"].to_list() == [78, 78, 78, 78, 42]
    utc = bars.group_by("session", maintain_order=True).agg(pl.col("end").first())["end"].dt.strftime("%H:%M")
    assert utc.to_list() == ["14:35", "13:35", "13:35", "14:35", "14:35"]


def test_hours_count_from_the_opening_bell_across_dst_and_on_half_days(intraday: Server) -> None:
    bars = intraday.source().fetch(["AAA"], date(2012, 3, 1), date(2012, 11, 30), "1Hour")
    whole = ["10:30", "11:30", "12:30", "13:30", "14:30", "15:30", "16:00"]
    expected = [f"{day:%m-%d} {label}" for day in DST_AND_HALF_DAYS[:4] for label in whole]
    expected += [f"11-23 {label}" for label in ("10:30", "11:30", "12:30", "13:00")]
    assert new_york(bars["end"]) == expected
    first = bars.row(0, named=True)
    # Bars 66 (ends 09:35) to 77 (ends 10:30) of 9 March; nothing of the pre-market.
    assert (first["open"], first["close"], first["high"], first["low"]) == (166.09, 177.34, 177.59, 165.59)
    assert first["volume"] == sum(1000.0 + n for n in range(66, 78))
    assert {query["timeframe"] for query in intraday.asked()} == {"30Min"}
    assert intraday.asked(ACTIONS) == []


def test_session_in_progress_has_no_intraday_bars(intraday: Server) -> None:
    intraday.clock.now = datetime(2012, 11, 5, 15, 0, tzinfo=NEW_YORK)
    intraday.broker.move_to(intraday.clock.now)
    bars = intraday.source().fetch(["AAA"], date(2012, 11, 1), None, "5Min")
    assert bars["session"].unique().to_list() == [date(2012, 11, 2)]


# ---- what goes over the wire


def described(path: str) -> dict[str, dict[str, Any]]:
    """Returns the query parameters of a route in Alpaca's OpenAPI file, by name."""
    if not SCHEMA.is_file():
        pytest.skip("Alpaca's OpenAPI files are not beside this repository")
    document = json.loads(SCHEMA.read_text())
    components = document["components"]
    refs = [node["$ref"].rpartition("/")[2] for node in document["paths"][path]["get"]["parameters"]]
    found = {}
    for node in (components["parameters"][ref] for ref in refs):
        schema = node["schema"]
        schema = components["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
        found[node["name"]] = {"schema": schema, "required": node.get("required", False)}
    return found


@pytest.mark.parametrize("path", [BARS, ACTIONS])
def test_every_query_fits_alpacas_description(server: Server, path: str) -> None:
    server.source(bars_per_page=9).fetch(*SPAN)
    parameters = described(path)
    assert len(server.asked(path)) >= 1
    for query in server.asked(path):
        assert {name for name, node in parameters.items() if node["required"]} <= set(query) <= set(parameters)
        for name, text in query.items():
            schema = parameters[name]["schema"]
            value = int(text) if schema["type"] == "integer" else text
            jsonschema.validate(value, schema, format_checker=jsonschema.FormatChecker())


def test_query_says_everything_explicitly(server: Server) -> None:
    server.source(feed="iex", adjustment="split", asof="2012-08-15").fetch(["AAPL"], *SPAN[1:])
    server.source(asof="-").fetch(["AAPL"], *SPAN[1:])
    server.source().fetch(["AAPL"], date(2012, 8, 1), date(2012, 9, 9))  # a Sunday
    first, second, third = server.asked()
    assert first == {
        "symbols": "AAPL",
        "timeframe": "1Day",
        "start": "2012-08-01T04:00:00Z",
        "end": "2012-08-31T20:00:00Z",
        "feed": "iex",
        "adjustment": "split",
        "asof": "2012-08-15",
        "limit": "10000",
        "sort": "asc",
    }
    assert (second["asof"], third["asof"], third["feed"], third["adjustment"]) == ("-", "2012-09-07", "sip", "raw")


def test_symbols_and_years_are_asked_for_in_chunks_and_told(server: Server) -> None:
    told: list[tuple[int, int]] = []
    config = AlpacaConfig.of({"url": server.url, "symbols_per_request": 2})
    source = AlpacaBars(config, on_progress=lambda *p: told.append(p), now=lambda: server.clock.now)
    source.fetch(["MSFT", "AAPL", "IBM", "AAPL"], date(2011, 6, 1), date(2012, 6, 1))
    assert told == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert [(q["symbols"], q["start"][:10], q["end"][:10]) for q in server.asked()] == [
        ("AAPL,IBM", "2011-06-01", "2011-12-30"),
        ("AAPL,IBM", "2012-01-03", "2012-06-01"),
        ("MSFT", "2011-06-01", "2011-12-30"),
        ("MSFT", "2012-01-03", "2012-06-01"),
    ]


# ---- faults

PASSING = {
    "429": Fault(kind="status", status=429, body='{"code": 42910000, "message": "too many requests."}'),
    "500": Fault(kind="status", status=500),
    "502 html": Fault(kind="status", status=502, body="<html><h1>502 Bad Gateway</h1></html>"),
    "504": Fault(kind="status", status=504, body=""),
    "hang": Fault(kind="hang"),
    "drop": Fault(kind="drop"),
    "drop in the body": Fault(kind="drop_half"),
    "bad JSON": Fault(kind="bad_json"),
    "empty body": Fault(kind="status", status=200, body=""),
    "JSON list": Fault(kind="status", status=200, body="[]"),
}
MENTIONED = {
    "429": "too many requests.*429",
    "500": "answered 500",
    "502 html": "answered 502",
    "504": "answered 504",
    "hang": "ReadTimeout|ConnectionError",
    "drop": "ConnectionError",
    "drop in the body": "ConnectionError|ChunkedEncodingError",
    "bad JSON": "not JSON",
    "empty body": "no JSON object",
    "JSON list": "no JSON object but list",
}


def silence_allowed(name: str) -> dict[str, float]:
    """Short where the server hangs; elsewhere a busy machine must not look like it."""
    return {"read_timeout_s": 0.5} if name == "hang" else {}


@pytest.mark.parametrize("path", [BARS, ACTIONS])
@pytest.mark.parametrize("name", PASSING)
def test_fault_that_passes_costs_two_pauses_and_nothing_else(
    server: Server, bundled: pl.DataFrame, name: str, path: str
) -> None:
    server.fail(PASSING[name].model_copy(update={"path": path, "count": 2, "skip": 1 if path == BARS else 0}))
    bars = server.source(bars_per_page=20, patience=silence_allowed(name)).fetch(*SPAN)
    assert_frame_equal(bars, within(bundled, *SPAN), check_exact=True)
    assert len(server.clock.slept) == 2
    assert all(0 < pause <= 90 for pause in server.clock.slept)
    assert len(server.asked(path)) == (3 if path == BARS else 1) + 2


@pytest.mark.parametrize("name", PASSING)
def test_fault_that_stays_ends_in_one_line_after_the_attempts(server: Server, name: str) -> None:
    server.fail(PASSING[name].model_copy(update={"path": BARS, "count": 99}))
    with pytest.raises(AlpacaError, match=MENTIONED[name]) as caught:
        server.source(patience=silence_allowed(name)).fetch(*SPAN)
    assert "3 times" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(server.asked()) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 404, 422])
def test_refusal_is_not_asked_again(server: Server, status: int) -> None:
    server.fail(Fault(kind="status", status=status, body='{"code": 1, "message": "no"}', count=9))
    with pytest.raises(AlpacaError, match=str(status)):
        server.source().fetch(*SPAN)
    assert len(server.asked()) == 1


def test_pauses_grow_and_vary(server: Server) -> None:
    server.fail(Fault(kind="status", status=500, count=5))
    server.source(patience={"attempts": 6}).fetch(*SPAN)
    assert server.clock.slept == sorted(server.clock.slept)
    assert server.clock.slept[-1] > 4 * server.clock.slept[0]
    assert len({pause % 0.5 for pause in server.clock.slept}) == 5


def test_retry_after_is_waited_for_to_the_second(server: Server) -> None:
    later = format_datetime((server.clock.now + timedelta(seconds=50)).astimezone(UTC), usegmt=True)
    server.fail(
        Fault(kind="status", status=429, headers={"Retry-After": "37"}),
        Fault(kind="status", status=429, headers={"Retry-After": later}),
    )
    server.source().fetch(*SPAN)
    assert server.clock.slept == [37.0, 13.0]


def test_reset_header_is_waited_for_when_there_is_no_retry_after(server: Server) -> None:
    reset = str(int(server.clock.now.timestamp()) + 42)
    server.fail(Fault(kind="status", status=429, headers={"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}))
    server.source().fetch(*SPAN)
    assert server.clock.slept == [42.0]


def test_used_up_limit_is_waited_out_before_the_next_request(server: Server) -> None:
    reset = str(int(server.clock.now.timestamp()) + 42)
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": reset}
    server.fail(Fault(kind="headers", headers=headers, path=BARS))
    server.source(bars_per_page=20).fetch(*SPAN)
    assert server.clock.slept == [42.0]


def test_reset_header_far_ahead_is_cut_to_the_bound(server: Server) -> None:
    headers = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "99999999999"}
    server.fail(Fault(kind="headers", headers=headers, path=BARS))
    server.source(bars_per_page=20, patience={"max_wait_s": 20}).fetch(*SPAN)
    assert server.clock.slept == [20.0]


def test_service_that_asks_for_an_hour_ends_the_fetch_at_once(server: Server) -> None:
    server.fail(Fault(kind="status", status=429, headers={"Retry-After": "3600"}))
    with pytest.raises(AlpacaError, match="Retry-After 3600"):
        server.source().fetch(*SPAN)
    assert server.clock.slept == []


def test_deadline_ends_a_fetch_of_many_retries(server: Server) -> None:
    server.fail(Fault(kind="status", status=429, headers={"Retry-After": "40"}, count=99))
    with pytest.raises(AlpacaError, match="429"):
        server.source(patience={"deadline_s": 100, "attempts": 20}).fetch(*SPAN)
    assert sum(server.clock.slept) <= 100


def test_deadline_ends_a_fetch_of_many_pages(server: Server) -> None:
    used_up = {"X-RateLimit-Remaining": "0", "X-RateLimit-Reset": "99999999999"}
    server.fail(Fault(kind="headers", headers=used_up, count=99))
    with pytest.raises(AlpacaError, match="deadline_s = 100"):
        server.source(bars_per_page=1, patience={"deadline_s": 100, "max_wait_s": 40}).fetch(*SPAN)
    assert server.clock.slept == [40.0, 40.0, 40.0]
    assert len(server.asked()) == 3


@pytest.mark.parametrize(
    ("kind", "path", "message", "requests"),
    [
        ("repeated_token", BARS, "bar of AAPL at .* came twice", 2),
        ("endless_same_page", BARS, "bar of AAPL at .* came twice", 2),
        # 46 bars fill three pages, and five are spare.
        ("endless_empty_pages", BARS, "8 pages and no end", 8),
        ("repeated_token", ACTIONS, "names itself as the next", 2),
        ("endless_same_page", ACTIONS, "6 pages and no end", 6),
        ("endless_empty_pages", ACTIONS, "6 pages and no end", 6),
    ],
)
def test_pages_without_end_are_given_up(server: Server, kind: Any, path: str, message: str, requests: int) -> None:
    server.fail(Fault(kind=kind, path=path, count=10_000))
    with pytest.raises((AlpacaError, BarsError), match=message):
        server.source(bars_per_page=20, spare_pages=5).fetch(*SPAN)
    assert len(server.asked(path)) == requests


def test_symbol_missing_in_the_answer_is_named(server: Server, tmp_path: Path) -> None:
    server.fail(Fault(kind="symbol_missing", symbol="IBM", path=BARS))
    with pytest.raises(UnknownSymbolError, match="no bars for IBM from 2012-08-01 to 2012-08-31"):
        server.source(tmp_path).fetch(*SPAN)
    # What may have been a mistake was not kept.
    assert set(server.source(tmp_path).fetch(*SPAN)["symbol"]) == {"AAPL", "IBM"}


def test_symbol_listed_later_is_no_error(server: Server) -> None:
    bars = server.source().fetch(["FB", "IBM"], date(2011, 1, 3), date(2012, 12, 31))
    assert bars.filter(pl.col("symbol") == "FB")["session"].min() == date(2012, 5, 18)
    with pytest.raises(UnknownSymbolError, match="no bars for FB, ZZZ "):
        server.source().fetch(["FB", "IBM", "ZZZ"], date(2011, 1, 3), date(2011, 12, 30))


def test_price_that_is_no_number_is_named_by_symbol_and_time(server: Server) -> None:
    server.fail(Fault(kind="nan_price", symbol="IBM", path=BARS))
    with pytest.raises(BarsError, match=r"bar of IBM at 2012-08-31T04:00:00Z: c: .*finite"):
        server.source().fetch(*SPAN)


GOOD = {"t": "2012-08-01T04:00:00Z", "o": 2.0, "h": 3.0, "l": 1.0, "c": 2.0, "v": 5, "n": 1, "vw": 2.0}


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ({"bars": {"AAPL": [GOOD | {"o": "2.0"}]}}, "AAPL at 2012-08-01T04:00:00Z: o"),
        ({"bars": {"AAPL": [GOOD | {"v": None}]}}, "AAPL at 2012-08-01T04:00:00Z: v"),
        ({"bars": {"AAPL": [GOOD | {"h": True}]}}, "AAPL at 2012-08-01T04:00:00Z: h"),
        ({"bars": {"AAPL": [{k: v for k, v in GOOD.items() if k != "c"}]}}, "AAPL at 2012-08-01T04:00:00Z: c"),
        ({"bars": {"AAPL": [GOOD | {"t": "yesterday"}]}}, "AAPL at yesterday: t"),
        ({"bars": {"AAPL": [GOOD | {"t": "2012-08-01T04:00:00"}]}}, "AAPL at 2012-08-01T04:00:00: t"),
        ({"bars": {"AAPL": [GOOD, GOOD]}}, "came twice"),
        ({"bars": {"AAPL": [GOOD | {"l": 2.5}]}}, "AAPL 2012-08-01"),
        ({"bars": {"AAPL": [GOOD | {"c": -1}]}}, "AAPL 2012-08-01"),
        ({"bars": {"AAPL": ["bar"]}}, "AAPL at number 0"),
        ({"bars": {"AAPL": 7}}, "AAPL"),
        ({"bars": {"MSFT": [GOOD]}}, "MSFT"),
        ({"bars": [1]}, "bars"),
        ({}, "bars"),
    ],
)
def test_malformed_bar_is_refused_by_name(server: Server, page: dict[str, Any], message: str) -> None:
    body = json.dumps({"next_page_token": None, **page})
    server.fail(Fault(kind="status", status=200, body=body, path=BARS))
    with pytest.raises(BarsError, match=message):
        server.source().fetch(["AAPL"], date(2012, 8, 1), date(2012, 8, 1))


@pytest.mark.parametrize("page", ['{"bars": {}}', '{"bars": {}, "next_page_token": 5}'])
def test_answer_without_a_readable_token_is_refused(server: Server, page: str) -> None:
    server.fail(Fault(kind="status", status=200, body=page, path=BARS))
    with pytest.raises(AlpacaError, match="next_page_token"):
        server.source().fetch(*SPAN)


# ---- corporate actions


def test_actions_that_bars_cannot_express_are_recorded_and_warned_of(
    server: Server, bundled: pl.DataFrame, caplog: pytest.LogCaptureFixture
) -> None:
    dated = {"process_date": "2012-08-10", "id": "1"}
    server.broker.market.actions |= {
        "spin_offs": [{"source_symbol": "IBM", "new_symbol": "XYZ", "ex_date": "2012-08-09", **dated}],
        "name_changes": [{"old_symbol": "APPL", "new_symbol": "AAPL", **dated}],
        "quantum_splits": [{"symbol": "AAPL", "ex_date": "2012-08-13", **dated}],
        "stock_mergers": [{"acquirer_symbol": "IBM", "acquiree_symbol": "Q", "effective_date": "2012-07-31", **dated}],
    }
    foreign = {"symbol": "AAPL", "ex_date": "2012-08-20", "rate": 1.0, "currency": "CAD", **dated}
    server.broker.market.actions["cash_dividends"].append(foreign)
    source = server.source()
    with caplog.at_level(logging.WARNING):
        assert_frame_equal(source.fetch(*SPAN), within(bundled, *SPAN), check_exact=True)
    assert source.provenance()["unhandled_actions"] == (
        "cash_dividends AAPL 2012-08-20; name_changes AAPL 2012-08-10; "
        "quantum_splits AAPL 2012-08-13; spin_offs IBM 2012-08-09"
    )
    assert "quantum_splits AAPL 2012-08-13" in caplog.text


def test_split_kinds_become_shares_per_old_share(server: Server) -> None:
    dated = {"process_date": "2012-08-15"}
    server.broker.market.actions = {
        "reverse_splits": [
            {"id": "1", "symbol": "IBM", "ex_date": "2012-08-13", "new_rate": 1, "old_rate": 50, **dated}
        ],
        "stock_dividends": [{"id": "2", "symbol": "AAPL", "ex_date": "2012-08-11", "rate": 0.05, **dated}],
    }
    bars = server.source().fetch(*SPAN).filter(pl.col("split") != 1)
    # 11 August was a Saturday: the action stands on the next bar.
    assert bars.select("symbol", "session", "split").rows() == [
        ("AAPL", date(2012, 8, 13), 1.05),
        ("IBM", date(2012, 8, 13), 0.02),
    ]


@pytest.mark.parametrize("spoilt", [{"rate": "1"}, {"rate": 0}, {"rate": None}, {"ex_date": "soon"}, {"ex_date": None}])
def test_malformed_action_is_refused_by_name(server: Server, spoilt: dict[str, Any]) -> None:
    row = {"id": "1", "symbol": "IBM", "ex_date": "2012-08-13", "rate": 0.5, "process_date": "2012-08-15"}
    server.broker.market.actions = {"cash_dividends": [row | spoilt]}
    with pytest.raises(BarsError, match=f"cash_dividends of IBM .*: {next(iter(spoilt))}: "):
        server.source().fetch(*SPAN)


def test_actions_over_a_gap_meet_in_units_of_the_newest_share() -> None:
    days = [date(2012, 8, 1), date(2012, 8, 10), date(2012, 8, 13)]
    bars = pl.DataFrame({"symbol": ["A"] * 3, "session": days})
    told = with_actions(
        bars,
        [
            Action("A", date(2012, 8, 6), split=2.0),
            Action("A", date(2012, 8, 3), dividend=1.0),  # on an old share: half a dollar on each new one
            Action("A", date(2012, 8, 6), dividend=0.25),  # same day as the split: on a new share
            Action("A", date(2012, 7, 31), dividend=9.0),
            Action("A", date(2012, 8, 14), split=9.0),
            Action("B", date(2012, 8, 10), split=9.0),
        ],
    )
    assert told["split"].to_list() == [1.0, 2.0, 1.0]
    assert told["dividend"].to_list() == [0.0, 0.75, 0.0]


# ---- going on where it stopped

YEARS = (["AAPL", "IBM"], date(2005, 1, 3), date(2012, 12, 31))


def test_rerun_after_a_failure_asks_for_the_missing_chunks_only(
    server: Server, bundled: pl.DataFrame, tmp_path: Path
) -> None:
    server.fail(Fault(kind="status", status=500, path=BARS, skip=5, count=99))
    with pytest.raises(AlpacaError):
        server.source(tmp_path / "cache").fetch(*YEARS)
    server.fail()
    before = len(server.asked())
    bars = server.source(tmp_path / "cache").fetch(*YEARS)
    assert [query["start"][:4] for query in server.asked()[before:]] == ["2010", "2011", "2012"]
    assert_frame_equal(bars, within(bundled, *YEARS), check_exact=True)
    before = len(server.asked())
    assert_frame_equal(server.source(tmp_path / "cache").fetch(*YEARS), bars, check_exact=True)
    assert len(server.asked()) == before


def test_killed_fetch_goes_on_where_it_was_killed(server: Server, bundled: pl.DataFrame, tmp_path: Path) -> None:
    server.fail(Fault(kind="hang", path=BARS, skip=5))
    code = (
        "import sys; from datetime import date; from pathlib import Path;"
        "from data_pipeline.sources.alpaca import AlpacaBars, AlpacaConfig;"
        "source = AlpacaBars(AlpacaConfig(url=sys.argv[1]), Path(sys.argv[2]));"
        "source.fetch(['AAPL', 'IBM'], date(2005, 1, 3), date(2012, 12, 31))"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, server.url, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) as child:
        give_up = time.monotonic() + 60
        while len(server.asked()) < 6 and time.monotonic() < give_up and child.poll() is None:
            time.sleep(0.01)
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    assert len(server.asked()) == 6
    bars = server.source(tmp_path).fetch(*YEARS)
    assert [query["start"][:4] for query in server.asked()[6:]] == ["2010", "2011", "2012"]
    assert_frame_equal(bars, within(bundled, *YEARS), check_exact=True)


@pytest.mark.parametrize("harm", ["flip", "cut", "empty", "unfinished"])
def test_harmed_chunk_is_fetched_again(server: Server, bundled: pl.DataFrame, tmp_path: Path, harm: str) -> None:
    server.source(tmp_path).fetch(*YEARS)
    victim = sorted(tmp_path.iterdir())[2]
    content = victim.read_bytes()
    if harm == "flip":
        middle = len(content) // 2
        victim.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    elif harm == "unfinished":
        victim.rename(victim.with_suffix(".4711.unfinished"))
    else:
        victim.write_bytes(content[: len(content) // 2] if harm == "cut" else b"")
    before = len(server.asked())
    assert_frame_equal(server.source(tmp_path).fetch(*YEARS), within(bundled, *YEARS), check_exact=True)
    assert len(server.asked()) == before + 1
    server.source(tmp_path).fetch(*YEARS)
    assert len(server.asked()) == before + 1


def test_folder_that_cannot_hold_chunks_is_named(server: Server, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match=r"file: a finished part cannot be kept .*name another folder"):
        server.source(tmp_path / "file").fetch(*SPAN)


def test_chunk_is_kept_once_its_last_day_is_over(server: Server, tmp_path: Path) -> None:
    server.clock.now = datetime(2012, 8, 31, 23, 59, tzinfo=NEW_YORK)
    server.source(tmp_path).fetch(*SPAN)
    assert list(tmp_path.iterdir()) == []
    server.clock.now = datetime(2012, 9, 1, 0, 0, tzinfo=NEW_YORK)
    server.source(tmp_path).fetch(*SPAN)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("change", [{"feed": "iex"}, {"adjustment": "all"}, {"asof": "-"}, {"symbols_per_request": 1}])
def test_chunk_serves_only_the_very_same_request(server: Server, tmp_path: Path, change: dict[str, Any]) -> None:
    server.source(tmp_path).fetch(*SPAN)
    before = len(server.asked())
    server.source(tmp_path, **change).fetch(*SPAN)
    assert len(server.asked()) > before


def test_chunk_of_one_server_is_none_of_another(server: Server, tmp_path: Path) -> None:
    server.source(tmp_path).fetch(*SPAN)
    server.source(tmp_path, url=server.url.replace("127.0.0.1", "localhost")).fetch(*SPAN)
    assert len(server.asked()) == 2


def test_adjusted_chunks_of_another_day_are_not_mixed_in(server: Server, tmp_path: Path) -> None:
    for days, requests in ((0, 1), (0, 1), (1, 2)):
        server.clock.now += timedelta(days=days)
        server.source(tmp_path, adjustment="all").fetch(*SPAN)
        assert len(server.asked()) == requests


# ---- settings and secrets


@pytest.mark.parametrize("missing", KEYS)
@pytest.mark.parametrize("value", [None, ""])
def test_missing_key_is_named(monkeypatch: pytest.MonkeyPatch, missing: str, value: str | None) -> None:
    monkeypatch.delenv(missing) if value is None else monkeypatch.setenv(missing, value)
    with pytest.raises(ConfigError, match=f"environment variable {missing} not set"):
        AlpacaBars(AlpacaConfig())


@pytest.mark.parametrize("url", ["", " ", "127.0.0.1:8100", "ftp://host", "http://me:word@host", "http://host?x=1"])
def test_url_that_is_none_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="url = "):
        AlpacaConfig.of({"url": url})


@pytest.mark.parametrize(
    ("symbols", "start", "message"),
    [
        (None, date(2012, 1, 3), "needs symbols"),
        ([], date(2012, 1, 3), "needs symbols"),
        (["AAPL"], None, "needs a start"),
        (["AAPL,IBM"], date(2012, 1, 3), "symbol 'AAPL,IBM'"),
        (["aapl"], date(2012, 1, 3), "symbol 'aapl'"),
    ],
)
def test_fetch_without_what_it_needs_says_so(
    server: Server, symbols: list[str] | None, start: date | None, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        server.source().fetch(symbols, start)
    assert server.broker.faults.calls == []


def test_client_built_another_way_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"object has no _session, _retry, _retry_codes.*alpaca-py 0\.44"):
        tame(object(), (1.0, 1.0))


def test_provenance_tells_feed_adjustment_and_version(server: Server) -> None:
    source = server.source(feed="iex")
    source.fetch(*SPAN)
    told = source.provenance()
    assert (told["source"], told["feed"], told["adjustment"], told["endpoint"]) == ("alpaca", "iex", "raw", server.url)
    assert told["version"].startswith("alpaca-py 0.44")
    assert told["unhandled_actions"] == "none"


def test_keys_are_sent_and_appear_nowhere_else(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    echo = json.dumps({"message": f"who is {KEYS['ALPACA_API_KEY']} with {KEYS['ALPACA_SECRET_KEY']}?"})
    told = []
    with caplog.at_level(logging.DEBUG):
        source = server.source(tmp_path)
        source.fetch(*SPAN)
        for status in (401, 403, 500):
            server.fail(Fault(kind="status", status=status, body=echo, count=9))
            with pytest.raises(AlpacaError) as caught:
                server.source().fetch(*SPAN)
            told.append(str(caught.value))
    told += [caplog.text, repr(source), repr(vars(source)), str(source.provenance()), *map(str, tmp_path.iterdir())]
    assert "********** with **********" in told[1]
    for secret in KEYS.values():
        assert not any(secret in text for text in told)
        assert not any(secret.encode() in path.read_bytes() for path in tmp_path.iterdir())
