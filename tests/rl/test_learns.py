"""Learning on worlds whose optimum is known, in the short form; `benchmarks.learning` is the long one.

Scores are of the greedy policy over the optimum. In this process, without Ray: one A3C worker and optimiser, or PPO.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from benchmarks.learning import WORLDS, Memoryless, alone, changed, glance, settings_of
from envs.worlds import WorldEnvConfig, WorldVectorEnv
from rl.learning.gradients import A3cWorker, Optimiser, Order, Recipe, learn
from rl.learning.network import SwingNet
from rl.learning.progress import Moments, falling, rising
from rl.learning.rollout import Sampler
from rl.learning.settings import ModelConfig

STEPS = 400_000
"""Enough with small fragments of few slots, for more updates."""
SHORT = {
    "model.bptt_sessions": 16,
    "train.envs_per_runner": 32,
    "learn.lr": 0.003,
    "learn.lr_fall": 0.5,
    "learn.grad_clip": 0.5,
    "learn.entropy": 0.01,
}


def _world(name):
    return WorldEnvConfig.of(WORLDS[name], name)


def _learned(world, steps=STEPS, kind=SwingNet, **learn):
    """Returns the score after a short training."""
    changes = {**SHORT, **{f"learn.{name}": value for name, value in learn.items()}}
    return glance(alone(changed(settings_of("a3c", world, 0, steps), changes), world, kind), world)


# With 0.01, two of ten seeds end in never trading on hmm.
@pytest.mark.parametrize(("name", "entropy"), [("prop", 0.01), ("hmm", 0.03)])
def test_a3c_learns_the_band_of_no_trade_and_to_remember(name, entropy):
    assert _learned(_world(name), entropy=entropy) > 0.85


def test_a3c_on_hmm_without_memory_earns_nothing():
    assert _learned(_world("hmm"), STEPS // 4, Memoryless) < 0.10


def test_a3c_on_prop_with_neither_position_nor_memory_stays_near_the_sign_rule():
    blind = WorldEnvConfig.of({**WORLDS["prop"], "show_position": False}, "blind")
    assert _learned(blind, kind=Memoryless) < 0.55


def test_full_costs_from_the_first_step_end_in_never_trading_and_their_rise_prevents_it():
    prop = _world("prop")
    assert abs(_learned(prop, cost_rise=0.0)) < 0.05
    assert _learned(prop, cost_rise=0.5) > 0.7


def test_ppo_on_prop_learns_the_band_of_no_trade():
    prop, steps = _world("prop"), 300_000
    torch.manual_seed(0)
    net = SwingNet(1, prop.action, ModelConfig(hidden=32), 1)
    sampler = Sampler(net, WorldVectorEnv(64, prop, AutoresetMode.SAME_STEP), 0)
    recipe, rng = Recipe(64, lambda_=0.95, epochs=2, minibatches=4, normalise=False), np.random.default_rng(0)
    worker, optimiser, moments, done = A3cWorker(sampler, recipe), Optimiser(copy.deepcopy(net), 5.0), Moments(), 0
    while done < steps:
        order = Order(0, rising(done / steps, 0.5), moments.scale, 0.01)
        fragment, report = worker.fragment(optimiser.vector(), order)
        learn(optimiser, [fragment], recipe, 2e-3 * falling(done / steps, 0.8), 0.01, rng)
        done, moments = done + report.steps, moments.merged(report.moments)
    assert glance(optimiser.net, prop) > 0.85


@pytest.mark.parametrize("name", ["prop", "gp"])
def test_glance_of_an_untrained_policy_is_far_from_the_optimum(name):
    torch.manual_seed(0)
    world = _world(name)
    assert glance(SwingNet(1, world.action, ModelConfig(hidden=8), 1), world) < 0.5
