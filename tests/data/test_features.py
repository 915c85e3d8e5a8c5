"""Features against plain NumPy, and against the future."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from data_pipeline.errors import ConfigError
from data_pipeline.features import FEATURES, FeatureSet, adjusted_columns, with_adjusted
from data_pipeline.panel import build_panel


@pytest.fixture(scope="module")
def ibm(bars):
    return adjusted_columns(with_adjusted(bars.filter(pl.col("symbol") == "IBM")))


def _rolling(values, length, reduce):
    result = np.full(len(values), np.nan)
    for t in range(length - 1, len(values)):
        result[t] = reduce(values[t - length + 1 : t + 1])
    return result


def _smoothed(values, first, weight):
    """Exponential smoothing that starts with the mean of the first values, as TA-Lib does."""
    result = np.full(len(values), np.nan)
    start = np.flatnonzero(np.isfinite(values))[0]
    result[start + first - 1] = values[start : start + first].mean()
    for t in range(start + first, len(values)):
        result[t] = result[t - 1] + weight * (values[t] - result[t - 1])
    return result


def _reference(name, bars):
    close = bars.close
    change = np.diff(close, prepend=np.nan)
    if name.startswith("return_"):
        n = int(name.split("_")[1])
        return np.concatenate([np.full(n, np.nan), np.log(close[n:] / close[:-n])])
    if name.startswith("sma_"):
        return close / _rolling(close, int(name.split("_")[1]), np.mean) - 1
    if name == "ema_20_distance":
        return close / _smoothed(close, 20, 2 / 21) - 1
    if name == "rsi_14":
        up, down = (
            _smoothed(np.where(np.isnan(change), np.nan, np.maximum(s * change, 0)), 14, 1 / 14) for s in (1, -1)
        )
        return 2 * up / (up + down) - 1
    if name == "atr_14":
        past = np.concatenate([[np.nan], close[:-1]])
        true_range = np.maximum(bars.high, past) - np.minimum(bars.low, past)
        return _smoothed(true_range, 14, 1 / 14) / close
    if name == "macd_histogram":
        slow = _smoothed(close, 26, 2 / 27)
        fast = _smoothed(np.where(np.arange(len(close)) < 14, np.nan, close), 12, 2 / 13)
        line = fast - slow
        return (line - _smoothed(line, 9, 2 / 10)) / close
    mean, deviation = _rolling(close, 20, np.mean), _rolling(close, 20, np.std)
    volume = _rolling(bars.volume, 20, np.mean)
    sign = np.nan_to_num(np.sign(change))
    return {
        "bollinger_width_20": 4 * deviation / mean,
        "bollinger_position_20": (close - mean + 2 * deviation) / (4 * deviation),
        "realised_volatility_20": _rolling(np.diff(np.log(close), prepend=np.nan), 20, np.std),
        "relative_volume_20": np.log1p(bars.volume / volume),
        "on_balance_slope_20": _rolling(sign * bars.volume, 20, np.sum) / (20 * volume),
        "drawdown_60": close / _rolling(close, 60, np.max) - 1,
        "close_in_range": (close - bars.low) / (bars.high - bars.low),
    }[name]


@pytest.mark.parametrize("name", FEATURES)
def test_feature_on_real_bars_equals_plain_numpy(ibm, name):
    ours, plain = FEATURES[name].compute(ibm), _reference(name, ibm)
    both = np.isfinite(ours) & np.isfinite(plain)
    assert both.sum() > 3000
    np.testing.assert_allclose(ours[both], plain[both], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", FEATURES)
def test_feature_after_its_look_back_does_not_depend_on_older_bars(ibm, name):
    feature = FEATURES[name]
    short = type(ibm)(*(column[-(feature.look_back + 1) :].copy() for column in ibm))
    np.testing.assert_allclose(feature.compute(short)[-1], feature.compute(ibm)[-1], rtol=1e-6, atol=1e-8)


def test_features_do_not_move_when_prices_are_rescaled(ibm):
    scaled = type(ibm)(*(column * 7.0 for column in ibm[:4]), ibm.volume / 7.0)
    np.testing.assert_allclose(FeatureSet.of().compute(scaled), FeatureSet.of().compute(ibm), rtol=1e-4, atol=1e-6)


def test_features_without_volume_stay_finite(ibm):
    silent = ibm._replace(volume=np.zeros_like(ibm.volume))
    assert np.isfinite(FeatureSet.of().compute(silent)[60:]).all()


def test_panel_with_every_later_row_poisoned_keeps_all_earlier_rows(bars, panel):
    rng = np.random.default_rng(1)
    for t in (700, 1600, 2500, 3100):
        day = panel.sessions[t].item()
        wild = rng.uniform(0.2, 5.0, bars.height)
        factor = pl.when(pl.col("session") > day).then(pl.Series(wild)).otherwise(1.0)
        poisoned = bars.with_columns(
            *(pl.col(name) * factor for name in ("open", "high", "low", "close", "volume")),
            split=pl.when((pl.col("session") > day) & (pl.col("session").dt.day() == 15))
            .then(3.0)
            .otherwise(pl.col("split")),
        )
        other = build_panel(poisoned, FeatureSet.of())
        past = slice(None, t + 1)
        np.testing.assert_array_equal(other.features[past], panel.features[past])
        for name, values in panel.fields.items():
            np.testing.assert_array_equal(other.fields[name][past], values[past], err_msg=name)
        assert not np.array_equal(other.features[t + 1 :], panel.features[t + 1 :], equal_nan=True)


def test_feature_set_with_an_unknown_name_lists_the_known():
    with pytest.raises(ConfigError, match=r"rsi_15.*rsi_14"):
        FeatureSet.of(("rsi_15",))


def test_feature_schema_hash_follows_order():
    assert FeatureSet.of(("rsi_14", "atr_14")).schema_hash != FeatureSet.of(("atr_14", "rsi_14")).schema_hash
