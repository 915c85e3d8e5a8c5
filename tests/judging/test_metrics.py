"""Figures by pencil, and comparisons on planted excess and on noise."""

from __future__ import annotations

import json
from datetime import date, timedelta

import numpy as np
import numpy.typing as npt
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from envs.backtest import COST_KINDS, Ledger
from rl.judging.metrics import (
    Figures,
    compare,
    drawdowns,
    equity_path,
    figures,
    holding_sessions,
    sharpe,
    sharpe_standard_error,
    solvent_returns,
)


def ledger_of(
    equity: npt.ArrayLike,
    shares: npt.ArrayLike | None = None,
    name: str = "policy",
    traded: float = 0.0,
    **costs: float,
) -> Ledger:
    """A ledger that started with 100 USD; `shares` is [T, N], and `traded` and `costs` are per session."""
    equity = np.asarray(equity, np.float64)
    held = np.zeros((len(equity), 1)) if shares is None else np.asarray(shares, np.float64)
    sessions = [date(2010, 1, 4) + timedelta(days=i) for i in range(len(equity))]
    constants = {kind: pl.lit(costs.get(kind, 0.0)) for kind in COST_KINDS}
    account = pl.DataFrame({"session": sessions, "equity": equity}).with_columns(
        gross=pl.lit(0.5), traded=pl.lit(traded), **constants
    )
    positions = pl.DataFrame(
        {
            "session": [session for session in sessions for _ in held.T],
            "symbol": [f"S{n}" for n in range(held.shape[1])] * len(equity),
            "shares": held.reshape(-1),
            "filled": np.diff(held, axis=0, prepend=0.0).reshape(-1),
        }
    )
    return Ledger(name, 100.0, account, positions)


def ledger_with(returns: npt.NDArray[np.float64], name: str = "policy") -> Ledger:
    return ledger_of(100.0 * np.cumprod(1.0 + returns), np.ones((len(returns), 1)), name)


def noise(seed: int, sessions: int = 504) -> npt.NDArray[np.float64]:
    return np.random.default_rng(seed).normal(3e-4, 0.01, sessions)


def test_figures_of_four_sessions_equal_pencil_numbers() -> None:
    ledger = ledger_of([110.0, 99.0, 99.0, 121.0], [[1], [1], [0], [-2]], traded=10.0, commission=1.0, borrow=0.5)
    f = figures(ledger)
    mean_equity = (100 + 110 + 99 + 99 + 121) / 5
    returns = [0.1, -0.1, 0.0, 22 / 99]
    assert (f.first_session, f.last_session, f.sessions) == (date(2010, 1, 4), date(2010, 1, 7), 4)
    assert f.final_equity_usd == pytest.approx(121.0)
    assert f.total_return == pytest.approx(0.21)
    assert f.cagr == pytest.approx(1.21**63 - 1)
    assert f.volatility == pytest.approx(np.std(returns, ddof=1) * 252**0.5)
    assert f.sharpe == pytest.approx(np.mean(returns) / np.std(returns, ddof=1) * 252**0.5)
    assert f.max_drawdown == pytest.approx(-0.1)
    assert f.exposure == pytest.approx(0.5)
    assert f.turnover_per_year == pytest.approx(40 / mean_equity * 63)
    assert f.costs_usd == dict.fromkeys(COST_KINDS, 0.0) | {"commission": 4.0, "borrow": 2.0}
    assert f.cost_usd == pytest.approx(6.0)
    assert f.cost_bps_per_year == pytest.approx(6 / mean_equity * 63 * 1e4)
    assert f.trades == 3
    assert (f.mean_holding_sessions, f.median_holding_sessions) == (1.5, 1.5)


def test_figures_survive_json() -> None:
    result = figures(ledger_with(noise(0)))
    assert Figures.of(json.loads(json.dumps(result.tree()))) == result


def test_figures_of_an_account_that_did_nothing_hold_zeros_and_no_nan() -> None:
    f = figures(ledger_of([100.0] * 30))
    assert (f.sharpe, f.sharpe_error) == (0.0, None)
    assert (f.total_return, f.cagr, f.volatility, f.max_drawdown, f.turnover_per_year, f.trades) == (
        0,
        0,
        0,
        0,
        0,
        0,
    )
    assert (f.mean_holding_sessions, f.median_holding_sessions) == (None, None)


def test_figures_of_one_session_state_no_uncertainty() -> None:
    f = figures(ledger_of([101.0]))
    assert (f.volatility, f.sharpe, f.sharpe_error) == (0.0, 0.0, None)


def test_figures_of_a_ruined_account_end_at_minus_one() -> None:
    ledger = ledger_of([50.0, -10.0, 40.0])
    f = figures(ledger)
    assert equity_path(ledger).tolist() == [100.0, 50.0, 0.0, 0.0]
    assert solvent_returns(ledger).tolist() == [-0.5, -1.0, 0.0]
    assert (f.total_return, f.cagr, f.max_drawdown, f.final_equity_usd) == (-1.0, -1.0, -1.0, 0.0)


def test_solvent_returns_of_a_solvent_account_are_the_ledger_s() -> None:
    ledger = ledger_with(noise(1))
    np.testing.assert_allclose(solvent_returns(ledger), ledger.returns(), rtol=0, atol=1e-15)


