"""The panel as the simulator reads it: one gather of a row of features or bars for each (symbol, session).

A row number is symbol · T + session, so the next session of a symbol is the next row. The arrays are those of the
panel, shared with every process of the node; nothing here grows with the number of symbols but three numbers each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import FoldError
from data_pipeline.panel import COLUMNS, Panel, open_panel
from data_pipeline.scaling import Scaler, scaled
from envs.contract import Bools, Floats, Floats32, Ints
from envs.portfolio import Bars

_AT = {name: k for k, name in enumerate(COLUMNS)}
_SYMBOLS_ABREAST = 64
_ROWS_ABREAST = 2048


class Starts(NamedTuple):
    """Where episodes may start: runs of sessions, so that a draw needs no list of all of them.

    Attributes:
        symbol: Column of each run, `[M]`.
        first: Its first session row, `[M]`.
        after: Number of starts in this run and all before it, `[M]`.
    """

    symbol: Ints
    first: Ints
    after: Ints

    def draw(self, luck: Floats) -> tuple[Ints, Ints]:
        """Returns symbol columns and session rows, every start equally likely, for uniform `luck` in [0, 1)."""
        place = np.minimum((luck * self.after[-1]).astype(np.int64), self.after[-1] - 1)
        run = np.searchsorted(self.after, place, side="right")
        before = np.where(run > 0, self.after[run - 1], 0)
        return self.symbol[run], self.first[run] + place - before


class _Scratch:
    """Arrays for so many rows, kept between calls: large ones would cost a page fault for each page anew.

    Scaling is twice as quick on arrays of one shape, so the scaler's numbers are repeated here.
    """

    def __init__(self, rows: int, scaler: Scaler) -> None:
        self.rows = rows
        self.bars: Floats = np.empty((rows, len(COLUMNS)))
        self.features: Floats32 = np.empty((rows, len(scaler.median)), np.float32)
        self.median, self.spread = (
            np.tile(np.asarray(numbers, np.float32), (rows, 1)) for numbers in (scaler.median, scaler.spread)
        )


class Market:
    """Read-only market data for any number of slots.

    Attributes:
        panel: As stored.
        sessions: T.
        feature_count: F.
        last_bar: Row of each symbol's last bar, `[N]`.
    """

    def __init__(self, panel: Panel, scaler: Scaler) -> None:
        self.panel, self.scaler = panel, scaler
        self.sessions, self.feature_count = len(panel.sessions), len(panel.feature_names)
        self.last_bar: Ints = panel.last_bar_N
        self._features: Floats32 = panel.features_NTF.reshape(-1, self.feature_count)
        self._bars: Floats = panel.bars_NTK.reshape(-1, len(COLUMNS))
        self._scratch = _Scratch(0, scaler)
        self._ready_run: npt.NDArray[np.int32] = panel.ready_run_NT.reshape(-1)

    @classmethod
    def open(cls, panel: str, scaler: dict[str, Any]) -> Market:
        """Returns the market of a saved panel; the arguments are plain so that they travel to workers."""
        return cls(open_panel(Path(panel)), Scaler.of(scaler, "scaler"))

    def bars_at(self, rows: Ints) -> Floats:
        """Returns the bars of `rows`, `[K, *rows.shape]`, K in the order of the panel's `COLUMNS`."""
        bars = self._scratch_for(rows.size).bars[: rows.size]
        # Row numbers are ours and inside; the default mode would copy once more.
        self._bars.take(rows.ravel(), axis=0, out=bars, mode="clip")
        return bars.T.copy().reshape(-1, *rows.shape)

    def features_at(self, rows: Ints, out: Floats32 | None = None) -> Floats32:
        """Returns scaled features of `rows` `[B]`, `[B, F]`: in `out`, or a fresh array."""
        count, scratch = len(rows), self._scratch_for(len(rows))
        features = scratch.features[:count]
        self._features.take(rows, axis=0, out=features, mode="clip")
        scaled(features, scratch.median[:count], scratch.spread[:count], self.scaler.clip, features)
        if out is None:
            return features.copy()
        out[...] = features
        return out

    def many_features_at(self, rows: Ints) -> Floats32:
        """Returns scaled features `[*rows.shape, F]`, the bits of `features_at`.

        For many rows at once: they pass through a scratch that stays the size of a step's.
        """
        flat = rows.ravel()
        features = np.empty((flat.size, self.feature_count), np.float32)
        for low in range(0, flat.size, _ROWS_ABREAST):
            piece = slice(low, low + _ROWS_ABREAST)
            self.features_at(flat[piece], features[piece])
        return features.reshape(*rows.shape, -1)

    def _scratch_for(self, rows: int) -> _Scratch:
        if self._scratch.rows < rows:
            self._scratch = _Scratch(rows, self.scaler)
        return self._scratch

    def ready_at(self, rows: Ints) -> Bools:
        """Returns where a target may be set, same shape as `rows`."""
        return self._ready_run.take(rows) > 0

    def slot_starts(self, start: int, stop: int, length: int) -> Starts:
        """Returns where an episode of one symbol may start inside the rows [start, stop).

        It has `length` decisions and their fills inside the span, and the symbol is ready from the first
        decision on, to the end or until it is delisted.

        Raises:
            FoldError: Nowhere.
        """
        runs = [np.empty((0, 3), np.int64)]
        for low in range(0, len(self.last_bar), _SYMBOLS_ABREAST):
            ready = self.panel.ready_run_NT[low : low + _SYMBOLS_ABREAST, start:stop]
            whole = ready[:, length:] > length
            for column, last in enumerate(self.last_bar[low : low + _SYMBOLS_ABREAST] - start):
                if 0 <= last < whole.shape[1] + length - 1:  # delisted inside the span
                    t = np.arange(max(last - length + 1, 0), min(last + 1, whole.shape[1]))
                    whole[column, t] = ready[column, last] > last - t
            runs.append(_runs(whole) + np.array([low, start, 0]))
        return _starts(np.concatenate(runs), start, stop, length)

    def account_starts(self, start: int, stop: int, length: int) -> Starts:
        """Returns the sessions at which an episode of all symbols may start: at least one symbol is ready.

        Raises:
            FoldError: Nowhere.
        """
        rows = slice(start, max(stop - length, start))
        some = np.zeros(rows.stop - start, np.bool_)
        for low in range(0, len(self.last_bar), _SYMBOLS_ABREAST):
            some |= (self.panel.ready_run_NT[low : low + _SYMBOLS_ABREAST, rows] > 0).any(axis=0)
        return _starts(_runs(some[None]) + np.array([0, start, 0]), start, stop, length)


