"""Features of 5-minute and hourly bars at the sessions of a year with half days and both clock changes."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from data_pipeline.assemble import build_panel
from data_pipeline.errors import BarsError
from data_pipeline.features import FeatureSet
from data_pipeline.intraday import to_daily
from data_pipeline.schema import checked
from data_pipeline.sessions import schedule
from ticks import ticks

NAMES = (
    "return_1",
    "week.return_4",
    "hour.return_1",
    "hour.rsi_14",
    "hour.sma_20_distance",
    "5min.session_volatility",
    "5min.session_return",
    "5min.session_vwap_distance",
)
SPLIT = date(2024, 6, 10)


@pytest.fixture(scope="module")
def five():
    """Four symbols; S01 has no bars on one afternoon, S02 splits ten for one."""
    bars = ticks(("S00", "S01", "S02", "S03"))
    afternoon = (pl.col("session") == date(2024, 5, 14)) & (pl.col("end").dt.hour() >= 17)
    bars = bars.filter(~((pl.col("symbol") == "S01") & afternoon))
    shares = pl.when((pl.col("symbol") == "S02") & (pl.col("session") >= SPLIT)).then(10.0).otherwise(1.0)
    prices = (pl.col(name) / shares for name in ("open", "high", "low", "close"))
    return bars.with_columns(*prices, volume=pl.col("volume") * shares)


@pytest.fixture(scope="module")
def daily(five):
    split = pl.when((pl.col("symbol") == "S02") & (pl.col("session") == SPLIT)).then(10.0).otherwise(1.0)
    return checked(to_daily(five).with_columns(split=split), "ticks")


@pytest.fixture(scope="module")
def panel(daily, five):
    return build_panel(daily, FeatureSet.of(NAMES), intraday=five)


def _column(panel, symbol, name):
    return panel.features[:, panel.symbol_index(symbol), panel.feature_names.index(name)]


def _hours(five, symbol):
    """(session, end, close) of hourly bars, by a plain loop over 5-minute bars; S02 in shares before the split."""
    bells = dict(schedule(date(2024, 1, 1), date(2024, 12, 31)).select("session", "open").iter_rows())
    hours = {}
    for session, end, close in five.filter(pl.col("symbol") == symbol).select("session", "end", "close").iter_rows():
        number = -(-(end - bells[session]).total_seconds() // 3600)
        hours[session, number] = close * (10.0 if symbol == "S02" and session >= SPLIT else 1.0)
    return [(session, close) for (session, _), close in hours.items()]


@pytest.mark.parametrize("symbol", ["S00", "S02"])
def test_hourly_features_at_the_close_equal_a_plain_loop(panel, five, symbol):
    hours = _hours(five, symbol)
    closes = np.array([close for _, close in hours])
    last = {session: row for row, (session, _) in enumerate(hours)}
    rows = [last[day] for day in panel.sessions.tolist()]
    one = np.array([np.log(closes[r] / closes[r - 1]) for r in rows])
    np.testing.assert_allclose(_column(panel, symbol, "hour.return_1"), one, rtol=1e-4, atol=1e-7)
    mean = np.array([closes[r] / closes[r - 19 : r + 1].mean() - 1 if r >= 19 else np.nan for r in rows])
    np.testing.assert_allclose(_column(panel, symbol, "hour.sma_20_distance"), mean, rtol=1e-4, atol=1e-7)
    assert np.isfinite(_column(panel, symbol, "hour.rsi_14")[3:]).all()


def test_session_features_at_the_close_equal_a_plain_loop(panel, five):
    for number, day in enumerate(panel.sessions.tolist()):
        rows = five.filter((pl.col("symbol") == "S02") & (pl.col("session") == day))
        close, volume = rows["close"].to_numpy(), rows["volume"].to_numpy()
        typical = (rows["high"].to_numpy() + rows["low"].to_numpy() + close) / 3
        expected = {
            "5min.session_volatility": np.sqrt(np.square(np.diff(np.log(close))).sum()),
            "5min.session_return": np.log(close[-1] / rows["open"][0]),
            "5min.session_vwap_distance": close[-1] / ((typical * volume).sum() / volume.sum()) - 1,
        }
        for name, value in expected.items():
            assert _column(panel, "S02", name)[number] == pytest.approx(value, rel=1e-4, abs=1e-6), (name, day)


def test_session_without_its_last_hours_takes_the_newest_bar_of_that_session(panel, five):
    row = panel.session_index(date(2024, 5, 14))
    rows = five.filter((pl.col("symbol") == "S01") & (pl.col("session") == date(2024, 5, 14)))
    assert rows["end"].max().hour == 16
    expected = np.log(rows["close"][-1] / rows["open"][0])
    assert _column(panel, "S01", "5min.session_return")[row] == pytest.approx(expected, rel=1e-4)


def test_session_without_intraday_bars_has_no_intraday_features(daily, five):
    absent = five.filter(~((pl.col("symbol") == "S03") & (pl.col("session") == date(2024, 8, 6))))
    panel = build_panel(daily, FeatureSet.of(NAMES), intraday=absent)
    row, column = panel.session_index(date(2024, 8, 6)), panel.symbol_index("S03")
    known = np.isfinite(panel.features[row, column])
    assert known.tolist() == [name.split(".")[0] not in ("hour", "5min") for name in NAMES]
    assert np.isfinite(panel.features[row + 1, column]).all()


def test_bars_after_the_closing_bell_of_t_change_nothing_up_to_t(daily, five, panel):
    rng = np.random.default_rng(2)
    for day in (date(2024, 3, 8), date(2024, 7, 3), date(2024, 11, 1), date(2024, 11, 29)):
        t = panel.session_index(day)
        wild = pl.Series(rng.uniform(0.5, 2.0, five.height))
        factor = pl.when(pl.col("session") > day).then(wild).otherwise(1.0)
        poisoned = five.with_columns(pl.col(name) * factor for name in ("open", "high", "low", "close", "volume"))
        other = build_panel(daily, FeatureSet.of(NAMES), intraday=poisoned)
        np.testing.assert_array_equal(other.features[: t + 1], panel.features[: t + 1])
        assert not np.array_equal(other.features[t + 1 :, :, 2:], panel.features[t + 1 :, :, 2:], equal_nan=True)


def test_intraday_features_without_intraday_bars_are_refused(daily, five):
    with pytest.raises(BarsError, match="give 5-minute bars"):
        build_panel(daily, FeatureSet.of(NAMES))
    late = daily.filter(pl.col("session") > date(2024, 1, 2))
    with pytest.raises(BarsError, match="S00 2024-01-02: 5-minute bars without a daily bar"):
        build_panel(late, FeatureSet.of(NAMES), intraday=five)
