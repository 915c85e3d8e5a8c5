"""An environment with the shape of swing trading that costs next to nothing: training speed is measured on it.

27 market features that no action changes, then position and sessions held; three actions; a fee per change. The
market is one table drawn from a seeded generator, and every slot reads it from a random row on. Feature 0 predicts the
return that follows, so that whoever trains here can be seen to learn.

Axes: B slots, T steps, M rows of the table, F market features, P portfolio features, D = F + P, H holdings.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from data_pipeline.errors import ConfigError
from envs.contract import (
    DISCRETE_POSITIONS,
    HOLDING_UNIT_SESSIONS,
    OBSERVATION_BOUND,
    PORTFOLIO_FEATURES,
    Bools,
    Floats,
    Floats32,
    Ints,
)

MARKET_FEATURES = 27
EPISODE_STEPS = 512
ROWS = 8_192
"""M. Few, so that the table stays in the cache: reading 64 slots' rows from memory would take longer than a step."""
PREDICTED = 0.5
"""Correlation of feature 0 with the return that follows: the best policy earns about 0.4 a step, a random one 0."""
COST = 0.01
"""Charge for a change of position by 1, in standard deviations of the return."""
_POSITIONS = np.asarray(DISCRETE_POSITIONS)
_HELD_AT_MOST = 2 * int(HOLDING_UNIT_SESSIONS)
"""Steps of a position after which none is counted."""


@cache
def _market() -> tuple[Floats32, Floats]:
    """Returns the features `[M, D]`, 0 where the portfolio's stand, and the return earned from each row on, `[M]`."""
    rng = np.random.default_rng(0)
    features_MD = np.zeros((ROWS, MARKET_FEATURES + len(PORTFOLIO_FEATURES)), np.float32)
    drawn_MF = rng.standard_normal((ROWS, MARKET_FEATURES), np.float32)
    np.clip(drawn_MF, -OBSERVATION_BOUND, OBSERVATION_BOUND, out=features_MD[:, :MARKET_FEATURES])
    luck = math.sqrt(1.0 - PREDICTED**2) * rng.standard_normal(ROWS)
    return features_MD, PREDICTED * features_MD[:, 0] + luck


@cache
def _moves() -> tuple[Ints, Floats32, Floats]:
    """Returns what moves lead to: the next holding `[3H]`, its portfolio features `[3H, P]`, and the charge `[3H]`.

    A holding h is a position and the steps it was held, of which there are few, so that a step looks up all at once.
    Action a in holding h is move 3h + a.
    """
    kinds = np.arange(3 * (_HELD_AT_MOST + 1))
    before, held = np.divmod(kinds, _HELD_AT_MOST + 1)
    action = np.arange(3)
    longer = np.where(action == before[:, None], np.minimum(held[:, None] + 1, _HELD_AT_MOST), 1)
    longer[:, 1] = 0  # cash is not held
    portfolio = np.stack([np.broadcast_to(_POSITIONS, longer.shape), longer / HOLDING_UNIT_SESSIONS], -1)
    charge = COST * np.abs(_POSITIONS - _POSITIONS[before, None])
    following = (_HELD_AT_MOST + 1) * action + longer
    return following.reshape(-1), portfolio.reshape(-1, 2).astype(np.float32), charge.reshape(-1)


_IN_CASH = 3 * (_HELD_AT_MOST + 1) + 1
"""The move from cash to cash."""


class _Slots:
    """State and transitions of B slots whose episodes share one clock."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.t = -1  # not begun
        self.features_MD, self.returns = _market()
        self.holding_after, self.portfolio_after, self.full_charge = _moves()
        self.scale_costs(1.0)
        self.streams = [np.random.default_rng() for _ in range(count)]

    @property
    def over(self) -> bool:
        return self.t == EPISODE_STEPS

    def scale_costs(self, scale: float) -> None:
        self.cost_scale, self.charge = scale, scale * self.full_charge

    def seed(self, seeds: Sequence[int | None]) -> None:
        """Begins the streams of each slot anew; those whose seed is None go on."""
        for slot, seed in zip(range(self.count), seeds, strict=True):
            if seed is not None:
                self.streams[slot] = np.random.default_rng(seed)

    def reset(self) -> None:
        self.rows = np.array([stream.integers(ROWS - EPISODE_STEPS) for stream in self.streams])
        self.moved = np.full(self.count, _IN_CASH)
        self.t = 0

    def step(self, actions: npt.NDArray[Any]) -> Floats:
        """Returns the rewards `[B]` of actions `[B]`."""
        if self.t < 0 or self.over:
            raise ResetNeeded("the episode is over or was never begun; call reset before step")
        self.moved = 3 * self.holding_after.take(self.moved) + actions
        reward: Floats = _POSITIONS.take(actions)
        reward *= self.returns.take(self.rows)
        reward -= self.charge.take(self.moved)
        self.rows += 1
        self.t += 1
        return reward

    def observe(self) -> Floats32:
        """Returns observations `[B, D]`."""
        observed: Floats32 = self.features_MD.take(self.rows, axis=0)
        observed[:, MARKET_FEATURES:] = self.portfolio_after.take(self.moved, axis=0)
        return observed

    def market_ahead(self, steps: int, slots: Ints | None) -> Floats32:
        """Returns the market features from the present observation on, `[T, B, F]`; the episode's last row repeats."""
        if self.t < 0:
            raise ResetNeeded("no episode was begun; call reset before market_ahead")
        rows = self.rows if slots is None else self.rows[slots]
        future = np.minimum(np.arange(steps), EPISODE_STEPS - self.t)
        return np.ascontiguousarray(self.features_MD.take(rows + future[:, None], axis=0)[..., :MARKET_FEATURES])


