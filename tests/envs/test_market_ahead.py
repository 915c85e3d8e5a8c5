"""The market part of observations to come, on every vector environment, against the observations that came."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
import pytest
from gymnasium.error import ResetNeeded
from gymnasium.vector import AutoresetMode

from data_pipeline.scaling import Scaler
from envs.market import Market
from envs.swing import PortfolioVectorEnv, SwingVectorEnv
from envs.worlds import WorldVectorEnv
from rough import EVERY_OPTION, rough_panel

SPAN, SLOTS = (50, 640), 48
MODES = (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP)
KINDS = ("world", "slots", "portfolio")


@pytest.fixture(scope="module")
def rough():
    return Market(rough_panel(), Scaler(median=(0.2, -0.1, 0.0), spread=(0.7, 1.3, 0.9), clip=1.5))


def _env(kind, rough, mode=AutoresetMode.SAME_STEP, slots=SLOTS):
    if kind == "world":
        return WorldVectorEnv(slots, {"world": {"name": "hmm"}, "episode_steps": 25}, mode)
    vector = SwingVectorEnv if kind == "slots" else PortfolioVectorEnv
    return vector(slots, rough, SPAN, settings=EVERY_OPTION, autoreset_mode=mode)


@dataclass
class _Episode:
    """Market rows that were observed, the final one included, and whether the market itself ended it."""

    rows: list[np.ndarray]
    market_ended: bool = False
    delisted: bool = False


def _asked(env, mode, steps, ahead):
    """Plays at random; returns (episode, decisions before the question, answer `[ahead, F]`) for every question."""
    rng, width, same = np.random.default_rng(0), env.market_features, mode is AutoresetMode.SAME_STEP
    env.action_space.seed(0)
    observed = env.reset(seed=3)[0][:, :width]
    episodes, asked, over = [_Episode([row]) for row in observed], [], np.zeros(env.num_envs, bool)
    for _ in range(steps):
        slots = rng.choice(env.num_envs, env.num_envs // 3, replace=False)
        answers = env.market_ahead(ahead, slots)
        np.testing.assert_array_equal(answers, env.market_ahead(ahead)[:, slots])
        asked += [(episodes[slot], len(episodes[slot].rows) - 1, answers[:, b]) for b, slot in enumerate(slots)]
        at_last_bar = _at_last_bar(env)
        observed, _, terminated, truncated, infos = env.step(env.action_space.sample())
        ended, final = terminated | truncated, infos.get("final_obs", observed)[:, :width]
        for slot, row in enumerate(observed[:, :width]):
            if over[slot]:
                episodes[slot] = _Episode([row])
                continue
            episodes[slot].rows.append(final[slot] if ended[slot] else row)
            episodes[slot].delisted = bool(terminated[slot] & at_last_bar[slot])
            episodes[slot].market_ended = bool(truncated[slot]) or episodes[slot].delisted
            if ended[slot] and same:
                episodes[slot] = _Episode([row])
        over = ended & (not same)
    return asked


def _at_last_bar(env):
    if isinstance(env, WorldVectorEnv):
        return np.zeros(env.num_envs, bool)
    return (env.accounts._t >= env.accounts._last).all(axis=0)


@pytest.mark.parametrize(("kind", "mode", "ahead"), list(itertools.product(KINDS, MODES, (1, 7, 60))))
def test_market_ahead_equals_the_observations_that_follow_to_the_last_bit(rough, kind, mode, ahead):
    ends = {"market": 0, "delisting": 0, "account": 0}
    for episode, age, answer in _asked(_env(kind, rough, mode), mode, 150, ahead):
        rows = np.stack(episode.rows[age : age + ahead])
        assert answer.dtype == np.float32
        assert answer[: len(rows)].tobytes() == rows.tobytes()
        assert np.isfinite(answer).all()
        if len(rows) < ahead and episode.market_ended:
            assert (answer[len(rows) :] == rows[-1]).all()
        cut = len(rows) < ahead
        ends["market"] += cut and episode.market_ended
        ends["delisting"] += cut and episode.delisted
        ends["account"] += cut and not episode.market_ended
    assert ends["market"] > 0 or ahead == 1
    assert ends["account"] > 0 or ahead == 1 or kind == "world"
    assert ends["delisting"] > 0 or ahead == 1 or kind != "slots"


@pytest.mark.parametrize(("kind", "mode"), list(itertools.product(KINDS, MODES)))
def test_market_ahead_asked_all_the_time_changes_nothing(rough, kind, mode):
    asked, left = _env(kind, rough, mode), _env(kind, rough, mode)
    for env in (asked, left):
        env.action_space.seed(1)
    assert asked.reset(seed=8)[0].tobytes() == left.reset(seed=8)[0].tobytes()
    for number in range(120):
        asked.market_ahead(1 + number % 50)[:] = np.nan
        asked.market_ahead(3, np.array([5, 1]))[:] = np.nan
        one, two = (env.step(env.action_space.sample()) for env in (asked, left))
        for mine, theirs in zip(one[:4], two[:4], strict=True):
            assert mine.tobytes() == theirs.tobytes()
        assert one[4].keys() == two[4].keys()


def test_market_ahead_of_many_rows_leaves_a_small_scratch_behind():
    market = Market(rough_panel(), Scaler(median=(0.0, 0.0, 0.0), spread=(1.0, 1.0, 1.0)))
    env = _env("portfolio", market, slots=SLOTS)
    env.reset(seed=0)
    assert env.market_ahead(41).shape == (41, SLOTS, env.market_features)
    assert market._scratch.rows <= 2048 < 41 * SLOTS * 12


@pytest.mark.parametrize("kind", KINDS)
def test_market_ahead_before_the_first_episode_says_what_to_call(rough, kind):
    with pytest.raises(ResetNeeded, match="call reset"):
        _env(kind, rough).market_ahead(2)
