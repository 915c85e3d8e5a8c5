"""What of a panel moves when later bars are altered, how far ahead it reads, and why; see `data_pipeline.audit`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import date
from typing import Literal, NamedTuple

import numpy as np
import polars as pl

from data_pipeline.config import Config
from data_pipeline.errors import BarsError, ConfigError
from data_pipeline.features import BLOCK_SESSIONS
from data_pipeline.panel import Panel
from data_pipeline.poison import (
    AFTER_THE_OPEN,
    Array,
    Bench,
    Difference,
    Mask,
    Moved,
    Poison,
    column_of,
    columns_of,
    differing,
    filled_out,
    overlap,
)
from data_pipeline.sessions import bells_of, month_ends, ordinals, week_ends

Cause = Literal[
    "next session",
    "window",
    "shift",
    "back-fill",
    "longer bar",
    "later action",
    "whole sample",
    "own bar",
    "scaler",
    "length",
    "axis",
    "unstable",
]
# Of the sessions left: a median may stay where it is when only the last ones are altered.
_TO_THE_END, _FEW_LEFT = 0.9, 10


class Leak(Config):
    """A column that moved, and why."""

    column: str
    """Feature, field of the panel, or axis (sessions, symbols, features)."""
    symbol: str | None
    """Where it was seen first; none: it concerns all."""
    session: date
    """Earliest session that moved."""
    altered_after: date
    """It moved when bars after this session were altered."""
    cause: Cause
    """See `data_pipeline.audit`."""
    reach_sessions: int | None
    """Sessions ahead that are read; none where that has no meaning."""
    explanation: str
    """What it does, and what to do."""
    before: float | None
    """Value from the true bars; none: not finite."""
    after: float | None
    """Value from the altered bars; none: not finite."""
    cells: int
    """Cells, of sessions and symbols, that moved at any instant."""

    def __str__(self) -> str:
        """Returns the leak in one line."""
        where = " ".join(map(str, filter(None, (self.column, self.symbol, self.session))))
        values = " → ".join("undefined" if value is None else f"{value:.6g}" for value in (self.before, self.after))
        moved = f" ({values}; {self.cells} cells)" if self.cells else ""
        return f"{where}: {self.cause}: {self.explanation}{moved}"


class _Sighting(NamedTuple):
    """What moved of one column at one instant.

    Attributes:
        row: The instant.
        moved: What moved, by kind of alteration.
        filled: Whether only cells moved that nothing but later bars could fill.
    """

    row: int
    moved: dict[str, Moved]
    filled: bool

    @property
    def first(self) -> Moved:
        """The earliest."""
        return min(self.moved.values(), key=lambda moved: moved.row)


class _Why(NamedTuple):
    cause: Cause
    reach: int | None
    explanation: str


class Findings:
    """Looks at instants one by one, then says what leaked and why."""

    def __init__(self, bench: Bench, known_at_open: frozenset[str]) -> None:
        self.bench, self._known_at_open = bench, known_at_open
        self.reacted: set[str] = set()
        self._rows: list[int] = []
        self._seen: dict[str, list[_Sighting]] = {}
        self._cells: dict[str, Mask] = {}
        self._own: dict[str, list[tuple[int, Moved]]] = {}
        self._axes: dict[str, Leak] = {}
        self._unstable = {found.column: found for found in bench.unstable()}

    def look(self, row: int) -> None:
        """Alters what follows a row and keeps what moved.

        Raises:
            BarsError: The pipeline refuses the bars.
            ConfigError: Nothing moved, not even afterwards.
        """
        bench, poison = self.bench, Poison(self.bench.day(row))
        wild = bench.panel(poison)
        if wild is None:
            error = bench.refusals[poison]
            raise BarsError(
                f"the pipeline refuses altered bars after {poison.after} ({error}); "
                "audit it without its own checks, or from later sessions on"
            ) from error
        self._react(wild, row)
        found = {"garbage": self._differences(wild, row)}
        self._look_at_the_open(wild, row)
        del wild  # a panel may take gigabytes
        found["gaps"] = self._differences(bench.panel(poison._replace(kind="gaps")), row)
        short = bench.panel(poison._replace(kind="drop"))
        found["drop"] = self._differences(short, row)
        self._rows.append(row)
        for name in set().union(*found.values()) - self._unstable.keys():
            seen = {kind: by_name[name] for kind, by_name in found.items() if name in by_name}
            cells = self._cells.setdefault(name, np.zeros(bench.truth.tradable.shape, bool))
            for difference in seen.values():
                cells[: row + 1] |= difference.cells
            filled = short is not None and _only_filled(bench.truth, short, list(seen.values()))
            moved = {kind: difference.moved() for kind, difference in seen.items()}
            self._seen.setdefault(name, []).append(_Sighting(row, moved, filled))

    def leaks(self) -> Iterator[Leak]:
        """Yields every column that moved, with its cause."""
        last = len(self.bench.truth.sessions) - 1
        for name, found in self._unstable.items():
            why = _Why("unstable", None, "two builds of the same bars differ; seed what is random")
            yield self._leak(name, found.moved(), last, why, int(found.cells.sum()))
        yield from self._axes.values()
        for name, seen in self._seen.items():
            first = min(seen, key=lambda sighting: (sighting.first.row, sighting.row))
            yield self._leak(name, first.first, first.row, self._why(name, seen), int(self._cells[name].sum()))
        for name, own in self._own.items():
            row, moved = own[0]
            yield self._leak(name, moved, row, self._why_own(name, row), sum(int(m.now.sum()) for _, m in own))

    def _leak(self, name: str, moved: Moved, after: int, why: _Why, cells: int) -> Leak:
        return Leak(
            column=name,
            symbol=self.bench.truth.symbols[moved.symbol],
            session=self.bench.day(moved.row),
            altered_after=self.bench.day(after),
            cause=why.cause,
            reach_sessions=why.reach,
            explanation=why.explanation,
            before=moved.before,
            after=moved.after,
            cells=cells,
        )

    def _react(self, wild: Panel, row: int) -> None:
        """Notes the columns that moved after the instant: without any, the audit would prove nothing."""
        truth, proven = self.bench.truth, False
        # Fields first: one of them settles it once all features have been seen to react.
        for name in reversed(self.bench.columns):
            if proven and name in self.reacted:
                continue
            if name not in columns_of(wild) or _moved_after(column_of(truth, name), column_of(wild, name), row):
                proven = True
                self.reacted.add(name)
        if not proven:
            raise ConfigError(
                f"altering all bars after {self.bench.day(row)} changes nothing in the panel, so an audit would prove "
                "nothing; let the pipeline's build read the bars that it is given, and return new arrays"
            )

    def _differences(self, other: Panel | None, row: int) -> dict[str, Difference]:
        """Returns what moved up to the row: nothing where the symbols did, which may move anything."""
        if other is None:
            return {}
        for axis, symbol, explanation in _moved_axes(self.bench.truth, other, row + 1):
            leak = Leak(
                column=axis,
                symbol=symbol,
                session=self.bench.day(row),
                altered_after=self.bench.day(row),
                cause="axis",
                reach_sessions=None,
                explanation=explanation,
                before=None,
                after=None,
                cells=0,
            )
            self._axes.setdefault(axis, leak)
            if axis == "symbols":
                return {}
        return {found.column: found for found in self.bench.differences(self.bench.truth, other, row + 1)}

    def _look_at_the_open(self, wild: Panel, row: int) -> None:
        """Alters, on top of what follows, what the session brought after its open."""
        own = self.bench.panel(Poison(self.bench.day(row), own=(*AFTER_THE_OPEN, "intraday")))
        if own is None or wild.symbols != self.bench.truth.symbols:
            return
        for found in self.bench.differences(wild, own, row + 1):
            found.cells[:-1] = False
            if found.column in self._known_at_open - self._unstable.keys() and found.cells.any():
                self._own.setdefault(found.column, []).append((row, found.moved()))

    def _why_own(self, name: str, row: int) -> _Why:
        day = self.bench.day(row)
        read = []
        for part in (*AFTER_THE_OPEN, "intraday"):
            moved = self.bench.moved(row, Poison(day, own=(part,)), against=Poison(day)).get(name)
            if moved is not None and moved.now.any():
                read.append("intraday bars" if part == "intraday" else part)
        what = " and ".join(read) or "later bars"
        return _Why(
            "own bar", 0, f"said to be known at the open, it reads its own session's {what}; shift it by a session"
        )

    def _why(self, name: str, seen: list[_Sighting]) -> _Why:
        by_garbage = [sighting for sighting in seen if "garbage" in sighting.moved]
        if not by_garbage:
            what = "it differs where later bars are missing: it counts them, or shows a bar that is still forming"
            return _Why("length", None, f"{what}; count from the first session, show closed bars only")
        probe = _Probe.of(self.bench, name, by_garbage)
        reach = probe.reach()
        if all(sighting.filled for sighting in by_garbage):
            return _Why("back-fill", reach, f"filled from {reach} sessions ahead; leave undefined what is undefined")
        if probe.only_by_actions():
            return _Why(
                "later action", reach, "later splits and dividends rescale it; adjust from the first session on"
            )
        longer = self._longer_bar(probe, reach, {sighting.row for sighting in seen})
        if longer is not None:
            return _Why("longer bar", reach, f"a {longer} is seen before it closes; label bars by their end")
        return self._why_ahead(probe, reach)

    def _why_ahead(self, probe: _Probe, reach: int) -> _Why:
        others = probe.others()
        for end, left in self._ends(probe.row):
            if reach >= _TO_THE_END * left and left >= _FEW_LEFT:
                return _Why("whole sample", reach, f"it reads to the end of {end}{others}; use past bars only")
        if reach == 1:
            minutes = probe.minutes()
            what = "the next session" if minutes is None else f"{minutes} minutes of the next session"
            return _Why("next session", reach, f"it reads {what}{others}; shift it by a session")
        if probe.reads_between(reach):
            what = f"all of the next {reach} sessions{others}: a window of {2 * reach + 1} centred on the session"
            return _Why("window", reach, f"it reads {what}, or one ahead; let it end with the session")
        what = f"{reach} sessions ahead{others}, nothing nearer: a shift by -{reach}"
        return _Why("shift", reach, f"it reads {what}; shift the other way")

    def _ends(self, row: int) -> Iterator[tuple[str, int]]:
        """Yields what a whole sample may be, and how many sessions of it follow a row."""
        truth = self.bench.truth
        yield "the history", len(truth.sessions) - 1 - row
        block = ordinals(truth.sessions, truth.exchange) // BLOCK_SESSIONS
        yield f"its block of {BLOCK_SESSIONS} sessions", int(np.searchsorted(block, block[row], side="right")) - 1 - row

    def _longer_bar(self, probe: _Probe, reach: int, leaked: set[int]) -> str | None:
        """Returns the longer bar whose closes are the instants that show nothing, if there is one."""
        quiet = self._quiet(probe.column, leaked)
        if not quiet:
            return None
        sessions, exchange = self.bench.truth.sessions, self.bench.truth.exchange
        for period, ends in (("week", week_ends), ("month", month_ends)):
            closes = np.searchsorted(sessions, ends(sessions, exchange), side="right") - 1
            left = closes - np.arange(len(sessions))
            if reach <= left[probe.row] and (left[list(leaked)] > 0).all() and (left[quiet] == 0).mean() > 0.5:
                return period  # garbage may, by chance, not move a bar that forms
        minutes = probe.minutes() if reach == 1 else None
        return None if minutes is None else f"bar that ends {minutes} minutes into the next session"

    def _quiet(self, name: str, leaked: set[int]) -> list[int]:
        """Returns the instants at which the column had a value, and nothing moved it."""
        values = column_of(self.bench.truth, name)
        return [row for row in self._rows if row not in leaked and np.isfinite(values[row]).any()]


class _Probe(NamedTuple):
    """One cell that moved when bars after its row were altered, to be tried with narrower alterations."""

    bench: Bench
    column: str
    symbol: int
    row: int

    @classmethod
    def of(cls, bench: Bench, column: str, seen: list[_Sighting]) -> _Probe:
        """Returns the earliest cell that garbage moved at its own instant, else any that it moved."""
        moved = [(sighting.row, sighting.moved["garbage"]) for sighting in seen]
        for row, garbage in moved:
            if garbage.now.any():
                return cls(bench, column, int(np.argmax(garbage.now)), row)
        return cls(bench, column, moved[0][1].symbol, moved[0][0])

    @property
    def after(self) -> Poison:
        return Poison(self.bench.day(self.row))

    def moves(self, poison: Poison, against: Poison | None = None) -> bool:
        """Returns whether the symbol's column moves up to the row."""
        moved = self.bench.moved(self.row, poison, against).get(self.column)
        return moved is not None and bool(moved.who[self.symbol])

    def reach(self) -> int:
        """Returns how many sessions ahead are read."""
        left = len(self.bench.truth.sessions) - 1 - self.row
        return furthest(lambda ahead: self.moves(Poison(self.bench.day(self.row + ahead))), left)

    def only_by_actions(self) -> bool:
        """Returns whether later splits and dividends move it, and nothing else does where there are none."""
        plain = self.after._replace(kind="no actions")
        return self.moves(self.after._replace(kind="actions")) and not self.moves(
            self.after._replace(kind="garbage without actions"), against=plain
        )

    def reads_between(self, reach: int) -> bool:
        """Returns whether bars nearer than the farthest that is read move the cell without it."""
        plain = self.after._replace(kind="no actions")
        wild = self.after._replace(kind="garbage without actions", until=self.bench.day(self.row + reach - 1))
        moved = self.bench.moved(self.row, wild, against=plain).get(self.column)
        return moved is not None and bool(moved.now[self.symbol])

    def others(self) -> str:
        """Returns a remark if later bars of other symbols move it."""
        symbols = self.bench.truth.symbols
        if len(symbols) == 1 or not self.moves(self.after._replace(spared=symbols[self.symbol])):
            return ""
        return ", of other symbols too"

    def minutes(self) -> int | None:
        """Returns how far into the next session intraday bars are read, None if daily ones are."""
        intraday = self.bench.bars.intraday
        if intraday is None or self.moves(self.after._replace(table="day")):
            return None
        following = intraday.filter(pl.col("session") == self.bench.day(self.row + 1))
        ends = following["end"].unique().sort()
        if not self.moves(self.after._replace(table="intraday")) or ends.is_empty():
            return None
        bars = furthest(
            lambda read: self.moves(self.after._replace(table="intraday", instant=ends[read - 1])), len(ends)
        )
        opening = bells_of(following["session"][:1], self.bench.truth.exchange)["open"][0]
        return int((ends[bars - 1] - opening).total_seconds()) // 60


