"""The book and the one pure step that training, backtest and the executor's dry run share.

One step leads from the close of session t (where the decision is made) to the close of t+1:

    target positions -> weights -> orders, sized at the close of t; a margin call of t closes everything
    corporate actions of t+1 on book and orders; a delisted position is settled
    fills at the open of t+1, as far as the session's volume allows
    protective orders inside the session, pessimistic where both could have filled
    costs, dividends, borrow fee and interest in cash; the book marked at the close of t+1

Arrays are `[N, ...]` for symbols and `[...]` for accounts, so one slot, B slots, a whole account and B accounts
are the same code. Money is float64 USD. Cash + Σ shares · mark = equity after every step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from envs.contract import Bools, Floats, Ints, everywhere, total
from envs.costs import Costs, Liquidity, TradeCosts, borrow_cost, margin_interest, trade_costs
from envs.limits import (
    PDT_DAY_TRADES,
    PDT_EQUITY_USD,
    PDT_SESSIONS,
    Limits,
    target_weights,
    turnover_per_session,
)
from envs.orders import order_shares, whole

_NEVER = 1e9  # a price this many times the entry price away is not reached


class Book(NamedTuple):
    """An account after a close; satisfies `limits.Standing`.

    Attributes:
        cash: USD, `[...]`; shorts add their proceeds.
        shares: Signed shares, `[N, ...]`.
        mark: Last known raw close, `[N, ...]`; 0 before a symbol's first bar.
        sessions_held: Sessions since each position took its present sign, `[N, ...]`.
        equity: Cash plus the marked value of all shares, USD `[...]`.
        before: Equity after the close before, `[...]`.
        peak: Highest equity at a close so far, `[...]`.
        margin_call: Equity is below the maintenance margin: everything is closed at the next open, `[...]`.
        entry: Average raw entry price, `[N, ...]`; 0 when flat. Kept only where there are protective orders.
        turnover_used: See `Standing`. Kept only where turnover is limited.
        day_trades: Of the last five sessions, `[5, ...]`. Kept only under the pattern-day-trader rule.
    """

    cash: Floats
    shares: Floats
    mark: Floats
    sessions_held: Ints
    equity: Floats
    before: Floats
    peak: Floats
    margin_call: Bools
    entry: Floats
    turnover_used: Floats
    day_trades: Ints

    @property
    def weights(self) -> Floats:
        """Value of each position over equity, `[N, ...]`; 0 once equity is gone."""
        solvent = self.equity > 0
        equity = self.equity if everywhere(solvent) else np.where(solvent, self.equity, np.inf)
        return self.shares * self.mark / equity

    @property
    def drawdown(self) -> Floats:
        """How far equity stands below its highest close, a fraction of it, `[...]`."""
        return 1.0 - self.equity / self.peak

    @property
    def session_return(self) -> Floats:
        """Return of the last session, `[...]`; -1 where there was nothing to lose."""
        return np.where(self.before > 0, self.equity / np.where(self.before > 0, self.before, 1.0), 0.0) - 1.0

    @property
    def may_open(self) -> Bools:
        """False where one more day trade would break the pattern-day-trader rule, `[...]`."""
        return (self.equity >= PDT_EQUITY_USD) | (self.day_trades.sum(axis=0) < PDT_DAY_TRADES)


class Bars(NamedTuple):
    """What the step needs to know of the market, `[N, ...]` each; t is the decision session.

    Attributes:
        ready: The symbol traded at t and its features are known: a target may be set. Elsewhere no order
            is sent and the position stays.
        shortable: Shares could be borrowed at t.
        sigma: Daily volatility as a fraction, known at t.
        adv: Average daily volume in shares, known at t.
        spread: Estimated quoted spread as a fraction, known at t.
        luck: Uniform in [0, 1) for random slippage.
        listed: False once no session from t+1 on has a bar.
        split: Shares per share at the open of t+1.
        dividend: USD per post-split share, ex at the open of t+1.
        open: Raw open of t+1; NaN where no bar.
        high: Raw high of t+1; NaN where no bar.
        low: Raw low of t+1; NaN where no bar.
        close: Raw close of t+1; NaN where no bar.
        volume: Shares traded in t+1; 0 or NaN: no fill.
    """

    ready: Bools
    shortable: Bools
    sigma: Floats
    adv: Floats
    spread: Floats
    luck: Floats
    listed: Bools
    split: Floats
    dividend: Floats
    open: Floats
    high: Floats
    low: Floats
    close: Floats
    volume: Floats


class Fills(NamedTuple):
    """What one step did, USD and shares, `[N, ...]` unless said.

    Attributes:
        target_weight: Weight asked for after limits; NaN where the position was left alone.
        ordered: Shares ordered, after the split of t+1.
        held: Shares held into the open of t+1, after its split.
        filled: Shares filled at the open.
        price: Open at which they filled; of no meaning where nothing did.
        exited: Shares that protective orders traded inside the session.
        exit_price: Price at which they did; of no meaning where none did.
        costs: Trading costs by kind, of both.
        borrow: Fee for shorts held over the close.
        delisting: Lost on positions in symbols that left the exchange.
        dividends: Received (negative for shorts).
        interest: On cash owed over the close, `[...]`.
        called: A margin call closed everything, `[...]`.
    """

    target_weight: Floats
    ordered: Floats
    held: Floats
    filled: Floats
    price: Floats
    exited: Floats
    exit_price: Floats
    costs: TradeCosts
    borrow: Floats
    delisting: Floats
    dividends: Floats
    interest: Floats
    called: Bools

    @property
    def traded(self) -> Floats:
        """USD traded by each account, buys and sales both, `[...]`."""
        return total(np.abs(self.filled) * self.price + np.abs(self.exited) * self.exit_price)


def opening_book(cash: Floats, mark: Floats) -> Book:
    """Returns an account that holds only cash.

    Args:
        cash: USD, `[...]`.
        mark: Raw closes of the present session, `[N, ...]`; NaN where no bar yet.
    """
    cash = np.asarray(cash, np.float64)
    flat = np.zeros(mark.shape)
    return Book(
        cash=cash.copy(),
        shares=flat,
        mark=np.nan_to_num(mark, nan=0.0),
        sessions_held=np.zeros(mark.shape, np.int64),
        equity=cash.copy(),
        before=cash.copy(),
        peak=cash.copy(),
        margin_call=np.zeros(cash.shape, np.bool_),
        entry=flat.copy(),
        turnover_used=np.zeros(cash.shape),
        day_trades=np.zeros((PDT_SESSIONS, *cash.shape), np.int64),
    )


def step(book: Book, positions: Floats, bars: Bars, limits: Limits, costs: Costs) -> tuple[Book, Fills]:
    """Returns the book after the close of t+1 and what was done on the way.

    Args:
        book: The account after the close of t.
        positions: Target positions in [-1, 1], `[N, ...]`.
        bars: See `Bars`.
        limits: Allocation and limits.
        costs: The cost model.
    """
    target = target_weights(positions, bars.ready, bars.shortable, bars.sigma, book, limits)
    if np.count_nonzero(book.margin_call):
        target = np.where(book.margin_call, 0.0, target)
    ordered = order_shares(target, book.equity, book.mark, book.shares, limits)
    return execute(book, target, ordered, bars, limits, costs)


def execute(
    book: Book, target: Floats, ordered: Floats, bars: Bars, limits: Limits, costs: Costs
) -> tuple[Book, Fills]:
    """Returns what becomes of `ordered` shares: the half of `step` that needs no policy; see there."""
    held, mark, entry, ordered, in_lieu = _split(book, ordered, bars, limits)
    dividends = held * bars.dividend
    held, ordered, settled, delisting = _delisted(held, mark, ordered, bars, costs)
    filled, price, most = _fill_at_open(ordered, bars, limits, costs)
    liquidity = Liquidity(bars.sigma, bars.adv, bars.spread, bars.luck)
    paid = trade_costs(filled, price, liquidity, costs)
    shares = held + filled
    flows = dividends - filled * price - paid.total + (in_lieu + settled)
    exited = exit_price = np.zeros(shares.shape)
    day_trades = book.day_trades
    if limits.brackets:
        entry = _average_entry(held, filled, price, entry)
        exited, exit_price = _protect(shares, entry, most - np.abs(filled), bars, limits)
        leaving = trade_costs(exited, exit_price, liquidity, costs)
        flows -= exited * exit_price + leaving.total
        paid = paid.plus(leaving)
        if limits.pattern_day_trader:
            made = ((exited != 0) & (filled * shares > 0)).sum(axis=0)
            day_trades = np.concatenate([day_trades[1:], made[None]])
        shares = shares + exited
        entry = np.where(shares == 0, 0.0, entry)
    known = bars.close > 0
    mark = bars.close.copy() if everywhere(known) else np.where(known, bars.close, mark)  # the book is its owner's
    after, borrow, interest = _at_close(book, shares, mark, flows, costs)
    fills = Fills(
        target, ordered, held, filled, price, exited, exit_price, paid, borrow, delisting, dividends, interest,
        book.margin_call,
    )  # fmt: skip
    used = _turnover_used(book, fills, after.equity, limits)
    return after._replace(entry=entry, turnover_used=used, day_trades=day_trades), fills


def _at_close(book: Book, shares: Floats, mark: Floats, flows: Floats, costs: Costs) -> tuple[Book, Floats, Floats]:
    """Returns the account marked at the close, with `flows` in its cash, and what it paid to borrow shares and cash."""
    value = shares * mark
    short = np.minimum(value, 0.0)
    borrow = borrow_cost(short, costs)
    cash = book.cash + total(flows - borrow)
    worth, owing = total(value), total(short)
    interest = margin_interest(np.maximum(-(cash + owing), 0.0), costs)
    cash = cash - interest
    equity = cash + worth
    needed = costs.maintenance_long * worth - (costs.maintenance_long + costs.maintenance_short) * owing
    after = book._replace(
        cash=cash,
        shares=shares,
        mark=mark,
        sessions_held=book.sessions_held * (shares * book.shares > 0) + (shares != 0),
        equity=equity,
        before=book.equity,
        peak=np.maximum(book.peak, equity),
        margin_call=equity < needed,
    )
    return after, borrow, interest


def _split(
    book: Book, ordered: Floats, bars: Bars, limits: Limits
) -> tuple[Floats, Floats, Floats, Floats, Floats | float]:
    """Returns shares, mark, entry price and orders after the split of t+1, and cash paid for fractions of shares."""
    same = bars.split == 1
    if everywhere(same):
        return book.shares, book.mark, book.entry, ordered, 0.0
    exact, mark = book.shares * bars.split, book.mark / bars.split
    held = np.where(same, exact, whole(exact, limits))
    ordered = np.where(same, ordered, whole(ordered * bars.split, limits))
    return held, mark, book.entry / bars.split, ordered, (exact - held) * mark


def _delisted(
    held: Floats, mark: Floats, ordered: Floats, bars: Bars, costs: Costs
) -> tuple[Floats, Floats, Floats | float, Floats]:
    """Returns what is left to hold and trade, cash from the settlement of delisted positions, and what they lost."""
    if everywhere(bars.listed):
        return held, ordered, 0.0, np.zeros(held.shape)
    value = np.where(bars.listed, 0.0, held * mark)
    lost = np.maximum(value, 0.0) * costs.delisting_loss
    return np.where(bars.listed, held, 0.0), np.where(bars.listed, ordered, 0.0), value - lost, lost


def _fill_at_open(ordered: Floats, bars: Bars, limits: Limits, costs: Costs) -> tuple[Floats, Floats, Floats]:
    """Returns shares filled, their price, and the most that may trade in the session."""
    # Optimistic: the opening price takes the whole order; impact is charged as a cost instead.
    can_fill = bars.volume * bars.open * bars.adv > 0
    volume, price = bars.volume, bars.open
    if not everywhere(can_fill):
        volume, price = np.where(can_fill, volume, 0.0), np.where(can_fill, price, 0.0)
    most = whole(volume * costs.max_participation, limits)
    return np.minimum(np.maximum(ordered, -most), most), price, most


def _average_entry(held: Floats, filled: Floats, price: Floats, entry: Floats) -> Floats:
    """Returns the average entry price after the fills at the open; reducing leaves it, turning renews it."""
    shares = held + filled
    adds = (held * filled >= 0) & (filled != 0)
    average = (entry * held + price * filled) / np.where(adds, shares, 1.0)
    return np.where(adds, average, np.where(held * shares < 0, price, entry))


def _protect(shares: Floats, entry: Floats, room: Floats, bars: Bars, limits: Limits) -> tuple[Floats, Floats]:
    """Returns the shares that stop-loss and take-profit orders trade inside the session, and their price.

    Pessimistic: where both lie in the session's range the stop filled; an opening beyond the stop fills there,
    one beyond the profit fills at the profit only.
    """
    side = np.sign(shares)
    adverse, favourable = np.where(side > 0, bars.low, bars.high), np.where(side > 0, bars.high, bars.low)
    stop = entry * (1.0 - side * (_NEVER if limits.stop_loss is None else limits.stop_loss))
    take = entry * (1.0 + side * (_NEVER if limits.take_profit is None else limits.take_profit))
    live = (side != 0) & (bars.volume > 0)
    stopped = live & (side * adverse <= side * stop)
    taken = live & (side * favourable >= side * take)
    size = np.minimum(np.abs(shares), room)
    exited = np.where(stopped | taken, -side * size, 0.0)
    price = np.where(stopped, side * np.minimum(side * bars.open, side * stop), take)
    return exited, np.where(exited != 0, price, 0.0)


def _turnover_used(book: Book, fills: Fills, equity: Floats, limits: Limits) -> Floats:
    if limits.turnover_per_year is None:
        return book.turnover_used
    paid_off = np.maximum(book.turnover_used - turnover_per_session(limits.turnover_per_year), 0.0)
    return paid_off + fills.traded / np.maximum(equity, 1e-9)
