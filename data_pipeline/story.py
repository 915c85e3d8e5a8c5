"""What a snapshot holds, told as data and as tables."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from fractions import Fraction
from typing import Any

import polars as pl
from rich.box import SIMPLE
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from data_pipeline.adjusted import adjustment_factor, log_change
from data_pipeline.intraday import MINUTES
from data_pipeline.quality import SEVERITIES, QualityConfig, findings
from data_pipeline.schema import Timeframe
from data_pipeline.sessions import schedule
from data_pipeline.store import SERIES, Store

MOVES_PER_SYMBOL = 3
_OF_NUMBERS = "0123456789,.%+-"


def story(
    store: Store, snapshot_id: str, exchange: str = "XNYS", quality: QualityConfig | None = None
) -> dict[str, Any]:
    """Returns what a snapshot holds, JSON-ready; dates are ISO strings.

    snapshot, provenance, fetched_at, written_at, calendar, code, exchange
        Where the bars came from, when, and by which versions.
    timeframes
        By name: rows, first_session, last_session; `symbols` with the same of each and `missing_bars`, those
        of the calendar from its first to its last session that are not there; `gaps`, each run of sessions
        without a bar.
    splits, dividends
        symbol, session and ratio (new shares for one old) or usd (per share after that session's split).
    largest_moves
        symbol, session, return: the largest total returns of a close over the one before, some of each symbol.
    findings, checks
        Number of quality findings by severity, and by check.

    What concerns daily bars only is absent where the snapshot has none.

    Args:
        store: Where the snapshot is.
        snapshot_id: Of `Store.snapshots`.
        exchange: Whose sessions count.
        quality: Thresholds of the checks; None: the defaults.

    Raises:
        StoreError: The snapshot is absent or was altered.
        BarsError: A dividend as large as the price before it.
    """
    snapshot = store.snapshot(snapshot_id)
    told: dict[str, Any] = {
        "snapshot": snapshot.id,
        "provenance": dict(snapshot.provenance),
        **{key: snapshot.manifest[key] for key in ("fetched_at", "written_at", "calendar", "code")},
        "exchange": exchange,
        "timeframes": {},
    }
    timeframe: Timeframe
    for timeframe in snapshot.manifest["tables"]:
        bars = store.read(snapshot.id, timeframe)
        told["timeframes"][timeframe] = _extent(bars, timeframe, exchange)
        if timeframe == "1Day":
            told |= _events(bars) | _moves(bars) | _quality(findings(bars, exchange, quality))
    return told


def _extent(bars: pl.DataFrame, timeframe: Timeframe, exchange: str) -> dict[str, Any]:
    first, last = bars.select(first=pl.col("session").min(), last=pl.col("session").max()).row(0)
    length = pl.col("close") - pl.col("open")
    due = -(-length.dt.total_minutes() // MINUTES[timeframe]) if timeframe in MINUTES else pl.lit(1)
    bells = schedule(first, last, exchange).select("session", at=pl.int_range(pl.len()), due=due)
    calendar = bells.with_columns(past=pl.col("due").cum_sum() - pl.col("due"))
    held = bars.group_by("symbol", "session", maintain_order=True).len("rows")
    lives = held.group_by("symbol", maintain_order=True).agg(
        pl.col("rows").sum(), first_session=pl.col("session").first(), last_session=pl.col("session").last()
    )
    placed = held.join(calendar, "session", maintain_order="left")  # without bars on days that are no sessions
    spent = pl.col("past").last() + pl.col("due").last() - pl.col("past").first()
    missing = placed.group_by("symbol").agg(missing_bars=spent - pl.col("rows").sum())
    symbols = lives.join(missing, "symbol", "left", maintain_order="left").with_columns(
        pl.col("missing_bars").fill_null(0)
    )
    gaps = placed.with_columns(sessions=pl.col("at").diff().over("symbol") - 1).filter(pl.col("sessions") > 0)
    gaps = gaps.select(
        "symbol",
        calendar["session"].gather(gaps["at"] - gaps["sessions"]).alias("first_session"),
        calendar["session"].gather(gaps["at"] - 1).alias("last_session"),
        "sessions",
    )
    extent = {"rows": bars.height, "first_session": str(first), "last_session": str(last)}
    return {**extent, "symbols": _records(symbols), "gaps": _records(gaps)}


def _events(daily: pl.DataFrame) -> dict[str, Any]:
    splits = daily.filter(pl.col("split") != 1).select("symbol", "session", ratio="split")
    dividends = daily.filter(pl.col("dividend") > 0).select("symbol", "session", usd="dividend")
    return {"splits": _records(splits), "dividends": _records(dividends)}


def _moves(daily: pl.DataFrame) -> dict[str, Any]:
    """Moves are ranked by their logarithm: a fall by half weighs as much as a doubling."""
    largest = pl.col("log").abs()
    parts = []
    for rows in daily.partition_by("symbol", maintain_order=True):
        change = log_change(rows["close"].to_numpy() * adjustment_factor(rows))
        moves = rows.select("symbol", "session", pl.Series("log", change)).slice(1)
        parts.append(moves.sort(largest, descending=True, maintain_order=True).head(MOVES_PER_SYMBOL))
    found = pl.concat(parts).sort(largest, descending=True, maintain_order=True)
    return {"largest_moves": _records(found.select("symbol", "session", (pl.col("log").exp() - 1).alias("return")))}


def _quality(found: pl.DataFrame) -> dict[str, Any]:
    counts = dict(found.group_by("severity").len().iter_rows())
    checks = found.group_by("severity", "check", maintain_order=True).agg(
        pl.len().alias("findings"), pl.col("rows").sum()
    )
    return {"findings": {severity: counts.get(severity, 0) for severity in SEVERITIES}, "checks": _records(checks)}


def _records(frame: pl.DataFrame) -> list[dict[str, Any]]:
    return frame.with_columns(pl.col(pl.Date).cast(pl.String)).to_dicts()


def tables(told: Mapping[str, Any], most: int = 8) -> Group:
    """Returns a `story` as tables for a terminal: at most so many lines in each, and how many more there are."""
    facts = list(origin(told, told["exchange"]).items())
    bars = [_bars_listing(name, extent, most) for name, extent in told["timeframes"].items()]
    gaps = [(gap, name) for name, extent in told["timeframes"].items() for gap in extent["gaps"]]
    gaps.sort(key=lambda found: -found[0]["sessions"])
    missing = [(g["symbol"], name, g["first_session"], g["last_session"], f"{g['sessions']:,}") for g, name in gaps]
    head = ("symbol", "bars", "first missing", "last missing", "sessions")
    return Group(
        _listing(f"Snapshot {told['snapshot']}", (), facts, len(facts)),
        *bars,
        _listing("Gaps, longest first", head, missing, most),
        *_daily_listings(told, most),
    )


def origin(told: Mapping[str, Any], exchange: str) -> dict[str, str]:
    """Where the bars came from, when, and by which versions, as a person reads it."""
    provenance = dict(told["provenance"])
    first = {name: provenance.pop(name) for name in SERIES if name in provenance}
    times = {name: datetime.fromisoformat(told[f"{name}_at"]).astimezone(UTC) for name in ("fetched", "written")}
    return {
        **first,
        **provenance,
        **{name: f"{time:%Y-%m-%d %H:%M:%S} UTC" for name, time in times.items()},
        "calendar": f"{exchange}, {told['calendar']}",
        "written by": told["code"],
    }


def _bars_listing(timeframe: str, extent: Mapping[str, Any], most: int) -> RenderableType:
    symbols = sorted(extent["symbols"], key=lambda symbol: -symbol["missing_bars"])
    rows = [
        (s["symbol"], f"{s['rows']:,}", s["first_session"], s["last_session"], f"{s['missing_bars']:,}")
        for s in symbols
    ]
    span = f"{extent['first_session']} to {extent['last_session']}"
    title = f"{timeframe} bars: {extent['rows']:,} of {count(len(symbols), 'symbol')}, {span}"
    return _listing(title, ("symbol", "bars", "first", "last", "missing"), rows, most)


def _daily_listings(told: Mapping[str, Any], most: int) -> Iterator[RenderableType]:
    if "findings" not in told:
        return
    splits = [(s["symbol"], s["session"], as_people_say(s["ratio"])) for s in _newest(told["splits"])]
    yield _listing("Splits, newest first", ("symbol", "session", "ratio"), splits, most)
    dividends = [(d["symbol"], d["session"], f"{d['usd']:.4g}") for d in _newest(told["dividends"])]
    yield _listing("Dividends, newest first", ("symbol", "session", "USD per share"), dividends, most)
    moves = [(m["symbol"], m["session"], f"{m['return']:+.1%}") for m in told["largest_moves"]]
    yield _listing("Largest moves, total return", ("symbol", "session", "move"), moves, most)
    counts = ", ".join(count(number, severity) for severity, number in told["findings"].items())
    checks = [(c["severity"], c["check"], f"{c['findings']:,}", f"{c['rows']:,}") for c in told["checks"]]
    title = f"Quality findings: {counts}" if checks else "Quality findings"
    yield _listing(title, ("severity", "check", "findings", "bars"), checks, most)


def _listing(title: str, head: Sequence[str], rows: Sequence[tuple[str, ...]], most: int) -> RenderableType:
    """Returns a titled table, or one line where there are no rows; no heads: names and values."""
    if not rows:
        return Text(f"{title}: none\n", "bold")
    table = Table(show_header=bool(head), box=SIMPLE)
    for place, name in enumerate(head):
        table.add_column(name, justify="left" if rows[0][place].strip(_OF_NUMBERS) else "right")
    for row in rows[:most]:
        table.add_row(*map(Text, row))
    more = [Text(f"  and {len(rows) - most:,} more\n")] if len(rows) > most else []
    return Group(Text(title, "bold"), table, *more)


def _newest(events: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return sorted(events, key=lambda event: event["session"], reverse=True)


def count(number: int, noun: str) -> str:
    """Returns a number and its noun: `1 symbol`, `1,200 symbols`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")


def as_people_say(split: float) -> str:
    """Names a split as people do: 2.0 is `2 for 1`, 0.1 is `1 for 10`."""
    exact = Fraction(split).limit_denominator(100)
    return f"{exact.numerator} for {exact.denominator}" if abs(exact / split - 1) < 1e-6 else f"{split:g} for 1"
