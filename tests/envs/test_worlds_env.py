"""Worlds as environments: contract, the paths of the documented worlds, and vector equals scalar."""

from __future__ import annotations

import itertools
import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode
from gymnasium.wrappers.vector import DictInfoToList

from data_pipeline.errors import ConfigError
from data_pipeline.sources.worlds import WorldConfig, expected_rewards, paths
from envs.worlds import ENV_ID, WorldEnv, WorldEnvConfig, WorldVectorEnv, register

NAMES = ("prop", "hmm", "gp", "delay", "noise")
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
VARIANTS = [
    (name, action, shown)
    for name, action, shown in itertools.product(NAMES, ("discrete", "continuous"), (True, False))
    if (name, action) != ("gp", "discrete")
]


def _settings(name: str, action: str | None = None, **others: object) -> dict[str, object]:
    action = action or ("continuous" if name == "gp" else "discrete")
    return {"world": {"name": name}, "episode_steps": 15, "action": action, **others}


@pytest.mark.parametrize(("name", "action", "shown"), VARIANTS)
def test_scalar_env_passes_gymnasiums_checker(name, action, shown):
    env = WorldEnv(_settings(name, action, show_position=shown))
    check_env(env, skip_render_check=True)
    assert env.market_features == 1
    assert env.portfolio_features == (("position",) if shown else ())
    assert env.observation_space.shape == (1 + shown,)


@pytest.mark.parametrize(("name", "action", "shown"), VARIANTS)
def test_scalar_env_passes_stable_baselines_checker(name, action, shown):
    checker = pytest.importorskip("stable_baselines3.common.env_checker", exc_type=ImportError)
    checker.check_env(WorldEnv(_settings(name, action, show_position=shown)), warn=True)


def _scalar_answers(env: WorldEnv, action: object, over: bool, mode: AutoresetMode) -> tuple[tuple, object, object]:
    """One slot of a vector environment, by the contract of its mode and a scalar environment.

    Returns the answer, the expected reward (None: none) and the final observation (None: none).
    """
    if over and mode is AutoresetMode.NEXT_STEP:
        return (env.reset()[0], 0.0, False, False), None, None
    observed, reward, terminated, truncated, info = env.step(action)
    if truncated and mode is AutoresetMode.SAME_STEP:
        return (env.reset()[0], reward, terminated, truncated), info["expected_reward"], observed
    return (observed, reward, terminated, truncated), info["expected_reward"], None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("name", "action", "shown"), VARIANTS)
def test_vector_env_equals_scalar_envs_step_for_step(name, action, shown, mode):
    settings, count = _settings(name, action, show_position=shown), 11
    vector, scalars = WorldVectorEnv(count, settings, mode), [WorldEnv(settings) for _ in range(count)]
    assert vector.metadata["autoreset_mode"] is mode
    observed, _ = vector.reset(seed=5)
    np.testing.assert_array_equal(observed, [env.reset(seed=5 + slot)[0] for slot, env in enumerate(scalars)])
    vector.action_space.seed(0)
    over = np.zeros(count, bool)
    for _ in range(50):
        actions = vector.action_space.sample()
        each = [_scalar_answers(*of_slot, mode) for of_slot in zip(scalars, actions, over, strict=True)]
        answers, expected, final = zip(*each, strict=True)
        *ours, infos = vector.step(actions)
        for got, wanted in zip(ours, zip(*answers, strict=True), strict=True):
            np.testing.assert_array_equal(got, wanted)
        told = infos["expected_reward"][infos["_expected_reward"]]
        np.testing.assert_array_equal(told, [value for value in expected if value is not None])
        ended = infos.get("_final_obs", np.zeros(count, bool))
        if ended.any():
            np.testing.assert_array_equal(infos["final_obs"][ended], [last for last in final if last is not None])
        assert ended.sum() == sum(last is not None for last in final)
        over = ours[3]


@pytest.mark.parametrize("name", NAMES)
def test_vector_env_same_seed_gives_the_same_bytes_however_slots_are_shared_out(name):
    def run(count, seed):
        env = WorldVectorEnv(count, _settings(name), AutoresetMode.SAME_STEP)
        actions = np.ones((count, 1) if name == "gp" else count)
        steps = [(env.reset(seed=seed)[0], np.zeros(count)), *(env.step(actions)[:2] for _ in range(40))]
        return [np.stack(column) for column in zip(*steps, strict=True)]

    whole, again, parts = run(6, 3), run(6, 3), [run(2, 3), run(4, 5)]
    for one, same, split in zip(whole, again, zip(*parts, strict=True), strict=True):
        assert one.tobytes() == same.tobytes() == np.concatenate(split, axis=1).tobytes()
    assert not np.array_equal(whole[0], run(6, 4)[0])


