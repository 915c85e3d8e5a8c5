"""An algorithm so small that it trains in a tenth of a second, on four slots of a world."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from envs.worlds import WorldEnvConfig
from rl.learning.algorithm import ActorCritic, ActorCriticConfig
from rl.learning.build import algorithm_config, world_context
from rl.learning.settings import EngineConfig

SLOTS, STEPS, EPISODE = 4, 8, 12
"""Slots of a worker, steps of a fragment, steps of an episode: fragments begin and end within episodes."""
FRAGMENT = SLOTS * STEPS
CONTEXT = world_context(WorldEnvConfig.of({"world": {"name": "prop"}, "episode_steps": EPISODE}, "world"))
MODEL = {"hidden": 8, "dense": 8, "bptt_sessions": STEPS}
_TRAIN = {
    "algorithm": "a3c",
    "steps": 4096,
    "iteration_steps": 4 * FRAGMENT,
    "env_runners": 0,
    "envs_per_runner": SLOTS,
    "seed": 7,
}


def tiny(
    model: Mapping[str, Any] | None = None, learn: Mapping[str, Any] | None = None, **train: Any
) -> ActorCriticConfig:
    """Returns a configuration; four fragments make an iteration."""
    tree = {"model": {**MODEL, **(model or {})}, "learn": dict(learn or {}), "train": {**_TRAIN, **train}}
    tree["a3c"] = {"request_lead_s": 0.0}  # each gradient on the weights that the one before it made
    return algorithm_config(EngineConfig.of(tree, "tiny"), CONTEXT)


@contextmanager
def built(config: ActorCriticConfig) -> Iterator[ActorCritic]:
    """Builds the algorithm and stops it in the end, without the folder that RLlib leaves in the home."""
    algorithm = config.build_algo()
    try:
        yield algorithm
    finally:
        algorithm.stop()
        shutil.rmtree(algorithm.logdir, ignore_errors=True)
