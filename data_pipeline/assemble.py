"""Checked bars to a panel: raw fields, the market, then features of some symbols abreast."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import talib

from data_pipeline.adjusted import Bars, adjusted_bars, adjustment_factor
from data_pipeline.compute import Intraday, SymbolBars, features_of, in_blocks
from data_pipeline.errors import BarsError, StoreError
from data_pipeline.features import INTRADAY, FeatureSet, FeatureTimeframe
from data_pipeline.intraday import resample
from data_pipeline.panel import DERIVED, RAW, Allocate, Floats, Panel
from data_pipeline.sessions import Sessions, ordinals, schedule, sessions_between, week_closes

RISK_WINDOW_SESSIONS = 20
BREADTH_SESSIONS = 50
# Symbols that are written to the dense arrays together: runs long enough for memory, short enough for cache.
_ABREAST = 64


def in_memory(_: str, shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Allocates an array of the panel in memory."""
    return np.empty(shape, dtype)


def build_panel(
    bars: pl.DataFrame,
    feature_set: FeatureSet,
    symbols: tuple[str, ...] | None = None,
    exchange: str = "XNYS",
    source: dict[str, Any] | None = None,
    intraday: pl.DataFrame | None = None,
    before: Panel | None = None,
    allocate: Allocate = in_memory,
    on_progress: Callable[[int, int], None] = lambda *_: None,
) -> Panel:
    """Returns the panel of checked bars.

    Args:
        bars: A daily bars table that passed `schema.checked`.
        feature_set: What to compute.
        symbols: Order of the N axis; None: those of the table, sorted. One without bars stays empty.
        exchange: Whose sessions make the T axis, from the table's first to its last.
        source: Recorded in the panel.
        intraday: 5-minute bars of the same symbols, where the feature set needs them.
        before: A panel of the same features and symbols and of the first part of the same daily bars: its
            rows are kept and only later ones computed, bit for bit as without it.
        allocate: Makes the arrays, from name, shape and dtype.
        on_progress: Is told (symbols done, symbols in all).

    Raises:
        BarsError: A bar on a day that is no session, an impossible dividend, or intraday bars are missing.
        StoreError: `before` is of other bars, features or symbols.
    """
    if feature_set.needs_intraday and intraday is None:
        raise BarsError("the feature set has hour. or 5min. features; give 5-minute bars beside the daily ones")
    symbols = symbols or tuple(bars["symbol"].unique().sort())
    days = bars["session"]
    sessions = sessions_between(days.min(), days.max(), exchange)  # type: ignore[arg-type]
    since = 0 if before is None else _continued(before, feature_set, symbols, sessions, exchange)
    shape = (len(sessions), len(symbols))
    features = allocate("features", (*shape, len(feature_set.features)), np.float32)
    fields = {name: allocate(name, shape, np.float64) for name in (*RAW, *DERIVED)}
    members = [member for member in _members(bars, sessions, exchange) if member.symbol in symbols]
    _fill_raw(fields, members, symbols)
    if before is not None:
        _keep(before, features, fields)
    calendar = _Calendar.of(sessions, exchange, feature_set, fields["adjusted_close"])
    within = _within_sessions(intraday, members, feature_set, exchange)
    _fill_features(features, fields, members, symbols, feature_set, calendar, within, since, on_progress)
    identity = (feature_set.names, feature_set.schema_hash, dict(source or {}))
    return Panel(sessions, symbols, *identity, features, fields, exchange)


class _Member(NamedTuple):
    """One symbol's daily rows, their factors to adjusted prices, and their rows on the T axis."""

    symbol: str
    rows: pl.DataFrame
    factor: Floats
    at: npt.NDArray[np.int64]


class _Calendar(NamedTuple):
    """What all symbols share, `[T]` each; see `Bars` and `SymbolBars`."""

    sessions: Sessions
    ordinal: npt.NDArray[np.int64]
    week_closes: npt.NDArray[np.bool_]
    close_at: npt.NDArray[np.datetime64]
    market: Floats
    breadth: Floats

    @classmethod
    def of(cls, sessions: Sessions, exchange: str, feature_set: FeatureSet, adjusted_close: Floats) -> _Calendar:
        close_at = np.empty(0, "datetime64[us]")
        if feature_set.needs_intraday:
            close_at = schedule(sessions[0].item(), sessions[-1].item(), exchange)["close"].to_numpy()
        market, breadth = market_of(adjusted_close)
        closes = week_closes(sessions, exchange)
        return cls(sessions, ordinals(sessions, exchange), closes, close_at, market, breadth)


