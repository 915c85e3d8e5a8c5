"""A discrete-event model of A3C on many runners: rates, staleness and the bottleneck, from measured costs.

Runners compute, and send gradients over one link to the driver, which serves them in the order in which they come, as
`rl.learning.a3c` and `rl.learning.crew` do: look who has answered, fetch all of that, then for each apply the gradient,
publish the weights and send the next request. No Ray, no clock: a pure function of its parameters and a seed.

Left out: failures, other traffic, and what staleness does to learning.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

import numpy as np


@dataclass(frozen=True)
class Cost:
    """Seconds that grow with the bytes that are handled."""

    fixed_s: float
    per_byte_s: float = 0.0

    def of(self, size: float) -> float:
        """Returns the seconds for `size` bytes."""
        return self.fixed_s + self.per_byte_s * size


@dataclass(frozen=True)
class Costs:
    """What `benchmarks.scaling` measures.

    Attributes:
        gradient_bytes: Of a gradient, and of the weights.
        fragment_steps: Environment steps of one fragment, over all slots of a runner.
        compute_s: A runner's CPU-seconds per fragment and its gradient, as measured; drawn from with replacement.
        call: Ray's part of a request beside the driver's thread; charged to the runner.
        wait_s: Driver: a look at who has answered.
        wait_per_runner_s: The same, for each runner whose answer is awaited.
        get_s: Driver: fetching one answer.
        apply: Driver: optimiser step and bookkeeping.
        publish: Driver: new weights into the object store.
        send_s: Driver: one request.
        serve: A process that is called back to back: gradient in, weights out, but for applying.
    """

    gradient_bytes: int
    fragment_steps: int
    compute_s: tuple[float, ...]
    call: Cost
    wait_s: float
    wait_per_runner_s: float
    get_s: float
    apply: Cost
    publish: Cost
    send_s: float
    serve: Cost

    def rate(self, design: Design, shards: int = 1) -> float:
        """Returns the gradients per second of whoever applies them, were it never idle and its looks free."""
        part = self.gradient_bytes / shards
        if design is Design.DRIVER:
            return 1.0 / (self.get_s + self.apply.of(part) + self.publish.of(part) + self.send_s)
        return 1.0 / (self.serve.of(part) + self.apply.of(part))


class Design(StrEnum):
    """Who applies gradients."""

    DRIVER = "driver"
    """The driver, as the product does with its local learner."""
    LEARNER = "remote learner"
    """A process of its own, on one node with the driver, which only passes references on."""
    SHARDS = "shards"
    """`shards` servers, each of a part of the vector on a node of its own, which runners call without the driver."""


@dataclass(frozen=True)
class Plan:
    """How many runners there are, and how they work together.

    Attributes:
        runners: Of one process each.
        cores: That runners and driver share equally, less what others use; None: one for each, as on a cluster.
        bytes_per_s: Each way, of the link of each node that applies gradients.
        latency_s: Of the network, one way.
        accumulate: Fragments per gradient.
        max_staleness: Gradients that are older, in versions of the weights, are refused; None: none is.
        design: Who applies gradients.
        shards: Servers of `Design.SHARDS`.
    """

    runners: int
    cores: float | None = None
    bytes_per_s: float = math.inf
    latency_s: float = 0.0
    accumulate: int = 1
    max_staleness: int | None = None
    design: Design = Design.DRIVER
    shards: int = 1


@dataclass(frozen=True)
class Tally:
    """Gradients since the start; `sent = applied + refused + under_way`."""

    sent: int
    applied: int
    refused: int
    under_way: int
    """Sent and not yet looked at."""


@dataclass(frozen=True)
class Prediction:
    """What happens once the start is forgotten.

    Attributes:
        gradients_per_s: Applied.
        env_steps_per_s: Behind them.
        staleness: Mean over all that arrived, in versions of the weights.
        staleness_max: The greatest.
        kept: Share of the gradients that arrived that were applied.
        busy: Share of the time that each station works; the mean over runners.
        bottleneck: The station that works most, and of the driver's time the greater part.
        tally: Of the whole run.
    """

    gradients_per_s: float
    env_steps_per_s: float
    staleness: float
    staleness_max: int
    kept: float
    busy: dict[str, float]
    bottleneck: str
    tally: Tally


def predict(costs: Costs, plan: Plan, gradients: int | None = None, seed: int = 0) -> Prediction:
    """Returns what the plan does.

    Args:
        costs: Measured.
        plan: To be judged.
        gradients: Counted, after four for each runner that are not; None: 20 for each runner, at least 4,000.
        seed: Of the draws of computing times.
    """
    run = _Run(costs, plan, seed)
    run.until(4 * plan.runners)
    run.forget()
    return run.until(run.arrived + (gradients or max(4000, 20 * plan.runners))).prediction()


class _Fifo:
    """A server that serves one at a time and shares its core with nobody: a link, a learner."""

    def __init__(self) -> None:
        self.free_at = self.busy_s = 0.0

    def serve(self, now: float, seconds: float) -> float:
        """Returns when it is done with what comes now."""
        self.free_at = max(now, self.free_at) + seconds
        self.busy_s += seconds
        return self.free_at


_DRIVER = -1
"""Beside the numbers of runners."""


class _Run:
    """The events. Processes that share cores all advance at one speed, so one heap by work done orders them."""

    def __init__(self, costs: Costs, plan: Plan, seed: int) -> None:
        self.costs, self.plan = costs, plan
        self._rng = np.random.default_rng(seed)
        self._draws: Iterator[float] = iter(())
        self._part = costs.gradient_bytes / (plan.shards if plan.design is Design.SHARDS else 1)
        self._working: list[tuple[float, int, int]] = []
        self._travelling: list[tuple[float, int, int, bool]] = []
        self._up, self._down, self._server = _Fifo(), _Fifo(), _Fifo()
        self._waiting: deque[int] = deque()
        self._batch: deque[int] = deque()
        self._driver = self._serve()
        self._idle, self._number = True, 0
        self._now = self._done = 0.0
        self._sent = self._applied = self._refused = 0
        self._held = [0] * plan.runners
        self.forget()
        next(self._driver)
        for runner in range(plan.runners):
            self._travel(runner * costs.send_s, runner, arrives=False)

    @property
    def arrived(self) -> int:
        """Gradients that were looked at."""
        return self._applied + self._refused

    def forget(self) -> None:
        """Starts what is counted anew, but for the tally."""
        self._since, self._applied_before = self._now, self._applied
        self._runners_s = self._driver_s = self._apply_s = self._transfer_s = 0.0
        for fifo in (self._up, self._down, self._server):
            fifo.busy_s = 0.0
        self._stalenesses: list[int] = []

    def until(self, arrived: int) -> _Run:
        """Goes on until so many gradients were looked at."""
        while self.arrived < arrived:
            self._step()
        return self

    def _step(self) -> None:
        """Goes to the next event."""
        speed = min(1.0, self.plan.cores / max(1, len(self._working))) if self.plan.cores else 1.0
        work = max(0.0, self._working[0][0] - self._done) / speed if self._working else math.inf
        travel = self._travelling[0][0] - self._now if self._travelling else math.inf
        elapsed = min(work, travel)
        self._now += elapsed
        self._done += elapsed * speed
        self._driver_s += 0.0 if self._idle else elapsed
        self._runners_s += (len(self._working) - (not self._idle)) * elapsed
        if work <= travel:
            _, _, process = heapq.heappop(self._working)
            if process == _DRIVER:
                self._advance()
            else:
                self._send(process)
        else:
            _, _, runner, arrives = heapq.heappop(self._travelling)
            if arrives:
                self._arrive(runner)
            else:
                self._begin(runner)

    def _begin(self, runner: int) -> None:
        """A runner has its weights."""
        plan, costs = self.plan, self.costs
        seconds = sum(self._compute_s() for _ in range(plan.accumulate)) + costs.call.of(self._part)
        self._work(seconds + (costs.send_s * plan.shards if plan.design is Design.SHARDS else 0.0), runner)

    def _send(self, runner: int) -> None:
        """A runner has its gradient."""
        self._sent += 1
        passed = self._up.serve(self._now, self._part / self.plan.bytes_per_s)
        self._travel(passed + self.plan.latency_s, runner, arrives=True)

    def _arrive(self, runner: int) -> None:
        """A gradient is there. Shards are alike and see the same requests in the same order: one stands for all."""
        if self.plan.design is Design.SHARDS:
            self._serve_elsewhere(runner)
            return
        self._waiting.append(runner)
        if self._idle:
            self._advance()

    def _serve(self) -> Iterator[float | None]:
        """Yields the seconds of each of the driver's pieces of work, None to wait."""
        costs, here = self.costs, self.plan.design is Design.DRIVER
        while True:
            if not self._waiting:
                yield None
            self._batch, self._waiting = self._waiting, deque()
            looked = costs.wait_s + costs.wait_per_runner_s * self.plan.runners
            yield self._transferred(looked + costs.get_s * len(self._batch))
            while self._batch:
                if here:
                    runner = self._batch.popleft()
                    yield self._take(runner) + self._transferred(costs.send_s)
                    self._reply(runner, self._now)
                else:  # one request to the learner, one to the runner
                    yield self._transferred(2 * costs.send_s)
                    self._serve_elsewhere(self._batch.popleft())

    def _advance(self) -> None:
        """The driver goes on."""
        seconds = next(self._driver)
        self._idle = seconds is None
        if seconds is not None:
            self._work(seconds, _DRIVER)

    def _serve_elsewhere(self, runner: int) -> None:
        """A learner or a shard takes a gradient; in the order of arrival, so versions can be counted at once."""
        seconds = self._take(runner) + self.costs.serve.of(self._part)
        self._reply(runner, self._server.serve(self._now, seconds))

    def _take(self, runner: int) -> float:
        """Judges a gradient, and returns the seconds of applying it and, by the driver, of publishing."""
        staleness = self._applied - self._held[runner]
        self._stalenesses.append(staleness)
        if self.plan.max_staleness is not None and staleness > self.plan.max_staleness:
            self._refused += 1
            seconds = 0.0
        else:
            self._applied += 1
            seconds = self.costs.apply.of(self._part)
            self._apply_s += seconds
            if self.plan.design is Design.DRIVER:
                seconds += self._transferred(self.costs.publish.of(self._part))
        self._held[runner] = self._applied
        return seconds

    def _reply(self, runner: int, ready: float) -> None:
        """Weights go to a runner."""
        passed = self._down.serve(ready, self._part / self.plan.bytes_per_s)
        self._travel(passed + self.plan.latency_s, runner, arrives=False)

    def _transferred(self, seconds: float) -> float:
        self._transfer_s += seconds
        return seconds

    def _compute_s(self) -> float:
        seconds = next(self._draws, None)
        if seconds is None:
            self._draws = iter(self._rng.choice(self.costs.compute_s, 4096).tolist())
            seconds = next(self._draws)
        return seconds

    def _work(self, seconds: float, process: int) -> None:
        self._number += 1
        heapq.heappush(self._working, (self._done + seconds, self._number, process))

    def _travel(self, until: float, runner: int, arrives: bool) -> None:
        self._number += 1
        heapq.heappush(self._travelling, (until, self._number, runner, arrives))

    def prediction(self) -> Prediction:
        """Returns what was counted since `forget`."""
        elapsed, design = self._now - self._since, self.plan.design
        applied = self._applied - self._applied_before
        rate = applied / elapsed
        spent = {
            "runners": self._runners_s / self.plan.runners,
            "network": max(self._up.busy_s, self._down.busy_s),
            Design.DRIVER.value: self._driver_s,
        }
        if design is not Design.DRIVER:
            spent[design.value] = self._server.busy_s
        busy = {station: min(1.0, seconds / elapsed) for station, seconds in spent.items()}
        under_way = len(self._waiting) + len(self._batch) + sum(arrives for *_, arrives in self._travelling)
        return Prediction(
            gradients_per_s=rate,
            env_steps_per_s=rate * self.costs.fragment_steps * self.plan.accumulate,
            staleness=float(np.mean(self._stalenesses)),
            staleness_max=max(self._stalenesses),
            kept=applied / len(self._stalenesses),
            busy=busy,
            bottleneck=self._bottleneck(busy),
            tally=Tally(self._sent, self._applied, self._refused, under_way),
        )

    def _bottleneck(self, busy: dict[str, float]) -> str:
        most = max(busy, key=lambda station: busy[station])
        if most != Design.DRIVER.value:
            return most
        return "driver apply" if self._apply_s > self._transfer_s else "driver transfer"
