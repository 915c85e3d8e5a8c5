"""The environments in other people's hands: checkers, learners and wrappers that know nothing of us run unchanged."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env as gymnasium_check
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import RecordEpisodeStatistics

from data_pipeline.panel import save_panel
from envs.swing import (
    ENV_ID,
    PORTFOLIO_ENV_ID,
    PortfolioEnv,
    PortfolioVectorEnv,
    SwingEnv,
    SwingVectorEnv,
    register,
)
from product import TRAIN
from rl.learning.cluster import ray_session
from rough import EVERY_COST, EVERY_OPTION, EVERY_REWARD, rough_market

IDS = (ENV_ID, PORTFOLIO_ENV_ID)
SETTINGS = {
    "plain": {},
    "long-only": {"limits": {"long_only": True}},
    "every-cost": {"costs": EVERY_COST},
    "brackets": {"limits": {"stop_loss": 0.02, "take_profit": 0.03, "pattern_day_trader": True}},
    "every-reward": {"rewards": EVERY_REWARD},
    "everything": EVERY_OPTION,
}


@pytest.fixture(autouse=True, scope="module")
def one_torch_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def rough():
    return rough_market()


@pytest.fixture(scope="module")
def made(panel, market, tmp_path_factory):
    """Plain arguments of `gym.make`: episodes of 15 sessions that may end with the panel, where nothing follows."""
    register()
    return {
        "panel": str(save_panel(panel, tmp_path_factory.mktemp("panels"))),
        "scaler": market.scaler.tree(),
        "span": (len(panel.sessions) - 20, len(panel.sessions)),
        "settings": {"episode_sessions": 15},
    }


def with_settings(made: dict[str, Any], **settings: Any) -> dict[str, Any]:
    return {**made, "settings": {**made["settings"], **settings}}


# --- checkers ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [SwingEnv, PortfolioEnv])
@pytest.mark.parametrize(("action", "name"), list(itertools.product(["discrete", "continuous"], SETTINGS)))
def test_environment_passes_the_checkers_of_gymnasium_and_stable_baselines3(rough, market, kind, action, name):
    from stable_baselines3.common.env_checker import check_env as sb3_check

    settings = {"episode_sessions": 10, **SETTINGS[name], "action": action}
    for where, span in ((rough, (50, 640)), (market, TRAIN)):
        env = kind(where, span, settings=settings)
        sb3_check(env)
        gymnasium_check(env, skip_render_check=True)


# --- loops ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", IDS)
def test_random_loop_with_gym_make_runs_unchanged(made, name):
    env = gym.make(name, **made)
    observation, info = env.reset(seed=42)
    episodes = 0
    for _ in range(100):
        action = env.action_space.sample()
        observation, reward, terminated, truncated, info = env.step(action)
        assert math.isfinite(reward)
        if terminated or truncated:
            observation, info = env.reset()
            episodes += 1
    env.close()
    assert episodes == 6
    assert observation in env.observation_space
    assert info["equity_usd"] > 0


@pytest.mark.parametrize("name", IDS)
@pytest.mark.parametrize("mode", ["vector_entry_point", "sync"])
def test_random_loop_with_gym_make_vec_runs_unchanged(made, name, mode):
    envs = gym.make_vec(name, num_envs=3, vectorization_mode=mode, **made)
    observations, infos = envs.reset(seed=42)
    ended = 0
    for _ in range(100):
        actions = envs.action_space.sample()
        observations, rewards, terminations, truncations, infos = envs.step(actions)
        assert np.isfinite(rewards).all()
        ended += (terminations | truncations).sum()
    envs.close()
    assert ended == 3 * 6
    assert observations in envs.observation_space
    assert isinstance(infos, dict)


@pytest.mark.parametrize("name", IDS)
def test_vector_entry_point_answers_what_gymnasium_s_own_vector_of_scalars_does(made, name):
    """Both reset in the step after an end, so they agree to the last bit, rewards too (theirs are float64)."""
    arguments = with_settings(made, action="continuous", costs=EVERY_COST, rewards=EVERY_REWARD)
    ours, theirs = (
        gym.make_vec(name, num_envs=3, vectorization_mode=mode, **arguments) for mode in ("vector_entry_point", "sync")
    )
    answers = [[envs.reset(seed=7)[:1]] for envs in (ours, theirs)]
    ours.action_space.seed(1)
    for _ in range(50):
        actions = ours.action_space.sample()
        for envs, seen in zip((ours, theirs), answers, strict=True):
            seen.append(envs.step(actions)[:4])
    for mine, other in zip(*answers, strict=True):
        for one, two in zip(mine, other, strict=True):
            np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("kind", [SwingVectorEnv, PortfolioVectorEnv])
@pytest.mark.parametrize(
    ("mode", "counted"),
    [
        (AutoresetMode.NEXT_STEP, [(0, 10), (11, 21), (22, 32)]),
        # Gymnasium 1.2 leaves out the step after an end whatever the mode.
        (AutoresetMode.SAME_STEP, [(0, 10), (11, 20), (21, 30)]),
    ],
)
def test_gymnasium_s_recorder_of_episodes_counts_the_steps_it_means_to(market, kind, mode, counted):
    envs = RecordEpisodeStatistics(kind(4, market, TRAIN, settings={"episode_sessions": 10}, autoreset_mode=mode))
    envs.reset(seed=0)
    envs.action_space.seed(0)
    steps = [envs.step(envs.action_space.sample()) for _ in range(33)]
    assert [t for t, step in enumerate(steps, 1) if "episode" in step[4]] == [stop for _, stop in counted]
    rewards = np.stack([step[1] for step in steps])
    expected = [rewards[start:stop].sum(axis=0) for start, stop in counted]
    np.testing.assert_allclose(np.reshape(envs.return_queue, (3, 4)), expected, atol=1e-12)
    np.testing.assert_array_equal(
        np.reshape(envs.length_queue, (3, 4)), [[stop - start] * 4 for start, stop in counted]
    )


@pytest.mark.parametrize("kind", [SwingVectorEnv, PortfolioVectorEnv])
def test_two_vectors_of_four_slots_are_the_same_bytes_as_one_of_eight(market, kind):
    settings = EVERY_OPTION | {"episode_sessions": 12}
    whole, low, high = (kind(width, market, TRAIN, settings=settings) for width in (8, 4, 4))
    whole.action_space.seed(0)
    first = whole.reset(seed=5)[0]
    halves = low.reset(seed=5)[0], high.reset(seed=9)[0]
    assert first.tobytes() == np.concatenate(halves).tobytes()
    ends = 0
    for _ in range(60):
        actions = whole.action_space.sample()
        answers = whole.step(actions)[:4]
        parts = low.step(actions[:4])[:4], high.step(actions[4:])[:4]
        for all_of_it, *split in zip(answers, *parts, strict=True):
            assert all_of_it.tobytes() == np.concatenate(split).tobytes()
        ends += (answers[2] | answers[3]).sum()
    assert ends >= 8 * 4


# --- learners ---------------------------------------------------------------------------------------------------------


def test_recurrent_ppo_of_sb3_contrib_learns_on_the_registered_environment(made):
    from sb3_contrib import RecurrentPPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    envs = DummyVecEnv([lambda: gym.make(ENV_ID, **made)] * 2)
    model = RecurrentPPO("MlpLstmPolicy", envs, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
    before = {name: values.clone() for name, values in model.policy.state_dict().items()}
    model.learn(256)
    after = model.policy.state_dict()
    assert model.num_timesteps == 256
    assert all(torch.isfinite(values).all() for values in after.values())
    assert any(not torch.equal(before[name], values) for name, values in after.items())
    assert model.rollout_buffer.episode_starts.sum() >= 8
    assert np.ptp(model.rollout_buffer.rewards) > 0


@pytest.mark.parametrize("name", IDS)
def test_maskable_ppo_of_sb3_contrib_never_shorts_a_long_only_account(made, name):
    from sb3_contrib import MaskablePPO
    from stable_baselines3 import PPO
    from stable_baselines3.common.vec_env import DummyVecEnv

    arguments = with_settings(made, limits={"long_only": True})
    taken = {}
    for learner in (PPO, MaskablePPO):
        envs = DummyVecEnv([lambda: gym.make(name, **arguments)] * 2)
        model = learner("MlpPolicy", envs, n_steps=64, batch_size=64, n_epochs=1, seed=0, device="cpu")
        model.learn(128)
        taken[learner] = set(np.unique(model.rollout_buffer.actions))
    assert taken == {PPO: {0, 1, 2}, MaskablePPO: {1, 2}}


@pytest.fixture(scope="module")
def rllib() -> Iterator[Any]:
    """Stock RLlib, on a Ray of this machine alone."""
    with ray_session(cpus=1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # RLlib warns of its own deprecated calls at import
            import ray
            from ray.rllib.algorithms import ppo
        assert ray.util.get_node_ip_address() == "127.0.0.1"
        yield ppo


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0")  # RLlib has one name for all
@pytest.mark.parametrize("mode", ["sync", "vector_entry_point"])
@pytest.mark.parametrize(("name", "action"), [(ENV_ID, "discrete"), (PORTFOLIO_ENV_ID, "continuous")])
def test_stock_ppo_of_rllib_trains_an_iteration(rllib, made, name, action, mode):
    from ray.rllib.core.rl_module.default_model_config import DefaultModelConfig
    from ray.tune.registry import register_env

    arguments = with_settings(made, action=action, rewards=EVERY_REWARD, limits={"long_only": True})

    def make(context: dict[str, Any]) -> Any:
        if "num_envs" in context:
            return gym.make_vec(name, context["num_envs"], "vector_entry_point", **arguments)
        return gym.make(name, **arguments)

    register_env(name, make)
    config = (
        rllib.PPOConfig()
        .environment(name)
        .env_runners(num_env_runners=0, num_envs_per_env_runner=4, gym_env_vectorize_mode=mode)
        .rl_module(model_config=DefaultModelConfig(fcnet_hiddens=[16]))
        .training(train_batch_size_per_learner=256, minibatch_size=128, num_epochs=1)
        .debugging(seed=0, log_level="ERROR")
    )
    algorithm = config.build_algo()
    try:
        result = algorithm.train()
    finally:
        algorithm.stop()
    assert isinstance(algorithm.env_runner.env.unwrapped, gym.vector.SyncVectorEnv) == (mode == "sync")
    sampled, learnt = result["env_runners"], result["learners"]["default_policy"]
    assert sampled["num_env_steps_sampled"] >= 256
    assert sampled["episode_len_mean"] == 15
    assert math.isfinite(sampled["episode_return_mean"])
    assert math.isfinite(learnt["total_loss"])
    assert learnt["num_module_steps_trained"] >= 256
