"""The book and the one pure step that training, backtest and the executor's dry run share.

One step leads from the close of session t (where the decision is made) to the close of t+1:

    target positions -> weights -> whole-share orders, sized at the close of t
    corporate actions of t+1 on the book and on the orders
    fills at the open of t+1, costs in cash
    the book marked at the close of t+1

All arrays are `[..., N]` (or `[...]` for the account), so one slot, B slots and a whole account are the
same code. Money is float64 USD. Cash + Σ shares · mark = equity after every step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.contract import Bools, Floats, Ints
from envs.costs import Costs, TradeCosts, borrow_cost, trade_costs
from envs.limits import Limits, target_weights
from envs.orders import order_shares


class Book(NamedTuple):
    """An account after a close.

    Attributes:
        cash: USD, `[...]`; shorts add their proceeds.
        shares: Signed shares, `[..., N]`.
        mark: Last known raw close, `[..., N]`; 0 before a symbol's first bar.
        sessions_held: Sessions since each position took its present sign, `[..., N]`.
    """

    cash: Floats
    shares: Floats
    mark: Floats
    sessions_held: Ints

    @property
    def equity(self) -> Floats:
        """Cash plus the marked value of all shares, USD `[...]`."""
        return self.cash + (self.shares * self.mark).sum(axis=-1)

    @property
    def weights(self) -> Floats:
        """Value of each position over equity, `[..., N]`; 0 once equity is gone."""
        equity = self.equity[..., None]
        return np.divide(self.shares * self.mark, equity, out=np.zeros_like(self.mark), where=equity > 0)


class Bars(NamedTuple):
    """What the step needs to know, `[..., N]` each; t is the decision session.

    Attributes:
        ready: The symbol traded at t and its features are known: a target may be set. Elsewhere no order
            is sent and the position stays.
        sigma: Daily volatility as a fraction, known at t.
        adv: Average daily volume in shares, known at t.
        split: Shares per share at the open of t+1.
        dividend: USD per post-split share, ex at the open of t+1.
        open: Raw open of t+1; NaN where no bar.
        close: Raw close of t+1; NaN where no bar.
        volume: Shares traded in t+1; 0 or NaN: no fill.
    """

    ready: Bools
    sigma: Floats
    adv: Floats
    split: Floats
    dividend: Floats
    open: Floats
    close: Floats
    volume: Floats


class Fills(NamedTuple):
    """What one step did, USD and shares, `[..., N]` unless said.

    Attributes:
        target_weight: Weight asked for after limits.
        ordered: Shares ordered, after the split of t+1.
        filled: Shares filled.
        price: Fill price before costs; NaN where nothing filled.
        costs: Trading costs by kind.
        borrow: Fee for shorts held into the close.
        dividends: Received (negative for shorts).
    """

    target_weight: Floats
    ordered: Floats
    filled: Floats
    price: Floats
    costs: TradeCosts
    borrow: Floats
    dividends: Floats


def opening_book(cash: Floats, mark: Floats) -> Book:
    """Returns an account that holds only cash.

    Args:
        cash: USD, `[...]`.
        mark: Raw closes of the present session, `[..., N]`; NaN where no bar yet.
    """
    return Book(cash, np.zeros_like(mark), np.nan_to_num(mark, nan=0.0), np.zeros(mark.shape, np.int64))


def step(book: Book, positions: Floats, bars: Bars, limits: Limits, costs: Costs) -> tuple[Book, Fills]:
    """Returns the book after the close of t+1 and what was done on the way.

    Args:
        book: The account after the close of t.
        positions: Target positions in [-1, 1], `[..., N]`.
        bars: See `Bars`.
        limits: Allocation and limits.
        costs: The cost model.
    """
    weights = target_weights(positions, bars.ready, limits)
    sizing_price = np.where(bars.ready & (book.mark > 0), book.mark, np.nan)
    ordered = order_shares(weights, book.equity, sizing_price, book.shares, limits) * bars.split
    held = book.shares * bars.split
    dividends = held * bars.dividend
    filled, price = _fill_at_open(ordered, bars)
    paid = trade_costs(filled, price, bars.sigma, bars.adv, costs)
    shares = held + filled
    mark = np.where(np.isfinite(bars.close), bars.close, book.mark / bars.split)
    borrow = borrow_cost(shares, mark, costs)
    outlay = np.where(filled != 0, filled * np.nan_to_num(price), 0.0)
    cash = book.cash + (dividends - outlay - paid.total - borrow).sum(axis=-1)
    after = Book(cash, shares, mark, _sessions_held(book, shares))
    return after, Fills(weights, ordered, filled, price, paid, borrow, dividends)


def _fill_at_open(ordered: Floats, bars: Bars) -> tuple[Floats, Floats]:
    # Optimistic: the opening price takes the whole order; impact is charged as a cost instead.
    can_fill = (bars.volume > 0) & np.isfinite(bars.open) & (bars.adv > 0) & (ordered != 0)
    return np.where(can_fill, ordered, 0.0), np.where(can_fill, bars.open, np.nan)


def _sessions_held(before: Book, shares: Floats) -> Ints:
    same_side = np.sign(shares) == np.sign(before.shares)
    return np.where(shares == 0, 0, np.where(same_side, before.sessions_held + 1, 1))
