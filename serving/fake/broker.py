"""The fake account and its orders.

Simplified: orders fill whole and at once while the market is open; margin is two times equity; corporate
actions do not touch positions; stop orders, brackets, fractions and notionals are refused. Assumed, as
nobody has written it down: code and text of the position-intent refusal.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.errors import LiveError
from data_pipeline.sources.source import BarSource
from serving.fake.faults import Faults
from serving.fake.market import NEW_YORK, Hours, Market, RefusedError, schedule

OPEN_STATES = ("accepted", "new")
MARGIN = 2.0

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
        intraday: See `Market`.
    """

    def __init__(
        self,
        source: BarSource,
        now: datetime,
        cash: float = 100_000.0,
        positions: Mapping[str, float] | None = None,
        intraday: pl.DataFrame | None = None,
    ) -> None:
        self.market = Market(source, intraday)
        self.faults = Faults()
        """Failures that its HTTP service has still to show, and every request that it got."""
        self.now = now.astimezone(NEW_YORK)
        self.cash = cash
        self.orders: list[BookedOrder] = []
        self.requests: list[dict[str, Any]] = []
        """Every order body received, for checks against Alpaca's schema."""
        self.halted: set[str] = set()
        """Symbols whose orders do not fill."""
        try:
            self.lots = {symbol: Lot(qty, self.price(symbol)) for symbol, qty in (positions or {}).items()}
        except RefusedError as error:
            raise LiveError(f"starting position: {error}; name a symbol of the bar source") from error

    @property
    def hours(self) -> Hours:
        """The current exchange day, or the next one."""
        return schedule()[min(day for day in schedule() if day >= self.now.date())]

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
        return max(0.0, MARGIN * self.equity - gross)

    def price(self, symbol: str) -> float:
        """Returns the price of `symbol` at the simulated time.

        Raises:
            RefusedError: It has not traded yet.
        """
        return self.market.price(symbol, self.now)

    def close_before(self, symbol: str) -> float:
        """Returns the last close before the present day."""
        return self.market.close_before(symbol, self.now)

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
        return [order for order in self.orders if order.status in OPEN_STATES]

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
            hours = schedule()[min(day for day in schedule() if day > self.now.date())]
        order = BookedOrder(asked, intent, self.now, expires_at=hours.close)
        self.orders.append(order)
        self._try_fill(order)
        return order

    def cancel(self, order: BookedOrder) -> None:
        """Cancels an open order.

        Raises:
            RefusedError: It is not open.
        """
        if order.status not in OPEN_STATES:
            raise RefusedError(422, 42210000, f'order is already in "{order.status}" state')
        order.status, order.ended_at = "canceled", self.now

    def _checked(self, asked: OrderRequest) -> PositionIntent:
        """Returns the intent that Alpaca infers, or refuses the order."""
        if asked.symbol not in self.market.symbols:
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
            raise RefusedError(403, 40310000, "insufficient buying power", buying_power=dollars(self.buying_power))
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


def _inferred(side: str, held: float) -> PositionIntent:
    if side == "buy":
        return "buy_to_close" if held < 0 else "buy_to_open"
    return "sell_to_close" if held > 0 else "sell_to_open"


def dollars(value: float) -> str:
    """Returns an amount as Alpaca writes it: text with two decimals."""
    return f"{value:.2f}"
