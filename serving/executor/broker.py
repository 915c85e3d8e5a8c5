"""Alpaca through alpaca-py, with timeouts, and read without its typed models.

alpaca-py waits for ever and resends orders by itself; both are switched off here. Its models refuse
answers they do not know, after the order is placed; the records below ignore unknown fields and keep a
status as text. Reads are retried a few times. An order is sent once, and what became of it is asked by
its client order id.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Sequence
from typing import Annotated, Any, NamedTuple, TypeVar
from zoneinfo import ZoneInfo

import requests
import tenacity
from alpaca.common.exceptions import APIError
from alpaca.data.enums import DataFeed
from alpaca.data.historical.stock import StockHistoricalDataClient
from alpaca.data.requests import StockLatestTradeRequest
from alpaca.trading.client import TradingClient
from alpaca.trading.enums import OrderSide, PositionIntent, QueryOrderStatus, TimeInForce
from alpaca.trading.requests import GetCalendarRequest, GetOrdersRequest, MarketOrderRequest
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, FiniteFloat, TypeAdapter, ValidationError

from data_pipeline.alpaca_http import may_pass, said, tame
from serving.executor.config import Credentials, ExecutorConfig
from serving.executor.plan import Intent

NEW_YORK = ZoneInfo("America/New_York")
_TIMEOUT_S = (3.05, 10.0)
_MAX_OPEN_ORDERS = 500


T = TypeVar("T")


class BrokerError(Exception):
    """The broker cannot be read, or answers what cannot be understood."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class Account(_Record):
    """The account as the broker sees it now, USD."""

    id: str
    status: str
    equity: FiniteFloat
    cash: FiniteFloat
    trading_blocked: bool
    account_blocked: bool


class Clock(_Record):
    """The broker's clock."""

    timestamp: AwareDatetime
    is_open: bool


class Session(_Record):
    """One exchange day of the broker's calendar, times in New York."""

    day: Annotated[dt.date, Field(alias="date")]
    open: dt.time
    close: dt.time

    @property
    def opens_at(self) -> dt.datetime:
        """The opening bell."""
        return dt.datetime.combine(self.day, self.open, NEW_YORK)

    @property
    def closes_at(self) -> dt.datetime:
        """The closing bell, early on half days."""
        return dt.datetime.combine(self.day, self.close, NEW_YORK)


class Position(_Record):
    """Signed shares held of one symbol."""

    symbol: str
    qty: FiniteFloat


class Order(_Record):
    """An order that the broker knows."""

    id: str
    client_order_id: str
    symbol: str | None
    status: str
    filled_qty: FiniteFloat
    filled_avg_price: FiniteFloat | None


class Price(_Record):
    """The last trade of one symbol."""

    value: Annotated[FiniteFloat, Field(alias="p", gt=0)]
    time: Annotated[AwareDatetime, Field(alias="t")]


class Refusal(NamedTuple):
    """The broker said no: no order exists."""

    reason: str


class Broker:
    """The few calls that the executor needs; every read may raise BrokerError."""

    def __init__(self, config: ExecutorConfig, credentials: Credentials) -> None:
        key, secret = credentials.api_key.get_secret_value(), credentials.secret_key.get_secret_value()
        url = config.broker_url
        self._trading = TradingClient(key, secret, paper=True, raw_data=True, url_override=url)
        self._data = StockHistoricalDataClient(key, secret, raw_data=True, url_override=url)
        self._feed = DataFeed(config.feed)
        for client in (self._trading, self._data):
            tame(client, _TIMEOUT_S)

    def account(self) -> Account:
        """Returns the account."""
        return _read(TypeAdapter(Account), self._trading.get_account)

    def clock(self) -> Clock:
        """Returns the broker's clock."""
        return _read(TypeAdapter(Clock), self._trading.get_clock)

    def sessions(self, start: dt.date, end: dt.date) -> list[Session]:
        """Returns the exchange days from `start` to `end`, both included, oldest first."""
        span = GetCalendarRequest(start=start, end=end)
        return _read(TypeAdapter(list[Session]), lambda: self._trading.get_calendar(span))

    def positions(self) -> dict[str, float]:
        """Returns the signed shares of each symbol held."""
        held = _read(TypeAdapter(list[Position]), self._trading.get_all_positions)
        return {position.symbol: position.qty for position in held}

    def open_orders(self) -> list[Order]:
        """Returns every open order of the account, whoever placed it."""
        asked = GetOrdersRequest(status=QueryOrderStatus.OPEN, limit=_MAX_OPEN_ORDERS)
        return _read(TypeAdapter(list[Order]), lambda: self._trading.get_orders(asked))

    def latest_prices(self, symbols: Sequence[str]) -> dict[str, Price]:
        """Returns the last trade of each symbol; one that never traded is left out."""
        asked = StockLatestTradeRequest(symbol_or_symbols=list(symbols), feed=self._feed)
        return _read(TypeAdapter(dict[str, Price]), lambda: self._data.get_stock_latest_trade(asked))

    def order(self, client_order_id: str) -> Order | None:
        """Returns the order with this client order id, or None if the broker knows none."""
        found = _read(TypeAdapter(list[Order]), lambda: self._found(client_order_id))
        return next(iter(found), None)

    def submit(self, intent: Intent) -> Order | Refusal | None:
        """Sends a market DAY order once.

        Returns:
            The order, the broker's refusal, or None when the answer was lost and the broker knows no
            such order (yet): ask again later, and send again only under the same id.
        """
        asked = MarketOrderRequest(
            symbol=intent.symbol,
            qty=intent.shares,
            side=OrderSide(intent.side),
            time_in_force=TimeInForce.DAY,
            client_order_id=intent.client_order_id,
            position_intent=PositionIntent(intent.position_intent),
        )
        try:
            return Order.model_validate(self._trading.submit_order(asked))
        except APIError as error:
            refused = error.status_code in {403, 422}
            # A duplicate id is no refusal: an earlier, lost request did place the order.
            if refused and "client_order_id" not in str(error):
                return Refusal(said(error))
        except (requests.RequestException, ValidationError):
            pass
        return self.order(intent.client_order_id)

    def cancel(self, order_id: str) -> None:
        """Asks to cancel an order; only a later look at the order tells whether it worked."""
        try:
            self._trading.cancel_order_by_id(order_id)
        except (APIError, requests.RequestException):
            return

    def _found(self, client_order_id: str) -> list[Any]:
        try:
            return [self._trading.get_order_by_client_id(client_order_id)]
        except APIError as error:
            if error.status_code == 404:
                return []
            raise


def last_completed(sessions: Sequence[Session], at: dt.datetime) -> Session | None:
    """Returns the last session whose close has passed at `at`, or None."""
    return max((s for s in sessions if s.closes_at <= at), key=lambda s: s.day, default=None)


def _read(kind: TypeAdapter[T], call: Callable[[], Any]) -> T:
    """Returns the answer of `call`, as `kind` reads it, after a few tries.

    Raises:
        BrokerError: No usable answer.
    """
    tries = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(4),
        wait=tenacity.wait_exponential(multiplier=0.1, max=2),
        retry=tenacity.retry_if_exception(may_pass),
        reraise=True,
    )
    try:
        return kind.validate_python(tries(call))
    except APIError as error:
        raise BrokerError(f"broker answered {error.status_code}: {said(error)}") from error
    except requests.RequestException as error:
        raise BrokerError(f"broker cannot be reached: {type(error).__name__}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BrokerError(f"broker's answer cannot be read: {where}: {first['msg']}") from error
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # alpaca-py takes some answers apart before it hands them over.
        raise BrokerError(f"broker's answer cannot be read: {error}") from error
