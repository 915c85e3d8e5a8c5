"""How far A3C scales: a model fed with measured costs, checked against real runners here, then asked about many.

What is measured: a runner's fragment and gradient, alone and with the other cores at the same work, the driver's part
of a request, Ray's. The model of `benchmarks.scaling_model` turns it into rates and staleness, first for 1, 2 and 4
runners on the cores of this machine, and for runners that compute nothing, so that the driver is full, beside what A3C
really does, then for up to 1,024 runners with a core each, on a network that is assumed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import ray

from benchmarks.scaling_costs import LARGER, AtOnce, Computing, Ready, measured
from benchmarks.scaling_model import Costs, Design, Plan, Prediction, predict
from benchmarks.shape import Figure, cpu_seconds, figure, interleaved, parser_of, publish, shown
from benchmarks.training import SLOTS, STEPS, algorithm
from rl.learning.a3c import A3CConfig
from rl.learning.adapter import actors_of, quiet
from rl.learning.algorithm import ActorCritic
from rl.learning.cluster import ray_session
from rl.learning.crew import Crew
from rl.learning.settings import EngineConfig

CORES = len(os.sched_getaffinity(0))
LEAD_S = EngineConfig().a3c.request_lead_s
CHECKED = (1, 2, 4)
SATURATING = (1, 2, 4, 8)
"""Runners that compute nothing."""
RUNNERS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
ASSUMED_BYTES_PER_S = 10e9 / 8
"""Of each node's link, each way: 10 Gbit/s. Assumed, not measured."""
ASSUMED_LATENCY_S = 0.2e-3
"""Of the network, one way. Assumed, not measured."""
BOUND = 32
"""A bound on staleness that does not grow with the runners, to show why the product's does."""
VARIANTS: dict[str, dict[str, Any]] = {
    "driver": {},
    "driver, 8 fragments a gradient": {"accumulate": 8},
    "remote learner": {"design": Design.LEARNER},
    "4 shards": {"design": Design.SHARDS, "shards": 4},
    "16 shards": {"design": Design.SHARDS, "shards": 16},
    "16 shards, 8 fragments a gradient": {"design": Design.SHARDS, "shards": 16, "accumulate": 8},
}
GRADIENTS_PER_S, STALENESS = "gradients per second", "versions of the weights"


class Turn(NamedTuple):
    """What was seen beside the rate of one `train()`."""

    staleness: float
    """Mean."""
    others: float
    """Cores that processes outside this benchmark used."""
    ours: float
    """Cores that this benchmark used, Ray's processes included."""
    driver: float
    """Share of the time for which the driver's thread computed."""


@dataclass
class Check:
    """What was measured on this machine, medians of turns, beside what is predicted for it."""

    rate: Figure
    staleness: Figure
    left: float
    """Cores that others left."""
    used: float
    """Cores of them that were used."""
    driver: float
    """See `Turn`."""
    told: Prediction

    @property
    def error(self) -> float:
        """Of the predicted rate, as a fraction."""
        return self.told.gradients_per_s / float(self.rate["median"]) - 1.0


@dataclass
class Real:
    """A3C with the runners of a crew."""

    built: ActorCritic
    crew: Crew
    runners: int
    turns: list[Turn] = field(default_factory=list)

    def gradients_per_s(self) -> float:
        """Returns the rate of one `train()` after another, and leaves nothing under way for the next one's turn."""
        built, built.crew = self.built, self.crew
        built.train()
        version, spent, thread, started = built.version, _cpu_s(), time.thread_time(), time.perf_counter()
        result = built.train()
        elapsed, thread = time.perf_counter() - started, time.thread_time() - thread
        others, ours = (max(0.0, now - before) / elapsed for now, before in zip(_cpu_s(), spent, strict=True))
        staleness = float(result["learners"]["default_policy"]["staleness"])
        self.turns.append(Turn(staleness, others, ours, thread / elapsed))
        self.crew.drain(60.0)
        return (built.version - version) / elapsed

    def check(self, rate: Figure, costs: Costs) -> Check:
        """Returns the rate beside the model's, which has the cores that others left meanwhile."""
        seen = self.turns[1:]  # the first is not counted in the rate either
        _, others, ours, driver = (statistics.median(each) for each in zip(*seen, strict=True))
        left = max(0.1, CORES - others)
        told = predict(costs, Plan(self.runners, cores=left, lead_s=LEAD_S))
        return Check(rate, figure([turn.staleness for turn in seen], STALENESS), left, ours, driver, told)


