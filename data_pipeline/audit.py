"""The leakage audit: does anything said about a session change when later bars do?

Every bar after an instant is replaced by garbage, and once dropped; the pipeline builds again, and what it says
about the sessions up to the instant is compared bit for bit. What moved has read the future. Narrower
alterations of the same bars then tell how far it reads, and why:

| cause | what was seen |
|---|---|
| next session | it reads the session after, or part of it, and no more |
| window | it reads all of the next sessions: a window centred on the session, or ahead of it |
| shift | it reads a later session, and none nearer |
| back-fill | only cells moved that nothing but later bars could fill |
| longer bar | it moved inside a week, month or hour, never at its end: bars are labelled by their start |
| later action | later splits and dividends move it, later prices do not: it is adjusted backwards |
| whole sample | it reads to the end of the history, or of the block of sessions that is computed at once |
| own bar | said to be known at the open, it reads what its session brought after the open |
| scaler | the scaler's numbers depend on rows after the span that it was fitted on |
| length | it differs where the history stops, whatever follows: it counts, or shows a bar that still forms |
| axis | which sessions, symbols or features the panel holds depends on later bars |
| unstable | two builds of the same bars differ |

It is a test, not a proof: it finds the leaks that show at its instants. It holds several panels in memory; of
thousands of symbols audit a sample, for all are computed by the same code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import date
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipeline.assemble import build_panel
from data_pipeline.config import Config
from data_pipeline.errors import ConfigError, FoldError
from data_pipeline.features import BLOCK_SESSIONS, FeatureSet
from data_pipeline.folds import Span
from data_pipeline.leakage import Cause, Findings, Leak, furthest
from data_pipeline.panel import Panel
from data_pipeline.poison import Array, Bench, Build, Difference, Mask, Poisonable, differing
from data_pipeline.scaling import fit_scaler
from data_pipeline.sessions import month_closes, ordinals, schedule, week_closes

AT_THE_OPEN = frozenset({"open", "split", "dividend"})
"""Fields of a panel whose value at a session is known at its open."""
INSTANTS = 24
"""Sessions whose future is altered, unless the bars are very many."""
_FEWEST_INSTANTS, _ROWS_IN_ALL = 6, 12_000_000
_SCALER_INSTANTS, _SHORT_SPAN = 6, 63
_WARM_UP = 150


class Scales(Protocol):
    """What a pipeline's `fit` returns."""

    def transform(self, features: npt.NDArray[np.float32]) -> Array:
        """Returns scaled features, same shape `[..., F]`."""


class Pipeline(NamedTuple):
    """What is audited: any code that makes a panel of bars, and a scaler of a panel.

    Attributes:
        build: `(daily bars, 5-minute bars or None)` to a panel. It is called many times with altered bars, so
            it must read nothing but them.
        fit: `(panel, training span)` to a scaler.
        known_at_open: Columns whose value at a session is said to be known at its open.
    """

    build: Build
    fit: Callable[[Panel, Span], Scales] = fit_scaler
    known_at_open: frozenset[str] = AT_THE_OPEN


class Instant(Config):
    """A session whose future was altered."""

    session: date
    """Bars after it were altered."""
    why: str
    """Why it was chosen."""


class Audit(Config):
    """What an audit found, and what it looked at; `tree()` is JSON-ready."""

    leaks: tuple[Leak, ...]
    """One per column and cause, in the panel's order; empty: the audit passed."""
    instants: tuple[Instant, ...]
    """Sessions whose future was altered, oldest first."""
    columns: tuple[str, ...]
    """Features, then fields, that were compared."""
    symbols: int
    """Symbols of the panel."""
    sessions: int
    """Sessions of the panel."""
    builds: int
    """Panels that were built."""
    cells_compared: int
    """Values that were compared bit for bit."""
    scaler_spans: int
    """Training spans whose scaler was audited."""
    unmoved: tuple[str, ...]
    """Columns that no alteration moved even afterwards: they do not depend on what bars bring."""
    notes: tuple[str, ...]
    """What was left out, and why."""

    @property
    def passed(self) -> bool:
        """Whether nothing leaks."""
        return not self.leaks

    @property
    def looked_at(self) -> str:
        """What was compared, with its numbers."""
        return (
            f"{len(self.columns)} columns × {self.symbols} symbols at {len(self.instants)} of {self.sessions} sessions "
            f"and {self.scaler_spans} scalers: {self.cells_compared:,} values compared bit for bit"
        )


