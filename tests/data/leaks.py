"""Pipelines with one leak each, made as people make them: a real piece replaced by one that reads the future."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import polars as pl

from data_pipeline.adjusted import Bars, Column, adjustment_factor, log_change
from data_pipeline.assemble import build_panel, market_of
from data_pipeline.audit import AT_THE_OPEN, Pipeline, pipeline_of
from data_pipeline.errors import BarsError
from data_pipeline.features import Feature, FeatureSet
from data_pipeline.folds import Span
from data_pipeline.indicators import Indicator, sma_distance
from data_pipeline.panel import Panel, run_lengths
from data_pipeline.scaling import fit_scaler
from data_pipeline.sessions import bells_of

SYMBOLS = ("AAPL", "FB", "GOOG", "IBM", "MSFT")
NAMES = ("return_1", "rsi_14", "breadth_50", "overnight_return")
HONEST = pipeline_of(FeatureSet.of(NAMES), SYMBOLS)


# ---- indicators


def _shifted(values: Column, sessions: int) -> Column:
    """Values of so many sessions ahead."""
    return np.append(values, np.full(sessions, np.nan))[sessions:]


def centred_average(bars: Bars, n: int) -> Column:
    ahead = n // 2
    return bars.close / _shifted(bars.ta(_talib().SMA, "close", timeperiod=n), ahead) - 1.0


def coming_return(bars: Bars, n: int) -> Column:
    return _shifted(log_change(bars.close, n), n)


def coming_range(bars: Bars, n: int) -> Column:
    """Highest close of the next n sessions over the close: every one of them counts."""
    return _shifted(bars.ta(_talib().MAX, "close", timeperiod=n), n) / bars.close - 1.0


def back_filled(bars: Bars, n: int) -> Column:
    return pl.Series(sma_distance(bars, n)).fill_nan(None).fill_null(strategy="backward").to_numpy()


def over_its_mean(bars: Bars, _: int) -> Column:
    return bars.close / bars.close.mean() - 1.0


def coming_session(bars: Bars, _: int) -> Column:
    return _shifted(np.log(bars.close / bars.open), 1)


def by_start_of(period: str) -> Callable[[Bars, int], Column]:
    """Return of the newest calendar period, taken by the date it is labelled with: that of its start."""

    def compute(bars: Bars, _: int) -> Column:
        days = pl.DataFrame({"session": bars.session, "close": bars.close})
        periods = days.group_by_dynamic("session", every=period, label="left").agg(pl.col("close").last())
        periods = periods.with_columns(pl.col("close").log().diff())
        return days.select("session").join_asof(periods, on="session", strategy="backward")["close"].to_numpy()

    return compute


def elapsed(bars: Bars, _: int) -> Column:
    return np.linspace(0.0, 1.0, len(bars))


def jittered(bars: Bars, _: int) -> Column:
    return log_change(bars.close) + np.random.default_rng().normal(scale=1e-3, size=len(bars))


def _talib():
    import talib

    return talib


def _with(name: str, compute: Callable[[Bars, int], Column], n: int = 0, **declared) -> Pipeline:
    """The platform's pipeline with one indicator more."""
    indicator = Indicator(name, "planted", ("close",), compute, lambda _: 0, **declared)
    chosen = FeatureSet.of(NAMES).features
    return pipeline_of(FeatureSet((*chosen[:2], Feature(name, "day", indicator, n), *chosen[2:])), SYMBOLS)


# ---- panels


def _then(change: Callable[[Panel, pl.DataFrame, pl.DataFrame | None], Panel], honest: Pipeline = HONEST) -> Pipeline:
    """A pipeline whose panel is changed once it is built."""
    return honest._replace(build=lambda bars, intraday: change(honest.build(bars, intraday), bars, intraday))


def _replaced(panel: Panel, name: str, values: Column) -> Panel:
    features = panel.features.copy()
    features[..., panel.feature_names.index(name)] = values
    return panel.changed(features=features)


def standardised(panel: Panel, *_) -> Panel:
    values = panel.features[..., panel.feature_names.index("return_1")]
    return _replaced(panel, "return_1", (values - np.nanmean(values)) / np.nanstd(values))


