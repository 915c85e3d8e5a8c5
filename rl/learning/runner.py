"""RLlib's worker as a host of the array-native sampler: no episode objects, no connectors."""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import Any

import numpy as np
import ray
from gymnasium.vector import AutoresetMode
from ray.rllib.core import COMPONENT_RL_MODULE, DEFAULT_MODULE_ID
from ray.rllib.env import INPUT_ENV_SINGLE_SPACES, INPUT_ENV_SPACES
from ray.rllib.env.env_context import EnvContext
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.utils.checkpoints import Checkpointable
from ray.rllib.utils.metrics import (
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MAX,
    EPISODE_RETURN_MEAN,
    EPISODE_RETURN_MIN,
    NUM_ENV_STEPS_SAMPLED,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
    WEIGHTS_SEQ_NO,
)

from envs.contract import Floats32
from rl.learning.adapter import env_creator, seed_of, wants
from rl.learning.gradients import GradientWorker, Order, Report
from rl.learning.process import settle
from rl.learning.rollout import Episodes, Fragment, Sampler


class SwingEnvRunner(EnvRunner, Checkpointable):
    """Steps a native vector environment in SAME_STEP mode, and computes gradients on what it sampled.

    The registered creator is called with an `EnvContext` that holds `num_envs` and `autoreset_mode`.
    """

    def __init__(self, *, config: Any, **kwargs: Any) -> None:
        settle()
        super().__init__(config=config, **kwargs)
        self.spaces: dict[str, Any] = kwargs.get("spaces") or {}
        self._weights_seq_no = 0
        self._episodes: list[Episodes] = []
        self._steps = 0
        self.worker: GradientWorker | None = None
        if self.worker_index != 0 or self.num_workers == 0 or self.config.create_env_on_local_worker:
            self.make_env()
        self.make_module()
        if self.env is not None:
            seed = seed_of(self)
            self.sampler = Sampler(self.module.net, self.env, seed)
            self.worker = self.config.worker_class(self.sampler, self.config.recipe(), seed)

    def make_env(self) -> None:
        """Makes the environment anew."""
        if not self.config.env:
            raise ValueError("no environment; name a registered one by config.environment(...)")
        creator = env_creator(self.config.env) if isinstance(self.config.env, str) else self.config.env
        settings = {
            **self.config.env_config,
            "num_envs": self.config.num_envs_per_env_runner,
            "autoreset_mode": AutoresetMode.SAME_STEP,
        }
        self.env = creator(EnvContext(settings, worker_index=self.worker_index, num_workers=self.num_workers))
        self.num_envs = self.env.num_envs

    def make_module(self) -> None:
        """Makes the network anew; the critic too, for gradients are computed here."""
        self.module = self.config.get_rl_module_spec(spaces=self.get_spaces(), inference_only=False).build()

    def gradient(self, vector: Floats32, order: Order) -> tuple[Floats32, Report, float]:
        """Returns the gradient at the weights `vector`, a report, and the seconds it took."""
        started = time.perf_counter()
        self.assert_healthy()
        gradient, report = self.worker.gradient(vector, order)  # type: ignore[union-attr]
        self._weights_seq_no = order.version
        self.num_env_steps_sampled_lifetime += report.steps
        return gradient, report, time.perf_counter() - started

    def fragment(self, vector: Floats32, order: Order) -> tuple[Fragment, Report, float]:
        """Returns a fragment acted with the weights `vector`, a report, and the seconds it took."""
        started = time.perf_counter()
        self.assert_healthy()
        fragment, report = self.worker.fragment(vector, order)  # type: ignore[union-attr]
        self._weights_seq_no = order.version
        self.num_env_steps_sampled_lifetime += report.steps
        return fragment, report, time.perf_counter() - started

    def sample(
        self,
        *,
        num_timesteps: int | None = None,
        num_episodes: int | None = None,
        explore: bool | None = None,
        force_reset: bool = False,
        **_: Any,
    ) -> list[Fragment]:
        """Returns fragments of at least so many steps or ended episodes, at full costs; one if neither is given.

        Args:
            num_timesteps: Over all slots.
            num_episodes: That ended; as in a stock runner, all of them begin anew.
            explore: Draw actions or take the most probable; None: as configured.
            force_reset: Begin new episodes first.
        """
        self.assert_healthy()
        self.sampler.env.cost_scale = 1.0
        if force_reset or num_episodes is not None:
            self.sampler.restart()
        explore = self.config.explore if explore is None else explore
        fragments: list[Fragment] = []
        steps = episodes = 0
        while True:
            fragment, _forward, done = self.sampler.sample(self.config.recipe().steps, explore=explore)
            fragment.version = self._weights_seq_no
            fragments.append(fragment)
            steps, episodes = steps + fragment.env_steps(), episodes + len(done.returns)
            self._steps += fragment.env_steps()
            self.num_env_steps_sampled_lifetime += fragment.env_steps()
            self._episodes.append(done)
            if steps >= (num_timesteps or 0) and episodes >= (num_episodes or 0):
                return fragments

    def get_metrics(self) -> Any:
        """Returns what `sample` saw since the last call, as a stock runner does; gradients have their own reports."""
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED, self._steps, reduce="sum")
        self.metrics.log_value(NUM_ENV_STEPS_SAMPLED_LIFETIME, self._steps, reduce="lifetime_sum")
        returns = np.concatenate([each.returns for each in self._episodes]) if self._episodes else np.empty(0)
        self.metrics.log_value(NUM_EPISODES, len(returns), reduce="sum")
        if len(returns):
            lengths = np.concatenate([each.lengths for each in self._episodes])
            self.metrics.log_value(EPISODE_RETURN_MEAN, float(returns.mean()), window=1)
            self.metrics.log_value(EPISODE_RETURN_MIN, float(returns.min()), reduce="min", window=1)
            self.metrics.log_value(EPISODE_RETURN_MAX, float(returns.max()), reduce="max", window=1)
            self.metrics.log_value(EPISODE_LEN_MEAN, float(lengths.mean()), window=1)
        self._episodes, self._steps = [], 0
        return self.metrics.reduce()

    def get_spaces(self) -> dict[str, Any]:
        """Returns the spaces of the environment and of the module."""
        if self.env is None:
            return self.spaces
        single = (self.env.single_observation_space, self.env.single_action_space)
        return {
            INPUT_ENV_SPACES: (self.env.observation_space, self.env.action_space),
            INPUT_ENV_SINGLE_SPACES: single,
            DEFAULT_MODULE_ID: single,
        }

    def assert_healthy(self) -> None:
        """Raises if there is no environment to step, as on the driver beside remote workers."""
        if self.worker is None:
            raise AssertionError("this worker has no environment; use remote workers or num_env_runners=0")

    def get_state(
        self,
        components: str | Collection[str] | None = None,
        *,
        not_components: str | Collection[str] | None = None,
        **_: Any,
    ) -> dict[str, Any]:
        """Returns weights and counters."""
        state: dict[str, Any] = {NUM_ENV_STEPS_SAMPLED_LIFETIME: self.num_env_steps_sampled_lifetime}
        if wants(self, COMPONENT_RL_MODULE, components, not_components):
            state[COMPONENT_RL_MODULE] = self.module.get_state()
            state[WEIGHTS_SEQ_NO] = self._weights_seq_no
        return state

    def set_state(self, state: dict[str, Any]) -> None:
        """Takes weights and counters over, older weights too: a rollback is one."""
        if COMPONENT_RL_MODULE in state:
            module = state[COMPONENT_RL_MODULE]
            module = ray.get(module) if isinstance(module, ray.ObjectRef) else module
            self.module.set_state(module.get(DEFAULT_MODULE_ID, module))
            self._weights_seq_no = state.get(WEIGHTS_SEQ_NO, 0)
        if NUM_ENV_STEPS_SAMPLED_LIFETIME in state:
            self.num_env_steps_sampled_lifetime = state[NUM_ENV_STEPS_SAMPLED_LIFETIME]

    def get_ctor_args_and_kwargs(self) -> tuple[tuple[()], dict[str, Any]]:
        """Returns what the constructor was given."""
        return (), {"config": self.config}

    def get_checkpointable_components(self) -> list[tuple[str, Any]]:
        """Returns the parts that are checkpoints of their own."""
        return [(COMPONENT_RL_MODULE, self.module)]

    def stop(self) -> None:
        """Closes the environment."""
        if self.env is not None:
            self.env.close()
