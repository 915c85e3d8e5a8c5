"""Reward terms: pure, named, finite from the first step; a reward is their weighted sum.

Equity is that of the closes of t (tm1) and t+1 (t), `[...]`, in USD. Terms are in units of log return, so that
weights are comparable, but for the differential Sharpe ratio, which has none.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import numpy as np
from pydantic import Field

from data_pipeline.config import Config
from envs.contract import Floats

_FLOOR = 1e-3
SHARPE_RATE = 1 / 63
"""How fast the moments of the differential Sharpe ratio follow the returns: about a quarter."""
_PRIOR_VARIANCE = 1e-4

Weight = Annotated[float, Field(ge=0)]


class Rewards(Config):
    """Weights of the reward's terms; a term of weight 0 is not computed."""

    scale: Annotated[float, Field(gt=0)] = 100.0
    """The weighted sum is multiplied by this: 100 makes one reward point one percent."""
    log_return: Weight = 1.0
    """Log return of equity, costs included."""
    excess: Weight = 0.0
    """Log return of equity over that of holding the symbol, or all tradable symbols in equal parts."""
    differential_sharpe: Weight = 0.0
    """Change of an exponentially weighted Sharpe ratio (Moody and Saffell 1998)."""
    drawdown: Weight = 0.0
    """Penalty: what the session added to the drawdown from the highest close."""
    turnover: Weight = 0.0
    """Penalty: USD traded over equity."""

    @property
    def named(self) -> tuple[str, ...]:
        """Terms that count."""
        return tuple(name for name, weight in self if name != "scale" and weight)


class Moments(NamedTuple):
    """Exponentially weighted mean of returns and of their squares, `[...]` each."""

    first: Floats
    second: Floats

    @classmethod
    def prior(cls, count: int) -> Moments:
        """Returns the moments before the first return: no mean, a deviation of one percent."""
        return cls(np.zeros(count), np.full(count, _PRIOR_VARIANCE))


def log_return(equity_t: Floats, equity_tm1: Floats) -> Floats:
    """Returns log(equity_t / equity_tm1), `[...]`; a loss of all counts as one of 99.9 %."""
    result: Floats = np.log(np.maximum(equity_t / equity_tm1, _FLOOR))
    return result


def excess(growth: Floats, benchmark: Floats) -> Floats:
    """Returns `growth`, a log return, less the log return of the simple return `benchmark`; 0 where that is NaN."""
    return growth - np.log(np.maximum(1.0 + np.nan_to_num(benchmark), _FLOOR))


def differential_sharpe(growth: Floats, moments: Moments) -> tuple[Floats, Moments]:
    """Returns (B ΔA − A ΔB / 2) / (B − A²)^(3/2), clipped to ± 10, and the moments with `growth` in them.

    A and B are the first and second moment, ΔA = R − A, ΔB = R² − B. Moody and Saffell (1998), equation 14.
    The variance is held above a hundredth of the prior's, so that calm at the start does not explode.
    """
    first, second = moments
    to_first, to_second = growth - first, growth**2 - second
    variance = np.maximum(second - first**2, _PRIOR_VARIANCE / 100)
    ratio = (second * to_first - 0.5 * first * to_second) / variance**1.5
    after = Moments(first + SHARPE_RATE * to_first, second + SHARPE_RATE * to_second)
    return np.clip(ratio, -10.0, 10.0), after


def drawdown(drawdown_t: Floats, drawdown_tm1: Floats) -> Floats:
    """Returns minus what was added to the drawdown, a fraction of the highest close, `[...]`."""
    return -np.maximum(drawdown_t - drawdown_tm1, 0.0)


def turnover(traded: Floats, equity_tm1: Floats) -> Floats:
    """Returns minus the USD traded over equity before it, `[...]`."""
    return -traded / equity_tm1