def breadth_of_tomorrow(panel: Panel, *_) -> Panel:
    _, breadth = market_of(panel.fields["adjusted_close"])
    return _replaced(panel, "breadth_50", 2.0 * _shifted(breadth, 1)[:, None] - 1.0)


def adjusted_to_the_last_close(panel: Panel, bars: pl.DataFrame, _) -> Panel:
    """Total-return prices as vendors give them: they end at the traded price, and every event rewrites the past."""
    adjusted = np.full(panel.tradable.shape, np.nan)
    for symbol, rows in bars.partition_by("symbol", as_dict=True).items():
        factor = adjustment_factor(rows)
        at = np.searchsorted(panel.sessions, rows["session"].to_numpy())
        adjusted[at, panel.symbol_index(symbol[0])] = rows["close"].to_numpy() * factor / factor[-1]
    return panel.changed(fields=panel.fields | {"adjusted_close": adjusted})


def ready_if_it_trades_tomorrow(panel: Panel, *_) -> Panel:
    tomorrow = np.append(panel.tradable[1:], panel.tradable[-1:], axis=0)
    return replace(panel, ready_run_NT=run_lengths((panel.ready & tomorrow).T))


def most_liquid(bars: pl.DataFrame, _: pl.DataFrame | None) -> Panel:
    """The three symbols that turned out to trade most."""
    traded = bars.group_by("symbol").agg((pl.col("close") * pl.col("volume")).sum()).sort("close")
    return build_panel(bars, FeatureSet.of(NAMES), tuple(sorted(traded["symbol"][-3:])))


def of_whole_histories(bars: pl.DataFrame, _: pl.DataFrame | None) -> Panel:
    """The symbols that turned out to trade on every session since 2012."""
    bars = bars.filter(pl.col("session") >= pl.date(2012, 1, 1))
    days = bars.group_by("symbol").len().filter(pl.col("len") == bars["session"].n_unique())
    return build_panel(bars, FeatureSet.of(NAMES), tuple(sorted(days["symbol"])))


def with_the_features_that_work(panel: Panel, *_) -> Panel:
    """The two features that turned out to go best with the return of the session after."""
    coming = _shifted(panel.features[..., panel.feature_names.index("return_1")].ravel(), len(panel.symbols))
    scores = []
    for values in panel.features.reshape(-1, len(panel.feature_names)).T:
        known = np.isfinite(values * coming)
        scores.append(abs(np.corrcoef(values[known], coming[known])[0, 1]))
    best = sorted(np.argsort(scores)[-2:])
    names = tuple(panel.feature_names[f] for f in best)
    return panel.changed(features=panel.features[..., best], feature_names=names)


def hours_by_count(label: str, forming: bool) -> Callable[[Panel, pl.DataFrame, pl.DataFrame | None], Panel]:
    """Hours as every 12 bars, over the night too; at the bell the newest one by `label`, start or end, is taken.

    Among them, if asked for, is the one that the last bars of the table belong to, however few they are.
    """

    def change(panel: Panel, _: pl.DataFrame, intraday: pl.DataFrame | None) -> Panel:
        assert intraday is not None
        bells = bells_of(pl.Series(panel.sessions)).select(at="close")
        values = np.full(panel.tradable.shape, np.nan)
        for column, symbol in enumerate(panel.symbols):
            bars = intraday.filter(pl.col("symbol") == symbol)
            hours = bars.group_by(pl.int_range(pl.len()) // 12, maintain_order=True).agg(
                start=pl.col("end").first() - pl.duration(minutes=5),
                end=pl.last("end"),
                close=pl.last("close"),
                n=pl.len(),
            )
            hours = hours.filter(forming | (pl.col("n") == 12)).with_columns(pl.col("close").log().diff())
            values[:, column] = bells.join_asof(hours, left_on="at", right_on=label)["close"].to_numpy()
        return _replaced(panel, "hour.return_1", values)

    return change


