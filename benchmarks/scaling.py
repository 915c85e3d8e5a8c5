"""How far A3C scales: a model fed with measured costs, checked against real runners here, then asked about many.

What is measured: a runner's fragment and gradient, the driver's part of a request, Ray's. The model of
`benchmarks.scaling_model` turns it into rates and staleness, first for 1, 2 and 4 runners on the cores of this machine,
beside what A3C really does, then for up to 1,024 runners with a core each, on a network that is assumed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import ray
import torch
from rich.console import Console
from rich.table import Column, Table

from benchmarks.scaling_model import Cost, Costs, Design, Plan, Prediction, predict
from benchmarks.shape import Figure, cpu_seconds, figure, interleaved, parser_of, publish, shown
from benchmarks.training import MARKET, ORDER, PORTFOLIO, STEPS, algorithm
from benchmarks.training_env import ShapeVectorEnv
from benchmarks.training_peers import HIDDEN
from envs.contract import ActionKind, Floats32
from rl.learning.a3c import A3CConfig
from rl.learning.adapter import quiet
from rl.learning.algorithm import ActorCritic
from rl.learning.cluster import ray_session
from rl.learning.crew import Crew
from rl.learning.gradients import A3cWorker, Optimiser, Recipe, Report, adam_of
from rl.learning.network import SwingNet
from rl.learning.process import settle
from rl.learning.rollout import Sampler
from rl.learning.settings import ModelConfig

SLOTS = 64
CHECKED = (1, 2, 4)
RUNNERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ASSUMED_BYTES_PER_S = 10e9 / 8
"""Of each node's link, each way: 10 Gbit/s. Assumed, not measured."""
ASSUMED_LATENCY_S = 0.2e-3
"""Of the network, one way. Assumed, not measured."""
BOUND = 32
"""A bound on staleness that does not grow with the runners, to show why the product's does."""
WIDTH = 140
"""Columns of the tables of predictions."""
LARGER = 8
"""Times the bytes of the second point that costs per byte are taken from."""
VARIANTS: dict[str, dict[str, Any]] = {
    "driver": {},
    "driver, 8 fragments a gradient": {"accumulate": 8},
    "remote learner": {"design": Design.LEARNER},
    "4 shards": {"design": Design.SHARDS, "shards": 4},
    "16 shards": {"design": Design.SHARDS, "shards": 16},
    "16 shards, 8 fragments a gradient": {"design": Design.SHARDS, "shards": 16, "accumulate": 8},
}
GRADIENTS_PER_S, STALENESS = "gradients per second", "versions of the weights"


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
    """A runner in this process, without Ray.

    Attributes:
        seconds: Of CPU, for each gradient; of the clock they would hold what others do on the machine.
        report: The last.
        size: Numbers in a gradient.
    """

    def __init__(self, gradients: int) -> None:
        settle()
        net = SwingNet(MARKET, ActionKind.DISCRETE, ModelConfig(hidden=HIDDEN), PORTFOLIO)
        sampler = Sampler(net, ShapeVectorEnv(SLOTS, "SameStep"), 0)
        self._worker, self._gradients = A3cWorker(sampler, Recipe(STEPS, normalise=False), 0), gradients
        self._optimiser = Optimiser(net, adam_of(net), 0.5)
        self._compute()
        self.seconds: list[float] = []

    def rate(self) -> float:
        """Returns gradients per CPU-second of some, and remembers how long each took."""
        taken = [self._compute() for _ in range(self._gradients)]
        self.seconds += taken
        return len(taken) / sum(taken)

    def _compute(self) -> float:
        weights = self._optimiser.vector()
        started = time.thread_time()
        gradient, self.report = self._worker.gradient(weights, ORDER)
        seconds = time.thread_time() - started
        self._optimiser.apply(gradient, 3e-4)
        self.size = gradient.size
        return seconds


class Receiving:
    """The driver's part of a request and Ray's, by the product's own crew, on workers that compute nothing."""

    def __init__(self, size: int, report: Report, repeats: int) -> None:
        self._size, self._report, self._repeats = size, report, repeats
        self._weights = ray.put(np.zeros(size, np.float32))

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
        sent = timed(lambda: self._ask(crew, 0), self._repeats, lambda: crew.drain(60.0))
        crew.drain(60.0)

        def both() -> None:
            self._ask(crew, 0)
            while not crew.answers():
                pass

        trip = timed(both, self._repeats)
        ray.kill(echo)
        return sent, trip

    def served_s(self, times_larger: int = 1) -> float:
        """Returns a process's seconds for a call with an array and an answer with one, back to back."""
        echo, calls = self._echo(times_larger), 32
        weights = ray.put(np.zeros(self._size * times_larger, np.float32))

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

    def _ask(self, crew: Crew, worker: int) -> None:
        crew.ask(worker, "gradient", self._weights, ORDER, self._report)


