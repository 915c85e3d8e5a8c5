"""Proximal policy optimisation (Schulman et al. 2017), in step or asynchronous, on A3C's workers and network."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import ray
from ray.rllib.algorithms.algorithm_config import NotProvided

from data_pipeline.errors import RunError
from rl.learning.a3c import A3C
from rl.learning.algorithm import ActorCritic, ActorCriticConfig
from rl.learning.gradients import AsyncPpoWorker, Recipe
from rl.learning.settings import PpoConfig


class PPOConfig(ActorCriticConfig):
    """Workers sample in step; the learner makes several passes over what they bring."""

    worker_class = AsyncPpoWorker

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or PPO)
        defaults = PpoConfig()
        self.clip_param = defaults.clip
        self.num_epochs = defaults.epochs
        self.minibatches = defaults.minibatches
        self.target_kl = defaults.target_kl
        self.vtrace = defaults.vtrace
        self.max_age = defaults.max_age

    def training(
        self,
        *,
        clip_param: float = NotProvided,
        minibatches: int = NotProvided,
        target_kl: float | None = NotProvided,
        vtrace: bool = NotProvided,
        max_age: int = NotProvided,
        **kwargs: Any,
    ) -> PPOConfig:
        """Sets what learning needs; see `rl.learning.settings.PpoConfig`."""
        super().training(**kwargs)
        self._set(
            {
                "clip_param": clip_param,
                "minibatches": minibatches,
                "target_kl": target_kl,
                "vtrace": vtrace,
                "max_age": max_age,
            }
        )
        return self

    def recipe(self) -> Recipe:
        """Returns how fragments are learned from."""
        return replace(
            super().recipe(),
            clip=self.clip_param,
            epochs=self.num_epochs,
            minibatches=self.minibatches,
            target_kl=self.target_kl,
            vtrace=self.vtrace,
            max_age=self.max_age,
        )


class PPO(ActorCritic):
    """Waits for a fragment of every worker, then learns from all of them."""

    config: PPOConfig

    @classmethod
    def get_default_config(cls) -> ActorCriticConfig:
        """Returns the defaults."""
        return PPOConfig()

    def weights(self) -> Any:
        """Returns a reference, put once per version, if workers are remote: all of them get the same."""
        if self._sent[0] != self.version and self.crew_size:
            self._sent = (self.version, ray.put(self.learner("vector")))
        return super().weights()

    def training_step(self) -> None:
        """Samples and learns until `iteration_steps` were done."""
        started, before = time.perf_counter(), self.steps
        while self.steps - before < self.config.iteration_steps:
            self._learn(self._sampled())
        self.publish(started, self.steps - before)

    def _sampled(self) -> list[tuple[int, Any]]:
        """Returns a fragment of each worker that is there, as (worker, answer)."""
        if not self.crew_size:
            return [(0, self.env_runner.fragment(self.weights(), self.order()))]
        found: list[tuple[int, Any]] = []
        while not found:  # again if all of them died: those that are back
            for worker in self.crew.idle:
                self.ask(worker, "fragment")
            found += [(answer.worker, answer.value) for answer in self.crew.answers()]
            while self.crew.busy:
                found += [(answer.worker, answer.value) for answer in self.crew.answers()]
        return found

    def _learn(self, answers: list[tuple[int, Any]]) -> None:
        # In one order whoever was first, so that a run can be repeated.
        answers = sorted(answers, key=lambda answer: answer[0])
        fragments = [value[0] for _, value in answers]
        seed = [self.config.seed or 0, self.version]
        figures, taken, refused = self.learner(
            "learn", fragments, self.config.recipe(), self.step_size, self.config.entropy_coeff, seed
        )
        self.version += taken
        self.counters["gradients"] += taken
        self.counters["not_finite"] += refused
        if not taken:
            raise RunError("no gradient of a whole batch was finite; lower learn.lr")
        for worker, (_, report, seconds) in answers:
            self.account(worker, report, seconds, {**figures, "staleness": 0.0})


class AsyncPPOConfig(PPOConfig):
    """Workers learn from their own fragments and ship gradients, as in A3C."""

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or AsyncPPO)


class AsyncPPO(A3C):
    """Applies minibatch gradients on arrival: workers sample and compute on while others' updates are applied.

    Fragments stay where they were sampled and keep the acting policy's log-probabilities and version; ratios to the
    newest weights are clipped, values corrected by V-trace, fragments older than `max_age` versions dropped.
    """

    @classmethod
    def get_default_config(cls) -> ActorCriticConfig:
        """Returns the defaults."""
        return AsyncPPOConfig()
