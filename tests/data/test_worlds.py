"""Synthetic markets: their moments, their optimum by the oracle's own rules, and the way through bars and back."""

from __future__ import annotations

import importlib.util
import math
from datetime import date, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy.signal import lfilter

from data_pipeline.errors import ConfigError, UnknownSymbolError
from data_pipeline.quality import findings
from data_pipeline.sessions import sessions_between
from data_pipeline.sources.worlds import CUE_BASE_SHARES, Paths, WorldBars, WorldConfig, expected_rewards, paths
from product import ROOT

ORACLE = ROOT.parent / "shared" / "oracle" / "oracle.py"
NAMES = ("prop", "hmm", "gp", "delay", "noise")
BURN_IN = 300


def _config(name: str, symbols: int = 4, sessions: int = 5000, seed: int = 0, **parameters: float) -> WorldConfig:
    tree = {"world": {"name": name, **parameters}, "symbols": symbols, "sessions": sessions, "seed": seed}
    return WorldConfig.of(tree)


def _near(values: np.ndarray, theory: float, errors: float = 4.0) -> bool:
    """Whether the mean over independent symbols, `[N]`, is within so many standard errors of theory."""
    return abs(values.mean() - theory) < errors * values.std(ddof=1) / math.sqrt(len(values))


@pytest.mark.parametrize(
    ("name", "parameters", "coefficient", "deviation", "noise"),
    [
        ("prop", {}, 0.95, 0.2, 0.5),
        ("prop", {"q": 0.8, "sd": 0.3, "noise": 0.1}, 0.8, 0.3, 0.1),
        ("gp", {}, 0.95, 0.3, 1.0),
        ("gp", {"phi": 0.2, "sd_f": 0.1, "noise": 2.0}, 0.8, 0.1, 2.0),
    ],
)
def test_signal_worlds_have_the_moments_of_theory(name, parameters, coefficient, deviation, noise):
    seen = paths(_config(name, 64, **parameters))
    now, then = seen.cue[1:], seen.cue[:-1]
    shocks = (now - coefficient * then) / (deviation * math.sqrt(1 - coefficient**2))
    assert _near(shocks.mean(axis=0), 0.0)
    assert _near((shocks**2).mean(axis=0), 1.0)
    assert _near((shocks * then).mean(axis=0), 0.0)
    assert _near((seen.cue**2).mean(axis=0), deviation**2)
    assert _near(seen.cue[0] ** 2, deviation**2)
    rest = seen.returns[1:] - seen.expected
    assert _near(rest.mean(axis=0), 0.0)
    assert _near((rest**2).mean(axis=0), noise**2)
    assert _near((rest * seen.cue).mean(axis=0), 0.0)
    np.testing.assert_array_equal(seen.expected, seen.cue)


@pytest.mark.parametrize("parameters", [{}, {"m": 0.2, "h": 0.01}, {"m": 0.5, "h": 0.4, "noise": 0.3}])
def test_hidden_regime_has_the_moments_of_theory(parameters):
    config = _config("hmm", 64, **parameters)
    world, seen = config.world, paths(config)
    regime = np.sign(seen.expected)
    np.testing.assert_allclose(np.abs(seen.expected), world.m * (1 - 2 * world.h))
    flips = regime[1:] != regime[:-1]
    assert _near(flips.mean(axis=0), world.h)
    assert _near((flips[1:] & flips[:-1]).mean(axis=0), world.h**2)
    assert _near(regime[0], 0.0)
    np.testing.assert_array_equal(seen.cue, seen.returns[:-1])
    noise = seen.returns[:-1] - world.m * regime  # r_t is made by the regime of t
    assert _near(noise.mean(axis=0), 0.0)
    assert _near((noise**2).mean(axis=0), world.noise**2)
    assert _near((seen.returns[1:] - seen.expected).mean(axis=0), 0.0)


@pytest.mark.parametrize("lag", [0, 1, 5, 20])
def test_delayed_coin_drives_the_return_after_its_lag_and_no_other(lag):
    seen = paths(_config("delay", 64, lag=lag))
    assert set(np.unique(seen.cue)) == {-1.0, 1.0}
    np.testing.assert_array_equal(seen.expected[lag:], 0.5 * seen.cue[: len(seen.cue) - lag])
    assert _near(((seen.returns[1:] - seen.expected) ** 2).mean(axis=0), 0.25)
    for other in {0, 1, 2, 5, 20} - {lag}:
        told = seen.returns[1 + other :] * seen.cue[: len(seen.cue) - other]
        assert _near(told.mean(axis=0), 0.0)


def test_noise_is_told_by_nothing_seen():
    seen = paths(_config("noise", 64))
    assert not seen.expected.any()
    assert _near((seen.returns**2).mean(axis=0), 1.0)
    assert _near((seen.returns[1:] * seen.cue).mean(axis=0), 0.0)
    assert _near((seen.returns[1:] * seen.returns[:-1]).mean(axis=0), 0.0)


