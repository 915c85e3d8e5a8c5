"""The interface of bar sources, and the choice of one by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Protocol

import polars as pl

from data_pipeline.errors import ConfigError
from data_pipeline.schema import Timeframe
from data_pipeline.sources.bundled import BundledBars
from data_pipeline.sources.files import FileBars


class BarSource(Protocol):
    """Where bars come from."""

    def fetch(
        self,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        timeframe: Timeframe = "1Day",
    ) -> pl.DataFrame:
        """Returns checked bars of `symbols` (None: all) from `start` to `end`, both included.

        Raises:
            UnknownSymbolError: A symbol that the source does not hold.
            BarsError: The bars are not fit for use.
        """

    def provenance(self) -> Mapping[str, str]:
        """Returns what a manifest records: source, feed, adjustment, version."""


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
