"""What changes in the course of a training: schedules, as functions of the steps done, and the scale of rewards."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from envs.contract import Bools, Floats, Floats32


def rising(done: float, share: float) -> float:
    """Returns a factor that rises from 0 to 1 over the first `share` of the budget, of which `done` is spent."""
    return 1.0 if done >= share else done / share


def falling(done: float, share: float) -> float:
    """Returns a factor that falls from 1 to 0 over the last `share` of the budget, of which `done` is spent."""
    return 1.0 if done <= 1.0 - share or not share else max(1.0 - done, 0.0) / share


class Moments(NamedTuple):
    """Count, mean and sum of squared deviations of some numbers."""

    size: float = 0.0
    mean: float = 0.0
    squares: float = 0.0

    def merged(self, other: Moments) -> Moments:
        """Returns the moments of both sets together (Chan et al. 1983)."""
        size = self.size + other.size
        if not size:
            return self
        apart = other.mean - self.mean
        return Moments(
            size,
            self.mean + apart * other.size / size,
            self.squares + other.squares + apart**2 * self.size * other.size / size,
        )

    @property
    def scale(self) -> float:
        """What numbers are multiplied by to have a deviation of about 1; 1 before any were seen."""
        return 1.0 / max(np.sqrt(self.squares / self.size), 1e-6) if self.size > 1 else 1.0


def moments_of(numbers: Floats) -> Moments:
    """Returns the moments of an array."""
    mean = float(numbers.mean())
    return Moments(float(numbers.size), mean, float(np.square(numbers - mean).sum()))


@dataclass
class Discounted:
    """Running discounted return of each slot, whose deviation is the scale of rewards and values."""

    gamma: float
    carried: Floats
    """γ R of each slot's last step; 0 where its episode ended."""

    def moments(self, rewards: Floats32, ended: Bools) -> Moments:
        """Returns the moments of R_t = γ R_{t-1} + r_{t+1} over a fragment `[T, B]`; episodes begin at 0.

        A reward that is not a number counts as 0: its gradient is refused, and the scale must outlive it.
        """
        if not np.isfinite(rewards.sum()):
            rewards = np.nan_to_num(rewards, posinf=0.0, neginf=0.0)
        seen, kept = np.empty(rewards.shape), self.gamma * ~ended
        for t, reward in enumerate(rewards):
            seen[t] = self.carried + reward
            self.carried = kept[t] * seen[t]
        return moments_of(seen)
