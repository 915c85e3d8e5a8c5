"""Source to snapshot to panel, in one call."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable
from datetime import date
from pathlib import Path

import polars as pl
from pydantic import AwareDatetime

from data_pipeline.assemble import build_panel
from data_pipeline.errors import ConfigError, StoreError
from data_pipeline.features import FeatureSet
from data_pipeline.panel import FORMAT, Allocate, Panel, open_panel, write_panel
from data_pipeline.quality import QualityConfig, require
from data_pipeline.schema import Timeframe
from data_pipeline.sources.source import SourceConfig, source_of
from data_pipeline.store import Snapshot, Store

log = logging.getLogger(__name__)


class DataConfig(SourceConfig):
    """Which bars, and which features of them."""

    symbols: tuple[str, ...] | None = None
    """Tickers; none: all that the source holds."""
    start: date | None = None
    """First session; none: the source's first."""
    end: date | None = None
    """Last session; none: the source's last."""
    features: tuple[str, ...] | Path | None = None
    """Feature names in order, or a YAML file of them by group; none: the default set."""
    quality: QualityConfig = QualityConfig()
    """Thresholds of the checks that bars must pass."""
    audit: bool = True
    """Whether the leakage audit must pass before anything is trained on the panel; false lets a panel through, and
    every report says so."""
    snapshot: str | None = None
    """Id of a snapshot to build from instead of reading the source again, so that runs share the same bars."""
    as_of: AwareDatetime | None = None
    """Build from the newest snapshot of the source that the store held at this time; none: read the source."""
    store: str = "store"
    """Root of bar snapshots: a folder or an s3:// URI."""
    panels: Path = Path("store/panels")
    """Folder of built panels, on local disk, where they are memory-mapped."""

    @property
    def timeframes(self) -> tuple[Timeframe, ...]:
        """What must be fetched: daily bars, and 5-minute ones where a feature reads them."""
        return ("1Day", "5Min") if FeatureSet.of(self.features).needs_intraday else ("1Day",)


def fetch(config: DataConfig, on_progress: Callable[[int, int], None] = lambda *_: None) -> Snapshot:
    """Reads the source, checks its bars and commits them as a snapshot.

    A fetch over the network that failed goes on where it stopped when it is asked for again.

    Raises:
        SwingError: The source, the symbols or the bars are not fit for use; nothing is written then.
    """
    cache = config.panels.parent / "fetching"
    source = source_of(config, cache, on_progress)
    timeframes = config.timeframes
    tables = {t: source.fetch(config.symbols, config.start, config.end, t) for t in timeframes}
    require(tables["1Day"], config.exchange, config.quality, config.source)
    snapshot = Store(config.store).write(tables, source.provenance())
    shutil.rmtree(cache, ignore_errors=True)
    return snapshot


def chosen_snapshot(config: DataConfig, store: Store) -> Snapshot | None:
    """Returns the snapshot that `config` names by id or by time, None where it names none.

    Raises:
        StoreError: There is no such snapshot.
        ConfigError: Both are set.
    """
    if config.snapshot and config.as_of:
        raise ConfigError(f"snapshot={config.snapshot} and as_of={config.as_of}: set one of them")
    if config.snapshot:
        return store.snapshot(config.snapshot)
    if config.as_of is None:
        return None
    known = config.source in ("bundled", "alpaca", "world")
    series = {"source": config.source} if known else {"source": "files", "feed": Path(config.source).name}
    return store.as_of(config.as_of, series)


def build(
    config: DataConfig,
    snapshot: Snapshot | None = None,
    on_progress: Callable[[int, int], None] = lambda *_: None,
    anew: bool = False,
) -> Path:
    """Returns the folder of the panel built from a snapshot.

    Where a panel of the same features and symbols ends earlier, only the sessions after it are computed.

    Args:
        config: All settings.
        snapshot: Of the store that `config` names; None: see `chosen_snapshot`, else a new one of the source.
        on_progress: Is told (symbols done, symbols in all).
        anew: Compute all sessions, whatever panels there are.
    """
    feature_set = FeatureSet.of(config.features)
    store = Store(config.store)
    snapshot = snapshot or chosen_snapshot(config, store) or fetch(config)
    bars = store.read(snapshot.id)
    intraday = store.read(snapshot.id, "5Min") if feature_set.needs_intraday else None
    symbols = config.symbols or tuple(bars["symbol"].unique().sort())
    source = {"snapshot": snapshot.id, **snapshot.provenance}

    def make(allocate: Allocate, before: Panel | None = None) -> Panel:
        return build_panel(bars, feature_set, symbols, config.exchange, source, intraday, before, allocate, on_progress)

    before = None if anew else _earlier(config, feature_set, symbols, bars)
    if before is not None:
        try:
            return write_panel(lambda allocate: make(allocate, before), config.panels)
        except StoreError as error:
            log.warning("%s", error)
    return write_panel(make, config.panels)


def _earlier(config: DataConfig, feature_set: FeatureSet, symbols: tuple[str, ...], bars: pl.DataFrame) -> Panel | None:
    """Returns the longest panel that these bars may continue, if any."""
    wanted = {
        "format": FORMAT,
        "schema_hash": feature_set.schema_hash,
        "symbols": list(symbols),
        "exchange": config.exchange,
    }
    found: list[Panel] = []
    for head in config.panels.glob("[!.]*/panel.json"):
        if wanted.items() <= json.loads(head.read_text(encoding="utf-8")).items():
            panel = open_panel(head.parent)
            if panel.sessions[0] == bars["session"].min() and panel.sessions[-1] < bars["session"].max():
                found.append(panel)
    if feature_set.needs_intraday or not found:
        return None
    return max(found, key=lambda panel: len(panel.sessions))