def market_of(adjusted_close: Floats) -> tuple[Floats, Floats]:
    """Returns the equal-weighted market's log return and breadth at each session, `[T]` each.

    Breadth is the share of symbols above their price of 50 sessions ago. Symbols without a price on one of
    the two sessions are left out; where all are, the return is 0 and the breadth NaN.
    """
    total, count = len(adjusted_close), adjusted_close.shape[1]
    market, breadth = np.zeros(total), np.full(total, np.nan)
    step = max(1, 2**20 // count)  # rows at a time: temporaries of 8 MiB
    for low in range(1, total, step):
        rows = slice(low, min(low + step, total))
        change = np.log(adjusted_close[rows] / adjusted_close[low - 1 : rows.stop - 1])
        known = np.isfinite(change)
        number = known.sum(axis=1)
        market[rows] = np.where(known, change, 0.0).sum(axis=1) / np.maximum(number, 1)
    for low in range(BREADTH_SESSIONS, total, step):
        rows = slice(low, min(low + step, total))
        past = adjusted_close[low - BREADTH_SESSIONS : rows.stop - BREADTH_SESSIONS]
        number = np.isfinite(adjusted_close[rows] * past).sum(axis=1)
        above = (adjusted_close[rows] > past).sum(axis=1)
        breadth[rows] = np.where(number > 0, above / np.maximum(number, 1), np.nan)
    return market, breadth


def _members(bars: pl.DataFrame, sessions: Sessions, exchange: str) -> Iterator[_Member]:
    offset = 0
    runs = bars["symbol"].rle().struct.unnest()
    for length, symbol in runs.iter_rows():
        rows = bars.slice(offset, length)
        at = _rows_of(rows["session"].to_numpy(), sessions, symbol, exchange)
        yield _Member(symbol, rows, adjustment_factor(rows), at)
        offset += length


def _rows_of(days: npt.NDArray[Any], sessions: Sessions, symbol: str, exchange: str) -> npt.NDArray[np.int64]:
    days = days.astype("datetime64[D]")
    at = np.searchsorted(sessions, days)
    strangers = days[sessions[np.minimum(at, len(sessions) - 1)] != days]
    if len(strangers):
        raise BarsError(
            f"{symbol} {strangers[0]}: not a session of {exchange}; drop the bar or name the right exchange"
        )
    return at


def _continued(
    before: Panel, feature_set: FeatureSet, symbols: tuple[str, ...], sessions: Sessions, exchange: str
) -> int:
    since = len(before.sessions)
    same = (before.schema_hash, before.symbols, before.exchange) == (feature_set.schema_hash, symbols, exchange)
    if not same or feature_set.needs_intraday or not np.array_equal(before.sessions, sessions[:since]):
        raise StoreError(
            "the panel to continue has other features, symbols, exchange or first sessions, or reads intraday bars; "
            "build the panel anew"
        )
    return since


def _keep(before: Panel, features: npt.NDArray[np.float32], fields: dict[str, Floats]) -> None:
    """Copies the rows of `before` after comparing the bars that both were made of."""
    since = len(before.sessions)
    for name in (*RAW, "adjusted_close"):
        differs = np.argwhere(~_equal(before.fields[name], fields[name][:since]))
        if len(differs):
            t, n = differs[0]
            raise StoreError(
                f"{before.symbols[n]} {before.sessions[t]}: {name} was {before.fields[name][t, n]} and is now "
                f"{fields[name][t, n]}: history was revised; build the panel anew"
            )
    features[:since] = before.features
    for name in DERIVED:
        fields[name][:since] = before.fields[name]


def _equal(a: Floats, b: Floats) -> npt.NDArray[np.bool_]:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _fill_raw(fields: dict[str, Floats], members: list[_Member], symbols: tuple[str, ...]) -> None:
    total = len(fields["close"])
    neutral = dict.fromkeys(("split",), 1.0) | dict.fromkeys(("dividend",), 0.0)
    by_symbol = {member.symbol: member for member in members}
    for low in range(0, len(symbols), _ABREAST):
        names = symbols[low : low + _ABREAST]
        for name in (*RAW, "adjusted_close"):
            columns = np.full((len(names), total), neutral.get(name, np.nan))
            for column, symbol in zip(columns, names, strict=True):
                if (member := by_symbol.get(symbol)) is not None:
                    values = member.rows[name.removeprefix("adjusted_")].to_numpy()
                    column[member.at] = values * member.factor if name == "adjusted_close" else values
            fields[name][:, low : low + _ABREAST] = columns.T


def _fill_features(
    features: npt.NDArray[np.float32],
    fields: dict[str, Floats],
    members: list[_Member],
    symbols: tuple[str, ...],
    feature_set: FeatureSet,
    calendar: _Calendar,
    within: dict[str, dict[FeatureTimeframe, Intraday]],
    since: int,
    on_progress: Callable[[int, int], None],
) -> None:
    """Computes the rows from `since` on, some symbols abreast."""
    by_symbol = {member.symbol: member for member in members}
    total = len(calendar.sessions) - since
    for low in range(0, len(symbols), _ABREAST):
        names = symbols[low : low + _ABREAST]
        block = np.full((len(names), features.shape[2], total), np.nan, np.float32)
        sigma, adv = (np.full((len(names), total), np.nan) for _ in range(2))
        for column, symbol in enumerate(names):
            if (member := by_symbol.get(symbol)) is None:
                continue
            first = int(np.searchsorted(member.at, since))
            at = _range(member.at[first:] - since)
            own = _symbol_bars(member, calendar, within[symbol])
            block[column][:, at] = features_of(own, feature_set, first)
            sigma[column, at] = in_blocks(own, _sigma, first)
            adv[column, at] = in_blocks(own, _average_volume, first) * member.factor[first:]
        features[since:, low : low + _ABREAST] = block.transpose(2, 0, 1)
        fields["sigma"][since:, low : low + _ABREAST] = sigma.T
        fields["adv"][since:, low : low + _ABREAST] = adv.T
        on_progress(low + len(names), len(symbols))


def _range(at: npt.NDArray[np.int64]) -> slice | npt.NDArray[np.int64]:
    """The rows as a slice where they have no gap: assigning is then a plain copy."""
    whole = len(at) > 0 and at[-1] - at[0] + 1 == len(at)
    return slice(int(at[0]), int(at[-1]) + 1) if whole else at


def _symbol_bars(member: _Member, calendar: _Calendar, within: dict[FeatureTimeframe, Intraday]) -> SymbolBars:
    at = member.at
    market = np.full(len(at), np.nan)
    market[1:] = np.add.reduceat(calendar.market[: at[-1] + 1], at[:-1] + 1) if len(at) > 1 else ()
    day = replace(adjusted_bars(member.rows, member.factor), market=market, breadth=calendar.breadth[at])
    close_at = calendar.close_at[at] if within else calendar.close_at
    return SymbolBars(day, calendar.ordinal[at], calendar.week_closes[at], close_at, within)


def _sigma(bars: Bars) -> Floats:
    if len(bars) <= RISK_WINDOW_SESSIONS:
        return np.full(len(bars), np.nan)
    return bars.ta(talib.STDDEV, "log_return", timeperiod=RISK_WINDOW_SESSIONS)


def _average_volume(bars: Bars) -> Floats:
    return bars.ta(talib.SMA, "volume", timeperiod=RISK_WINDOW_SESSIONS)


def _within_sessions(
    intraday: pl.DataFrame | None, members: list[_Member], feature_set: FeatureSet, exchange: str
) -> dict[str, dict[FeatureTimeframe, Intraday]]:
    """Returns adjusted intraday bars by symbol and timeframe, of those timeframes that are read."""
    result: dict[str, dict[FeatureTimeframe, Intraday]] = {member.symbol: {} for member in members}
    if intraday is None:
        return result
    for timeframe in feature_set.timeframes.intersection(INTRADAY):
        table = intraday if timeframe == "5min" else resample(intraday, 60, exchange)
        by_symbol = table.partition_by("symbol", as_dict=True, maintain_order=True)
        for member in members:
            rows = by_symbol.get((member.symbol,), table.clear())
            factor = member.factor[_daily_rows(member, rows)]
            result[member.symbol][timeframe] = Intraday(adjusted_bars(rows, factor), rows["end"].to_numpy())
    return result


def _daily_rows(member: _Member, rows: pl.DataFrame) -> npt.NDArray[np.int64]:
    """Returns the daily row of each intraday bar."""
    days, wanted = member.rows["session"].to_numpy(), rows["session"].to_numpy()
    at = np.minimum(np.searchsorted(days, wanted), len(days) - 1)
    orphans = wanted[days[at] != wanted]
    if len(orphans):
        raise BarsError(
            f"{member.symbol} {orphans[0]}: 5-minute bars without a daily bar; fetch both for the same sessions"
        )
    return at
