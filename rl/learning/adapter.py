"""Every private part of Ray that the engine touches; `tests/rl/test_traps.py` holds each to its contract."""

from __future__ import annotations

import logging
from typing import Any

from ray.rllib.algorithms.algorithm_config import AlgorithmConfig
from ray.rllib.core.learner.learner_group import LearnerGroup
from ray.rllib.env.env_runner import EnvRunner
from ray.rllib.env.env_runner_group import EnvRunnerGroup
from ray.rllib.utils.checkpoints import Checkpointable
from ray.tune.registry import ENV_CREATOR, _global_registry


def actors_of(group: EnvRunnerGroup) -> dict[int, Any]:
    """Returns the handles of a group's remote workers by their index, from 1.

    They are called directly. RLlib's manager would drop a request beyond one in flight without a word, wait for all
    results where one is asked for, and let a worker sleep a minute after an exception.
    """
    return dict(group._worker_manager._actors)


def local_learner(group: LearnerGroup) -> Any | None:
    """Returns the learner that lives in this process, None if it is remote."""
    return group._learner if group.is_local else None


def seed_of(runner: EnvRunner) -> int | None:
    """Returns the seed of one worker: the settings' one, its index, and a million where it evaluates."""
    return runner._seed


def wants(part: Checkpointable, name: str, components: Any, not_components: Any) -> bool:
    """Returns whether the component `name` belongs into a state that is asked of `part`."""
    return part._check_component(name, components, not_components)


def without_state_sync(config: AlgorithmConfig) -> None:
    """Keeps `Algorithm.step` from waiting for the states of all workers after each iteration."""
    config._dont_auto_sync_env_runner_states = True


def quiet() -> None:
    """Silences Ray's warnings about its own deprecated calls."""
    for name in ("ray", "ray.rllib", "ray.tune"):
        logging.getLogger(name).setLevel(logging.ERROR)


def env_creator(name: str) -> Any:
    """Returns the function registered under `name` by `ray.tune.register_env`, on any worker."""
    return _global_registry.get(ENV_CREATOR, name)
