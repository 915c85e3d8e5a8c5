"""Intraday bars, longer bars made of them, and what was known of these at an instant.

An intraday table is a polars frame with one row per symbol and bar, sorted by symbol, then end:

| column | type | meaning |
|---|---|---|
| symbol | String | ticker |
| session | Date | exchange session the bar lies in |
| end | Datetime("us", "UTC") | instant at which the bar closes, its label |
| open high low close | Float64 | raw prices in USD as they were traded |
| volume | Float64 | raw shares traded |

Only regular hours: a bar ends after the opening bell and not after the closing bell. The grid counts from
the opening bell, and the last bar of a session ends with it, however short: 60-minute bars of XNYS end at
10:30, 11:30 .. 15:30 and 16:00, on a half day at 10:30, 11:30, 12:30 and 13:00. A label is an end, so
"known at an instant" is `end <= instant`, for every timeframe.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipeline.errors import BarsError, ConfigError
from data_pipeline.schema import PRICES, RowCheck, Timeframe, in_order, order_checks, refuse, value_checks
from data_pipeline.sessions import INSTANT, bells_of, ordinals, require_zone, sessions_of, week_ends

MINUTES: dict[Timeframe, int] = {"1Hour": 60, "5Min": 5}
COLUMNS: dict[str, pl.DataType] = {
    "symbol": pl.String(),
    "session": pl.Date(),
    "end": INSTANT,
    **{name: pl.Float64() for name in (*PRICES, "volume")},
}
NUMBERS = tuple(name for name, dtype in COLUMNS.items() if dtype == pl.Float64())
_MINUTE_US = 60_000_000


def checked_intraday(frame: Any, minutes: int, source: str, exchange: str = "XNYS") -> pl.DataFrame:
    """Returns `frame` as an intraday table of `minutes` bars that is fit for use, or refuses it.

    Refused, each naming symbol and end: no rows, what `schema.value_checks` lists, bars outside the session,
    a session that is not the bar's, ends off the grid, unsorted or duplicate ends of a symbol. The symbols
    may come in any order.

    Args:
        frame: A polars or pandas frame with at least symbol, end (with a time zone), open, high, low, close,
            volume; session is derived where it is absent.
        minutes: Length of a bar, at most: the last of a session may be shorter.
        source: Named in the error.
        exchange: Whose bells count.

    Raises:
        BarsError: The first finding in that order, or a column that is missing or of the wrong type.
    """
    bars = _conform(frame, source, exchange)
    if bars.is_empty():
        raise BarsError(f"{source}: holds no bars; check the symbols and the dates asked for")
    bells = bells_of(bars["session"], exchange).select(opening="open", closing="close")
    told = bars.hstack(bells).with_columns(sessions_of(bars["end"], exchange).alias("own"))
    refuse(told, (*value_checks("end", NUMBERS), *_bell_checks(minutes)), source, time="end")
    if in_order(bars, "end"):
        return bars
    refuse(bars, order_checks("end"), source, time="end")
    return bars.sort("symbol", "end")


def resample(bars: pl.DataFrame, minutes: int, exchange: str = "XNYS") -> pl.DataFrame:
    """Returns the intraday table of bars `minutes` long made of shorter ones: first, max, min, last, sum.

    A bar exists where at least one short bar lies in it. Where `bars` stop inside a session, the newest bar
    is still forming: it is labelled by the end it will have, so nothing sees it before. Keep it out of a
    store by `end <= now`.

    Args:
        bars: An intraday table whose bars are shorter than `minutes` and divide it.
        minutes: Length of the new bars, counted from the opening bell.
        exchange: Whose bells count.

    Raises:
        ConfigError: `minutes` is not at least 1.
    """
    if minutes < 1:
        raise ConfigError(f"resample to {minutes} minutes: give a whole number of minutes above zero")
    bells = bells_of(bars["session"], exchange)
    length = minutes * _MINUTE_US
    since_open = (bars["end"] - bells["open"]).dt.total_microseconds()
    whole = bells["open"] + ((since_open + (length - 1)) // length * length).cast(pl.Duration("us"))
    ends = pl.select(end=pl.min_horizontal(whole, bells["close"])).to_series()
    return _merged(bars.with_columns(ends), "symbol", "session", "end")


def to_daily(bars: pl.DataFrame) -> pl.DataFrame:
    """Returns one row per symbol and session of an intraday table: symbol, session, OHLC, volume."""
    return _merged(bars, "symbol", "session")


def to_weekly(daily: pl.DataFrame, exchange: str = "XNYS") -> pl.DataFrame:
    """Returns one row per symbol and closed calendar week: symbol, session, OHLC, volume.

    `session` is the last exchange session of the week, traded by the symbol or not. A week whose last
    session is later than the newest bar of the table is not closed and does not appear.

    Args:
        daily: symbol, session, OHLC, volume, sorted by symbol, then session. Give adjusted prices and
            volumes, or a split inside a week joins two units.
        exchange: Whose weeks count.

    Raises:
        ConfigError: A day that is no session of the exchange.
    """
    ends = pl.Series("session", week_ends(daily["session"].to_numpy(), exchange))
    weekly = _merged(daily.with_columns(ends), "symbol", "session")
    return weekly.filter(pl.col("session") <= daily["session"].max())


def attach(
    base: pl.DataFrame,
    higher: pl.DataFrame,
    columns: Mapping[str, str],
    by: str = "symbol",
    within_sessions: int | None = None,
    exchange: str = "XNYS",
) -> pl.DataFrame:
    """Returns `base` with values of a longer timeframe as of the end of each base row: closed bars only.

    The value is that of the newest bar of `higher` whose end is not after the end of the base row, null
    where there is none. A table without `end` (days, weeks) ends at the closing bell of its `session`.

    Args:
        base: Table that gets the columns; its order is kept.
        higher: Table that gives them, sorted by `by`, then end.
        columns: New name to name in `higher`, such as {"hour_close": "close"}.
        by: Column that both share.
        within_sessions: Null where the bar is more sessions old than this; 0: of the same session only.
            None: however old.
        exchange: Whose bells count.
    """
    left = base.select(by, "session", _ends(base, exchange))
    taken = {new: pl.col(name) for new, name in columns.items()}
    right = higher.select(pl.col(by), _ends(higher, exchange), pl.col("session").alias("held"), **taken)
    for frame, name in ((left, "base"), (right, "longer")):
        _require_sorted(frame, by, name)
    found = left.join_asof(right, on="end", by=by, strategy="backward", check_sortedness=False)
    values = found.select(*columns)
    if within_sessions is not None:
        held = found["held"].fill_null(found["session"])
        age = ordinals(found["session"].to_numpy(), exchange) - ordinals(held.to_numpy(), exchange)
        fresh = pl.Series(age <= within_sessions)
        values = values.select(pl.when(fresh).then(pl.all()))
    return base.hstack(values)


def closed_before(ends: npt.NDArray[Any], at: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Returns the index of the newest bar that is closed at each instant, -1 where none is, `[M]`.

    Args:
        ends: `[K]` closing instants, ascending.
        at: `[M]` instants of the same unit, in any order. A bar that ends at the instant is closed.
    """
    return np.searchsorted(ends, at, side="right") - 1


