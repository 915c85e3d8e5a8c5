"""Adjusted bars of one symbol: what features are computed from."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipeline.errors import BarsError
from data_pipeline.sessions import Sessions

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bars:
    """Total-return adjusted bars of one symbol on one timeframe, oldest first, `[T]` each.

    Attributes:
        open: And high, low, close: the scale is arbitrary, so only ratios mean something.
        volume: In shares of the symbol's first session.
        session: Exchange session of each bar, datetime64[D].
        market: Log return of the equal-weighted market since the bar before; daily bars only.
        breadth: Share of the market's symbols above their price of 50 sessions ago; daily bars only.
    """

    open: Column
    high: Column
    low: Column
    close: Column
    volume: Column
    session: Sessions
    market: Column = field(default_factory=lambda: np.empty(0))
    breadth: Column = field(default_factory=lambda: np.empty(0))
    _known: dict[Hashable, Any] = field(default_factory=dict, repr=False, compare=False)

    def __len__(self) -> int:
        """Returns the number of bars."""
        return len(self.close)

    def __getitem__(self, rows: slice) -> Bars:
        """Returns the bars of a range of rows, without copying."""
        return Bars(
            self.open[rows],
            self.high[rows],
            self.low[rows],
            self.close[rows],
            self.volume[rows],
            self.session[rows],
            self.market[rows],
            self.breadth[rows],
        )

    @cached_property
    def log_return(self) -> Column:
        """Log return of each bar over the one before it; the first is NaN."""
        return log_change(self.close)

    def ta(self, indicator: Any, *inputs: str, **parameters: float) -> Any:
        """Returns what a TA-Lib function makes of these columns, computed once however many features ask.

        Args:
            indicator: Such as `talib.SMA`.
            inputs: Names of attributes, in the function's order.
            parameters: Of the function.
        """
        # The wrapped function is TA-Lib's own; the wrapper only looks for pandas and polars.
        return self.once(
            (indicator, inputs, tuple(parameters.items())),
            lambda: indicator.__wrapped__(*(getattr(self, name) for name in inputs), **parameters),
        )

    def once(self, key: Hashable, compute: Callable[[], Any]) -> Any:
        """Returns what `compute` returns, a column or a tuple of them, read-only; called once for each key."""
        if key not in self._known:
            found = compute()
            for column in found if isinstance(found, tuple) else (found,):
                column.flags.writeable = False
            self._known[key] = found
        return self._known[key]


def log_change(values: Column, bars: int = 1) -> Column:
    """Returns log(value / value of so many bars ago), NaN where there is none."""
    result = np.full_like(values, np.nan)
    result[bars:] = np.log(values[bars:] / values[:-bars])
    return result


def adjustment_factor(rows: pl.DataFrame) -> Column:
    """Returns `[T]`: raw price × factor is the total-return adjusted price of one symbol's daily rows.

    The factor is 1 on the symbol's first session and grows forward with every split and dividend, so later
    events never rewrite earlier adjusted prices.

    Raises:
        BarsError: A dividend as large as the price it is paid from.
    """
    close, split, dividend = (rows[name].to_numpy() for name in ("close", "split", "dividend"))
    growth = np.ones(len(close))
    paid = dividend[1:] * split[1:] / close[:-1]
    if (paid >= 1.0).any():
        row = rows.row(1 + int(np.argmax(paid >= 1.0)), named=True)
        raise BarsError(
            f"{row['symbol']} {row['session']}: dividend {row['dividend']} is as large as the price before it; "
            "give dividends in USD per post-split share"
        )
    growth[1:] = split[1:] / (1.0 - paid)
    return np.cumprod(growth, dtype=np.float64)


def adjusted_bars(rows: pl.DataFrame, factor: Column) -> Bars:
    """Returns the adjusted bars of one symbol's rows, daily or intraday, with the factor of each row."""

    def price(name: str) -> Column:
        return rows[name].to_numpy() * factor

    return Bars(
        price("open"),
        price("high"),
        price("low"),
        price("close"),
        rows["volume"].to_numpy() / factor,
        rows["session"].to_numpy().astype("datetime64[D]"),
    )
