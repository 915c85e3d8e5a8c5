"""Worlds with a known optimum as fast environments: `swing_rl/World-v0`, scalar and natively vectorised.

The dynamics are those of `data_pipeline.sources.worlds`, drawn by the same code: the first episode of a slot seeded
with s is the path of the first symbol of a world seeded with s, and each later episode draws on from the same two
streams. So a path depends on the seed of its slot and the number of its episode alone, and slot i of a vector
environment seeded with s behaves as a scalar environment seeded with s + i.

Axes: B slots, T steps of an episode, D numbers of an observation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode
from pydantic import Field, model_validator

from data_pipeline.config import Config
from data_pipeline.errors import ConfigError
from data_pipeline.sources.worlds import GpWorld, PropWorld, World, draws
from envs.contract import ActionKind, Bools, Floats, Floats32, Ints, positions_of

ENV_ID = "swing_rl/World-v0"

CUE_BOUND = 10.0
"""Bound of the observed cue in stationary deviations; nothing is clipped, a normal is beyond it once in 10^22."""

Settings = Mapping[str, Any]


class WorldEnvConfig(Config):
    """Which world, what is seen of it, and what an episode is."""

    world: World = PropWorld()
    """Name and parameters, such as {name: prop, q: 0.8, sd: 0.3}."""
    episode_steps: Annotated[int, Field(ge=1)] = 512
    """Decisions in an episode."""
    action: ActionKind = ActionKind.DISCRETE
    """discrete {short, cash, long} or continuous [-1, 1]; gp is continuous only."""
    show_position: bool = True
    """Whether the own position is observed. It is a memory of sorts, so a test of memory hides it."""
    expected_reward: bool = False
    """Whether the reward is the one to be expected given all hidden states, rather than the one that came."""
    reward_scale: Annotated[float, Field(gt=0)] = 1.0
    """Rewards are multiplied by this."""
    position_limit: Annotated[float, Field(gt=0)] = 4.0
    """gp only: position of action 1, in deviations of the signal. Positions of the best policy, unbounded in theory,
    deviate by one of these at most, so a limit of 4 takes less than 1e-5 of its reward."""

    @model_validator(mode="after")
    def _gp_is_continuous(self) -> Self:
        if isinstance(self.world, GpWorld) and self.action is ActionKind.DISCRETE:
            raise ValueError("world gp pays for gradual positions; set action to continuous")
        return self

    @property
    def position_unit(self) -> float:
        """The position that action 1 names."""
        return self.position_limit * self.world.sd_f if isinstance(self.world, GpWorld) else 1.0

    def positions(self, actions: npt.NDArray[Any]) -> Floats:
        """Returns the positions that `actions` name, `[B]`; actions are `[B]` or `[B, 1]`."""
        return self.position_unit * positions_of(actions.reshape(len(actions)), self.action)

    def actions(self, positions: Floats) -> npt.NDArray[Any]:
        """Returns the actions that name `positions`, `[B]`: discrete `[B]`, continuous `[B, 1]`."""
        if self.action is ActionKind.DISCRETE:
            return positions.astype(np.int64) + 1
        return (positions[:, None] / self.position_unit).astype(np.float32)


class _Slots:
    """State and transitions of B slots; the shells below only translate to Gymnasium's two interfaces.

    Episodes have one length, so all slots begin and end together and share one clock. A reset draws the paths
    `[T, B]` of all; a position of step t earns row t of `returns` or `expected`.
    """

    def __init__(self, count: int, config: WorldEnvConfig) -> None:
        self.count, self.config = count, config
        self.cost_scale = 1.0
        self.t = -1  # not begun
        self.streams = [draws(seed, 0) for seed in np.random.SeedSequence().generate_state(count, np.uint64).tolist()]

    @property
    def over(self) -> bool:
        return self.t == self.config.episode_steps

    def seed(self, seeds: Sequence[int | None]) -> None:
        """Begins the streams of each slot anew; those whose seed is None go on."""
        for slot, seed in zip(range(self.count), seeds, strict=True):
            if seed is not None:
                self.streams[slot] = draws(seed, 0)

    def reset(self) -> None:
        config = self.config
        seen = config.world.paths(config.episode_steps + 1, self.streams)  # the last cue is that of the final state
        self.cue = (seen.cue / config.world.cue_deviation).astype(np.float32)
        self.returns, self.expected = seen.returns[1:], seen.expected
        self.position = np.zeros(self.count)
        self.t = 0

    def step(self, positions: Floats) -> tuple[Floats, Floats]:
        """Returns the reward, and the expected one before any scale, `[B]` each."""
        if self.t < 0 or self.over:
            raise ResetNeeded("the episode is over or was never begun; call reset before step")
        config = self.config
        charge = config.world.move_charge(positions, self.position)
        expected = positions * self.expected[self.t]
        earned = expected if config.expected_reward else positions * self.returns[self.t]
        self.position, self.t = positions, self.t + 1
        return config.reward_scale * (earned - self.cost_scale * charge), expected - charge

    def observe(self) -> Floats32:
        """Returns observations `[B, D]`."""
        observed = np.empty((self.count, 1 + self.config.show_position), np.float32)
        observed[:, 0] = self.cue[self.t]
        if self.config.show_position:
            observed[:, 1] = self.position / self.config.position_unit
        return observed

    def market_ahead(self, steps: int, slots: Ints | None) -> Floats32:
        """Returns the cues of this and the next `steps` - 1 decisions, `[steps, b, 1]`; the last is repeated."""
        if self.t < 0:
            raise ResetNeeded("no episode was begun; call reset before market_ahead")
        rows = np.minimum(self.t + np.arange(steps), self.config.episode_steps)
        return (self.cue[rows] if slots is None else self.cue[rows[:, None], slots])[..., None]


class _Shell:
    """What the scalar and the vector environment have in common."""

    market_features = 1
    """Leading numbers of an observation that no action changes."""
    portfolio_features: tuple[str, ...]
    """The numbers after them, by name."""

    def __init__(self, count: int, settings: WorldEnvConfig | Settings | None) -> None:
        self.config = settings if isinstance(settings, WorldEnvConfig) else WorldEnvConfig.of(settings or {}, "env")
        self.portfolio_features = ("position",) if self.config.show_position else ()
        self.slots = _Slots(count, self.config)

    @property
    def cost_scale(self) -> float:
        """What charges in the reward are multiplied by, from the next step on: a curriculum raises it to 1."""
        return self.slots.cost_scale

    @cost_scale.setter
    def cost_scale(self, scale: float) -> None:
        if not (math.isfinite(scale) and scale >= 0):
            raise ConfigError(f"cost_scale {scale}: give a finite number of at least 0")
        self.slots.cost_scale = float(scale)

    def _spaces(self) -> tuple[gym.spaces.Box, gym.Space[Any]]:
        """Returns the spaces of one slot's observation and action."""
        bound = np.array([CUE_BOUND] + [1.0] * len(self.portfolio_features), np.float32)
        observation = gym.spaces.Box(-bound, bound, dtype=np.float32)
        if self.config.action is ActionKind.DISCRETE:
            return observation, gym.spaces.Discrete(3)
        return observation, gym.spaces.Box(-1.0, 1.0, (1,), np.float32)


