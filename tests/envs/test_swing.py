"""The Gymnasium shells: contract, vector equals scalar, episodes, and what happens at their ends."""

from __future__ import annotations

import itertools

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from data_pipeline.errors import ConfigError, FoldError
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
from rough import EVERY_COST, EVERY_LIMIT, EVERY_OPTION, EVERY_REWARD, rough_market

SHORT = {"episode_sessions": 15}
SPAN = (50, 640)
SHAPES = {"slots": (SwingEnv, SwingVectorEnv), "portfolio": (PortfolioEnv, PortfolioVectorEnv)}
VARIANTS = {
    "plain": {"episode_sessions": 15},
    "continuous": {"episode_sessions": 15, "action": "continuous"},
    "every-option": EVERY_OPTION,
    "long-only-kelly": {
        "episode_sessions": 30,
        "rewards": EVERY_REWARD,
        "costs": EVERY_COST,
        "limits": {"long_only": True, "allocation": "kelly", "kelly_edge_bps": 4.0, "fractional": True},
    },
    "equal-risk-discrete": {
        "episode_sessions": 25,
        "costs": EVERY_COST,
        "limits": {**EVERY_LIMIT, "allocation": "equal_risk", "fractional": True, "max_drawdown": None},
    },
}


@pytest.fixture(scope="module")
def rough():
    return rough_market()


@pytest.mark.parametrize(("shape", "variant"), list(itertools.product(SHAPES, VARIANTS)))
def test_scalar_env_passes_gymnasiums_checker(rough, shape, variant):
    check_env(SHAPES[shape][0](rough, SPAN, settings=VARIANTS[variant]), skip_render_check=True)


@pytest.mark.parametrize("shape", SHAPES)
def test_scalar_env_passes_gymnasiums_checker_on_real_bars(market, shape):
    check_env(SHAPES[shape][0](market, TRAIN, settings=SHORT), skip_render_check=True)


@pytest.mark.parametrize(("shape", "variant"), list(itertools.product(SHAPES, VARIANTS)))
def test_vector_env_equals_scalar_envs_to_the_last_bit(rough, shape, variant, pytestconfig):
    """64 slots; with `pytest --thorough` 10,000 steps each, else as many in all with every option on."""
    scalar, vector = SHAPES[shape]
    settings = VARIANTS[variant]
    ours = vector(64, rough, SPAN, settings=settings)
    alone = [scalar(rough, SPAN, settings=settings) for _ in range(64)]
    observed, _ = ours.reset(seed=5)
    np.testing.assert_array_equal(observed, [env.reset(seed=5 + i)[0] for i, env in enumerate(alone)])
    ours.action_space.seed(0)
    ended, ends = np.zeros(64, bool), np.zeros(2, int)
    short = 157 if variant == "every-option" else 50
    for _ in range(10_000 if pytestconfig.getoption("--thorough") else short):
        actions = ours.action_space.sample()
        answers = [
            (env.reset()[0], 0.0, False, False) if over else env.step(act)[:4]
            for env, act, over in zip(alone, actions, ended, strict=True)
        ]
        *mine, _ = ours.step(actions)
        for got, wanted in zip(mine, zip(*answers, strict=True), strict=True):
            np.testing.assert_array_equal(got, wanted)
        ends += mine[2].sum(), mine[3].sum()
        ended = mine[2] | mine[3]
    assert ends[1] > 0
    assert ends[0] > 0 or (shape, variant) != ("slots", "every-option")
    for mine, theirs in zip(ours.accounts.book, zip(*(env.accounts.book for env in alone), strict=True), strict=True):
        np.testing.assert_array_equal(mine, np.concatenate(theirs, axis=-1))


@pytest.mark.parametrize("shape", SHAPES)
def test_slots_are_the_same_bytes_on_any_number_of_workers(rough, shape):
    vector = SHAPES[shape][1]
    whole = vector(8, rough, SPAN, settings=EVERY_OPTION)
    parts = [vector(width, rough, SPAN, settings=EVERY_OPTION) for width in (3, 5)]
    starts = [whole.reset(seed=11)[0]], [part.reset(seed=seed)[0] for part, seed in zip(parts, (11, 14), strict=True)]
    assert starts[0][0].tobytes() == np.concatenate(starts[1]).tobytes()
    whole.action_space.seed(2)
    for _ in range(120):
        actions = whole.action_space.sample()
        one, *rest = whole.step(actions)[:4]
        split = [part.step(chunk)[:4] for part, chunk in zip(parts, (actions[:3], actions[3:]), strict=True)]
        for mine, theirs in zip((one, *rest), zip(*split, strict=True), strict=True):
            assert mine.tobytes() == np.concatenate(theirs).tobytes()


