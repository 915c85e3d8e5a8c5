"""The interface of bar sources, and the choice of one by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Protocol

import polars as pl

from data_pipeline.config import Config
from data_pipeline.errors import ConfigError
from data_pipeline.schema import Timeframe
from data_pipeline.sources.alpaca import AlpacaBars, AlpacaConfig
from data_pipeline.sources.bundled import BundledBars
from data_pipeline.sources.columns import FilesConfig
from data_pipeline.sources.files import FileBars
from data_pipeline.sources.worlds import WorldBars, WorldConfig


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


class SourceConfig(Config):
    """Where bars come from."""

    source: str = "bundled"
    """'bundled' (history that ships in a package), 'alpaca', 'world' (a synthetic market), or the path of a file
    or folder of Parquet or CSV."""
    exchange: str = "XNYS"
    """Exchange calendar."""
    files: FilesConfig = FilesConfig()
    """What the columns of files are called and mean."""
    alpaca: AlpacaConfig = AlpacaConfig()
    """What is asked of Alpaca, and how patiently."""
    synthetic: WorldConfig = WorldConfig()
    """The synthetic market of source 'world'."""


def source_of(
    config: SourceConfig, cache: Path | None = None, on_progress: Callable[[int, int], None] = lambda *_: None
) -> BarSource:
    """Returns the source that `config` names.

    Args:
        config: The choice and its settings.
        cache: Folder where a source over the network keeps what it has, should it be interrupted.
        on_progress: Is told (requests done, requests in all) by a source over the network.

    Raises:
        ConfigError: There is none of this name, or its keys are absent.
    """
    if config.source == "bundled":
        return BundledBars()
    if config.source == "alpaca":
        return AlpacaBars(config.alpaca, cache, on_progress)
    if config.source == "world":
        return WorldBars(config.synthetic, config.exchange)
    if (path := Path(config.source)).exists():
        return FileBars(path, config.files, config.exchange)
    raise ConfigError(
        f"bar source {config.source!r}: give 'bundled', 'alpaca', 'world', or the path of a file or folder that exists"
    )
