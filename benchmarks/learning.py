"""Learning, proven on worlds whose optimum is known: score over optimum of A3C and PPO, and controls that must fail.

    python -m benchmarks.learning                                        everything, most of an hour on two cores
    python -m benchmarks.learning --world prop --set q=.9 --algo a3c     one world, parameters as asked for

A score is the average *expected* reward per step of the greedy policy over the optimum (`envs.optimum`), 0 for cash
and 1 for the best there is. CPU is that of the driver and of all workers from the start of the algorithm, start-up and
imports included; scoring on the way is not counted.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks.shape import PIPED_WIDTH, cpu_seconds, emit, parser_of, process_lines
from data_pipeline.config import set_path, with_overrides
from data_pipeline.errors import ConfigError, one_line_errors
from envs.contract import ActionKind, Bools, Floats, Floats32
from envs.optimum import OptimalPolicy, optimum
from envs.worlds import WorldEnvConfig, WorldVectorEnv
from rl.learning.build import algorithm_config, world_context
from rl.learning.cluster import ray_session
from rl.learning.gradients import A3cWorker, Optimiser, Order, Recipe
from rl.learning.network import State, SwingNet
from rl.learning.progress import Moments, falling, rising
from rl.learning.rollout import Sampler
from rl.learning.settings import EngineConfig

BURN_IN = 300
PATHS = 10_000
"""Seed of the paths that scores are taken on; no training uses it."""
PASSED = 0.95
WORLDS: dict[str, dict[str, Any]] = {
    "prop": {"world": {"name": "prop", "q": 0.95, "sd": 0.2, "c": 0.5}},
    "hmm": {"world": {"name": "hmm", "m": 0.3, "h": 0.02, "c": 0.2}, "show_position": False},
    "hmm2": {"world": {"name": "hmm", "m": 0.2, "h": 0.01, "c": 0.2}, "show_position": False},
    "gp": {"world": {"name": "gp", "phi": 0.05, "lam": 50.0, "sd_f": 0.3}, "action": "continuous"},
}
DIAGNOSTICS: dict[str, dict[str, Any]] = {
    f"delay{lag}": {"world": {"name": "delay", "lag": lag, "b": 0.5, "c": 0.0}, "show_position": False}
    for lag in (5, 20)
}
ASYNC_WORLDS = ("prop", "hmm")
STEPS = {"a3c": 5_000_000, "ppo": 4_000_000, "async-ppo": 2_500_000}
"""Budgets in environment steps: each run ends well within three minutes of CPU."""
LONGER = {("hmm2", "a3c"): 8_000_000, ("gp", "a3c"): 8_000_000}
"""Where the signal is faint: A3C takes each step once."""


@dataclass
class Run:
    """One training."""

    score: float
    error: float
    """Standard error of the score."""
    cpu_minutes: float
    passed_after_cpu_s: float | None
    """CPU until a score of 0.95 was first seen, looked for at every twentieth of the budget."""
    steps: int
    staleness: float
    """Mean over the training."""
    curve: list[tuple[float, float]] = field(default_factory=list)
    """(CPU-seconds, score) on the way."""


def settings_of(algorithm: str, world: WorldEnvConfig, seed: int, steps: int | None = None) -> EngineConfig:
    """Returns the project's defaults with a network and a budget for worlds, and what the algorithm and action need."""
    continuous = world.action is ActionKind.CONTINUOUS
    return EngineConfig.of(
        {
            "model": {"hidden": 32, "bptt_sessions": 64, "action_deviation": 0.1},
            "learn": {
                "lr": 0.001 if algorithm != "a3c" else 0.002 if continuous else 0.003,
                "lr_fall": 0.8,
                "grad_clip": 5.0 if continuous or algorithm != "a3c" else 1.0,
                "gae_lambda": 0.97 if continuous else 0.95,
                # With less, A3C turns deterministic when costs have risen, and may stop trading for good.
                "entropy": 0.0 if continuous else 0.03 if algorithm == "a3c" else 0.01,
                "cost_rise": 0.0 if continuous else 0.5,
                "normalise_advantages": False,
            },
            "ppo": {"epochs": 2, "minibatches": 4},
            "train": {
                "algorithm": algorithm,
                "steps": steps or STEPS[algorithm],
                "envs_per_runner": 64,
                "env_runners": 2,
                "seed": seed,
            },
        },
        "benchmark",
    )