@pytest.mark.parametrize("shape", SHAPES)
def test_same_step_autoreset_tells_the_same_story_as_next_step(rough, shape):
    vector = SHAPES[shape][1]
    later = vector(16, rough, SPAN, settings=EVERY_OPTION)
    at_once = vector(16, rough, SPAN, settings=EVERY_OPTION, autoreset_mode=AutoresetMode.SAME_STEP)
    assert (later.metadata["autoreset_mode"], at_once.metadata["autoreset_mode"]) == (
        AutoresetMode.NEXT_STEP,
        AutoresetMode.SAME_STEP,
    )
    rng = np.random.default_rng(0)
    stories = {later: [[] for _ in range(16)], at_once: [[] for _ in range(16)]}
    for env, story in stories.items():
        observed, _ = env.reset(seed=1)
        ended = np.zeros(16, bool)
        draws = [np.random.default_rng(slot) for slot in range(16)]
        for _ in range(200):
            waits = ended if env is later else np.zeros(16, bool)  # this step only resets them
            actions = np.stack(
                [
                    rng.uniform(-1, 1, env.single_action_space.shape)
                    if wait
                    else draw.uniform(-1, 1, env.single_action_space.shape)
                    for wait, draw in zip(waits, draws, strict=True)
                ]
            )
            before, (observed, reward, terminated, truncated, infos) = observed, env.step(actions)
            ended = terminated | truncated
            last = infos.get("final_obs", observed)
            for slot in np.flatnonzero(~waits):
                seen = last[slot] if ended[slot] else observed[slot]
                story[slot].append((before[slot].tobytes(), reward[slot], seen.tobytes(), ended[slot]))
            if env is at_once:
                assert ("final_obs" in infos) == ended.any()
                assert not ended.any() or (infos["_final_obs"] == ended).all()
    for one, two in zip(stories[later], stories[at_once], strict=True):
        shared = min(len(one), len(two))
        assert shared > 150
        assert one[:shared] == two[:shared]
        assert any(step[3] for step in one[:shared])


def test_reset_step_after_an_end_answers_reward_0_and_ignores_the_action(rough):
    env = SwingVectorEnv(4, rough, SPAN, settings={"episode_sessions": 1})
    env.reset(seed=0)
    *_, truncated, _ = env.step([2, 2, 2, 2])
    assert truncated.all()
    observed, reward, terminated, truncated, _ = env.step([2, 2, 2, 2])
    assert not reward.any()
    assert not (terminated | truncated).any()
    assert not observed[:, -2:].any()  # no position was taken


def test_reward_terms_are_those_of_the_step_and_add_up(rough):
    settings = {"episode_sessions": 5, "rewards": EVERY_REWARD}
    weight = {"log_return": 1.0, **EVERY_REWARD}
    for mode in (AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP):
        env = SwingVectorEnv(8, rough, SPAN, settings=settings, autoreset_mode=mode)
        env.reset(seed=0)
        for _ in range(13):
            _, reward, _, _, infos = env.step(env.action_space.sample())
            total = sum(weight[name] * values for name, values in infos["reward_terms"].items())
            np.testing.assert_allclose(100 * total, reward, atol=1e-12)
    scalar = SwingEnv(rough, SPAN, settings=settings)
    scalar.reset(seed=0)
    scalar.step(2)
    assert scalar.reset()[1]["reward_terms"] == {}


def test_step_before_reset_is_refused(rough):
    for env in (SwingEnv(rough, SPAN), SwingVectorEnv(1, rough, SPAN)):
        with pytest.raises(gym.error.ResetNeeded):
            env.step(np.array([2]))


def test_autoreset_mode_that_does_not_fit_is_refused(rough):
    with pytest.raises(ConfigError, match="NextStep or SameStep"):
        SwingVectorEnv(1, rough, SPAN, autoreset_mode=AutoresetMode.DISABLED)


def test_episode_truncates_after_its_sessions_and_never_leaves_the_span(market):
    env = SwingEnv(market, TRAIN, settings=SHORT)
    for seed in range(20):
        env.reset(seed=seed)
        for step in range(1, 16):
            *_, terminated, truncated, info = env.step(2)
            assert (terminated, truncated) == (False, step == 15)
        assert info["session"] <= str(market.panel.sessions[TRAIN.stop - 1])


