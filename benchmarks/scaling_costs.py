"""What one request of A3C costs, measured: computing a gradient, the driver's part, Ray's, and each further byte."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import torch

from benchmarks.scaling_model import Cost, Costs
from benchmarks.training import ORDER, SLOTS, worker_of
from envs.contract import Floats32
from rl.learning.algorithm import ActorCritic
from rl.learning.crew import Crew
from rl.learning.gradients import Optimiser, Order, Report
from rl.learning.runner import SwingEnvRunner

LARGER = 8
"""Times the bytes of the second point that costs per byte are taken from."""


class Echo:
    """Stands for a runner that computes nothing: it answers with an array of the right size."""

    def __init__(self, size: int) -> None:
        self._gradient = np.full(size, 1e-4, np.float32)

    def gradient(self, _vector: Floats32, _order: Any, report: Report) -> tuple[Floats32, Report, float]:
        """Answers."""
        return self._gradient, report, 0.0

    def ping(self) -> None:
        """Answers once all requests before it are done."""


class Silent:
    """Stands for runners that are computing."""

    def gradient(self, *_: Any) -> None:
        """Does not answer."""
        time.sleep(3600.0)


def timed(work: Callable[[], Any], repeats: int, before: Callable[[], Any] = lambda: None) -> float:
    """Returns the median of seconds of `work`, after one run that is not counted; `before` is not timed."""
    found = []
    for number in range(repeats + 1):
        before()
        started = time.perf_counter()
        work()
        if number:
            found.append(time.perf_counter() - started)
    return statistics.median(found)


class Computing:
    """A runner in a process of its own, whose requests cost nothing."""

    def __init__(self) -> None:
        self._worker, self._optimiser = worker_of(SLOTS)
        self._compute()

    def seconds(self, gradients: int) -> list[float]:
        """Returns those of CPU of each; those of the clock would hold what others do on the machine."""
        return [self._compute() for _ in range(gradients)]

    def sample(self) -> tuple[int, Report]:
        """Returns how many numbers a gradient has, and a report."""
        gradient, report = self._worker.gradient(self._optimiser.vector(), ORDER)
        return gradient.size, report

    def _compute(self) -> float:
        weights = self._optimiser.vector()
        started = time.thread_time()
        gradient, _ = self._worker.gradient(weights, ORDER)
        seconds = time.thread_time() - started
        self._optimiser.apply(gradient, 3e-4)
        return seconds


@dataclass
class AtOnce:
    """Processes that compute at once, one on each of as many cores: they slow each other down."""

    actors: list[Any]
    gradients: int
    seconds: list[float] = field(default_factory=list)
    """Of each gradient."""

    def rate(self) -> float:
        """Returns gradients per CPU-second of some."""
        asked = [each.seconds.remote(self.gradients) for each in self.actors]
        taken = [seconds for found in ray.get(asked) for seconds in found]
        self.seconds += taken
        return len(taken) / sum(taken)


class Ready(SwingEnvRunner):
    """A runner that computes one gradient, and answers with it ever after."""

    _kept: tuple[Floats32, Report] | None = None

    def gradient(self, vector: Floats32, order: Order) -> tuple[Floats32, Report, float]:
        """Answers."""
        if self._kept is None:
            self._kept = super().gradient(vector, order)[:2]
        gradient, report = self._kept
        return gradient, report._replace(version=order.version, acted=order.version), 0.0


class Receiving:
    """The driver's part of a request and Ray's, by the product's own crew, on workers that compute nothing."""

    def __init__(self, size: int, report: Report, repeats: int) -> None:
        self._size, self._report, self._repeats = size, report, repeats
        self._weights = {times: np.zeros(size * times, np.float32) for times in (1, LARGER)}

    def answers_s(self, ready: int, silent: int) -> float:
        """Returns the driver's seconds to fetch `ready` answers while `silent` more are awaited."""
        echo, mute = self._echo(), ray.remote(Silent).options(num_cpus=0).remote()
        crew = Crew({n: echo if n < ready else mute for n in range(ready + silent)}, timeout_s=3600.0)
        for worker in range(ready, ready + silent):
            self._ask(crew, worker)

        def asked() -> None:
            for worker in range(ready):
                self._ask(crew, worker)
            ray.get(echo.ping.remote())

        seconds = timed(crew.answers, self._repeats, asked)
        ray.kill(echo)
        ray.kill(mute)
        return seconds

    def send_and_round_trip_s(self, times_larger: int = 1) -> tuple[float, float]:
        """Returns the driver's seconds to send a request, and those until the answer is in its hands."""
        echo = self._echo(times_larger)
        crew = Crew({0: echo}, timeout_s=3600.0)
        sent = timed(lambda: self._ask(crew, 0, times_larger), self._repeats, lambda: crew.drain(60.0))
        crew.drain(60.0)

        def both() -> None:
            self._ask(crew, 0, times_larger)
            while not crew.answers():
                pass

        trip = timed(both, self._repeats)
        ray.kill(echo)
        return sent, trip

    def served_s(self, times_larger: int = 1) -> float:
        """Returns a process's seconds for a call with an array and an answer with one, back to back."""
        echo, calls = self._echo(times_larger), 32
        weights = self._weights[times_larger]

        def all_of_them() -> None:
            held = [echo.gradient.remote(weights, ORDER, self._report) for _ in range(calls)]
            ray.get(echo.ping.remote())
            held.clear()

        seconds = timed(all_of_them, max(2, self._repeats // 10)) / calls
        ray.kill(echo)
        return seconds

    def _echo(self, times_larger: int = 1) -> Any:
        echo = ray.remote(Echo).options(num_cpus=0).remote(self._size * times_larger)
        ray.get(echo.ping.remote())
        return echo

    def _ask(self, crew: Crew, worker: int, times_larger: int = 1) -> None:
        crew.ask(worker, "gradient", self._weights[times_larger], ORDER, self._report)


def applying(driver: ActorCritic, report: Report, size: int, repeats: int) -> tuple[float, float]:
    """Returns the driver's seconds to take a gradient in, bookkeeping included, and to hand out new weights."""
    gradient = np.full(size, 1e-4, np.float32)
    current = report._replace(version=driver.version, acted=driver.version)
    take: Callable[..., None] = driver._take
    applied = timed(lambda: take(1, gradient, current._replace(version=driver.version), 0.0), repeats)
    published = timed(driver.weights, repeats, lambda: setattr(driver, "version", driver.version + 1))
    return applied, published


def per_byte(work: Callable[[int], Callable[[], Any]], size: int, repeats: int) -> float:
    """Returns the seconds that each further byte costs, from `size` and `LARGER * size` numbers of four bytes."""
    small, large = (timed(work(count), repeats) for count in (size, LARGER * size))
    return max(0.0, (large - small) / (4 * size * (LARGER - 1)))


def _adam(size: int) -> Callable[[], float]:
    """Returns an optimiser's step on `size` parameters."""
    net: Any = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(size))])
    optimiser, gradient = Optimiser(net, 0.5), np.full(size, 1e-4, np.float32)
    return lambda: optimiser.apply(gradient, 3e-4)


