"""Features against plain NumPy, against their declared memory, and against the future."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import polars as pl
import pytest

from data_pipeline.adjusted import adjusted_bars, adjustment_factor
from data_pipeline.assemble import build_panel, market_of
from data_pipeline.compute import blocks
from data_pipeline.errors import BarsError, ConfigError, StoreError
from data_pipeline.features import BLOCK_SESSIONS, DAILY_MEMORY_SESSIONS, FeatureSet, feature
from data_pipeline.panel import RAW, STORED
from data_pipeline.schema import checked
from data_pipeline.sessions import ordinals, week_closes

DAILY = tuple(name for name in FeatureSet.of().names if "." not in name)
MORE = ("rsi_9", "sma_200_distance", "range_position_20", "world_cue")


@pytest.fixture(scope="module")
def ibm(bars, panel):
    """Daily bars of IBM with what the market did between them."""
    rows = bars.filter(pl.col("symbol") == "IBM")
    market, breadth = market_of(panel.fields["adjusted_close"])
    assert rows.height == len(panel.sessions)
    market[0] = np.nan
    return replace(adjusted_bars(rows, adjustment_factor(rows)), market=market, breadth=breadth)


def _rolling(values, length, reduce):
    result = np.full(len(values), np.nan)
    for t in range(length - 1, len(values)):
        result[t] = reduce(values[t - length + 1 : t + 1])
    return result


def _smoothed(values, first, weight):
    """Exponential smoothing that starts with the mean of the first values, as Wilder and TA-Lib do."""
    result = np.full(len(values), np.nan)
    start = np.flatnonzero(np.isfinite(values))[0]
    result[start + first - 1] = values[start : start + first].mean()
    for t in range(start + first, len(values)):
        result[t] = result[t - 1] + weight * (values[t] - result[t - 1])
    return result


def _lag(values, n=1):
    return np.concatenate([np.full(n, np.nan), values[:-n]])


def _sum(values, n):
    return _rolling(values, n, np.sum)


def _std(values, n):
    return _rolling(values, n, np.std)


def _macd(bars):
    slow = _smoothed(bars.close, 26, 2 / 27)
    fast = _smoothed(np.where(np.arange(len(bars)) < 14, np.nan, bars.close), 12, 2 / 13)
    line = fast - slow
    return line / bars.close, (line - _smoothed(line, 9, 2 / 10)) / bars.close


def _rsi(bars, n):
    change = bars.close - _lag(bars.close)
    up, down = (_smoothed(np.where(np.isnan(change), np.nan, np.maximum(s * change, 0)), n, 1 / n) for s in (1, -1))
    return 2 * up / (up + down) - 1


def _true_range(bars):
    past = _lag(bars.close)
    return np.maximum(bars.high, past) - np.minimum(bars.low, past)


def _adx(bars, n):
    """Wilder's index; moves are rounded so that those that tie in cents tie in floats."""
    up, down = (np.round(move / bars.close, 11) for move in (bars.high - _lag(bars.high), _lag(bars.low) - bars.low))
    moves = [np.where((a > b) & (a > 0), a * bars.close, 0.0) for a, b in ((up, down), (down, up))]
    plus, minus = (_smoothed(move, 2 * n - 1, 1 / n) for move in moves)
    return _smoothed(100 * np.abs(plus - minus) / (plus + minus), 2 * n - 1, 1 / n)


def _ad(bars):
    return np.cumsum(((bars.close - bars.low) - (bars.high - bars.close)) / (bars.high - bars.low) * bars.volume)


def _tercile(bars):
    volatility = _std(_log_return(bars), 20)
    result = np.full(len(bars), np.nan)
    for t in range(145, len(bars)):
        share = np.mean([volatility[t] > volatility[t - ago] for ago in range(5, 126, 5)])
        result[t] = -1 if share < 1 / 3 else 1 if share > 2 / 3 else 0
    return result


def _log_return(bars, n=1):
    return np.log(bars.close) - _lag(np.log(bars.close), n)


def _beta(bars, n):
    own, market = _log_return(bars), bars.market
    result = np.full(len(bars), np.nan)
    for t in range(n, len(bars)):
        window = np.cov(own[t - n + 1 : t + 1], market[t - n + 1 : t + 1], ddof=0)
        result[t] = window[0, 1] / window[1, 1]
    return result


def _correlation(bars, n):
    own, market = _log_return(bars), bars.market
    result = np.full(len(bars), np.nan)
    for t in range(n, len(bars)):
        result[t] = np.corrcoef(own[t - n + 1 : t + 1], market[t - n + 1 : t + 1])[0, 1]
    return result


