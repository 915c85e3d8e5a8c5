"""Declared, causal, scale-free features of one symbol's daily bars.

A feature at session t uses bars up to and including the close of t, from total-return adjusted prices.
None depends on the price level, so the arbitrary scale of adjusted prices drops out. Exponential
indicators remember for ever; `look_back` is where what is forgotten falls below 1e-9, so a request that
carries that many earlier sessions gives the value that the full history gives.

Missing values: NaN during warm-up, never filled.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import talib

from data_pipeline.config import canonical_json
from data_pipeline.errors import BarsError, ConfigError

Column = npt.NDArray[np.float64]


class Adjusted(NamedTuple):
    """Adjusted bars of one symbol, oldest first, `[T]` each; volume is in shares of the first session."""

    open: Column
    high: Column
    low: Column
    close: Column
    volume: Column


@dataclass(frozen=True)
class Feature:
    """A named function from adjusted bars to one column.

    Attributes:
        name: Unique; part of the schema hash.
        look_back: Sessions before t beyond which nothing changes the value by more than 1e-9.
        compute: `Adjusted` to `[T]`, NaN during warm-up.
    """

    name: str
    look_back: int
    compute: Callable[[Adjusted], Column]


def _exponential(decay: float) -> int:
    """Sessions until a weight that decays by this factor a session is below 1e-9."""
    return int(np.ceil(np.log(1e-9) / np.log(decay)))


def _log_return(sessions: int) -> Callable[[Adjusted], Column]:
    def compute(bars: Adjusted) -> Column:
        past = np.full_like(bars.close, np.nan)
        past[sessions:] = bars.close[:-sessions]
        return np.log(bars.close / past)

    return compute


def _sma_distance(sessions: int) -> Callable[[Adjusted], Column]:
    return lambda bars: bars.close / talib.SMA(bars.close, sessions) - 1.0


def _ema_distance(sessions: int) -> Callable[[Adjusted], Column]:
    return lambda bars: bars.close / talib.EMA(bars.close, sessions) - 1.0


def _rsi(bars: Adjusted) -> Column:
    return talib.RSI(bars.close, 14) / 50.0 - 1.0


def _macd_histogram(bars: Adjusted) -> Column:
    return talib.MACD(bars.close, 12, 26, 9)[2] / bars.close


def _atr(bars: Adjusted) -> Column:
    return talib.ATR(bars.high, bars.low, bars.close, 14) / bars.close


def _bollinger_width(bars: Adjusted) -> Column:
    upper, middle, lower = talib.BBANDS(bars.close, 20, 2, 2)
    return (upper - lower) / middle


def _bollinger_position(bars: Adjusted) -> Column:
    upper, _, lower = talib.BBANDS(bars.close, 20, 2, 2)
    return _ratio(bars.close - lower, upper - lower, otherwise=0.5)


def _realised_volatility(bars: Adjusted) -> Column:
    returns = _log_return(1)(bars)
    result = np.full_like(returns, np.nan)
    result[1:] = talib.STDDEV(returns[1:], 20)
    return result


def _relative_volume(bars: Adjusted) -> Column:
    return np.log1p(_ratio(bars.volume, talib.SMA(bars.volume, 20), otherwise=0.0))


def _on_balance_slope(bars: Adjusted) -> Column:
    """Change of on-balance volume over 20 sessions, as a share of the volume traded in them."""
    signed = np.sign(np.diff(bars.close, prepend=bars.close[0])) * bars.volume
    return _ratio(talib.SUM(signed, 20), talib.SUM(bars.volume, 20), otherwise=0.0)


def _drawdown(bars: Adjusted) -> Column:
    return bars.close / talib.MAX(bars.close, 60) - 1.0


def _close_in_range(bars: Adjusted) -> Column:
    return _ratio(bars.close - bars.low, bars.high - bars.low, otherwise=0.5)


def _ratio(numerator: Column, denominator: Column, otherwise: float) -> Column:
    """Quotient, `otherwise` where the denominator is not above zero; NaN stays NaN."""
    safe = np.where(denominator > 0, denominator, 1.0)
    quotient = np.where(denominator > 0, numerator / safe, otherwise)
    return np.where(np.isnan(denominator) | np.isnan(numerator), np.nan, quotient)


_ALL = (
    Feature("return_1", 1, _log_return(1)),
    Feature("return_5", 5, _log_return(5)),
    Feature("return_20", 20, _log_return(20)),
    Feature("sma_10_distance", 10, _sma_distance(10)),
    Feature("sma_50_distance", 50, _sma_distance(50)),
    Feature("ema_20_distance", 20 + _exponential(19 / 21), _ema_distance(20)),
    Feature("rsi_14", 14 + _exponential(13 / 14), _rsi),
    Feature("macd_histogram", 35 + _exponential(25 / 27), _macd_histogram),
    Feature("atr_14", 14 + _exponential(13 / 14), _atr),
    Feature("bollinger_width_20", 20, _bollinger_width),
    Feature("bollinger_position_20", 20, _bollinger_position),
    Feature("realised_volatility_20", 21, _realised_volatility),
    Feature("relative_volume_20", 20, _relative_volume),
    Feature("on_balance_slope_20", 21, _on_balance_slope),
    Feature("drawdown_60", 60, _drawdown),
    Feature("close_in_range", 1, _close_in_range),
)
FEATURES: dict[str, Feature] = {feature.name: feature for feature in _ALL}


@dataclass(frozen=True)
class FeatureSet:
    """An ordered choice of features; the order is the order of the F axis everywhere."""

    features: tuple[Feature, ...]

    @classmethod
    def of(cls, names: tuple[str, ...] | None = None) -> FeatureSet:
        """Returns the set of these features (None: all).

        Raises:
            ConfigError: A name is unknown or given twice.
        """
        chosen = tuple(FEATURES) if names is None else names
        unknown = [name for name in chosen if name not in FEATURES]
        if unknown or len(set(chosen)) != len(chosen) or not chosen:
            raise ConfigError(
                f"features {', '.join(unknown or chosen) or '(none)'}: unknown or given twice; "
                f"choose from {', '.join(FEATURES)}"
            )
        return cls(tuple(FEATURES[name] for name in chosen))

    @property
    def names(self) -> tuple[str, ...]:
        """Feature names in order."""
        return tuple(feature.name for feature in self.features)

    @property
    def look_back(self) -> int:
        """The longest look-back of the set, in sessions."""
        return max(feature.look_back for feature in self.features)

    @property
    def schema_hash(self) -> str:
        """sha256 of what a value means: names, order, look-backs, and the bars they are computed from."""
        meaning = {
            "features": [[feature.name, feature.look_back] for feature in self.features],
            "bars": "1Day, total-return adjusted, as of the close",
            "version": 1,
        }
        return hashlib.sha256(canonical_json(meaning)).hexdigest()

    def compute(self, bars: Adjusted) -> npt.NDArray[np.float32]:
        """Returns the features of one symbol, `[T, F]` float32, NaN during warm-up."""
        return np.column_stack([feature.compute(bars) for feature in self.features]).astype(np.float32)


def with_adjusted(bars: pl.DataFrame) -> pl.DataFrame:
    """Returns checked bars with `factor` added: raw price × factor is the total-return adjusted price.

    The factor is 1 on a symbol's first session and grows forward with every split and dividend, so later
    events never rewrite earlier adjusted prices.

    Raises:
        BarsError: A dividend as large as the price it is paid from.
    """
    before = pl.col("close").shift(1).over("symbol")
    paid = (pl.col("dividend") * pl.col("split") / before).fill_null(0.0)
    result = bars.with_columns(paid.alias("paid"))
    impossible = result.filter(pl.col("paid") >= 1.0)
    if not impossible.is_empty():
        row = impossible.row(0, named=True)
        raise BarsError(
            f"{row['symbol']} {row['session']}: dividend {row['dividend']} is as large as the price before it; "
            "give dividends in USD per post-split share"
        )
    growth = pl.when(before.is_null()).then(1.0).otherwise(pl.col("split") / (1.0 - pl.col("paid")))
    return result.with_columns(growth.cum_prod().over("symbol").alias("factor")).drop("paid")


def adjusted_columns(symbol_bars: pl.DataFrame) -> Adjusted:
    """Returns the adjusted columns of one symbol's bars, which must carry `factor`."""
    factor = symbol_bars["factor"].to_numpy()

    def price(name: str) -> Column:
        return np.ascontiguousarray(symbol_bars[name].to_numpy() * factor)

    volume = symbol_bars["volume"].to_numpy() / factor
    return Adjusted(price("open"), price("high"), price("low"), price("close"), volume)
