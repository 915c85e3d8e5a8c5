"""A seeded year of 5-minute bars on the real calendar of XNYS."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl

from data_pipeline.sessions import schedule

YEAR = 2024  # half days on 3 July, 29 November, 24 December; clocks change on 10 March and 3 November
SYMBOLS = tuple(f"S{number:02d}" for number in range(20))


def five_minute_ends(start: date, end: date) -> pl.DataFrame:
    """Returns session and end of every 5-minute bar from `start` to `end`."""
    every = pl.datetime_ranges(pl.col("open") + pl.duration(minutes=5), "close", "5m")
    return schedule(start, end).select("session", end=every).explode("end")


def ticks(
    symbols: tuple[str, ...] = SYMBOLS,
    start: date = date(YEAR, 1, 1),
    end: date = date(YEAR, 12, 31),
    seed: int = 0,
) -> pl.DataFrame:
    """Returns the intraday table of random walks: a gap before each session, volume in fractions of a share."""
    rng = np.random.default_rng(seed)
    bars = five_minute_ends(start, end)
    shape = (len(symbols), bars.height)
    first = (bars["session"] != bars["session"].shift()).fill_null(value=True).to_numpy()
    gap = rng.normal(scale=np.where(first, 1e-2, 1e-4), size=shape)
    move = rng.normal(scale=1e-3, size=shape)
    log_close = np.log(100.0) + np.cumsum(gap + move, axis=1)
    log_open = log_close - move
    up, down = rng.exponential(5e-4, size=(2, *shape))
    columns = {
        "open": log_open,
        "high": np.maximum(log_open, log_close) + up,
        "low": np.minimum(log_open, log_close) - down,
        "close": log_close,
    }
    return pl.concat([bars.select(pl.lit(name).alias("symbol"), pl.all()) for name in symbols]).with_columns(
        **{name: np.exp(values).ravel() for name, values in columns.items()},
        volume=rng.lognormal(8.0, 1.0, size=shape).ravel(),
    )
