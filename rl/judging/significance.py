"""How surely a Sharpe ratio is not luck: after many trials, against a benchmark, and between two policies.

Pure functions. Returns are simple, one per session, net of costs. Sharpe ratios are over cash at 0 % and per
session unless a name or a docstring says annual; a year has 252 sessions. Returns that do not vary have the ratio 0.

Axes: T sessions, N configurations, S blocks of sessions, C splits or draws, K series that are compared, P = 2K moments.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import combinations, islice
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np

from envs.contract import Floats
from envs.costs import SESSIONS_PER_YEAR

MINIMUM_SESSIONS = 20
"""With fewer, a bootstrap is too narrow to be believed; functions that resample refuse them."""
MAXIMUM_BLOCKS = 20
"""Of cross-validation: 184,756 splits."""
_NO_VARIANCE = 1e-12
_ROUNDING = 1e-16
"""Squared error of a difference of ratios per period that is rounding, as of a series and its double."""
_NORMAL = NormalDist()
_YEAR = SESSIONS_PER_YEAR**0.5
_CELLS = 1_000_000


class Shape(NamedTuple):
    """What the uncertainty of a Sharpe ratio depends on."""

    ratio: float
    """Sharpe ratio per period, from the standard deviation with T − 1."""
    skew: float
    """0 for normal returns."""
    kurtosis: float
    """Raw: 3 for normal returns."""
    periods: int
    """T."""


class Deflated(NamedTuple):
    """A Sharpe ratio after the search that found it."""

    probability: float
    """That the true ratio is above `threshold`."""
    threshold: float
    """SR0 per period: what the best of the trials was to show if none had skill."""


class Overfitting(NamedTuple):
    """How the configuration that was best in one half of the sessions did in the other, over all splits."""

    probability: float
    """PBO: how often it was no better than the median."""
    logits: Floats
    """`[C]`; of its relative rank out of sample, zero at the median, negative below."""
    in_sample: Floats
    """`[C]`; its Sharpe ratio per period where it was chosen."""
    out_of_sample: Floats
    """`[C]`; its Sharpe ratio per period in the other half."""

    @property
    def loss(self) -> float:
        """Probability of loss: how often its mean out of sample was zero or below."""
        return float((self.out_of_sample <= 0.0).mean())


class Superior(NamedTuple):
    """P-values of the claim that no configuration beats the benchmark."""

    p_lower: float
    """Bound from below: all configurations that did worse are left out."""
    p_consistent: float
    """The one to use: only those that did much worse are left out."""
    p_upper: float
    """Bound from above: none is left out."""
    block_sessions: int
    """Mean block length of the bootstrap."""


class Difference(NamedTuple):
    """Annual Sharpe ratio of one policy less that of another."""

    difference: float
    """Annual."""
    standard_error: float
    """Annual."""
    p_value: float
    """Two-sided, of equal ratios."""
    lower: float
    """Of the 95 % interval, annual; infinite where draws often hold no return that varies."""
    upper: float
    """Of the 95 % interval, annual."""


class Interval(NamedTuple):
    """Annual Sharpe ratio with an interval; its ends are infinite where draws often hold no return that varies."""

    ratio: float
    """Annual."""
    lower: float
    """Annual."""
    upper: float
    """Annual."""


def moments(returns: Floats) -> Shape:
    """Returns the Sharpe ratio per period, the skew and the raw kurtosis of `returns`, `[T]`.

    Skew and kurtosis are those of the sample, not corrected for its size. Returns that do not vary, as those of an
    account that never traded, have the ratio 0 and the shape of normal ones: they show nothing.

    Raises:
        ValueError: Fewer than 2 periods, or a value that is not finite.
    """
    returns = _series(returns, "returns")
    deviation = float(returns.std(ddof=1))
    if deviation < _NO_VARIANCE:
        return Shape(0.0, 0.0, 3.0, len(returns))
    centred = (returns - returns.mean()) / returns.std()
    return Shape(
        float(returns.mean()) / deviation, float((centred**3).mean()), float((centred**4).mean()), len(returns)
    )


def sharpe_error(shape: Shape) -> float:
    """Returns √((1 − g3·SR + (g4−1)/4·SR²) / (T−1)), the standard error of a Sharpe ratio per period.

    Bailey and López de Prado (2012), after Mertens (2002). It knows skew and fat tails but no serial correlation.
    """
    return math.sqrt(_inflation(shape) / (shape.periods - 1))


def probabilistic_sharpe(shape: Shape, threshold: float = 0.0) -> float:
    """Returns PSR = Φ((SR − SR*) / error), the probability that the true Sharpe ratio is above `threshold`.

    Bailey and López de Prado (2012), with `sharpe_error`. For one policy that was chosen beforehand: of the best of
    several it says too much, see `deflated_sharpe`.

    Args:
        shape: Of the returns, see `moments`.
        threshold: SR*, per period.
    """
    gap, error = shape.ratio - threshold, sharpe_error(shape)
    if error == 0.0:  # two values only, in just such a share that the terms cancel
        return 0.5 + 0.5 * float(np.sign(gap))
    return _NORMAL.cdf(gap / error)


def expected_maximum(trials: int) -> float:
    """Returns E[max] ≈ (1−G)·Z(1−1/N) + G·Z(1−1/(N·e)) of N independent standard normals; 0 for one.

    Bailey and López de Prado (2014); G is Euler's constant, Z the normal quantile. At N = 2 it is 8 % too low, from
    N = 3 on within 3 %.

    Raises:
        ValueError: Fewer than 1 trial.
    """
    if trials < 1:
        raise ValueError(f"{trials} trials: count every configuration that was scored, at least 1")
    if trials == 1:
        return 0.0
    first, second = (_NORMAL.inv_cdf(1.0 - 1.0 / (trials * scale)) for scale in (1.0, math.e))
    return (1.0 - np.euler_gamma) * first + np.euler_gamma * second


def deflated_sharpe(shape: Shape, trials: int, spread: float) -> Deflated:
    """Returns DSR = PSR(SR0) with SR0 = spread · E[max], what the best of N trials shows without any skill.

    Bailey and López de Prado (2014). Trials that resemble each other count as independent here, which makes the
    threshold too high, never too low.

    Args:
        shape: Of the returns of the trial that was chosen.
        trials: N, every configuration that was ever scored.
        spread: Standard deviation over the trials of their Sharpe ratios per period.

    Raises:
        ValueError: Fewer than 1 trial, or a spread that is negative or not finite.
    """
    if not (math.isfinite(spread) and spread >= 0.0):
        raise ValueError(f"spread is {spread}: give the standard deviation of the trials' Sharpe ratios per period")
    threshold = spread * expected_maximum(trials)
    return Deflated(probabilistic_sharpe(shape, threshold), threshold)


def minimum_track_record(shape: Shape, threshold: float = 0.0, confidence: float = 0.95) -> float:
    """Returns MinTRL = 1 + (1 − g3·SR + (g4−1)/4·SR²)·(Z / (SR−SR*))², the periods until PSR reaches `confidence`.

    Bailey and López de Prado (2012). Infinite where the ratio is not above `threshold`.

    Args:
        shape: Of the returns so far.
        threshold: SR*, per period.
        confidence: Above a half and below 1.

    Raises:
        ValueError: `confidence` is out of its range.
    """
    if not 0.5 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}: give a share above 0.5 and below 1, such as 0.95")
    if shape.ratio <= threshold:
        return math.inf
    return 1.0 + _inflation(shape) * (_NORMAL.inv_cdf(confidence) / (shape.ratio - threshold)) ** 2


def minimum_backtest_years(trials: int, annual_ratio: float) -> float:
    """Returns MinBTL = (E[max] / SR)², the years below which N trials without skill show `annual_ratio` or more.

    Bailey, Borwein, López de Prado and Zhu (2014). Infinite for a ratio that is not positive.

    Args:
        trials: N, every configuration that was ever scored.
        annual_ratio: SR, the annual Sharpe ratio that luck is not to reach.

    Raises:
        ValueError: Fewer than 1 trial.
    """
    best = expected_maximum(trials)
    return (best / annual_ratio) ** 2 if annual_ratio > 0.0 else math.inf


def overfitting_probability(returns_TN: Floats, blocks: int = 16) -> Overfitting:
    """Returns PBO by combinatorially symmetric cross-validation, over all C(S, S/2) halves of S blocks.

    n* has the highest Sharpe ratio in sample, w = rank_out(n*) / (N+1), PBO = share of log(w / (1−w)) ≤ 0. Bailey,
    Borwein, López de Prado and Zhu (2017). Near 0.5 for noise. Equal ratios share their mean rank. Blocks differ by a
    session where S does not divide T. Nothing is purged between the halves: returns of both sides of a border may
    stem from one position, which makes PBO too low by a little.

    Args:
        returns_TN: Of all configurations over the same sessions, out of sample if they were trained.
        blocks: S, even, at most `MAXIMUM_BLOCKS`.

    Raises:
        ValueError: The table has no two configurations or not 2 sessions for each block, a value is not finite, or
            `blocks` is odd or out of its range.
    """
    returns_TN = _table(returns_TN, "returns_TN")
    sessions, configurations = returns_TN.shape
    if blocks % 2 or not 2 <= blocks <= MAXIMUM_BLOCKS:
        raise ValueError(f"blocks is {blocks}: give an even number from 2 to {MAXIMUM_BLOCKS}")
    if configurations < 2:
        raise ValueError(f"{configurations} configuration: overfitting is of a choice, give at least 2")
    if sessions < 2 * blocks:
        raise ValueError(f"{sessions} sessions for {blocks} blocks: give at least {2 * blocks} or ask for fewer blocks")
    sums_SK = _block_sums(returns_TN, blocks)
    halves = [_chosen(inside_CS, sums_SK) for inside_CS in _splits(blocks, max(1, _CELLS // configurations))]
    in_sample, out_of_sample, rank = (np.concatenate(parts) for parts in zip(*halves, strict=True))
    logits: Floats = np.log(rank / (configurations + 1 - rank))
    return Overfitting(float((logits <= 0.0).mean()), logits, in_sample, out_of_sample)


def superior(returns_TN: Floats, benchmark_T: Floats, seed: int = 0, draws: int = 1999) -> Superior:
    """Returns p-values of Hansen's test of superior predictive ability (2005): does any configuration beat a benchmark.

    By `arch.bootstrap.SPA` with losses = −returns and a stationary bootstrap, its block length that of Politis and
    White (2004) for the excess with the best ratio of mean to deviation. Each excess is first divided by its long-run
    deviation: arch takes the maximum of plain means, which lets one wild configuration hide a steady one, where Hansen
    takes that of t-statistics. A p-value is (1 + draws beyond) / (1 + draws), never 0, and 1 if no mean excess is
    positive.

    An excess that never varies needs no test. One of zero or less cannot be superior and is left out; one above zero
    is superior for certain.

    Args:
        returns_TN: Of all configurations that were tried, or the chosen one would be judged as if it were the only.
        benchmark_T: Of the benchmark over the same sessions.
        seed: Of the bootstrap.
        draws: Of the bootstrap.

    Raises:
        ValueError: Fewer than `MINIMUM_SESSIONS` sessions, other sessions in the benchmark, no configuration, no draw,
            or a value that is not finite.
    """
    returns_TN = _table(returns_TN, "returns_TN")
    benchmark_T = _series(benchmark_T, "benchmark_T", MINIMUM_SESSIONS)
    _same_sessions(len(returns_TN), len(benchmark_T))
    _some_draws(draws)
    excess_TN = returns_TN - benchmark_T[:, None]
    varies_N = excess_TN.std(axis=0) > _NO_VARIANCE
    least = 1.0 / (1.0 + draws)
    if (excess_TN[:, ~varies_N].mean(axis=0) > _NO_VARIANCE).any():
        return Superior(least, least, least, 1)
    if not varies_N.any():
        return Superior(1.0, 1.0, 1.0, 1)
    excess_TN = excess_TN[:, varies_N]
    ratio_N = excess_TN.mean(axis=0) / excess_TN.std(axis=0)
    block = block_sessions(excess_TN[:, ratio_N.argmax()])
    if ratio_N.max() <= 0.0:
        return Superior(1.0, 1.0, 1.0, block)
    from arch.bootstrap import SPA  # noqa: PLC0415  (three seconds)

    losses_TN = -excess_TN / _long_run_deviation(excess_TN, block)
    test = SPA(np.zeros(len(losses_TN)), losses_TN, block_size=block, reps=draws, bootstrap="stationary", seed=seed)
    test.compute()
    lower, consistent, upper = ((1.0 + draws * float(p)) * least for p in test.pvalues)
    return Superior(lower, consistent, upper, block)


def sharpe_difference(first_T: Floats, second_T: Floats, seed: int = 0, draws: int = 3999) -> Difference:
    """Returns the annual Sharpe ratio of `first_T` less that of `second_T`, with its uncertainty.

    Ledoit and Wolf (2008). The standard error is by the delta method, from a covariance of the moments with Parzen's
    kernel, prewhitened by a VAR(1), with the automatic bandwidth of Andrews (1991) and Andrews and Monahan (1992). The
    p-value is (1 + draws beyond) / (1 + draws) of a studentised circular block bootstrap, the interval the symmetric
    one of the same draws. Two departures: the block length is that of Politis and White (2004) for the linearised
    difference, not their calibration by simulation; and returns are first scaled to unit variance, so that the
    bandwidth does not depend on their unit. Returns that never vary have the ratio 0 without error.

    Args:
        first_T: Returns.
        second_T: Returns over the same sessions.
        seed: Of the bootstrap.
        draws: Of the bootstrap. From 19 on, p ≤ 0.05 just when the interval leaves out 0.

    Raises:
        ValueError: Fewer than `MINIMUM_SESSIONS` sessions, series of different lengths, no draw, or a value that is
            not finite.
    """
    first_T = _series(first_T, "first_T", MINIMUM_SESSIONS)
    second_T = _series(second_T, "second_T", MINIMUM_SESSIONS)
    _same_sessions(len(first_T), len(second_T))
    _some_draws(draws)
    estimate = _studentised(np.column_stack([first_T, second_T]), np.array([1.0, -1.0]), seed, draws)
    distance = abs(estimate.value) / estimate.error if estimate.error > 0.0 else 0.0
    reach = _reach(estimate, 0.95)
    return Difference(
        difference=estimate.value * _YEAR,
        standard_error=estimate.error * _YEAR,
        p_value=(1 + int((estimate.distances >= distance).sum())) / (1 + draws),
        lower=(estimate.value - reach) * _YEAR,
        upper=(estimate.value + reach) * _YEAR,
    )


def sharpe_interval(returns: Floats, seed: int = 0, confidence: float = 0.95, draws: int = 3999) -> Interval:
    """Returns the annual Sharpe ratio of `returns` with a symmetric interval, by the method of `sharpe_difference`.

    Studentised circular block bootstrap. In 600 histories each of fat-tailed, autocorrelated returns (100 to 1,000
    sessions, with and without volatility clusters) its 95 % interval held the truth in 93 to 96 % of them, percentiles
    of a stationary bootstrap in 90 to 93 %, `sharpe_error` in 85 to 90 %. Returns that never vary give 0, 0, 0.

    Raises:
        ValueError: Fewer than `MINIMUM_SESSIONS` sessions, `confidence` is not between 0 and 1, no draw, or a value
            that is not finite.
    """
    returns = _series(returns, "returns", MINIMUM_SESSIONS)
    _some_draws(draws)
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}: give a share between 0 and 1, such as 0.95")
    estimate = _studentised(returns[:, None], np.ones(1), seed, draws)
    reach = _reach(estimate, confidence)
    return Interval(estimate.value * _YEAR, (estimate.value - reach) * _YEAR, (estimate.value + reach) * _YEAR)


def value_at_risk(returns: Floats, level: float = 0.95) -> float:
    """Returns the smallest loss that the next one exceeds with a frequency of at most 1 − `level`, as in the past.

    Historical, per session, a loss positive: inf{l: F(l) ≥ level} with F the share of losses up to l. That is always
    one of the losses, never a mean of two: of 100 sessions at 0.95 the sixth largest.

    Raises:
        ValueError: `level` is not between 0 and 1, fewer than 2 sessions, or a value that is not finite.
    """
    losses, inside = _losses(returns, level)
    return float(losses[max(math.ceil(inside), 1) - 1])


def expected_shortfall(returns: Floats, level: float = 0.95) -> float:
    """Returns the mean of the worst 1 − `level` of all losses.

    Historical, per session, a loss positive; a loss on the border counts in part (Acerbi and Tasche 2002), so of 30
    sessions at 0.95 it is the worst and half of the second. With fewer than 1 / (1 − level) sessions it is the worst.

    Raises:
        ValueError: `level` is not between 0 and 1, fewer than 2 sessions, or a value that is not finite.
    """
    losses, inside = _losses(returns, level)
    tail = len(losses) - inside
    whole = min(int(tail), len(losses))
    weights = np.zeros(len(losses))
    weights[len(losses) - whole :] = 1.0
    if whole < len(losses):
        weights[len(losses) - whole - 1] = tail - whole
    return float(losses @ weights / tail)


def beta(returns: Floats, market: Floats) -> float:
    """Returns the slope of `returns` on `market`, cov / var, over the same sessions.

    Raises:
        ValueError: Different lengths, a market that never varies, fewer than 2 sessions, or a value that is not finite.
    """
    returns, market = _series(returns, "returns"), _series(market, "market")
    _same_sessions(len(returns), len(market))
    centred = market - market.mean()
    if market.std() < _NO_VARIANCE:
        raise ValueError("the market never varies, so nothing has a beta to it: give the returns of an index")
    return float(centred @ returns / (centred @ centred))


def smallest_detectable(standard_error: float, confidence: float = 0.95, power: float = 0.8) -> float:
    """Returns (Z(1−α/2) + Z(power)) · error, the true difference that a two-sided test finds with that `power`.

    Say it beside a difference that was not found: with a smaller one the test had no fair chance. The unit is that of
    `standard_error`.
    """
    return (_NORMAL.inv_cdf(0.5 + 0.5 * confidence) + _NORMAL.inv_cdf(power)) * standard_error


def block_sessions(values: Floats, bootstrap: Literal["stationary", "circular"] = "stationary") -> int:
    """Returns the block length of Politis and White (2004; corrected 2009) for the mean of `values`, at least 1.

    The cube root of T where theirs does not exist: fewer than `MINIMUM_SESSIONS` values, or values that do not vary.
    """
    from arch.bootstrap import optimal_block_length  # noqa: PLC0415  (three seconds)

    if len(values) >= MINIMUM_SESSIONS and float(values.std()) > _NO_VARIANCE:
        with np.errstate(divide="ignore", invalid="ignore"):  # a stretch of equal returns correlates with nothing
            optimal = float(optimal_block_length(values)[bootstrap].iloc[0])
        if math.isfinite(optimal):
            return max(1, math.ceil(optimal))
    return math.ceil(len(values) ** (1 / 3))


def _series(values: Floats, name: str, least: int = 2) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 1:
        raise ValueError(f"{name} has the shape {values.shape}: give one row of returns, [T]")
    if len(values) < least:
        raise ValueError(f"{name} has {len(values)} sessions: give at least {least}")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} holds a value that is not finite, at {int(np.argmin(np.isfinite(values)))}: drop it")
    return values


def _table(values: Floats, name: str) -> Floats:
    values = np.asarray(values, dtype=np.float64)
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(f"{name} has the shape {values.shape}: give sessions by configurations, [T, N], N at least 1")
    if not np.isfinite(values).all():
        session, configuration = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"{name} holds a value that is not finite, at session {session} of configuration {configuration}: "
            "give sessions that all configurations cover"
        )
    return values


def _same_sessions(first: int, second: int) -> None:
    if first != second:
        raise ValueError(f"{first} sessions against {second}: give both over the same sessions")


def _some_draws(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"{draws} draws: give at least 1, or better 1,999")


def _inflation(shape: Shape) -> float:
    # never negative for moments of one sample, as g4 ≥ 1 + g3²; given ones and rounding may be
    return max(1.0 - shape.skew * shape.ratio + (shape.kurtosis - 1.0) / 4.0 * shape.ratio**2, 0.0)


def _block_sums(returns_TN: Floats, blocks: int) -> Floats:
    """Returns the number of sessions, the sums and the sums of squares of each block, `[S, 1 + 2N]`."""
    size, rest = divmod(len(returns_TN), blocks)
    sizes = np.full(blocks, size) + (np.arange(blocks) < rest)
    starts = np.cumsum(sizes) - sizes
    return np.hstack([sizes[:, None], np.add.reduceat(returns_TN, starts), np.add.reduceat(returns_TN**2, starts)])


def _splits(blocks: int, rows: int) -> Iterator[Floats]:
    """Yields which blocks are in sample, 1 or 0, `[C, S]`, at most `rows` splits at a time, in lexicographic order."""
    halves = combinations(range(blocks), blocks // 2)
    while chunk := list(islice(halves, rows)):
        inside = np.zeros((len(chunk), blocks))
        np.put_along_axis(inside, np.array(chunk), 1.0, axis=1)
        yield inside


def _chosen(inside_CS: Floats, sums_SK: Floats) -> tuple[Floats, Floats, Floats]:
    """Returns the ratio in sample and out of sample, and the rank there, of the best in sample; each `[C]`."""
    inner_CN, outer_CN = _ratios(inside_CS @ sums_SK), _ratios((1.0 - inside_CS) @ sums_SK)
    best_C1 = inner_CN.argmax(axis=1)[:, None]
    inner_C1, outer_C1 = (np.take_along_axis(ratios, best_C1, axis=1) for ratios in (inner_CN, outer_CN))
    slack_C1 = 1e-9 * (1.0 + np.abs(outer_C1))  # equal columns differ by rounding
    below_C = (outer_CN < outer_C1 - slack_C1).sum(axis=1)
    within_C = (outer_CN <= outer_C1 + slack_C1).sum(axis=1)
    return inner_C1[:, 0], outer_C1[:, 0], (below_C + within_C + 1) / 2.0


def _ratios(sums_CK: Floats) -> Floats:
    """Returns Sharpe ratios per period, `[C, N]`, from numbers of sessions, sums and sums of squares, `[C, 1 + 2N]`."""
    sessions_C1 = sums_CK[:, :1]
    total_CN, squares_CN = np.split(sums_CK[:, 1:], 2, axis=1)
    residual_CN = squares_CN - total_CN**2 / sessions_C1
    varies_CN = residual_CN > 1e-12 * squares_CN  # less is rounding
    spread_CN = np.sqrt(np.where(varies_CN, residual_CN, 1.0) / (sessions_C1 - 1.0))
    return np.where(varies_CN, total_CN / sessions_C1 / spread_CN, 0.0)


def _long_run_deviation(values_TN: Floats, block: int) -> Floats:
    """Returns the deviation of √T · mean under a stationary bootstrap, `[N]`, positive: Politis and Romano (1994)."""
    sessions = len(values_TN)
    spectrum = np.fft.rfft(values_TN - values_TN.mean(axis=0), 2 * sessions, axis=0)
    covariance_TN = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:sessions] / sessions
    share, stay = np.arange(1, sessions) / sessions, 1.0 - 1.0 / block
    lags = np.arange(1, sessions)
    weights = (1.0 - share) * stay**lags + share * stay ** (sessions - lags)
    result: Floats = np.sqrt(covariance_TN[0] + 2.0 * weights @ covariance_TN[1:])
    return result


class _Estimate(NamedTuple):
    value: float
    error: float
    distances: Floats


def _studentised(returns_TK: Floats, contrast_K: Floats, seed: int, draws: int) -> _Estimate:
    """Returns Σ contrast · Sharpe per period, its error, and |value* − value| / error* of each draw, `[C]`."""
    scale_K = returns_TK.std(axis=0)
    scaled_TK = np.where(scale_K > _NO_VARIANCE, returns_TK / np.where(scale_K > _NO_VARIANCE, scale_K, 1.0), 0.0)
    values_TP = np.hstack([scaled_TK, scaled_TK**2])
    sessions = len(values_TP)
    moments_1P = values_TP.mean(axis=0)[None]
    value, slope_1P = _contrast(moments_1P, contrast_K)
    covariance_PP = _long_run_covariance(values_TP - moments_1P)
    variance = float((slope_1P @ covariance_PP @ slope_1P.T)[0, 0]) / sessions
    block = min(block_sessions(values_TP @ slope_1P[0], "circular"), sessions // 5)
    drawn_CP, covariance_CPP = _circular_blocks(values_TP, block, seed, draws)
    value_C, slope_CP = _contrast(drawn_CP, contrast_K)
    used = sessions // block * block
    variance_C = np.einsum("cp,cpq,cq->c", slope_CP, covariance_CPP, slope_CP) / used
    gap_C = np.abs(value_C - value)
    distances = np.full(draws, np.inf)  # of a draw that shows no error: nothing is surely within reach
    np.divide(gap_C, np.sqrt(np.maximum(variance_C, 0.0)), out=distances, where=variance_C > _ROUNDING)
    error = math.sqrt(variance) if variance > _ROUNDING else 0.0
    sample = ((sessions - 1) / sessions) ** 0.5  # the ratio of `moments` divides by T − 1
    return _Estimate(float(value[0]) * sample, error * sample, distances)


def _reach(estimate: _Estimate, confidence: float) -> float:
    return _quantile(estimate.distances, confidence) * estimate.error if estimate.error > 0.0 else 0.0


def _contrast(moments_CP: Floats, contrast_K: Floats) -> tuple[Floats, Floats]:
    """Returns Σ c·m/√(s−m²), `[C]`, and its gradient, `[C, P]`, from means m and mean squares s; 0 without variance."""
    mean_CK, square_CK = np.split(moments_CP, 2, axis=1)
    variance_CK = square_CK - mean_CK**2
    inverse_CK = np.where(variance_CK > _NO_VARIANCE, np.maximum(variance_CK, _NO_VARIANCE) ** -0.5, 0.0)
    weight_CK = contrast_K * inverse_CK**3
    return (mean_CK * inverse_CK) @ contrast_K, np.hstack([weight_CK * square_CK, -0.5 * weight_CK * mean_CK])


def _circular_blocks(values_TP: Floats, block: int, seed: int, draws: int) -> tuple[Floats, Floats]:
    """Returns the means, `[C, P]`, of circular block bootstrap draws and the covariance of each, `[C, P, P]`.

    Both follow from sums over blocks, so a draw is only how often each block is in it. A draw has as many sessions as
    fit in whole blocks.
    """
    sessions, size = values_TP.shape
    wrapped = np.concatenate([values_TP, values_TP[: block - 1]])
    sums_TP = np.lib.stride_tricks.sliding_window_view(wrapped, block, axis=0).sum(axis=-1)
    products = (sums_TP[:, :, None] * sums_TP[:, None, :]).reshape(sessions, -1)
    table = np.hstack([sums_TP, products])
    count = sessions // block
    random = np.random.default_rng(seed)
    totals = np.empty((draws, table.shape[1]))
    rows = max(1, _CELLS // sessions)
    for first in range(0, draws, rows):
        part = totals[first : first + rows]
        starts = random.integers(0, sessions, (len(part), count)) + sessions * np.arange(len(part))[:, None]
        part[:] = np.bincount(starts.ravel(), minlength=part.shape[0] * sessions).reshape(-1, sessions) @ table
    means = totals[:, :size] / (count * block)
    covariance = totals[:, size:].reshape(-1, size, size) / (count * block)
    return means, covariance - block * means[:, :, None] * means[:, None, :]


def _long_run_covariance(centred_TP: Floats) -> Floats:
    """Returns the long-run covariance of `centred_TP`, `[P, P]`: Parzen's kernel on what a VAR(1) leaves over."""
    before, after = centred_TP[:-1], centred_TP[1:]
    left, singular, right = np.linalg.svd(np.linalg.lstsq(before, after)[0].T)
    transition = left * np.minimum(singular, 0.97) @ right  # nearer to 1 the recolouring explodes
    rest = after - before @ transition.T
    recolour = np.linalg.inv(np.eye(len(transition)) - transition)
    bandwidth = _bandwidth(rest)
    covariance = rest.T @ rest
    for lag in range(1, math.ceil(bandwidth)):
        lagged = rest[lag:].T @ rest[:-lag]
        covariance += _parzen(lag / bandwidth) * (lagged + lagged.T)
    freedom = len(rest) - int(rest.any(axis=0).sum())  # a series that never varies has no moments to estimate
    result: Floats = recolour @ (covariance / freedom) @ recolour.T
    return result


