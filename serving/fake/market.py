"""What the fake knows of the market: hours, prices, bars and corporate actions.

The bar of a session in progress is partial, as Alpaca's is: only the open has traded. Paging, the order
of rows and what is absent follow Alpaca's description; one source of prices stands for every feed.

Simplified: no renames, so `asof` is validated and changes nothing. Assumed: a date without a time starts
at midnight UTC and ends with that day in New York; dividends are processed two weeks after they go ex.
"""

from __future__ import annotations

import base64
import functools
import json
import re
import uuid
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from data_pipeline.schema import PRICES
from data_pipeline.sources.source import BarSource

NEW_YORK = ZoneInfo("America/New_York")
NAMES = uuid.UUID("5f3c6d6e-6a43-4b58-9f0b-2d6c1f0a9b11")
_STAMP = "%Y-%m-%dT%H:%M:%SZ"
_RECENT = timedelta(minutes=15)
_BASE_MINUTES = 5
_PAID_AFTER = timedelta(days=14)

Adjustment = Literal["raw", "split", "dividend", "all"]


class RefusedError(Exception):
    """An answer of Alpaca's that is not 200."""

    def __init__(self, status: int, code: int | None, message: str, **more: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {**({} if code is None else {"code": code}), "message": message, **more}


class Hours(NamedTuple):
    """Bells of one exchange day, New York time."""

    open: datetime
    close: datetime


class BarsQuery(BaseModel):
    """The query of GET /v2/stocks/bars; what is not simulated is refused by name."""

    model_config = ConfigDict(extra="forbid")

    symbols: str
    timeframe: str
    start: str = "1970-01-01"
    end: str | None = None
    limit: Annotated[int, Field(ge=1, le=10_000)] = 1000
    adjustment: Adjustment = "raw"
    feed: Literal["sip", "iex"] | None = None
    asof: date | Literal["-"] | None = None
    sort: Literal["asc"] = "asc"
    page_token: str | None = None


class ActionsQuery(BaseModel):
    """The query of GET /v1/corporate-actions."""

    model_config = ConfigDict(extra="forbid")

    symbols: str | None = None
    types: str | None = None
    start: date
    end: date
    limit: Annotated[int, Field(ge=1, le=1000)] = 100
    sort: Literal["asc"] = "asc"
    page_token: str | None = None


class Market:
    """Prices, bars and corporate actions of the symbols that a source holds.

    Args:
        source: Its daily bars are what trades; its symbols are the assets that exist.
        intraday: Five-minute bars with the columns of an intraday table; they may lie outside the
            regular hours. None: no intraday bars.
    """

    def __init__(self, source: BarSource, intraday: pl.DataFrame | None = None) -> None:
        self.daily = source.fetch()
        self.intraday = intraday
        self.symbols = frozenset(self.daily["symbol"].unique())
        self.actions: dict[str, list[dict[str, Any]]] = _actions(self.daily)
        """Corporate actions by Alpaca's kind, such as `cash_dividends`; more may be added."""

    def price(self, symbol: str, at: datetime) -> float:
        """Returns the open of the day of `at` once it has begun and has a bar, else the last close before.

        Raises:
            RefusedError: It has not traded yet.
        """
        today = at.date()
        hours = schedule().get(today)
        begun = hours is not None and at >= hours.open
        bar = self._last_bar(symbol, today if begun else today - timedelta(days=1))
        return float(bar["open"] if bar["session"] == today else bar["close"])

    def close_before(self, symbol: str, at: datetime) -> float:
        """Returns the last close before the day of `at`."""
        return float(self._last_bar(symbol, at.date() - timedelta(days=1))["close"])

    def bars(self, query: BarsQuery, now: datetime) -> dict[str, Any]:
        """Returns one page of bars, sorted by symbol, then time; symbols without any are absent.

        Raises:
            RefusedError: As Alpaca refuses, or what is not simulated.
        """
        end = min(now, _instant(query.end, ends=True)) if query.end else now - _RECENT
        if query.end and query.feed == "sip" and end > now - _RECENT:
            raise RefusedError(403, 42210000, "subscription does not permit querying recent SIP data")
        start = _instant(query.start, ends=False)
        rows = self._rows(query.timeframe, now).filter(
            pl.col("symbol").is_in(query.symbols.split(",")),
            pl.col("t").is_between(start.astimezone(UTC), end.astimezone(UTC)),
        )
        rows = self._adjusted(rows, query.adjustment)
        if query.page_token is not None:
            symbol, stamp = _position(query.page_token)
            later = pl.col("t").dt.strftime(_STAMP) > stamp
            rows = rows.filter((pl.col("symbol") > symbol) | ((pl.col("symbol") == symbol) & later))
        page = rows.head(query.limit)
        found: dict[str, list[dict[str, Any]]] = {}
        for row in page.iter_rows(named=True):
            found.setdefault(row["symbol"], []).append(_bar_json(row))
        last = page.row(-1, named=True) if rows.height > page.height else None
        token = None if last is None else token_after(last["symbol"], last["t"].strftime(_STAMP))
        return {"bars": found, "next_page_token": token}

    def corporate_actions(self, query: ActionsQuery) -> dict[str, Any]:
        """Returns one page of the corporate actions processed from `start` to `end`, both included."""
        wanted = None if query.symbols is None else set(query.symbols.split(","))
        kinds = None if query.types is None else {f"{kind}s" for kind in query.types.split(",")}
        rows = [
            (row["process_date"], row["id"], kind, row)
            for kind, held in self.actions.items()
            for row in held
            if (kinds is None or kind in kinds)
            and (wanted is None or wanted & {v for k, v in row.items() if k.endswith("symbol")})
            and query.start.isoformat() <= row["process_date"] <= query.end.isoformat()
        ]
        rows.sort(key=lambda item: item[:2])
        if query.page_token is not None:
            rows = [row for row in rows if row[:2] > tuple(_position(query.page_token))]
        page = rows[: query.limit]
        found: dict[str, list[dict[str, Any]]] = {}
        for _, _, kind, row in page:
            found.setdefault(kind, []).append(row)
        token = token_after(*page[-1][:2]) if len(rows) > len(page) else None
        return {"corporate_actions": found, "next_page_token": token}

    def _last_bar(self, symbol: str, until: date) -> dict[str, Any]:
        bars = self.daily.filter((pl.col("symbol") == symbol) & (pl.col("session") <= until)).tail(1)
        if bars.is_empty():
            raise RefusedError(422, 42210000, f"{symbol} had not traded by {until}")
        return bars.row(0, named=True)

    def _rows(self, timeframe: str, now: datetime) -> pl.DataFrame:
        """Returns symbol, session, t (the start), OHLC and volume of what has traded by `now`."""
        if timeframe in {"1Day", "1D"}:
            midnight = pl.col("session").cast(pl.Datetime("us")).dt.replace_time_zone(NEW_YORK.key)
            rows = _partial(self.daily, now).with_columns(midnight.dt.convert_time_zone("UTC").alias("t"))
            return rows.sort("symbol", "t")
        minutes = _minutes(timeframe)
        if self.intraday is None:
            raise RefusedError(422, 42210000, f"timeframe {timeframe}: the fake was given daily bars only")
        base = self.intraday.filter(pl.col("end") <= now.astimezone(UTC)).with_columns(
            (pl.col("end") - timedelta(minutes=_BASE_MINUTES)).dt.truncate(f"{minutes}m").alias("t")
        )
        merged = base.sort("symbol", "end").group_by("symbol", "t", maintain_order=True)
        return merged.agg(
            pl.col("session", "open").first(),
            pl.col("high").max(),
            pl.col("low").min(),
            pl.col("close").last(),
            pl.col("volume").sum(),
        )

    def _adjusted(self, rows: pl.DataFrame, adjustment: Adjustment) -> pl.DataFrame:
        if adjustment == "raw":
            return rows
        rows = rows.join(_factors(self.daily), on=["symbol", "session"], how="left", maintain_order="left")
        shares = pl.col("shares") if adjustment != "dividend" else pl.lit(1.0)
        paid = pl.col("paid") if adjustment != "split" else pl.lit(1.0)
        return rows.with_columns(*(pl.col(n) * paid / shares for n in PRICES), pl.col("volume") * shares)


@functools.cache
def schedule() -> dict[date, Hours]:
    """Returns the bells of every exchange day, oldest first."""
    import exchange_calendars  # noqa: PLC0415  (half a second)

    table = exchange_calendars.get_calendar("XNYS", start="1990-01-01").schedule
    bells = zip(table["open"], table["close"], strict=True)
    hours = (Hours(a.to_pydatetime().astimezone(NEW_YORK), b.to_pydatetime().astimezone(NEW_YORK)) for a, b in bells)
    return {bell.open.date(): bell for bell in hours}


def token_after(*key: str) -> str:
    """Returns the page token of the rows whose sort key is greater than `key`; what follows two parts is ignored."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode()


def _position(token: str) -> Sequence[str]:
    try:
        first, second, *_ = json.loads(base64.urlsafe_b64decode(token))
    except ValueError as error:
        raise RefusedError(400, 40010001, "invalid page_token") from error
    return first, second


def _instant(text: str, *, ends: bool) -> datetime:
    try:
        if len(text) > len("2012-06-15"):
            moment = datetime.fromisoformat(text)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        day = date.fromisoformat(text)
    except ValueError as error:
        raise RefusedError(422, 42210000, f"{text}: {error}") from error
    return datetime.combine(day, time.max, NEW_YORK) if ends else datetime.combine(day, time.min, UTC)


def _minutes(timeframe: str) -> int:
    match = re.fullmatch(r"(\d{1,2})(Min|T|Hour|H)", timeframe)
    minutes = 0 if match is None else int(match[1]) * (60 if match[2].startswith("H") else 1)
    if minutes == 0 or minutes % _BASE_MINUTES:
        raise RefusedError(422, 42210000, f"timeframe {timeframe}: the fake has 1Day and multiples of 5Min")
    return minutes


def _partial(daily: pl.DataFrame, now: datetime) -> pl.DataFrame:
    """Returns the sessions begun by `now`; of one in progress only the open has traded."""
    today = now.date()
    hours = schedule().get(today)
    before = pl.col("session") < today
    if hours is None or now < hours.open:
        return daily.filter(before)
    if now >= hours.close:
        return daily.filter(pl.col("session") <= today)
    traded = {name: pl.when(before).then(pl.col(name)).otherwise(pl.col("open")) for name in PRICES}
    volume = pl.when(before).then(pl.col("volume")).otherwise((pl.col("volume") / 2).floor())
    return daily.filter(pl.col("session") <= today).with_columns(**traded, volume=volume)


def _factors(daily: pl.DataFrame) -> pl.DataFrame:
    """Returns symbol, session, and what later events made of a share then: `shares` it became, `paid` of its price."""
    before = pl.col("close").shift(1).over("symbol") / pl.col("split")
    kept = (1 - pl.col("dividend") / before).fill_null(1.0)

    def after(growth: pl.Expr) -> pl.Expr:
        return growth.shift(-1, fill_value=1.0).cum_prod(reverse=True).over("symbol")

    return daily.with_columns(kept=kept).select(
        "symbol", "session", shares=after(pl.col("split")), paid=after(pl.col("kept"))
    )


def _actions(daily: pl.DataFrame) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in daily.filter((pl.col("split") != 1) | (pl.col("dividend") > 0)).iter_rows(named=True):
        symbol, day = row["symbol"], row["session"]
        if row["split"] != 1:
            kind = "forward_splits" if row["split"] > 1 else "reverse_splits"
            rate = Fraction(row["split"]).limit_denominator(1000)
            cusips = ("cusip",) if row["split"] > 1 else ("old_cusip", "new_cusip")
            action = _action(kind, symbol, day, day) | dict.fromkeys(cusips, _cusip(symbol))
            found.setdefault(kind, []).append(action | {"new_rate": rate.numerator, "old_rate": rate.denominator})
        if row["dividend"] > 0:
            action = _action("cash_dividends", symbol, day, day + _PAID_AFTER) | {"cusip": _cusip(symbol)}
            dividend = {"rate": row["dividend"], "special": False, "foreign": False}
            found.setdefault("cash_dividends", []).append(action | dividend)
    return found


def _action(kind: str, symbol: str, ex_date: date, process_date: date) -> dict[str, Any]:
    name = f"{kind} {symbol} {ex_date}"
    dates = {"ex_date": ex_date.isoformat(), "process_date": process_date.isoformat()}
    return {"id": str(uuid.uuid5(NAMES, name)), "symbol": symbol, **dates}


def _cusip(symbol: str) -> str:
    return uuid.uuid5(NAMES, symbol).hex[:9].upper()


def _bar_json(row: dict[str, Any]) -> dict[str, Any]:
    typical = (row["high"] + row["low"] + row["close"]) / 3
    prices = {"o": row["open"], "h": row["high"], "l": row["low"], "c": row["close"]}
    return {"t": row["t"].strftime(_STAMP), **prices, "v": round(row["volume"]), "n": 1, "vw": typical}
