"""Published numbers, pencil cases, agreement with other packages, and error rates over simulated histories."""

from __future__ import annotations

import math
import tracemalloc
from collections.abc import Callable
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
from arch.bootstrap import SPA, optimal_block_length
from purgedcv import min_track_record_length, minimum_backtest_length, probability_of_backtest_overfitting
from scipy import integrate, signal, stats
from skfolio import measures

from rl.judging import metrics, significance
from rl.judging.significance import (
    Shape,
    beta,
    block_sessions,
    deflated_sharpe,
    expected_maximum,
    expected_shortfall,
    minimum_backtest_years,
    minimum_track_record,
    moments,
    overfitting_probability,
    probabilistic_sharpe,
    sharpe_difference,
    sharpe_error,
    sharpe_interval,
    smallest_detectable,
    superior,
    value_at_risk,
)

Array = npt.NDArray[np.float64]
YEAR = 252**0.5
PUBLISHED = Shape(2.5 / 250**0.5, -3.0, 10.0, 1250)
"""Bailey and López de Prado (2014): 2.5 a year over 1,250 days, 250 a year."""


def noise(seed: int, sessions: int = 504, columns: int | None = None, mean: float = 3e-4) -> Array:
    return np.random.default_rng(seed).normal(mean, 0.01, sessions if columns is None else (sessions, columns))


def slow_and_fat_tailed(seed: int, sessions: int, columns: int, ratio: float = 0.05) -> Array:
    """Equally good configurations with Student's t with 5 degrees, autocorrelation 0.3 and correlation 0.5."""
    shocks = np.random.default_rng(seed).standard_t(5, (sessions + 50, columns + 1)) * 0.6**0.5
    mixed = (shocks[:, 1:] + shocks[:, :1]) * 0.5**0.5
    slow = signal.lfilter([(1 - 0.3**2) ** 0.5], [1.0, -0.3], mixed, axis=0)[50:]
    return 0.01 * (slow + ratio)


def test_moments_of_four_sessions_equal_pencil_numbers() -> None:
    shape = moments(np.array([0.0, 0.0, 0.0, 0.04]))
    assert shape == pytest.approx((0.5, 2 / 3**0.5, 7 / 3, 4))  # deviation 0.02; a coin of 1 in 4


def test_moments_give_the_figures_of_the_ledger() -> None:
    returns = np.random.default_rng(3).standard_t(4, 700) * 0.01 + 4e-4
    shape = moments(returns)
    assert (shape.ratio * YEAR, sharpe_error(shape) * YEAR) == pytest.approx(metrics.sharpe(returns))
    assert sharpe_error(shape) == pytest.approx(metrics.sharpe_standard_error(*shape))


@pytest.mark.parametrize("value", [0.0, 0.001, -0.3])
def test_moments_of_returns_that_never_vary_show_nothing(value: float) -> None:
    shape = moments(np.full(30, value))
    assert shape == (0.0, 0.0, 3.0, 30)
    assert probabilistic_sharpe(shape) == 0.5
    assert minimum_track_record(shape) == math.inf


@pytest.mark.parametrize(
    ("returns", "message"),
    [
        ([0.01], "1 sessions: give at least 2"),
        ([], "0 sessions: give at least 2"),
        ([0.01, 0.02, math.nan], "not finite, at 2: drop it"),
        ([0.01, -math.inf, 0.02], "not finite, at 1"),
        ([[0.01, 0.02]], r"shape \(1, 2\): give one row"),
    ],
)
def test_moments_of_bad_returns_are_refused_with_the_remedy(returns: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        moments(np.array(returns))


@pytest.mark.parametrize("threshold", [-0.02, 0.0, 0.05, 0.2])
def test_probabilistic_sharpe_agrees_with_skfolio(threshold: float) -> None:
    returns = np.random.default_rng(1).gamma(2.0, 0.01, 300) - 0.018
    assert abs(stats.skew(returns)) > 1
    expected = measures.probabilistic_sharpe_ratio(returns, threshold)
    assert probabilistic_sharpe(moments(returns), threshold) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("skew", "kurtosis", "probability"), [(0.0, 3.0, 0.982), (-2.448, 10.164, 0.913)], ids=["normal", "as found"]
)
def test_probabilistic_sharpe_of_the_published_fund(skew: float, kurtosis: float, probability: float) -> None:
    # Bailey & López de Prado (2012): 24 months, mean 0.036, deviation 0.079.
    assert probabilistic_sharpe(Shape(0.4570, skew, kurtosis, 24)) == pytest.approx(probability, abs=6e-4)


