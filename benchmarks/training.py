"""Training speed: environment steps per CPU-second, learning included, beside peers and the ceiling of the network.

All train an LSTM of 128 units on the same environment of 29 inputs and 3 actions, in fragments of 64 steps, one torch
thread a process. `ceiling`: nn.LSTM forward and backward and Adam, and nothing else. What fills two processors
(`…_two_runners`, `two_…`, `straggler_…`) is measured per second of wall time, and says nothing where other work is
going on. It is compared with its like, for a processor is faster while the other one idles.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: TID251  (the product's own algorithms, measured)
from ray.tune.registry import register_env

from benchmarks.shape import Figure, arguments, cpu_seconds, interleaved, publish, rate
from benchmarks.training_env import ShapeVectorEnv
from benchmarks.training_peers import HIDDEN, contestants
from envs.contract import ActionKind
from rl.learning.a3c import A3CConfig
from rl.learning.adapter import quiet
from rl.learning.algorithm import ActorCritic, ActorCriticConfig
from rl.learning.cluster import ray_session
from rl.learning.gradients import A3cWorker, Optimiser, Order, Recipe, learn
from rl.learning.module import SwingModule
from rl.learning.network import SwingNet, has_bf16
from rl.learning.ppo import AsyncPPOConfig, PPOConfig
from rl.learning.process import settle
from rl.learning.rollout import Sampler
from rl.learning.settings import ModelConfig

PER_CPU, PER_WALL = "env steps per CPU-second", "env steps per second"
MARKET, PORTFOLIO = ShapeVectorEnv.market_features, 2
STEPS = SLOTS = 64
ORDER = Order(version=0, cost_scale=1.0, reward_scale=1.0, entropy=0.01)
TWICE = ("ceiling_b64", "ceiling_b256", "rllib_ppo1", "sb3_ppo1")
"""Of one process; measured in two at once as well."""
SLOWED = 10
"""Times that a straggler is slower."""
NO_BF16 = "this processor has no bfloat16 instructions"


def a3c(slots: int, bf16: bool = False) -> Callable[[], int]:
    """Returns one A3C update as a worker and the driver make it, without Ray: weights in, gradient out, applied."""
    worker, optimiser = worker_of(slots, bf16)

    def run() -> int:
        gradient, report = worker.gradient(optimiser.vector(), ORDER)
        optimiser.apply(gradient, 3e-4)
        return report.steps

    return run


def ppo(epochs: int, slots: int = SLOTS) -> Callable[[], int]:
    """Returns one iteration of PPO in this process: a fragment, then `epochs` passes in four minibatches."""
    worker, optimiser = worker_of(slots)
    recipe, rng = Recipe(STEPS, epochs=epochs, minibatches=4), np.random.default_rng(0)

    def run() -> int:
        fragment, report = worker.fragment(optimiser.vector(), ORDER)
        learn(optimiser, [fragment], recipe, 3e-4, 0.01, rng)
        return report.steps

    return run


def worker_of(slots: int, bf16: bool = False) -> tuple[A3cWorker, Optimiser]:
    """Returns a worker on so many slots, without Ray, and what applies its gradients to a network of its own."""
    settle()
    net = SwingNet(MARKET, ActionKind.DISCRETE, ModelConfig(hidden=HIDDEN, bf16=bf16), PORTFOLIO)
    sampler = Sampler(net, ShapeVectorEnv(slots, "SameStep"), 0)
    return A3cWorker(sampler, Recipe(STEPS, normalise=False), 0), Optimiser(copy.deepcopy(net), 0.5)


class StragglingEnv(ShapeVectorEnv):
    """Sleeps in each step."""

    delay_s = 0.0

    def step(self, actions: Any) -> Any:
        """Steps late."""
        time.sleep(self.delay_s)
        return super().step(actions)


def make_env(context: Any) -> ShapeVectorEnv:
    """Returns the environment; the second worker's is slow where the context says so."""
    env = StragglingEnv(context["num_envs"], context["autoreset_mode"])
    env.delay_s = context.get("delay_s", 0.0) if context.worker_index == 2 else 0.0
    return env if env.delay_s else ShapeVectorEnv(context["num_envs"], context["autoreset_mode"])


