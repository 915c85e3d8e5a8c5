"""Rows per CPU-second from daily bars to a panel, beside TA-Lib through pandas and pandas-ta-classic.

The full default set is measured alone, as no peer has all of it. The ratios compare the same indicators on
the same bars: those of the default set that the peers have. Bars are real ones, repeated per symbol with
volumes of their own.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import polars as pl

from benchmarks.shape import arguments, figure, interleaved, publish
from data_pipeline.adjusted import adjustment_factor
from data_pipeline.assemble import build_panel
from data_pipeline.features import FeatureSet
from data_pipeline.sessions import sessions_between
from data_pipeline.sources.bundled import BundledBars

SYMBOLS, SESSIONS = 500, 2500
# A short and a long window of one indicator ask the peers for the same work as ours: one call each.
SHARED = (
    *(f"{kind}_{n}_distance" for kind in ("sma", "ema") for n in (10, 20, 50)),
    *("macd_line", "macd_histogram", "return_1", "return_5", "return_20", "roc_10", "rsi_14", "rsi_21"),
    *("atr_14", "bollinger_width_20", "bollinger_position_20", "realised_volatility_20"),
    *("relative_volume_20", "on_balance_slope_20", "accumulation_slope_20", "adx_14"),
)
UNIT = "rows per CPU-second"


def main() -> None:
    """Measures all contestants in turn, and memory in processes of their own."""
    options = arguments(__doc__ or "")
    symbols, sessions, runs = (4, 600, 1) if options.quick else (SYMBOLS, SESSIONS, 5)
    bars = market(symbols, sessions)
    shared = FeatureSet.of(SHARED)
    contestants = {
        "rows_per_cpu_s": lambda: _rate(bars, lambda: build_panel(bars, FeatureSet.of())),
        "shared_rows_per_cpu_s": lambda: _rate(bars, lambda: build_panel(bars, shared)),
        "talib_pandas": lambda: _rate(bars, lambda: _through_pandas(bars, talib_pandas)),
    }
    skipped = {}
    try:
        pandas_ta_classic = _pandas_ta_classic()
        contestants["pandas_ta_classic"] = lambda: _rate(bars, lambda: _through_pandas(bars, pandas_ta_classic))
    except ImportError as error:
        skipped["pandas_ta_classic"] = str(error)
    figures = interleaved(contestants, UNIT, runs)
    sizes = (symbols,) if options.quick else (SYMBOLS, 10 * SYMBOLS)
    builds = _builds(sizes, sessions, 1 if options.quick else 3)
    for size, told in builds.items():
        figures[f"peak_mib_{size}_symbols"] = figure([b["peak_bytes"] / 2**20 for b in told], "MiB, whole process")
        figures[f"build_rows_per_cpu_s_{size}_symbols"] = figure([b["rows"] / b["cpu_s"] for b in told], UNIT)
    over = [build["peak_bytes"] / build["panel_bytes"] for build in builds[symbols]]
    figures["peak_memory_over_panel"] = figure(over, "peak of the process over the panel")
    ours = figures["shared_rows_per_cpu_s"]["median"]
    ratios = {f"vs_{peer}": ours / figures[peer]["median"] for peer in contestants if not peer.endswith("cpu_s")}
    if not options.quick:
        cost = [figures[f"build_rows_per_cpu_s_{size}_symbols"]["median"] for size in sizes]
        ratios["cost_per_row_5000_vs_500_symbols"] = cost[0] / cost[1]
    publish("features", options, figures, ratios, skipped)


def market(symbols: int, sessions: int) -> pl.DataFrame:
    """Returns bars of so many symbols: real ones of IBM from a random day on, with volumes of their own."""
    rng = np.random.default_rng(0)
    real = BundledBars().fetch(["IBM"])
    days = sessions_between(real["session"][0], real["session"][-1])[-sessions:]
    frames = []
    for number in range(symbols):
        rows = real.slice(int(rng.integers(0, real.height - sessions + 1)), sessions)
        frames.append(
            rows.with_columns(
                symbol=pl.lit(f"S{number:05d}"), session=pl.Series(days), volume=rows["volume"] * rng.uniform(0.5, 2.0)
            )
        )
    return pl.concat(frames, rechunk=True)


def _rate(bars: pl.DataFrame, run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return bars.height / (time.process_time() - started)


def _through_pandas(bars: pl.DataFrame, peer: Callable[[Any], dict[str, Any]]) -> np.ndarray[Any, Any]:
    """The usual way: adjust, group by symbol, call the library on Series, collect a frame."""
    import pandas as pd

    result = np.empty((bars.height // bars["symbol"].n_unique(), bars["symbol"].n_unique(), len(SHARED)), np.float32)
    frame = bars.to_pandas()
    for number, (_, rows) in enumerate(frame.groupby("symbol", sort=False)):
        factor = adjustment_factor(pl.from_pandas(rows))
        day = rows[["open", "high", "low", "close"]].mul(factor, axis=0).assign(volume=rows["volume"] / factor)
        result[:, number] = pd.DataFrame(peer(day))[list(SHARED)].to_numpy(np.float32)
    return result


def talib_pandas(day: Any) -> dict[str, Any]:
    """The shared indicators by TA-Lib on pandas Series."""
    import talib

    high, low, close, volume = day["high"], day["low"], day["close"], day["volume"]
    log = np.log(close)
    upper, middle, lower = talib.BBANDS(close, 20, 2, 2)
    line, _, histogram = talib.MACD(close, 12, 26, 9)
    traded = talib.SUM(volume, 20)
    return {
        **{f"sma_{n}_distance": close / talib.SMA(close, n) - 1 for n in (10, 20, 50)},
        **{f"ema_{n}_distance": close / talib.EMA(close, n) - 1 for n in (10, 20, 50)},
        "macd_line": line / close,
        "macd_histogram": histogram / close,
        **{f"return_{n}": log.diff(n) for n in (1, 5, 20)},
        "roc_10": talib.ROCP(close, 10),
        **{f"rsi_{n}": talib.RSI(close, n) / 50 - 1 for n in (14, 21)},
        "atr_14": talib.ATR(high, low, close, 14) / close,
        "bollinger_width_20": (upper - lower) / middle,
        "bollinger_position_20": (close - lower) / (upper - lower),
        "realised_volatility_20": talib.STDDEV(log.diff(), 20),
        "relative_volume_20": np.log1p(volume / talib.SMA(volume, 20)),
        "on_balance_slope_20": talib.OBV(close, volume).diff(20) / traded,
        "accumulation_slope_20": talib.AD(high, low, close, volume).diff(20) / traded,
        "adx_14": talib.ADX(high, low, close, 14) / 50 - 1,
    }


def _pandas_ta_classic() -> Callable[[Any], dict[str, Any]]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import pandas_ta_classic as ta

    def compute(day: Any) -> dict[str, Any]:
        high, low, close, volume = day["high"], day["low"], day["close"], day["volume"]
        bands = ta.bbands(close, 20, 2)
        lower, middle, upper = (bands[f"BB{part}_20_2.0"] for part in "LMU")
        macd = ta.macd(close, 12, 26, 9)
        traded = volume.rolling(20).sum()
        return {
            **{f"sma_{n}_distance": close / ta.sma(close, n) - 1 for n in (10, 20, 50)},
            **{f"ema_{n}_distance": close / ta.ema(close, n) - 1 for n in (10, 20, 50)},
            "macd_line": macd["MACD_12_26_9"] / close,
            "macd_histogram": macd["MACDh_12_26_9"] / close,
            **{f"return_{n}": ta.log_return(close, n) for n in (1, 5, 20)},
            "roc_10": ta.roc(close, 10) / 100,
            **{f"rsi_{n}": ta.rsi(close, n) / 50 - 1 for n in (14, 21)},
            "atr_14": ta.atr(high, low, close, 14) / close,
            "bollinger_width_20": (upper - lower) / middle,
            "bollinger_position_20": (close - lower) / (upper - lower),
            "realised_volatility_20": ta.stdev(ta.log_return(close, 1), 20, ddof=0),
            "relative_volume_20": np.log1p(volume / ta.sma(volume, 20)),
            "on_balance_slope_20": ta.obv(close, volume).diff(20) / traded,
            "accumulation_slope_20": ta.ad(high, low, close, volume).diff(20) / traded,
            "adx_14": ta.adx(high, low, close, 14)["ADX_14"] / 50 - 1,
        }

    return compute


def _builds(sizes: tuple[int, ...], sessions: int, runs: int) -> dict[int, list[dict[str, float]]]:
    """Peak memory and CPU of processes that build and write panels of so many symbols, in turn."""
    told: dict[int, list[dict[str, float]]] = {size: [] for size in sizes}
    for _ in range(runs):
        for size in sizes:
            command = [sys.executable, "-m", "benchmarks.panel_memory", str(size), str(sessions)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told[size].append(json.loads(done.stdout))
    return told


if __name__ == "__main__":
    main()