@pytest.mark.parametrize(("threshold", "probability"), [(1.9, 1.0), (2.0, 0.5), (2.1, 0.0)])
def test_probabilistic_sharpe_without_error_is_a_step(threshold: float, probability: float) -> None:
    assert sharpe_error(Shape(2.0, 1.0, 2.0, 9)) == 0.0
    assert probabilistic_sharpe(Shape(2.0, 1.0, 2.0, 9), threshold) == probability


def test_sharpe_error_of_impossible_moments_is_zero_not_nan() -> None:
    assert sharpe_error(Shape(2.0, 3.0, 1.0, 9)) == 0.0


@pytest.mark.parametrize(("trials", "tolerance"), [(2, 0.08), (3, 0.03), (10, 0.03), (100, 0.03), (10_000, 0.03)])
def test_expected_maximum_is_near_the_exact_one(trials: int, tolerance: float) -> None:
    def density(x: float) -> float:
        return float(x * trials * stats.norm.pdf(x) * stats.norm.cdf(x) ** (trials - 1))

    exact, _ = integrate.quad(density, -10, 10)
    assert expected_maximum(trials) == pytest.approx(exact, rel=tolerance)
    assert expected_maximum(trials) == pytest.approx(measures.expected_max_sharpe_ratio(trials, 1.0))


def test_expected_maximum_of_one_trial_is_zero() -> None:
    assert expected_maximum(1) == 0.0


@pytest.mark.parametrize("trials", [0, -3])
def test_expected_maximum_of_no_trial_is_refused(trials: int) -> None:
    for call in (
        lambda: expected_maximum(trials),
        lambda: deflated_sharpe(PUBLISHED, trials, 0.1),
        lambda: minimum_backtest_years(trials, 1.0),
    ):
        with pytest.raises(ValueError, match=f"{trials} trials: count every configuration"):
            call()


def test_deflated_sharpe_gives_the_published_example() -> None:
    deflated = deflated_sharpe(PUBLISHED, trials=100, spread=(0.5 / 250) ** 0.5)
    assert deflated.threshold == pytest.approx(0.1132, abs=5e-5)
    assert deflated.probability == pytest.approx(0.9004, abs=5e-5)


def test_deflated_sharpe_agrees_with_skfolio() -> None:
    table = noise(2, columns=30)
    ratios = np.array([moments(column).ratio for column in table.T])
    best = table[:, ratios.argmax()]
    expected = measures.deflated_sharpe_ratio(best, ratios)
    assert deflated_sharpe(moments(best), 30, ratios.std(ddof=1)).probability == pytest.approx(expected, abs=1e-12)
    assert deflated_sharpe(moments(best), 1, ratios.std(ddof=1)) == (probabilistic_sharpe(moments(best)), 0.0)


@pytest.mark.parametrize("spread", [-0.1, math.nan, math.inf])
def test_deflated_sharpe_with_an_impossible_spread_is_refused(spread: float) -> None:
    with pytest.raises(ValueError, match="give the standard deviation of the trials"):
        deflated_sharpe(PUBLISHED, 10, spread)


@pytest.mark.parametrize("threshold", [-0.05, 0.0, 0.1])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_minimum_track_record_agrees_with_purgedcv(threshold: float, confidence: float) -> None:
    shape = moments(np.random.default_rng(1).standard_t(5, 300) * 0.01 + 2e-3)
    expected = min_track_record_length(shape.ratio, threshold, 1 - confidence, shape.skew, shape.kurtosis)
    assert math.ceil(minimum_track_record(shape, threshold, confidence)) == expected


def test_minimum_track_record_is_where_the_probability_reaches_the_confidence() -> None:
    periods = minimum_track_record(PUBLISHED, 0.1, 0.97)
    below, above = (PUBLISHED._replace(periods=round_(periods)) for round_ in (math.floor, math.ceil))
    assert probabilistic_sharpe(below, 0.1) < 0.97 <= probabilistic_sharpe(above, 0.1)


def test_minimum_track_record_of_a_ratio_not_above_the_threshold_is_infinite() -> None:
    assert minimum_track_record(PUBLISHED, PUBLISHED.ratio) == math.inf
    assert minimum_track_record(PUBLISHED, PUBLISHED.ratio + 0.01) == math.inf


@pytest.mark.parametrize("confidence", [0.5, 1.0, 95.0])
def test_minimum_track_record_at_an_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"above 0\.5 and below 1"):
        minimum_track_record(PUBLISHED, 0.0, confidence)