def furthest(moves: Callable[[int], bool], most: int) -> int:
    """Returns how many steps ahead are read, 1 to `most`: altering what lies beyond fewer moves the value.

    Args:
        moves: Whether altering all beyond so many steps does; asked for 1 .. `most` - 1.
        most: Steps there are.
    """
    low, high = 0, 1
    while high < most and moves(high):
        low, high = high, min(2 * high, most)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if moves(middle) else (low, middle)
    return low + 1


def _moved_after(a: Array, b: Array, row: int) -> bool:
    return a.shape != b.shape or bool(differing(a[row + 1 :], b[row + 1 :]).any())


def _only_filled(truth: Panel, short: Panel, found: Sequence[Difference]) -> bool:
    """Returns whether all cells that moved are undefined without later bars, and nothing before them is defined.

    A cell of a session on which the symbol did not trade may follow defined ones.
    """
    rows = len(found[0].cells)
    here, there = overlap(truth, short, rows)
    if found[0].column not in columns_of(short):
        return False
    told = column_of(short, found[0].column)
    undefined = np.isnan(filled_out(told[there].astype(np.float64), here, found[0].cells.shape))
    fillable = undefined & (np.logical_and.accumulate(undefined, axis=0) | ~truth.tradable[:rows])
    return all(bool(fillable[difference.cells].all()) for difference in found)


