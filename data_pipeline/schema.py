"""The one shape of a bars table, and its check.

A bars table is a polars frame with one row per symbol and session, sorted by symbol, then session:

| column | type | meaning |
|---|---|---|
| symbol | String | ticker |
| session | Date | exchange session the bar covers |
| open high low close | Float64 | raw prices in USD as they were traded |
| volume | Float64 | raw shares traded; 0 on a halted session |
| split | Float64 | shares that one share of yesterday became before this session's open; 1 = none |
| dividend | Float64 | USD per (post-split) share that went ex before this session's open; 0 = none |
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import Literal

import polars as pl

from data_pipeline.errors import BarsError, UnknownSymbolError

Timeframe = Literal["1Day", "1Hour", "5Min"]
PRICES = ("open", "high", "low", "close")
COLUMNS: dict[str, pl.DataType] = {
    "symbol": pl.String(),
    "session": pl.Date(),
    **{name: pl.Float64() for name in (*PRICES, "volume", "split", "dividend")},
}


def conform(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Returns `frame` with exactly the bars columns and types; corporate actions default to none.

    Args:
        frame: Any frame with at least symbol, session, open, high, low, close, volume.
        source: Named in the error.

    Raises:
        BarsError: A column is missing or cannot be converted.
    """
    actions = {"split": 1.0, "dividend": 0.0}
    frame = frame.with_columns(pl.lit(v).alias(k) for k, v in actions.items() if k not in frame.columns)
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise BarsError(
            f"{source}: column {', '.join(missing)} missing (found: {', '.join(frame.columns)}); "
            "rename your columns to the bars schema"
        )
    try:
        return frame.select(pl.col(name).cast(dtype) for name, dtype in COLUMNS.items())
    except pl.exceptions.PolarsError as error:
        raise BarsError(f"{source}: a column has the wrong type: {str(error).splitlines()[0]}") from error


def checked(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Returns `frame` as a bars table that is fit for use, or refuses it.

    Refused, each naming symbol and session: no rows, nulls or NaN, unsorted sessions, duplicates,
    prices at or below zero, negative volume, high or low that do not bracket open and close.

    Args:
        frame: See `conform`.
        source: Named in the error.

    Raises:
        BarsError: The first finding in the order above.
    """
    bars = conform(frame, source)
    if bars.is_empty():
        raise BarsError(f"{source}: holds no bars; check the symbols and the dates asked for")
    numbers = [name for name, dtype in COLUMNS.items() if dtype == pl.Float64()]
    unusable = pl.any_horizontal(pl.col(n).is_null() | ~pl.col(n).is_finite() for n in numbers)
    _refuse(bars, pl.any_horizontal(pl.col("symbol", "session").is_null()), "empty symbol or session", source)
    _refuse(bars, unusable, "missing, NaN or infinite value", source)
    backwards = pl.col("session").diff().over("symbol").dt.total_days()
    _refuse(bars, backwards < 0, "session earlier than the row before it (sort by session)", source)
    _refuse(bars, backwards == 0, "duplicate session", source)
    _refuse(bars, pl.any_horizontal(pl.col(n) <= 0 for n in PRICES), "price at or below zero", source)
    _refuse(bars, pl.col("volume") < 0, "negative volume", source)
    _refuse(bars, (pl.col("split") <= 0) | (pl.col("dividend") < 0), "impossible split or dividend", source)
    body = (pl.max_horizontal("open", "close"), pl.min_horizontal("open", "close"))
    crossed = (pl.col("high") < body[0]) | (pl.col("low") > body[1])
    _refuse(bars, crossed, "high or low that does not bracket open and close", source)
    return bars.sort("symbol", "session")


def selected(
    bars: pl.DataFrame, symbols: Sequence[str] | None, start: date | None, end: date | None, source: str
) -> pl.DataFrame:
    """Returns the bars of `symbols` (None: all) from `start` to `end`, both included.

    Raises:
        UnknownSymbolError: A symbol without bars.
        BarsError: Nothing is left.
    """
    if symbols is not None:
        held = bars["symbol"].unique().sort().to_list()
        unknown = sorted(set(symbols) - set(held))
        if unknown:
            raise UnknownSymbolError(f"{source}: no bars for {', '.join(unknown)}; it holds {', '.join(held)}")
        bars = bars.filter(pl.col("symbol").is_in(list(symbols)))
    if start is not None:
        bars = bars.filter(pl.col("session") >= start)
    if end is not None:
        bars = bars.filter(pl.col("session") <= end)
    if bars.is_empty():
        raise BarsError(f"{source}: no bars between {start} and {end}")
    return bars


def _refuse(bars: pl.DataFrame, condition: pl.Expr, what: str, source: str) -> None:
    bad = bars.filter(condition)
    if bad.is_empty():
        return
    row = bad.row(0, named=True)
    values = ", ".join(f"{k}={row[k]}" for k in (*PRICES, "volume"))
    more = f" and {bad.height - 1} more" if bad.height > 1 else ""
    raise BarsError(f"{source}: {what} at {row['symbol']} {row['session']} ({values}){more}; mend or drop these rows")
