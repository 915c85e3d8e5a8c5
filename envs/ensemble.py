"""Several policies as one: each decides by itself, and their target positions are combined.

M members, N symbols, W sessions of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from data_pipeline.errors import ConfigError
from envs.contract import DISCRETE_POSITIONS, Floats, Policy, Window

Combination = Literal["mean", "vote", "sharpe"]
"""How members become one; see `combined`."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Ensemble:
    """A policy of policies; like any other it remembers nothing.

    Weighted by Sharpe ratios it follows the ensemble of Yang et al. (2020), which let the best member of the latest
    quarter decide alone; here all that earned something have a say, by weights that are fixed beforehand.

    Attributes:
        name: Shown in ledgers.
        members: M policies; their windows may differ.
        combination: See `combined`.
        weights: For "sharpe", M numbers that sum to 1: shares in the decision, from what was known before.
    """

    name: str
    members: tuple[Policy, ...]
    combination: Combination = "mean"
    weights: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what is no ensemble.

        Raises:
            ConfigError: No members, or weights that do not fit.
        """
        if fault := fault_of(len(self.members), self.combination, self.weights):
            raise ConfigError(f"ensemble {self.name}: {fault}")

    @property
    def window(self) -> int:
        """The longest of the members' windows."""
        return max(member.window for member in self.members)

    def decide(self, window: Window) -> Floats:
        """Returns the combined target positions `[N]`; 0 where the symbol is not ready."""
        return np.where(window.ready, self.combine(self.targets(window)), 0.0)

    def targets(self, window: Window) -> Floats:
        """Returns each member's target positions, `[M, N]`.

        Each sees the last rows that it wants. Readiness is that of the longest window: stricter than a member with a
        shorter one would have it by itself.
        """
        return np.stack([member.decide(latest(window, member.window)) for member in self.members])

    def combine(self, targets: Floats) -> Floats:
        """Returns what `targets` `[M, N]` come to, `[N]`; see `combined`."""
        return combined(targets, self.combination, self.weights)


def fault_of(members: int, combination: Combination, weights: Sequence[float]) -> str | None:
    """Returns what is wrong with an ensemble and what to do, or None."""
    if not members:
        return "has no members; give at least one"
    if combination != "sharpe":
        return f"{combination} takes no weights; leave them out or combine by sharpe" if weights else None
    fits = len(weights) == members and min(weights) >= 0 and abs(sum(weights) - 1.0) <= _ROUNDING
    return None if fits else f"weights {tuple(weights)} of {members} members; give each one of at least 0, sum 1"


def latest(window: Window, length: int) -> Window:
    """Returns `window` with its last `length` sessions alone."""
    if length == len(window.features):
        return window
    return replace(window, features=window.features[-length:], closes=window.closes[-length:])


def combined(targets: Floats, combination: Combination, weights: Sequence[float] = ()) -> Floats:
    """Returns one target position for each symbol, `[N]`.

    mean: the mean. sharpe: the mean by `weights`. vote: each target stands for the nearest of short, cash and long
    (half a position is cash), the most frequent wins, and a tie between the most frequent is cash.

    A member that leaves a position alone (NaN) is silent on it. Where the silent have more than half of the weight
    (for mean and vote: are more than half), the position is left alone; elsewhere the others decide by themselves.

    Args:
        targets: Of M members, `[M, N]`.
        combination: One of the three.
        weights: For "sharpe", M numbers; otherwise none.
    """
    share = np.asarray(weights if combination == "sharpe" else np.ones(len(targets)))[:, None]
    spoken = share * ~np.isnan(targets)
    heard = spoken.sum(axis=0)
    if combination == "vote":
        decided = _most_frequent(targets)
    else:
        decided = (spoken * np.nan_to_num(targets)).sum(axis=0) / np.maximum(heard, _ROUNDING)
    return np.where(heard >= (0.5 - _ROUNDING) * share.sum(), decided, np.nan)


def _most_frequent(targets: Floats) -> Floats:
    """Returns the one most frequent of the discrete positions, 0 where there are several, `[N]`; NaN has no vote."""
    nearest = np.rint(np.clip(targets, -1.0, 1.0))
    votes = np.stack([(nearest == position).sum(axis=0) for position in DISCRETE_POSITIONS])
    alone = (votes == votes.max(axis=0)).sum(axis=0) == 1
    return np.where(alone, np.take(DISCRETE_POSITIONS, votes.argmax(axis=0)), 0.0)
