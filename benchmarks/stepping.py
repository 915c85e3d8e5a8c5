"""What it means to step an environment, the same for ours and for those of others: resets are in, no-ops are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt

Work = Callable[[], int]


def steps_of(env: gym.Env[Any, Any], actions: Sequence[Any]) -> Work:
    """Returns a function that takes all `actions`, resetting at each episode's end, and returns their number."""
    env.reset(seed=0)

    def work() -> int:
        for action in actions:
            _, _, terminated, truncated, _ = env.step(action)
            if terminated or truncated:
                env.reset()
        return len(actions)

    return work


def slot_steps_of(env: gym.vector.VectorEnv[Any, Any, Any], actions: npt.NDArray[Any]) -> Work:
    """Returns a function that takes all `actions`, `[steps, slots, ...]`, and returns the steps in which a slot moved.

    The environment resets itself at NEXT_STEP: the step after an episode's end moves nothing and does not count.
    """
    env.reset(seed=0)
    moves = actions.shape[0] * actions.shape[1]

    def work() -> int:
        resets = 0
        for row in actions:
            _, _, terminated, truncated, _ = env.step(row)
            resets += int(np.count_nonzero(terminated | truncated))
        return moves - resets

    return work
