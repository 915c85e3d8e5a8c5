"""Target weights and positions to orders: pure, so that the same facts give the same plan and ids."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from envs.limits import Limits
from envs.orders import order_shares

PositionIntent = Literal["sell_to_close", "buy_to_close", "buy_to_open", "sell_to_open"]

_SHORT_NAMES: dict[PositionIntent, str] = {
    "sell_to_close": "stc",
    "buy_to_close": "btc",
    "buy_to_open": "bto",
    "sell_to_open": "sto",
}
_TERMINAL = frozenset({"filled", "canceled", "expired", "rejected", "replaced", "refused", "lapsed", "skipped"})


class Intent(BaseModel):
    """One order that we mean to send, and what became of it."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    client_order_id: str
    symbol: str
    position_intent: PositionIntent
    shares: int
    """Always positive; `position_intent` gives the direction."""
    price: float
    """Raw USD price that sized the order."""
    state: str = "planned"
    """planned, submitting, the broker's status, or refused, lapsed (never sent), skipped."""
    filled: float = 0.0
    """Shares filled so far."""
    fill_price: float | None = None
    note: str = ""
    """Why the broker refused, or why we skipped."""

    @property
    def side(self) -> Literal["buy", "sell"]:
        """What the broker is told beside the intent."""
        return "buy" if self.position_intent.startswith("buy") else "sell"

    @property
    def reduces(self) -> bool:
        """True where the order makes a position smaller."""
        return self.position_intent.endswith("close")

    @property
    def terminal(self) -> bool:
        """True once nothing more can happen; a status we do not know counts as in flight."""
        return self.state in _TERMINAL

    @property
    def notional_usd(self) -> float:
        """Size at the sizing price."""
        return self.shares * self.price

    @property
    def filled_shares(self) -> float:
        """Signed shares filled; positive bought."""
        return self.filled if self.side == "buy" else -self.filled


def plan(
    strategy: str,
    session: date,
    weights: Mapping[str, float],
    *,
    equity: float,
    prices: Mapping[str, float],
    positions: Mapping[str, float],
    limits: Limits,
) -> list[Intent]:
    """Returns the orders that lead from `positions` to `weights`, those that reduce first.

    One order cannot cross zero: long to short is a closing and an opening order.

    Args:
        strategy: Starts every order id.
        session: The as-of session of the decision.
        weights: Target weight of each symbol that may trade; a symbol left out is left alone.
        equity: Account equity in USD.
        prices: Raw USD price of each symbol in `weights`.
        positions: Signed whole shares held; a symbol left out is flat.
        limits: Give the no-trade band and the smallest trade; orders are in whole shares.
    """
    symbols = sorted(weights)
    held = np.array([positions.get(symbol, 0.0) for symbol in symbols])
    change = order_shares(
        np.array([weights[symbol] for symbol in symbols]),
        np.asarray(equity),
        np.array([prices[symbol] for symbol in symbols]),
        held,
        limits,
    )
    intents = [
        Intent(
            client_order_id=order_id(strategy, session, symbol, kind),
            symbol=symbol,
            position_intent=kind,
            shares=shares,
            price=prices[symbol],
        )
        for symbol, have, delta in zip(symbols, held, change, strict=True)
        for kind, shares in _legs(int(have), int(delta))
    ]
    return sorted(intents, key=lambda intent: not intent.reduces)


def order_id(strategy: str, session: date, symbol: str, kind: PositionIntent, attempt: int = 0) -> str:
    """Returns the client order id; no price, quantity or time in it, so a new plan cannot mint a new id."""
    return f"{strategy}.{session:%Y%m%d}.{symbol}.{_SHORT_NAMES[kind]}.{attempt}"


def _legs(held: int, change: int) -> list[tuple[PositionIntent, int]]:
    size = abs(change)
    closing = min(size, abs(held)) if held * change < 0 else 0
    close: PositionIntent = "sell_to_close" if change < 0 else "buy_to_close"
    opening: PositionIntent = "sell_to_open" if change < 0 else "buy_to_open"
    legs: list[tuple[PositionIntent, int]] = [(close, closing), (opening, size - closing)]
    return [leg for leg in legs if leg[1] > 0]
