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
from rl.judging.baselines import (
    BASELINES,
    BuyAndHold,
    Cash,
    EqualWeight,
    Momentum,
    MovingAverages,
    VolatilityTarget,
    equal_weight_deviation,
)
from rl.judging.metrics import figures

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


def seen(closes: Floats, ready: tuple[bool, ...] | None = None) -> Window:
    """What a policy that looks at closes alone sees of them, `[W, N]`."""
    sessions, count = closes.shape
    return Window(
        session=date(2011, 1, 3),
        symbols=tuple("ABCD"[:count]),
        features=np.zeros((sessions, count, 1), np.float32),
        closes=closes,
        portfolio=np.zeros((count, 2), np.float32),
        ready=np.array(ready or (True,) * count),
    )


def swinging(move: float, sessions: int = 61) -> Floats:
    """Closes whose returns are +move, -move, +move …"""
    return 100.0 * np.cumprod([1.0] + [1.0 + move * (-1.0) ** k for k in range(sessions - 1)])


def test_volatility_target_scales_the_whole_set_to_ten_percent_a_year() -> None:
    swing = swinging(0.02)
    yearly = 0.02 * np.sqrt(60 / 59) * np.sqrt(252)  # sixty returns of ±2 %, of which one degree of freedom is the mean
    for closes in (swing[:, None], np.stack([swing, swing * 3.0], axis=1)):
        np.testing.assert_allclose(VolatilityTarget().decide(seen(closes)), 0.10 / yearly)
    assert yearly == pytest.approx(0.3202, abs=1e-4)


def test_volatility_target_measures_the_portfolio_and_not_its_symbols() -> None:
    """Two wild symbols that cancel make a calm set."""
    opposite = 100.0 * np.cumprod([1.0] + [1.0 - 0.05 * (-1.0) ** k for k in range(60)])
    closes = np.stack([swinging(0.05), opposite], axis=1)
    assert equal_weight_deviation(closes) < 1e-12
    assert VolatilityTarget().decide(seen(closes)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("move", [0.0, 1e-4, 0.006])
def test_volatility_target_in_a_calm_market_is_equal_weight_and_no_more(move: float) -> None:
    assert VolatilityTarget().decide(seen(swinging(move)[:, None])).tolist() == [1.0]


def test_volatility_target_holds_only_what_is_ready_and_measures_that() -> None:
    wild = np.stack([swinging(0.02), swinging(0.4), np.full(61, np.nan)], axis=1)
    alone = VolatilityTarget().decide(seen(swinging(0.02)[:, None]))[0]
    assert VolatilityTarget().decide(seen(wild, (True, False, False))).tolist() == [alone, 0.0, 0.0]
    assert VolatilityTarget().decide(seen(wild, (False, False, False))).tolist() == [0.0, 0.0, 0.0]
    assert VolatilityTarget().decide(seen(wild, (False, False, True))).tolist() == [0.0, 0.0, 0.0]


def test_deviation_of_a_set_with_absent_closes_is_that_of_the_others() -> None:
    closes = np.stack([swinging(0.02, 5), swinging(0.02, 5)], axis=1)
    whole = equal_weight_deviation(closes)
    closes[2, 1] = np.nan
    assert equal_weight_deviation(closes) == pytest.approx(whole)
    closes[2, 0] = np.nan  # two of four returns are unknown
    assert equal_weight_deviation(closes) == pytest.approx(np.std([0.02, -0.02], ddof=1))
    assert np.isnan(equal_weight_deviation(closes[:2]))


def test_volatility_target_brings_a_wild_market_to_about_ten_percent() -> None:
    rng = np.random.default_rng(0)
    deviations = np.concatenate([np.full(400, 0.01), np.full(400, 0.03)])
    panel = panel_of(100.0 * np.exp(np.cumsum(rng.normal(0, deviations[:, None], (800, 1)), axis=0)))
    ledger = run(VolatilityTarget(), panel, start=61)
    returns = ledger.returns()
    for part in (returns[:330], returns[400:]):  # sixty sessions after the change it knows
        assert part.std() * np.sqrt(252) == pytest.approx(0.095, rel=0.15)
    assert run(EqualWeight(), panel, start=61).returns()[400:].std() * np.sqrt(252) > 0.4
    assert ledger.account["gross"].max() < 0.95


def test_moving_averages_hold_what_stands_above_its_longer_mean() -> None:
    flat = np.full(50, 100.0)
    latest = np.concatenate([np.full(40, 100.0), np.full(10, 101.0)])
    # A fall nine sessions ago still leaves a mean of ten below that of fifty; one rise must not hide it.
    fell = np.concatenate([np.full(40, 100.0), np.full(9, 95.0), [120.0]])
    absent = latest.copy()
    absent[3] = np.nan
    closes = np.stack([flat, latest, fell, absent], axis=1)
    assert MovingAverages().decide(seen(closes)).tolist() == [0.0, 1.0, 0.0, 0.0]
    assert MovingAverages().decide(seen(closes, (True, False, True, True))).tolist() == [0.0] * 4
    rising = np.stack([100.0 + np.arange(50), 200.0 - np.arange(50)], axis=1)
    assert MovingAverages().decide(seen(rising)).tolist() == [1.0, 0.0]


def test_moving_averages_on_a_trend_that_turns_leave_it_when_the_means_cross() -> None:
    path = 100.0 + np.concatenate([np.arange(150), 148 - np.arange(100)])
    ledger = run(MovingAverages(), panel_of(path[:, None]), start=50)
    weight = ledger.positions["weight"].to_numpy()
    means = [[path[t - n + 1 : t + 1].mean() for n in (10, 50)] for t in range(49, 249)]
    held = np.array([short > long for short, long in means])
    assert (weight[held] > 0.9).all()
    assert (weight[~held] == 0).all()
    assert held.sum() == int((~held).argmax()) > 100


def test_baselines_have_unique_names_and_run_on_one_span() -> None:
    panel = panel_of(growing((0.001, 0.0005), 300))
    ledgers = [run(policy, panel, start=253) for policy in BASELINES]
    names = ["equal-weight", "buy-and-hold", "momentum-12-1", "vol-target-10", "sma-10-50", "cash"]
    assert [ledger.name for ledger in ledgers] == [policy.name for policy in BASELINES] == names
    assert all(len(ledger.account) == 47 for ledger in ledgers)


def test_baselines_on_the_bundled_history_reach_their_known_sharpe_ratios(panel: Panel) -> None:
    """The bars that a learnt policy has to beat, from 2005-09 on at 10 bps a side, against an independent calculation
    with the fills of the next close: 0.84, 1.07 and 1.07."""
    span = Span(panel.session_index(date(2005, 9, 1)), len(panel.sessions))
    costs = FREE.model_copy(update={"half_spread_bps": 10.0})
    for policy, known in ((EqualWeight(), 0.84), (VolatilityTarget(), 1.07), (MovingAverages(), 1.07)):
        found = figures(backtest(policy, panel, span, Limits(), costs))
        assert found.sharpe == pytest.approx(known, abs=0.12), policy.name
        assert policy.name != "vol-target-10" or found.volatility == pytest.approx(0.10, abs=0.01)
