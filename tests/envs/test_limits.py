"""Allocation and limits by pencil: budgets, caps, what is shrunk, delayed or closed, and that closing always works."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from envs.contract import Bools, Floats, Ints
from envs.limits import Limits, budget_caps, budgets, target_weights
from envs.orders import order_shares
from envs.portfolio import opening_book, step
from rough import FREE, LOOSE, session


class Account(NamedTuple):
    weights: Floats
    sessions_held: Ints
    drawdown: Floats = np.asarray(0.0)
    session_return: Floats = np.asarray(0.0)
    turnover_used: Floats = np.asarray(0.0)
    may_open: Bools = np.asarray(True)


def flat(count: int) -> Account:
    return Account(np.zeros(count), np.zeros(count, int))


def targets(positions, limits, account=None, ready=None, sigma=None, shortable=True):
    positions = np.asarray(positions, float)
    ready = np.ones(len(positions), bool) if ready is None else np.asarray(ready)
    sigma = np.full(len(positions), 0.02) if sigma is None else np.asarray(sigma)
    return target_weights(positions, ready, np.asarray(shortable), sigma, account or flat(len(positions)), limits)


def test_equal_budgets_split_the_account_over_ready_symbols():
    limits = Limits(max_gross=0.9, max_weight=0.4)
    ready = [True, True, False, True]
    assert targets([1, -0.5, 1, 0], limits, ready=ready) == pytest.approx([0.3, -0.15, np.nan, 0], nan_ok=True)
    one = [True, False, False, False]
    assert targets(np.ones(4), limits, ready=one)[0] == pytest.approx(0.4)
    assert targets([1.0], limits) == pytest.approx([0.4])


def test_equal_risk_budgets_by_pencil():
    limits = Limits(allocation="equal_risk", max_gross=0.9)
    sigma = np.array([0.01, 0.02, 0.02])
    assert budgets(np.ones(3, bool), sigma, limits) == pytest.approx([0.45, 0.225, 0.225])
    assert budgets(np.array([True, True, False]), sigma, limits)[:2] == pytest.approx([0.6, 0.3])
    assert budgets(np.ones(2, bool), np.array([0.01, np.nan]), limits) == pytest.approx([0.9, 0.0])


def test_volatility_target_budgets_by_pencil():
    limits = Limits(allocation="volatility_target", volatility_target=0.16)
    daily = 0.16 / 252**0.5  # about one percent
    assert budgets(np.ones(2, bool), np.array([daily, 4 * daily]), limits) == pytest.approx([0.5, 0.125])
    calm = budgets(np.ones(2, bool), np.array([daily / 10, daily / 10]), limits)
    assert calm == pytest.approx([0.475, 0.475])  # 5 each, capped at 0.95, then to a gross of 0.95


def test_kelly_budget_is_a_capped_fraction_of_edge_over_variance():
    limits = Limits(allocation="kelly", kelly_fraction=0.5, kelly_edge_bps=1.0)
    # 0.5 · 0.0001 / 0.02² = 0.125
    assert budgets(np.ones(1, bool), np.array([0.02]), limits) == pytest.approx([0.125])
    assert budgets(np.ones(1, bool), np.array([0.01]), limits) == pytest.approx([0.25])  # 0.5, capped
    caps = budget_caps(np.ones(1, bool), np.array([0.01]), limits)
    assert min(caps, key=lambda name: caps[name][0]) == "kelly_cap"


def test_kelly_budget_is_zero_when_the_edge_is_unknown_or_none():
    for edge in (None, 0.0):
        limits = Limits(allocation="kelly", kelly_edge_bps=edge)
        assert budgets(np.ones(2, bool), np.full(2, 0.02), limits).tolist() == [0.0, 0.0]


def test_risk_per_trade_binds_at_the_stop_or_at_its_stand_in():
    stop = Limits(risk_per_trade=0.02, stop_loss=0.05)
    assert budgets(np.ones(1, bool), np.array([0.02]), stop) == pytest.approx([0.4])
    sigmas = Limits(risk_per_trade=0.02, risk_sigmas=3.0)
    assert budgets(np.ones(1, bool), np.array([0.02]), sigmas) == pytest.approx([1 / 3])
    caps = budget_caps(np.ones(1, bool), np.array([0.02]), sigmas)
    assert min(caps, key=lambda name: caps[name][0]) == "risk_per_trade"


def test_short_targets_become_cash_where_shorting_is_not_allowed():
    assert targets([-1, 1], Limits(long_only=True)).tolist() == [0, 0.475]
    limits = Limits(unshortable=("A",))
    assert targets([-1, -1], limits, shortable=[False, True]).tolist() == [0, -0.475]


def test_kept_positions_leave_less_gross_for_the_rest():
    limits = Limits(max_gross=0.9, max_weight=0.9)
    account = Account(np.array([0.6, 0.0, 0.0]), np.array([4, 0, 0]))
    wanted = targets([1, 1, 1], limits, account, ready=[False, True, True])
    assert wanted == pytest.approx([np.nan, 0.15, 0.15], nan_ok=True)


def test_net_limit_shrinks_the_heavier_side():
    limits = Limits(max_gross=0.9, max_net=0.2)
    assert targets([1, 1, -1], limits) == pytest.approx([0.25, 0.25, -0.3])  # 0.6 long to 0.5, net 0.2


def test_young_position_may_grow_but_not_shrink_or_turn():
    limits = Limits(min_holding_sessions=5)
    account = Account(np.array([0.3]), np.array([4]))
    assert np.isnan(targets([0.1], limits, account))
    assert np.isnan(targets([-1.0], limits, account))
    assert targets([1.0], limits, account) == pytest.approx([0.95])
    old = account._replace(sessions_held=np.array([5]))
    assert targets([0.1], limits, old) == pytest.approx([0.095])


def test_net_limit_holds_for_a_single_symbol():
    assert targets([-1.0], Limits(max_net=0.5)) == pytest.approx([-0.5])


def test_young_position_that_asks_for_more_is_not_cut_when_the_gross_is_full():
    limits = Limits(min_holding_sessions=5, max_gross=0.9, max_weight=0.9)
    account = Account(np.array([0.2, 0.6, 0.0]), np.array([2, 8, 0]))
    wanted = targets([1, 1, 1], limits, account, ready=[True, False, True])
    assert wanted == pytest.approx([0.2 + 0.25 * 0.1 / 0.7, np.nan, 0.45 * 0.1 / 0.7], nan_ok=True)


def test_hedge_of_a_kept_position_is_not_what_the_net_limit_shrinks():
    limits = Limits(max_net=0.5)
    account = Account(np.array([-0.9, 0.0]), np.array([9, 0]))
    assert targets([0, 1], limits, account, ready=[False, True]) == pytest.approx([np.nan, 0.05], nan_ok=True)


def test_turnover_budget_does_not_undo_the_net_limit():
    limits = Limits(max_net=0.2, turnover_per_year=252 / 20)
    account = Account(np.array([0.3, 0.0]), np.array([9, 0]), turnover_used=np.asarray(0.95))
    wanted = targets([0.8, -1], limits, account)
    assert abs(wanted.sum()) <= 0.2 + 1e-12


def test_old_position_is_closed_whatever_is_asked():
    limits = Limits(max_holding_sessions=20)
    assert targets([1.0], limits, Account(np.array([0.5]), np.array([20]))).tolist() == [0.0]
    assert targets([1.0], limits, Account(np.array([0.5]), np.array([19]))).tolist() == [0.95]


def test_turnover_budget_shrinks_what_opens_and_never_what_closes():
    limits = Limits(max_gross=1.0, max_weight=1.0, turnover_per_year=252 / 20)  # room for 1.0 of equity
    assert targets([1.0], limits) == pytest.approx([1.0])
    spent = Account(np.array([0.0]), np.array([0]), turnover_used=np.asarray(0.7))
    assert targets([1.0], limits, spent) == pytest.approx([0.3])
    turning = Account(np.array([0.5]), np.array([3]), turnover_used=np.asarray(0.0))
    assert targets([-1.0], limits, turning) == pytest.approx([-0.5])  # 0.5 to close, 0.5 left to open
    broke = turning._replace(turnover_used=np.asarray(2.0))
    assert targets([-1.0], limits, broke) == pytest.approx([0.0])
    assert targets([0.2], limits, broke) == pytest.approx([0.2])


def test_turnover_budget_holds_over_a_year_of_restless_targets():
    limits = LOOSE.model_copy(update={"turnover_per_year": 12.6})
    book, traded = opening_book(np.array(1e6), np.array([10.0])), 0.0
    for number in range(252):
        book, fills = step(book, np.array([float(number % 3 - 1)]), session(10.0), limits, FREE)
        traded += float(fills.traded / book.equity)
    assert 12.0 < traded < 12.6 + 1.0 + 0.5  # a year's budget, what was saved at the start, one last closing


def test_session_loss_stop_closes_everything_once():
    limits = LOOSE.model_copy(update={"max_session_loss": 0.05, "min_holding_sessions": 10})
    book = opening_book(np.array(1000.0), np.array([10.0]))
    book, _ = step(book, np.array([1.0]), session(10.0), limits, FREE)
    book, _ = step(book, np.array([1.0]), session(9.6), limits, FREE)
    assert book.shares == [100]  # four percent
    book, _ = step(book, np.array([1.0]), session(9.0), limits, FREE)
    book, fills = step(book, np.array([1.0]), session(9.0), limits, FREE)
    assert fills.filled == [-100]
    book, fills = step(book, np.array([1.0]), session(9.0), limits, FREE)
    assert fills.filled == [100]


def test_drawdown_stop_closes_everything_for_good():
    limits = LOOSE.model_copy(update={"max_drawdown": 0.1})
    book = opening_book(np.array(1000.0), np.array([10.0]))
    for price in (10.0, 12.0, 11.0, 10.5):
        book, _ = step(book, np.array([1.0]), session(price), limits, FREE)
    assert book.peak == 1200
    assert book.shares == [100]
    for price in (10.5, 20.0, 20.0):
        book, _ = step(book, np.array([1.0]), session(price), limits, FREE)
        assert book.shares == [0]


def test_orders_round_toward_zero_respect_band_and_minimum_and_always_close():
    weights = np.array([0.5, -0.5, 0.52, 0.0, 0.3, np.nan])
    price = np.array([33.0, 33.0, 10.0, 1.0, np.nan, 10.0])
    shares = np.array([0.0, 0.0, 50.0, 3.0, 0.0, 7.0])
    orders = order_shares(weights, np.array(1000.0), price, shares, Limits(no_trade_band=0.05))
    assert orders.tolist() == [15, -15, 0, -3, 0, 0]
    orders = order_shares(weights, np.array(1000.0), price, shares, Limits(no_trade_band=0, minimum_trade_usd=30))
    assert orders.tolist() == [15, -15, 0, -3, 0, 0]
    orders = order_shares(weights[:3], np.array(1000.0), price[:3], shares[:3], Limits(fractional=True))
    assert orders.tolist() == [15.151515, -15.151515, 2.0]


weights = st.lists(st.floats(-0.5, 0.5), min_size=3, max_size=3).map(np.array)
sessions = st.lists(st.integers(0, 30), min_size=3, max_size=3).map(np.array)
flags = st.lists(st.booleans(), min_size=3, max_size=3).map(np.array)
any_limits = st.builds(
    Limits,
    allocation=st.sampled_from(["equal", "equal_risk", "volatility_target", "kelly"]),
    kelly_edge_bps=st.sampled_from([None, 1.0, 20.0]),
    risk_per_trade=st.sampled_from([None, 0.02]),
    max_weight=st.floats(0.1, 1.0),
    max_gross=st.floats(0.1, 1.0),
    max_net=st.floats(0.05, 1.0),
    long_only=st.booleans(),
    min_holding_sessions=st.integers(0, 5),
    max_holding_sessions=st.sampled_from([None, 5, 20]),
    turnover_per_year=st.sampled_from([None, 5.0, 50.0]),
    max_session_loss=st.sampled_from([None, 0.02]),
    max_drawdown=st.sampled_from([None, 0.2]),
    pattern_day_trader=st.booleans(),
)


@settings(max_examples=2000, deadline=None)
@given(weights, sessions, weights, flags, any_limits, st.floats(0, 0.5), st.floats(-0.1, 0.1), st.floats(0, 2))
def test_whatever_is_asked_the_limits_hold(asked, held, present, ready, limits, fallen, last, used):
    sigma = np.array([0.01, 0.02, 0.05])
    present = np.where(held > 0, present, 0.0)
    held = np.where(present != 0, held, 0)
    account = Account(present, held, np.asarray(fallen), np.asarray(last), np.asarray(used), np.asarray(False))
    wanted = targets(2 * asked, limits, account, ready, sigma)
    kept = np.isnan(wanted)
    new = np.where(kept, 0.0, wanted)
    assert (np.abs(new) <= limits.max_weight + 1e-12).all()
    assert not limits.long_only or new.min() >= 0
    free_to_sell = limits.model_copy(update={"min_holding_sessions": 0})
    asked_for_nothing = targets(np.zeros(3), free_to_sell, account, ready, sigma)
    assert not np.nan_to_num(asked_for_nothing).any()  # closing is always allowed
    grew = ~kept & (np.abs(new) > np.abs(present) + 1e-12)
    if grew.any():  # only then can a limit be what is to blame
        fixed = np.where(kept, present, 0.0)
        assert np.abs(new).sum() + np.abs(fixed).sum() <= max(limits.max_gross, np.abs(fixed).sum()) + 1e-9
        assert not limits.pattern_day_trader
    fixed = np.where(kept, present, 0.0)
    young = (held > 0) & (held < limits.min_holding_sessions)
    assert (np.abs(new[young & ~kept]) >= np.abs(present[young & ~kept]) - 1e-12).all() or not new.any()
    free = ~kept & ~young
    if not (kept | young).any():
        assert abs(new.sum()) <= limits.max_net + 1e-9
    assert (np.abs(new[free]).sum() == 0) or np.abs(new).sum() + np.abs(fixed).sum() <= limits.max_gross + 1e-9
    if limits.pattern_day_trader:
        assert (new * present >= -1e-15).all()