def measured(alone: AtOnce, driver: ActorCritic, quick: bool) -> Costs:
    """Returns all costs; the weights of `driver` are spoilt."""
    repeats = 10 if quick else 200
    size, report = ray.get(alone.actors[0].sample.remote())
    receiving = Receiving(size, report, max(5, repeats // 4))
    many, batch = (64, 8) if quick else (1023, 64)
    one = receiving.answers_s(1, 0)
    per_runner = max(0.0, (receiving.answers_s(1, many) - one) / many)
    get = max(0.0, (receiving.answers_s(batch, 0) - one) / (batch - 1) - per_runner)
    send, trip = receiving.send_and_round_trip_s()
    further = 4 * size * (LARGER - 1)
    send_larger, trip_larger = receiving.send_and_round_trip_s(LARGER)
    send_per_byte = max(0.0, (send_larger - send) / further)
    call_per_byte = max(0.0, (trip_larger - trip) / further - send_per_byte)
    served = receiving.served_s()
    served_per_byte = max(0.0, (receiving.served_s(LARGER) - served) / further)
    applied, published = applying(driver, report, size, repeats)

    def cost(seconds: float, slope: float) -> Cost:
        return Cost(max(0.0, seconds - slope * 4 * size), slope)

    return Costs(
        gradient_bytes=4 * size,
        fragment_steps=report.steps,
        compute_s=tuple(alone.seconds),
        call=cost(trip - send - one, call_per_byte),
        wait_s=max(0.0, one - get - per_runner),
        wait_per_runner_s=per_runner,
        get_s=get,
        apply=cost(applied, per_byte(_adam, size, repeats)),
        publish_s=published,
        send=cost(send, send_per_byte),
        serve=cost(served, served_per_byte),
    )
