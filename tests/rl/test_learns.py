"""Learning on worlds whose optimum is known, in the short form; `benchmarks.learning` is the long one.

Scores are of the greedy policy over the optimum. In this process,
without Ray: one A3C worker and its optimiser, or PPO.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode

from benchmarks.learning import WORLDS, Memoryless, control, glance
from envs.worlds import WorldEnvConfig, WorldVectorEnv
from rl.learning.gradients import A3cWorker, Optimiser, Order, Recipe, adam_of, learn
from rl.learning.network import SwingNet
from rl.learning.progress import Moments, falling, rising
from rl.learning.rollout import Sampler
from rl.learning.settings import ModelConfig

STEPS = 800_000


def _world(name):
    return WorldEnvConfig.of(WORLDS[name], name)


def test_a3c_on_prop_learns_the_band_of_no_trade():
    assert control(_world("prop"), 0, STEPS, SwingNet) > 0.85


def test_a3c_on_hmm_remembers_what_one_return_does_not_tell():
    assert control(_world("hmm"), 0, STEPS, SwingNet) > 0.85


def test_a3c_on_hmm_without_memory_earns_nothing():
    assert control(_world("hmm"), 0, STEPS // 4, Memoryless) < 0.10


def test_a3c_on_prop_that_does_not_see_its_position_stays_below_the_sign_rule():
    blind = WorldEnvConfig.of({**WORLDS["prop"], "show_position": False}, "blind")
    assert control(blind, 0, STEPS // 2, SwingNet) < 0.55


def test_full_costs_from_the_first_step_end_in_never_trading_and_the_curriculum_prevents_it():
    collapsed = control(_world("prop"), 0, STEPS // 2, SwingNet, cost_rise=0.0)
    risen = control(_world("prop"), 0, STEPS // 2, SwingNet, cost_rise=0.5)
    assert abs(collapsed) < 0.05
    assert risen > 0.7


def test_ppo_on_prop_learns_the_band_of_no_trade():
    torch.manual_seed(0)
    net = SwingNet(1, _world("prop").action, ModelConfig(hidden=32), 1)
    env = WorldVectorEnv(64, _world("prop"), AutoresetMode.SAME_STEP)
    recipe, rng = Recipe(32, epochs=2, minibatches=4, normalise=False), np.random.default_rng(0)
    worker, optimiser, moments, done = (
        A3cWorker(Sampler(net, env, 0), recipe),
        Optimiser(net, adam_of(net), 0.5),
        Moments(),
        0,
    )
    while done < STEPS // 2:
        spent = done / (STEPS // 2)
        order = Order(0, rising(spent, 0.5), moments.scale, 0.01)
        fragment, report = worker.fragment(optimiser.vector(), order)
        learn(optimiser, [fragment], recipe, 1e-3 * falling(spent, 0.5), 0.01, rng)
        done, moments = done + report.steps, moments.merged(report.moments)
    assert glance(net, _world("prop")) > 0.85


@pytest.mark.parametrize("name", ["prop", "gp"])
def test_glance_of_an_untrained_policy_is_far_from_the_optimum(name):
    torch.manual_seed(0)
    world = _world(name)
    assert glance(SwingNet(1, world.action, ModelConfig(hidden=8), 1), world) < 0.5
