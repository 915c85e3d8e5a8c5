"""Indicators: causal functions of one symbol's adjusted bars, none of which depends on the price level.

Each takes `Bars` and a window of n bars and returns one column `[T]` whose value at t uses bars up to and
including t. A quotient without a denominator (no volume, no range, no variance) is NaN here; the feature
that declares the indicator says what such bars mean.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import talib

from data_pipeline.adjusted import Bars, Column, log_change
from data_pipeline.sources.worlds import CUE_BASE_SHARES

_FORGOTTEN = 1e-9
_RANK_STRIDE, _RANK_SAMPLES = 5, 25
_SHORT_BARS = 10
_C, _HLC, _CV = ("close",), ("high", "low", "close"), ("close", "volume")


class Indicator(NamedTuple):
    """An indicator as it is declared.

    Attributes:
        pattern: Its feature names; {n} stands for the window in bars.
        group: Family, for choosing and for ablation.
        inputs: Fields of `Bars` that it reads.
        compute: `(Bars, n)` to `[T]`.
        warm_up: n to the number of bars before the first value.
        memory: n to the number of bars beyond which nothing changes the value by more than 1e-9; the
            exponential ones remember longer than they warm up. None: the warm-up.
        neutral: The value of bars that leave it undefined; None: it is defined on all bars.
        known_at: When a bar's value is known: at its open, from its open and earlier bars, or at its close.
    """

    pattern: str
    group: str
    inputs: tuple[str, ...]
    compute: Callable[[Bars, int], Column]
    warm_up: Callable[[int], int]
    memory: Callable[[int], int] | None = None
    neutral: float | None = None
    known_at: Literal["open", "close"] = "close"


def sma_distance(bars: Bars, n: int) -> Column:
    """Close over its simple moving average, minus one."""
    return bars.close / bars.ta(talib.SMA, "close", timeperiod=n) - 1.0


def ema_distance(bars: Bars, n: int) -> Column:
    """Close over its exponential moving average, minus one."""
    return bars.close / bars.ta(talib.EMA, "close", timeperiod=n) - 1.0


def macd_line(bars: Bars, _: int) -> Column:
    """MACD (12, 26) over the close."""
    return bars.ta(talib.MACD, "close")[0] / bars.close


def macd_histogram(bars: Bars, _: int) -> Column:
    """MACD (12, 26) minus its signal line (9), over the close."""
    return bars.ta(talib.MACD, "close")[2] / bars.close


def log_return(bars: Bars, n: int) -> Column:
    """Log return over n bars."""
    return log_change(bars.close, n)


def rate_of_change(bars: Bars, n: int) -> Column:
    """Simple return over n bars."""
    return bars.ta(talib.ROCP, "close", timeperiod=n)


def relative_strength_index(bars: Bars, n: int) -> Column:
    """RSI by Wilder, scaled to [-1, 1]."""
    return bars.ta(talib.RSI, "close", timeperiod=n) / 50.0 - 1.0


def average_true_range(bars: Bars, n: int) -> Column:
    """ATR by Wilder over the close."""
    return bars.ta(talib.ATR, *_HLC, timeperiod=n) / bars.close


def bollinger_width(bars: Bars, n: int) -> Column:
    """Distance between the bands at ± 2 standard deviations, over their middle."""
    return 4.0 * bars.ta(talib.STDDEV, "close", timeperiod=n) / bars.ta(talib.SMA, "close", timeperiod=n)


def bollinger_position(bars: Bars, n: int) -> Column:
    """Where the close lies between the bands: 0 at the lower, 1 at the upper (%b)."""
    deviation = bars.ta(talib.STDDEV, "close", timeperiod=n)
    return 0.5 + _ratio(bars.close - bars.ta(talib.SMA, "close", timeperiod=n), 4.0 * deviation)


def realised_volatility(bars: Bars, n: int) -> Column:
    """Standard deviation of n log returns, per bar."""
    return bars.ta(talib.STDDEV, "log_return", timeperiod=n)


def volatility_ratio(bars: Bars, n: int) -> Column:
    """Log of the realised volatility of 10 bars over that of n."""
    return _log_ratio(
        bars.ta(talib.STDDEV, "log_return", timeperiod=_SHORT_BARS), bars.ta(talib.STDDEV, "log_return", timeperiod=n)
    )


def downside_deviation(bars: Bars, n: int) -> Column:
    """Root mean square of the negative log returns among n, per bar."""
    mean = talib.SMA(np.square(np.minimum(bars.log_return, 0.0)), n)
    return np.sqrt(np.maximum(mean, 0.0))  # a running sum may end a hair below zero


def relative_volume(bars: Bars, n: int) -> Column:
    """log(1 + volume over its mean of n bars)."""
    return np.log1p(_ratio(bars.volume, bars.ta(talib.SMA, "volume", timeperiod=n)))


def on_balance_slope(bars: Bars, n: int) -> Column:
    """Change of on-balance volume over n bars, as a share of the volume traded in them."""
    return _ratio(_change(bars.ta(talib.OBV, "close", "volume"), n), bars.ta(talib.SUM, "volume", timeperiod=n))


def accumulation_slope(bars: Bars, n: int) -> Column:
    """Change of the accumulation/distribution line over n bars, as a share of the volume traded in them."""
    line = bars.ta(talib.AD, *_HLC, "volume")
    return _ratio(_change(line, n), bars.ta(talib.SUM, "volume", timeperiod=n))


def illiquidity(bars: Bars, n: int) -> Column:
    """Log of price move per dollar traded over 5 bars, against the same over n bars (after Amihud 2002)."""
    move, traded = np.abs(bars.log_return), bars.close * bars.volume
    short = _ratio(talib.SUM(move, 5), talib.SUM(traded, 5))
    return _log_ratio(short, _ratio(talib.SUM(move, n), talib.SUM(traded, n)))


def close_in_range(bars: Bars, _: int) -> Column:
    """Where the close lies in the bar: 0 at its low, 1 at its high."""
    return _ratio(bars.close - bars.low, bars.high - bars.low)


def overnight_return(bars: Bars, _: int) -> Column:
    """Log return from the close before to the open."""
    result = np.full_like(bars.open, np.nan)
    result[1:] = np.log(bars.open[1:] / bars.close[:-1])
    return result


def range_position(bars: Bars, n: int) -> Column:
    """Where the close lies between the lowest low and the highest high of n bars."""
    low = bars.ta(talib.MIN, "low", timeperiod=n)
    return _ratio(bars.close - low, bars.ta(talib.MAX, "high", timeperiod=n) - low)


def drawdown(bars: Bars, n: int) -> Column:
    """Close over the highest close of n bars, minus one."""
    return bars.close / bars.ta(talib.MAX, "close", timeperiod=n) - 1.0


def volatility_tercile(bars: Bars, n: int) -> Column:
    """-1, 0, 1: the third of its recent past in which the realised volatility of n bars lies.

    The past is its value of 5, 10 … 125 bars ago; volatility moves too slowly for all 125 to tell more.
    """
    volatility = realised_volatility(bars, n)
    reach = _RANK_STRIDE * _RANK_SAMPLES
    now = volatility[reach:]
    above = np.zeros(len(now), np.uint8)
    for ago in range(_RANK_STRIDE, reach + 1, _RANK_STRIDE):
        above += (now > volatility[reach - ago : len(volatility) - ago]).view(np.uint8)
    tercile = (above > _RANK_SAMPLES * 2 / 3).astype(float) - (above < _RANK_SAMPLES / 3)
    result = np.full_like(volatility, np.nan)
    result[reach:] = np.where(np.isnan(volatility[:-reach]), np.nan, tercile)
    return result


def directional_index(bars: Bars, n: int) -> Column:
    """ADX by Wilder, scaled to [-1, 1]."""
    return bars.once((_adx, n), lambda: _adx(bars, n)) / 50.0 - 1.0


def trend_regime(bars: Bars, n: int) -> Column:
    """1 where ADX is above 25 (trend), -1 where it is below 20 (range), 0 between."""
    index = bars.once((_adx, n), lambda: _adx(bars, n))
    return np.where(np.isnan(index), np.nan, (index > 25.0).astype(float) - (index < 20.0))


def market_momentum(bars: Bars, n: int) -> Column:
    """Log return of the equal-weighted market over n bars."""
    return bars.ta(talib.SUM, "market", timeperiod=n)


def market_volatility(bars: Bars, n: int) -> Column:
    """Standard deviation of n log returns of the market, per bar."""
    return bars.ta(talib.STDDEV, "market", timeperiod=n)


def market_breadth(bars: Bars, _: int) -> Column:
    """Share of the market's symbols above their price of 50 sessions ago, scaled to [-1, 1]."""
    return 2.0 * bars.breadth - 1.0