class _Shell:
    """What the scalar and the vector environment have in common."""

    market_features = MARKET_FEATURES
    """Leading numbers of an observation that no action changes."""
    portfolio_features: tuple[str, ...] = PORTFOLIO_FEATURES
    """The numbers after them, by name."""

    def __init__(self, count: int) -> None:
        self.slots = _Slots(count)

    @property
    def cost_scale(self) -> float:
        """What charges in the reward are multiplied by, from the next step on."""
        return self.slots.cost_scale

    @cost_scale.setter
    def cost_scale(self, scale: float) -> None:
        if not (math.isfinite(scale) and scale >= 0):
            raise ConfigError(f"cost_scale {scale}: give a finite number of at least 0")
        self.slots.scale_costs(float(scale))

    def _spaces(self) -> tuple[gym.spaces.Box, gym.Space[Any]]:
        """Returns the spaces of one slot's observation and action."""
        width = MARKET_FEATURES + len(PORTFOLIO_FEATURES)
        return gym.spaces.Box(-OBSERVATION_BOUND, OBSERVATION_BOUND, (width,), np.float32), gym.spaces.Discrete(3)


class ShapeEnv(_Shell, gym.Env[Floats32, Any]):
    """One slot, for those who cannot take a vector environment.

    ## Action Space
    `Discrete(3)`: 0 short, 1 cash, 2 long.

    ## Observation Space
    `Box(-5, 5, (29,), float32)`
    | number | what | unit |
    |---|---|---|
    | 0 | market feature that predicts the return | standard deviations, clipped |
    | 1 to 26 | market features that predict nothing | standard deviations, clipped |
    | 27 | position p_{t-1} | -1, 0 or 1 |
    | 28 | sessions_held, in the present position | 20 steps, at most 2 |

    ## Rewards
    p_t · r_{t+1} - `cost_scale` · COST · abs(p_t - p_{t-1}), returns in their standard deviations.

    ## Starting State
    A random row of the market, cash.

    ## Episode End
    Termination: never. Truncation: after 512 steps.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self) -> None:
        super().__init__(1)
        self.observation_space, self.action_space = self._spaces()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats32, dict[str, Any]]:
        """Starts an episode."""
        gym.Env.reset(self, seed=seed, options=options)
        self.slots.seed([seed])
        self.slots.reset()
        return self.slots.observe()[0], {}

    def step(self, action: Any) -> tuple[Floats32, float, bool, bool, dict[str, Any]]:
        """Takes the position and answers after the return that follows."""
        reward = float(self.slots.step(np.asarray(action).reshape(1))[0])
        return self.slots.observe()[0], reward, False, self.slots.over, {}


class ShapeVectorEnv(_Shell, gym.vector.VectorEnv[Floats32, Any, npt.NDArray[Any]]):
    """B slots of `ShapeEnv` in one set of arrays; all their episodes begin and end together.

    Slot i seeded with s behaves as a scalar environment seeded with s + i. What follows an episode's end:

    NEXT_STEP: the next step ignores the actions, resets, and answers reward 0.
    SAME_STEP: the step that ends an episode resets too, and puts the observations that were the last in
        `infos["final_obs"]`, float32 `[B, D]`, true where `infos["_final_obs"]` is.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, num_envs: int, autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP) -> None:
        """Nothing is drawn before the first reset.

        Args:
            num_envs: B.
            autoreset_mode: NEXT_STEP, which RLlib's runners assume, or SAME_STEP.

        Raises:
            ConfigError: Mode DISABLED.
        """
        super().__init__(num_envs)
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise ConfigError("autoreset_mode Disabled: slots reset themselves; choose NextStep or SameStep")
        self.num_envs, self.metadata = num_envs, {"autoreset_mode": mode}
        self.single_observation_space, self.single_action_space = self._spaces()
        self.observation_space = gym.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gym.vector.utils.batch_space(self.single_action_space, num_envs)

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,  # noqa: ARG002  (Gymnasium's interface)
    ) -> tuple[Floats32, dict[str, Any]]:
        """Starts an episode in every slot; an integer seed s gives slot i the seed s + i."""
        if isinstance(seed, int | np.integer):
            seed = range(int(seed), int(seed) + self.num_envs)
        if seed is not None:
            self.slots.seed(seed)
        self.slots.reset()
        return self.slots.observe(), {}

    def step(self, actions: Any) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        """Steps every slot: observations `[B, D]`, rewards, terminated and truncated `[B]`, infos."""
        slots, infos = self.slots, dict[str, Any]()
        if slots.over:
            slots.reset()
            reward = np.zeros(self.num_envs)
        else:
            reward = slots.step(np.asarray(actions))
        truncated = self._all(slots.over)
        if slots.over and self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            infos = {"final_obs": slots.observe(), "_final_obs": truncated.copy()}
            slots.reset()
        return slots.observe(), reward, self._all(False), truncated, infos

    def market_ahead(self, steps: int, slots: Ints | None = None) -> Floats32:
        """Returns the market part of the observations to come if the present episode went on, `[T, B, F]`.

        Row 0 is that of the present observation; rows beyond the episode's end repeat the last.

        Args:
            steps: T, at least 1.
            slots: The slots asked about; None: all.

        Raises:
            ResetNeeded: There is no episode yet.
        """
        return self.slots.market_ahead(steps, slots)

    def _all(self, answer: bool) -> Bools:
        return np.ones(self.num_envs, np.bool_) if answer else np.zeros(self.num_envs, np.bool_)
