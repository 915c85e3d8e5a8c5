"""Small tables of bars with planted defects."""

from __future__ import annotations

from datetime import date

import polars as pl


def three_bars(**changes) -> pl.DataFrame:
    """Returns three sessions of a symbol A, with columns changed."""
    columns = {
        "symbol": ["A", "A", "A"],
        "session": [date(2020, 1, 2), date(2020, 1, 3), date(2020, 1, 6)],
        "open": [10.0, 11.0, 12.0],
        "high": [11.0, 12.0, 13.0],
        "low": [9.0, 10.0, 11.0],
        "close": [10.5, 11.5, 12.5],
        "volume": [100.0, 200.0, 300.0],
    }
    return pl.DataFrame(columns | changes)


# The check that finds it, the columns that hold it, and words of the error.
BROKEN = {
    "NaN": ("value", {"close": [10.5, float("nan"), 12.5]}, "NaN"),
    "null": ("value", {"volume": [100.0, None, 300.0]}, "missing"),
    "duplicate": ("duplicate", {"session": [date(2020, 1, 2), date(2020, 1, 3), date(2020, 1, 3)]}, "duplicate"),
    "unsorted": ("order", {"session": [date(2020, 1, 2), date(2020, 1, 6), date(2020, 1, 3)]}, "earlier than the row"),
    "negative price": ("price", {"low": [9.0, -1.0, 11.0]}, "at or below zero"),
    "high below close": ("range", {"high": [11.0, 11.2, 13.0]}, "does not bracket"),
    "low above open": ("range", {"low": [9.0, 11.2, 11.0]}, "does not bracket"),
    "negative volume": ("volume", {"volume": [100.0, -2.0, 300.0]}, "negative volume"),
    "split of zero": ("action", {"split": [1.0, 0.0, 1.0]}, "impossible split"),
    "no symbol": ("key", {"symbol": ["A", None, "A"]}, "empty symbol"),
}