def applying(driver: ActorCritic, report: Report, size: int, repeats: int) -> tuple[float, float]:
    """Returns the driver's seconds to take a gradient in, bookkeeping included, and to publish new weights."""
    gradient = np.full(size, 1e-4, np.float32)
    current = report._replace(version=driver.version, acted=driver.version)
    take: Callable[..., None] = driver._take
    applied = timed(lambda: take(1, gradient, current._replace(version=driver.version), 0.0), repeats)
    put = timed(driver.weights, repeats, lambda: setattr(driver, "version", driver.version + 1))
    return applied, put


def per_byte(work: Callable[[int], Callable[[], Any]], size: int, repeats: int) -> float:
    """Returns the seconds that each further byte costs, from `size` and `LARGER * size` numbers of four bytes."""
    small, large = (timed(work(count), repeats) for count in (size, LARGER * size))
    return max(0.0, (large - small) / (4 * size * (LARGER - 1)))


def _adam(size: int) -> Callable[[], float]:
    """Returns an optimiser's step on `size` parameters."""
    net: Any = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(size))])
    optimiser, gradient = Optimiser(net, adam_of(net), 0.5), np.full(size, 1e-4, np.float32)
    return lambda: optimiser.apply(gradient, 3e-4)


def _put(size: int) -> Callable[[], Any]:
    vector = np.zeros(size, np.float32)
    return lambda: ray.put(vector)


