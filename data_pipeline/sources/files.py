"""A user's own Parquet and CSV files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path

import polars as pl

from data_pipeline.errors import BarsError, ConfigError
from data_pipeline.schema import Timeframe, checked, selected


class FileBars:
    """A Parquet or CSV file with the columns of `data_pipeline.schema` (corporate actions optional)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fetch(
        self,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        timeframe: Timeframe = "1Day",
    ) -> pl.DataFrame:
        """See `BarSource.fetch`."""
        if timeframe != "1Day":
            raise ConfigError(f"{self.path}: holds daily bars, not {timeframe}")
        return selected(checked(self._read(), str(self.path)), symbols, start, end, str(self.path))

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


def _read_csv(path: Path) -> pl.DataFrame:
    return pl.read_csv(path, try_parse_dates=True)
