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

`row_checks` declares what is wrong with a row; `checked` refuses on it, `quality.findings` counts by it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import date
from typing import TYPE_CHECKING, Literal, NamedTuple

import polars as pl

from data_pipeline.errors import BarsError, UnknownSymbolError

if TYPE_CHECKING:
    import pandas as pd

Timeframe = Literal["1Day", "1Hour", "5Min"]
PRICES = ("open", "high", "low", "close")
NO_ACTION = {"split": 1.0, "dividend": 0.0}
COLUMNS: dict[str, pl.DataType] = {
    "symbol": pl.String(),
    "session": pl.Date(),
    **{name: pl.Float64() for name in (*PRICES, "volume", "split", "dividend")},
}


class RowCheck(NamedTuple):
    """A defect that can be seen in a row, or in a row and the one before it of the same symbol.

    Attributes:
        name: As findings call it.
        what: As an error says it.
        bad: True on the rows that have it.
        remedy: What to do about them.
    """

    name: str
    what: str
    bad: pl.Expr
    remedy: str


def value_checks(time: str, numbers: Sequence[str]) -> tuple[RowCheck, ...]:
    """Returns what may be wrong inside a row, in order of mention.

    Args:
        time: Name of the column that tells a symbol's rows apart.
        numbers: The Float64 columns: OHLC and volume, and split and dividend where the table has them.
    """
    mend = "mend or drop these rows"
    unusable = pl.any_horizontal(pl.col(n).is_null() | ~pl.col(n).is_finite() for n in numbers)
    body = (pl.max_horizontal("open", "close"), pl.min_horizontal("open", "close"))
    crossed = (pl.col("high") < body[0]) | (pl.col("low") > body[1])
    checks = (
        RowCheck("key", f"empty symbol or {time}", pl.any_horizontal(pl.col("symbol", time).is_null()), mend),
        RowCheck("value", "missing, NaN or infinite value", unusable, mend),
        RowCheck("price", "price at or below zero", pl.any_horizontal(pl.col(n) <= 0 for n in PRICES), mend),
        RowCheck("volume", "negative volume", pl.col("volume") < 0, mend),
        RowCheck("range", "high or low that does not bracket open and close", crossed, mend),
    )
    if "split" not in numbers:
        return checks
    impossible = (pl.col("split") <= 0) | (pl.col("dividend") < 0)
    return (*checks, RowCheck("action", "impossible split or dividend", impossible, "give 1 and 0 where there is none"))


def order_checks(time: str) -> tuple[RowCheck, ...]:
    """Returns what may be wrong between a row and the one before it of the same symbol; see `in_order`."""
    before = pl.col(time).shift(1).over("symbol")
    return (
        RowCheck("order", f"{time} earlier than the row before it", pl.col(time) < before, f"sort by {time}"),
        RowCheck("duplicate", f"duplicate {time}", pl.col(time) == before, "keep one row of each"),
    )


def in_order(bars: pl.DataFrame, time: str = "session") -> bool:
    """Returns True if the rows ascend strictly by symbol, then time: several times quicker than `order_checks`."""
    symbol, at = pl.col("symbol"), pl.col(time)
    ascends = (symbol > symbol.shift(1)) | ((symbol == symbol.shift(1)) & (at > at.shift(1)))
    return bool(bars.select(ascends.slice(1).all(ignore_nulls=False)).item())


NUMBERS = tuple(name for name, dtype in COLUMNS.items() if dtype == pl.Float64())
ROW_CHECKS = value_checks("session", NUMBERS)
ORDER_CHECKS = order_checks("session")


def conform(frame: pl.DataFrame | pd.DataFrame, source: str) -> pl.DataFrame:
    """Returns `frame` with exactly the bars columns and types; corporate actions default to none.

    Args:
        frame: A polars or pandas frame with at least symbol, session, open, high, low, close, volume.
        source: Named in the error.

    Raises:
        BarsError: A column is missing or cannot be converted.
    """
    if not isinstance(frame, pl.DataFrame):
        frame = pl.from_pandas(frame)
    frame = frame.with_columns(pl.lit(v).alias(k) for k, v in NO_ACTION.items() if k not in frame.columns)
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


def checked(frame: pl.DataFrame | pd.DataFrame, source: str) -> pl.DataFrame:
    """Returns `frame` as a bars table that is fit for use, or refuses it.

    Refused, each naming symbol and session: no rows, what `ROW_CHECKS` and then `ORDER_CHECKS` list.
    The symbols may come in any order.

    Args:
        frame: See `conform`.
        source: Named in the error.

    Raises:
        BarsError: The first finding in that order.
    """
    bars = conform(frame, source)
    if bars.is_empty():
        raise BarsError(f"{source}: holds no bars; check the symbols and the dates asked for")
    refuse(bars, ROW_CHECKS, source)
    if in_order(bars):
        return bars
    refuse(bars, ORDER_CHECKS, source)
    return bars.sort("symbol", "session")


def refuse(bars: pl.DataFrame, checks: Iterable[RowCheck], source: str, time: str = "session") -> None:
    """Refuses `bars` if any row fails a check.

    Raises:
        BarsError: The first failed check with the first row that fails it, and how many more do.
    """
    failed = bars.select(check.bad.any().alias(check.name) for check in checks).row(0, named=True)
    for check in checks:
        if failed[check.name]:
            bad = bars.filter(check.bad)
            row = bad.row(0, named=True)
            values = ", ".join(f"{k}={row[k]}" for k in (*PRICES, "volume"))
            more = f" and {bad.height - 1} more" if bad.height > 1 else ""
            where = f"{row['symbol']} {row[time]} ({values}){more}"
            raise BarsError(f"{source}: {check.what} at {where}; {check.remedy}")


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