class Recorded(WorldVectorEnv):
    """Keeps the expected reward of each step."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._expected: list[Floats] = []

    def means(self) -> Floats:
        """Returns the average of each slot after the burn-in, `[B]`."""
        means: Floats = np.array(self._expected)[BURN_IN:].mean(axis=0)
        return means

    def step(self, actions: Any) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        """Steps as the world does."""
        answer = super().step(actions)
        self._expected.append(answer[4]["expected_reward"])
        return answer


def score(net: SwingNet, world: WorldEnvConfig, slots: int, steps: int) -> tuple[float, float]:
    """Returns the greedy policy's score and its standard error, from `slots` paths after a burn-in."""
    means = _means(net, world, slots, steps)
    best = optimum(world.world).average_reward
    return float(means.mean() / best), float(means.std(ddof=1) / np.sqrt(slots) / best)


def glance(net: SwingNet, world: WorldEnvConfig) -> float:
    """Returns the score as few paths show it: over what the best policy earned on the very same ones."""
    return float(_means(net, world, 128, 300).mean() / _best_means(json.dumps(world.tree(), sort_keys=True), 128, 300))


def _means(net: SwingNet, world: WorldEnvConfig, slots: int, steps: int) -> Floats:
    """Returns the average expected reward of each path, `[slots]`."""
    env = Recorded(slots, _long(world, steps), AutoresetMode.SAME_STEP)
    Sampler(net, env, PATHS).sample(BURN_IN + steps, explore=False)
    return env.means()


@cache
def _best_means(world: str, slots: int, steps: int) -> float:
    """Returns the average expected reward of the best policy on the paths of `_means`."""
    config = _long(WorldEnvConfig.of(json.loads(world), "world"), steps)
    env, policy = Recorded(slots, config, AutoresetMode.SAME_STEP), OptimalPolicy(config, slots)
    seen, _ = env.reset(seed=PATHS)
    for _ in range(BURN_IN + steps):
        seen, *_rest = env.step(policy.act(seen))
    return float(env.means().mean())


def _long(world: WorldEnvConfig, steps: int) -> WorldEnvConfig:
    return world.model_copy(update={"episode_steps": BURN_IN + steps, "reward_scale": 1.0})


def train_and_score(settings: EngineConfig, world: WorldEnvConfig, quick: bool = False) -> Run:
    """Trains through `algorithm.train()` and scores the result; needs a Ray connection."""
    clock = _Clock()
    algorithm = algorithm_config(settings, world_context(world)).build_algo()
    curve: list[tuple[float, float]] = []
    staleness: list[float] = []
    try:
        budget = settings.train.steps
        while algorithm.steps < budget:
            result = algorithm.train()
            staleness.append(float(result["learners"]["default_policy"]["staleness"]))
            if algorithm.steps >= budget * (len(curve) + 1) / 20:
                with clock.paused():
                    curve.append((clock.seconds, glance(algorithm.trained(), world)))
        spent = clock.seconds
        net = algorithm.trained()
        steps = algorithm.steps
    finally:
        algorithm.stop()
    found = score(net, world, *((64, 300) if quick else (1024, 1500)))
    passed = next((seconds for seconds, reached in curve if reached >= PASSED), None)
    return Run(*found, spent / 60.0, passed, steps, float(np.mean(staleness)), curve)