def pipeline_of(feature_set: FeatureSet, symbols: tuple[str, ...], exchange: str = "XNYS") -> Pipeline:
    """Returns the platform's own pipeline.

    Args:
        feature_set: What is computed.
        symbols: Of the panel; named, because bars that stop early may hold fewer.
        exchange: Exchange calendar.
    """
    at_open = {f.name for f in feature_set.features if f.timeframe == "day" and f.indicator.known_at == "open"}
    return Pipeline(
        lambda bars, intraday: build_panel(bars, feature_set, symbols, exchange, intraday=intraday),
        known_at_open=AT_THE_OPEN | at_open,
    )


def load_pipeline(target: str, feature_set: FeatureSet) -> Pipeline:
    """Returns the pipeline that `package.module:attribute` names, looked for in the working directory too.

    Args:
        target: The attribute is a `Pipeline`, or makes one of a `FeatureSet`.
        feature_set: What it is given.

    Raises:
        ConfigError: There is no such module or attribute, or it is something else.
    """
    module, _, attribute = target.partition(":")
    if not (module and attribute):
        raise ConfigError(f"pipeline {target!r}: write it as package.module:attribute")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        found = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"pipeline {target!r}: {error}; name a module that Python finds, here or installed, and what it holds"
        ) from error
    pipeline = found(feature_set) if callable(found) else found
    if not isinstance(pipeline, Pipeline):
        raise ConfigError(
            f"pipeline {target!r} is a {type(pipeline).__name__}; name a data_pipeline.audit.Pipeline, "
            "or a function of a FeatureSet that returns one"
        )
    return pipeline


