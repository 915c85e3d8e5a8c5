"""Whether a panel may be trained on: the leakage audit of its bars, once for each panel.

<panel>/audit.json    what the audit found, and the hash of the panel that it is about

A panel's folder is named by its content, the snapshot of its bars included, so other bars, features or values are
another panel and inherit nothing. A leak that is on record is looked for again before it stops anything: code that
was mended may make the same values. Very many bars are audited by a sample of their symbols, for all are computed by
the same code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import polars as pl

from data_pipeline.audit import Audit, audit, pipeline_of
from data_pipeline.build import DataConfig, build
from data_pipeline.config import Config
from data_pipeline.errors import ConfigError, RunError, StoreError, SwingError
from data_pipeline.features import FeatureSet
from data_pipeline.leakage import Leak
from data_pipeline.panel import open_panel
from data_pipeline.store import Store

log = logging.getLogger(__name__)

KEPT = "audit.json"
_MOST_BARS = 50_000
_MOST_NAMED = 8


class Clearance(Config):
    """What is known of a panel that something is trained on; without any values, nothing is."""

    forced: bool = False
    """Whether the panel was let through whatever the audit would find (data.audit=false)."""
    leaks: tuple[Leak, ...] = ()
    """What the audit found to read ahead."""
    looked_at: str = ""
    """What the audit compared; empty: it was not run."""
    unable: str = ""
    """Why it could not be run."""

    @property
    def suspect(self) -> bool:
        """Whether nothing that is trained on the panel may be relied on."""
        return self.forced or bool(self.leaks)

    @property
    def may_promote(self) -> bool:
        """Whether the audit passed, or could not be run on such bars."""
        return not self.suspect and bool(self.looked_at or self.unable)

    @property
    def says(self) -> str:
        """What is known, in a sentence or two."""
        if self.leaks:
            found = f"finds what sees the future: {read_ahead(self.leaks)}."
        elif self.looked_at:
            found = f"finds nothing that sees the future: {self.looked_at}."
        else:
            why = f"could not be run ({self.unable})" if self.unable else "is not on record"
            found = f"{why}, so nothing tells whether features see the future."
        if self.forced:
            return f"The panel was forced through (data.audit=false). The leakage audit {found}"
        return f"The leakage audit {found}"


def cleared(config: DataConfig, on_progress: Callable[[int, int], None] = lambda *_: None) -> tuple[Path, Clearance]:
    """Builds the panel, audits it if nobody did before, and returns its folder and what is known of it.

    All sessions are computed: a panel to continue may have been built by code that leaked.

    Args:
        config: All settings.
        on_progress: Is told (sessions looked at, sessions in all) while the audit runs.

    Raises:
        RunError: The audit found a leak, and must pass (data.audit).
    """
    folder = build(config, anew=True)
    known = kept_clearance(folder, config)
    if known is None or (known.leaks and config.audit):
        known = _audited(folder, config, on_progress)
    if known.leaks and config.audit:
        raise RunError(
            f"the leakage audit finds what sees the future: {read_ahead(known.leaks)}; mend or drop it (`swing-data "
            "audit` tells more), or train on it all the same with --set data.audit=false, which every report will say"
        )
    if known.suspect or not known.looked_at:
        log.warning("%s", known.says)
    return folder, known


def kept_clearance(folder: Path, config: DataConfig) -> Clearance | None:
    """Returns what is on record of the panel in a folder; None if the audit was not run."""
    try:
        tree = json.loads((folder / KEPT).read_text(encoding="utf-8"))
        if tree["panel"] != _panel_hash(folder):
            return None
        found = {"leaks": tree["leaks"], "looked_at": tree["looked_at"]}
        return Clearance.of({**found, "forced": not config.audit}, str(folder / KEPT))
    except (OSError, ValueError, KeyError, TypeError, ConfigError):
        return None  # of another version, or torn by other hands: the audit is run again


def read_ahead(leaks: Iterable[Leak]) -> str:
    """Returns the columns that leak, each with its cause and how far ahead it reads, in one line."""
    told = [f"{leak.column} ({', '.join((leak.cause, *_reach(leak)))})" for leak in leaks]
    more = len(told) - _MOST_NAMED
    return ", ".join(told[:_MOST_NAMED]) + (f" and {more} more" if more > 0 else "")


def _reach(leak: Leak) -> tuple[str, ...]:
    sessions = leak.reach_sessions
    return (f"{sessions} session{'s' * (sessions != 1)} ahead",) if sessions else ()


def _audited(folder: Path, config: DataConfig, on_progress: Callable[[int, int], None]) -> Clearance:
    try:
        found, sampled = _audit(folder, config, on_progress)
    except SwingError as error:
        return Clearance(forced=not config.audit, unable=str(error))
    clearance = Clearance(forced=not config.audit, leaks=found.leaks, looked_at=f"{found.looked_at}{sampled}")
    _keep(folder, clearance)
    return clearance


def _audit(folder: Path, config: DataConfig, on_progress: Callable[[int, int], None]) -> tuple[Audit, str]:
    """Returns what the audit finds in the bars that a panel was built from, and a remark where it took a sample."""
    panel, store, feature_set = open_panel(folder), Store(config.store), FeatureSet.of(config.features)
    snapshot, symbols, sampled = panel.source["snapshot"], panel.symbols, ""
    tables = [store.read(snapshot, timeframe) for timeframe in config.timeframes]
    if sum(table.height for table in tables) > _MOST_BARS:
        symbols = _sample(tables, symbols)
        sampled = f", in a sample of {len(panel.symbols)} symbols" if len(symbols) < len(panel.symbols) else ""
        tables = [table.filter(pl.col("symbol").is_in(symbols)) for table in tables]
    pipeline = pipeline_of(feature_set, symbols, panel.exchange)
    return audit(tables[0], pipeline, tables[1] if len(tables) > 1 else None, on_progress=on_progress), sampled


def _sample(tables: list[pl.DataFrame], symbols: tuple[str, ...]) -> tuple[str, ...]:
    """Returns as many symbols as can be audited, spread over those that have bars."""
    rows, held = sum(table.height for table in tables), set(tables[0]["symbol"].unique())
    able = [symbol for symbol in symbols if symbol in held] or list(symbols)
    count = max(1, len(held) * _MOST_BARS // rows)
    return tuple(able[at] for at in np.unique(np.linspace(0, len(able) - 1, count).astype(int)))


def _keep(folder: Path, clearance: Clearance) -> None:
    """Writes what was found into the panel's folder, whole or not at all."""
    tree = clearance.tree()
    body = {"panel": _panel_hash(folder), "leaks": tree["leaks"], "looked_at": tree["looked_at"]}
    scratch = folder / f".{KEPT}.{uuid.uuid4().hex[:8]}"
    try:
        scratch.write_text(json.dumps(body, indent=1), encoding="utf-8")
        scratch.replace(folder / KEPT)
    except OSError as error:
        raise StoreError(f"{folder}: cannot keep the audit ({error}); free space or choose another folder") from error


def _panel_hash(folder: Path) -> str:
    """Returns the hash of a panel's head, which holds those of its arrays."""
    return hashlib.sha256((folder / "panel.json").read_bytes()).hexdigest()