@pytest.mark.parametrize("name", NAMES)
def test_first_episode_is_the_documented_path_of_the_world(name):
    steps, seed = 200, 9
    config = WorldConfig.of({"world": {"name": name}, "symbols": 1, "sessions": steps + 1, "seed": seed})
    seen = paths(config)
    env = WorldEnv(_settings(name, episode_steps=steps, position_limit=2.0))
    actions = np.random.default_rng(0).integers(0, 3, steps)
    held = (actions - 1.0) * env.config.position_unit
    play = actions[:, None] - 1.0 if name == "gp" else actions
    first, _ = env.reset(seed=seed)
    answers = [env.step(action) for action in play]
    observed = np.stack([first, *(answer[0] for answer in answers)])
    np.testing.assert_array_equal(observed[:, 0], (seen.cue[:, 0] / config.world.cue_deviation).astype(np.float32))
    np.testing.assert_array_equal(observed[1:, 1], actions - 1)
    realised = held * seen.returns[1:-1, 0] - config.world.charge(held)
    np.testing.assert_array_equal([answer[1] for answer in answers], realised)
    told = [answer[4]["expected_reward"] for answer in answers]
    now = type(seen)(*(column[:-1] for column in seen))
    np.testing.assert_array_equal(told, expected_rewards(config.world, held[:, None], now)[:, 0])


@pytest.mark.parametrize("name", NAMES)
def test_cue_is_observed_in_its_stationary_deviations(name):
    env = WorldVectorEnv(200, _settings(name, episode_steps=1))
    env.reset(seed=0)
    cues = np.concatenate([env.reset()[0][:, 0] for _ in range(100)])
    assert cues.mean() == pytest.approx(0, abs=4 / math.sqrt(len(cues)))
    assert (cues**2).mean() == pytest.approx(1, abs=4 * math.sqrt(2 / len(cues)))


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0])
def test_cost_scale_and_expected_reward_change_the_reward_but_not_what_is_told(scale):
    plain = WorldEnv(_settings("prop"))
    tuned = WorldEnv(_settings("prop", expected_reward=True, reward_scale=10.0))
    tuned.cost_scale = scale
    for env in (plain, tuned):
        env.reset(seed=1)
    assert (plain.cost_scale, tuned.cost_scale) == (1.0, scale)
    before = 0.0
    for action in (2, 2, 0, 1, 0):
        signal = float(tuned.slots.expected[tuned.slots.t, 0])
        position, charge = action - 1, 0.5 * abs(action - 1 - before)
        told, info = tuned.step(action)[1], plain.step(action)[4]
        assert told == pytest.approx(10 * (position * signal - scale * charge), abs=1e-12)
        assert info["expected_reward"] == pytest.approx(position * signal - charge, abs=1e-12)
        before = position


@pytest.mark.parametrize("scale", [-0.1, math.nan, math.inf])
def test_cost_scale_that_makes_no_sense_is_refused(scale):
    env = WorldVectorEnv(2)
    with pytest.raises(ConfigError, match="cost_scale"):
        env.cost_scale = scale
    assert env.cost_scale == 1.0


def test_gp_position_of_an_action_is_in_deviations_and_clipped():
    env = WorldEnv({**_settings("gp"), "world": {"name": "gp", "noise": 0.0, "lam": 0.0}, "position_limit": 3.0})
    env.reset(seed=0)
    for action, position in ((0.5, 0.45), (1.0, 0.9), (7.0, 0.9), (-2.0, -0.9)):
        signal = float(env.slots.expected[env.slots.t, 0])
        observed, reward, *_ = env.step(np.array([action], np.float32))
        assert reward == pytest.approx(position * signal - position**2 / 2)
        assert observed[1] == pytest.approx(position / 0.9)