def audit(
    bars: pl.DataFrame,
    pipeline: Pipeline,
    intraday: pl.DataFrame | None = None,
    sessions: Sequence[date] | None = None,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Audit:
    """Returns what of the pipeline's panel and scaler depends on the future, and why.

    Args:
        bars: Daily bars that passed `schema.checked`.
        pipeline: Is given these bars and altered ones.
        intraday: 5-minute bars, where the pipeline reads them.
        sessions: Alter what follows these; None: a choice over the whole history, with fewer the more bars.
        seed: Of the garbage and of the choice.
        on_progress: Called with the instants done and their number.

    Raises:
        BarsError: The history is too short, or the pipeline refuses the altered bars.
        ConfigError: The pipeline does not read the bars that it is given, or names unknown columns.
        StoreError: One of `sessions` is not in the panel.
    """
    bench = Bench(pipeline.build, Poisonable(bars, intraday, seed))
    if strange := sorted(pipeline.known_at_open - AT_THE_OPEN - set(bench.columns)):
        raise ConfigError(f"known_at_open names {', '.join(strange)}; the panel has no such column")
    count = _affordable(bench)
    chosen = _given(bench, sessions) if sessions else _chosen(bench, count, seed)
    findings = _looked(bench, pipeline, sorted(chosen), on_progress)
    scaler = _ScalerAudit(bench.truth, pipeline, sorted(chosen), seed)
    leaks = (*findings.leaks(), *scaler.leaks())
    order = {name: number for number, name in enumerate(bench.columns)}
    fewer = f"{count} instants only: building {bench.bars.rows:,} bars again and again takes long"
    return Audit(
        leaks=tuple(sorted(leaks, key=lambda leak: (order.get(leak.column, -1), leak.cause))),
        instants=tuple(Instant(session=bench.day(row), why=chosen[row]) for row in sorted(chosen)),
        columns=bench.columns,
        symbols=len(bench.truth.symbols),
        sessions=len(bench.truth.sessions),
        builds=bench.builds,
        cells_compared=bench.cells_compared,
        scaler_spans=len(scaler.spans),
        unmoved=tuple(name for name in bench.columns if name not in findings.reacted),
        notes=(*([fewer] if count < INSTANTS and not sessions else []), *bench.notes()),
    )


def _looked(
    bench: Bench, pipeline: Pipeline, rows: Sequence[int], on_progress: Callable[[int, int], None] | None
) -> Findings:
    findings = Findings(bench, pipeline.known_at_open)
    for done, row in enumerate(rows, 1):
        findings.look(row)
        if on_progress:
            on_progress(done, len(rows))
    return findings


def _affordable(bench: Bench) -> int:
    """Returns how many instants the number of bars allows."""
    return int(np.clip(_ROWS_IN_ALL // bench.bars.rows, _FEWEST_INSTANTS, INSTANTS))


def _given(bench: Bench, sessions: Sequence[date]) -> dict[int, str]:
    rows = {bench.truth.session_index(session): "asked for" for session in sessions}
    if (last := len(bench.truth.sessions) - 1) in rows:
        raise ConfigError(f"{bench.day(last)}: nothing follows the last session; name an earlier one")
    return rows


def _chosen(bench: Bench, count: int, seed: int) -> dict[int, str]:
    """Returns rows spread over the history, first those where leaks like to show, each with its reason."""
    rng, last = np.random.default_rng(seed), len(bench.truth.sessions) - 2
    chosen: dict[int, str] = {}
    for why, rows in _telling(bench):
        able = [row for row in np.flatnonzero(rows[: last + 1]).tolist() if row not in chosen]
        if able and len(chosen) < count:
            chosen[int(rng.choice(able))] = why
    edges = np.linspace(_first_intraday(bench), last + 1, count - len(chosen) + 1).astype(int)
    for low, high in pairwise(edges.tolist()):
        able = [row for row in range(low, high) if row not in chosen]
        if able:
            chosen[int(rng.choice(able))] = "at random"
    return chosen


def _telling(bench: Bench) -> Iterator[tuple[str, Mask]]:
    """Yields reasons, and the rows that they hold for, `[T]`, the most telling first."""
    truth, bars = bench.truth, bench.bars.day
    sessions, numbers = truth.sessions, ordinals(truth.sessions, truth.exchange)
    row = np.arange(len(sessions))
    week, month = (closes(sessions, truth.exchange) for closes in (week_closes, month_closes))
    early = row < min(_WARM_UP, len(row) // 3)
    yield "middle of a week", ~week & ~np.roll(week, 1) & ~early
    yield "last session of a week", week & ~early
    yield "early in the history", early & ~week & (row > 2)
    for name, none in (("split", 1.0), ("dividend", 0.0)):
        days = bars.filter(pl.col(name) != none)["session"].unique().to_numpy()
        yield f"session before a {name}", np.append(np.isin(sessions, days)[1:], False)
    if bench.bars.intraday is not None:
        yield from _telling_bells(truth, row >= _first_intraday(bench))
    yield "early in the history, last session of a week", early & week
    yield "early in the history, first sessions", row < 3
    yield "last session of a month", month & ~early
    yield "edge of a block", np.append(np.diff(numbers // BLOCK_SESSIONS) > 0, False)
    alive = truth.tradable
    lives = [(own.argmax(), len(own) - own[::-1].argmax()) for own in alive.T if own.any()]
    starts = max(first for first, _ in lives) if lives else 0
    yield "soon after a symbol's first session", (row > starts) & (row < starts + 20) & (starts > 0)
    gaps = np.zeros(len(row), bool)
    for own, (first, stop) in zip((own for own in alive.T if own.any()), lives, strict=True):
        gaps[first:stop] |= ~own[first:stop]
    yield "session on which a symbol did not trade", gaps
    yield "last session but one", row == len(row) - 2


def _telling_bells(truth: Panel, covered: Mask) -> Iterator[tuple[str, Mask]]:
    bells = schedule(truth.sessions[0].item(), truth.sessions[-1].item(), truth.exchange)
    opening, closing = (bells[name].to_numpy() for name in ("open", "close"))
    hours = closing - opening
    yield "half day", covered & (hours < hours.max())
    clock = opening - truth.sessions
    yield "session before a change of the clocks", covered & np.append(clock[1:] != clock[:-1], False)


def _first_intraday(bench: Bench) -> int:
    if bench.bars.intraday is None:
        return 0
    return int(np.searchsorted(bench.truth.sessions, bench.bars.intraday["session"].to_numpy().min()))


class _ScalerAudit:
    """Fits scalers again on panels whose rows after the training span are garbage, or missing.

    What the true features of the span become is compared, so that a leak of the features is not one of the scaler.
    """

    def __init__(self, truth: Panel, pipeline: Pipeline, rows: Sequence[int], seed: int) -> None:
        self._truth, self._fit = truth, pipeline.fit
        rng = np.random.default_rng(seed)
        self._garbage = rng.normal(scale=1e3, size=truth.features.shape[1:]).astype(np.float32)
        picked = rows[:: max(1, len(rows) // _SCALER_INSTANTS)]
        both = (Span(start, row + 1) for row in picked for start in (0, max(0, row + 1 - _SHORT_SPAN)))
        self.spans: dict[Span, Array] = {}
        """Training spans, and what their features become by the scaler that is fitted on them."""
        for span in (span for span in both if truth.ready[slice(*span)].any()):
            with suppress(FoldError):  # a fit may ask for more than one ready cell
                self.spans[span] = self._scaled(truth, span)

    def leaks(self) -> Iterator[Leak]:
        """Yields every feature whose scaling moved, at the first span where it did."""
        leaking: set[int] = set()
        for span, true in self.spans.items():
            causes: tuple[tuple[Cause, Panel], ...] = (
                ("unstable", self._truth),
                ("scaler", self._altered(span.stop)),
                ("scaler", self._cut(span.stop)),
            )
            for cause, panel in causes:
                scaled = self._scaled(panel, span)
                differs = differing(true, scaled)
                for f in set(np.flatnonzero(differs.any(axis=(0, 1))).tolist()) - leaking:
                    leaking.add(f)
                    found = Difference(self._truth.feature_names[f], differs[..., f], true[..., f], scaled[..., f])
                    yield self._leak(found, cause, span, f)

    def _leak(self, found: Difference, cause: Cause, span: Span, f: int) -> Leak:
        moved, newest = found.moved(), self._truth.sessions[span.stop - 1].item()
        reach, explanation = None, "two fits of the same rows differ; seed what is random"
        if cause == "scaler":
            reach = self._reach(found.before, span, f)
            explanation = f"fitted up to {newest}, its scaling depends on later rows; fit it on the training span only"
        return Leak(
            column=found.column,
            symbol=self._truth.symbols[moved.symbol],
            session=self._truth.sessions[span.start + moved.row].item(),
            altered_after=newest,
            cause=cause,
            reach_sessions=reach,
            explanation=explanation,
            before=moved.before,
            after=moved.after,
            cells=int(found.cells.sum()),
        )

    def _reach(self, true: Array, span: Span, f: int) -> int | None:
        """Returns how many rows after the span are read; None if only their absence shows."""

        def moves(ahead: int) -> bool:
            return bool(differing(true, self._scaled(self._altered(span.stop + ahead), span)[..., f]).any())

        return furthest(moves, len(self._truth.sessions) - span.stop) if moves(0) else None

    def _scaled(self, panel: Panel, span: Span) -> Array:
        return np.asarray(self._fit(panel, span).transform(self._truth.features[slice(*span)]))

    def _altered(self, start: int) -> Panel:
        features = self._truth.features.copy()
        features[start:] = self._garbage
        fields = {name: values.copy() for name, values in self._truth.fields.items()}
        for name, values in fields.items():
            values[start:] = 1e6 if name == "volume" else 3.0 * values[start:]
        return self._truth.changed(features=features, fields=fields)

    def _cut(self, stop: int) -> Panel:
        fields = {name: values[:stop] for name, values in self._truth.fields.items()}
        return self._truth.changed(
            sessions=self._truth.sessions[:stop], features=self._truth.features[:stop], fields=fields
        )