def _bandwidth(values_TP: Floats) -> float:
    """Returns Andrews' (1991) bandwidth of Parzen's kernel, 2.6614·(α·T)^(1/5), from an AR(1) of each column."""
    before, after = values_TP[:-1], values_TP[1:]
    before, after = before - before.mean(axis=0), after - after.mean(axis=0)
    power = (before**2).sum(axis=0)
    slope = np.divide((before * after).sum(axis=0), power, out=np.zeros_like(power), where=power > 0.0)
    weight = ((after - slope * before) ** 2).mean(axis=0) ** 2
    if not weight.any():
        return 0.0
    curvature = (4.0 * slope**2 * weight / (1.0 - slope) ** 8).sum() / (weight / (1.0 - slope) ** 4).sum()
    return float(min(2.6614 * (curvature * len(values_TP)) ** 0.2, len(values_TP) - 1.0))


def _parzen(share: float) -> float:
    return 1.0 - 6.0 * share**2 + 6.0 * share**3 if share <= 0.5 else 2.0 * (1.0 - share) ** 3


def _quantile(values: Floats, share: float) -> float:
    """Returns the value that a share of draws, together with the sample itself, do not exceed."""
    rank = min(math.ceil(round(share * (len(values) + 1), 9)), len(values))
    return float(np.sort(values)[rank - 1])


def _losses(returns: Floats, level: float) -> tuple[Floats, float]:
    """Returns the losses in ascending order and how many of them are at most at `level`, with a fraction."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level is {level}: give a share between 0 and 1, such as 0.95")
    losses = np.sort(-_series(returns, "returns"))
    return losses, round(level * len(losses), 9)  # 0.95 · 20 must be 19, not a hair more