def algorithm(
    config: ActorCriticConfig, runners: int, steps: int, delay_s: float = 0.0, slots: int = SLOTS
) -> ActorCritic:
    """Returns a built algorithm of so many slots a worker whose `train()` does at least `steps`."""
    quiet()
    register_env("shape", make_env)
    config.environment("shape", env_config={"delay_s": delay_s})
    config.env_runners(num_env_runners=runners, num_envs_per_env_runner=slots, rollout_fragment_length=STEPS)
    config.training(lr=3e-4, total_steps=10**12, iteration_steps=steps)
    model = {"model": {"hidden": HIDDEN}, "action": "discrete", "portfolio_features": PORTFOLIO}
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=SwingModule, model_config=model))
    config.debugging(seed=0, log_level="ERROR")
    built: ActorCritic = config.build_algo()
    return built


def per_wall(train: ActorCritic) -> float:
    """Returns environment steps per second of one `train()`, its workers warm, and lets them come to rest."""
    train.train()  # a pause spoils what the crew expects of its workers, and their last answers count for nothing
    before, started = train.steps, time.perf_counter()
    train.train()
    found = (train.steps - before) / (time.perf_counter() - started)
    train.crew.drain(60.0)
    return found


def per_cpu(train: ActorCritic) -> float:
    """Returns environment steps per CPU-second of all processes in one `train()`."""
    before, started = train.steps, cpu_seconds()
    train.train()
    return (train.steps - before) / (cpu_seconds() - started)


class _Alone:
    """Contestants in a process of their own."""

    def __init__(self, quick: bool) -> None:
        settle()
        quiet()
        self._runs = contestants(quick)[0]

    def rate(self, name: str, seconds: float) -> float:
        """Returns one contestant's steps per second of wall time."""
        done, started = 0, time.perf_counter()
        while time.perf_counter() - started < seconds:
            done += self._runs[name]()
        return done / (time.perf_counter() - started)


@contextmanager
def side_by_side(steps: int, seconds: float, epochs: tuple[int, ...], quick: bool) -> Any:
    """Yields contestants that fill two processors, by name, rates per second of wall time.

    Peers that know one process run in two, each for itself: what they would reach if sharing the work cost nothing.
    """
    with ExitStack() as stack:
        built = {"a3c_two_runners_b256": algorithm(A3CConfig(), 2, 4 * steps, slots=256)}
        stack.callback(built["a3c_two_runners_b256"].stop)
        configs: dict[str, ActorCriticConfig] = {"a3c_two_runners": A3CConfig()}
        for number in epochs:
            configs[f"ppo{number}_two_runners"] = PPOConfig().training(num_epochs=number)
            # Each cuts its own fragment, where PPO cuts both in four: 32 slots a gradient either way.
            configs[f"async_ppo{number}_two_runners"] = AsyncPPOConfig().training(num_epochs=number, minibatches=2)
        for name, config in configs.items():
            built[name] = algorithm(config, 2, steps)
            stack.callback(built[name].stop)
        runs: dict[str, Callable[[], float]] = {name: partial(per_wall, each) for name, each in built.items()}
        pair = [ray.remote(_Alone).options(num_cpus=1).remote(quick) for _ in range(2)]
        for process in pair:
            stack.callback(ray.kill, process)
        there = contestants(quick)[0]
        runs |= {f"two_{name}": partial(both, pair, name, seconds) for name in TWICE if name in there}
        yield runs, partial(per_cpu, built["a3c_two_runners"])


def both(pair: list[Any], name: str, seconds: float) -> float:
    """Returns a contestant's steps per second of wall time in two processes at once."""
    return float(sum(ray.get([each.rate.remote(name, seconds) for each in pair])))


