"""Figures of a ledger with their uncertainty.

Returns are simple, one per session, net of costs, `[T]`. Everything is a fraction unless its name says
otherwise, and a year has 252 sessions. Equity that reaches zero stays there: no account trades on.
"""

from __future__ import annotations

from datetime import date
from typing import NamedTuple

import numpy as np
import polars as pl

from data_pipeline.config import Config
from envs.backtest import COST_KINDS, Ledger
from envs.contract import Floats, Ints
from envs.costs import SESSIONS_PER_YEAR
from rl.judging.significance import MINIMUM_SESSIONS

_DRAWS = 4000
_NO_VARIANCE = 1e-12


class Sharpe(NamedTuple):
    """Annualised Sharpe ratio over cash at 0 %; the error is None where the returns allow none."""

    ratio: float
    standard_error: float | None


class Figures(Config):
    """What an account did, in numbers."""

    name: str
    """Of the policy."""
    first_session: date
    """Session of the first fill."""
    last_session: date
    """Session of the last fill."""
    sessions: int
    """Number of returns."""
    final_equity_usd: float
    """After the last close."""
    total_return: float
    """Over all sessions."""
    cagr: float
    """Compound growth per year."""
    volatility: float
    """Standard deviation of returns, per year."""
    sharpe: float
    """Annualised Sharpe ratio; 0 for returns that do not vary."""
    sharpe_error: float | None
    """Standard error of `sharpe`; None for returns that do not vary."""
    max_drawdown: float
    """Deepest fall of equity below its earlier high, zero or negative."""
    exposure: float
    """Mean sum of absolute weights after the close."""
    turnover_per_year: float
    """USD traded, buys and sales both, over mean equity."""
    costs_usd: dict[str, float]
    """Paid, by kind."""
    cost_usd: float
    """Paid, all kinds."""
    cost_bps_per_year: float
    """`cost_usd` over mean equity."""
    trades: int
    """Number of fills."""
    mean_holding_sessions: float | None
    """Of `holding_sessions`; None if nothing was held."""
    median_holding_sessions: float | None
    """Of `holding_sessions`; None if nothing was held."""


class Comparison(Config):
    """Paired excess of a policy over a benchmark on the same sessions."""

    policy: str
    """Name of the ledger that is judged."""
    benchmark: str
    """Name of the ledger it is compared with."""
    excess: float
    """Mean of the daily difference in returns, times 252."""
    lower: float
    """Lower end of its 95 % interval."""
    upper: float
    """Upper end of its 95 % interval."""
    p_value: float
    """One-sided: how often a true excess of zero would look at least this good."""
    block_sessions: int
    """Mean block length of the bootstrap."""


def figures(ledger: Ledger) -> Figures:
    """Returns the figures of a ledger."""
    returns, account = solvent_returns(ledger), ledger.account
    path = equity_path(ledger)
    years, mean_equity = len(returns) / SESSIONS_PER_YEAR, float(path.mean())
    costs = {kind: float(account[kind].sum()) for kind in COST_KINDS}
    ratio, error = sharpe(returns)
    holding = holding_sessions(ledger)
    return Figures(
        name=ledger.name,
        first_session=account["session"][0],
        last_session=account["session"][-1],
        sessions=len(returns),
        final_equity_usd=float(path[-1]),
        total_return=float(path[-1] / path[0] - 1.0),
        cagr=float((path[-1] / path[0]) ** (1.0 / years) - 1.0),
        volatility=_deviation(returns) * SESSIONS_PER_YEAR**0.5,
        sharpe=ratio,
        sharpe_error=error,
        max_drawdown=float(drawdowns(path).min()),
        exposure=float(account["gross"].to_numpy().mean()),
        turnover_per_year=float(account["traded"].sum()) / mean_equity / years,
        costs_usd=costs,
        cost_usd=sum(costs.values()),
        cost_bps_per_year=sum(costs.values()) / mean_equity / years * 1e4,
        trades=int((ledger.positions["filled"] != 0).sum()),
        mean_holding_sessions=float(holding.mean()) if len(holding) else None,
        median_holding_sessions=float(np.median(holding)) if len(holding) else None,
    )


def solvent_returns(ledger: Ledger) -> Floats:
    """Returns the ledger's returns, `[T]`; -1 when equity reaches zero and 0 ever after."""
    path = equity_path(ledger)
    before = np.where(path[:-1] > 0, path[:-1], 1.0)
    return np.where(path[:-1] > 0, path[1:] / before - 1.0, 0.0)