def relative_strength(bars: Bars, n: int) -> Column:
    """Log return over n bars beyond the market's."""
    return log_change(bars.close, n) - bars.ta(talib.SUM, "market", timeperiod=n)


def market_beta(bars: Bars, n: int) -> Column:
    """Slope of the log returns on the market's, over n bars."""
    return _ratio(_covariance(bars, n), np.square(bars.ta(talib.STDDEV, "market", timeperiod=n)), _FORGOTTEN**2)


def market_correlation(bars: Bars, n: int) -> Column:
    """Correlation of the log returns with the market's, over n bars."""
    scale = bars.ta(talib.STDDEV, "log_return", timeperiod=n) * bars.ta(talib.STDDEV, "market", timeperiod=n)
    return np.clip(_ratio(_covariance(bars, n), scale, _FORGOTTEN**2), -1.0, 1.0)


def weekday(bars: Bars, _: int) -> Column:
    """Day of the week, -1 on Monday to 1 on Friday."""
    return ((_days(bars) + 3) % 7 - 2) / 2.0  # 1970-01-01 was a Thursday


def year_sine(bars: Bars, _: int) -> Column:
    """Sine of the time of the year."""
    return _of_the_year(np.sin)[_days(bars)]


def year_cosine(bars: Bars, _: int) -> Column:
    """Cosine of the time of the year."""
    return _of_the_year(np.cos)[_days(bars)]


