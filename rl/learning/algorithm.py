"""What A3C and PPO share: settings, schedules, counters, metrics and checkpoints.

The driver keeps the weights (in RLlib's learner, local or remote), the counters, and the moments of the returns. Every
request to a worker carries the newest weights and the schedules' present values, so a worker needs no state of its own
beyond its episodes: one that was started anew joins at once.
"""

from __future__ import annotations

import copy
import time
from collections import defaultdict, deque
from typing import Any

import numpy as np
from ray.exceptions import RayTaskError
from ray.rllib.algorithms.algorithm import Algorithm
from ray.rllib.algorithms.algorithm_config import AlgorithmConfig, NotProvided
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.metrics import (
    ENV_RUNNER_RESULTS,
    EPISODE_LEN_MEAN,
    EPISODE_RETURN_MEAN,
    LEARNER_RESULTS,
    NUM_ENV_STEPS_SAMPLED_LIFETIME,
    NUM_EPISODES,
)

from data_pipeline.errors import ConfigError, RunError
from rl.learning.adapter import actors_of, local_learner, without_state_sync
from rl.learning.crew import Crew
from rl.learning.gradients import GradientWorker, Order, Recipe, Report
from rl.learning.learner import SwingLearner
from rl.learning.module import SwingModule
from rl.learning.network import Joined, SwingNet
from rl.learning.progress import Moments, falling, rising
from rl.learning.runner import SwingEnvRunner
from rl.learning.settings import EngineConfig

REMEMBERED_EPISODES = 100
_PROGRESS = "swing_progress"


class LearnerLostError(RunError):
    """The remote learner is gone, and the newest weights with it."""


class ActorCriticConfig(AlgorithmConfig):
    """Settings of all algorithms here; `rl.learning.settings` says what each means.

    `total_steps` is the budget in environment steps, along which schedules run; training may go on beyond it, with
    the values of its end. `iteration_steps` is what one `train()` does, at least.
    """

    worker_class: type[GradientWorker]

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class)
        defaults = EngineConfig()
        amount, learn, a3c = defaults.train, defaults.learn, defaults.a3c
        self.env_runner_cls = SwingEnvRunner
        self.num_env_runners = amount.env_runners
        self.num_envs_per_env_runner = amount.envs_per_runner
        self.rollout_fragment_length = defaults.model.bptt_sessions
        self.lr = learn.lr
        self.gamma = learn.gamma
        self.grad_clip = learn.grad_clip
        self.lambda_ = learn.gae_lambda
        self.entropy_coeff = learn.entropy
        self.vf_loss_coeff = learn.value_weight
        self.lr_fall = learn.lr_fall
        self.cost_rise = learn.cost_rise
        self.scale_rewards = learn.scale_rewards
        self.normalise_advantages = learn.normalise_advantages
        self.max_staleness = a3c.max_staleness
        self.staleness_aware = a3c.staleness_aware
        self.request_lead_s = a3c.request_lead_s
        self.request_timeout_s = a3c.request_timeout_s
        self.total_steps = amount.steps
        self.iteration_steps = amount.iteration_steps
        self.min_time_s_per_iteration = 0
        self.restart_failed_env_runners = True
        self.delay_between_env_runner_restarts_s = 0.0
        without_state_sync(self)

    def training(
        self,
        *,
        lambda_: float = NotProvided,
        entropy_coeff: float = NotProvided,
        vf_loss_coeff: float = NotProvided,
        lr_fall: float = NotProvided,
        cost_rise: float = NotProvided,
        scale_rewards: bool = NotProvided,
        normalise_advantages: bool = NotProvided,
        max_staleness: int = NotProvided,
        staleness_aware: bool = NotProvided,
        total_steps: int = NotProvided,
        iteration_steps: int = NotProvided,
        request_lead_s: float = NotProvided,
        request_timeout_s: float = NotProvided,
        **kwargs: Any,
    ) -> ActorCriticConfig:
        """Sets what learning needs; `lr`, `gamma` and `grad_clip` are RLlib's own."""
        super().training(**kwargs)
        given = {name: value for name, value in locals().items() if name not in ("self", "kwargs", "__class__")}
        return self._set(given)

    def _set(self, given: dict[str, Any]) -> ActorCriticConfig:
        for name, value in given.items():
            if value is not NotProvided:
                setattr(self, name, value)
        return self

    def get_default_rl_module_spec(self) -> RLModuleSpec:
        """Returns the recurrent network; its size comes with `.rl_module(rl_module_spec=...)`."""
        return RLModuleSpec(module_class=SwingModule, model_config={"action": "discrete"})

    def get_default_learner_class(self) -> type:
        """Returns the keeper of weights and optimiser."""
        return SwingLearner

    def validate(self) -> None:
        """Checks what would otherwise fail late or silently.

        Raises:
            ConfigError: A setting that contradicts the engine.
        """
        super().validate()
        if not isinstance(self.lr, float):
            raise ConfigError(f"lr {self.lr!r}: give a number; its schedule is lr_fall")
        if self.num_learners > 1:
            raise ConfigError(f"num_learners {self.num_learners}: one learner applies all gradients; give 0 or 1")
        if not isinstance(self.rollout_fragment_length, int):
            raise ConfigError(f"rollout_fragment_length {self.rollout_fragment_length!r}: give a number of steps")
        if self.grad_clip is None:
            raise ConfigError("grad_clip None: give the norm that gradients are scaled down to")
        # Workers reset themselves in the step that ends an episode, and are called with whatever actor this makes.
        self.gym_env_vectorize_mode = "vector_entry_point"

    def get_evaluation_config_object(self) -> ActorCriticConfig | None:
        """Returns the settings of workers that evaluate, whose fragments are as long as those of training.

        RLlib would make them one step or the whole evaluation long.
        """
        config: ActorCriticConfig | None = super().get_evaluation_config_object()
        if config is not None:
            config.rollout_fragment_length = self.rollout_fragment_length
        return config

    def recipe(self) -> Recipe:
        """Returns how workers learn from a fragment."""
        return Recipe(
            steps=self.rollout_fragment_length,
            gamma=self.gamma,
            lambda_=self.lambda_,
            value=self.vf_loss_coeff,
            normalise=self.normalise_advantages,
        )