def _ends(frame: pl.DataFrame, exchange: str) -> pl.Series:
    if "end" in frame.columns:
        return frame["end"]
    ordinals(frame["session"].to_numpy(), exchange)  # refuses days without a bell
    return bells_of(frame["session"], exchange)["close"].alias("end")


def _require_sorted(frame: pl.DataFrame, by: str, name: str) -> None:
    group, end = pl.col(by), pl.col("end")
    backwards = (group < group.shift()) | ((group == group.shift()) & (end < end.shift()))
    if frame.select(backwards.any()).item():
        raise BarsError(f"attach: the {name} table is not in order; sort it by {by}, then end")


def _merged(bars: pl.DataFrame, *keys: str) -> pl.DataFrame:
    """Returns one row per run of rows with equal keys: first open, max high, min low, last close, summed volume.

    NumPy sums each run by itself, so the bits depend on nothing around it and on no number of threads.
    """
    changed = pl.any_horizontal(pl.col(key).ne_missing(pl.col(key).shift()) for key in keys)
    starts = np.flatnonzero(bars.select(changed | (pl.int_range(pl.len()) == 0)).to_series().to_numpy())
    stops = np.append(starts, bars.height)[1:] - 1
    price = {name: bars[name].to_numpy() for name in (*PRICES, "volume")}
    return bars.select(keys)[starts].with_columns(
        open=price["open"][starts],
        high=np.maximum.reduceat(price["high"], starts),
        low=np.minimum.reduceat(price["low"], starts),
        close=price["close"][stops],
        volume=np.add.reduceat(price["volume"], starts),
    )


def _conform(frame: Any, source: str, exchange: str) -> pl.DataFrame:
    bars = pl.DataFrame(frame)
    missing = [name for name in COLUMNS if name not in (*bars.columns, "session")]
    if missing:
        raise BarsError(
            f"{source}: column {', '.join(missing)} missing (found: {', '.join(bars.columns)}); "
            "rename your columns to the intraday schema"
        )
    try:
        if "session" not in bars.columns:
            bars = bars.with_columns(sessions_of(bars["end"], exchange).alias("session"))
        require_zone(bars["end"])
        return bars.select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())
    except (BarsError, pl.exceptions.PolarsError) as error:
        raise BarsError(f"{source}: a column has the wrong type: {str(error).splitlines()[0]}") from error


def _bell_checks(minutes: int) -> tuple[RowCheck, ...]:
    """Returns what may be wrong between a bar and the bells `opening` and `closing` of its session.

    `own` is the session that `end` lies in.
    """
    since_open = (pl.col("end") - pl.col("opening")).dt.total_microseconds()
    on_grid = (since_open % (minutes * _MINUTE_US) == 0) | (pl.col("end") == pl.col("closing"))
    return (
        RowCheck(
            "hours",
            "bar outside the session",
            pl.col("own").is_null(),
            "label bars by their end and keep those of regular hours (`sessions_of` is null outside)",
        ),
        RowCheck(
            "session",
            "session that is not the bar's",
            pl.col("session").ne_missing(pl.col("own")),
            "leave the session column out, it follows from end",
        ),
        RowCheck(
            "grid",
            f"end off the grid of {minutes} minutes from the opening bell",
            ~on_grid,
            "label bars by their end, or make them with `resample`",
        ),
    )