def test_minimum_backtest_years_gives_the_published_five_for_45_trials() -> None:
    # Bailey, Borwein, López de Prado & Zhu (2014): five years of data allow no more than 45 trials.
    assert minimum_backtest_years(45, 1.0) == pytest.approx(5.0, abs=0.05)
    assert minimum_backtest_years(45, 2.0) == pytest.approx(minimum_backtest_length(45, 2.0))


@pytest.mark.parametrize("ratio", [0.0, -1.0])
def test_minimum_backtest_years_of_a_ratio_that_is_not_positive_is_infinite(ratio: float) -> None:
    assert minimum_backtest_years(45, ratio) == math.inf


def with_copies(table: Array) -> Array:
    return np.hstack([table, table, table[:, :1]])


def with_idlers(table: Array) -> Array:
    """Two configurations that never trade, one that stops for good, one that earns the same each session."""
    table = np.hstack([table, np.zeros((len(table), 2)), np.full((len(table), 1), 3e-4), table[:, :1].copy()])
    table[len(table) // 4 :, -1] = 1e-3
    return table


@pytest.mark.parametrize("change", [np.asarray, with_copies, with_idlers])
@pytest.mark.parametrize(("sessions", "columns", "blocks"), [(96, 6, 8), (101, 5, 6), (40, 2, 2), (64, 3, 10)], ids=str)
def test_overfitting_probability_agrees_with_purgedcv(
    sessions: int, columns: int, blocks: int, change: Callable[[Array], Array]
) -> None:
    table = change(noise(sessions, sessions, columns))
    result = overfitting_probability(table, blocks)
    expected = probability_of_backtest_overfitting(table.T, blocks)
    # It lists the splits by their other half, and counts a logit of 0, the median, as no overfitting.
    np.testing.assert_allclose(result.logits[::-1], expected.logits, atol=1e-12)
    pairs = np.column_stack([result.in_sample, result.out_of_sample])[::-1]
    np.testing.assert_allclose(pairs, expected.is_oos_performance, atol=1e-9)
    assert result.probability == (expected.logits <= 0).mean()


def test_overfitting_probability_of_two_blocks_equals_pencil_numbers() -> None:
    first, second = np.array([0.01, 0.03]), np.array([-0.01, 0.01])  # ratios √2 and 0
    table = np.column_stack(
        [np.concatenate([first, second]), np.concatenate([second, first]), np.concatenate([-first, second])]
    )
    result = overfitting_probability(table, blocks=2)
    np.testing.assert_allclose(result.in_sample, [2**0.5, 2**0.5], rtol=1e-9)
    np.testing.assert_allclose(result.out_of_sample, [0.0, 0.0], atol=1e-9)
    np.testing.assert_allclose(result.logits, [np.log(1.5 / 2.5), 0.0], atol=1e-12)  # tied last; in the middle
    assert result.probability == 1.0


@pytest.mark.parametrize("leverage", [np.ones(7), np.arange(1, 8)])
def test_overfitting_probability_of_equal_configurations_is_one(leverage: Array) -> None:
    result = overfitting_probability(noise(0, 160, 1) * leverage, blocks=8)  # ratios differ by rounding alone
    assert (result.probability, set(result.logits)) == (1.0, {0.0})


def test_overfitting_probability_of_noise_is_near_a_half() -> None:
    results = [overfitting_probability(noise(seed, 504, 20), blocks=10).probability for seed in range(60)]
    assert np.mean(results) == pytest.approx(0.5, abs=0.08)  # 3 standard errors


def test_overfitting_probability_of_a_truly_better_configuration_is_near_zero() -> None:
    table = noise(1, 1008, 20, mean=0.0)
    table[:, 7] += 2e-3
    result = overfitting_probability(table)
    assert len(result.logits) == math.comb(16, 8)
    assert result.probability < 0.01
    assert np.median(result.out_of_sample) == pytest.approx(0.2, abs=0.05)


def test_overfitting_probability_in_chunks_is_the_same_and_needs_little_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = noise(2, 320, 500)
    tracemalloc.start()
    whole = overfitting_probability(table)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 200e6  # one table of all splits alone has 51 MB
    monkeypatch.setattr(significance, "_CELLS", 500 * 700)
    for part, other in zip(whole, overfitting_probability(table), strict=True):
        np.testing.assert_allclose(part, other, atol=1e-12)


@pytest.mark.parametrize(
    ("table", "blocks", "message"),
    [
        (np.zeros((100, 3)), 7, "even number from 2 to 20"),
        (np.zeros((100, 3)), 0, "even number from 2 to 20"),
        (np.zeros((100, 3)), 22, "even number from 2 to 20"),
        (np.zeros((100, 1)), 8, "1 configuration: .* give at least 2"),
        (np.zeros((15, 3)), 8, "15 sessions for 8 blocks: give at least 16 or ask for fewer"),
        (np.zeros(100), 8, "give sessions by configurations"),
        (np.where(np.arange(300).reshape(100, 3) == 31, np.nan, 0.0), 8, "session 10 of configuration 1"),
    ],
)
def test_overfitting_probability_of_bad_input_is_refused_with_the_remedy(
    table: Array, blocks: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        overfitting_probability(table, blocks)


def test_superior_agrees_with_a_direct_call_of_arch() -> None:
    rng = np.random.default_rng(3)
    market = noise(4, 400)
    table = market[:, None] + rng.normal(1e-4, 0.004, (400, 8)) * np.linspace(0.5, 3.0, 8)
    table[:, 2] -= 2e-3  # so bad that only the upper p-value counts it
    result = superior(table, market, seed=5, draws=499)
    excess = table - market[:, None]
    best = int(np.argmax(excess.mean(axis=0) / excess.std(axis=0)))
    block = math.ceil(optimal_block_length(excess[:, best])["stationary"].iloc[0])
    plain = SPA(-market, -table, block_size=block, seed=5, reps=2)
    plain.compute()
    deviation = np.sqrt(plain._loss_diff_var)  # arch's own long-run variance
    direct = SPA(-market / 1.0, -market[:, None] - excess / deviation, block_size=block, seed=5, reps=499)
    direct.compute()
    assert result.block_sessions == block
    assert [round(500 * p - 1) for p in result[:3]] == [round(499 * p) for p in direct.pvalues]
    assert 0.01 < result.p_lower <= result.p_consistent <= result.p_upper < 0.99


def test_superior_is_not_distracted_by_a_wild_configuration() -> None:
    market = noise(0, 500)
    steady = market + np.random.default_rng(1).normal(5e-4, 0.002, 500)  # 5.6 standard errors
    wild = market + np.random.default_rng(2).normal(0.0, 0.08, 500)
    assert superior(np.column_stack([steady, wild]), market).p_consistent < 0.01
    means = SPA(-market, -np.column_stack([steady, wild]), block_size=1, seed=0, reps=500)
    means.compute()
    assert means.pvalues["consistent"] > 0.1  # arch alone compares plain means


def test_superior_takes_the_block_length_of_the_steadiest_gain_not_of_the_largest() -> None:
    market = noise(0, 500)
    steady = slow_and_fat_tailed(1, 500, 1, ratio=0.2)[:, 0] * 0.1
    large = (noise(2, 500) - noise(2, 500).mean()) * 4 + 1e-3
    assert large.mean() > steady.mean()
    result = superior(market[:, None] + np.column_stack([large, steady]), market, draws=19)
    assert result.block_sessions == block_sessions(steady) > block_sessions(large)


def test_superior_under_a_true_null_rejects_at_its_level_and_finds_a_planted_excess() -> None:
    def p_value(seed: int, planted: float) -> float:
        table = slow_and_fat_tailed(seed, 250, 9)
        table[:, 3] += planted
        return superior(table[:, 1:], table[:, 0], seed, draws=199).p_consistent

    rejected = np.mean([p_value(seed, 0.0) <= 0.05 for seed in range(120)])
    assert rejected <= 0.12
    assert np.mean([p_value(seed, 4e-3) <= 0.05 for seed in range(20)]) >= 0.9


def test_superior_without_a_positive_excess_is_certain_of_the_null() -> None:
    market = noise(1)
    result = superior(np.column_stack([market - np.abs(noise(seed)) for seed in (2, 3)]), market)
    assert result[:3] == (1.0, 1.0, 1.0)


def test_superior_leaves_out_configurations_whose_excess_never_varies() -> None:
    market = noise(1)
    moving = market[:, None] + noise(2, columns=3, mean=5e-4)
    still = np.column_stack([market, market - 1e-3])
    assert superior(np.hstack([still, moving]), market) == superior(moving, market)
    assert superior(still, market) == (1.0, 1.0, 1.0, 1)
    assert superior(np.hstack([moving, market[:, None] + 1e-4]), market, draws=99) == (0.01, 0.01, 0.01, 1)


def test_superior_is_never_zero_and_depends_on_the_seed_alone() -> None:
    market = noise(1)
    table = market[:, None] + noise(2, columns=3, mean=1e-3)
    assert superior(table, market, seed=1) == superior(table, market, seed=1) != superior(table, market, seed=2)
    assert superior(table + 0.05, market, draws=199).p_upper == 1 / 200


@pytest.mark.parametrize(
    ("table", "market", "draws", "message"),
    [
        (np.zeros((19, 2)), np.zeros(19), 99, "19 sessions: give at least 20"),
        (np.zeros((30, 2)), np.zeros(31), 99, "30 sessions against 31"),
        (np.zeros((30, 0)), np.zeros(30), 99, "N at least 1"),
        (np.zeros((30, 2)), np.full(30, np.nan), 99, "benchmark_T holds a value that is not finite, at 0"),
        (np.full((30, 2), np.nan), np.zeros(30), 99, "session 0 of configuration 0"),
        (np.zeros((30, 2)), np.zeros(30), 0, "0 draws: give at least 1"),
    ],
)
def test_superior_of_bad_input_is_refused_with_the_remedy(
    table: Array, market: Array, draws: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        superior(table, market, draws=draws)


def plain_ledoit_wolf(pair_T2: Array, block: int, seed: int, draws: int) -> tuple[float, float, float, float]:
    """The difference per period with ddof 0, its error, the p-value and the critical distance, by loops."""
    returns = [pair_T2[:, 0] / np.std(pair_T2[:, 0]), pair_T2[:, 1] / np.std(pair_T2[:, 1])]
    sessions = len(pair_T2)

    def difference(v: Array) -> float:
        return float(v[0] / math.sqrt(v[2] - v[0] ** 2) - v[1] / math.sqrt(v[3] - v[1] ** 2))

    def gradient(v: Array) -> Array:
        steps = np.eye(4) * 1e-5
        return np.array([(difference(v + step) - difference(v - step)) / 2e-5 for step in steps])

    rows = np.array([[returns[0][t], returns[1][t], returns[0][t] ** 2, returns[1][t] ** 2] for t in range(sessions)])
    v = rows.mean(axis=0)
    y = rows - v
    u, d, w = np.linalg.svd(np.linalg.solve(y[:-1].T @ y[:-1], y[:-1].T @ y[1:]).T)
    a = u @ np.diag([min(value, 0.97) for value in d]) @ w
    e = np.array([y[t] - a @ y[t - 1] for t in range(1, sessions)])
    above = below = 0.0
    for column in e.T:
        slope, intercept = np.polyfit(column[:-1], column[1:], 1)
        variance = np.mean((column[1:] - slope * column[:-1] - intercept) ** 2)
        above += 4 * slope**2 * variance**2 / (1 - slope) ** 8
        below += variance**2 / (1 - slope) ** 4
    width = 2.6614 * (above / below * len(e)) ** 0.2
    psi = np.zeros((4, 4))
    for s in range(len(e)):
        for t in range(len(e)):
            x = abs(s - t) / width
            if x < 1:
                psi += np.outer(e[s], e[t]) * (1 - 6 * x**2 + 6 * x**3 if x <= 0.5 else 2 * (1 - x) ** 3)
    psi *= len(e) / (len(e) - 4) / len(e)
    colour = np.linalg.inv(np.eye(4) - a)
    error = math.sqrt(gradient(v) @ colour @ psi @ colour.T @ gradient(v) / sessions)

    count, distances = sessions // block, []
    for starts in np.random.default_rng(seed).integers(0, sessions, (draws, count)):
        blocks = [[rows[(start + i) % sessions] for i in range(block)] for start in starts]
        star = np.mean(np.concatenate(blocks), axis=0)
        psi_star = np.zeros((4, 4))
        for members in blocks:
            zeta = np.sum(members - star, axis=0) / math.sqrt(block)
            psi_star += np.outer(zeta, zeta) / count
        error_star = math.sqrt(gradient(star) @ psi_star @ gradient(star) / (count * block))
        distances.append(abs(difference(star) - difference(v)) / error_star)
    beyond = sum(distance >= abs(difference(v)) / error for distance in distances)
    return difference(v), error, (1 + beyond) / (1 + draws), sorted(distances)[round(0.95 * (draws + 1)) - 1]


@pytest.mark.parametrize(("seed", "block", "echo"), [(1, 1, 0.0), (2, 4, 0.0), (3, 7, 0.9)])
def test_sharpe_difference_equals_the_plain_loop(
    seed: int, block: int, echo: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = slow_and_fat_tailed(seed, 100, 2, ratio=0.3) * np.array([1.0, 4.0]) + np.array([2e-3, 0.0])
    pair[1:] += echo * pair[:-1]  # a VAR(1) leaves this over, so the kernel reaches over several lags
    monkeypatch.setattr(significance, "block_sessions", lambda values, bootstrap: block)
    result = sharpe_difference(pair[:, 0], pair[:, 1], seed, draws=99)
    value, error, p_value, reach = plain_ledoit_wolf(pair, block, seed, draws=99)
    year = (252 * 99 / 100) ** 0.5
    assert (result.difference, result.standard_error) == pytest.approx((value * year, error * year), rel=1e-6)
    assert result.p_value == p_value
    assert (result.lower, result.upper) == pytest.approx(
        ((value - reach * error) * year, (value + reach * error) * year), rel=1e-6
    )


def test_sharpe_difference_takes_the_block_length_of_the_linearised_difference(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[tuple[Array, str]] = []
    monkeypatch.setattr(
        significance, "block_sessions", lambda values, bootstrap: seen.append((values, bootstrap)) or 1000
    )
    pair = slow_and_fat_tailed(1, 100, 2, ratio=0.5) * 100
    result = sharpe_difference(pair[:, 0], pair[:, 1], draws=99)
    (values, bootstrap) = seen[0]
    z = (pair - pair.mean(axis=0)) / pair.std(axis=0)
    ratio = pair.mean(axis=0) / pair.std(axis=0)
    influence = z - ratio / 2 * (z**2 - 1)  # of each Sharpe ratio, textbook form
    assert bootstrap == "circular"
    np.testing.assert_allclose(values - values.mean(), influence[:, 0] - influence[:, 1], atol=1e-9)
    monkeypatch.setattr(significance, "block_sessions", lambda values, bootstrap: 20)
    assert result == sharpe_difference(pair[:, 0], pair[:, 1], draws=99)  # at least five blocks


def test_sharpe_difference_of_independent_normal_returns_has_memmel_s_error() -> None:
    pair = np.random.default_rng(0).multivariate_normal([0.02, 0.01], [[0.04, 0.02], [0.02, 0.02]], 4000)
    ratios, rho = pair.mean(axis=0) / pair.std(axis=0, ddof=1), np.corrcoef(pair.T)[0, 1]
    variance = (2 - 2 * rho + (ratios @ ratios - 2 * ratios.prod() * rho**2) / 2) / 4000
    result = sharpe_difference(pair[:, 0], pair[:, 1])
    assert result.difference == pytest.approx((ratios[0] - ratios[1]) * YEAR)
    assert result.standard_error == pytest.approx(variance**0.5 * YEAR, rel=0.05)
    assert result.upper - result.lower == pytest.approx(2 * 1.96 * result.standard_error, rel=0.05)
    assert result.p_value == pytest.approx(2 * stats.norm.sf(result.difference / result.standard_error), abs=0.03)


def test_sharpe_difference_under_a_true_null_rejects_at_five_percent() -> None:
    pairs = [slow_and_fat_tailed(seed, 250, 2) for seed in range(300)]
    results = [sharpe_difference(pair[:, 0], pair[:, 1], seed, draws=199) for seed, pair in enumerate(pairs)]
    rejected = np.mean([result.p_value <= 0.05 for result in results])
    assert rejected == pytest.approx(0.05, abs=0.038)  # three standard errors
    naive = [(moments(pair[:, 0]).ratio - moments(pair[:, 1]).ratio) * 250**0.5 for pair in pairs]
    assert np.mean(np.abs(naive) > 1.96) > 0.1  # the textbook error at correlation 0.5 is 1 / √T


def test_sharpe_difference_finds_a_true_difference_with_the_stated_power() -> None:
    pairs = [slow_and_fat_tailed(seed, 250, 2) for seed in range(100)]
    error = np.mean([sharpe_difference(pair[:, 0], pair[:, 1], draws=19).standard_error for pair in pairs])
    planted = smallest_detectable(float(error), power=0.8) / YEAR * 0.01
    found = [sharpe_difference(pair[:, 0] + planted, pair[:, 1], draws=199).p_value <= 0.05 for pair in pairs]
    assert 0.68 <= np.mean(found) <= 0.92


@pytest.mark.parametrize("draws", [19, 29, 199])
def test_sharpe_difference_rejects_just_when_its_interval_leaves_out_zero(draws: int) -> None:
    pairs = [slow_and_fat_tailed(seed, 120, 2) + np.array([0.0015, 0.0]) for seed in range(60)]
    results = [sharpe_difference(pair[:, 0], pair[:, 1], draws=draws) for pair in pairs]
    rejected = [result.p_value <= 0.05 for result in results]
    assert rejected == [not result.lower <= 0 <= result.upper for result in results]
    assert 5 < sum(rejected) < 55


def test_sharpe_difference_changes_sign_with_the_order_and_not_with_the_unit() -> None:
    pair = slow_and_fat_tailed(1, 300, 2)
    ahead = sharpe_difference(pair[:, 0], pair[:, 1], draws=199)
    back = sharpe_difference(pair[:, 1] * 100, pair[:, 0], draws=199)
    assert (back.difference, back.lower, back.upper) == pytest.approx((-ahead.difference, -ahead.upper, -ahead.lower))
    assert (back.standard_error, back.p_value) == pytest.approx((ahead.standard_error, ahead.p_value))
    assert sharpe_difference(pair[:, 0], pair[:, 1], seed=1, draws=199) != ahead


def test_sharpe_difference_in_chunks_is_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = slow_and_fat_tailed(1, 300, 2)
    whole = sharpe_difference(pair[:, 0], pair[:, 1], draws=199)
    monkeypatch.setattr(significance, "_CELLS", 300 * 7)
    assert sharpe_difference(pair[:, 0], pair[:, 1], draws=199) == pytest.approx(whole)


@pytest.mark.parametrize("factor", [1.0, 3.0, 0.7])
def test_sharpe_difference_from_a_multiple_of_itself_is_zero_and_certain(factor: float) -> None:
    result = sharpe_difference(noise(1), noise(1) * factor, draws=99)
    assert (result.standard_error, result.p_value) == (0.0, 1.0)
    assert (result.difference, result.lower, result.upper) == pytest.approx((0.0, 0.0, 0.0), abs=1e-12)


def test_sharpe_difference_from_returns_that_never_vary_is_the_ratio_itself() -> None:
    returns = noise(1, mean=1e-3)
    for still in (np.zeros(504), np.full(504, 0.01)):
        result = sharpe_difference(returns, still)
        assert (result.difference, result.lower, result.upper) == pytest.approx(tuple(sharpe_interval(returns)))
    assert sharpe_difference(np.zeros(504), np.full(504, 0.01)) == (0.0, 0.0, 1.0, 0.0, 0.0)


def test_sharpe_difference_of_a_single_trade_claims_nothing() -> None:
    once = np.zeros(100)
    once[50] = 0.2
    result = sharpe_difference(once, np.zeros(100), draws=199)
    assert result.p_value > 0.3
    assert (result.lower, result.upper) == (-math.inf, math.inf)


@pytest.mark.parametrize(
    ("first", "second", "draws", "message"),
    [
        (np.zeros(19), np.zeros(19), 99, "first_T has 19 sessions: give at least 20"),
        (np.zeros(30), np.zeros(31), 99, "30 sessions against 31"),
        (np.zeros(30), np.full(30, np.inf), 99, "second_T holds a value that is not finite"),
        (np.zeros(30), np.zeros(30), -1, "-1 draws"),
    ],
)
def test_sharpe_difference_of_bad_input_is_refused_with_the_remedy(
    first: Array, second: Array, draws: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        sharpe_difference(first, second, draws=draws)


def test_sharpe_interval_of_independent_returns_is_the_textbook_one() -> None:
    returns = noise(3, 2000)
    ratio, error = metrics.sharpe(returns)
    assert error is not None
    interval = sharpe_interval(returns)
    assert interval.ratio == pytest.approx(ratio)
    assert (interval.lower, interval.upper) == pytest.approx((ratio - 1.96 * error, ratio + 1.96 * error), abs=0.1)
    wider = sharpe_interval(returns, confidence=0.99)
    assert (wider.upper - wider.lower) / (interval.upper - interval.lower) == pytest.approx(2.576 / 1.96, abs=0.1)


def test_sharpe_interval_of_slow_returns_holds_the_truth_as_often_as_it_says() -> None:
    truth = 0.05 * YEAR
    intervals = [sharpe_interval(slow_and_fat_tailed(seed, 250, 1)[:, 0], seed, 0.9, 199) for seed in range(300)]
    held = np.mean([interval.lower <= truth <= interval.upper for interval in intervals])
    assert held == pytest.approx(0.9, abs=0.05)


def test_sharpe_interval_of_returns_that_never_vary_is_zero() -> None:
    assert sharpe_interval(np.full(50, 0.01)) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 95.0])
def test_sharpe_interval_at_an_impossible_confidence_is_refused(confidence: float) -> None:
    with pytest.raises(ValueError, match="give a share between 0 and 1"):
        sharpe_interval(noise(1), confidence=confidence)


def test_sharpe_interval_of_too_few_sessions_or_draws_is_refused() -> None:
    with pytest.raises(ValueError, match="19 sessions: give at least 20"):
        sharpe_interval(noise(1, 19))
    with pytest.raises(ValueError, match="0 draws"):
        sharpe_interval(noise(1), draws=0)


def test_value_at_risk_and_shortfall_equal_pencil_numbers() -> None:
    returns = np.random.default_rng(0).permutation(-np.arange(1.0, 101.0) / 1000)  # losses of 0.1 % to 10 %
    assert value_at_risk(returns) == pytest.approx(0.095)  # the sixth largest
    assert expected_shortfall(returns) == pytest.approx((0.096 + 0.097 + 0.098 + 0.099 + 0.1) / 5)
    assert value_at_risk(returns[returns < -0.07], 0.95) == pytest.approx(0.099)  # of 30: 28.5 are inside
    assert expected_shortfall(returns[returns < -0.07], 0.95) == pytest.approx((0.1 + 0.5 * 0.099) / 1.5)
    assert value_at_risk(-returns) == pytest.approx(-0.006)  # nothing but gains


@pytest.mark.parametrize("level", [0.01, 0.5, 0.9, 0.95, 0.975, 0.99])
@pytest.mark.parametrize("sessions", [2, 7, 20, 100, 333])
def test_value_at_risk_and_shortfall_agree_with_skfolio(sessions: int, level: float) -> None:
    returns = noise(sessions, sessions)
    assert value_at_risk(returns, level) == pytest.approx(measures.value_at_risk(returns, level), abs=1e-12)
    assert expected_shortfall(returns, level) == pytest.approx(measures.cvar(returns, level), abs=1e-12)


@pytest.mark.parametrize("level", [0.0, 1.0, 95.0])
def test_value_at_risk_at_an_impossible_level_is_refused(level: float) -> None:
    for measure in (value_at_risk, expected_shortfall):
        with pytest.raises(ValueError, match="give a share between 0 and 1"):
            measure(noise(1), level)


def test_beta_equals_pencil_numbers() -> None:
    market = np.array([0.01, 0.02, 0.03, 0.04])
    assert beta(0.5 * market + np.array([0.001, -0.001, -0.001, 0.001]), market) == pytest.approx(0.5)
    assert beta(np.array([0.0, 0.0, 0.0, 0.04]), market) == pytest.approx(1.2)


def test_beta_to_nothing_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValueError, match="give the returns of an index"):
        beta(noise(1), np.full(504, 0.01))
    with pytest.raises(ValueError, match="504 sessions against 503"):
        beta(noise(1), noise(1, 503))


def test_smallest_detectable_equals_pencil_numbers() -> None:
    assert smallest_detectable(0.5) == pytest.approx(0.5 * (1.959964 + 0.841621))
    assert smallest_detectable(1.0, confidence=0.9, power=0.5) == pytest.approx(1.644854)


@pytest.mark.parametrize("bootstrap", ["stationary", "circular"])
def test_block_sessions_are_those_of_arch(bootstrap: str) -> None:
    slow = slow_and_fat_tailed(1, 500, 1)[:, 0]
    expected = optimal_block_length(slow)[bootstrap].iloc[0]
    assert block_sessions(slow, bootstrap) == math.ceil(expected) > 3
    assert block_sessions(slow) == math.ceil(optimal_block_length(slow)["stationary"].iloc[0])


def test_block_sessions_without_an_optimum_are_the_cube_root() -> None:
    assert block_sessions(np.zeros(1000)) == 10
    assert block_sessions(np.full(1000, 0.1)) == 10
    assert block_sessions(noise(1, 19)) == 3
    assert block_sessions(noise(1)) == metrics._block_sessions(noise(1))


def test_every_split_has_half_of_the_blocks_once() -> None:
    rows = np.concatenate(list(significance._splits(6, 7)))
    assert [tuple(np.flatnonzero(row)) for row in rows] == list(combinations(range(6), 3))
