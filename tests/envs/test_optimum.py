"""The optimum of each world: pencil, the oracle, the obvious loop, and policies that earn it in the environment."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.sources.worlds import DelayWorld, GpWorld, HmmWorld, NoiseWorld, PropWorld, World
from envs.optimum import OptimalPolicy, optimum
from envs.worlds import WorldEnvConfig, WorldVectorEnv
from product import ROOT

ORACLE = ROOT.parent / "shared" / "oracle" / "oracle.py"
BURN_IN = 300


@pytest.fixture(scope="module")
def oracle() -> Any:
    if not ORACLE.is_file():
        pytest.skip(f"{ORACLE.name} is not beside the repository: optima are NOT checked against it")
    spec = importlib.util.spec_from_file_location("oracle", ORACLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ../shared/facts/worlds.md, table
@pytest.mark.parametrize(
    ("world", "published", "lesser"),
    [
        (PropWorld(q=0.95, sd=0.2, c=0.5), 0.121814, {"position_blind": 0.0587, "myopic": 0.0246}),
        (PropWorld(q=0.8, sd=0.3, c=0.5), 0.137602, {"position_blind": 0.0346, "myopic": 0.0840}),
        (HmmWorld(m=0.3, h=0.02, c=0.2), 0.16281, {"memoryless": 0.0}),
        (HmmWorld(m=0.2, h=0.01, c=0.2), 0.10762, {"memoryless": 0.0}),
        (GpWorld(phi=0.05, lam=50.0, sd_f=0.3), 0.0255, {"myopic": 0.49 * 0.0255, "position_blind": 0.29 * 0.0255}),
        (DelayWorld(lag=5, b=0.5, c=0.0), 0.5, {"memoryless": 0.0}),
        (DelayWorld(lag=20, b=0.5, c=0.0), 0.5, {"memoryless": 0.0}),
        (NoiseWorld(), 0.0, {}),
    ],
    ids=lambda value: value.name if hasattr(value, "name") else None,
)
def test_optimum_is_the_published_one(world, published, lesser):
    best = optimum(world)
    assert best.average_reward == pytest.approx(published, abs=1e-4)
    for lacking, score in lesser.items():
        assert best.lesser[lacking] == pytest.approx(score, abs=3e-4), lacking  # printed to three digits


@pytest.mark.parametrize(("q", "sd", "c"), [(0.95, 0.2, 0.5), (0.8, 0.3, 0.1), (0.5, 1.0, 0.2)])
def test_prop_sign_policy_earns_what_normal_orthants_say(q, sd, c):
    """E abs(s) = sd √(2/π), and two normals of correlation q differ in sign with chance arccos(q)/π."""
    sign = sd * math.sqrt(2 / math.pi) - 2 * c * math.acos(q) / math.pi
    best = optimum(PropWorld(q=q, sd=sd, c=c))
    assert sign - 1e-5 < best.lesser["position_blind"] < best.average_reward
    free = optimum(PropWorld(q=q, sd=sd, c=0.0))
    assert free.average_reward == pytest.approx(sd * math.sqrt(2 / math.pi), rel=1e-5)
    assert free.lesser == pytest.approx(dict.fromkeys(("position_blind", "myopic"), free.average_reward))
    assert free.rule.width == 0


def test_prop_sign_policy_is_the_best_blind_one_of_the_table():
    sign = 0.2 * math.sqrt(2 / math.pi) - math.acos(0.95) / math.pi
    best = optimum(PropWorld())
    assert best.lesser["position_blind"] == pytest.approx(sign, abs=1e-5)
    assert best.lesser["position_blind"] / best.average_reward == pytest.approx(0.48, abs=0.005)


@pytest.mark.parametrize("world", [PropWorld(c=25.0), HmmWorld(c=7.3), HmmWorld(h=0.5), NoiseWorld(c=0.1)])
def test_world_in_which_no_move_pays_is_best_left_alone(world):
    """Even for ever, a unit of position is worth at most 6 · 0.2 / (1 - q) = 24 and 0.288 / (2 h) = 7.2."""
    best = optimum(world)
    assert best.average_reward == 0
    assert all(score == 0 for score in best.lesser.values())
    assert best.rule.decide(np.array([9.0, -9.0]), np.zeros(2), np.zeros((2, best.rule.memory)))[0].tolist() == [0, 0]


def test_gp_without_charge_is_markowitz():
    best = optimum(GpWorld(lam=0.0, sd_f=0.2))
    assert best.average_reward == pytest.approx(0.02)
    assert (best.rule.rate, best.rule.aim) == (1.0, 1.0)
    assert best.lesser == pytest.approx({"myopic": 0.02, "position_blind": 0.02})


@pytest.mark.parametrize("draw", range(3))
def test_prop_optimum_is_the_oracles(oracle, draw):
    rng = np.random.default_rng(draw)
    q, sd, c = rng.uniform(0.6, 0.93), rng.uniform(0.05, 0.2), rng.uniform(0.05, 0.5)
    signal, chain, _ = oracle.ar1_grid(q, sd, 301)
    reward = signal[:, None, None] * oracle.POS - oracle.cost(c, 301)
    theirs, decided = oracle.rvi(chain, reward)  # oracle.prop would go on to what we do not need
    best = optimum(PropWorld(q=q, sd=sd, c=c))
    assert best.average_reward == pytest.approx(theirs, abs=1e-4)
    step = signal[1] - signal[0]
    assert best.rule.width == pytest.approx(signal[np.argmax(decided[:, 1] == 2)], abs=1.5 * step)  # from cash
    assert best.rule.width == pytest.approx(signal[np.argmax(decided[:, 0] == 2)], abs=1.5 * step)  # from short


@pytest.mark.parametrize("draw", range(3))
def test_hmm_optimum_is_the_oracles(oracle, draw):
    rng = np.random.default_rng(draw)
    m, h, c = rng.uniform(0.15, 0.5), rng.uniform(0.005, 0.05), rng.uniform(0.0, 0.5)
    best, theirs = optimum(HmmWorld(m=m, h=h, c=c)), oracle.hmm(m=m, h=h, c=c, sims=6000, windows=())
    assert best.average_reward == pytest.approx(theirs["optimal"], abs=1e-4)
    assert best.lesser["position_blind"] >= theirs["filter_position_blind"] - 1e-4
    assert best.lesser["memoryless"] == pytest.approx(theirs["memoryless_no_position"], abs=1e-3)
    belief = (1 + best.rule.width / (m * (1 - 2 * h))) / 2
    assert belief == pytest.approx(theirs["enter_long_belief"], abs=0.02)


@pytest.mark.parametrize("draw", range(5))
def test_gp_optimum_is_the_oracles(oracle, draw):
    rng = np.random.default_rng(draw)
    phi, lam, sd_f = rng.uniform(0.01, 0.9), rng.uniform(0.1, 100), rng.uniform(0.05, 0.5)
    best, theirs = optimum(GpWorld(phi=phi, lam=lam, sd_f=sd_f)), oracle.gp(phi=phi, lam=lam, sig_f=sd_f)
    assert best.average_reward == pytest.approx(theirs["optimal"], abs=1e-10)
    assert best.lesser["myopic"] == pytest.approx(theirs["myopic"], abs=1e-10)
    assert best.lesser["position_blind"] == pytest.approx(theirs["position_blind"], abs=1e-6)
    assert (best.rule.rate, best.rule.aim) == pytest.approx((theirs["rate"], theirs["aim_coef"]))


def _delay_by_value_iteration(lag: int, b: float, c: float) -> float:
    """The obvious loop: relative values of (window of coins, position), positions -1, 0 and 1."""
    windows, value = 2 ** (lag + 1), np.zeros((2 ** (lag + 1), 3))
    for _ in range(2000):
        new = np.empty_like(value)
        for window in range(windows):
            driven = b if window >= windows // 2 else -b
            following = [(2 * window + coin) % windows for coin in (0, 1)]
            for held in (-1, 0, 1):
                new[window, held + 1] = max(
                    p * driven - c * abs(p - held) + sum(value[then, p + 1] for then in following) / 2
                    for p in (-1, 0, 1)
                )
        gain, span = (new - value).mean(), np.ptp(new - value)
        value = new - new[0, 0]
        if span < 1e-9:
            return float(gain)
    raise AssertionError(span)


@pytest.mark.parametrize(
    ("lag", "c"), [(0, 0.2), (0, 0.4), (0, 0.6), (1, 0.2), (1, 0.4), (2, 0.6), (3, 0.26), (3, 0.9)]
)
def test_delay_optimum_with_a_charge_is_that_of_the_obvious_loop(lag, c):
    best = optimum(DelayWorld(lag=lag, b=0.5, c=c))
    assert best.average_reward == pytest.approx(_delay_by_value_iteration(lag, 0.5, c), abs=1e-8)


def test_delay_too_long_to_tabulate_is_refused_only_where_moves_are_skipped():
    assert optimum(DelayWorld(lag=40, c=0.25)).average_reward == 0.25
    with pytest.raises(ConfigError, match=r"lag of at most 16"):
        optimum(DelayWorld(lag=17, c=0.3))


def test_signal_too_slow_for_the_grid_is_refused():
    with pytest.raises(ConfigError, match="faster"):
        optimum(PropWorld(q=0.999999))


def _scores(settings: dict[str, Any], act: Callable[[np.ndarray], np.ndarray], slots: int, steps: int) -> np.ndarray:
    """Average expected reward of each slot after the burn-in, `[B]`."""
    env = WorldVectorEnv(slots, {**settings, "episode_steps": BURN_IN + steps})
    total, (observed, _) = np.zeros(slots), env.reset(seed=0)
    for step in range(BURN_IN + steps):
        observed, *_, infos = env.step(act(observed))
        if step >= BURN_IN:
            total += infos["expected_reward"]
    return total / steps


def _settings(world: World, **others: object) -> dict[str, Any]:
    action = "continuous" if world.name == "gp" else "discrete"
    return {"world": world.tree(), "action": action, **others}


def _near(scores: np.ndarray, theory: float, best: float) -> bool:
    """Whether the mean of independent slots is within two standard errors of theory, these below 0.5 % of the best."""
    error = scores.std(ddof=1) / math.sqrt(len(scores))
    assert error < 0.005 * best, error / best
    return abs(scores.mean() - theory) <= 2 * error + 1e-9


@pytest.mark.parametrize(
    ("world", "others", "slots", "steps"),
    [
        (PropWorld(), {}, 512, 3000),
        (PropWorld(), {"action": "continuous", "show_position": False}, 512, 3000),
        (PropWorld(q=0.8, sd=0.3), {}, 512, 1500),
        (HmmWorld(), {"show_position": False}, 512, 3000),
        (HmmWorld(m=0.2, h=0.01), {}, 512, 6000),
        (HmmWorld(m=0.5, h=0.9, c=0.05), {}, 512, 1000),
        (GpWorld(), {}, 1024, 4500),
        (DelayWorld(), {"show_position": False}, 16, 300),
        (DelayWorld(lag=20, c=0.1), {}, 512, 300),
        (DelayWorld(lag=8, c=1.0), {}, 512, 3000),
        (NoiseWorld(c=0.1), {}, 16, 300),
    ],
)
def test_optimal_policy_earns_the_optimum_in_the_environment(world, others, slots, steps):
    settings = _settings(world, **others)
    best = optimum(world).average_reward
    policy = OptimalPolicy(WorldEnvConfig.of(settings), slots)
    scores = _scores(settings, policy.act, slots, steps)
    if world.name == "noise":
        assert not scores.any()
    else:
        assert _near(scores, best, best)


def test_policies_that_lack_something_earn_in_prop_what_theory_says():
    world = PropWorld()
    best, settings = optimum(world), _settings(world)
    blind = _scores(settings, lambda observed: np.sign(observed[:, 0]).astype(int) + 1, 512, 6000)
    assert _near(blind, best.lesser["position_blind"], best.average_reward)

    def myopic(observed: np.ndarray) -> np.ndarray:
        cue, held = observed.T
        return np.where(np.abs(cue) > world.c / world.sd, np.sign(cue), held).astype(int) + 1

    assert _near(_scores(settings, myopic, 512, 7000), best.lesser["myopic"], best.average_reward)


@pytest.mark.parametrize("world", [HmmWorld(), HmmWorld(c=0.01), HmmWorld(h=0.9, c=0.01)])
def test_memoryless_policies_earn_in_hmm_at_most_what_theory_says(world):
    """Slots differ in their threshold; the last never trades."""
    thresholds, side = np.repeat([0.0, 0.5, 1.0, 99.0], 300), 1 if world.h < 0.5 else -1
    best = optimum(world)
    scores = _scores(
        _settings(world, show_position=False),
        lambda seen: side * np.where(np.abs(seen[:, 0]) > thresholds, np.sign(seen[:, 0]), 0).astype(int) + 1,
        len(thresholds),
        3000,
    ).reshape(4, 300)
    assert not scores[-1].any()
    assert _near(scores[scores.mean(axis=1).argmax()], best.lesser["memoryless"], best.average_reward)


def test_policies_that_lack_something_earn_in_gp_what_theory_says():
    world = GpWorld()
    best, settings = optimum(world), _settings(world)
    unit = WorldEnvConfig.of(settings).position_unit

    def toward(rate: float, aim: float) -> Callable[[np.ndarray], np.ndarray]:
        def act(observed: np.ndarray) -> np.ndarray:
            signal, held = (observed * [world.sd_f, unit]).T
            return ((held + rate * (aim * signal - held)) / unit)[:, None]

        return act

    for lacking, act in (
        ("myopic", toward(1 / (1 + world.lam), 1.0)),
        ("position_blind", toward(1.0, 1 / (1 + 2 * world.lam * world.phi))),
    ):
        assert _near(_scores(settings, act, 512, 4000), best.lesser[lacking], best.average_reward), lacking


def test_memoryless_policy_earns_nothing_in_delay():
    scores = _scores(_settings(DelayWorld()), lambda observed: observed[:, 0].astype(int) + 1, 512, 2000)
    assert _near(scores, 0.0, 0.5)


def test_policy_that_is_reset_plays_a_slot_as_if_new():
    config = WorldEnvConfig(world=HmmWorld(), episode_steps=30, show_position=False)
    env, policy, fresh = WorldVectorEnv(4, config), OptimalPolicy(config, 4), OptimalPolicy(config, 4)
    observed, _ = env.reset(seed=0)
    for _ in range(20):
        observed = env.step(policy.act(3 * observed))[0]
    policy.reset(np.array([True, False, True, False]))
    for _ in range(10):
        assert policy.act(3 * observed)[[0, 2]].tolist() == fresh.act(3 * observed)[[0, 2]].tolist()
        observed = env.step(np.ones(4))[0]
    policy.reset()
    assert policy.act(0 * observed).tolist() == [1] * 4
