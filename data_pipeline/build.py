"""Source to snapshot to panel, in one call."""

from __future__ import annotations

from datetime import date
from pathlib import Path

from data_pipeline.config import Config
from data_pipeline.features import FeatureSet
from data_pipeline.panel import build_panel, save_panel
from data_pipeline.sources.source import source_of
from data_pipeline.store import Snapshot, Store


class DataConfig(Config):
    """Which bars, and which features of them."""

    source: str = "bundled"
    """'bundled' (history that ships in a package) or the path of a Parquet or CSV file."""
    symbols: tuple[str, ...] | None = None
    """Tickers; none: all that the source holds."""
    start: date | None = None
    """First session; none: the source's first."""
    end: date | None = None
    """Last session; none: the source's last."""
    exchange: str = "XNYS"
    """Exchange calendar."""
    features: tuple[str, ...] | None = None
    """Feature names in order; none: the default set."""
    store: str = "store"
    """Root of bar snapshots: a folder or an s3:// URI."""
    panels: Path = Path("store/panels")
    """Folder of built panels, on local disk, where they are memory-mapped."""


def fetch(config: DataConfig) -> Snapshot:
    """Reads the source, checks its bars and commits them as a snapshot.

    Raises:
        SwingError: The source, the symbols or the bars are not fit for use; nothing is written then.
    """
    source = source_of(config.source)
    bars = source.fetch(config.symbols, config.start, config.end)
    return Store(config.store).write(bars, source.provenance())


def build(config: DataConfig, snapshot: Snapshot | None = None) -> Path:
    """Returns the folder of the panel built from `snapshot` (None: fetch one first)."""
    feature_set = FeatureSet.of(config.features)
    snapshot = snapshot or fetch(config)
    bars = Store(config.store).read(snapshot.id)
    source = {"snapshot": snapshot.id, **snapshot.manifest["provenance"]}
    return save_panel(build_panel(bars, feature_set, config.symbols, config.exchange, source), config.panels)