def _cpu_s() -> tuple[float, float]:
    """Returns the CPU-seconds that this machine has given to others, and to this process and those below it."""
    times, ours = psutil.cpu_times(), cpu_seconds()
    return float(sum(times) - times.idle - times.iowait) - ours, ours


def cluster(runners: int, **changes: Any) -> Plan:
    """Returns a plan with a core for each process, on the assumed network."""
    return Plan(runners, bytes_per_s=ASSUMED_BYTES_PER_S, latency_s=ASSUMED_LATENCY_S, **{"lead_s": LEAD_S, **changes})


@dataclass
class Found:
    """All results."""

    costs: Costs
    """With a runner that computes alone: a cluster has a whole core for each."""
    at_once: dict[int, AtOnce]
    """By number of processes."""
    real: dict[int, Check]
    """By runners."""
    saturated: dict[int, Check]
    """By runners that compute nothing."""
    many: dict[str, dict[int, Prediction]]
    """Variant -> runners -> predicted for a cluster."""
    bounded: dict[int, Prediction]
    """The same for the product's own design and default bound on staleness."""


def run(quick: bool) -> Found:
    """Measures, checks and predicts; needs a Ray connection."""
    quiet()
    gradients, runs = (8, 1) if quick else (40, 5)
    plans = RUNNERS[:6] if quick else RUNNERS
    with ExitStack() as stack:
        at_once, real = _computing(gradients // 2, stack), _real(gradients, stack)
        contestants = {f"{n} at once": each.rate for n, each in at_once.items()}
        contestants |= {str(n): each.gradients_per_s for n, each in real.items()}
        rates = interleaved(contestants, GRADIENTS_PER_S, runs)
        costs = measured(at_once[1], real[1].built, quick)
    busy = {n: replace(costs, compute_s=tuple(each.seconds)) for n, each in at_once.items()}
    return Found(
        costs,
        at_once,
        {n: each.check(rates[str(n)], busy[min(n, CORES)]) for n, each in real.items()},
        saturated(costs, 4 * gradients, runs),
        {name: {n: predict(costs, cluster(n, **changes)) for n in plans} for name, changes in VARIANTS.items()},
        {n: predict(costs, cluster(n, max_staleness=BOUND)) for n in plans},
    )


def _computing(gradients: int, stack: ExitStack) -> dict[int, AtOnce]:
    """Returns as many at once as the runners that are checked keep busy."""
    numbers = sorted({min(n, CORES) for n in CHECKED})
    actors = [ray.remote(Computing).options(num_cpus=0).remote() for _ in range(numbers[-1])]
    stack.callback(lambda: [ray.kill(each) for each in actors])
    return {n: AtOnce(actors[:n], gradients) for n in numbers}


def _real(gradients: int, stack: ExitStack) -> dict[int, Real]:
    found = {}
    for n in CHECKED:
        built = algorithm(A3CConfig(), n, gradients * STEPS * SLOTS)
        stack.callback(built.stop)
        found[n] = Real(built, built.crew, n)
    return found


def saturated(costs: Costs, gradients: int, runs: int) -> dict[int, Check]:
    """Returns the product's driver on runners that compute nothing."""
    config = A3CConfig()
    config.env_runners(env_runner_cls=Ready, num_cpus_per_env_runner=0)
    built = algorithm(config, max(SATURATING), gradients * STEPS * SLOTS)
    actors = list(actors_of(built.env_runner_group).items())
    crews = {n: Crew(dict(actors[:n]), timeout_s=60.0, lead_s=LEAD_S) for n in SATURATING}
    real = {n: Real(built, crew, n) for n, crew in crews.items()}
    rates = interleaved({str(n): each.gradients_per_s for n, each in real.items()}, GRADIENTS_PER_S, runs)
    built.stop()
    return {n: each.check(rates[str(n)], replace(costs, compute_s=(0.0,))) for n, each in real.items()}


def figures_of(found: Found) -> tuple[dict[str, Figure], dict[str, float]]:
    """Returns figures and ratios."""
    costs = found.costs
    figures = {
        "gradient_bytes": figure([costs.gradient_bytes], "bytes"),
        **{
            "compute_ms" if n == 1 else f"compute_ms_{n}_at_once": figure(
                [1e3 * seconds for seconds in each.seconds], "CPU-ms a fragment and gradient"
            )
            for n, each in found.at_once.items()
        },
        **{name: figure([1e3 * seconds], f"ms, {what}") for name, (seconds, what) in _parts(costs).items() if seconds},
    }
    ratios: dict[str, float] = {}
    for prefix, checks in (("", found.real), ("saturation_", found.saturated)):
        for n, check in checks.items():
            more = _figures_of_check(prefix, n, check)
            figures, ratios = figures | more[0], ratios | more[1]
    predicted = {**found.many, f"driver, staleness at most {BOUND}": found.bounded}
    for name, by_runners in predicted.items():
        for n, told in by_runners.items():
            if n not in CHECKED:
                unit = f"env steps per second, bound by {told.bottleneck}"
                figures[f"{name.replace(',', '').replace(' ', '_')}_{n}"] = figure([told.env_steps_per_s], unit)
    figures |= {f"limit_of_{name}": figure([rate], GRADIENTS_PER_S) for name, rate in limits(costs).items()}
    larger = limits(_larger(costs))
    del larger["one_runner"]
    figures |= {f"limit_of_{name}_{LARGER}x_bytes": figure([rate], GRADIENTS_PER_S) for name, rate in larger.items()}
    return figures, ratios


def _figures_of_check(prefix: str, n: int, check: Check) -> tuple[dict[str, Figure], dict[str, float]]:
    """Returns figures and ratios; a staleness of 0 is left out."""
    figures = {
        f"{prefix}measured_gradients_per_s_{n}": check.rate,
        f"{prefix}cores_left_by_others_{n}": figure([check.left], "cores"),
        f"{prefix}cores_used_{n}": figure([check.used], "cores"),
        f"{prefix}driver_cpu_share_{n}": figure([check.driver], "CPU-seconds of the driver's thread per second"),
        f"{prefix}predicted_gradients_per_s_{n}": figure([check.told.gradients_per_s], GRADIENTS_PER_S),
    }
    ratios = {f"{prefix}predicted_vs_measured_{n}": 1.0 + check.error}
    if check.told.staleness and check.staleness["min"]:
        figures[f"{prefix}measured_staleness_{n}"] = check.staleness
        figures[f"{prefix}predicted_staleness_{n}"] = figure([check.told.staleness], STALENESS)
        ratios[f"{prefix}staleness_predicted_vs_measured_{n}"] = check.told.staleness / check.staleness["median"]
    return figures, ratios


def _larger(costs: Costs) -> Costs:
    return replace(costs, gradient_bytes=LARGER * costs.gradient_bytes)


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
        "call_ms": (costs.call.of(size), "Ray beside the driver's thread; charged to the runner"),
        "wait_ms": (costs.wait_s, "driver: look who has answered, once per batch"),
        "wait_ms_per_1000_runners": (1000 * costs.wait_per_runner_s, "driver: for each 1,000 runners awaited"),
        "get_ms": (costs.get_s, "driver: fetch an answer"),
        "apply_ms": (costs.apply.of(size), "driver: optimiser step and bookkeeping"),
        "publish_ms": (costs.publish_s, "driver: copy new weights"),
        "send_ms": (costs.send.of(size), "driver: send a request and weights"),
        "serve_ms": (costs.serve.of(size), "a process called back to back, but for the optimiser"),
        "call_ms_per_mib": (costs.call.per_byte_s * 2**20, "Ray: each further MiB"),
        "apply_ms_per_mib": (costs.apply.per_byte_s * 2**20, "optimiser: each further MiB"),
        "send_ms_per_mib": (costs.send.per_byte_s * 2**20, "driver, sending: each further MiB"),
        "serve_ms_per_mib": (costs.serve.per_byte_s * 2**20, "a process called back to back: each further MiB"),
    }