class ActorCritic(Algorithm):
    """The driver's side; subclasses say in `training_step` who waits for whom."""

    config: ActorCriticConfig

    def setup(self, config: AlgorithmConfig) -> None:
        """Builds workers, learner and counters."""
        self.steps = self.version = 0
        self.moments = Moments()
        self.counters: dict[str, int] = dict.fromkeys(("gradients", "stale", "not_finite"), 0)
        self._returns: deque[float] = deque(maxlen=REMEMBERED_EPISODES)
        self._lengths: deque[int] = deque(maxlen=REMEMBERED_EPISODES)
        self._rows: list[dict[str, float]] = []
        self._per_worker: dict[int, list[float]] = defaultdict(lambda: [0.0, 0.0])
        self._sent: tuple[int, Any] = (-1, None)
        try:
            super().setup(config)
        except IndexError as error:  # all that RLlib says when no worker came up
            raise RunError("no worker could be started; the first error is logged above") from error
        self.crew = Crew(actors_of(self.env_runner_group), self.config.request_timeout_s, lead_s=self.lead_s)

    def restore_env_runners(self, env_runner_group: EnvRunnerGroup) -> list[int]:
        """Leaves training workers to the crew: RLlib would wait for each that is just starting."""
        if env_runner_group is self.env_runner_group:
            return []
        restored: list[int] = super().restore_env_runners(env_runner_group)
        return restored

    def order(self) -> Order:
        """Returns the schedules' present values."""
        config, done = self.config, self.steps / self.config.total_steps
        return Order(
            version=self.version,
            cost_scale=rising(done, config.cost_rise),
            reward_scale=self.moments.scale if config.scale_rewards else 1.0,
            entropy=config.entropy_coeff,
        )

    @property
    def step_size(self) -> float:
        """Adam's, at this point of the budget."""
        return float(self.config.lr) * falling(self.steps / self.config.total_steps, self.config.lr_fall)

    def ask(self, worker: int, method: str) -> None:
        """Sends a request with the newest weights and the schedules' present values to an idle worker."""
        self.crew.ask(worker, method, self.weights(), self.order())

    def weights(self) -> Any:
        """Returns the newest weights for a request.

        They travel inside it: each version goes to about one worker, and Ray's object store would only be a detour.
        """
        if self._sent[0] != self.version:
            self._sent = (self.version, self.learner("vector"))
        return self._sent[1]

    @property
    def lead_s(self) -> float:
        """So long before it is expected to answer, a worker may get its next request."""
        return 0.0

    @property
    def crew_size(self) -> int:
        """Number of remote workers."""
        return int(self.config.num_env_runners)

    def learner(self, method: str, *arguments: Any) -> Any:
        """Calls a method of the learner, here or in its own process."""
        learner = local_learner(self.learner_group)
        if learner is not None:
            return getattr(learner, method)(*arguments)
        results = list(self.learner_group.foreach_learner(lambda each: getattr(each, method)(*arguments)))
        if not results:
            raise LearnerLostError("the learner's process ended before it was asked")
        answer = results[0].get()
        if results[0].ok:
            return answer
        if isinstance(answer, RayTaskError):  # a mistake, as it would be raised here by a local one
            raise answer
        raise LearnerLostError(f"the learner's process ended: {str(answer).splitlines()[0]}")

    def trained(self) -> SwingNet:
        """Returns a copy of the network with the newest weights."""
        net: SwingNet = copy.deepcopy(self.env_runner.module.net)
        Joined(net.parameters()).load(self.learner("vector"))
        return net

    def account(self, worker: int, report: Report, seconds: float, figures: dict[str, float]) -> None:
        """Counts what a worker did."""
        self.steps += report.steps
        self.moments = self.moments.merged(report.moments)
        self._returns.extend(report.episodes.returns.tolist())
        self._lengths.extend(report.episodes.lengths.tolist())
        self._rows.append({**report.figures, **figures})
        self._per_worker[worker][0] += report.steps
        self._per_worker[worker][1] += seconds

    def publish(self, started: float, steps: int) -> None:
        """Logs the iteration's figures, where RLlib, Tune and TensorBoard look for them."""
        log, elapsed = self.metrics.log_value, time.perf_counter() - started
        log((ENV_RUNNER_RESULTS, NUM_ENV_STEPS_SAMPLED_LIFETIME), steps, reduce="lifetime_sum")
        if self._returns:
            log((ENV_RUNNER_RESULTS, EPISODE_RETURN_MEAN), float(np.mean(self._returns)), window=1)
            log((ENV_RUNNER_RESULTS, EPISODE_LEN_MEAN), float(np.mean(self._lengths)), window=1)
        log((ENV_RUNNER_RESULTS, NUM_EPISODES), len(self._returns), window=1)
        log((ENV_RUNNER_RESULTS, "steps_per_second"), steps / elapsed, window=1)
        for worker, (done, busy) in self._per_worker.items():
            if busy:
                log((ENV_RUNNER_RESULTS, "worker", str(worker), "steps_per_busy_second"), done / busy, window=1)
                log((ENV_RUNNER_RESULTS, "worker", str(worker), "busy_share"), busy / elapsed, window=1)
        for name, value in self._figures().items():
            log((LEARNER_RESULTS, DEFAULT_MODULE_ID, name), value, window=1)
        self._rows, self._per_worker = [], defaultdict(lambda: [0.0, 0.0])

    def _figures(self) -> dict[str, float]:
        names = {name for row in self._rows for name in row}
        means = {name: float(np.mean([row[name] for row in self._rows if name in row])) for name in names}
        if "staleness" in names:
            means["staleness_max"] = max(row["staleness"] for row in self._rows if "staleness" in row)
        order = self.order()
        return {
            **means,
            **self.counters,
            "version": self.version,
            "workers_lost": self.crew.lost,
            "workers_absent": self.crew.absent,
            "learning_rate": self.step_size,
            "cost_scale": order.cost_scale,
            "reward_scale": order.reward_scale,
        }

    def get_state(self, *arguments: Any, **kwargs: Any) -> dict[str, Any]:
        """Returns RLlib's state and the counters."""
        state: dict[str, Any] = super().get_state(*arguments, **kwargs)
        state[_PROGRESS] = {
            "steps": self.steps,
            "version": self.version,
            "moments": tuple(self.moments),
            "counters": dict(self.counters),
            "returns": list(self._returns),
            "lengths": list(self._lengths),
        }
        return state

    def save_to_path(self, *arguments: Any, **kwargs: Any) -> str:
        """Writes a checkpoint.

        Raises:
            LearnerLostError: The checkpoint lacks the weights, which RLlib would not say in every case.
        """
        try:
            path: str = super().save_to_path(*arguments, **kwargs)
        finally:
            self.learner("vector")
        return path

    def set_state(self, state: dict[str, Any]) -> None:
        """Continues where the state was taken; answers to earlier requests are dropped."""
        super().set_state(state)
        progress = state.get(_PROGRESS)
        if progress is None:
            return
        self.crew.drain(self.config.request_timeout_s)
        self.steps, self.version = progress["steps"], progress["version"]
        self.moments, self.counters = Moments(*progress["moments"]), dict(progress["counters"])
        self._returns = deque(progress["returns"], maxlen=REMEMBERED_EPISODES)
        self._lengths = deque(progress["lengths"], maxlen=REMEMBERED_EPISODES)
        self._sent = (-1, None)
