"""Checked bars to a panel: raw columns of all symbols, the market, then what is derived, symbol by symbol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import talib

from data_pipeline.adjusted import Bars, adjusted_bars, adjustment_factor, log_change
from data_pipeline.compute import Intraday, SymbolBars, derived
from data_pipeline.errors import BarsError, StoreError
from data_pipeline.features import INTRADAY, FeatureSet, FeatureTimeframe
from data_pipeline.intraday import resample
from data_pipeline.panel import COLUMNS, RAW, Allocate, Floats, Panel, run_lengths
from data_pipeline.sessions import Sessions, ordinals, schedule, sessions_between, week_closes

RISK_WINDOW_SESSIONS = 20
BREADTH_SESSIONS = 50
_ADJUSTED_CLOSE, _RISK = COLUMNS.index("adjusted_close"), COLUMNS.index("sigma")  # and adv, spread
_NO_BAR = np.array([{"split": 1.0, "dividend": 0.0}.get(name, np.nan) for name in COLUMNS])


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
    shape = (len(symbols), len(sessions))
    panel = Panel(
        allocate("sessions", sessions.shape, sessions.dtype),
        symbols,
        feature_set.names,
        feature_set.schema_hash,
        dict(source or {}),
        allocate("features", (*shape, len(feature_set.features)), np.float32),
        allocate("bars", (*shape, len(COLUMNS)), np.float64),
        allocate("ready_run", shape, np.int32),
        allocate("last_bar", shape[:1], np.int64),
        exchange,
    )
    panel.sessions[:] = sessions
    members = _members(bars, sessions, symbols, exchange)
    _fill_raw(panel, members)
    if before is not None:
        _keep(before, panel)
    calendar = _Calendar.of(sessions, exchange, feature_set, panel.fields["adjusted_close"])
    within = _within_sessions(intraday, members, feature_set, exchange)
    for n, symbol in enumerate(symbols):
        _fill_derived(panel, n, members.get(symbol), feature_set, calendar, within, since)
        on_progress(n + 1, len(symbols))
    return panel


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
    total = len(adjusted_close)
    change, moved = np.zeros(total), np.zeros(total, np.int64)
    above, compared = np.zeros(total, np.int64), np.zeros(total, np.int64)
    for strided in adjusted_close.T:
        close = np.ascontiguousarray(strided)
        own = log_change(close)
        known = np.isfinite(own)
        change += np.where(known, own, 0.0)
        moved += known
        past = close[:-BREADTH_SESSIONS]
        above[BREADTH_SESSIONS:] += close[BREADTH_SESSIONS:] > past
        compared[BREADTH_SESSIONS:] += np.isfinite(close[BREADTH_SESSIONS:] * past)
    return change / np.maximum(moved, 1), np.where(compared > 0, above / np.maximum(compared, 1), np.nan)


def _members(bars: pl.DataFrame, sessions: Sessions, symbols: tuple[str, ...], exchange: str) -> dict[str, _Member]:
    members, offset, wanted = {}, 0, set(symbols)
    runs = bars["symbol"].rle().struct.unnest()
    for length, symbol in runs.iter_rows():
        rows = bars.slice(offset, length)
        at = _rows_of(rows["session"].to_numpy(), sessions, symbol, exchange)
        if symbol in wanted:
            members[symbol] = _Member(symbol, rows, adjustment_factor(rows), at)
        offset += length
    return members


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


def _keep(before: Panel, panel: Panel) -> None:
    """Copies the rows of `before` after comparing the bars that both were made of."""
    since = len(before.sessions)
    for n, (was, now) in enumerate(zip(before.bars_NTK, panel.bars_NTK[:, :since], strict=True)):
        differs = np.argwhere(~_equal(was[:, :_RISK], now[:, :_RISK]))
        if len(differs):
            t, k = differs[0]
            raise StoreError(
                f"{before.symbols[n]} {before.sessions[t]}: {COLUMNS[k]} was {was[t, k]} and is now {now[t, k]}: "
                "history was revised; build the panel anew"
            )
        now[:] = was
    panel.features_NTF[:, :since] = before.features_NTF
    panel.ready_run_NT[:, :since] = before.ready_run_NT


def _equal(a: Floats, b: Floats) -> npt.NDArray[np.bool_]:
    return (a == b) | (np.isnan(a) & np.isnan(b))


def _fill_raw(panel: Panel, members: dict[str, _Member]) -> None:
    """Writes what was traded, and adjusted closes."""
    for bars_TK, symbol in zip(panel.bars_NTK, panel.symbols, strict=True):
        bars_TK[:] = _NO_BAR
        if (member := members.get(symbol)) is not None:
            at = _range(member.at)
            for k, name in enumerate(RAW):
                bars_TK[at, k] = member.rows[name].to_numpy()
            bars_TK[at, _ADJUSTED_CLOSE] = member.rows["close"].to_numpy() * member.factor


def _fill_derived(
    panel: Panel,
    n: int,
    member: _Member | None,
    feature_set: FeatureSet,
    calendar: _Calendar,
    within: dict[str, dict[FeatureTimeframe, Intraday]],
    since: int,
) -> None:
    """Computes one symbol's rows from `since` on."""
    features_TF, bars_TK = panel.features_NTF[n, since:], panel.bars_NTK[n, since:]
    features_TF[:] = np.nan
    ready = np.zeros(len(features_TF), bool)
    if member is not None:
        first = int(np.searchsorted(member.at, since))
        at = _range(member.at[first:] - since)
        own = _symbol_bars(member, calendar, within[panel.symbols[n]])
        features_FT, (sigma, adv, spread) = derived(own, feature_set, (_sigma, _average_volume, quoted_spread), first)
        features_TF[at] = features_FT.T
        ready[at] = np.isfinite(features_FT).all(axis=0) & (own.day.volume[first:] > 0)
        bars_TK[at, _RISK:] = np.stack([sigma, adv * member.factor[first:], spread], axis=-1)
    run_before = int(panel.ready_run_NT[n, since - 1]) if since else 0
    panel.ready_run_NT[n, since:] = run_lengths(ready, run_before)
    panel.last_bar_N[n] = -1 if member is None else member.at[-1]


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