def test_starts_are_all_complete_stretches_of_the_span_and_equally_likely(rough):
    length, (start, stop) = 20, SPAN
    ready, last = rough.panel.ready, rough.panel.last_bar_N
    wanted = set()
    for n, t in itertools.product(range(ready.shape[1]), range(start, stop - length)):
        end = t + length
        if end > last[n] and last[n] < stop - 1:
            end = last[n]
        if t <= end and ready[t : end + 1, n].all():
            wanted.add((n, t))
    starts = rough.slot_starts(start, stop, length)
    count = starts.after[-1]
    n, t = starts.draw((np.arange(count) + 0.5) / count)
    assert len(wanted) == count
    assert set(zip(n.tolist(), t.tolist(), strict=True)) == wanted


def test_delisted_symbol_ends_the_episode_settled_and_terminated(rough):
    column, last = 3, rough.panel.last_bar_N[3]
    env = SwingEnv(rough, SPAN, settings={"episode_sessions": 20})
    seen = 0
    for seed in range(2000):
        _, info = env.reset(seed=seed)
        start = rough.panel.session_index(info["session"])
        if info["symbol"] != f"S{column}" or start + 20 <= last:
            continue
        seen += 1
        number, terminated = -1, False
        while not terminated:
            observed, _, terminated, truncated, info = env.step(2)
            assert np.isfinite(observed).all()
            number += 1
        assert (terminated, truncated, number) == (True, False, last - start)
        assert env.accounts.book.shares[0, 0] == 0
        assert (env.accounts.fills.delisting[0, 0] > 0) == (number > 0)  # nothing is held yet at the very last close
    assert seen > 5


def test_ruin_terminates_and_the_end_of_the_window_truncates(rough):
    env = SwingVectorEnv(64, rough, (50, 440), settings={"episode_sessions": 30, "ruin_fraction": 0.9})
    env.reset(seed=0)
    ends = np.zeros(2, int)
    for _ in range(60):
        *_, terminated, truncated, _ = env.step(np.full(64, 0))
        assert not (terminated & truncated).any()
        assert (env.accounts.book.equity[terminated] < 90_000.0).all()
        assert (env.accounts.book.equity[truncated] >= 90_000.0).all()
        assert (env.accounts._age[truncated] == 30).all()
        ends += terminated.sum(), truncated.sum()
    assert ends.all()


def test_drawdown_stop_terminates(rough):
    settings = {"episode_sessions": 100, "limits": {"max_drawdown": 0.1}, "action": "continuous"}
    env = SwingVectorEnv(32, rough, SPAN, settings=settings, autoreset_mode="SameStep")
    env.reset(seed=0)
    for _ in range(100):
        held = env.accounts.book
        *_, terminated, _, _ = env.step(np.ones(32))
        assert (held.drawdown <= 0.1).all()  # whoever broke it was reset
        if terminated.any():
            return
    raise AssertionError("no account lost a tenth of its highest equity")


def test_portfolio_observation_masks_what_is_not_ready(rough):
    env = PortfolioVectorEnv(8, rough, SPAN, settings={"episode_sessions": 60})
    observed, _ = env.reset(seed=0)
    members, width = 12, 3
    hidden = 0
    for _ in range(59):
        features = observed[:, : members * width].reshape(8, members, width)
        ready = observed[:, env.market_features :][:, 2 * members : 3 * members].astype(bool)
        assert not features[~ready].any()
        assert (features[ready] != 0).all()
        hidden += (~ready).sum()
        observed, *_ = env.step(env.action_space.sample())
    assert hidden > 10
    assert observed.shape[1] == env.market_features + len(env.portfolio_features)


def test_portfolio_of_weights_keeps_within_gross_and_net(rough):
    limits = {"max_gross": 0.9, "max_net": 0.2, "no_trade_band": 0.0, "fractional": True}
    env = PortfolioVectorEnv(16, rough, SPAN, settings={"action": "continuous", "limits": limits, "costs": EVERY_COST})
    env.reset(seed=3)
    for _ in range(50):
        env.step(env.action_space.sample())
        target = env.accounts.fills.target_weight
        asked = np.nan_to_num(target)
        assert (np.abs(asked).sum(axis=0) <= 0.9 + 1e-9).all()
        alone = ~np.isnan(target).any(axis=0)
        assert (np.abs(asked.sum(axis=0))[alone] <= 0.2 + 1e-9).all()


