"""What an action means, what is observed, and what a policy is.

Time: a decision at session t sees bars up to and including the close of t and fills at the open of t+1.

An observation is the concatenation `[market features | portfolio state]`, both float32. The market part
is the scaled feature row of one symbol; prices do not depend on a small account, so only this part feeds
the recurrence. The portfolio part is relative to the symbol's *budget*, the weight of a full position, so it
means the same in a one-symbol training slot and in an account of many symbols.

Axes: B slots, W sessions of a window, N symbols, F market features, P portfolio features.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from enum import StrEnum
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Floats32 = npt.NDArray[np.float32]
Bools = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

PORTFOLIO_FEATURES = ("position", "sessions_held")
"""position: weight over budget, about [-1, 1]; sessions_held: of the present sign, in units of 20."""

HOLDING_UNIT_SESSIONS = 20.0
OBSERVATION_BOUND = 5.0
"""No part of an observation is further from 0."""


def total(values: Floats) -> Floats:
    """Returns the sum over symbols of `[N, ...]`, `[...]`, added in their order: one account gets the bits of many."""
    if len(values) == 1:
        return values[0]
    # NumPy sums a single column in an order of its own.
    alone = values.ndim == 1 or values.size == len(values)
    result: Floats = np.add.accumulate(values, axis=0)[-1] if alone else values.sum(axis=0)
    return result


def everywhere(mask: Bools) -> bool:
    """Returns `mask.all()`, in a third of its time on the arrays of a step."""
    return np.count_nonzero(mask) == mask.size


class ActionKind(StrEnum):
    """How a policy's output names a target position."""

    DISCRETE = "discrete"
    CONTINUOUS = "continuous"


DISCRETE_POSITIONS = (-1.0, 0.0, 1.0)
"""The target positions of the discrete actions 0, 1, 2: short, cash, long."""
_DISCRETE = np.asarray(DISCRETE_POSITIONS)


def positions_of(actions: npt.NDArray[Any], kind: ActionKind) -> Floats:
    """Returns the target positions in [-1, 1] that `actions` name, same shape.

    Args:
        actions: Discrete: integers 0 short, 1 cash, 2 long. Continuous: numbers, clipped to [-1, 1].
        kind: Which of the two.

    Raises:
        ValueError: An action that is none: an integer beyond the three, or NaN, which is a policy that diverged.
    """
    if kind is ActionKind.DISCRETE:
        if actions.min() < 0 or actions.max() > 2:
            wrong = actions.min() if actions.min() < 0 else actions.max()
            raise ValueError(f"action {wrong}: give 0 short, 1 cash or 2 long")
        return _DISCRETE.take(actions.astype(np.int64, copy=False))
    if np.isnan(actions).any():
        raise ValueError("action nan: the policy diverged; give a number, which is clipped to [-1, 1]")
    return np.clip(actions.astype(np.float64), -1.0, 1.0)


def portfolio_state(weights: Floats, budget: Floats, sessions_held: Ints, out: Floats32 | None = None) -> Floats32:
    """Returns the portfolio part of the observation, shape `[..., P]`, in `out` where it is given.

    Args:
        weights: Present weight of each symbol as a share of equity, `[...]`.
        budget: Weight of a full position (`limits.budgets`), broadcasts to `[...]`; whatever is held against a budget
            of 0 is a position at the bound.
        sessions_held: Sessions since the position took its present sign; 0 when flat.
        out: float32.
    """
    state = np.empty((*weights.shape, len(PORTFOLIO_FEATURES)), np.float32) if out is None else out
    state[..., 0] = np.clip(weights / np.maximum(budget, 1e-9), -OBSERVATION_BOUND, OBSERVATION_BOUND)
    state[..., 1] = np.minimum(sessions_held / HOLDING_UNIT_SESSIONS, 2.0)
    return state


@dataclass(frozen=True)
class Window:
    """All that a policy may know when it decides at the close of `session`.

    Attributes:
        session: The session t whose close has just passed.
        symbols: N tickers, the order of every N axis.
        features: Unscaled market features of sessions t-W+1 .. t, `[W, N, F]` float32.
        closes: Total-return closes of the same sessions, `[W, N]`; scale is arbitrary, NaN where no bar.
        portfolio: Portfolio state after the close of t, `[N, P]` float32.
        ready: True where the symbol traded at t and all W feature rows are finite, `[N]`.
    """

    session: date
    symbols: tuple[str, ...]
    features: Floats32
    closes: Floats
    portfolio: Floats32
    ready: Bools


class Policy(Protocol):
    """Anything that turns a window into target positions."""

    @property
    def name(self) -> str:
        """Shown in ledgers."""

    @property
    def window(self) -> int:
        """W, the sessions it wants to see."""

    def decide(self, window: Window) -> Floats:
        """Returns target positions in [-1, 1], `[N]`; symbols that are not ready get 0, NaN leaves one alone."""