def session_volatility(bars: Bars, _: int) -> Column:
    """Root of the summed squared log returns since the session's first bar."""
    first = _first_of_session(bars)
    squares = np.square(np.nan_to_num(bars.log_return))
    squares[first] = 0.0  # the night belongs to no session
    total = np.cumsum(squares)
    return np.sqrt(np.maximum(total - total[first], 0.0))


def session_return(bars: Bars, _: int) -> Column:
    """Log return since the session's open."""
    return np.log(bars.close / bars.open[_first_of_session(bars)])


def session_vwap_distance(bars: Bars, _: int) -> Column:
    """Close over the session's volume-weighted average price so far, minus one."""
    first = _first_of_session(bars)
    typical = (bars.high + bars.low + bars.close) / 3.0 * bars.volume
    paid, traded = np.cumsum(typical), np.cumsum(bars.volume)
    before = (paid[first] - typical[first], traded[first] - bars.volume[first])
    average = _ratio(paid - before[0], traded - before[1])
    return bars.close / average - 1.0


def world_cue(bars: Bars, _: int) -> Column:
    """The cue of a synthetic market, which its volume carries (`data_pipeline.sources.worlds`)."""
    return np.log(np.maximum(bars.volume, 1e-300) / CUE_BASE_SHARES)


def _adx(bars: Bars, n: int) -> Column:
    """Average directional index.

    Not `talib.ADX`: where high and low move alike neither counts, and prices in cents often do; on adjusted
    prices rounding would break such ties by chance, so that the value depended on the adjustment's scale.
    """
    up, down = np.zeros_like(bars.high), np.zeros_like(bars.low)
    up[1:], down[1:] = bars.high[1:] - bars.high[:-1], bars.low[:-1] - bars.low[1:]
    apart, tie = up - down, _FORGOTTEN * bars.close
    plus = _wilder_mean(np.where(apart > tie, np.maximum(up, 0.0), 0.0), n)
    minus = _wilder_mean(np.where(-apart > tie, np.maximum(down, 0.0), 0.0), n)
    return _wilder_mean(100.0 * np.abs(plus - minus) / np.maximum(plus + minus, 1e-300), n)


def _wilder_mean(values: Column, n: int) -> Column:
    """Exponential mean with weight 1/n, starting from the mean of 2n - 1 values."""
    return talib.EMA(values, 2 * n - 1)


def _days(bars: Bars) -> npt.NDArray[np.int64]:
    """Days since 1970-01-01, `[T]`."""
    return bars.session.view(np.int64)


@cache
def _of_the_year(function: Callable[[Column], Column]) -> Column:
    """A function of the year's angle for every day from 1970 to 2100."""
    return function(2.0 * np.pi / 365.2425 * np.arange(131 * 366, dtype=np.float64))


def _first_of_session(bars: Bars) -> npt.NDArray[np.int64]:
    """Row of each bar's first bar of the session, `[T]`."""
    starts = np.flatnonzero(np.append(True, bars.session[1:] != bars.session[:-1]))
    return np.repeat(starts, np.diff(np.append(starts, len(bars))))


def _change(values: Column, n: int) -> Column:
    result = np.full_like(values, np.nan)
    result[n:] = values[n:] - values[:-n]
    return result


def _covariance(bars: Bars, n: int) -> Column:
    """Covariance of the log returns with the market's over n bars."""
    own, market = (bars.ta(talib.SMA, name, timeperiod=n) for name in ("log_return", "market"))
    return talib.SMA(bars.log_return * bars.market, n) - own * market


def _ratio(numerator: Column, denominator: Column, above: float = 0.0) -> Column:
    """Quotient, NaN where the denominator is not above a bound."""
    return numerator / np.where(denominator > above, denominator, np.nan)


def _log_ratio(numerator: Column, denominator: Column) -> Column:
    """Log of a quotient, NaN unless both parts are above zero."""
    return np.log(_ratio(np.where(numerator > 0.0, numerator, np.nan), denominator))


def _window(n: int) -> int:
    return n


def _less_one(n: int) -> int:
    return n - 1


def _none(_: int) -> int:
    return 0


