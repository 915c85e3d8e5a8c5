"""Sources of bars behind one interface.

Each source answers raw, checked bars (`data_pipeline.schema`) with corporate actions beside them, and
says where they came from. `bundled` needs no network; `files` reads a user's Parquet or CSV.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Protocol

import polars as pl

from data_pipeline.errors import BarsError, ConfigError, UnknownSymbolError
from data_pipeline.schema import checked


class BarSource(Protocol):
    """Where bars come from."""

    def fetch(
        self, symbols: Sequence[str] | None = None, start: date | None = None, end: date | None = None
    ) -> pl.DataFrame:
        """Returns checked bars of `symbols` (None: all) from `start` to `end`, both included.

        Raises:
            UnknownSymbolError: A symbol that the source does not hold.
            BarsError: The bars are not fit for use.
        """

    def provenance(self) -> Mapping[str, str]:
        """Returns what a manifest records: source, feed, adjustment, version."""


class BundledBars:
    """Daily history of AAPL, FB, GOOG, IBM and MSFT, 2000-03-01 to 2013-03-01, that ships in a package.

    `bokeh_sampledata` holds raw OHLCV and a total-return adjusted close. Splits and dividends are
    recovered from the jumps of adjusted over raw close: a jump of 1.5 or more is a split by the nearest
    half, the rest is a dividend. All five companies survived: compare only with baselines on the same set.
    """

    def fetch(
        self, symbols: Sequence[str] | None = None, start: date | None = None, end: date | None = None
    ) -> pl.DataFrame:
        """See `BarSource.fetch`."""
        try:
            from bokeh_sampledata.stocks import data  # noqa: PLC0415  (an optional package)
        except ImportError as error:
            raise ConfigError(
                "source 'bundled' needs the package bokeh_sampledata: pip install 'swing-rl[bundled]'"
            ) from error
        frame = pl.from_pandas(data).rename({"ticker": "symbol", "date": "session"})
        frame = frame.with_columns(pl.col("session").cast(pl.Date)).sort("symbol", "session")
        return _selected(checked(_with_actions(frame), "bundled history"), symbols, start, end, "bundled")

    def provenance(self) -> Mapping[str, str]:
        """See `BarSource.provenance`."""
        from importlib.metadata import version  # noqa: PLC0415

        return {
            "source": "bundled",
            "feed": "bokeh_sampledata.stocks",
            "adjustment": "raw, actions derived from adj_close",
            "version": version("bokeh_sampledata"),
        }


class FileBars:
    """A Parquet or CSV file with the columns of `data_pipeline.schema` (corporate actions optional)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fetch(
        self, symbols: Sequence[str] | None = None, start: date | None = None, end: date | None = None
    ) -> pl.DataFrame:
        """See `BarSource.fetch`."""
        return _selected(checked(self._read(), str(self.path)), symbols, start, end, str(self.path))

    def provenance(self) -> Mapping[str, str]:
        """See `BarSource.provenance`."""
        return {"source": "files", "feed": self.path.name, "adjustment": "raw", "version": "1"}

    def _read(self) -> pl.DataFrame:
        readers: dict[str, Callable[[Path], pl.DataFrame]] = {".parquet": pl.read_parquet, ".csv": _read_csv}
        reader = readers.get(self.path.suffix)
        if reader is None:
            raise BarsError(f"{self.path}: cannot read {self.path.suffix or 'no suffix'}; give .parquet or .csv")
        try:
            return reader(self.path)
        except (OSError, pl.exceptions.PolarsError) as error:
            raise BarsError(f"{self.path}: cannot be read: {str(error).splitlines()[0]}") from error


def source_of(name: str) -> BarSource:
    """Returns the source called `bundled`, or the one that reads the file `name`.

    Raises:
        ConfigError: `name` is neither.
    """
    if name == "bundled":
        return BundledBars()
    if (path := Path(name)).is_file():
        return FileBars(path)
    raise ConfigError(f"bar source {name!r}: give 'bundled' or the path of a Parquet or CSV file that exists")


def _read_csv(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, try_parse_dates=True)


def _with_actions(frame: pl.DataFrame) -> pl.DataFrame:
    """Adds split and dividend, derived from the growth of adj_close / close between sessions."""
    factor = pl.col("adj_close") / pl.col("close")
    growth = (factor / factor.shift(1)).over("symbol").fill_null(1.0)
    split = pl.when(growth >= 1.5).then((growth * 2).round() / 2).otherwise(1.0)
    before = pl.col("close").shift(1).over("symbol") / split  # yesterday's close in today's shares
    kept = growth / split  # = 1 / (1 - dividend / before)
    dividend = pl.when(kept > 1 + 1e-9).then(before * (1 - 1 / kept)).otherwise(0.0)
    return frame.with_columns(split=split, dividend=dividend)


def _selected(
    bars: pl.DataFrame, symbols: Sequence[str] | None, start: date | None, end: date | None, source: str
) -> pl.DataFrame:
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