def quoted_spread(bars: Bars) -> Floats:
    """Returns the estimated quoted spread over the price, a fraction, `[T]`; NaN in the first 20 bars.

    With the close c and the middle eta of high and low, all in logs, the mean over 20 pairs of successive bars of
    sqrt(max(4 (c_tm1 - eta_tm1) (c_tm1 - eta_t), 0)): Abdi and Ranaldo (2017), "A Simple Estimation of Bid-Ask
    Spreads from Daily Close, High, and Low Prices", two-day corrected. Pessimistic where the spread is small
    beside the day's range: pairs that chance makes negative count as zero, those it makes positive count in full.
    """
    result = np.full(len(bars), np.nan)
    if len(bars) > RISK_WINDOW_SESSIONS:
        close, middle = np.log(bars.close), 0.5 * np.log(bars.high * bars.low)
        square = 4.0 * (close[:-1] - middle[:-1]) * (close[:-1] - middle[1:])
        mean = talib.SMA(np.sqrt(np.maximum(square, 0.0)), RISK_WINDOW_SESSIONS)
        result[1:] = np.maximum(mean, 0.0)  # a running sum may end a hair below zero
    return result


def _within_sessions(
    intraday: pl.DataFrame | None, members: dict[str, _Member], feature_set: FeatureSet, exchange: str
) -> dict[str, dict[FeatureTimeframe, Intraday]]:
    """Returns adjusted intraday bars by symbol and timeframe, of those timeframes that are read."""
    result: dict[str, dict[FeatureTimeframe, Intraday]] = {symbol: {} for symbol in members}
    if intraday is None:
        return result
    for timeframe in feature_set.timeframes.intersection(INTRADAY):
        table = intraday if timeframe == "5min" else resample(intraday, 60, exchange)
        by_symbol = table.partition_by("symbol", as_dict=True, maintain_order=True)
        for symbol, member in members.items():
            rows = by_symbol.get((symbol,), table.clear())
            factor = member.factor[_daily_rows(member, rows)]
            result[symbol][timeframe] = Intraday(adjusted_bars(rows, factor), rows["end"].to_numpy())
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