def _fades(decay: float, times: int = 1) -> int:
    """Bars until a weight that decays by this factor a bar is forgotten, smoothed so many times."""
    bars = np.arange(1, 20_000)
    weight = decay**bars * (bars if times == 2 else 1.0)
    return int(np.argmax(weight < _FORGOTTEN)) + 1


def _wilder(n: int) -> int:
    return n + _fades((n - 1) / n)


def _adx_warm_up(n: int) -> int:
    return 4 * n - 4


def _adx_memory(n: int) -> int:
    return 4 * n + _fades((n - 1) / n, times=2)


def _day(pattern: str, group: str, compute: Callable[[Bars, int], Column], warm_up: Callable[[int], int]) -> Indicator:
    return Indicator(pattern, group, ("market",), compute, warm_up)


INDICATORS: tuple[Indicator, ...] = (
    Indicator("sma_{n}_distance", "trend", _C, sma_distance, _less_one),
    Indicator("ema_{n}_distance", "trend", _C, ema_distance, _less_one, lambda n: n + _fades((n - 1) / (n + 1))),
    Indicator("macd_line", "trend", _C, macd_line, lambda _: 33, lambda _: 33 + _fades(25 / 27)),
    Indicator("macd_histogram", "trend", _C, macd_histogram, lambda _: 33, lambda _: 33 + _fades(25 / 27, times=2)),
    Indicator("return_{n}", "momentum", _C, log_return, _window),
    Indicator("roc_{n}", "momentum", _C, rate_of_change, _window),
    Indicator("rsi_{n}", "momentum", _C, relative_strength_index, _window, _wilder),
    Indicator("range_position_{n}", "momentum", _HLC, range_position, _less_one, neutral=0.5),
    Indicator("overnight_return", "momentum", ("open", "close"), overnight_return, lambda _: 1, known_at="open"),
    Indicator("close_in_range", "momentum", _HLC, close_in_range, _none, neutral=0.5),
    Indicator("atr_{n}", "volatility", _HLC, average_true_range, _window, _wilder),
    Indicator("bollinger_width_{n}", "volatility", _C, bollinger_width, _less_one),
    Indicator("bollinger_position_{n}", "volatility", _C, bollinger_position, _less_one, neutral=0.5),
    Indicator("realised_volatility_{n}", "volatility", _C, realised_volatility, _window),
    Indicator("volatility_ratio_{n}", "volatility", _C, volatility_ratio, lambda n: max(n, _SHORT_BARS), neutral=0.0),
    Indicator("relative_volume_{n}", "volume", ("volume",), relative_volume, _less_one, neutral=0.0),
    Indicator("on_balance_slope_{n}", "volume", _CV, on_balance_slope, _window, neutral=0.0),
    Indicator("accumulation_slope_{n}", "volume", (*_HLC, "volume"), accumulation_slope, _window, neutral=0.0),
    Indicator("illiquidity_{n}", "volume", _CV, illiquidity, lambda n: max(n, 5), neutral=0.0),
    Indicator("volatility_tercile_{n}", "regime", _C, volatility_tercile, lambda n: n + _RANK_STRIDE * _RANK_SAMPLES),
    Indicator("adx_{n}", "regime", _HLC, directional_index, _adx_warm_up, _adx_memory),
    Indicator("trend_regime_{n}", "regime", _HLC, trend_regime, _adx_warm_up, _adx_memory),
    _day("market_return_{n}", "cross-asset", market_momentum, _window),
    _day("market_volatility_{n}", "cross-asset", market_volatility, _window),
    Indicator("breadth_50", "cross-asset", ("breadth",), market_breadth, lambda _: 50),
    Indicator("relative_strength_{n}", "cross-asset", ("close", "market"), relative_strength, _window),
    Indicator("beta_{n}", "cross-asset", ("close", "market"), market_beta, _window, neutral=1.0),
    Indicator("correlation_{n}", "cross-asset", ("close", "market"), market_correlation, _window, neutral=0.0),
    Indicator("weekday", "calendar", ("session",), weekday, _none, known_at="open"),
    Indicator("year_sine", "calendar", ("session",), year_sine, _none, known_at="open"),
    Indicator("year_cosine", "calendar", ("session",), year_cosine, _none, known_at="open"),
    Indicator("drawdown_{n}", "risk", _C, drawdown, _less_one),
    Indicator("downside_deviation_{n}", "risk", _C, downside_deviation, _window),
    Indicator("session_volatility", "session", _C, session_volatility, _none),
    Indicator("session_return", "session", ("open", "close"), session_return, _none),
    Indicator("session_vwap_distance", "session", (*_HLC, "volume"), session_vwap_distance, _none, neutral=0.0),
    Indicator("world_cue", "world", ("volume",), world_cue, _none),
)