class _Clock:
    """CPU-seconds of this process and all below it, from its making on."""

    def __init__(self) -> None:
        while any(name.startswith("ray::Swing") for name in process_lines()):  # of an earlier run, still ending
            time.sleep(0.1)
        self._left_out, self._start = 0.0, cpu_seconds()

    @property
    def seconds(self) -> float:
        return cpu_seconds() - self._start - self._left_out

    @contextmanager
    def paused(self) -> Iterator[None]:
        before = time.process_time()
        yield
        self._left_out += time.process_time() - before


class Memoryless(SwingNet):
    """A control: each step is an episode of its own to the recurrence."""

    def recur(self, market: Tensor, state: State) -> tuple[Tensor, State]:
        """Returns what each step alone says."""
        told, _ = super().recur(market.reshape(1, -1, market.shape[-1]), self.zero_state(market[..., 0].numel()))
        return told.reshape(*market.shape[:2], -1), state


def alone(settings: EngineConfig, world: WorldEnvConfig, kind: type[SwingNet] = SwingNet) -> SwingNet:
    """Returns a network trained by one A3C worker and the optimiser in this process.

    Args:
        settings: Of the training.
        world: Trained on.
        kind: `SwingNet`, or one that lacks something.
    """
    learn, fragment, steps, seed = (
        settings.learn,
        settings.model.bptt_sessions,
        settings.train.steps,
        settings.train.seed,
    )
    torch.manual_seed(seed)
    env = WorldVectorEnv(settings.train.envs_per_runner, world, AutoresetMode.SAME_STEP)
    net = kind(1, world.action, settings.model, len(env.portfolio_features))
    recipe = Recipe(fragment, learn.gamma, learn.gae_lambda, learn.value_weight, normalise=learn.normalise_advantages)
    worker = A3cWorker(Sampler(net, env, seed), recipe, seed)
    optimiser, moments, done = Optimiser(copy.deepcopy(net), learn.grad_clip), Moments(), 0
    while done < steps:
        spent = done / steps
        order = Order(0, rising(spent, learn.cost_rise), moments.scale, learn.entropy)
        gradient, report = worker.gradient(optimiser.vector(), order)
        optimiser.apply(gradient, learn.lr * falling(spent, learn.lr_fall))
        done, moments = done + report.steps, moments.merged(report.moments)
    return optimiser.net


def controls(seeds: int, steps: int) -> dict[str, dict[str, Any]]:
    """Returns the scores of policies that must fail, as theory says."""
    prop, blind = WORLDS["prop"], {**WORLDS["prop"], "show_position": False}
    contestants: dict[str, tuple[dict[str, Any], type[SwingNet], dict[str, Any]]] = {
        "prop, neither position nor memory (at most 0.55)": (blind, Memoryless, {}),
        "hmm, no memory (at most 0.10)": (WORLDS["hmm"], Memoryless, {}),
        "prop, full costs from the first step (collapses to 0)": (prop, SwingNet, {"learn.cost_rise": 0.0}),
        "prop, position hidden, with memory (may follow its own position)": (blind, SwingNet, {}),
    }
    found: dict[str, dict[str, Any]] = {}
    for name, (tree, kind, changes) in contestants.items():
        world = WorldEnvConfig.of(tree, "control")
        nets = [alone(changed(settings_of("a3c", world, seed, steps), changes), world, kind) for seed in range(seeds)]
        scores = [score(net, world, 1024, 600)[0] for net in nets]
        found[name] = {"median": statistics.median(scores), "seeds": scores}
    return found


def changed(settings: EngineConfig, changes: Mapping[str, Any]) -> EngineConfig:
    """Returns the settings with dotted paths replaced."""
    tree = settings.tree()
    for path, value in changes.items():
        set_path(tree, path, value)
    return EngineConfig.of(tree, "benchmark")


def summary(runs: list[Run]) -> dict[str, Any]:
    """Returns what is published of the seeds of one world and algorithm."""
    passed = [run.passed_after_cpu_s for run in runs]
    return {
        "median": statistics.median(run.score for run in runs),
        "seeds": [run.score for run in runs],
        "standard_errors": [run.error for run in runs],
        "cpu_minutes": max(run.cpu_minutes for run in runs),
        "cpu_seconds_to_0.95": passed,
        "staleness": statistics.fmean(run.staleness for run in runs),
        "runs": [asdict(run) for run in runs],
    }


