"""Nobody waits for anybody: stragglers, staleness, and what dies, hangs or goes mad on the way. Real Ray."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from data_pipeline.errors import RunError
from envs.worlds import WorldVectorEnv
from rl.learning.cluster import ray_session

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's own
]

SLOTS, STEPS = 8, 16
FAST_S, SLOWED = 0.002, 10
"""What a step of the fast worker sleeps: more than it computes, so that a busy machine changes little."""


class MoodyEnv(WorldVectorEnv):
    """Sleeps, hangs, or rewards with what is not a number, as files in `mood` and the worker's number say."""

    def __init__(self, num_envs, autoreset_mode, *, worker, mood, sleep_s):
        super().__init__(num_envs, {"episode_steps": 64}, autoreset_mode)
        self._mood, self._worker, self._sleep_s = Path(mood), worker, sleep_s

    def step(self, actions):
        if self._sleep_s:
            time.sleep(self._sleep_s)
        seen, reward, *rest = super().step(actions)
        if self._asked("hang"):
            time.sleep(600)
        if self._asked("nan"):
            reward = np.full_like(reward, np.nan)
        if self._asked("fail"):
            raise RuntimeError("the environment is in a mood")
        return seen, reward, *rest

    def _asked(self, what):
        """Whether the file is there; it is used up by being found."""
        path = self._mood / f"{what}-{self._worker}"
        if not path.exists():
            return False
        path.unlink()
        return True


def _moody(context):
    torch.set_num_threads(1)
    slow = context["slow"] and context.worker_index == 2
    return MoodyEnv(
        context["num_envs"],
        context["autoreset_mode"],
        worker=context.worker_index,
        mood=context["mood"],
        sleep_s=context["sleep_s"] * (SLOWED if slow else 1),
    )


@pytest.fixture(scope="module", autouse=True)
def session():
    from ray import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # workers cannot import it
    with ray_session(cpus=8):
        yield


@pytest.fixture
def build(tmp_path):
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec
    from ray.tune.registry import register_env

    from rl.learning.adapter import quiet
    from rl.learning.module import SwingModule

    quiet()
    register_env("moody", _moody)
    built = []

    def make(config, runners=2, slow=False, sleep_s=0.0, iteration_steps=SLOTS * STEPS * 4, **training):
        config.environment("moody", env_config={"mood": str(tmp_path), "slow": slow, "sleep_s": sleep_s})
        config.env_runners(num_env_runners=runners, num_envs_per_env_runner=SLOTS, rollout_fragment_length=STEPS)
        config.training(iteration_steps=iteration_steps, total_steps=10**9, **training)
        model = {"model": {"hidden": 8, "dense": 8}, "action": "discrete", "portfolio_features": 1}
        config.rl_module(rl_module_spec=RLModuleSpec(module_class=SwingModule, model_config=model))
        config.debugging(seed=0, log_level="ERROR")
        built.append(config.build_algo())
        return built[-1]

    yield make
    for algorithm in built:
        algorithm.stop()


def _a3c():
    from rl.learning.a3c import A3CConfig

    return A3CConfig()


def _ppo():
    from rl.learning.ppo import PPOConfig

    return PPOConfig().training(num_epochs=1, minibatches=1)


def _async_ppo():
    from rl.learning.ppo import AsyncPPOConfig

    return AsyncPPOConfig().training(num_epochs=2, minibatches=2)


def _learner(result):
    return result["learners"]["default_policy"]


def _train(algorithm, times):
    for _ in range(times):
        algorithm.train()


def _rate(algorithm, seconds=4.0):
    """Returns fragments per second."""
    algorithm.train()
    before, started = algorithm.steps, time.perf_counter()
    while time.perf_counter() - started < seconds:
        algorithm.train()
    return (algorithm.steps - before) / (time.perf_counter() - started) / (SLOTS * STEPS)


