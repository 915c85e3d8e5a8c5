"""A local stand-in for Alpaca's REST API, for demos, drills and tests; it binds to loopback only.

Answers have Alpaca's shapes (numbers as text, its error codes), and requests are validated as Alpaca
does. The clock is simulated, so a session long past can be traded: prices are the open of the day of the
clock where the source has that bar, else the last close before it.

Simplified: orders fill whole and at once while the market is open; margin is two times equity; corporate
actions do not touch positions; stop orders, brackets, fractions and notionals are refused. Assumed, as
nobody has written it down: code and text of the position-intent refusal.
"""

from __future__ import annotations

import functools
import json
import socket
import sys
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import polars as pl
from fastapi import Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field
from starlette.types import Receive, Scope, Send

from data_pipeline.errors import LiveError
from data_pipeline.sources.source import BarSource

NEW_YORK = ZoneInfo("America/New_York")
_NAMES = uuid.UUID("5f3c6d6e-6a43-4b58-9f0b-2d6c1f0a9b11")
_OPEN = ("accepted", "new")
_MARGIN = 2.0

PositionIntent = Literal["buy_to_open", "buy_to_close", "sell_to_open", "sell_to_close"]
Amount = Annotated[Decimal, Field(gt=0)]


class OrderRequest(BaseModel):
    """The body of POST /v2/orders; fields of Alpaca's that are not simulated are refused by name."""

    model_config = ConfigDict(extra="forbid")

    symbol: str
    qty: Amount
    side: Literal["buy", "sell"]
    type: Literal["market", "limit"]
    time_in_force: Literal["day"]
    limit_price: Amount | None = None
    extended_hours: Literal[False] = False
    client_order_id: Annotated[str, Field(max_length=128)] = Field(default_factory=lambda: str(uuid.uuid4()))
    order_class: Literal["", "simple"] = ""
    position_intent: PositionIntent | None = None


class Hours(NamedTuple):
    """Bells of one exchange day, New York time."""

    open: datetime
    close: datetime