@pytest.mark.parametrize("name", NAMES)
def test_symbols_of_a_world_are_independent(name):
    seen = paths(_config(name, 40))
    moves = seen.returns / seen.returns.std(axis=0)
    together = (moves[:, ::2] * moves[:, 1::2]).mean(axis=0)
    assert _near(together, 0.0)
    assert np.abs(together).max() < 0.2


@pytest.mark.parametrize("name", NAMES)
def test_path_of_a_symbol_follows_its_seed_and_number_alone(name):
    many, few = paths(_config(name, 5, 700)), paths(_config(name, 2, 700))
    short, other = paths(_config(name, 2, 400)), paths(_config(name, 2, 700, seed=1))
    for columns in zip(many, few, short, other, strict=True):
        wide, narrow, brief, strange = columns
        assert wide[:, :2].tobytes() == narrow.tobytes()
        assert narrow[: len(brief)].tobytes() == brief.tobytes()
        assert not np.array_equal(narrow, strange) or name == "noise"
    assert WorldBars(_config(name, 2, 700)).fetch().equals(WorldBars(_config(name, 2, 700)).fetch())


def test_noise_with_another_seed_is_another():
    one, two = paths(_config("noise")), paths(_config("noise", seed=1))
    assert not np.array_equal(one.returns, two.returns)
    assert not np.array_equal(one.cue, two.cue)


def test_charges_by_pencil_begin_from_no_position():
    positions = np.array([[1.0, 0.0], [1.0, -0.5], [-1.0, 0.5]])
    prop, gp = _config("prop", c=0.5).world, _config("gp", lam=2.0).world
    np.testing.assert_array_equal(prop.charge(positions), [[0.5, 0.0], [0.0, 0.25], [1.0, 0.5]])
    np.testing.assert_array_equal(gp.charge(positions), [[1.5, 0.0], [0.5, 0.375], [4.5, 1.125]])