def _runs(wanted: Bools) -> Ints:
    """Returns the runs of True along the last axis of `[N, T]`: row, first column and length, `[M, 3]`."""
    edges = np.diff(np.pad(wanted, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    row, first = np.nonzero(edges == 1)
    _, end = np.nonzero(edges == -1)
    return np.stack([row, first, end - first], axis=1)


def _starts(runs: Ints, start: int, stop: int, length: int) -> Starts:
    if not len(runs):
        raise FoldError(
            f"no symbol is complete for {length} sessions between rows {start} and {stop}; "
            "shorten env.episode_sessions or widen the fold"
        )
    return Starts(runs[:, 0], runs[:, 1], runs[:, 2].cumsum())


def step_bars(now: Floats, following: Floats, ready: Bools, shortable: Bools, listed: Bools, luck: Floats) -> Bars:
    """Returns what leads from one session to the next.

    Args:
        now: Bars of t, `[K, N, ...]`.
        following: Bars of t+1, same shape.
        ready: See `Bars`; so are the other three.
        shortable: Broadcasts to `[N, ...]`.
        listed: `[N, ...]`.
        luck: `[N, ...]`.
    """
    return Bars(
        ready=ready,
        shortable=shortable,
        sigma=now[_AT["sigma"]],
        adv=now[_AT["adv"]],
        spread=now[_AT["spread"]],
        luck=luck,
        listed=listed,
        split=following[_AT["split"]],
        dividend=following[_AT["dividend"]],
        open=following[_AT["open"]],
        high=following[_AT["high"]],
        low=following[_AT["low"]],
        close=following[_AT["close"]],
        volume=following[_AT["volume"]],
    )


def column(bars: Floats, name: str) -> Floats:
    """Returns one column of bars `[K, ...]`, a view `[...]`."""
    return bars[_AT[name]]


def shortable_symbols(symbols: tuple[str, ...], unshortable: tuple[str, ...]) -> Bools:
    """Returns which symbols can be borrowed, `[N]`."""
    return np.array([symbol not in unshortable for symbol in symbols], np.bool_)