def _asked() -> argparse.Namespace:
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--world", help="prop, hmm, hmm2, gp or delay; none: the whole table")
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="world parameters")
    parser.add_argument("--algo", choices=list(STEPS), help="none: A3C and PPO, asynchronous PPO on prop and hmm")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each")
    parser.add_argument("--steps", type=int, help="budget in environment steps; none: as each algorithm needs")
    return parser.parse_args()


def _plan(options: argparse.Namespace) -> list[tuple[str, Mapping[str, Any], list[str]]]:
    """Returns (name, settings of the world, algorithms)."""
    if options.world == "noise":
        raise ConfigError("--world noise: nothing can be earned there, so there is no score; choose another")
    if options.world:
        known = WORLDS.get(options.world, {"world": {"name": options.world}})
        tree = {**known, "world": with_overrides(dict(known["world"]), options.set)}
        if options.world == "delay":
            tree["show_position"] = False
        return [(options.world, tree, [options.algo] if options.algo else ["a3c", "ppo"])]
    every = {name: ["a3c", "ppo", *(["async-ppo"] if name in ASYNC_WORLDS else [])] for name in WORLDS}
    chosen = {name: [options.algo] if options.algo else algorithms for name, algorithms in every.items()}
    plan = [(name, WORLDS[name], algorithms) for name, algorithms in chosen.items()]
    return plan + [(name, tree, [options.algo or "a3c"]) for name, tree in DIAGNOSTICS.items()]


@one_line_errors
def main() -> None:
    """Trains, scores and publishes."""
    options = _asked()
    steps = options.steps or (20_000 if options.quick else None)
    seeds = 1 if options.quick else options.seeds
    console = Console(stderr=True)
    scores: dict[str, dict[str, Any]] = {}
    plan = _plan(options)[:1] if options.quick else _plan(options)
    with ray_session():
        for name, tree, algorithms in plan:
            world = WorldEnvConfig.of(dict(tree), name)
            for algorithm in algorithms:
                repeats = 1 if name in DIAGNOSTICS else seeds
                runs = []
                budget = steps or LONGER.get((name, algorithm))
                for seed in range(repeats):
                    runs.append(train_and_score(settings_of(algorithm, world, seed, budget), world, options.quick))
                    last = runs[-1]
                    console.print(
                        f"{name} {algorithm} seed {seed}: {last.score:.3f} ± {last.error:.3f}, "
                        f"{last.cpu_minutes:.2f} CPU-min, {PASSED} after {last.passed_after_cpu_s} CPU-s"
                    )
                scores.setdefault(name, {})[algorithm] = summary(runs)
    failing = {} if options.world else controls(seeds, steps or 1_500_000)
    _show(scores, failing)
    emit("learning", options, {"scores": scores, "controls": failing, "skipped": {}})


def _show(scores: Mapping[str, Any], failing: Mapping[str, Any]) -> None:
    table = Table("world", "algorithm", "median", "seeds", "CPU-minutes", "CPU-s to 0.95", title="score / optimum")
    for world, found in scores.items():
        for algorithm, each in found.items():
            shown = ", ".join(f"{s:.3f} ± {e:.3f}" for s, e in zip(each["seeds"], each["standard_errors"], strict=True))
            passed = ", ".join("–" if s is None else f"{s:.0f}" for s in each["cpu_seconds_to_0.95"])
            table.add_row(world, algorithm, f"{each['median']:.3f}", shown, f"{each['cpu_minutes']:.2f}", passed)
    for name, each in failing.items():
        table.add_row(name, "control", f"{each['median']:.3f}", ", ".join(f"{s:.3f}" for s in each["seeds"]), "", "")
    Console(width=PIPED_WIDTH).print(table)


if __name__ == "__main__":
    main()