def test_next_step_env_resets_on_the_step_after_the_end_and_ignores_its_action():
    env = WorldVectorEnv(2, _settings("delay", episode_steps=3))
    env.reset(seed=0)
    for step in range(1, 12):
        observed, reward, terminated, truncated, infos = env.step(np.array([2, 0]))
        assert observed[:, 1].tolist() == ([0, 0] if step % 4 == 0 else [1, -1])
        assert truncated.tolist() == [step % 4 == 3] * 2
        assert (reward == 0).all() == (step % 4 == 0)
        assert infos["_expected_reward"].tolist() == [step % 4 != 0] * 2
        assert "final_obs" not in infos
        assert not terminated.any()


def test_same_step_env_resets_at_the_end_and_gives_the_last_observation_apart():
    env = WorldVectorEnv(2, _settings("delay", episode_steps=3), AutoresetMode.SAME_STEP)
    env.reset(seed=0)
    for step in range(1, 10):
        observed, reward, terminated, truncated, infos = env.step(np.array([2, 0]))
        end = step % 3 == 0
        assert observed[:, 1].tolist() == ([0, 0] if end else [1, -1])
        assert truncated.tolist() == [end] * 2
        assert (reward != 0).all()
        assert infos["_expected_reward"].all()
        assert ("final_obs" in infos) == end
        if end:
            assert infos["_final_obs"].all()
            assert infos["final_obs"].dtype == np.float32
            assert infos["final_obs"][:, 1].tolist() == [1, -1]
        assert not terminated.any()


def test_last_cue_of_an_episode_is_the_one_that_follows_its_last_return():
    short, long = (WorldEnv(_settings("prop", episode_steps=steps)) for steps in (3, 4))
    assert short.reset(seed=2)[0].tolist() == long.reset(seed=2)[0].tolist()
    for _ in range(3):
        one, other = short.step(2), long.step(2)
    assert (one[3], other[3]) == (True, False)
    np.testing.assert_array_equal(one[0], other[0])


def test_seed_none_in_a_list_lets_that_slot_go_on():
    settings = _settings("prop")
    env, other = WorldVectorEnv(2, settings), WorldEnv(settings)
    first = env.reset(seed=[4, 7])[0]
    mixed = env.reset(seed=[None, 7])[0]
    other.reset(seed=4)
    np.testing.assert_array_equal(mixed[0], other.reset()[0])
    np.testing.assert_array_equal(mixed[1], first[1])
    assert not np.array_equal(env.reset()[0], mixed)
    assert not np.array_equal(WorldVectorEnv(2, settings).reset()[0], WorldVectorEnv(2, settings).reset()[0])


def test_step_outside_an_episode_says_what_to_call():
    env, vector = WorldEnv(_settings("prop", episode_steps=1)), WorldVectorEnv(2, _settings("prop"))
    for idle, action in ((env, 1), (vector, np.array([1, 1]))):
        with pytest.raises(ResetNeeded, match="call reset"):
            idle.step(action)
    env.reset(seed=0)
    assert env.step(1)[3]
    with pytest.raises(ResetNeeded, match="call reset"):
        env.step(1)


def test_registered_env_is_made_by_name():
    register()
    register()
    settings = _settings("hmm", show_position=False)
    assert isinstance(gym.make(ENV_ID, settings=settings).unwrapped, WorldEnv)
    how = {"settings": settings, "autoreset_mode": "SameStep"}
    vector = gym.make_vec(ENV_ID, num_envs=3, vectorization_mode="vector_entry_point", **how)
    assert isinstance(vector, WorldVectorEnv)
    assert vector.metadata["autoreset_mode"] is AutoresetMode.SAME_STEP
    assert vector.reset(seed=0)[0].shape == (3, 1)


def test_infos_become_one_dict_per_slot_as_rllib_wants_them():
    env = DictInfoToList(WorldVectorEnv(2, _settings("prop", episode_steps=2)))
    env.reset(seed=0)
    keys = [[list(info) for info in env.step(np.array([2, 2]))[4]] for _ in range(3)]
    assert keys == [[["expected_reward"]] * 2] * 2 + [[[]] * 2]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"world": {"name": "gp"}}, "set action to continuous"),
        ({"worlds": {}}, r"env: unknown key 'worlds' \(known here: action, "),
        ({"episode_steps": 0}, "episode_steps = 0"),
    ],
)
def test_settings_that_do_not_fit_are_named(settings, words):
    with pytest.raises(ConfigError, match=words):
        WorldEnv(settings)


def test_autoreset_mode_without_resets_is_refused():
    with pytest.raises(ConfigError, match="NextStep or SameStep"):
        WorldVectorEnv(2, WorldEnvConfig(), AutoresetMode.DISABLED)