def test_a3c_keeps_the_fast_workers_pace_beside_a_straggler_and_ppo_falls_to_the_slow_ones(build):
    slow = 1 / (SLOWED * FAST_S * STEPS)  # fragments per second, at most
    alone = _rate(build(_a3c(), runners=1, sleep_s=FAST_S))
    pair = _rate(build(_a3c(), slow=True, sleep_s=FAST_S))
    in_step = _rate(build(_ppo(), slow=True, sleep_s=FAST_S, iteration_steps=1))
    print(f"fragments per second: alone {alone:.1f}, A3C with a straggler {pair:.1f}, PPO with it {in_step:.1f}")
    assert pair >= 0.9 * alone + 0.5 * slow
    assert in_step <= 2 * slow


@pytest.mark.parametrize("config", [_a3c, _async_ppo])
def test_gradients_of_two_workers_are_stale_and_never_more_than_allowed(build, config):
    algorithm = build(config())
    for _ in range(4):
        found = _learner(algorithm.train())
    assert found["staleness"] > 0
    assert found["staleness_max"] <= 2 * algorithm.config.max_staleness
    assert found["stale"] == 0
    assert found["gradients"] == found["version"] > 0


def test_a_gradient_older_than_allowed_is_dropped_and_counted(build):
    algorithm = build(_a3c().training(staleness_aware=True), max_staleness=0)
    for _ in range(4):
        found = _learner(algorithm.train())
    assert found["stale"] > 0
    assert found["gradients"] > 0
    assert found["version"] == found["gradients"]


def test_a_killed_worker_costs_its_own_gradients_and_joins_again(build):
    import ray

    from rl.learning.adapter import actors_of

    algorithm = build(_a3c())
    algorithm.train()
    actor = actors_of(algorithm.env_runner_group)[1]
    os.kill(ray.get(actor.apply.remote(lambda _: os.getpid())), signal.SIGKILL)
    before, until = algorithm.version, time.monotonic() + 90
    while algorithm.crew.lost == 0 and time.monotonic() < until:
        algorithm.train()
    assert algorithm.crew.lost == 1
    assert algorithm.version > before
    heard, account = set(), algorithm.account
    algorithm.account = lambda worker, *rest: (heard.add(worker), account(worker, *rest))
    while 1 not in heard and time.monotonic() < until:
        result = algorithm.train()
    assert heard == {1, 2}
    assert _learner(result)["workers_lost"] == 1
    assert _learner(result)["workers_absent"] == 0


def test_a_hung_worker_is_killed_and_joins_again(build, tmp_path):
    algorithm = build(_a3c(), request_timeout_s=3.0)
    algorithm.train()
    (tmp_path / "hang-2").touch()
    until = time.monotonic() + 90
    while (algorithm.crew.lost == 0 or algorithm.crew.absent) and time.monotonic() < until:
        algorithm.train()
    assert algorithm.crew.lost == 1
    assert algorithm.crew.absent == 0


@pytest.mark.parametrize("config", [_a3c, _async_ppo])
def test_a_gradient_that_is_not_a_number_is_dropped_and_the_run_goes_on(build, tmp_path, config):
    algorithm = build(config())
    algorithm.train()
    (tmp_path / "nan-1").touch()
    for _ in range(8):
        found = _learner(algorithm.train())
    assert found["not_finite"] > 0
    assert np.isfinite(algorithm.learner("vector")).all()
    assert np.isfinite(found["reward_scale"])
    before = found["gradients"]
    assert _learner(algorithm.train())["gradients"] > before


def test_a_worker_whose_environment_fails_is_started_anew(build, tmp_path):
    algorithm = build(_ppo())
    algorithm.train()
    (tmp_path / "fail-1").touch()
    until = time.monotonic() + 90
    while (algorithm.crew.lost == 0 or algorithm.crew.absent) and time.monotonic() < until:
        algorithm.train()
    assert algorithm.crew.lost == 1
    assert algorithm.crew.absent == 0


def test_workers_that_fail_again_and_again_end_the_run_with_their_own_words(build, monkeypatch):
    algorithm = build(_a3c())
    algorithm.train()

    def broken(*_):
        raise ValueError("no such market")

    import ray

    from rl.learning.adapter import actors_of

    def sabotage(runner):
        runner.worker.gradient = broken

    for actor in actors_of(algorithm.env_runner_group).values():
        ray.get(actor.apply.remote(sabotage))
    monkeypatch.setattr("rl.learning.crew.MOST_FAILURES", 2)
    with pytest.raises(RunError, match="no such market"):
        _train(algorithm, 10)