def stragglers(steps: int, runs: int) -> dict[str, Figure]:
    """Returns A3C's and PPO's rates with a worker alone, and with a second one that is ten times slower."""
    found: dict[str, Figure] = {}
    for name, make in (("a3c", A3CConfig), ("ppo", lambda: PPOConfig().training(num_epochs=1))):
        alone = algorithm(make(), 1, steps)
        alone.train()
        fragment_s = STEPS * SLOTS / per_wall(alone)
        pair = algorithm(make(), 2, steps, delay_s=(SLOWED - 1) * fragment_s / STEPS)
        contestants = {f"{name}_alone": partial(per_wall, alone), f"{name}_straggler": partial(per_wall, pair)}
        found |= interleaved(contestants, PER_WALL, runs)
        alone.stop()
        pair.stop()
    return found


def main() -> None:
    """Measures and publishes."""
    options = arguments(__doc__.splitlines()[0])
    # Many short turns: a machine that others use too is fast and slow for seconds at a time.
    runs, seconds, steps = (1, 0.05, 2_000) if options.quick else (11, 0.7, 120_000)
    with ray_session(cpus=16):
        quiet()
        peers, skipped = contestants(options.quick)
        ours: dict[str, Callable[[], int]] = {
            "a3c_b64": a3c(64),
            "a3c_b256": a3c(256),
            "ppo1": ppo(1),
            "ppo4": ppo(4),
        }
        if has_bf16():
            ours |= {"a3c_bf16_b64": a3c(64, bf16=True), "a3c_bf16_b256": a3c(256, bf16=True)}
        else:
            skipped |= {"a3c_bf16_vs_ceiling_b64": NO_BF16, "a3c_bf16_vs_ceiling_b256": NO_BF16}
        rates = {name: partial(rate, run, seconds) for name, run in (peers | ours).items()}
        figures = interleaved(rates, PER_CPU, runs)
        epochs = (1,) if options.quick else (1, 4)
        with side_by_side(steps, seconds, epochs, options.quick) as (contest, end_to_end):
            figures |= interleaved(contest, PER_WALL, runs)
            figures |= interleaved({"a3c_two_runners_per_cpu": end_to_end}, PER_CPU, runs)
        figures |= stragglers(steps, min(runs, 5))
    publish("training", options, figures, _ratios(figures), skipped)


def _ratios(figures: Mapping[str, Figure]) -> dict[str, float]:
    """Returns the ratios of medians; those of peers that did not run are left out."""
    named = {
        "a3c_vs_ceiling_b64": ("a3c_b64", "ceiling_b64"),
        "a3c_vs_ceiling_b256": ("a3c_b256", "ceiling_b256"),
        "a3c_bf16_vs_ceiling_b64": ("a3c_bf16_b64", "ceiling_b64"),
        "a3c_bf16_vs_ceiling_b256": ("a3c_bf16_b256", "ceiling_b256"),
        "a3c_two_runners_vs_two_ceilings": ("a3c_two_runners", "two_ceiling_b64"),
        "a3c_two_runners_vs_two_ceilings_b256": ("a3c_two_runners_b256", "two_ceiling_b256"),
        "a3c_vs_rllib": ("a3c_two_runners", "two_rllib_ppo1"),
        "a3c_vs_sb3": ("a3c_two_runners", "two_sb3_ppo1"),
        "a3c_vs_single_file": ("a3c_b64", "single_file"),
        "ppo4_vs_rllib": ("ppo4", "rllib_ppo4"),
        "ppo4_vs_sb3": ("ppo4", "sb3_ppo4"),
        "ppo4_vs_single_file": ("ppo4", "single_file4"),
        "async_ppo_vs_ppo": ("async_ppo1_two_runners", "ppo1_two_runners"),
        "async_ppo4_vs_ppo4": ("async_ppo4_two_runners", "ppo4_two_runners"),
    }
    medians = {name: each["median"] for name, each in figures.items()}
    ratios = {name: medians[a] / medians[b] for name, (a, b) in named.items() if a in medians and b in medians}
    for name in ("a3c", "ppo"):  # 1: all that the fast worker does alone, and a tenth of it by the slow one
        ratios[f"straggler_{name}"] = medians[f"{name}_straggler"] / (medians[f"{name}_alone"] * (1 + 1 / SLOWED))
    return ratios


if __name__ == "__main__":
    main()
