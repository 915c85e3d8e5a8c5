"""Allocation and limits: one object for environment, backtest and executor.

Each tradable symbol gets an equal sleeve of the account; a target position in [-1, 1] uses that part of
its sleeve. Everything else may only shrink what was asked for.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from data_pipeline.config import Config
from envs.contract import Bools, Floats

Fraction = Annotated[float, Field(gt=0, le=1)]


class Limits(Config):
    """What the account may hold, as shares of equity."""

    max_weight: Fraction = 0.95
    """Largest absolute weight of one symbol."""
    max_gross: Fraction = 0.95
    """Largest sum of absolute weights; the rest stays cash, so that an opening gap does not borrow."""
    long_only: bool = False
    """Turn short targets into cash."""
    no_trade_band: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Skip a trade smaller than this share of equity, unless it closes the position."""


def sleeve_budget(tradable: Bools, limits: Limits) -> Floats:
    """Returns the largest absolute weight of one symbol, `[...]` (the N axis of `tradable` reduced).

    Args:
        tradable: `[..., N]`; the account is split equally over the tradable symbols.
        limits: The account's limits.
    """
    count = np.maximum(tradable.sum(axis=-1), 1)
    return np.minimum(limits.max_gross / count, limits.max_weight)


def target_weights(positions: Floats, tradable: Bools, limits: Limits) -> Floats:
    """Returns target weights `[..., N]`: absolute sum at most `max_gross`, 0 where not tradable.

    Args:
        positions: Target positions in [-1, 1], `[..., N]`.
        tradable: True where the symbol can be decided on, `[..., N]`.
        limits: The account's limits.
    """
    allowed = np.maximum(positions, 0.0) if limits.long_only else positions
    return np.where(tradable, allowed, 0.0) * sleeve_budget(tradable, limits)[..., None]