def show(found: Found) -> None:
    """Prints the tables of `docs/scaling.md`, to be copied."""
    tables = {
        "What was measured": _costs_table(found),
        "The check": _check_table(found.real),
        "The driver, full": _saturation_table(found.saturated),
        "The prediction": _prediction_table(found),
        "8 fragments a gradient": _accumulation_table(found.many["driver, 8 fragments a gradient"]),
        "What each part could carry": _limits_table(found.costs),
    }
    for title, lines in tables.items():
        print(f"\n## {title}\n\n{lines}")


def _markdown(names: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (names, *rows)]
    return "\n".join([lines[0], "|---" + "|---:" * (len(names) - 1) + "|", *lines[1:]])


def _costs_table(found: Found) -> str:
    rows = []
    for n, each in found.at_once.items():
        least, middle, most = (1e3 * of(each.seconds) for of in (min, statistics.median, max))
        who = "alone" if n == 1 else f"{n} at once"
        rows.append((f"runner: fragment and gradient, {who}, CPU time", f"{middle:.1f} ({least:.1f} to {most:.1f})"))
    rows += [(what, f"{1e3 * seconds:.2f}") for seconds, what in _parts(found.costs).values()]
    return _markdown(("cost of one request", "ms"), rows)


def _check_table(checks: Mapping[int, Check]) -> str:
    names = ("runners", "cores left by others", "measured gradients/s (min to max)", "predicted", "error")
    rows = [
        (str(n), f"{c.left:.2f}", *_rates(c), f"{c.staleness['median']:.2f}", f"{c.told.staleness:.2f}")
        for n, c in checks.items()
    ]
    return _markdown((*names, "staleness measured", "predicted"), rows)