def _moved_axes(truth: Panel, other: Panel, rows: int) -> Iterator[tuple[str, str | None, str]]:
    """Yields axis, symbol and explanation of what the other panel holds up to a session that the true one does not."""
    known = truth.sessions[:rows]
    theirs = other.sessions[other.sessions <= known[-1]]
    if not np.array_equal(known, theirs):
        yield "sessions", None, f"{len(theirs)} sessions up to here instead of {rows} when later bars are altered"
    lost = [symbol for symbol in _traded(truth, rows) if symbol not in other.symbols]
    new = [symbol for symbol in _traded(other, len(theirs)) if symbol not in truth.symbols]
    both = [[symbol for symbol in a.symbols if symbol in b.symbols] for a, b in ((truth, other), (other, truth))]
    if lost or new or both[0] != both[1]:
        what = "the choice of symbols" if lost or new else "the order of symbols"
        yield "symbols", next(iter(lost + new), None), f"{what} depends on later bars; name them beforehand"
    if truth.feature_names != other.feature_names:
        yield "features", None, "which features there are depends on later bars; name them beforehand"


def _traded(panel: Panel, rows: int) -> list[str]:
    """Returns the symbols with volume in the first rows."""
    return [symbol for n, symbol in enumerate(panel.symbols) if panel.tradable[:rows, n].any()]
