"""Asynchronous advantage actor-critic (Mnih et al. 2016) on RLlib's new API stack.

Each worker computes gradients on weights that may be stale; the driver applies each as it arrives and answers with the
newest weights. Nobody waits for anybody else.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from rl.learning.algorithm import ActorCritic, ActorCriticConfig
from rl.learning.gradients import A3cWorker, Report


class A3CConfig(ActorCriticConfig):
    """`A3CConfig().environment(...).training(lr=..., max_staleness=...).build_algo()`."""

    worker_class = A3cWorker

    def __init__(self, algo_class: type | None = None) -> None:
        super().__init__(algo_class=algo_class or A3C)


class A3C(ActorCritic):
    """Applies gradients on arrival."""

    @classmethod
    def get_default_config(cls) -> ActorCriticConfig:
        """Returns the defaults."""
        return A3CConfig()

    @property
    def lead_s(self) -> float:
        """See `a3c.request_lead_s`."""
        return float(self.config.request_lead_s)

    def training_step(self) -> None:
        """Applies gradients until `iteration_steps` were done; those still under way arrive in the next call."""
        started, before = time.perf_counter(), self.steps
        while self.steps - before < self.config.iteration_steps:
            if not self.crew_size:
                self._take(0, *self.env_runner.gradient(self.weights(), self.order()))
                continue
            for worker in self.crew.due:
                self.ask(worker, "gradient")
            for answer in self.crew.answers():
                self._take(answer.worker, *answer.value)
                # The next answer in line may wait, the worker must not.
                if self.crew.is_due(answer.worker):
                    self.ask(answer.worker, "gradient")
        self.publish(started, self.steps - before)

    def _take(self, worker: int, gradient: Any, report: Report, seconds: float) -> None:
        """Applies one gradient, unless it is too old or not finite."""
        staleness = self.version - report.version
        figures = {"staleness": float(staleness), "age_of_data": float(self.version - report.acted)}
        if staleness > self.config.max_staleness * max(self.crew_size, 1):
            self.counters["stale"] += 1
        else:
            step = self.step_size / max(staleness, 1) if self.config.staleness_aware else self.step_size
            norm = self.learner("apply_gradient", gradient, step)
            if np.isfinite(norm):
                self.counters["gradients"] += 1
                self.version += 1
                figures["gradient_norm"] = norm
            else:
                self.counters["not_finite"] += 1
        self.account(worker, report, seconds, figures)