@pytest.mark.parametrize("shape", SHAPES)
def test_action_masks_say_what_the_limits_turn_into_cash(rough, shape):
    scalar, vector = SHAPES[shape]
    env = vector(6, rough, SPAN, settings={"limits": {"unshortable": ["S1", "S4"], "no_trade_band": 0.0}})
    _, infos = env.reset(seed=4)
    symbols = [[f"S{n}" for n in column] for column in env.accounts._n.T]
    masks = infos["action_mask"].reshape(6, env.accounts.members, 3)
    for mask, names in zip(masks, symbols, strict=True):
        assert mask[:, 1:].all()
        assert mask[:, 0].tolist() == [name not in ("S1", "S4") for name in names]
    env.step(np.zeros(env.action_space.shape, int))
    assert not env.accounts.book.shares[~masks[..., 0].T].any()
    assert (env.accounts.book.shares <= 0).all()
    only = scalar(rough, SPAN, settings={"limits": {"long_only": True}})
    _, info = only.reset(seed=0)
    assert not info["action_mask"].reshape(-1, 3)[:, 0].any()
    assert (only.action_masks() == info["action_mask"]).all()
    assert "action_mask" not in scalar(rough, SPAN).reset(seed=0)[1]


def test_discrete_and_continuous_targets_agree_where_they_mean_the_same(rough):
    one = SwingVectorEnv(32, rough, SPAN, settings=SHORT)
    two = SwingVectorEnv(32, rough, SPAN, settings={**SHORT, "action": "continuous"})
    one.reset(seed=0), two.reset(seed=0)
    one.action_space.seed(0)
    for _ in range(60):
        actions = one.action_space.sample()
        for mine, theirs in zip(one.step(actions)[:4], two.step(actions - 1.0)[:4], strict=True):
            np.testing.assert_array_equal(mine, theirs)


def test_unchanged_target_within_the_band_costs_nothing(market):
    env = SwingEnv(market, TRAIN, settings={**SHORT, "action": "continuous", "limits": {"no_trade_band": 0.2}})
    env.reset(seed=0)
    env.step([0.5])
    for _ in range(5):
        env.step([0.5])
        assert env.accounts.fills.costs.total.sum() == 0


def test_cost_scale_runs_from_free_to_the_whole_cost(market):
    def lost(factor: float) -> float:
        env = SwingEnv(market, TRAIN, settings={**SHORT, "limits": {"no_trade_band": 0.0}})
        env.cost_scale = factor
        env.reset(seed=0)
        paid = []
        for action in (2, 0, 2, 1):
            env.step(action)
            paid.append(env.accounts.fills.costs.total.sum())
        return sum(paid)

    assert lost(0.0) == 0.0
    assert lost(0.5) == pytest.approx(0.5 * lost(1.0), rel=1e-3)
    env = SwingEnv(market, TRAIN)
    with pytest.raises(ConfigError, match="cost_scale -1"):
        env.cost_scale = -1.0


def test_market_part_of_the_observation_ignores_the_actions(market):
    long, cash = (SwingVectorEnv(4, market, TRAIN, settings=SHORT) for _ in range(2))
    long.reset(seed=9), cash.reset(seed=9)
    for _ in range(14):
        one, *_ = long.step(np.full(4, 2))
        two, *_ = cash.step(np.full(4, 1))
        np.testing.assert_array_equal(one[:, : long.market_features], two[:, : long.market_features])
        assert (one[:, -2:] != two[:, -2:]).any()


def test_observation_at_t_holds_the_features_of_t(market):
    env = SwingEnv(market, TRAIN, settings=SHORT)
    observed, info = env.reset(seed=2)
    t, n = market.panel.session_index(info["session"]), market.panel.symbol_index(info["symbol"])
    expected = market.scaler.transform(market.panel.features[t, n])
    np.testing.assert_array_equal(observed[: env.market_features], expected)


def test_make_opens_a_saved_panel_from_plain_arguments(panel, market, tmp_path):
    register()
    arguments = {
        "panel": str(save_panel(panel, tmp_path)),
        "span": tuple(TRAIN),
        "scaler": market.scaler.tree(),
        "settings": SHORT,
    }
    for name in (ENV_ID, PORTFOLIO_ENV_ID):
        env = gym.make(name, **arguments, disable_env_checker=True)
        observed, _ = env.reset(seed=0)
        assert observed in env.observation_space
        many = gym.make_vec(name, num_envs=3, vectorization_mode="vector_entry_point", **arguments)
        assert many.reset(seed=0)[0].shape == (3, *observed.shape)


def test_span_too_short_for_an_episode_is_refused(market):
    for vector in (SwingVectorEnv, PortfolioVectorEnv):
        with pytest.raises(FoldError, match="episode_sessions"):
            vector(1, market, (100, 120))


def test_settings_mistake_names_the_path(market):
    with pytest.raises(ConfigError, match=r"unknown key 'limits\.max_gros'"):
        SwingEnv(market, TRAIN, settings={"limits": {"max_gros": 1}})
    with pytest.raises(ConfigError, match="max_holding_sessions 2 is below min_holding_sessions 5"):
        SwingEnv(market, TRAIN, settings={"limits": {"min_holding_sessions": 5, "max_holding_sessions": 2}})