class RefusedError(Exception):
    """An answer of Alpaca's that is not 200."""

    def __init__(self, status: int, code: int | None, message: str, **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {**({} if code is None else {"code": code}), "message": message, **more}


@dataclass
class BookedOrder:
    """An order as the broker keeps it."""

    asked: OrderRequest
    intent: PositionIntent
    at: datetime
    expires_at: datetime
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    status: str = "accepted"
    fill_price: float | None = None
    ended_at: datetime | None = None

    @property
    def signed(self) -> float:
        """Shares asked for; positive buys."""
        return float(self.asked.qty) * (1 if self.asked.side == "buy" else -1)


@dataclass
class Lot:
    """A position: signed shares and the average price paid."""

    shares: float
    price: float


class FakeBroker:
    """The account, its orders and the market; `app` serves it.

    Args:
        source: Where prices come from; its symbols are the assets that exist.
        now: The simulated time, aware.
        cash: Starting cash, USD.
        positions: Signed shares held at the start, booked at the price of `now`.
    """

    def __init__(
        self,
        source: BarSource,
        now: datetime,
        cash: float = 100_000.0,
        positions: Mapping[str, float] | None = None,
    ) -> None:
        self.bars = source.fetch()
        self.symbols = frozenset(self.bars["symbol"].unique())
        self.now = now.astimezone(NEW_YORK)
        self.cash = cash
        self.orders: list[BookedOrder] = []
        self.requests: list[dict[str, Any]] = []
        """Every order body received, for checks against Alpaca's schema."""
        self.halted: set[str] = set()
        """Symbols whose orders do not fill."""
        self.lose_responses = 0
        """So many answers to POST /v2/orders are lost after the order was booked."""
        try:
            self.lots = {symbol: Lot(qty, self.price(symbol)) for symbol, qty in (positions or {}).items()}
        except RefusedError as error:
            raise LiveError(f"starting position: {error}; name a symbol of the bar source") from error

    @property
    def hours(self) -> Hours:
        """The current exchange day, or the next one."""
        schedule = _schedule()
        return schedule[min(day for day in schedule if day >= self.now.date())]

    @property
    def is_open(self) -> bool:
        """Whether the market is open."""
        return self.hours.open <= self.now < self.hours.close

    @property
    def equity(self) -> float:
        """Cash plus the value of all positions, USD."""
        return self.cash + sum(lot.shares * self.price(symbol) for symbol, lot in self.lots.items())

    @property
    def buying_power(self) -> float:
        """What new positions may cost, USD."""
        gross = sum(abs(lot.shares) * self.price(symbol) for symbol, lot in self.lots.items())
        return max(0.0, _MARGIN * self.equity - gross)

    def price(self, symbol: str) -> float:
        """Returns the price of `symbol` at the simulated time.

        Raises:
            RefusedError: It has not traded yet.
        """
        today = self.now.date()
        hours = _schedule().get(today)
        begun = hours is not None and self.now >= hours.open
        bar = self._last_bar(symbol, today if begun else today - timedelta(days=1))
        return float(bar["open"] if bar["session"] == today else bar["close"])

    def close_before(self, symbol: str) -> float:
        """Returns the last close before the present day."""
        return float(self._last_bar(symbol, self.now.date() - timedelta(days=1))["close"])

    def shares(self, symbol: str) -> float:
        """Returns the signed shares held."""
        lot = self.lots.get(symbol)
        return lot.shares if lot else 0.0

    def move_to(self, now: datetime) -> None:
        """Moves the clock; queued orders fill at the open, orders of a day that is over expire."""
        self.now = now.astimezone(NEW_YORK)
        for order in self.open_orders():
            if self.now >= order.expires_at:
                order.status, order.ended_at = "expired", order.expires_at
            else:
                self._try_fill(order)

    def open_orders(self) -> list[BookedOrder]:
        """Returns the orders that may still fill."""
        return [order for order in self.orders if order.status in _OPEN]

    def order(self, match: Callable[[BookedOrder], bool], name: str) -> BookedOrder:
        """Returns the order that `match` picks.

        Raises:
            RefusedError: There is none.
        """
        found = next((order for order in self.orders if match(order)), None)
        if found is None:
            raise RefusedError(404, 40410000, f"order not found for {name}")
        return found

    def submit(self, asked: OrderRequest) -> BookedOrder:
        """Books an order, and fills it if it can be filled now.

        Raises:
            RefusedError: For the reasons that Alpaca has.
        """
        intent = self._checked(asked)
        hours = self.hours
        if self.now >= hours.close:
            hours = _schedule()[min(day for day in _schedule() if day > self.now.date())]
        order = BookedOrder(asked, intent, self.now, expires_at=hours.close)
        self.orders.append(order)
        self._try_fill(order)
        return order

    def cancel(self, order: BookedOrder) -> None:
        """Cancels an open order.

        Raises:
            RefusedError: It is not open.
        """
        if order.status not in _OPEN:
            raise RefusedError(422, 42210000, f'order is already in "{order.status}" state')
        order.status, order.ended_at = "canceled", self.now

    def _checked(self, asked: OrderRequest) -> PositionIntent:
        """Returns the intent that Alpaca infers, or refuses the order."""
        if asked.symbol not in self.symbols:
            raise RefusedError(422, 42210000, f'asset "{asked.symbol}" not found')
        if any(order.asked.client_order_id == asked.client_order_id for order in self.orders):
            raise RefusedError(422, 40010001, "client_order_id must be unique")
        if asked.qty != int(asked.qty):
            raise RefusedError(422, 42210000, "qty must be a whole number: fractions are not simulated")
        if (asked.type == "limit") != (asked.limit_price is not None):
            raise RefusedError(422, 42210000, "limit orders, and only they, require a limit price")
        others = [order for order in self.open_orders() if order.asked.symbol == asked.symbol]
        if any(order.asked.side != asked.side for order in others):
            raise RefusedError(403, 40310000, "potential wash trade detected. use complex orders")
        held = self.shares(asked.symbol)
        intent = _inferred(asked.side, held)
        if asked.position_intent not in {None, intent}:
            inferred = intent.replace("_", " ")
            raise RefusedError(403, 40310000, f"position intent mismatch, inferred: {inferred}")
        if intent.endswith("close"):
            self._check_quantity(asked, held, sum(abs(order.signed) for order in others))
        elif float(asked.qty) * self.price(asked.symbol) > self.buying_power:
            raise RefusedError(403, 40310000, "insufficient buying power", buying_power=_money(self.buying_power))
        return intent

    def _check_quantity(self, asked: OrderRequest, held: float, reserved: float) -> None:
        available = abs(held) - reserved
        if float(asked.qty) > available:
            raise RefusedError(
                403,
                40310000,
                f"insufficient qty available for order (requested: {asked.qty}, available: {available:g})",
                symbol=asked.symbol,
                existing_qty=f"{held:g}",
                held_for_orders=f"{reserved:g}",
                available=f"{available:g}",
            )

    def _try_fill(self, order: BookedOrder) -> None:
        if not self.is_open:
            return
        order.status, price = "new", self.price(order.asked.symbol)
        if order.asked.symbol in self.halted:
            return
        limit = order.asked.limit_price
        if limit is not None and (price - float(limit)) * order.signed > 0:
            return
        order.status, order.fill_price, order.ended_at = "filled", price, self.now
        self.cash -= order.signed * price
        before = self.lots.get(order.asked.symbol, Lot(0.0, price))
        after = before.shares + order.signed
        opened = abs(after) > abs(before.shares)
        cost = (before.shares * before.price + order.signed * price) / after if opened else before.price
        if after:
            self.lots[order.asked.symbol] = Lot(after, cost)
        else:
            del self.lots[order.asked.symbol]

    def _last_bar(self, symbol: str, until: date) -> dict[str, Any]:
        bars = self.bars.filter((pl.col("symbol") == symbol) & (pl.col("session") <= until)).tail(1)
        if bars.is_empty():
            raise RefusedError(422, 42210000, f"{symbol} had not traded by {until}")
        return bars.row(0, named=True)


class ClockSetting(BaseModel):
    """The body of PUT /fake/clock."""

    now: AwareDatetime


def app(broker: FakeBroker) -> FastAPI:
    """Returns the HTTP service of `broker`.

    Beside Alpaca's routes, PUT /fake/clock with `{"now": "2013-02-28T10:00:00-05:00"}` moves the clock.
    """
    service = FastAPI(
        title="fake broker",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(_authorised)],
    )
    _add_answers_to_errors(service)
    _add_account_routes(service, broker)
    _add_order_routes(service, broker)
    _add_data_routes(service, broker)

    @service.put("/fake/clock")
    async def set_clock(setting: ClockSetting) -> dict[str, Any]:
        broker.move_to(setting.now)
        return _clock_json(broker)

    return service