def measured(computing: Computing, driver: ActorCritic, quick: bool) -> Costs:
    """Returns all costs; the weights of `driver` are spoilt."""
    repeats, report, size = 10 if quick else 200, computing.report, computing.size
    receiving = Receiving(size, report, max(5, repeats // 4))
    many, batch = (64, 8) if quick else (1023, 64)
    one = receiving.answers_s(1, 0)
    per_runner = max(0.0, (receiving.answers_s(1, many) - one) / many)
    get = max(0.0, (receiving.answers_s(batch, 0) - one) / (batch - 1) - per_runner)
    send, trip = receiving.send_and_round_trip_s()
    further = 4 * size * (LARGER - 1)
    call_per_byte = max(0.0, (receiving.send_and_round_trip_s(LARGER)[1] - trip) / further)
    served = receiving.served_s()
    served_per_byte = max(0.0, (receiving.served_s(LARGER) - served) / further)
    applied, put = applying(driver, report, size, repeats)

    def cost(seconds: float, slope: float) -> Cost:
        return Cost(max(0.0, seconds - slope * 4 * size), slope)

    return Costs(
        gradient_bytes=4 * size,
        fragment_steps=report.steps,
        compute_s=tuple(computing.seconds),
        call=cost(trip - send - one, call_per_byte),
        wait_s=max(0.0, one - get - per_runner),
        wait_per_runner_s=per_runner,
        get_s=get,
        apply=cost(applied, per_byte(_adam, size, repeats)),
        publish=cost(put, per_byte(_put, size, repeats)),
        send_s=send,
        serve=cost(served, served_per_byte),
    )


@dataclass
class Real:
    """A3C on real runners."""

    built: ActorCritic
    stalenesses: list[float] = field(default_factory=list)
    """Mean of each `train()`."""
    others: list[float] = field(default_factory=list)
    """Cores that processes outside this benchmark used in each `train()`."""

    def gradients_per_s(self) -> float:
        """Returns the rate of one `train()`."""
        before, others, started = self.built.version, _others_cpu_s(), time.perf_counter()
        result = self.built.train()
        elapsed = time.perf_counter() - started
        self.others.append(max(0.0, _others_cpu_s() - others) / elapsed)
        self.stalenesses.append(float(result["learners"]["default_policy"]["staleness"]))
        return (self.built.version - before) / elapsed


def _others_cpu_s() -> float:
    """Returns the CPU-seconds that this machine has given to all but this process and those below it."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - times.iowait) - cpu_seconds()


def cluster(runners: int, **changes: Any) -> Plan:
    """Returns a plan with a core for each process, on the assumed network."""
    return Plan(runners, bytes_per_s=ASSUMED_BYTES_PER_S, latency_s=ASSUMED_LATENCY_S, **changes)


@dataclass
class Found:
    """All results."""

    costs: Costs
    real: dict[int, tuple[Figure, Figure]]
    """Runners -> measured gradients per second and mean staleness."""
    left: dict[int, float]
    """Runners -> cores that others left to them meanwhile; the median."""
    here: dict[int, Prediction]
    """Runners -> predicted for this machine."""
    many: dict[str, dict[int, Prediction]]
    """Variant -> runners -> predicted for a cluster."""
    bounded: dict[int, Prediction]
    """The same for the product's own design and default bound on staleness."""


def run(quick: bool) -> Found:
    """Measures, checks and predicts; needs a Ray connection."""
    quiet()
    gradients, runs = (8, 1) if quick else (60, 5)
    plans = RUNNERS[:6] if quick else RUNNERS
    computing = Computing(gradients // 3)
    with ExitStack() as stack:
        real: dict[int, Real] = {}
        for runners in CHECKED:
            real[runners] = Real(algorithm(A3CConfig(), runners, gradients * STEPS * SLOTS))
            stack.callback(real[runners].built.stop)
        contestants = {str(n): each.gradients_per_s for n, each in real.items()}
        rates = interleaved({"alone": computing.rate} | contestants, GRADIENTS_PER_S, runs)
        stalenesses = {n: figure(each.stalenesses[1:], STALENESS) for n, each in real.items()}
        costs = measured(computing, real[1].built, quick)
    left = {n: len(os.sched_getaffinity(0)) - statistics.median(each.others[1:]) for n, each in real.items()}
    return Found(
        costs,
        {n: (rates[str(n)], stalenesses[n]) for n in CHECKED},
        left,
        {n: predict(costs, Plan(n, cores=max(0.1, left[n]))) for n in CHECKED},
        {name: {n: predict(costs, cluster(n, **changes)) for n in plans} for name, changes in VARIANTS.items()},
        {n: predict(costs, cluster(n, max_staleness=BOUND)) for n in plans},
    )


def figures_of(found: Found) -> tuple[dict[str, Figure], dict[str, float]]:
    """Returns figures and ratios; a mean staleness of 0, that of one runner, is left out."""
    costs = found.costs
    figures = {
        "gradient_bytes": figure([costs.gradient_bytes], "bytes"),
        "compute_ms": figure([1e3 * seconds for seconds in costs.compute_s], "CPU-ms a fragment and gradient"),
        **{name: figure([1e3 * seconds], f"ms, {what}") for name, (seconds, what) in _parts(costs).items() if seconds},
    }
    ratios = {}
    for n, (rate, staleness) in found.real.items():
        told = found.here[n]
        figures |= {
            f"measured_gradients_per_s_{n}": rate,
            f"cores_left_by_others_{n}": figure([found.left[n]], "cores"),
            f"predicted_gradients_per_s_{n}": figure([told.gradients_per_s], GRADIENTS_PER_S),
        }
        ratios[f"predicted_vs_measured_{n}"] = told.gradients_per_s / rate["median"]
        if told.staleness and staleness["min"]:
            figures |= {
                f"measured_staleness_{n}": staleness,
                f"predicted_staleness_{n}": figure([told.staleness], STALENESS),
            }
            ratios[f"staleness_predicted_vs_measured_{n}"] = told.staleness / staleness["median"]
    predicted = {**found.many, f"driver, staleness at most {BOUND}": found.bounded}
    for name, by_runners in predicted.items():
        for n, told in by_runners.items():
            if n not in CHECKED:
                unit = f"env steps per second, bound by {told.bottleneck}"
                figures[f"{name.replace(',', '').replace(' ', '_')}_{n}"] = figure([told.env_steps_per_s], unit)
    figures |= {f"limit_of_{name}": figure([rate], GRADIENTS_PER_S) for name, rate in limits(costs).items()}
    larger = limits(replace(costs, gradient_bytes=LARGER * costs.gradient_bytes))
    del larger["one_runner"]
    figures |= {f"limit_of_{name}_{LARGER}x_bytes": figure([rate], GRADIENTS_PER_S) for name, rate in larger.items()}
    return figures, ratios


def limits(costs: Costs) -> dict[str, float]:
    """Returns the gradients per second that each part could carry, were it never idle."""
    return {
        "one_runner": 1.0 / statistics.fmean(costs.compute_s),
        "driver": costs.rate(Design.DRIVER),
        "remote_learner": costs.rate(Design.LEARNER),
        "4_shards": costs.rate(Design.SHARDS, 4),
        "16_shards": costs.rate(Design.SHARDS, 16),
        "link_assumed": ASSUMED_BYTES_PER_S / costs.gradient_bytes,
    }


def _parts(costs: Costs) -> dict[str, tuple[float, str]]:
    """Returns seconds and meaning of what one request costs beside computing."""
    size = costs.gradient_bytes
    return {
        "call_ms": (costs.call.of(size), "Ray beside the driver's thread"),
        "wait_ms": (costs.wait_s, "driver: look who answered"),
        "wait_ms_per_1000_runners": (1000 * costs.wait_per_runner_s, "driver: the same, awaited ones"),
        "get_ms": (costs.get_s, "driver: fetch an answer"),
        "apply_ms": (costs.apply.of(size), "driver: optimiser, bookkeeping"),
        "publish_ms": (costs.publish.of(size), "driver: weights to the store"),
        "send_ms": (costs.send_s, "driver: a request"),
        "serve_ms": (costs.serve.of(size), "a process, called back to back"),
        "call_ms_per_mib": (costs.call.per_byte_s * 2**20, "of it, through one node's store"),
        "apply_ms_per_mib": (costs.apply.per_byte_s * 2**20, "of it"),
        "publish_ms_per_mib": (costs.publish.per_byte_s * 2**20, "of it"),
        "serve_ms_per_mib": (costs.serve.per_byte_s * 2**20, "of it"),
    }


def show(found: Found) -> None:
    """Prints the tables that `docs/scaling.md` quotes."""
    console = Console(width=WIDTH)
    names = ("runners", "cores left", "measured /s", "predicted /s", "error", "staleness", "predicted")
    checks = Table(*names, title="on this machine")
    for n, (rate, staleness) in found.real.items():
        told = found.here[n]
        error = f"{told.gradients_per_s / rate['median'] - 1:+.1%}"
        cells = (f"{rate['median']:.2f}", f"{told.gradients_per_s:.2f}", error)
        checks.add_row(str(n), f"{found.left[n]:.2f}", *cells, f"{staleness['median']:.2f}", f"{told.staleness:.2f}")
    console.print(checks)
    for name, by_runners in found.many.items():
        console.print(_table(f"{name}; staleness unbounded", by_runners))
    console.print(_table(f"driver; staleness at most {BOUND}", found.bounded))


def _table(title: str, by_runners: Mapping[int, Prediction]) -> Table:
    names, stations = ("n", "gradients/s", "env steps/s", "staleness", "max", "applied"), list(by_runners[1].busy)
    columns = [Column(name, justify="right", no_wrap=True) for name in (*names, *stations)]
    bound = Column("bound by", no_wrap=True)
    table = Table(*columns, bound, title=title, caption="right of applied: share of the time at work")
    for n, told in by_runners.items():
        rates = (shown(told.gradients_per_s), f"{told.env_steps_per_s:,.0f}")
        busy = (f"{told.busy[station]:.0%}" for station in stations)
        stale = (f"{told.staleness:.1f}", str(told.staleness_max))
        table.add_row(str(n), *rates, *stale, f"{told.kept:.0%}", *busy, told.bottleneck)
    return table


def draw(found: Found, path: Path) -> None:
    """Writes the plot as SVG: the check, rates by design, and what keeps whom busy."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    with mpl.rc_context({"svg.hashsalt": "scaling", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        drawing = Drawing(figsize=(12, 4), layout="constrained")
        checks, rates, busy = drawing.subplots(1, 3, width_ratios=(2, 4, 3))
        checks.plot(CHECKED, [found.here[n].gradients_per_s for n in CHECKED], "o--", label="predicted")
        checks.plot(CHECKED, [found.real[n][0]["median"] for n in CHECKED], "s", label="measured")
        checks.set(
            title="This machine", xlabel="runners", ylabel="gradients per second", xticks=CHECKED, ylim=(0, None)
        )
        checks.legend()
        for name, by_runners in found.many.items():
            rates.plot(list(by_runners), [told.env_steps_per_s for told in by_runners.values()], ".-", label=name)
        kept = [told.env_steps_per_s for told in found.bounded.values()]
        rates.plot(list(found.bounded), kept, "k:", label=f"driver, staleness at most {BOUND}")
        rates.set(title="Predicted, a core for each runner", xlabel="runners", ylabel="environment steps per second")
        rates.set(xscale="log", yscale="log")
        ours = found.many["driver"]
        for station in ours[1].busy:
            busy.plot(list(ours), [told.busy[station] for told in ours.values()], ".-", label=station)
        busy.set(title="Share of time at work, driver applies", xlabel="runners", xscale="log", ylim=(0, 1.05))
        for axes in (rates, busy):
            axes.legend()
            axes.set_xticks(list(ours), [str(n) for n in ours], rotation=45)
            axes.minorticks_off()
        drawing.savefig(path, format="svg", metadata={"Date": None})


def _asked() -> argparse.Namespace:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--plot", type=Path, metavar="FILE", help="write the plot as SVG")
    return parser.parse_args()


def main() -> None:
    """Measures, predicts and publishes."""
    options = _asked()
    with ray_session(cpus=16):
        found = run(options.quick)
    show(found)
    if options.plot:
        draw(found, options.plot)
    figures, ratios = figures_of(found)
    publish("scaling", options, figures, ratios, {})


if __name__ == "__main__":
    main()