def test_drawdowns_count_from_the_highest_value_so_far() -> None:
    path = np.array([100.0, 120.0, 90.0, 150.0, 75.0, 150.0])
    np.testing.assert_allclose(drawdowns(path), [0, 0, -0.25, 0, -0.5, 0])


@pytest.mark.parametrize(
    ("ratio", "skew", "kurtosis", "periods", "against", "probability"),
    [
        # Bailey & López de Prado (2012): 24 months, mean 0.036, deviation 0.079; as normal and as found.
        (0.4570, 0.0, 3.0, 24, 0.0, 0.982),
        (0.4570, -2.448, 10.164, 24, 0.0, 0.913),
        # Bailey & López de Prado (2014): 2.5 a year over 1,250 days against an expected best of 0.1132.
        (2.5 / 250**0.5, -3.0, 10.0, 1250, 0.1132, 0.9004),
    ],
    ids=["2012 normal", "2012 skewed", "2014 deflated"],
)
def test_sharpe_standard_error_gives_the_published_probabilities(
    ratio: float, skew: float, kurtosis: float, periods: int, against: float, probability: float
) -> None:
    error = sharpe_standard_error(ratio, skew, kurtosis, periods)
    assert stats.norm.cdf((ratio - against) / error) == pytest.approx(probability, abs=6e-4)


def test_sharpe_annualises_the_error_with_the_moments_of_the_returns() -> None:
    returns = np.random.default_rng(3).standard_t(4, 1000) * 0.01 + 4e-4
    skew, kurtosis = stats.skew(returns), stats.kurtosis(returns, fisher=False)
    daily = returns.mean() / returns.std(ddof=1)
    expected = sharpe_standard_error(daily, skew, kurtosis, 1000) * 252**0.5
    assert sharpe(returns) == pytest.approx((daily * 252**0.5, expected))


def test_sharpe_standard_error_is_the_spread_of_sharpe_over_many_histories() -> None:
    rng = np.random.default_rng(4)
    results = [sharpe(rng.normal(5e-4, 0.01, 504)) for _ in range(600)]
    spread = np.std([result.ratio for result in results])
    assert np.mean([result.standard_error for result in results]) == pytest.approx(spread, rel=0.1)


@given(st.lists(st.floats(-0.5, 0.5), min_size=1, max_size=40))
def test_figures_of_any_returns_are_finite(returns: list[float]) -> None:
    ledger = ledger_with(np.array(returns))
    f = figures(ledger)  # the model refuses NaN and infinity
    assert -1.0 <= f.max_drawdown <= 0.0
    assert f.total_return == pytest.approx(np.prod(1.0 + np.array(returns)) - 1.0, abs=1e-9)


def test_holding_sessions_split_on_sign_and_symbol() -> None:
    shares = [[5, 7], [3, 7], [-1, 7], [-1, 0], [0, 0], [2, 0]]
    assert sorted(holding_sessions(ledger_of([100.0] * 6, shares))) == [1, 2, 2, 3]


def test_compare_with_itself_is_zero_and_certain() -> None:
    ledger = ledger_with(noise(5))
    comparison = compare(ledger, ledger)
    assert (comparison.excess, comparison.lower, comparison.upper, comparison.p_value) == (0, 0, 0, 1)


def test_compare_over_other_sessions_is_refused() -> None:
    with pytest.raises(ValueError, match="different sessions"):
        compare(ledger_with(noise(0)), ledger_with(noise(0)[1:]))


def test_compare_of_independent_excess_matches_the_textbook_interval() -> None:
    benchmark = noise(6)
    excess = np.random.default_rng(7).normal(2e-4, 0.005, 504)
    comparison = compare(ledger_with(benchmark + excess), ledger_with(benchmark, "market"))
    half = 1.96 * excess.std(ddof=1) / 504**0.5 * 252
    assert comparison.excess == pytest.approx(excess.mean() * 252)
    assert comparison.upper - comparison.lower == pytest.approx(2 * half, rel=0.2)
    t_test = stats.norm.sf(excess.mean() / excess.std(ddof=1) * 504**0.5)
    assert comparison.p_value == pytest.approx(t_test, abs=0.04)


def test_compare_of_slowly_varying_excess_takes_blocks_and_a_wider_interval() -> None:
    shocks = np.random.default_rng(8).normal(0, 0.002, 1000)
    excess = np.zeros(1000)
    for t in range(1, 1000):
        excess[t] = 0.8 * excess[t - 1] + shocks[t]
    benchmark = noise(9, 1000)
    market = ledger_with(benchmark, "market")
    slow = compare(ledger_with(benchmark + excess), market)
    fast = compare(ledger_with(benchmark + np.random.default_rng(0).permutation(excess)), market)
    assert slow.block_sessions > 5 > fast.block_sessions
    assert slow.upper - slow.lower > 1.5 * (fast.upper - fast.lower)


def test_compare_twice_with_one_seed_is_identical() -> None:
    policy, benchmark = ledger_with(noise(1)), ledger_with(noise(2), "market")
    assert compare(policy, benchmark, seed=3) == compare(policy, benchmark, seed=3)
    assert compare(policy, benchmark, seed=3) != compare(policy, benchmark, seed=4)
