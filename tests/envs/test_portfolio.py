"""The pure step by pencil: every cost, corporate action, protective order and liquidation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from envs.contract import ActionKind, portfolio_state, positions_of, total
from envs.costs import Costs
from envs.limits import Limits
from envs.portfolio import Book, opening_book, step
from rough import FREE, LOOSE, session

LUCK_OF_THE_MEAN = 1 - math.exp(-1)  # an exponential draw equal to its mean


def account(cash: float = 1000.0, mark: float = 10.0) -> Book:
    return opening_book(np.array(cash), np.array([mark]))


def priced(**changes: float | str) -> Costs:
    """Costs that are zero but for the ones named."""
    return FREE.model_copy(update=changes)


def test_step_fills_at_the_next_open_and_marks_at_the_next_close():
    book, fills = step(account(), np.array([1.0]), session(11.0, 12.0), LOOSE, FREE)
    assert fills.filled == [100]  # sized at the close of 10
    assert fills.price == [11.0]
    assert book.cash == 1000 - 1100
    assert book.equity == -100 + 1200


@pytest.mark.parametrize(
    ("changes", "kind", "buy", "sell"),
    [
        # 1,000 shares at 10 USD: 10,000 USD
        ({"commission_usd_per_share": 0.01}, "commission", 10.0, 10.0),
        ({"commission_usd_per_order": 0.35}, "commission", 0.35, 0.35),
        ({"commission_bps": 3.0}, "commission", 3.0, 3.0),
        ({"commission_usd_per_share": 0.0005, "commission_minimum_usd": 1.0}, "commission", 1.0, 1.0),
        ({"commission_usd_per_share": 0.005, "commission_minimum_usd": 1.0}, "commission", 5.0, 5.0),
        ({"half_spread_bps": 5.0}, "spread", 5.0, 5.0),
        ({"half_spread_bps": 5.0, "spread": "high_low"}, "spread", 20.0, 20.0),  # half of 0.4 %
        ({"half_spread_bps": 50.0, "spread": "high_low"}, "spread", 50.0, 50.0),  # never below the fixed one
        ({"impact": 0.5}, "impact", 10.0, 10.0),  # 10,000 · 0.5 · 0.02 · √(1,000 / 100,000)
        ({"slippage_bps": 7.0}, "slippage", 7.0, 7.0),
        ({"sec_fee_usd_per_million_sold": 20.60}, "fees", 0.0, 0.206),
        ({"taf_usd_per_share_sold": 0.000195, "taf_maximum_usd": 9.79}, "fees", 0.0, 0.195),
        ({"taf_usd_per_share_sold": 0.02, "taf_maximum_usd": 9.79}, "fees", 0.0, 9.79),
        ({"cat_usd_per_share": 0.000003}, "fees", 0.003, 0.003),
    ],
)
def test_trade_cost_by_pencil_there_and_back(changes, kind, buy, sell):
    market = session(10.0, adv=100_000.0, spread=0.004, luck=LUCK_OF_THE_MEAN)
    book, there = step(account(10_000.0), np.array([1.0]), market, LOOSE, priced(**changes))
    assert there.filled == [1000]
    assert getattr(there.costs, kind) == pytest.approx([buy])
    assert there.costs.total == pytest.approx([buy])
    assert book.equity == pytest.approx(10_000.0 - buy)
    book, back = step(book, np.array([0.0]), market, LOOSE, priced(**changes))
    assert back.filled == [-1000]
    assert getattr(back.costs, kind) == pytest.approx([sell])
    assert book.cash == pytest.approx(10_000.0 - buy - sell)


def test_round_trip_at_zero_move_loses_exactly_the_modelled_costs():
    costs = Costs(commission_minimum_usd=1.0, slippage_bps=3.0, commission_bps=1.0)
    market = session(50.0, luck=0.3)
    book, there = step(account(100_000.0, 50.0), np.array([1.0]), market, LOOSE, costs)
    book, back = step(book, np.array([0.0]), market, LOOSE, costs)
    paid = there.costs.total.sum() + back.costs.total.sum()
    assert book.shares == [0]
    assert paid > 0
    assert book.equity == pytest.approx(100_000 - paid - there.interest, abs=1e-9)
    # by hand: 2,000 shares at 50; 100,000 USD each way
    luck = -math.log(0.7)
    each_way = 2000 * 0.005 + 10.0 + 20.0 + 100_000 * 0.5 * 0.02 * math.sqrt(2000 / 1e6) + 30.0 * luck
    fees = 2000 * 0.000003 * 2 + 100_000 * 20.60e-6 + 2000 * 0.000195
    assert paid == pytest.approx(2 * each_way + fees)


def test_slippage_never_helps_and_has_the_set_mean():
    luck = (np.arange(20_000) + 0.5) / 20_000
    market = session(np.full(20_000, 10.0), luck=luck)
    book = opening_book(np.array(20_000 * 1000.0), np.full(20_000, 10.0))
    _, fills = step(book, np.ones(20_000), market, LOOSE, priced(slippage_bps=5.0))
    assert fills.costs.slippage.min() >= 0
    assert fills.costs.slippage.mean() == pytest.approx(0.5, rel=1e-3)  # 5 bps of 1,000 USD


def test_borrow_fee_is_charged_on_shorts_held_over_the_close_by_pencil():
    book, fills = step(account(10_000.0), np.array([-1.0]), session(10.0, 11.0), LOOSE, priced(borrow_bps_per_year=252))
    assert fills.borrow == pytest.approx([1.1])  # 1,000 · 11 · 252 bps / 252
    assert book.equity == pytest.approx(10_000 - 1000 - 1.1)
    _, fills = step(book, np.array([0.0]), session(11.0), LOOSE, priced(borrow_bps_per_year=252))
    assert fills.borrow == [0.0]


def test_margin_interest_is_charged_on_cash_owed_and_not_on_short_proceeds():
    costs = priced(margin_bps_per_year=252)
    book, fills = step(account(), np.array([1.0]), session(11.0, 12.0), LOOSE, costs)  # gap: 100 shares cost 1,100
    assert fills.interest == pytest.approx(0.01)  # 100 USD owed at 1 bp a session
    assert book.equity == pytest.approx(1100 - 0.01)
    pair = opening_book(np.array(1000.0), np.array([10.0, 10.0]))
    book, fills = step(pair, np.array([1.0, -1.0]), session(np.array([10.0, 10.0])), LOOSE, costs)
    assert book.shares.tolist() == [50, -50]
    assert fills.interest == 0.0  # 500 USD of the proceeds are the lender's; the account's own 500 were enough


def test_participation_cap_leaves_the_rest_unfilled():
    costs = priced(max_participation=0.1)
    book, fills = step(account(), np.array([1.0]), session(10.0, volume=555.0), LOOSE, costs)
    assert (fills.ordered, fills.filled) == ([100], [55])
    book, fills = step(book, np.array([1.0]), session(10.0, volume=1e6), LOOSE, costs)
    assert (fills.ordered, fills.filled) == ([45], [45])


def test_session_without_volume_bar_or_adv_fills_nothing_and_keeps_the_mark():
    dry = session(11.0, volume=0.0), session(np.nan, volume=np.nan), session(11.0, adv=np.nan), session(11.0, adv=0.0)
    for market, mark in zip(dry, (11.0, 10.0, 11.0, 11.0), strict=True):
        book, fills = step(account(), np.array([1.0]), market, LOOSE, Costs())
        assert fills.ordered == [100]
        assert fills.filled == [0]
        assert fills.costs.total == [0]
        assert (book.equity, book.mark) == (1000.0, [mark])


def test_halted_position_is_carried_at_the_last_close_and_sold_when_it_trades_again():
    book, _ = step(account(), np.array([1.0]), session(10.0), LOOSE, FREE)
    for _ in range(2):
        book, fills = step(book, np.array([0.0]), session(np.nan, volume=np.nan), LOOSE, FREE)
        assert fills.ordered == [-100]
        assert book.equity == 1000.0
    book, fills = step(book, np.array([0.0]), session(6.0), LOOSE, FREE)
    assert (fills.filled, fills.price, book.equity) == ([-100], [6.0], 600.0)


def test_symbol_that_is_not_ready_keeps_its_position():
    book, _ = step(account(), np.array([1.0]), session(10.0), LOOSE, FREE)
    after, fills = step(book, np.array([0.0]), session(10.0, ready=False), LOOSE, FREE)
    assert np.isnan(fills.target_weight)
    assert after.shares == [100]


@pytest.mark.parametrize(
    ("side", "split", "shares", "in_lieu"),
    [
        (1, 2.0, 202, 0.0),
        (-1, 2.0, -202, 0.0),
        (1, 1.5, 151, 0.5 * 10.0 / 1.5),  # 101 shares become 151.5; half of one is paid at yesterday's close
        (1, 0.1, 10, 0.1 * 100.0),
        (-1, 0.1, -10, -0.1 * 100.0),
    ],
)
def test_split_on_its_session_by_pencil(side, split, shares, in_lieu):
    book, _ = step(account(1015.0), np.array([float(side)]), session(10.0), LOOSE, FREE)
    assert book.shares == [101 * side]
    market = session(10.0 / split, split=split)
    after, fills = step(book, np.array([float(side)]), market, Limits(no_trade_band=0.5), FREE)
    assert fills.held == [shares]
    assert after.shares == [shares]
    assert after.equity == pytest.approx(1015.0)
    assert after.cash == pytest.approx(book.cash + in_lieu)


def test_order_sized_before_a_split_buys_the_shares_of_after():
    book, fills = step(account(), np.array([1.0]), session(5.0, split=2.0), LOOSE, FREE)
    assert (fills.ordered, fills.filled) == ([200], [200])
    assert book.equity == 1000.0


def test_fractional_shares_go_through_a_split_whole():
    limits = LOOSE.model_copy(update={"fractional": True})
    book, fills = step(account(1005.0), np.array([1.0]), session(10.0), limits, FREE)
    assert fills.filled == [100.5]
    book, _ = step(book, np.array([1.0]), session(10.0 / 3, split=3.0), limits, FREE)
    assert book.shares == pytest.approx([301.5])
    assert book.equity == pytest.approx(1005.0)


def test_dividend_goes_ex_at_the_open_of_its_session_to_who_held_before():
    for side in (1.0, -1.0):
        book, _ = step(account(), np.array([side]), session(10.0), LOOSE, FREE)
        book, fills = step(book, np.array([side]), session(9.0, dividend=1.0), Limits(no_trade_band=0.9), FREE)
        assert fills.dividends == [side * 100]
        assert book.equity == 1000  # the price fell by what was paid
    _, fills = step(account(), np.array([1.0]), session(9.0, dividend=1.0), LOOSE, FREE)
    assert fills.dividends == [0.0]  # bought at the open of the ex-date: too late


def test_dividend_is_per_share_after_the_split_of_the_same_session():
    book, _ = step(account(), np.array([1.0]), session(10.0), LOOSE, FREE)
    book, fills = step(book, np.array([1.0]), session(4.5, split=2.0, dividend=0.5), Limits(no_trade_band=0.9), FREE)
    assert fills.dividends == [100.0]
    assert book.equity == 200 * 4.5 + 100


@pytest.mark.parametrize(("side", "lost"), [(1, 300.0), (-1, 0.0)])
def test_delisting_settles_at_the_last_close_less_the_loss_of_longs(side, lost):
    costs = priced(delisting_loss=0.3)
    book, _ = step(account(), np.array([float(side)]), session(10.0), LOOSE, costs)
    gone = session(np.nan, volume=np.nan, listed=False)
    book, fills = step(book, np.array([float(side)]), gone, LOOSE, costs)
    assert book.shares == [0]
    assert fills.delisting == pytest.approx([lost])
    assert (book.cash, book.equity) == (pytest.approx(1000 - lost), pytest.approx(1000 - lost))
    book, fills = step(book, np.array([1.0]), session(np.nan, volume=np.nan, listed=False, ready=False), LOOSE, costs)
    assert (fills.filled, fills.delisting, book.sessions_held) == ([0], [0], [0])


class TestProtectiveOrders:
    """100 shares at an entry price of 10; stop at 9 (short: 11), profit at 12 (short: 8)."""

    limits = LOOSE.model_copy(update={"stop_loss": 0.1, "take_profit": 0.2})

    def held(self, side: int) -> Book:
        market = session(10.0, high=10.5, low=9.5)
        book, fills = step(account(), np.array([float(side)]), market, self.limits, FREE)
        assert book.entry == [10.0]
        assert fills.exited == [0]
        return book

    @pytest.mark.parametrize(
        ("side", "open_", "high", "low", "close", "price"),
        [
            (1, 10, 10.5, 9.5, 10, None),
            (1, 10, 10.5, 8.5, 9.5, 9.0),  # the stop
            (1, 8, 8.5, 7.5, 8, 8.0),  # gap below the stop: the open
            (1, 10, 12.5, 9.5, 11, 12.0),  # the profit
            (1, 13, 13.5, 12.5, 13, 12.0),  # gap above the profit: no better than the profit
            (1, 10, 12.5, 8.5, 11, 9.0),  # both: the stop
            (1, 10, 12.0, 9.5, 11, 12.0),  # touched is reached
            (-1, 10, 10.5, 9.5, 10, None),
            (-1, 10, 11.5, 9.5, 10, 11.0),
            (-1, 12, 12.5, 11.5, 12, 12.0),
            (-1, 10, 10.5, 7.5, 9, 8.0),
            (-1, 7, 7.5, 6.5, 7, 8.0),
            (-1, 10, 11.5, 7.5, 9, 11.0),
        ],
    )
    def test_exit_price_by_pencil(self, side, open_, high, low, close, price):
        market = session(float(open_), float(close), high=float(high), low=float(low))
        keep = self.limits.model_copy(update={"no_trade_band": 0.9})
        book, fills = step(self.held(side), np.array([float(side)]), market, keep, FREE)
        if price is None:
            assert (fills.exited, book.shares) == ([0], [100 * side])
            return
        assert (fills.exited, fills.exit_price) == ([-100 * side], [price])
        assert book.shares == [0]
        assert book.entry == [0]
        assert book.equity == pytest.approx(1000 + side * 100 * (price - 10))

    def test_position_of_the_same_session_is_protected_from_its_fill_on(self):
        market = session(10.0, 9.2, high=10.1, low=8.9)
        book, fills = step(account(), np.array([1.0]), market, self.limits, FREE)
        assert (fills.filled, fills.exited, fills.exit_price) == ([100], [-100], [9.0])
        assert book.equity == 900

    def test_exit_pays_the_costs_of_a_trade(self):
        costs = priced(commission_usd_per_share=0.01, half_spread_bps=10)
        market = session(10.0, 9.5, high=10.0, low=8.5)
        keep = self.limits.model_copy(update={"no_trade_band": 0.9})
        book, fills = step(self.held(1), np.array([1.0]), market, keep, costs)
        assert fills.costs.commission == pytest.approx([1.0])
        assert fills.costs.spread == pytest.approx([0.9])
        assert book.equity == pytest.approx(900 - 1.9)

    def test_entry_is_the_average_of_buys_and_untouched_by_sales(self):
        loose = self.limits.model_copy(update={"stop_loss": 0.9, "take_profit": None})
        book = account(10_000.0)
        book, _ = step(book, np.array([0.5]), session(10.0), loose, FREE)
        assert (book.shares, book.entry) == ([500], [10.0])
        book, _ = step(book, np.array([1.0]), session(20.0), loose, FREE)
        assert (book.shares, book.entry) == ([1000], [15.0])
        book, _ = step(book, np.array([0.4]), session(20.0), loose, FREE)
        assert (book.shares, book.entry) == ([300], [15.0])
        book, _ = step(book, np.array([-1.0]), session(20.0), loose, FREE)
        assert (book.shares, book.entry) == ([-750], [20.0])

    def test_entry_goes_through_a_split(self):
        keep = self.limits.model_copy(update={"no_trade_band": 0.9})
        market = session(5.0, 4.8, high=5.1, low=4.4, split=2.0)
        book, fills = step(self.held(1), np.array([1.0]), market, keep, FREE)
        assert (fills.exited, fills.exit_price) == ([-200], [4.5])
        assert book.equity == 900

    def test_exit_shares_the_sessions_volume_with_the_opening_order(self):
        costs = priced(max_participation=0.1)
        market = session(10.0, 9.5, high=10.0, low=8.5, volume=300.0)
        keep = self.limits.model_copy(update={"no_trade_band": 0.9})
        book, fills = step(self.held(1), np.array([1.0]), market, keep, costs)
        assert fills.exited == [-30]
        assert book.shares == [70]
        half = self.limits.model_copy(update={"no_trade_band": 0.0})
        _, fills = step(self.held(1), np.array([0.9]), market, half, costs)
        assert (fills.filled, fills.exited) == ([-10], [-20])

    def test_fourth_day_trade_within_five_sessions_is_not_made_possible(self):
        limits = self.limits.model_copy(update={"pattern_day_trader": True, "max_gross": 0.5, "max_weight": 0.5})
        stopped = session(10.0, high=10.1, low=8.0)
        calm = session(10.0)
        book = account(10_000.0)
        for _ in range(3):
            book, fills = step(book, np.array([1.0]), stopped, limits, FREE)
            assert fills.exited != 0
        book, fills = step(book, np.array([1.0]), stopped, limits, FREE)
        assert fills.ordered == [0]
        rich = account(30_000.0)
        for _ in range(5):
            rich, fills = step(rich, np.array([1.0]), stopped, limits, FREE)
        assert (fills.exited != 0) == (rich.before >= 25_000)
        for _ in range(3):
            book, fills = step(book, np.array([1.0]), calm, limits, FREE)
        assert fills.ordered > 0  # the first of the three is six sessions old


def test_short_squeeze_is_a_margin_call_and_closed_at_the_next_open():
    costs = priced(maintenance_short=0.3)
    keep = LOOSE.model_copy(update={"min_holding_sessions": 10})
    book, _ = step(account(), np.array([-1.0]), session(10.0), keep, costs)
    book, _ = step(book, np.array([-1.0]), session(14.0, 15.0), keep, costs)
    assert book.equity == 500  # needed: 0.3 · 1,500 = 450
    assert not book.margin_call
    book, _ = step(book, np.array([-1.0]), session(15.0, 15.5), keep, costs)
    assert book.equity == 450  # needed: 465
    assert book.margin_call
    book, fills = step(book, np.array([-1.0]), session(16.0, 10.0), LOOSE, costs)
    assert fills.called
    assert (fills.filled, fills.price) == ([100], [16.0])
    assert (book.equity, book.margin_call) == (400, False)


def test_margin_call_is_not_stopped_by_holding_rules_or_missing_features():
    limits = LOOSE.model_copy(update={"min_holding_sessions": 10})
    costs = priced(maintenance_short=0.3)
    book, _ = step(account(), np.array([-1.0]), session(10.0), limits, costs)
    book, _ = step(book, np.array([-1.0]), session(16.0), limits, costs)
    book, _ = step(book, np.array([-1.0]), session(16.0, ready=False), limits, costs)
    assert book.shares == [0]


def test_ruined_account_can_only_close():
    book, _ = step(account(), np.array([-1.0]), session(10.0), LOOSE, FREE)
    book, _ = step(book, np.array([-1.0]), session(25.0), LOOSE, FREE)
    assert book.equity == -500
    book, fills = step(book, np.array([-1.0]), session(25.0), LOOSE, FREE)
    assert fills.filled == [100]
    book, fills = step(book, np.array([1.0]), session(25.0), LOOSE, FREE)
    assert (fills.ordered, book.equity) == ([0], -500)
    assert book.weights == [0]


def test_sessions_held_counts_and_restarts_when_the_side_changes():
    book, seen = account(), []
    for position in (1, 1, 1, -1, -1, 0, 1):
        book, _ = step(book, np.array([float(position)]), session(10.0), LOOSE, FREE)
        seen.append(int(book.sessions_held[0]))
    assert seen == [1, 2, 3, 1, 2, 0, 1]


def test_positions_of_actions_by_kind():
    assert positions_of(np.array([0, 1, 2]), ActionKind.DISCRETE).tolist() == [-1, 0, 1]
    assert positions_of(np.array([-3.0, 0.25]), ActionKind.CONTINUOUS).tolist() == [-1, 0.25]


@pytest.mark.parametrize(("action", "kind"), [(-1, "discrete"), (3, "discrete"), (float("nan"), "continuous")], ids=str)
def test_action_that_is_none_is_refused(action, kind):
    with pytest.raises(ValueError, match=f"action {action}"):
        positions_of(np.array([action]), ActionKind(kind))


def test_portfolio_state_is_relative_to_the_budget():
    state = portfolio_state(np.array([0.19, -0.095, 0.1]), np.array([0.19, 0.19, 0.0]), np.array([10, 100, 0]))
    np.testing.assert_allclose(state, [[1.0, 0.5], [-0.5, 2.0], [5.0, 0.0]], rtol=1e-6)


@pytest.mark.parametrize("members", [1, 2, 9, 100])
def test_total_of_one_account_has_the_bits_of_many(members):
    values = np.random.default_rng(0).normal(size=(members, 50)) * 1e6
    for column, expected in zip(values.T, total(values), strict=True):
        assert total(column.copy()) == total(column[:, None].copy())[0] == expected