def _saturation_table(checks: Mapping[int, Check]) -> str:
    names = ("runners", "measured gradients/s (min to max)", "predicted", "error")
    rows = [
        (
            str(n),
            *_rates(c),
            f"{c.driver:.0%}",
            f"{1e3 * c.driver / c.rate['median']:.2f} ms",
            f"{c.used:.2f} of {c.left:.2f}",
            f"{c.staleness['median']:.2f}",
            f"{c.told.staleness:.2f}",
        )
        for n, c in checks.items()
    ]
    more = ("driver's thread, CPU", "for each gradient", "cores used", "staleness measured", "predicted")
    return _markdown((*names, *more), rows)


def _rates(check: Check) -> tuple[str, str, str]:
    least, middle, most = (shown(check.rate[part]) for part in ("min", "median", "max"))
    return f"{middle} ({least} to {most})", shown(check.told.gradients_per_s), f"{100 * check.error:+.1f} %"


def _prediction_table(found: Found) -> str:
    names = ("runners", "gradients/s", "env steps/s", "staleness, mean", "max", "driver busy", "bound by")
    rows = [
        (
            f"{n:,}",
            shown(told.gradients_per_s),
            f"{told.env_steps_per_s:,.0f}",
            f"{told.staleness:,.1f}",
            f"{told.staleness_max:,}",
            f"{told.busy['driver']:.0%}",
            told.bottleneck,
            f"{shown(found.bounded[n].gradients_per_s)} ({found.bounded[n].kept:.0%})",
        )
        for n, told in found.many["driver"].items()
        if n not in CHECKED
    ]
    return _markdown((*names, f"gradients/s applied at bound {BOUND}"), rows)


def _accumulation_table(by_runners: Mapping[int, Prediction]) -> str:
    rows = [
        (f"{n:,}", f"{told.env_steps_per_s:,.0f}", f"{told.busy['driver']:.0%}", told.bottleneck)
        for n, told in by_runners.items()
        if n not in CHECKED
    ]
    return _markdown(("runners", "env steps/s", "driver busy", "bound by"), rows)


def _limits_table(costs: Costs) -> str:
    larger = limits(_larger(costs))
    rows = [
        (name.replace("_", " "), shown(rate), shown(larger[name]))
        for name, rate in limits(costs).items()
        if name != "one_runner"
    ]
    return _markdown(("part", "gradients/s", f"with {LARGER} times the bytes"), rows)


def draw(found: Found, path: Path) -> None:
    """Writes the plot as SVG: the check, rates by design, and what keeps whom busy."""
    import matplotlib as mpl
    from matplotlib.figure import Figure as Drawing

    with mpl.rc_context({"svg.hashsalt": "scaling", "font.size": 8, "axes.grid": True, "grid.alpha": 0.3}):
        drawing = Drawing(figsize=(12, 4), layout="constrained")
        checks, rates, busy = drawing.subplots(1, 3, width_ratios=(2, 4, 3))
        checks.plot(CHECKED, [found.real[n].told.gradients_per_s for n in CHECKED], "o--", label="predicted")
        checks.plot(CHECKED, [found.real[n].rate["median"] for n in CHECKED], "s", label="measured")
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