def _year(bars, function):
    days = bars.session.astype("datetime64[D]").astype(int)
    return function(2 * np.pi * days / 365.2425)


def _range_position(bars, n):
    low, high = _rolling(bars.low, n, np.min), _rolling(bars.high, n, np.max)
    return (bars.close - low) / (high - low)


REFERENCES = {
    "macd_line": lambda b: _macd(b)[0],
    "macd_histogram": lambda b: _macd(b)[1],
    "roc_10": lambda b: b.close / _lag(b.close, 10) - 1,
    "overnight_return": lambda b: np.log(b.open / _lag(b.close)),
    "close_in_range": lambda b: (b.close - b.low) / (b.high - b.low),
    "atr_14": lambda b: _smoothed(_true_range(b), 14, 1 / 14) / b.close,
    "bollinger_width_20": lambda b: 4 * _std(b.close, 20) / _rolling(b.close, 20, np.mean),
    "bollinger_position_20": lambda b: 0.5 + (b.close - _rolling(b.close, 20, np.mean)) / (4 * _std(b.close, 20)),
    "realised_volatility_20": lambda b: _std(_log_return(b), 20),
    "volatility_ratio_60": lambda b: np.log(_std(_log_return(b), 10) / _std(_log_return(b), 60)),
    "relative_volume_20": lambda b: np.log1p(b.volume / _rolling(b.volume, 20, np.mean)),
    "on_balance_slope_20": lambda b: (
        _sum(np.sign(np.diff(b.close, prepend=b.close[0])) * b.volume, 20) / _sum(b.volume, 20)
    ),
    "accumulation_slope_20": lambda b: (_ad(b) - _lag(_ad(b), 20)) / _sum(b.volume, 20),
    "illiquidity_60": lambda b: np.log(
        (_sum(np.abs(_log_return(b)), 5) / _sum(b.close * b.volume, 5))
        / (_sum(np.abs(_log_return(b)), 60) / _sum(b.close * b.volume, 60))
    ),
    "volatility_tercile_20": _tercile,
    "adx_14": lambda b: _adx(b, 14) / 50 - 1,
    "trend_regime_14": lambda b: np.select(
        [np.isnan(_adx(b, 14)), _adx(b, 14) > 25, _adx(b, 14) < 20], [np.nan, 1, -1], 0
    ),
    "market_return_20": lambda b: _sum(b.market, 20),
    "market_volatility_20": lambda b: _std(b.market, 20),
    "breadth_50": lambda b: 2 * b.breadth - 1,
    "beta_60": lambda b: _beta(b, 60),
    "correlation_60": lambda b: _correlation(b, 60),
    "weekday": lambda b: np.array([(day.weekday() - 2) / 2 for day in b.session.tolist()]),
    "year_sine": lambda b: _year(b, np.sin),
    "year_cosine": lambda b: _year(b, np.cos),
    "drawdown_60": lambda b: b.close / _rolling(b.close, 60, np.max) - 1,
    "downside_deviation_20": lambda b: np.sqrt(_rolling(np.minimum(_log_return(b), 0) ** 2, 20, np.mean)),
    "range_position_20": lambda b: _range_position(b, 20),
    "world_cue": lambda b: np.log(b.volume / 1e8),
    **{f"sma_{n}_distance": lambda b, n=n: b.close / _rolling(b.close, n, np.mean) - 1 for n in (10, 20, 50, 200)},
    **{f"ema_{n}_distance": lambda b, n=n: b.close / _smoothed(b.close, n, 2 / (n + 1)) - 1 for n in (10, 20, 50)},
    **{f"return_{n}": lambda b, n=n: _log_return(b, n) for n in (1, 5, 20)},
    **{f"rsi_{n}": lambda b, n=n: _rsi(b, n) for n in (9, 14, 21)},
    **{f"relative_strength_{n}": lambda b, n=n: _log_return(b, n) - _sum(b.market, n) for n in (20, 60)},
}


