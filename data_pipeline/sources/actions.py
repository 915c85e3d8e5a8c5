"""Splits and dividends recovered from a total-return adjusted close beside the raw one."""

from __future__ import annotations

import polars as pl

from data_pipeline.errors import BarsError

_DECIMALS = (2, 3, 4, 5, 6)
_LEAST_DIVIDEND = 1e-6  # of the price; below it is the rounding of float32 prices
_LARGEST_FALL = 5e-3


def with_actions(frame: pl.DataFrame, source: str) -> pl.DataFrame:
    """Returns `frame` with split and dividend, derived from the growth of adj_close / close between sessions.

    A growth of 1.5 or more, or of 1 / 1.5 or less, is a split by the nearest half; the rest is a dividend.
    A split below 3:2 therefore becomes a dividend and a payout of a third of the price a split; the
    total return is right all the same. Where a symbol's adj_close is rounded, growth within the rounding
    is nothing: its positive half alone would add a drift that nobody earned.

    Args:
        frame: symbol, session, close, adj_close; sorted by symbol, then session.
        source: Named in the error.

    Raises:
        BarsError: An adjusted close is missing or not above zero, or falls against the close where no split
            explains it.
    """
    unusable = frame.filter(
        pl.col("adj_close").is_null() | ~pl.col("adj_close").is_finite() | (pl.col("adj_close") <= 0)
    )
    if not unusable.is_empty():
        row = unusable.row(0, named=True)
        raise BarsError(
            f"{source}: adj_close is {row['adj_close']} at {row['symbol']} {row['session']}{_more(unusable)}; "
            f"mend or drop these rows"
        )
    factor = pl.col("adj_close") / pl.col("close")
    growth = (factor / factor.shift(1)).over("symbol").fill_null(1.0)
    error = _LEAST_DIVIDEND + _rounding_unit() / 2 * (1 / pl.col("adj_close") + 1 / pl.col("adj_close").shift(1)).over(
        "symbol"
    ).fill_null(0.0)
    bars = frame.with_columns(growth.alias("growth"), error.alias("error"))
    _refuse_falls(bars, source)
    growth = pl.col("growth")
    split = (
        pl.when(growth >= 1.5)
        .then((growth * 2).round() / 2)
        .when(growth <= 1 / 1.5)
        .then(1 / ((2 / growth).round() / 2))
        .otherwise(1.0)
    )
    before = pl.col("close").shift(1).over("symbol") / split  # yesterday's close in today's shares
    kept = growth / split  # = 1 / (1 - dividend / before)
    dividend = pl.when(kept > 1 + pl.col("error")).then(before * (1 - 1 / kept)).otherwise(0.0)
    return bars.with_columns(split=split, dividend=dividend).drop("growth", "error")


def _rounding_unit() -> pl.Expr:
    """The unit of the fewest decimals that hold every adj_close of the symbol; 0 where they hold no such rounding."""
    unit = pl.lit(0.0)
    for decimals in reversed(_DECIMALS):
        scaled = pl.col("adj_close") * 10**decimals
        fits = ((scaled - scaled.round()).abs() < 1e-4).all().over("symbol")
        unit = pl.when(fits).then(10.0**-decimals).otherwise(unit)
    return unit


def _refuse_falls(bars: pl.DataFrame, source: str) -> None:
    growth = pl.col("growth")
    fallen = bars.filter((growth < 1 - pl.col("error") - _LARGEST_FALL) & (growth > 1 / 1.5))
    if not fallen.is_empty():
        row = fallen.row(0, named=True)
        raise BarsError(
            f"{source}: adj_close falls by {1 - row['growth']:.1%} against close at {row['symbol']} {row['session']}"
            f"{_more(fallen)}, which neither a dividend nor a split explains; "
            "mend the column, or leave it out and give split and dividend"
        )


def _more(bad: pl.DataFrame) -> str:
    return f" and {bad.height - 1} more" if bad.height > 1 else ""