class WorldEnv(_Shell, gym.Env[Floats32, Any]):
    """One slot of a world whose best policy is known (`envs.optimum`).

    ## Description
    At step t the agent sees the cue of t and chooses a position p_t, which earns the return r_{t+1} less what the
    world charges for p_t and for the move from p_{t-1}. The worlds prop, hmm, gp, delay and noise and their
    parameters are described in `data_pipeline.sources.worlds`.

    ## Action Space
    `Discrete(3)`: position -1, 0 or 1. Or `Box(-1, 1, (1,), float32)`: the position itself; in gp times
    `position_limit` deviations of the signal. Numbers beyond the box are clipped.

    ## Observation Space
    `Box(float32)` of one market feature and, with `show_position`, one portfolio feature:

    | number | what | unit | bounds |
    |---|---|---|---|
    | 0 | cue of t | stationary deviations of the cue | ± 10, not clipped |
    | 1 | position p_{t-1} | positions of action 1 | ± 1 |

    ## Rewards
    `reward_scale` × (p_t · r_{t+1} - `cost_scale` × charge), where `expected_reward` puts E[r_{t+1}] in the place of
    r_{t+1}. Whatever these three say, `info["expected_reward"]` is p_t · E[r_{t+1}] - charge, to be compared with
    `Optimum.average_reward`.

    ## Starting State
    Hidden processes in their stationary state, position 0. Each reset draws a new path; equal seeds, equal paths.

    ## Episode End
    Termination: never. Truncation: after `episode_steps` steps; the value goes on, so it must be bootstrapped.

    ## Version History
    * v0: first version
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(self, settings: WorldEnvConfig | Settings | None = None) -> None:
        """Names the world; nothing is drawn before the first reset.

        Args:
            settings: `WorldEnvConfig`, or a mapping that describes it.
        """
        super().__init__(1, settings)
        self.observation_space, self.action_space = self._spaces()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Floats32, dict[str, Any]]:
        """Starts an episode on a new path."""
        gym.Env.reset(self, seed=seed, options=options)
        self.slots.seed([seed])
        self.slots.reset()
        return self.slots.observe()[0], {}

    def step(self, action: Any) -> tuple[Floats32, float, bool, bool, dict[str, Any]]:
        """Takes the position and answers after the return that follows."""
        reward, expected = self.slots.step(self.config.positions(np.asarray(action).reshape(1)))
        info = {"expected_reward": float(expected[0])}
        return self.slots.observe()[0], float(reward[0]), False, self.slots.over, info


class WorldVectorEnv(_Shell, gym.vector.VectorEnv[Floats32, Any, npt.NDArray[Any]]):
    """B slots of `WorldEnv` in one set of arrays; all their episodes begin and end together.

    `infos["expected_reward"]` is `[B]`, and true where `infos["_expected_reward"]` is. What a step after an
    episode's end does depends on `autoreset_mode`:

    NEXT_STEP: it ignores the actions, resets, and answers reward 0 and no expected reward.
    SAME_STEP: there is none; the step that ends an episode resets too, and puts the observations that were the
        last in `infos["final_obs"]`, float32 `[B, D]`, true where `infos["_final_obs"]` is.
    """

    metadata: dict[str, Any] = {}  # noqa: RUF012  (Gymnasium's own form)

    def __init__(
        self,
        num_envs: int,
        settings: WorldEnvConfig | Settings | None = None,
        autoreset_mode: AutoresetMode | str = AutoresetMode.NEXT_STEP,
    ) -> None:
        """Names the world; nothing is drawn before the first reset.

        Args:
            num_envs: B.
            settings: `WorldEnvConfig`, or a mapping that describes it.
            autoreset_mode: NEXT_STEP, which RLlib's runners assume, or SAME_STEP.

        Raises:
            ConfigError: Mode DISABLED.
        """
        super().__init__(num_envs, settings)
        mode = AutoresetMode(autoreset_mode)
        if mode is AutoresetMode.DISABLED:
            raise ConfigError("autoreset_mode Disabled: worlds reset themselves; choose NextStep or SameStep")
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
        live = not self.slots.over
        if live:
            reward, expected = self.slots.step(self.config.positions(np.asarray(actions)))
        else:
            self.slots.reset()
            reward, expected = np.zeros(self.num_envs), np.zeros(self.num_envs)
        truncated = self._all(self.slots.over)
        infos = {"expected_reward": expected, "_expected_reward": self._all(live)}
        if self.slots.over and self.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP:
            infos |= {"final_obs": self.slots.observe(), "_final_obs": truncated.copy()}
            self.slots.reset()
        return self.slots.observe(), reward, self._all(False), truncated, infos

    def market_ahead(self, steps: int, slots: Ints | None = None) -> Floats32:
        """Returns the market part of the observations of this and the next `steps` - 1 decisions, `[steps, b, 1]`.

        It is what the present episodes would show if they went on, bit for bit; row 0 is that of the present
        observation, and rows after the end of the episode repeat the final one. No action changes the cue, so a
        recurrent learner may run over a whole fragment in one call. For the learner only: a policy never sees any of
        it ahead of time.

        Args:
            steps: At least 1.
            slots: The b slots asked about; None: all.

        Raises:
            ResetNeeded: There is no episode yet.
        """
        return self.slots.market_ahead(steps, slots)

    def _all(self, answer: bool) -> Bools:
        return np.full(self.num_envs, answer)


def register() -> None:
    """Makes `gym.make` and `gym.make_vec` know `swing_rl/World-v0`; calling it twice changes nothing."""
    if ENV_ID not in gym.registry:
        gym.register(
            ENV_ID,
            entry_point="envs.worlds:WorldEnv",
            vector_entry_point="envs.worlds:WorldVectorEnv",
            order_enforce=False,
        )
