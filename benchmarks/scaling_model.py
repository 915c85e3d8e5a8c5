"""A discrete-event model of A3C on many runners: rates, staleness and the bottleneck, from measured costs.

Runners compute, and send gradients over one link to the driver, which serves them in the order in which they come, as
`rl.learning.a3c` and `rl.learning.crew` do: ask the runners that are about to finish, look who has answered, fetch all
of that, then apply each gradient and ask its runner, unless that has its next request. To ask is to copy the weights,
if they are new, and to send a request with them. No Ray, no clock: a pure function of its parameters and a seed.

Left out: failures, other traffic, and what staleness does to learning.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum, auto

import numpy as np

LATEST = 0.3
"""Share of the latest duration in what a runner is expected to take; the crew's own."""


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
        call: Ray's part of a request beside the driver's thread; charged to the runner, though a part of it overlaps
            computing where requests are sent ahead: pessimistic.
        wait_s: Driver: a look at who has answered.
        wait_per_runner_s: The same, for each runner whose answer is awaited.
        get_s: Driver: fetching one answer.
        apply: Driver: optimiser step and bookkeeping.
        publish_s: Driver: a copy of new weights.
        send: Driver: one request, which carries them.
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
    publish_s: float
    send: Cost
    serve: Cost

    def rate(self, design: Design, shards: int = 1) -> float:
        """Returns the gradients per second of whoever applies them, were it never idle and its looks free.

        The driver can do a little more where it asks several runners at once, for which it copies weights once.
        """
        part = self.gradient_bytes / shards
        if design is Design.DRIVER:
            return 1.0 / (self.get_s + self.apply.of(part) + self.publish_s + self.send.of(part))
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
        lead_s: So long before it is expected to answer, the driver of `Design.DRIVER` asks a runner again, once.
        design: Who applies gradients.
        shards: Servers of `Design.SHARDS`.
    """

    runners: int
    cores: float | None = None
    bytes_per_s: float = math.inf
    latency_s: float = 0.0
    accumulate: int = 1
    max_staleness: int | None = None
    lead_s: float = 0.0
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


class _Comes(Enum):
    """What happens at a time of the clock, whatever the processes do."""

    GRADIENT = auto()
    """To whoever applies it."""
    REQUEST = auto()
    """To a runner, with weights."""
    DUE = auto()
    """A runner may be asked again."""


class _Requests:
    """What the driver knows of one runner, as `rl.learning.crew` does."""

    def __init__(self, lead_s: float) -> None:
        self.versions = deque([0])
        """Of the weights of gradients that were not looked at."""
        self.due_at = math.inf
        """When it may be asked ahead."""
        self._lead_s, self._owed = lead_s, 1
        self._began = self._takes = 0.0

    def is_due(self, now: float) -> bool:
        """Returns whether to ask now."""
        return not self._owed or self.due_at <= now

    def asked(self, now: float, version: int) -> None:
        """Notes a request."""
        if not self._owed:
            self._began = now
        self._owed += 1
        self.versions.append(version)
        self._expect(now)

    def received(self, now: float) -> None:
        """Notes an answer."""
        took = now - self._began
        usual = self._takes or took
        self._takes = usual + LATEST * (took - usual)
        self._began = now
        self._owed -= 1
        self._expect(now)

    def _expect(self, now: float) -> None:
        known = self._lead_s and self._takes and self._owed == 1
        self.due_at = max(now, self._began + self._takes - self._lead_s) if known else math.inf


class _Run:
    """The events. Processes that share cores all advance at one speed, so one heap by work done orders them."""

    def __init__(self, costs: Costs, plan: Plan, seed: int) -> None:
        self.costs, self.plan = costs, plan
        self._rng = np.random.default_rng(seed)
        self._draws: Iterator[float] = iter(())
        self._part = costs.gradient_bytes / (plan.shards if plan.design is Design.SHARDS else 1)
        self._working: list[tuple[float, int, int]] = []
        self._coming: list[tuple[float, int, int, _Comes]] = []
        self._up, self._down, self._server = _Fifo(), _Fifo(), _Fifo()
        self._waiting: deque[int] = deque()
        self._batch: deque[int] = deque()
        self._driver = self._serve()
        self._idle, self._number = True, 0
        self._now = self._done = 0.0
        self._sent = self._applied = self._refused = self._published = 0
        self._requests = [_Requests(plan.lead_s) for _ in range(plan.runners)]
        self._at_hand = [0] * plan.runners
        self.forget()
        next(self._driver)
        for runner in range(plan.runners):
            self._expect(runner * costs.send.of(self._part), runner, _Comes.REQUEST)

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
        wait = self._coming[0][0] - self._now if self._coming else math.inf
        elapsed = min(work, wait)
        self._now += elapsed
        self._done += elapsed * speed
        self._driver_s += 0.0 if self._idle else elapsed
        self._runners_s += (len(self._working) - (not self._idle)) * elapsed
        if work <= wait:
            _, _, process = heapq.heappop(self._working)
            if process == _DRIVER:
                self._advance()
            else:
                self._send(process)
        else:
            self._now, _, runner, what = heapq.heappop(self._coming)
            self._happen(runner, what)

    def _happen(self, runner: int, what: _Comes) -> None:
        if what is _Comes.REQUEST:
            self._at_hand[runner] += 1
            if self._at_hand[runner] == 1:
                self._begin(runner)
        elif what is _Comes.GRADIENT:
            self._arrive(runner)
        elif self._idle:
            self._advance()

    def _begin(self, runner: int) -> None:
        """A runner takes up the next request that lies at hand."""
        plan, costs = self.plan, self.costs
        seconds = sum(self._compute_s() for _ in range(plan.accumulate)) + costs.call.of(self._part)
        self._work(seconds + (costs.send.of(self._part) * plan.shards if plan.design is Design.SHARDS else 0.0), runner)

    def _send(self, runner: int) -> None:
        """A runner has its gradient."""
        self._sent += 1
        passed = self._up.serve(self._now, self._part / self.plan.bytes_per_s)
        self._expect(passed + self.plan.latency_s, runner, _Comes.GRADIENT)
        self._at_hand[runner] -= 1
        if self._at_hand[runner]:
            self._begin(runner)

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
            if self.plan.lead_s:
                for runner in [n for n, each in enumerate(self._requests) if each.due_at <= self._now]:
                    yield from self._ask(runner)
            if not self._waiting:
                yield None
                continue
            self._batch, self._waiting = self._waiting, deque()
            looked = costs.wait_s + costs.wait_per_runner_s * self.plan.runners
            yield self._transferred(looked + costs.get_s * len(self._batch))
            yield from self._apply_batch() if here else self._pass_batch_on()

    def _apply_batch(self) -> Iterator[float]:
        for runner in self._batch:
            self._requests[runner].received(self._now)
            self._expect_due(runner)
        while self._batch:
            runner = self._batch.popleft()
            yield self._take(runner)
            if self._requests[runner].is_due(self._now):
                yield from self._ask(runner)

    def _pass_batch_on(self) -> Iterator[float]:
        while self._batch:
            yield self._transferred(2 * self.costs.send.fixed_s)  # to the learner and to the runner, of references
            self._serve_elsewhere(self._batch.popleft())

    def _ask(self, runner: int) -> Iterator[float]:
        """The driver copies the weights, if they are new, and sends a request."""
        publish_s = self.costs.publish_s if self._published != self._applied else 0.0
        self._published = self._applied
        yield self._transferred(publish_s + self.costs.send.of(self._part))
        self._reply(runner, self._now)
        self._expect_due(runner)

    def _expect_due(self, runner: int) -> None:
        due_at = self._requests[runner].due_at
        if due_at < math.inf:
            self._expect(due_at, runner, _Comes.DUE)

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
        """Judges a gradient, and returns the seconds of applying it."""
        staleness = self._applied - self._requests[runner].versions.popleft()
        self._stalenesses.append(staleness)
        if self.plan.max_staleness is not None and staleness > self.plan.max_staleness:
            self._refused += 1
            return 0.0
        self._applied += 1
        seconds = self.costs.apply.of(self._part)
        self._apply_s += seconds
        return seconds

    def _reply(self, runner: int, ready: float) -> None:
        """Weights go to a runner."""
        self._requests[runner].asked(self._now, self._applied)
        passed = self._down.serve(ready, self._part / self.plan.bytes_per_s)
        self._expect(passed + self.plan.latency_s, runner, _Comes.REQUEST)

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

    def _expect(self, at: float, runner: int, what: _Comes) -> None:
        self._number += 1
        heapq.heappush(self._coming, (at, self._number, runner, what))

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
        on_the_way = sum(what is _Comes.GRADIENT for *_, what in self._coming)
        under_way = len(self._waiting) + len(self._batch) + on_the_way
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