@pytest.mark.parametrize("name", [*DAILY, *MORE])
def test_feature_on_real_bars_equals_plain_numpy(ibm, name):
    ours, plain = feature(name).compute(ibm), REFERENCES[name](ibm)
    finite = np.isfinite(ours)
    assert finite.sum() > 3000
    assert finite[feature(name).warm_up :].all()
    np.testing.assert_allclose(ours[finite], plain[finite], rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", [*DAILY, *MORE])
def test_feature_after_its_look_back_does_not_depend_on_older_bars(ibm, name):
    wanted = feature(name)
    whole = wanted.compute(ibm)
    for stop in (len(ibm), len(ibm) - 700):
        short = wanted.compute(ibm[stop - wanted.look_back - 1 : stop])
        np.testing.assert_allclose(short[-1], whole[stop - 1], rtol=1e-6, atol=1e-8)


def test_weekly_feature_is_that_of_the_last_week_closed_by_the_calendar(bars, panel):
    """Plain dictionaries of weeks, on the symbol with the shortest history and on a halted Friday."""
    column, name = panel.symbol_index("AAPL"), "week.return_4"
    rows = bars.filter((pl.col("symbol") == "AAPL") & (pl.col("session") != pl.date(2004, 5, 14)))
    halted = build_panel(
        pl.concat([rows, bars.filter(pl.col("symbol") != "AAPL")]).sort("symbol", "session"), FeatureSet.of()
    )
    for tested in (panel, halted):
        values = tested.features[:, column, tested.feature_names.index(name)]
        close = tested.fields["adjusted_close"][:, column]
        weeks = tested.sessions.astype("datetime64[D]").astype(int) + 3
        weeks //= 7
        ends = np.flatnonzero(week_closes(tested.sessions))
        for t in range(200, len(tested.sessions), 37):
            if np.isnan(close[t]):
                continue
            closed = ends[ends <= t][-5:]
            last = [
                close[low + 1 : high + 1][np.isfinite(close[low + 1 : high + 1])][-1]
                for low, high in pairwise([closed[0] - 4, *closed])
            ]
            expected = np.log(last[-1] / last[0])
            assert values[t] == pytest.approx(expected, rel=1e-5, abs=1e-7), tested.sessions[t]


def test_market_is_the_mean_of_those_who_traded(panel):
    close = panel.fields["adjusted_close"]
    market, breadth = market_of(close)
    for t in (1, 60, 1130, 1131, 3000, len(close) - 1):
        both = np.isfinite(close[t]) & np.isfinite(close[t - 1])
        assert market[t] == pytest.approx(np.log(close[t, both] / close[t - 1, both]).mean(), abs=1e-15)
        if t >= 50:
            both = np.isfinite(close[t]) & np.isfinite(close[t - 50])
            assert breadth[t] == (close[t, both] > close[t - 50, both]).mean()
    assert np.isnan(breadth[:50]).all()


def test_features_do_not_move_when_prices_are_rescaled(bars, panel):
    scaled = bars.with_columns(
        *(pl.col(name) * 7.0 for name in ("open", "high", "low", "close", "dividend")), volume=pl.col("volume") / 7.0
    )
    other = build_panel(scaled, FeatureSet.of()).features
    np.testing.assert_allclose(other, panel.features, rtol=1e-4, atol=1e-5)


def test_features_without_volume_stay_finite(bars):
    silent = bars.with_columns(volume=pl.lit(0.0))
    panel = build_panel(silent, FeatureSet.of())
    assert np.isfinite(panel.features[200:, panel.symbol_index("IBM")]).all()
    assert not panel.tradable.any()


def test_features_of_a_price_that_stands_still_stay_finite(bars):
    still = bars.filter(pl.col("symbol") == "IBM").with_columns(
        *(pl.lit(50.0).alias(name) for name in ("open", "high", "low", "close")), split=1.0, dividend=0.0
    )
    assert np.isfinite(build_panel(still, FeatureSet.of()).features[200:]).all()


def test_panel_of_polars_equals_panel_of_pandas(bars, panel):
    other = build_panel(checked(bars.to_pandas(), "pandas"), FeatureSet.of())
    np.testing.assert_array_equal(other.features, panel.features)


def test_blocks_cover_every_row_once_and_read_no_more_than_the_memory():
    numbers = np.arange(4000, 4000 + 6000)
    for since in (0, 1, 2599, 5999):
        rows = []
        for block in blocks(numbers, since):
            kept, read = block.kept(since), np.arange(block.low, block.stop)[block.tail(since)]
            rows.extend(read)
            assert kept.stop - kept.start == len(read)
            assert block.low == max(0, block.begin - DAILY_MEMORY_SESSIONS)
            assert len({number // BLOCK_SESSIONS for number in numbers[block.begin : block.stop]}) == 1
        assert rows == list(range(since, 6000))


def test_panel_in_blocks_equals_the_whole_history_at_once(panel, ibm):
    """The history crosses a block's edge; what precedes the memory is forgotten."""
    assert len(set(ordinals(panel.sessions) // BLOCK_SESSIONS)) > 1
    for name in DAILY:
        values = panel.features[:, panel.symbol_index("IBM"), panel.feature_names.index(name)]
        np.testing.assert_allclose(values, feature(name).compute(ibm), rtol=1e-6, atol=1e-7, err_msg=name)


@pytest.mark.parametrize("sessions_added", [1, 2, 30, 1200])
def test_panel_continued_equals_the_full_rebuild_bit_for_bit(bars, panel, sessions_added):
    known = panel.sessions[-1 - sessions_added].item()
    before = build_panel(bars.filter(pl.col("session") <= known), FeatureSet.of(), panel.symbols)
    after = build_panel(bars, FeatureSet.of(), before=before)
    for attribute in STORED.values():
        assert getattr(after, attribute).tobytes() == getattr(panel, attribute).tobytes(), attribute


def test_panel_continued_with_revised_history_is_refused(bars, panel):
    known = panel.sessions[-2].item()
    before = build_panel(bars.filter(pl.col("session") <= known), FeatureSet.of(), panel.symbols)
    revised = bars.with_columns(
        volume=pl.when((pl.col("symbol") == "IBM") & (pl.col("session") == pl.date(2005, 3, 1)))
        .then(pl.col("volume") + 1)
        .otherwise(pl.col("volume"))
    )
    with pytest.raises(StoreError, match=r"IBM 2005-03-01: volume was .* history was revised"):
        build_panel(revised, FeatureSet.of(), before=before)
    with pytest.raises(StoreError, match="other features"):
        build_panel(bars, FeatureSet.of(("rsi_14",)), before=before)


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
        np.testing.assert_array_equal(other.ready_run_NT[:, past], panel.ready_run_NT[:, past])
        for name, values in panel.fields.items():
            np.testing.assert_array_equal(other.fields[name][past], values[past], err_msg=name)
        assert not np.array_equal(other.features[t + 1 :], panel.features[t + 1 :], equal_nan=True)


def test_symbol_missing_from_the_market_is_tolerated(bars, panel):
    alone = build_panel(bars.filter(pl.col("symbol") == "IBM"), FeatureSet.of(), ("IBM", "MISSING"))
    assert np.isfinite(alone.features[200:, 0]).all()
    assert np.isnan(alone.features[:, 1]).all()
    assert np.isnan(alone.fields["close"][:, 1]).all()
    correlation = alone.features[200:, 0, alone.feature_names.index("correlation_60")]
    np.testing.assert_allclose(correlation, 1.0, atol=1e-5)


def test_dividend_as_large_as_the_price_is_refused(bars):
    broken = bars.with_columns(
        dividend=pl.when(pl.col("session") == pl.date(2010, 3, 1)).then(1e4).otherwise(pl.col("dividend"))
    )
    with pytest.raises(BarsError, match=r"AAPL 2010-03-01: dividend 10000\.0 is as large"):
        build_panel(broken, FeatureSet.of())


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (("rsi_1x",), r"'rsi_1x' is unknown.*rsi_\{n\}"),
        (("rsi_1",), "window of 1 is too short"),
        (("rsi_900",), "remembers .* sessions, more than 640"),
        (("fortnight.rsi_14",), "unknown timeframe 'fortnight'"),
        (("week.beta_10",), "does not exist on week bars"),
        (("session_return",), "does not exist on day bars"),
        (("rsi_14", "rsi_14"), "rsi_14: name each feature once"),
        ((), "at least one"),
    ],
)
def test_feature_set_that_cannot_be_is_refused_with_what_could(names, said):
    with pytest.raises(ConfigError, match=said):
        FeatureSet.of(names)


def test_feature_set_of_a_yaml_file_keeps_its_order(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("fast: [return_1, rsi_9]\nslow:\n  - week.return_13\n")
    chosen = FeatureSet.of(file)
    assert chosen.names == ("return_1", "rsi_9", "week.return_13")
    assert [f.group for f in chosen.features] == ["momentum", "momentum", "week momentum"]
    file.write_text("fast: rsi_9\n")
    with pytest.raises(ConfigError, match=r"mine.yaml: fast: holds 'rsi_9'; a list"):
        FeatureSet.of(file)


def test_default_set_has_about_forty_features_of_all_families():
    chosen = FeatureSet.of()
    assert 38 <= len(chosen.features) <= 45
    families = {f.group for f in chosen.features}
    assert families == {
        "trend",
        "momentum",
        "volatility",
        "volume",
        "week trend",
        "week momentum",
        "regime",
        "cross-asset",
        "calendar",
        "risk",
    }


def test_feature_schema_hash_follows_order():
    assert FeatureSet.of(("rsi_14", "atr_14")).schema_hash != FeatureSet.of(("atr_14", "rsi_14")).schema_hash


def test_raw_fields_of_the_panel_are_the_bars(bars, panel):
    rows = bars.filter(pl.col("symbol") == "MSFT")
    for name in RAW:
        np.testing.assert_array_equal(panel.fields[name][:, panel.symbol_index("MSFT")], rows[name].to_numpy())
