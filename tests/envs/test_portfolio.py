"""The pure step by pencil, and what must hold under any actions."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.contract import ActionKind, portfolio_state, positions_of
from envs.costs import Costs, trade_costs
from envs.limits import Limits, target_weights
from envs.orders import order_shares
from envs.portfolio import Bars, opening_book, step

FREE = Costs(commission_usd_per_share=0, half_spread_bps=0, impact=0, borrow_bps_per_year=0)
LOOSE = Limits(max_weight=1.0, max_gross=1.0, no_trade_band=0.0)


def _bars(open_, close, split=1.0, dividend=0.0, volume=1e6, sigma=0.02, adv=1e6, ready=True):
    values = (ready, sigma, adv, split, dividend, open_, close, volume)
    return Bars(*(np.atleast_1d(np.asarray(v)) for v in values))


def test_step_fills_at_the_next_open_and_marks_at_the_next_close():
    book = opening_book(np.array(1000.0), np.array([10.0]))
    book, fills = step(book, np.array([1.0]), _bars(11.0, 12.0), LOOSE, FREE)
    assert fills.filled == [100]  # sized at the close of 10
    assert fills.price == [11.0]
    assert book.cash == 1000 - 1100
    assert book.equity == -100 + 1200


def test_step_charges_every_cost_by_pencil():
    costs = Costs(commission_usd_per_share=0.01, half_spread_bps=5, impact=0.5, borrow_bps_per_year=252)
    book = opening_book(np.array(10_000.0), np.array([10.0]))
    book, fills = step(book, np.array([-1.0]), _bars(10.0, 10.0, sigma=0.02, adv=100_000.0), LOOSE, costs)
    assert fills.filled == [-1000]
    assert fills.costs.commission == pytest.approx([10.0])  # 1000 · 0.01
    assert fills.costs.spread == pytest.approx([5.0])  # 10,000 · 5 bps
    assert fills.costs.impact == pytest.approx([10.0])  # 10,000 · 0.5 · 0.02 · √(1000 / 100,000)
    assert fills.borrow == pytest.approx([1.0])  # 10,000 · 252 bps / 252
    assert book.equity == pytest.approx(10_000 - 26.0)


def test_step_round_trip_at_zero_move_loses_exactly_the_costs():
    costs = Costs()
    book = opening_book(np.array(100_000.0), np.array([50.0]))
    book, there = step(book, np.array([1.0]), _bars(50.0, 50.0), LOOSE, costs)
    book, back = step(book, np.array([0.0]), _bars(50.0, 50.0), LOOSE, costs)
    assert book.shares == [0]
    assert book.equity == pytest.approx(100_000 - there.costs.total.sum() - back.costs.total.sum(), abs=1e-9)
    assert there.costs.total.sum() > 0


def test_step_through_a_split_keeps_equity_and_doubles_shares():
    book = opening_book(np.array(1000.0), np.array([10.0]))
    book, _ = step(book, np.array([1.0]), _bars(10.0, 10.0), LOOSE, FREE)
    book, fills = step(book, np.array([1.0]), _bars(5.0, 5.0, split=2.0), LOOSE, FREE)
    assert book.shares == [200]
    assert fills.filled == [0]
    assert book.equity == 1000


def test_step_dividend_is_paid_to_longs_and_by_shorts():
    for side in (1.0, -1.0):
        book = opening_book(np.array(1000.0), np.array([10.0]))
        book, _ = step(book, np.array([side]), _bars(10.0, 10.0), LOOSE, FREE)
        book, fills = step(book, np.array([side]), _bars(9.0, 9.0, dividend=1.0), Limits(no_trade_band=0.9), FREE)
        assert fills.dividends == [side * 100]
        assert book.equity == 1000  # the price fell by what was paid


def test_step_without_volume_or_bar_fills_nothing_and_keeps_the_mark():
    book = opening_book(np.array(1000.0), np.array([10.0]))
    for bars in (_bars(11.0, 11.0, volume=0.0), _bars(np.nan, np.nan, volume=np.nan)):
        after, fills = step(book, np.array([1.0]), bars, LOOSE, FREE)
        assert fills.ordered == [100]
        assert fills.filled == [0]
        assert after.equity == 1000


def test_step_not_ready_symbol_keeps_its_position():
    book = opening_book(np.array(1000.0), np.array([10.0]))
    book, _ = step(book, np.array([1.0]), _bars(10.0, 10.0), LOOSE, FREE)
    after, fills = step(book, np.array([0.0]), _bars(10.0, 10.0, ready=False), LOOSE, FREE)
    assert fills.ordered == [0]
    assert after.shares == [100]


def test_sessions_held_counts_and_restarts_when_the_side_changes():
    book = opening_book(np.array(1000.0), np.array([10.0]))
    seen = []
    for position in (1, 1, 1, -1, -1, 0, 1):
        book, _ = step(book, np.array([float(position)]), _bars(10.0, 10.0), LOOSE, FREE)
        seen.append(int(book.sessions_held[0]))
    assert seen == [1, 2, 3, 1, 2, 0, 1]


def test_order_shares_round_toward_zero_respect_the_band_and_always_close():
    limits = Limits(no_trade_band=0.05)
    orders = order_shares(
        np.array([0.5, -0.5, 0.52, 0.0, 0.3]),
        np.array(1000.0),
        np.array([33.0, 33.0, 10.0, 1.0, np.nan]),
        np.array([0.0, 0.0, 50.0, 3.0, 0.0]),
        limits,
    )
    assert orders.tolist() == [15, -15, 0, -3, 0]


def test_target_weights_split_the_account_over_ready_symbols():
    limits = Limits(max_gross=0.9, max_weight=0.4)
    ready = np.array([True, True, False, True])
    assert target_weights(np.array([1.0, -0.5, 1.0, 0.0]), ready, limits) == pytest.approx([0.3, -0.15, 0, 0])
    one = np.array([True, False, False, False])
    assert target_weights(np.ones(4), one, limits) == pytest.approx([0.4, 0, 0, 0])
    long_only = limits.model_copy(update={"long_only": True})
    assert target_weights(-np.ones(4), ready, long_only).max() == 0


def test_positions_of_actions_by_kind():
    assert positions_of(np.array([0, 1, 2]), ActionKind.DISCRETE).tolist() == [-1, 0, 1]
    assert positions_of(np.array([-3.0, 0.25]), ActionKind.CONTINUOUS).tolist() == [-1, 0.25]


def test_portfolio_state_is_relative_to_the_sleeve():
    state = portfolio_state(np.array([0.19, -0.095]), 0.19, np.array([10, 100]))
    np.testing.assert_allclose(state, [[1.0, 0.5], [-0.5, 2.0]], rtol=1e-6)


prices = st.floats(1.0, 500.0)
session = st.tuples(
    st.floats(-1, 1),
    prices,
    prices,
    st.sampled_from([1.0, 1.0, 1.0, 2.0, 0.5]),
    st.sampled_from([0.0, 0.0, 0.3]),
    st.sampled_from([0.0, 1e4, 1e7]),
)
cost_models = st.builds(
    Costs,
    commission_usd_per_share=st.floats(0, 0.05),
    half_spread_bps=st.floats(0, 50),
    impact=st.floats(0, 2),
    borrow_bps_per_year=st.floats(0, 1000),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(session, min_size=1, max_size=30), cost_models)
def test_equity_is_conserved_to_the_cent_under_random_actions(path, costs):
    """Every dollar of equity change is a price move, a dividend or a cost."""
    book = opening_book(np.array(100_000.0), np.array([100.0]))
    for position, open_, close, split, dividend, volume in path:
        before = book
        bars = _bars(open_, close, split, dividend, volume)
        book, fills = step(before, np.array([position]), bars, LOOSE, costs)
        held = before.shares * split
        moves = (held * close - before.shares * before.mark + fills.filled * (close - open_)).sum()
        paid = fills.costs.total.sum() + fills.borrow.sum()
        explained = moves + fills.dividends.sum() - paid
        assert book.equity - before.equity == pytest.approx(explained, abs=0.005)
        assert book.cash + (book.shares * book.mark).sum() == book.equity
        assert min(fills.costs.total.min(), fills.borrow.min()) >= 0


@settings(max_examples=300, deadline=None)
@given(st.floats(-1e6, 1e6), prices, st.floats(0.0, 0.2), st.floats(1.0, 1e8), cost_models, cost_models)
def test_trade_costs_never_fall_when_a_setting_rises(shares, price, sigma, adv, one, other):
    lower, higher = (
        Costs(**{k: pick(getattr(one, k), getattr(other, k)) for k in Costs.model_fields}) for pick in (min, max)
    )
    arguments = [np.array([v]) for v in (shares, price, sigma, adv)]
    assert trade_costs(*arguments, lower).total <= trade_costs(*arguments, higher).total