def serve(broker: FakeBroker, port: int = 0) -> None:
    """Serves `broker` on 127.0.0.1 until stopped; prints the address as one JSON line when it listens.

    Args:
        broker: The account and market.
        port: 0 takes a free one.

    Raises:
        LiveError: The port is taken.
    """
    import uvicorn  # noqa: PLC0415  (the routes are also served by others)

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise LiveError(f"port {port}: {error.strerror}; give another, or 0 for a free one") from error
        listener.listen(128)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sys.stdout.write(json.dumps({"url": address}) + "\n")
        sys.stdout.flush()
        config = uvicorn.Config(app(broker), log_level="warning", ws="none", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


class _LostResponse(Response):
    """Promises a body and closes the connection instead."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})


def _authorised(request: Request) -> None:
    names = ("APCA-API-KEY-ID", "APCA-API-SECRET-KEY")
    if request.url.path.startswith("/v2/") and not all(request.headers.get(name) for name in names):
        raise RefusedError(401, None, "forbidden.")


def _add_answers_to_errors(service: FastAPI) -> None:
    @service.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return JSONResponse(error.body, error.status)

    @service.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"code": 42210000, "message": f"{where}: {first['msg']}"}, 422)


def _add_account_routes(service: FastAPI, broker: FakeBroker) -> None:
    @service.get("/v2/account")
    async def account() -> dict[str, Any]:
        return _account_json(broker)

    @service.get("/v2/clock")
    async def clock() -> dict[str, Any]:
        return _clock_json(broker)

    @service.get("/v2/calendar")
    async def calendar(start: date = date.min, end: date = date.max) -> list[dict[str, str]]:
        days = _schedule().items()
        return [_day_json(day, hours) for day, hours in days if start <= day <= end]

    @service.get("/v2/assets/{symbol}")
    async def asset(symbol: str) -> dict[str, Any]:
        found = next((s for s in broker.symbols if symbol in {s, _asset_id(s)}), None)
        if found is None:
            raise RefusedError(404, 40410000, f"asset not found for {symbol}")
        return _asset_json(found)

    @service.get("/v2/positions")
    async def positions() -> list[dict[str, Any]]:
        return [_position_json(broker, symbol, lot) for symbol, lot in sorted(broker.lots.items())]


def _add_order_routes(service: FastAPI, broker: FakeBroker) -> None:
    @service.post("/v2/orders")
    async def submit(body: Annotated[dict[str, Any], Body()]) -> Response:
        broker.requests.append(body)
        answer = _order_json(broker.submit(_parsed(body)))
        if broker.lose_responses > 0:
            broker.lose_responses -= 1
            return _LostResponse()
        return JSONResponse(answer)

    @service.get("/v2/orders")
    async def orders(
        status: Literal["open", "closed", "all"] = "open",
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        symbols: str | None = None,
    ) -> list[dict[str, Any]]:
        wanted = None if symbols is None else symbols.split(",")
        found = [
            order
            for order in reversed(broker.orders)
            if (status == "all" or (order.status in _OPEN) == (status == "open"))
            and (wanted is None or order.asked.symbol in wanted)
        ]
        return [_order_json(order) for order in found[:limit]]

    @service.get("/v2/orders:by_client_order_id")
    async def by_client_order_id(client_order_id: str) -> dict[str, Any]:
        return _order_json(broker.order(lambda o: o.asked.client_order_id == client_order_id, client_order_id))

    @service.get("/v2/orders/{order_id}")
    async def by_id(order_id: str) -> dict[str, Any]:
        return _order_json(broker.order(lambda o: o.id == order_id, order_id))

    @service.delete("/v2/orders/{order_id}", status_code=204)
    async def cancel(order_id: str) -> None:
        broker.cancel(broker.order(lambda o: o.id == order_id, order_id))

    @service.delete("/v2/orders", status_code=207)
    async def cancel_all() -> list[dict[str, Any]]:
        open_orders = broker.open_orders()
        for order in open_orders:
            broker.cancel(order)
        return [{"id": order.id, "status": 200} for order in open_orders]


def _add_data_routes(service: FastAPI, broker: FakeBroker) -> None:
    @service.get("/v2/stocks/trades/latest")
    async def latest_trades(symbols: str) -> dict[str, Any]:
        known = [symbol for symbol in symbols.split(",") if symbol in broker.symbols]
        return {"trades": {symbol: _trade_json(broker, symbol) for symbol in known}}

    @service.get("/v2/stocks/bars")
    async def bars(
        *,
        symbols: str,
        timeframe: Literal["1Day"],  # noqa: ARG001  (validated only)
        start: str = "1970-01-01",
        end: str = "9999-12-31",
        limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
        page_token: Annotated[int, Query(ge=0)] = 0,
        adjustment: Literal["raw"] = "raw",  # noqa: ARG001
    ) -> dict[str, Any]:
        completed = [day for day, hours in _schedule().items() if hours.close <= broker.now]
        wanted = broker.bars.filter(
            pl.col("symbol").is_in(symbols.split(",")),
            pl.col("session").is_between(_day(start, first=True), _day(end, first=False)),
            pl.col("session") <= max(completed),
        )
        page = wanted.slice(page_token, limit)
        following = page_token + limit if page_token + limit < wanted.height else None
        found: dict[str, list[dict[str, Any]]] = {}
        for row in page.iter_rows(named=True):
            found.setdefault(row["symbol"], []).append(_bar_json(row))
        return {"bars": found, "next_page_token": None if following is None else str(following)}


def _parsed(body: Mapping[str, Any]) -> OrderRequest:
    try:
        return OrderRequest.model_validate(body)
    except ValueError as error:
        raise RefusedError(422, 42210000, " ".join(str(error).split())) from error


def _inferred(side: str, held: float) -> PositionIntent:
    if side == "buy":
        return "buy_to_close" if held < 0 else "buy_to_open"
    return "sell_to_close" if held > 0 else "sell_to_open"


@functools.cache
def _schedule() -> dict[date, Hours]:
    """Returns the bells of every exchange day, oldest first."""
    import exchange_calendars  # noqa: PLC0415  (half a second)

    table = exchange_calendars.get_calendar("XNYS", start="1990-01-01").schedule
    bells = zip(table["open"], table["close"], strict=True)
    hours = (Hours(a.to_pydatetime().astimezone(NEW_YORK), b.to_pydatetime().astimezone(NEW_YORK)) for a, b in bells)
    return {bell.open.date(): bell for bell in hours}


def _day(text: str, *, first: bool) -> date:
    """Returns the first (or last) day of a range that starts (ends) at `text`.

    A daily bar is stamped with its New York midnight, and that stamp is what Alpaca compares.
    """
    try:
        if len(text) == len("2012-06-15"):
            return date.fromisoformat(text)
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise RefusedError(422, 42210000, f"{text}: {error}") from error
    local = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(NEW_YORK)
    begun = first and local.time() != time.min
    return local.date() + timedelta(days=int(begun))


def _money(value: float) -> str:
    return f"{value:.2f}"


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _asset_id(symbol: str) -> str:
    return str(uuid.uuid5(_NAMES, symbol))


def _account_json(broker: FakeBroker) -> dict[str, Any]:
    values = {symbol: lot.shares * broker.price(symbol) for symbol, lot in broker.lots.items()}
    long, short = (sum(v for v in values.values() if v * sign > 0) for sign in (1, -1))
    margin = (long - short) / _MARGIN
    return {
        "id": str(uuid.uuid5(_NAMES, "account")),
        "account_number": "PAFAKE000001",
        "status": "ACTIVE",
        "currency": "USD",
        "cash": _money(broker.cash),
        "equity": _money(broker.equity),
        "last_equity": _money(broker.equity),
        "portfolio_value": _money(broker.equity),
        "buying_power": _money(broker.buying_power),
        "regt_buying_power": _money(broker.buying_power),
        "non_marginable_buying_power": _money(max(0.0, broker.cash)),
        "multiplier": f"{_MARGIN:g}",
        "long_market_value": _money(long),
        "short_market_value": _money(short),
        "position_market_value": _money(long - short),
        "initial_margin": _money(margin),
        "maintenance_margin": _money(margin),
        "last_maintenance_margin": _money(margin),
        "sma": _money(broker.equity),
        "accrued_fees": "0",
        "created_at": "2000-01-03T14:30:00Z",
        "trading_blocked": False,
        "transfers_blocked": False,
        "account_blocked": False,
        "trade_suspended_by_user": False,
        "shorting_enabled": True,
    }


def _clock_json(broker: FakeBroker) -> dict[str, Any]:
    bells = _schedule().values()
    return {
        "timestamp": broker.now.isoformat(),
        "is_open": broker.is_open,
        "next_open": min(bell.open for bell in bells if bell.open > broker.now).isoformat(),
        "next_close": min(bell.close for bell in bells if bell.close > broker.now).isoformat(),
    }


def _day_json(day: date, hours: Hours) -> dict[str, str]:
    return {
        "date": day.isoformat(),
        "open": hours.open.strftime("%H:%M"),
        "close": hours.close.strftime("%H:%M"),
        "session_open": "0400",
        "session_close": "2000",
        "settlement_date": (day + timedelta(days=1)).isoformat(),
    }


def _asset_json(symbol: str) -> dict[str, Any]:
    return {
        "id": _asset_id(symbol),
        "class": "us_equity",
        "exchange": "NASDAQ",
        "symbol": symbol,
        "name": symbol,
        "status": "active",
        "tradable": True,
        "marginable": True,
        "shortable": True,
        "easy_to_borrow": True,
        "borrow_status": "easy_to_borrow",
        "fractionable": False,
        "attributes": [],
    }


def _position_json(broker: FakeBroker, symbol: str, lot: Lot) -> dict[str, Any]:
    price = broker.price(symbol)
    before = broker.close_before(symbol)
    value, cost = lot.shares * price, lot.shares * lot.price
    reserved = sum(abs(o.signed) for o in broker.open_orders() if o.asked.symbol == symbol)
    intraday = lot.shares * (price - before)
    return {
        "asset_id": _asset_id(symbol),
        "symbol": symbol,
        "exchange": "NASDAQ",
        "asset_class": "us_equity",
        "asset_marginable": True,
        "avg_entry_price": str(lot.price),
        "qty": f"{lot.shares:g}",
        "qty_available": f"{max(0.0, abs(lot.shares) - reserved):g}",
        "side": "long" if lot.shares > 0 else "short",
        "market_value": _money(value),
        "cost_basis": _money(cost),
        "unrealized_pl": _money(value - cost),
        "unrealized_plpc": str((value - cost) / abs(cost)),
        "unrealized_intraday_pl": _money(intraday),
        "unrealized_intraday_plpc": str(intraday / abs(lot.shares * before)),
        "current_price": str(price),
        "lastday_price": str(before),
        "change_today": str(price / before - 1),
    }


def _order_json(order: BookedOrder) -> dict[str, Any]:
    asked, filled = order.asked, order.status == "filled"
    ended = {
        status: _stamp(order.ended_at) if order.status == status else None
        for status in ("filled", "expired", "canceled")
    }
    return {
        "id": order.id,
        "client_order_id": asked.client_order_id,
        "created_at": _stamp(order.at),
        "updated_at": _stamp(order.ended_at or order.at),
        "submitted_at": _stamp(order.at),
        **{f"{status}_at": moment for status, moment in ended.items()},
        "expires_at": _stamp(order.expires_at),
        "failed_at": None,
        "replaced_at": None,
        "replaced_by": None,
        "replaces": None,
        "asset_id": _asset_id(asked.symbol),
        "symbol": asked.symbol,
        "asset_class": "us_equity",
        "notional": None,
        "qty": str(int(asked.qty)),
        "filled_qty": str(int(asked.qty)) if filled else "0",
        "filled_avg_price": str(order.fill_price) if filled else None,
        "order_class": asked.order_class,
        "order_type": asked.type,
        "type": asked.type,
        "side": asked.side,
        "position_intent": order.intent,
        "time_in_force": asked.time_in_force,
        "limit_price": None if asked.limit_price is None else str(asked.limit_price),
        "stop_price": None,
        "status": order.status,
        "extended_hours": asked.extended_hours,
        "legs": None,
        "trail_percent": None,
        "trail_price": None,
        "hwm": None,
        "subtag": None,
        "source": None,
    }


def _trade_json(broker: FakeBroker, symbol: str) -> dict[str, Any]:
    last_bell = max(hours.close for hours in _schedule().values() if hours.open <= broker.now)
    moment = min(broker.now, last_bell)
    return {"t": _stamp(moment), "x": "Q", "p": broker.price(symbol), "s": 100, "c": ["@"], "i": 1, "z": "C"}


def _bar_json(row: Mapping[str, Any]) -> dict[str, Any]:
    midnight = datetime.combine(row["session"], time.min, NEW_YORK)
    typical = (row["high"] + row["low"] + row["close"]) / 3
    prices = {"o": row["open"], "h": row["high"], "l": row["low"], "c": row["close"]}
    return {"t": _stamp(midnight), **prices, "v": int(row["volume"]), "n": 1, "vw": typical}
