"""Baselines on real backtests of small hand-made markets."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from envs.backtest import Ledger, backtest
from envs.contract import Floats, Policy, Window
from envs.costs import Costs
from envs.limits import Limits
from rl.judging.baselines import BASELINES, BuyAndHold, Cash, EqualWeight, Momentum

FREE = Costs(commission_usd_per_share=0, half_spread_bps=0, impact=0, borrow_bps_per_year=0)


def panel_of(closes: Floats, first_ready: tuple[int, ...] | None = None) -> Panel:
    """A market that opens at its last close; column n has features from row `first_ready[n]` on."""
    count, symbols = closes.shape
    features = np.zeros((count, symbols, 1), np.float32)
    for column, row in enumerate(first_ready or ()):
        features[:row, column] = np.nan
    opens = np.vstack([closes[:1], closes[:-1]])
    constant = {"volume": 1e9, "split": 1.0, "dividend": 0.0, "sigma": 0.01, "adv": 1e9, "spread": 0.0}
    return Panel.of(
        sessions=np.arange(np.datetime64("2010-01-04"), np.datetime64("2010-01-04") + count),
        symbols=tuple("ABCD"[:symbols]),
        feature_names=("x",),
        schema_hash="",
        source={},
        features=features,
        fields={
            "open": opens,
            "high": np.maximum(opens, closes),
            "low": np.minimum(opens, closes),
            "close": closes,
            "adjusted_close": closes,
            **{name: np.full(closes.shape, value) for name, value in constant.items()},
        },
    )


def growing(rates: tuple[float, ...], sessions: int) -> Floats:
    return 100.0 * np.exp(np.outer(np.arange(sessions), rates))


def run(policy: Policy, panel: Panel, start: int = 1, limits: Limits | None = None) -> Ledger:
    span = Span(start, len(panel.sessions))
    return backtest(policy, panel, span, limits or Limits(), FREE)


def traded_sessions(ledger: Ledger) -> list[date]:
    return ledger.account.filter(pl.col("traded") > 0)["session"].to_list()


def test_cash_in_any_market_never_trades_and_keeps_its_money() -> None:
    ledger = run(Cash(), panel_of(growing((0.01, -0.01), 30)))
    assert ledger.account["traded"].sum() == 0
    assert ledger.account["equity"].to_list() == [100_000.0] * 29


@pytest.mark.parametrize("limits", [Limits(), Limits(no_trade_band=0)], ids=["band", "no band"])
def test_buy_and_hold_in_diverging_prices_buys_once_and_is_left_alone(limits: Limits) -> None:
    panel = panel_of(growing((0.02, -0.01, 0.0031), 200))
    ledger = run(BuyAndHold(), panel, limits=limits)
    assert traded_sessions(ledger) == [ledger.account["session"][0]]
    last = ledger.positions.tail(3)
    assert last["weight"].max() > 0.9  # far above the budget of 0.3167 it was bought for
    assert last["shares"].to_list() == [316.0, 316.0, 316.0]


def test_buy_and_hold_equity_is_cash_plus_the_shares_it_bought() -> None:
    panel = panel_of(growing((0.005, 0.001), 60))
    ledger = run(BuyAndHold(), panel)
    shares = ledger.positions.head(2)["shares"].to_numpy()
    # Ordered at the close of row 0 and filled at the same price by this market's construction.
    expected = 100_000.0 + (panel.fields["close"][1:] - 100.0) @ shares
    np.testing.assert_allclose(ledger.account["equity"].to_numpy(), expected)


def test_buy_and_hold_with_a_latecomer_buys_it_once_from_the_others_without_borrowing() -> None:
    panel = panel_of(growing((0.004, 0.002, 0.0), 120), first_ready=(0, 0, 50))
    ledger = run(BuyAndHold(), panel)
    assert traded_sessions(ledger) == [panel.sessions[1].item(), panel.sessions[51].item()]
    after = ledger.positions.filter(pl.col("session") == panel.sessions[51].item())["weight"].to_numpy()
    assert after[2] == pytest.approx(0.95 / 3, abs=0.01)
    assert after.sum() == pytest.approx(0.95, abs=0.01)
    assert after[0] / after[1] == pytest.approx(np.exp(0.002 * 51), rel=0.01)
    assert ledger.account["cash"].min() >= 0


def test_equal_weight_in_diverging_prices_keeps_every_budget_within_the_band() -> None:
    ledger = run(EqualWeight(), panel_of(growing((0.01, -0.01), 100)))
    weights = ledger.positions["weight"].to_numpy()
    assert len(traded_sessions(ledger)) > 10
    assert np.abs(weights - 0.475).max() < 0.02


def test_equal_weight_before_a_symbol_is_ready_splits_the_account_over_the_others() -> None:
    panel = panel_of(growing((0.0, 0.0), 20), first_ready=(0, 10))
    weight = run(EqualWeight(), panel).positions["weight"].to_numpy().reshape(-1, 2)
    np.testing.assert_allclose(weight[5], [0.95, 0.0], atol=0.001)
    np.testing.assert_allclose(weight[-1], [0.475, 0.475], atol=0.001)


def test_momentum_holds_what_rose_over_the_year_that_ended_a_month_ago() -> None:
    closes = np.full((253, 4), 100.0)
    closes[0] = [90.0, 110.0, 90.0, np.nan]  # 252 sessions ago
    closes[-22] = [100.0, 100.0, 100.0, 100.0]  # 21 sessions ago
    closes[-21:, 0] = 1.0  # the latest month plays no part
    window = Window(
        session=date(2011, 1, 3),
        symbols=("rose", "fell", "not ready", "unknown"),
        features=np.zeros((253, 4, 1), np.float32),
        closes=closes,
        portfolio=np.zeros((4, 2), np.float32),
        ready=np.array([True, True, False, True]),
    )
    assert Momentum().decide(window).tolist() == [1.0, 0.0, 0.0, 0.0]


def test_momentum_on_a_trend_that_turns_leaves_it_a_month_after_the_year_s_gain_is_gone() -> None:
    path = 100.0 + np.concatenate([np.arange(300), 299 - np.arange(400)])
    ledger = run(Momentum(), panel_of(path[:, None]), start=253)
    weight = ledger.positions["weight"].to_numpy()
    fills = np.arange(253, 700)
    # At decision t it compares the closes of t-21 and t-252; they are level when their mean is the peak.
    turn = int(np.flatnonzero(path[fills - 22] <= path[fills - 253])[0])
    assert (weight[:turn] > 0.9).all()
    assert (weight[turn:] == 0).all()
    assert 0 < turn < len(weight)


def test_baselines_have_unique_names_and_run_on_one_span() -> None:
    panel = panel_of(growing((0.001, 0.0005), 300))
    ledgers = [run(policy, panel, start=253) for policy in BASELINES]
    assert len({ledger.name for ledger in ledgers}) == len(BASELINES) == 4
    assert all(len(ledger.account) == 47 for ledger in ledgers)
