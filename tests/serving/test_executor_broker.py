"""The real alpaca-py client behind our broker, and the gates on what it reads."""

from __future__ import annotations

import socket
import time
from datetime import date, datetime, timedelta

import pytest
from desk import NEW_YORK, Desk
from fastapi import FastAPI, Response

from loopback import served
from serving.executor import broker as broker_module
from serving.executor import gates
from serving.executor.broker import Broker, BrokerError, Order, Refusal, last_completed
from serving.executor.config import Credentials
from serving.executor.plan import Intent

# exchange_calendars reads a pandas property that pandas 3.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")

BUY = Intent(client_order_id="x.1", symbol="AAA", position_intent="buy_to_open", shares=1, price=100.0)


def broker_at(desk: Desk, url: str | None = None) -> Broker:
    return Broker(desk.config(broker_url=url or desk.broker_url), Credentials.from_environment())


def test_last_completed_session_knows_half_days_and_weekends(desk: Desk) -> None:
    broker = broker_at(desk)
    sessions = broker.sessions(date(2011, 11, 14), date(2011, 11, 28))

    def completed(*moment: int) -> date | None:
        last = last_completed(sessions, datetime(*moment, tzinfo=NEW_YORK))  # type: ignore[misc,arg-type]
        return last.day if last else None

    # Thanksgiving 2011 was 24 November; the Friday closed at 13:00.
    assert completed(2011, 11, 25, 12, 59) == date(2011, 11, 23)
    assert completed(2011, 11, 25, 13, 0) == date(2011, 11, 25)
    assert completed(2011, 11, 28, 15, 59) == date(2011, 11, 25)
    assert completed(2011, 11, 28, 16, 0) == date(2011, 11, 28)


def test_refused_order_is_a_value_and_no_order(desk: Desk) -> None:
    broker = broker_at(desk)
    outcome = broker.submit(BUY.model_copy(update={"position_intent": "sell_to_close"}))
    assert isinstance(outcome, Refusal)
    assert "position intent mismatch" in outcome.reason
    assert broker.order("x.1") is None


def test_duplicate_id_means_that_the_order_exists(desk: Desk) -> None:
    broker = broker_at(desk)
    first, second = broker.submit(BUY), broker.submit(BUY)
    assert isinstance(first, Order)
    assert first == second
    assert len(desk.broker.orders) == 1


@pytest.mark.parametrize("status", [429, 500, 504])
def test_order_whose_fate_is_unclear_is_sent_only_once(desk: Desk, status: int) -> None:
    posts = []
    service = FastAPI()

    @service.post("/v2/orders")
    async def fail() -> Response:
        posts.append(status)
        return Response("<html>busy</html>", status)

    with served(service) as (url,):
        assert broker_at(desk, url).submit(BUY) is None
    assert len(posts) == 1


def test_read_is_tried_again_a_few_times(desk: Desk) -> None:
    answers = [Response("<html>busy</html>", 503), Response("no json"), Response(status_code=429)]
    clock = {"timestamp": "2012-06-15T10:00:00.123456789-04:00", "is_open": True, "news": 1}
    service = FastAPI()

    @service.get("/v2/clock", response_model=None)
    async def clumsy() -> Response | dict[str, object]:
        return answers.pop() if answers else clock

    with served(service) as (url,):
        assert broker_at(desk, url).clock().is_open
        answers[:] = [Response(status_code=503) for _ in range(9)]
        with pytest.raises(BrokerError, match="503"):
            broker_at(desk, url).clock()


def test_broker_that_never_answers_is_given_up(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(broker_module, "_TIMEOUT_S", (0.1, 0.1))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        start = time.monotonic()
        with pytest.raises(BrokerError, match="cannot be reached"):
            broker_at(desk, f"http://127.0.0.1:{mute.getsockname()[1]}").account()
    assert time.monotonic() - start < 5


def test_wrong_path_is_a_broker_error(desk: Desk) -> None:
    with pytest.raises(BrokerError, match="404"):
        broker_at(desk, desk.policy_url).account()


def test_unknown_order_status_is_read_as_text() -> None:
    order = Order.model_validate(
        {
            "id": "1",
            "client_order_id": "x.1",
            "symbol": "AAA",
            "status": "pondering",
            "filled_qty": "0",
            "filled_avg_price": None,
            "novelty": {},
        }
    )
    assert order.status == "pondering"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"status": "ACCOUNT_CLOSED_PENDING"}, "ACCOUNT_CLOSED_PENDING"),
        ({"trading_blocked": True}, "blocked"),
        ({"account_blocked": True}, "blocked"),
        ({"equity": 0.0}, "equity"),
    ],
)
def test_account_that_is_not_fit_to_trade_holds(desk: Desk, changes: dict[str, object], reason: str) -> None:
    account = broker_at(desk).account()
    assert gates.account_reasons(account) == []
    assert reason in gates.account_reasons(account.model_copy(update=changes))[0]


def test_old_price_holds(desk: Desk) -> None:
    broker = broker_at(desk)
    prices, clock = broker.latest_prices(["AAA", "BBB"]), broker.clock()
    later = clock.model_copy(update={"timestamp": clock.timestamp + timedelta(hours=2)})
    assert gates.price_age_reasons(prices, clock, desk.config()) == []
    assert "AAA is 7200 s old" in gates.price_age_reasons(prices, later, desk.config())[0]


def test_missing_price_and_fractional_position_hold() -> None:
    assert gates.price_reasons({}, ["AAA"]) == ["no price of AAA"]
    assert gates.position_reasons({"AAA": 1.5}, ["AAA"]) == ["fractional position in AAA"]