@pytest.fixture(scope="module")
def oracle() -> Any:
    if not ORACLE.is_file():
        pytest.skip(f"{ORACLE.name} is not beside the repository: the worlds' optimum is NOT checked against it")
    spec = importlib.util.spec_from_file_location("oracle", ORACLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _held(signal: np.ndarray, enter: float, keep: float) -> np.ndarray:
    """Positions of the rule with a band, step by step: go long above `enter`, stay long above `keep`; mirrored."""
    position, result = np.zeros(signal.shape[1]), np.empty_like(signal)
    for t, x in enumerate(signal):
        long = x > np.where(position == 1, keep, enter)
        short = -x > np.where(position == -1, keep, enter)
        position = np.where(long, 1.0, np.where(short, -1.0, 0.0))
        result[t] = position
    return result


def _log_odds(seen: Paths, world: Any) -> np.ndarray:
    """The Bayes filter of the regime: log odds that it is good, given the returns up to t, `[T, N]`."""
    odds, result = np.zeros(seen.cue.shape[1]), np.empty_like(seen.cue)
    for t, cue in enumerate(seen.cue):
        good = 1 / (1 + np.exp(-odds))
        good = good * (1 - world.h) + (1 - good) * world.h
        odds = np.log(good / (1 - good)) + 2 * world.m * cue / world.noise**2
        result[t] = odds
    return result


def _score(config: WorldConfig, positions: np.ndarray, seen: Paths) -> np.ndarray:
    """Average expected reward of each symbol after the burn-in, `[N]`."""
    return expected_rewards(config.world, positions, seen)[BURN_IN:].mean(axis=0)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


@pytest.mark.parametrize(("parameters", "published"), [({}, 0.121814), ({"q": 0.8, "sd": 0.3}, 0.137602)])
def test_prop_world_by_the_oracles_rule_earns_its_optimum_and_by_sign_what_it_says(oracle, parameters, published):
    config = _config("prop", 60, **parameters)
    best = oracle.prop(q=config.world.q, sd=config.world.sd, c=config.world.c, sims=6000)
    assert best["optimal"] == pytest.approx(published, abs=1e-6)
    seen = paths(config)
    rule = _held(seen.cue, best["enter_long_above"], best["keep_long_above"])
    assert _near(_score(config, rule, seen), published, 3)
    assert _near(_score(config, np.sign(seen.cue), seen), best["sign"], 3)
    realised = (rule * seen.returns[1:] - config.world.charge(rule))[BURN_IN:].mean(axis=0)
    assert _near(realised, published, 3)


@pytest.mark.parametrize(("parameters", "published"), [({}, 0.16281), ({"m": 0.2, "h": 0.01}, 0.10762)])
def test_hmm_world_by_the_oracles_filter_earns_its_optimum_and_blindly_nothing(oracle, parameters, published):
    config = _config("hmm", 60, **parameters)
    world = config.world
    best = oracle.hmm(m=world.m, h=world.h, c=world.c, sigma=world.noise, sims=6000, windows=())
    assert best["optimal"] == pytest.approx(published, abs=1e-5)
    seen = paths(config)
    odds = _log_odds(seen, world)
    rule = _held(odds, _logit(best["enter_long_belief"]), _logit(best["keep_long_belief"]))
    assert _near(_score(config, rule, seen), published, 3)
    assert _score(config, np.sign(seen.cue), seen).mean() < 0


def test_gp_world_by_the_oracles_rule_earns_its_optimum(oracle):
    config = _config("gp", 120)
    best = oracle.gp(phi=config.world.phi, lam=config.world.lam, sig_f=config.world.sd_f)
    assert best["optimal"] == pytest.approx(0.0255, abs=5e-5)
    seen = paths(config)
    toward = lfilter([best["rate"] * best["aim_coef"]], [1, best["rate"] - 1], seen.cue, axis=0)
    assert _near(_score(config, toward, seen), best["optimal"], 3)
    assert _near(_score(config, best["markowitz_coef"] * seen.cue, seen), best["markowitz"], 3)


@pytest.mark.parametrize("lag", [5, 20])
def test_delay_world_with_memory_earns_its_optimum_and_without_nothing(oracle, lag):
    config = _config("delay", 60, lag=lag)
    seen = paths(config)
    remembered = np.vstack([np.zeros((lag, 60)), seen.cue[:-lag]])
    np.testing.assert_allclose(_score(config, remembered, seen), oracle.delay(L=lag)["optimal"])
    assert _near(_score(config, seen.cue, seen), 0.0, 3)


def test_noise_world_pays_no_policy():
    config = _config("noise", 60)
    seen = paths(config)
    assert not expected_rewards(config.world, np.sign(seen.cue), seen).any()
    charged = _config("noise", 60, c=0.1)
    assert (_score(charged, np.sign(seen.cue), seen) < -0.05).all()


@pytest.mark.parametrize("name", NAMES)
def test_bars_of_a_world_give_back_returns_and_cues(name):
    config = _config(name, 3, 3000)
    seen, bars = paths(config), WorldBars(config).fetch()
    for number, (symbol, rows) in enumerate(bars.group_by("symbol", maintain_order=True)):
        assert symbol[0] == f"{name.upper()}{number:04d}"
        opened, close, volume = (rows[column].to_numpy() for column in ("open", "close", "volume"))
        unit = config.return_scale
        np.testing.assert_allclose((close / opened - 1) / unit, seen.returns[:-1, number], atol=1e-9)
        np.testing.assert_allclose(np.diff(close) / close[:-1] / unit, seen.returns[1:-1, number], atol=1e-9)
        np.testing.assert_allclose(np.log(volume / CUE_BASE_SHARES), seen.cue[:, number], atol=1e-9)
        np.testing.assert_array_equal(opened[1:], close[:-1])


@pytest.mark.parametrize("name", NAMES)
def test_bars_of_a_world_stand_on_sessions_and_have_no_errors(name):
    bars = WorldBars(_config(name, 6, 6500)).fetch()
    days = sessions_between(date(2000, 1, 3), bars["session"].max())
    assert len(days) == 6500
    assert bars["session"].to_list() == days.tolist() * 6
    assert findings(bars).is_empty()
    assert bars["close"].min() > 0.01
    assert (bars["split"] == 1).all()
    assert (bars["dividend"] == 0).all()


def test_bars_of_a_world_from_a_holiday_begin_on_the_next_session():
    config = WorldConfig(first_session=date(2000, 1, 1), sessions=5)
    bars = WorldBars(config).fetch(["PROP0001"], start=date(2000, 1, 4))
    assert bars["session"].to_list() == [date(2000, 1, 4) + timedelta(days) for days in range(4)]
    with pytest.raises(UnknownSymbolError, match="PROP0004"):
        WorldBars(config).fetch(["PROP0004"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"return_scale": 0.9}, "return_scale 0.9: prices of world prop"),
        ({"sessions": 9000}, "9000 sessions from 2000-01-03: .* fewer sessions"),
    ],
)
def test_bars_that_a_world_cannot_give_are_refused(settings, words):
    with pytest.raises(ConfigError, match=words):
        WorldBars(WorldConfig.of(settings)).fetch()


def test_bars_of_a_world_are_daily_only():
    with pytest.raises(ConfigError, match="daily bars only"):
        WorldBars().fetch(timeframe="5Min")


@pytest.mark.parametrize("tree", [{"name": "prop", "h": 0.1}, {"name": "waves"}, {"q": 0.5}, {"name": "hmm", "h": 1.0}])
def test_world_settings_that_do_not_fit_are_refused(tree):
    with pytest.raises(ConfigError, match="world"):
        WorldConfig.of({"world": tree})


def test_provenance_of_a_world_is_enough_to_draw_it_again():
    config = _config("hmm", 2, 300, seed=7, m=0.4)
    told = WorldBars(config).provenance()
    again = WorldConfig.model_validate_json(told["settings"])
    assert again == config
    assert WorldBars(again).fetch().equals(WorldBars(config).fetch())
    assert isinstance(WorldBars(config).fetch(), pl.DataFrame)