def adjusted_backwards(honest: Pipeline) -> Pipeline:
    return _then(adjusted_to_the_last_close, honest)


# ---- scalers


def fitted_to_everything(panel: Panel, _: Span):
    return fit_scaler(panel, Span(0, len(panel.sessions)))


def fitted_one_session_too_long(panel: Panel, span: Span):
    return fit_scaler(panel, Span(span.start, min(span.stop + 1, len(panel.sessions))))


CENTRED = _with("centred_21", centred_average, 21)
FORWARD = _with("highest_5", coming_range, 5)
TOMORROW = _with("tomorrow", coming_return, 1)
FIVE_AHEAD = _with("five_ahead", coming_return, 5)
BACK_FILLED = _with("filled_50", back_filled, 50)
WEEK_BY_START = _with("week_by_start", by_start_of("1w"))
MONTH_BY_START = _with("month_by_start", by_start_of("1mo"))
ELAPSED = _with("elapsed", elapsed)
JITTERED = _with("jittered", jittered)
SAME_DAY_CLOSE = _with("gap", lambda bars, _: log_change(bars.close), known_at="open")
COMING_SESSION = _with("coming", coming_session, known_at="open")
OVER_ITS_MEAN = _with("over_its_mean", over_its_mean)
STANDARDISED = _then(standardised)
BREADTH_OF_TOMORROW = _then(breadth_of_tomorrow)
READY_TOMORROW = _then(ready_if_it_trades_tomorrow)
ADJUSTED_BACKWARDS = adjusted_backwards(HONEST)
MOST_LIQUID = Pipeline(most_liquid)
WHOLE_HISTORIES = Pipeline(of_whole_histories)
FEATURES_THAT_WORK = _then(with_the_features_that_work)._replace(known_at_open=AT_THE_OPEN)
SCALED_ON_ALL = HONEST._replace(fit=fitted_to_everything)
SCALED_ONE_TOO_LONG = HONEST._replace(fit=fitted_one_session_too_long)


def hourly(symbols: tuple[str, ...], label: str | None = None, forming: bool = False) -> Pipeline:
    """Features of intraday bars; with a label, one of them from hours by count."""
    names = ("rsi_14", "hour.return_1", "hour.rsi_14", "hour.sma_20_distance")
    names += ("5min.session_volatility", "5min.session_vwap_distance", "hour.session_return")
    honest = pipeline_of(FeatureSet.of(names), symbols)
    return honest if label is None else _then(hours_by_count(label, forming), honest)


# ---- pipelines that cannot be audited, or by other means


def told_at_the_open(features: FeatureSet) -> Pipeline:
    """A pipeline made of a feature set, whose return is said to be known too early."""
    return pipeline_of(features, SYMBOLS)._replace(known_at_open=frozenset({"return_1"}))


def from_memory(bars: pl.DataFrame) -> Pipeline:
    """A panel that was built long ago."""
    panel = HONEST.build(bars, None)
    return Pipeline(lambda *_: panel)


def into_the_same_arrays(bars: pl.DataFrame) -> Pipeline:
    """Every panel overwrites the one before."""
    panel = HONEST.build(bars, None)

    def build(bars: pl.DataFrame, _: pl.DataFrame | None) -> Panel:
        new = HONEST.build(bars, None)
        if len(new.sessions) != len(panel.sessions):
            return new
        panel.features_NTF[:], panel.bars_NTK[:] = new.features_NTF, new.bars_NTK
        return panel

    return Pipeline(build)


def _calm(bars: pl.DataFrame, intraday: pl.DataFrame | None) -> Panel:
    if bars.select((pl.col("close").log().diff().abs() > 1.0).over("symbol").sum()).item():
        raise BarsError("a price moved too much in a session")
    return HONEST.build(bars, intraday)


def _long(bars: pl.DataFrame, intraday: pl.DataFrame | None) -> Panel:
    if bars["session"].n_unique() < 60:
        raise ValueError("the history is too short")
    return HONEST.build(bars, intraday)


CALM_ONLY = Pipeline(_calm)
LONG_ONLY = Pipeline(_long)
