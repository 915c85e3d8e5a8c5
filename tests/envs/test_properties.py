"""What must hold under any prices, actions and settings: conservation, and that more cost makes nobody richer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.costs import Costs, Liquidity, trade_costs
from envs.limits import Limits
from envs.portfolio import Book, Fills, execute, opening_book, step
from rough import LOOSE, session

EXAMPLES = settings(max_examples=2000, deadline=None)

ratio = st.floats(0.7, 1.4)
one_session = st.fixed_dictionaries(
    {
        "position": st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
        "gap": st.tuples(ratio, ratio),
        "move": st.tuples(ratio, ratio),
        "range": st.floats(0.0, 0.2),
        "split": st.sampled_from([1.0, 1.0, 1.0, 2.0, 1.5, 0.1]),
        "dividend": st.sampled_from([0.0, 0.0, 0.3]),
        "volume": st.sampled_from([1e7, 1e7, 1e5, 0.0]),
        "halted": st.integers(0, 19).map(lambda n: n == 0),
        "ready": st.integers(0, 9).map(lambda n: n > 0),
        "luck": st.floats(0, 0.999),
        "sigma": st.floats(0.001, 0.1),
        "adv": st.sampled_from([1e5, 1e7]),
        "spread": st.floats(0.0, 0.01),
    }
)
paths = st.lists(one_session, min_size=1, max_size=6)
cost_settings = {
    "commission_usd_per_share": st.floats(0, 0.05),
    "commission_usd_per_order": st.floats(0, 2),
    "commission_bps": st.floats(0, 20),
    "commission_minimum_usd": st.floats(0, 2),
    "half_spread_bps": st.floats(0, 50),
    "impact": st.floats(0, 2),
    "slippage_bps": st.floats(0, 20),
    "borrow_bps_per_year": st.floats(0, 1000),
    "margin_bps_per_year": st.floats(0, 1000),
    "sec_fee_usd_per_million_sold": st.floats(0, 50),
    "taf_usd_per_share_sold": st.floats(0, 0.001),
    "taf_maximum_usd": st.floats(0, 10),
    "cat_usd_per_share": st.floats(0, 0.0001),
    "delisting_loss": st.floats(0, 1),
}
costs_of_any_size = st.builds(Costs, spread=st.sampled_from(["fixed", "high_low"]), **cost_settings)
any_limits = st.builds(
    Limits,
    no_trade_band=st.sampled_from([0.0, 0.01, 0.1]),
    fractional=st.booleans(),
    min_holding_sessions=st.integers(0, 3),
    max_holding_sessions=st.sampled_from([None, 4]),
    turnover_per_year=st.sampled_from([None, 100.0]),
    max_session_loss=st.sampled_from([None, 0.05]),
    stop_loss=st.sampled_from([None, 0.05]),
    take_profit=st.sampled_from([None, 0.1]),
)


def replay(path, start=(50.0, 80.0), delisted_at=None):
    """Bars of two symbols, session by session, for prices that start at `start`."""
    close = np.array(start)
    for number, now in enumerate(path):
        before = close / now["split"]
        open_ = before * now["gap"]
        close = open_ * now["move"]
        extreme = 1 + now["range"]
        listed = np.array([delisted_at is None or number < delisted_at, True])
        here = listed & ~np.array([now["halted"], False])
        if now["halted"]:
            close = np.where(here, close, before)
        yield (
            np.array(now["position"]),
            session(
                np.where(here, open_, np.nan),
                np.where(here, close, np.nan),
                high=np.where(here, np.maximum(open_, close) * extreme, np.nan),
                low=np.where(here, np.minimum(open_, close) / extreme, np.nan),
                split=np.where(listed, now["split"], 1.0),
                dividend=np.where(here, now["dividend"], 0.0),
                volume=np.where(here, now["volume"], np.nan),
                luck=now["luck"],
                sigma=now["sigma"],
                adv=now["adv"],
                spread=now["spread"],
                ready=now["ready"],
                listed=listed,
            ),
        )


def fresh(cash: float = 100_000.0) -> Book:
    return opening_book(np.array(cash), np.array([50.0, 80.0]))


@EXAMPLES
@given(paths, costs_of_any_size, any_limits, st.sampled_from([None, None, 5]))
def test_every_dollar_is_a_price_move_a_dividend_or_a_cost(path, costs, limits, delisted_at):
    book = fresh()
    for position, bars in replay(path, delisted_at=delisted_at):
        before = book
        book, fills = step(before, position, bars, limits, costs)
        _assert_conserved(before, book, fills, bars)


def _assert_conserved(before: Book, book: Book, fills: Fills, bars) -> None:
    opening = before.mark / bars.split
    moved = fills.held * (book.mark - opening) + fills.filled * (book.mark - fills.price)
    moved = moved + fills.exited * (book.mark - fills.exit_price)
    paid = fills.costs.total + fills.borrow + fills.delisting
    explained = (moved + fills.dividends - paid).sum() - fills.interest
    assert book.equity - before.equity == pytest.approx(explained, abs=0.005)
    assert book.cash + (book.shares * book.mark).sum() == pytest.approx(book.equity, abs=0.005)
    assert min(*(kind.min() for kind in fills.costs), fills.borrow.min(), fills.delisting.min(), fills.interest) >= 0
    assert (np.abs(fills.filled) <= np.abs(fills.ordered)).all()
    assert (np.abs(fills.filled) + np.abs(fills.exited) <= np.nan_to_num(bars.volume) * 0.1 + 1e-9).all()


@EXAMPLES
@given(
    st.floats(-1e6, 1e6),
    st.floats(1, 500),
    st.floats(0, 0.2),
    st.floats(1, 1e8),
    st.floats(0, 0.05),
    st.floats(0, 0.999),
    costs_of_any_size,
    costs_of_any_size,
)
def test_trade_costs_never_fall_when_a_setting_rises(shares, price, sigma, adv, spread, luck, one, other):
    lower, higher = (
        one.model_copy(update={name: pick(getattr(one, name), getattr(other, name)) for name in cost_settings})
        for pick in (min, max)
    )
    shares, price, *liquidity = (np.array([value]) for value in (shares, price, sigma, adv, spread, luck))
    cheap, dear = (trade_costs(shares, price, Liquidity(*liquidity), costs) for costs in (lower, higher))
    for mine, theirs in zip(cheap, dear, strict=True):
        assert (mine <= theirs).all()


@EXAMPLES
@given(paths, costs_of_any_size, costs_of_any_size, any_limits)
def test_more_cost_never_makes_the_same_orders_richer(path, one, other, limits):
    """For orders in shares this holds whatever else is on: protective orders, splits, halts, margin interest."""
    cheaper, dearer = _ordered(one, other)
    rich = poor = fresh()
    for position, bars in replay(path):
        orders = np.trunc(position * 800)
        rich, _ = execute(rich, orders, orders, bars, limits, cheaper)
        poor, _ = execute(poor, orders, orders, bars, limits, dearer)
        assert (rich.shares == poor.shares).all()
        assert poor.equity <= rich.equity + 1e-6


@EXAMPLES
@given(paths, costs_of_any_size, costs_of_any_size)
def test_more_cost_never_makes_the_same_targets_richer(path, one, other):
    """For targets it holds as long as sizes are proportional to equity: fractions of shares, no band, no margin call.

    Tolerance: the six decimals of fractional shares.
    """
    cheaper, dearer = _ordered(one, other)
    limits = LOOSE.model_copy(update={"fractional": True, "max_gross": 0.8})
    rich = poor = fresh()
    for position, bars in replay(path):
        rich, _ = step(rich, position, bars, limits, cheaper)
        poor, _ = step(poor, position, bars, limits, dearer)
        if min(rich.equity, poor.equity) < 20_000 or rich.margin_call or poor.margin_call:
            return
        assert poor.equity <= rich.equity + 0.01


def _ordered(one: Costs, other: Costs) -> tuple[Costs, Costs]:
    """Two cost models of which the second is nowhere cheaper; the rules of filling are the same."""
    pairs = {name: sorted((getattr(one, name), getattr(other, name))) for name in cost_settings}
    same = {"spread": one.spread, "max_participation": 0.1}
    return tuple(one.model_copy(update={**same, **{n: pair[k] for n, pair in pairs.items()}}) for k in (0, 1))


def test_with_whole_shares_a_dearer_account_can_be_luckier_by_a_share():
    """Why the law above is stated for fractions: one cent of cost decides on one share, which then falls."""
    bars = session(50.0, 25.0), session(25.0, 25.0)
    cheap, dear = Costs().scaled(0.0), Costs().scaled(0.0).model_copy(update={"commission_usd_per_order": 0.01})
    ended = []
    for costs in (cheap, dear):
        book = opening_book(np.array(100.0), np.array([50.0]))
        book, _ = step(book, np.array([0.5]), session(50.0), LOOSE, costs)  # one share; equity 100.00 or 99.99
        for market in bars:
            book, _ = step(book, np.array([1.0]), market, LOOSE, costs)
        ended.append(float(book.equity))
    assert ended == [50.0, pytest.approx(74.98)]
