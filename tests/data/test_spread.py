"""The quoted spread that highs, lows and closes tell (Abdi and Ranaldo 2017)."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from data_pipeline.adjusted import Bars
from data_pipeline.assemble import RISK_WINDOW_SESSIONS, build_panel, quoted_spread
from data_pipeline.features import FeatureSet

FEW = FeatureSet.of(("rsi_14",))


def bars_of(high, low, close) -> Bars:
    """Bars of logs of prices."""
    high, low, close = (np.exp(np.asarray(values, float)) for values in (high, low, close))
    days = np.datetime64("2020-01-01") + np.arange(len(close))
    return Bars(close, high, low, close, np.ones(len(close)), days)


def bounced(spread: float, volatility: float, sessions: int, seed: int = 0) -> Bars:
    """Bars of trades at the bid or the ask, by the toss of a coin, of a middle that walks at random within sessions."""
    rng, trades = np.random.default_rng(seed), 390
    middle = np.cumsum(rng.normal(scale=volatility / np.sqrt(trades), size=sessions * trades))
    paid = (middle + 0.5 * spread * rng.choice([-1.0, 1.0], size=middle.size)).reshape(sessions, trades)
    return bars_of(paid.max(axis=1), paid.min(axis=1), paid[:, -1])


def test_spread_by_pencil():
    """One session closes at a bid 2% below the middle where the others stand: 1 of 20 pairs tells 4%."""
    high, low, close = np.zeros((3, 45))
    high[22], low[22], close[22] = 0.02, -0.02, -0.02
    spread = quoted_spread(bars_of(high, low, close))
    assert np.isnan(spread[:20]).all()
    expected = np.zeros(25)
    expected[3:23] = 0.04 / RISK_WINDOW_SESSIONS  # rows 23 .. 42: the pair (22, 23) is among the last 20
    np.testing.assert_allclose(spread[20:], expected, atol=1e-15)


def test_spread_pair_that_says_less_than_nothing_counts_as_zero():
    """The price goes on rising past a close above its own middle, so the close lies below the next one."""
    rising = 0.01 * np.arange(40)
    spread = quoted_spread(bars_of(rising + 0.02, rising - 0.02, rising + 0.005))
    np.testing.assert_array_equal(spread[20:], np.zeros(20))


def test_spread_of_a_price_that_only_bounces_is_exact():
    """Each session trades at both bid and ask of a middle that stands still."""
    half = np.full(60, 0.0123)
    sides = np.random.default_rng(0).choice([-1.0, 1.0], 60)
    np.testing.assert_allclose(quoted_spread(bars_of(half, -half, sides * half))[20:], 0.0246, rtol=1e-12)


@pytest.mark.parametrize("length", [1, 2, 20])
def test_spread_of_too_few_bars_is_missing(length):
    assert np.isnan(quoted_spread(bars_of(*np.zeros((3, length))))).all()
    assert np.isfinite(quoted_spread(bars_of(*np.zeros((3, 21))))[-1])


@pytest.mark.parametrize("planted", [0.01, 0.02, 0.05])
def test_spread_planted_in_a_random_walk_is_found(planted):
    found = quoted_spread(bounced(planted, 0.01, sessions=1500))
    assert np.nanmean(found) == pytest.approx(planted, rel=0.25)


def test_spread_small_beside_the_range_is_never_found_too_low():
    assert np.nanmean(quoted_spread(bounced(0.0005, 0.02, sessions=1500))) > 0.0005


def test_spread_does_not_depend_on_the_price_level(bars, panel):
    prices = ("open", "high", "low", "close", "dividend")
    scaled = bars.with_columns(*(pl.col(name) * 7.0 for name in prices), volume=pl.col("volume") / 7.0)
    np.testing.assert_allclose(build_panel(scaled, FEW).fields["spread"], panel.fields["spread"], rtol=1e-9)
    assert np.isfinite(panel.fields["spread"][-1]).all()