def equity_path(ledger: Ledger) -> Floats:
    """Returns equity in USD before the first session and after each, `[T + 1]`; 0 once it was reached."""
    path = np.concatenate([[ledger.initial_cash], ledger.account["equity"].to_numpy()])
    alive = np.logical_and.accumulate(path > 0)
    return np.where(alive, path, 0.0)


def drawdowns(path: Floats) -> Floats:
    """Returns how far `path` stands below its highest value so far, same shape, zero or negative."""
    result: Floats = path / np.maximum.accumulate(path) - 1.0
    return result


def sharpe(returns: Floats) -> Sharpe:
    """Returns the annualised Sharpe ratio of `returns` and its standard error."""
    deviation = _deviation(returns)
    if deviation < _NO_VARIANCE:
        return Sharpe(0.0, None)
    ratio = float(returns.mean()) / deviation
    centred = returns - returns.mean()
    skew, kurtosis = (float((centred**k).mean() / centred.std() ** k) for k in (3, 4))
    error = sharpe_standard_error(ratio, skew, kurtosis, len(returns))
    year = SESSIONS_PER_YEAR**0.5
    return Sharpe(ratio * year, error * year)


def sharpe_standard_error(ratio: float, skew: float, kurtosis: float, periods: int) -> float:
    """Returns √((1 − g3·SR + (g4−1)/4·SR²) / (T−1)), the standard error of a Sharpe ratio per period.

    Bailey and López de Prado (2012), for returns of any shape without serial correlation.

    Args:
        ratio: SR, the Sharpe ratio per period, not annualised.
        skew: g3.
        kurtosis: g4, raw: 3 for normal returns.
        periods: T, at least 2.
    """
    variance = (1.0 - skew * ratio + (kurtosis - 1.0) / 4.0 * ratio**2) / (periods - 1)
    return float(np.sqrt(max(variance, 0.0)))


def holding_sessions(ledger: Ledger) -> Ints:
    """Returns how many closes each position was held over, in no order.

    A position is an unbroken run of one sign in one symbol. One still open at the end counts as long as
    it was seen, which understates it.
    """
    runs = (
        ledger.positions.sort("symbol", "session")
        .with_columns(pl.col("shares").sign().alias("sign"))
        .with_columns(pl.struct("symbol", "sign").rle_id().alias("run"))
        .filter(pl.col("sign") != 0)
        .group_by("run")
        .len()
    )
    return runs["len"].to_numpy().astype(np.int64)


def compare(policy: Ledger, benchmark: Ledger, seed: int = 0) -> Comparison:
    """Returns the excess of `policy` over `benchmark` with its uncertainty.

    The interval is the basic one of a stationary bootstrap (Politis and Romano 1994), its block length
    that of Politis and White (2004). `p_value` comes from the same draws: `lower` passes zero where it
    passes 0.025.

    Raises:
        ValueError: The two do not cover the same sessions.
    """
    from arch.bootstrap import StationaryBootstrap  # noqa: PLC0415  (three seconds)

    if policy.account["session"].to_list() != benchmark.account["session"].to_list():
        raise ValueError(f"{policy.name} and {benchmark.name} cover different sessions")
    excess = solvent_returns(policy) - solvent_returns(benchmark)
    block = _block_sessions(excess)
    means = StationaryBootstrap(block, excess, seed=seed).apply(np.mean, _DRAWS)[:, 0]
    mean = float(excess.mean())
    low, high = np.percentile(means, [2.5, 97.5])
    extreme = int((means - mean >= mean).sum())
    return Comparison(
        policy=policy.name,
        benchmark=benchmark.name,
        excess=mean * SESSIONS_PER_YEAR,
        lower=float(2.0 * mean - high) * SESSIONS_PER_YEAR,
        upper=float(2.0 * mean - low) * SESSIONS_PER_YEAR,
        p_value=(1 + extreme) / (1 + _DRAWS),
        block_sessions=block,
    )


def _deviation(returns: Floats) -> float:
    return float(returns.std(ddof=1)) if len(returns) > 1 else 0.0


def _block_sessions(excess: Floats) -> int:
    from arch.bootstrap import optimal_block_length  # noqa: PLC0415

    if len(excess) >= MINIMUM_SESSIONS and _deviation(excess) > _NO_VARIANCE:
        with np.errstate(divide="ignore", invalid="ignore"):  # a stretch of equal returns correlates with nothing
            optimal = float(optimal_block_length(excess)["stationary"].iloc[0])
        if np.isfinite(optimal):
            return max(1, int(np.ceil(optimal)))
    return int(np.ceil(len(excess) ** (1 / 3)))
