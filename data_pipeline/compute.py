"""What is derived from a symbol's bars, in blocks of exchange sessions that always start from the same bar."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.adjusted import Bars, Column
from data_pipeline.features import (
    BLOCK_SESSIONS,
    DAILY_MEMORY_SESSIONS,
    INTRADAY_MEMORY_SESSIONS,
    Feature,
    FeatureSet,
    FeatureTimeframe,
)
from data_pipeline.intraday import closed_before

Rows = npt.NDArray[np.int64]


class Intraday(NamedTuple):
    """Bars within sessions, and the instant at which each closes."""

    bars: Bars
    ends: npt.NDArray[np.datetime64]


@dataclass(frozen=True)
class SymbolBars:
    """All that the features of one symbol may read, `[T]` rows of daily bars.

    Attributes:
        day: Daily bars.
        ordinal: Number of each row's session in the exchange's calendar.
        week_closes: True where the session is the last of its calendar week.
        close_at: Instant of each session's closing bell; needed with intraday bars only.
        intraday: Bars by timeframe.
    """

    day: Bars
    ordinal: Rows
    week_closes: npt.NDArray[np.bool_]
    close_at: npt.NDArray[np.datetime64] = field(default_factory=lambda: np.empty(0, "datetime64[us]"))
    intraday: Mapping[FeatureTimeframe, Intraday] = field(default_factory=dict)


class _View(NamedTuple):
    """Bars of a timeframe, and the newest closed one at each daily row (-1: none; None: the row itself)."""

    bars: Bars
    visible: Rows | None


def derived(
    symbol: SymbolBars, feature_set: FeatureSet, columns: Sequence[Callable[[Bars], Column]], since: int = 0
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """Returns features and functions of daily bars at the rows from `since` on, `[F, T - since]` and `[C, T - since]`.

    Both are NaN during warm-up.
    """
    total = len(symbol.day) - since
    features, others = np.empty((len(feature_set.features), total), np.float32), np.empty((len(columns), total))
    for block in blocks(symbol.ordinal, since):
        views, kept, tail = _views(symbol, block, feature_set), block.kept(since), block.tail(since)
        for row, feature in zip(features, feature_set.features, strict=True):
            row[kept] = _daily(feature, views[feature.timeframe])[tail]
        for other, compute in zip(others, columns, strict=True):
            other[kept] = compute(views["day"].bars)[tail]
    return features, others


class Block(NamedTuple):
    """Rows `begin` .. `stop` of one block of sessions, read from row `low` on."""

    low: int
    begin: int
    stop: int

    def kept(self, since: int) -> slice:
        """Where its rows go in a result that starts at row `since`."""
        return slice(max(self.begin, since) - since, self.stop - since)

    def tail(self, since: int) -> slice:
        """Which of the values computed from `low` on they are."""
        return slice(max(self.begin, since) - self.low, None)


def blocks(ordinal: Rows, since: int = 0) -> Iterator[Block]:
    """Yields the blocks that hold rows from `since` on."""
    edges = np.flatnonzero(np.diff(ordinal // BLOCK_SESSIONS)) + 1
    for begin, stop in pairwise((0, *edges.tolist(), len(ordinal))):
        if stop > since:
            yield Block(max(0, begin - DAILY_MEMORY_SESSIONS), begin, stop)


def _daily(feature: Feature, view: _View) -> Column:
    values = feature.compute(view.bars)
    if view.visible is None:
        return values
    if not len(values):
        return np.full(len(view.visible), np.nan)
    return np.where(view.visible >= 0, values[view.visible], np.nan)


def _views(symbol: SymbolBars, block: Block, feature_set: FeatureSet) -> dict[FeatureTimeframe, _View]:
    day = symbol.day[block.low : block.stop]
    views: dict[FeatureTimeframe, _View] = {"day": _View(day, None)}
    for timeframe in feature_set.timeframes - {"day"}:
        if timeframe == "week":
            views[timeframe] = _weeks(day, symbol.week_closes[block.low : block.stop])
        else:
            views[timeframe] = _within(symbol, timeframe, block)
    return views


def _weeks(day: Bars, closes: npt.NDArray[np.bool_]) -> _View:
    """Weekly bars; at a session the newest closed week is its own only if the session closes the week."""
    week = (day.session.view(np.int64) + 3) // 7  # 1970-01-01 was a Thursday
    begins = np.append(True, week[1:] != week[:-1])
    starts, number = np.flatnonzero(begins), np.cumsum(begins) - 1
    last = np.append(starts[1:], len(week)) - 1
    bars = Bars(
        day.open[starts],
        np.maximum.reduceat(day.high, starts),
        np.minimum.reduceat(day.low, starts),
        day.close[last],
        np.add.reduceat(day.volume, starts),
        session=day.session[last],
    )
    return _View(bars, np.where(closes, number, number - 1))


def _within(symbol: SymbolBars, timeframe: FeatureTimeframe, block: Block) -> _View:
    """Intraday bars; at a session the newest bar closed by its bell, if it is of that session."""
    bars, ends = symbol.intraday[timeframe]
    days = symbol.day.session
    oldest = days[max(0, block.begin - INTRADAY_MEMORY_SESSIONS)]
    rows = slice(
        int(np.searchsorted(bars.session, oldest)), int(np.searchsorted(bars.session, days[block.stop - 1], "right"))
    )
    bars, ends = bars[rows], ends[rows]
    if not len(bars):
        return _View(bars, np.full(block.stop - block.low, -1))
    visible = closed_before(ends, symbol.close_at[block.low : block.stop])
    own = bars.session[np.maximum(visible, 0)] == days[block.low : block.stop]
    return _View(bars, np.where(own, visible, -1))
