"""Our PPO on the array-native runner learns what RLlib's own PPO learns on its own runner: network, world, schedule
and settings are the same."""

from __future__ import annotations

import pytest
from ray.rllib.algorithms.ppo import PPOConfig as StockPPOConfig

from benchmarks.learning import WORLDS, glance
from envs.worlds import WorldEnvConfig
from rl.learning.adapter import quiet
from rl.learning.build import ENV_NAME, algorithm_config, world_context
from rl.learning.cluster import ray_session
from rl.learning.progress import rising
from rl.learning.settings import EngineConfig
from tiny import built

pytestmark = [
    pytest.mark.ray,
    pytest.mark.timeout(1800),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    # RLlib registers one name with Gymnasium for every stock runner that it makes.
    pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0"),
]

STEPS, SLOTS, FRAGMENT, MINIBATCHES, EPOCHS = 200_000, 32, 32, 2, 3
LR, CLIP, VALUE, ENTROPY, LAMBDA, GAMMA, NORM = 2e-3, 0.2, 0.5, 0.01, 0.95, 0.97, 5.0
PROP = WorldEnvConfig.of({**WORLDS["prop"], "reward_scale": 0.3}, "prop")


@pytest.fixture(scope="module", autouse=True)
def session():
    with ray_session(cpus=2):
        quiet()
        yield


def _ours():
    settings = {
        "model": {"hidden": 32, "bptt_sessions": FRAGMENT},
        "learn": {
            "lr": LR,
            "lr_fall": 0.0,
            "gamma": GAMMA,
            "gae_lambda": LAMBDA,
            "entropy": ENTROPY,
            "value_weight": VALUE,
            "grad_clip": NORM,
            "scale_rewards": False,
            "normalise_advantages": True,
        },
        "ppo": {"clip": CLIP, "epochs": EPOCHS, "minibatches": MINIBATCHES},
        "train": {
            "algorithm": "ppo",
            "steps": STEPS,
            "iteration_steps": SLOTS * FRAGMENT,
            "env_runners": 0,
            "envs_per_runner": SLOTS,
            "seed": 1,
        },
    }
    return algorithm_config(EngineConfig.of(settings, "ours"), world_context(PROP))


def _stock():
    return (
        StockPPOConfig()
        .environment(ENV_NAME, env_config=world_context(PROP))
        .env_runners(
            num_env_runners=0,
            num_envs_per_env_runner=SLOTS,
            gym_env_vectorize_mode="vector_entry_point",
            rollout_fragment_length=FRAGMENT,
        )
        .rl_module(rl_module_spec=_ours().rl_module_spec)
        .training(
            lr=LR,
            gamma=GAMMA,
            lambda_=LAMBDA,
            clip_param=CLIP,
            vf_loss_coeff=VALUE / 2,  # RLlib's value loss is the squared error, ours half of it
            vf_clip_param=float("inf"),
            entropy_coeff=ENTROPY,
            use_kl_loss=False,
            grad_clip=NORM,
            grad_clip_by="global_norm",
            train_batch_size_per_learner=SLOTS * FRAGMENT,
            minibatch_size=SLOTS * FRAGMENT // MINIBATCHES,
            num_epochs=EPOCHS,
        )
        .debugging(seed=1, log_level="ERROR")
    )


def test_ours_and_stock_ppo_reach_the_same_score_on_prop():
    with built(_ours()) as algorithm:
        while algorithm.steps < STEPS:
            algorithm.train()
        ours = glance(algorithm.trained(), PROP)
    with built(_stock()) as algorithm:
        for done in range(0, STEPS, SLOTS * FRAGMENT):
            algorithm.env_runner.env.unwrapped.cost_scale = rising(done / STEPS, 0.5)
            algorithm.train()
        stock = glance(algorithm.get_module().net, PROP)
    print(f"score over optimum: ours {ours:.3f}, stock {stock:.3f}")
    assert ours > 0.85
    assert abs(ours - stock) < 0.08
