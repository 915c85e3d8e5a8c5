"""The Gymnasium shells: contract, and vector equals scalar."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from data_pipeline.errors import ConfigError, FoldError
from data_pipeline.panel import save_panel
from envs.swing import ENV_ID, SwingEnv, SwingVectorEnv, register
from product import TRAIN

SHORT = {"episode_sessions": 15}


@pytest.mark.parametrize("action", ["discrete", "continuous"])
def test_scalar_env_passes_gymnasiums_checker(market, action):
    check_env(SwingEnv(market, TRAIN, settings={**SHORT, "action": action}), skip_render_check=True)


@pytest.mark.parametrize("action", ["discrete", "continuous"])
def test_vector_env_equals_scalar_envs_step_for_step(market, action):
    settings = {**SHORT, "action": action}
    vector = SwingVectorEnv(16, market, TRAIN, settings=settings)
    scalars = [SwingEnv(market, TRAIN, settings=settings) for _ in range(16)]
    assert vector.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observed, _ = vector.reset(seed=5)
    np.testing.assert_array_equal(observed, [env.reset(seed=5 + i)[0] for i, env in enumerate(scalars)])
    vector.action_space.seed(0)
    ended = np.zeros(16, bool)
    for _ in range(200):
        actions = vector.action_space.sample()
        answers = [
            (*env.reset()[:1], 0.0, False, False) if over else env.step(act)[:4]
            for env, act, over in zip(scalars, actions, ended, strict=True)
        ]
        observed, reward, terminated, truncated, _ = vector.step(actions)
        for ours, theirs in zip((observed, reward, terminated, truncated), zip(*answers, strict=True), strict=True):
            np.testing.assert_array_equal(ours, theirs)
        ended = terminated | truncated
    assert not ended.all()


def test_vector_env_same_seed_gives_the_same_bytes(market):
    def run():
        env = SwingVectorEnv(8, market, TRAIN, settings=SHORT)
        env.action_space.seed(1)
        return [env.reset(seed=3)[0].tobytes()] + [env.step(env.action_space.sample())[0].tobytes() for _ in range(40)]

    assert run() == run()


def test_episode_truncates_after_its_sessions_and_never_leaves_the_span(market):
    env = SwingEnv(market, TRAIN, settings=SHORT)
    for seed in range(20):
        env.reset(seed=seed)
        for step in range(1, 16):
            *_, terminated, truncated, info = env.step(2)
            assert (terminated, truncated) == (False, step == 15)
        assert info["session"] <= str(market.panel.sessions[TRAIN.stop - 1])


def test_episode_terminates_at_ruin(market):
    env = SwingEnv(market, TRAIN, settings={"episode_sessions": 200, "ruin_fraction": 0.97})
    ended = set()
    for seed in range(10):
        env.reset(seed=seed)
        terminated = truncated = False
        while not (terminated or truncated):
            *_, terminated, truncated, info = env.step(0)
        ended.add(terminated)
        assert terminated == (info["equity_usd"] < 97_000)
    assert True in ended


def test_observation_market_part_is_the_scaled_feature_row(market):
    env = SwingEnv(market, TRAIN, settings=SHORT)
    observed, info = env.reset(seed=0)
    t = market.panel.session_index(info["session"])
    n = market.panel.symbol_index(info["symbol"])
    np.testing.assert_array_equal(observed[:-2], market.features[t, n])
    np.testing.assert_array_equal(observed[-2:], 0)


def test_registered_env_is_made_from_a_saved_panel(tmp_path, panel, market):
    register()
    register()
    width = len(panel.feature_names)
    scaled = {
        "panel": str(save_panel(panel, tmp_path)),
        "scaler": {"median": [0.0] * width, "spread": [1.0] * width},
        "span": tuple(TRAIN),
    }
    assert isinstance(gym.make(ENV_ID, **scaled).unwrapped, SwingEnv)
    vector = gym.make_vec(ENV_ID, num_envs=3, vectorization_mode="vector_entry_point", **scaled)
    assert isinstance(vector, SwingVectorEnv)
    assert vector.reset(seed=0)[0].shape == (3, width + 2)


def test_env_unknown_setting_is_named(market):
    with pytest.raises(ConfigError, match=r"unknown key 'costs\.spred'"):
        SwingEnv(market, TRAIN, settings={"costs": {"spred": 1}})


def test_env_span_without_room_says_what_to_change(market):
    with pytest.raises(FoldError, match="episode_sessions"):
        SwingEnv(market, (1800, 1850))
