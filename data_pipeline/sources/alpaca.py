"""Historical bars of US stocks from Alpaca, with their splits and dividends.

alpaca-py sends the requests; the pages are turned here, because its own loop never ends on a server that
always names a next page. Only sessions that are over are returned: one counts as over 15 minutes after
its closing bell, which is also when the free plan shows SIP data.

Bars are downloaded in chunks of some symbols and one year (daily) or month (intraday). Corporate actions
are asked for anew by every fetch, as Alpaca does not promise when they appear.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

import polars as pl
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, field_validator

from data_pipeline.alpaca_http import AlpacaKeys, Patience, PatientReader
from data_pipeline.config import Config
from data_pipeline.errors import AlpacaError, BarsError, ConfigError, UnknownSymbolError
from data_pipeline.intraday import MINUTES, checked_intraday, resample
from data_pipeline.schema import PRICES, Timeframe, checked
from data_pipeline.sessions import INSTANT, schedule, sessions_of
from data_pipeline.sources.alpaca_actions import Action, read_actions, with_actions
from data_pipeline.sources.chunks import Chunks

_LOG = logging.getLogger(__name__)
_NEW_YORK = ZoneInfo("America/New_York")
_OVER_AFTER = timedelta(minutes=15)
# Alpaca cuts hours by the clock, so the one of the open holds half an hour of pre-market.
_ON_THE_WIRE: dict[Timeframe, str] = {"1Day": "1Day", "1Hour": "30Min", "5Min": "5Min"}
_WIRE_MINUTES: dict[Timeframe, int] = {"1Hour": 30, "5Min": 5}
_SPAN: dict[Timeframe, str] = {"1Day": "1y", "1Hour": "1mo", "5Min": "1mo"}
_ACTIONS_PER_PAGE = 1000
# Actions are found by the day Alpaca books them, which for a dividend is the payment, weeks after the ex-date.
_BOOKED_BEFORE, _BOOKED_AFTER = timedelta(days=30), timedelta(days=180)
_CHUNK_FORMAT = 1

Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]


class AlpacaConfig(Config):
    """What is asked of Alpaca, and how patiently; the keys come from the environment only."""

    feed: Literal["sip", "iex"] = "sip"
    """sip: all US exchanges. iex: one exchange, about 2.5 % of the volume; not comparable with sip."""
    adjustment: Literal["raw", "split", "dividend", "all"] = "raw"
    """raw prices come with splits and dividends beside them; the others have them inside the prices."""
    asof: date | Literal["-"] | None = None
    """Day on which the tickers name their companies, '-': ignore renames; none: the last session asked for."""
    url: str | None = None
    """Base URL of a fake server; left out: Alpaca."""
    symbols_per_request: Annotated[int, Field(ge=1, le=200)] = 50
    """How many symbols share a request; with a year (daily) or a month (intraday) it makes one chunk."""
    bars_per_page: Annotated[int, Field(ge=1, le=10_000)] = 10_000
    """Alpaca's page size."""
    spare_pages: Annotated[int, Field(ge=0)] = 20
    """Pages allowed beyond those that the calendar can fill, as Alpaca may send short ones."""
    patience: Patience = Patience()
    """Timeouts, retries and the deadline."""

    @field_validator("url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.query:
            raise ValueError("give a URL such as http://127.0.0.1:8100, or leave the setting out")
        return value.rstrip("/")


class AlpacaBars:
    """Daily, hourly and five-minute bars from Alpaca.

    Args:
        config: What to ask for.
        cache: Folder of finished chunks, so that a fetch that failed or was killed goes on where it stopped;
            None: none are kept.
        on_progress: Is told (chunks done, chunks in all).
        now: The present, aware.
        sleep: Waits so many seconds.

    Raises:
        ConfigError: The keys are not in the environment.
    """

    def __init__(
        self,
        config: AlpacaConfig,
        cache: Path | None = None,
        on_progress: Callable[[int, int], None] = lambda _done, _total: None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._config = config
        self._reader = PatientReader(config.patience, AlpacaKeys.from_environment(), now, sleep)
        self._chunks = None if cache is None else Chunks(cache)
        self._on_progress = on_progress
        self._now = now
        self._unhandled: list[str] | None = None

    def fetch(
        self,
        symbols: Sequence[str] | None = None,
        start: date | None = None,
        end: date | None = None,
        timeframe: Timeframe = "1Day",
    ) -> pl.DataFrame:
        """Returns checked bars of `symbols` from `start` to `end`, both included, of sessions that are over.

        Daily tables carry the corporate actions when the adjustment is raw. Hours are counted from the
        opening bell.

        Args:
            symbols: Must be given: Alpaca has no list to take all from.
            start: Must be given.
            end: None, or later than the last session that is over: that session.
            timeframe: Of the bars.

        Raises:
            ConfigError: No symbols, no start, or dates that the calendar does not know.
            UnknownSymbolError: Symbols without bars in the whole span.
            BarsError: A bar or an action is not fit for use; named by symbol and time.
            AlpacaError: Alpaca cannot be reached, refuses, or its pages do not end.
            StoreError: A finished chunk cannot be kept.
        """
        names = _names(symbols)
        bells = self._bells(start, end)
        first, last = bells["session"][0], bells["session"][-1]
        self._reader.start_clock()
        rows = self._rows(names, bells, timeframe)
        found = _daily(rows) if timeframe == "1Day" else _regular(rows, _WIRE_MINUTES[timeframe])
        found = found.filter(pl.col("session").is_between(first, last))
        if absent := sorted(set(names) - set(found["symbol"].unique())):
            raise UnknownSymbolError(
                f"Alpaca {self._config.feed}: no bars for {', '.join(absent)} from {first} to {last}; "
                "check the spelling and the dates, or leave them out"
            )
        source = f"Alpaca {self._config.feed}"
        if timeframe != "1Day":
            bars = checked_intraday(found, _WIRE_MINUTES[timeframe], source)
            return resample(bars, MINUTES[timeframe]) if timeframe == "1Hour" else bars
        if self._config.adjustment == "raw":
            found = with_actions(found, self._actions(names, first, last))
        return checked(found, source)

    def provenance(self) -> Mapping[str, str]:
        """See `BarSource.provenance`.

        `unhandled_actions` lists what the last daily fetch met and bars cannot express, such as spin-offs.
        """
        config = self._config
        raw = config.adjustment == "raw"
        unhandled = "not asked for" if self._unhandled is None else "; ".join(self._unhandled) or "none"
        return {
            "source": "alpaca",
            "feed": config.feed,
            "adjustment": config.adjustment,
            "asof": str(config.asof or "last session"),
            "actions": "beside raw prices" if raw else f"neutral: prices come adjusted ({config.adjustment})",
            "unhandled_actions": unhandled,
            "endpoint": config.url or "https://data.alpaca.markets",
            "version": f"alpaca-py {version('alpaca-py')}",
        }

    def _bells(self, start: date | None, end: date | None) -> pl.DataFrame:
        """Returns session, open and close of the sessions asked for that are over."""
        if start is None:
            raise ConfigError("source 'alpaca' needs a start; set start to the first session you want")
        today = self._now().astimezone(_NEW_YORK).date()
        end = min(end or today, today)
        bells = schedule(start, end).filter(pl.col("close") + _OVER_AFTER <= self._now().astimezone(UTC))
        if bells.is_empty():
            raise BarsError(f"Alpaca: no session from {start} to {end} is over; choose earlier dates")
        return bells

    def _rows(self, names: Sequence[str], bells: pl.DataFrame, timeframe: Timeframe) -> pl.DataFrame:
        """Returns what Alpaca has: symbol, t (start of the bar), OHLC, volume, extended hours included."""
        from alpaca.data.historical.stock import StockHistoricalDataClient  # noqa: PLC0415  (half a second)

        client = self._reader.client(StockHistoricalDataClient, self._config.url)
        period = pl.col("session").dt.truncate(_SPAN[timeframe])
        spans = bells.with_columns(period=period).partition_by("period", maintain_order=True)
        work = [(group, span) for group in self._groups(names) for span in spans]
        common = {"timeframe": _ON_THE_WIRE[timeframe], "asof": str(self._config.asof or bells["session"][-1])}
        parts = []
        for done, (group, span) in enumerate(work):
            self._on_progress(done, len(work))
            query = {**common, **self._query(group, span)}
            rows_at_most = len(group) * span.height * _bars_a_day(timeframe)
            parts.append(self._chunk(client, query, group, span["session"][-1], rows_at_most))
        self._on_progress(len(work), len(work))
        return pl.concat(parts).sort("symbol", "t")

    def _query(self, group: Sequence[str], span: pl.DataFrame) -> dict[str, str]:
        midnight = datetime.combine(span["session"][0], datetime.min.time(), _NEW_YORK)
        return {
            "symbols": ",".join(group),
            "start": _instant(midnight),
            "end": _instant(span["close"][-1]),
            "feed": self._config.feed,
            "adjustment": self._config.adjustment,
            "sort": "asc",
        }

    def _chunk(
        self, client: Any, query: Mapping[str, str], group: Sequence[str], last: date, rows_at_most: int
    ) -> pl.DataFrame:
        today = self._now().astimezone(_NEW_YORK).date()
        # Alpaca rewrites adjusted prices after every action, so those of two days do not mix.
        adjusted_on = None if self._config.adjustment == "raw" else str(today)
        key = {**query, "url": self._config.url, "adjusted_on": adjusted_on, "format": _CHUNK_FORMAT}
        if self._chunks and (held := self._chunks.find(key)) is not None:
            return held
        rows = self._pages_of_bars(client, query, group, rows_at_most)
        # Volume grows until the evening, and a symbol may be missing by mistake: neither is worth keeping.
        if self._chunks and last < today and rows["symbol"].n_unique() == len(group):
            self._chunks.keep(key, rows)
        return rows

    def _pages_of_bars(
        self, client: Any, query: Mapping[str, str], group: Sequence[str], rows_at_most: int
    ) -> pl.DataFrame:
        parts = [pl.DataFrame(schema=_ROW)]
        newest: dict[str, datetime] = {}
        pages = self._pages(client, "/stocks/bars", query, self._config.bars_per_page, rows_at_most)
        for page in pages:
            for symbol, bars in _bars_of(page, group).items():
                for bar in bars:
                    if symbol in newest and bar.t <= newest[symbol]:
                        raise BarsError(
                            f"Alpaca: bar of {symbol} at {bar.t.isoformat()} came twice or out of order; "
                            "run it again, and report it to Alpaca if it stays"
                        )
                    newest[symbol] = bar.t
                parts.append(_frame(symbol, bars))
        return pl.concat(parts)

    def _actions(self, names: Sequence[str], first: date, last: date) -> list[Action]:
        """Returns the actions with an ex-date from `first` to `last`, and notes those that bars cannot express."""
        from alpaca.data.historical.corporate_actions import CorporateActionsClient  # noqa: PLC0415

        client = self._reader.client(CorporateActionsClient, self._config.url)
        found: dict[str, Action] = {}
        unhandled: set[str] = set()
        for group in self._groups(names):
            query = {
                "symbols": ",".join(group),
                "start": str(first - _BOOKED_BEFORE),
                "end": str(last + _BOOKED_AFTER),
                "sort": "asc",
            }
            rows_at_most = len(group) * (last - first + _BOOKED_BEFORE + _BOOKED_AFTER).days
            for page in self._pages(client, "/corporate-actions", query, _ACTIONS_PER_PAGE, rows_at_most):
                expressed, others = read_actions(page, group, first, last)
                found.update(expressed)
                unhandled.update(others)
        self._unhandled = sorted(unhandled)
        if unhandled:
            _LOG.warning("bars cannot express these corporate actions: %s", "; ".join(self._unhandled))
        return list(found.values())

    def _groups(self, names: Sequence[str]) -> list[Sequence[str]]:
        size = self._config.symbols_per_request
        return [names[i : i + size] for i in range(0, len(names), size)]

    def _pages(
        self, client: Any, path: str, query: Mapping[str, str], limit: int, rows_at_most: int
    ) -> Iterator[dict[str, Any]]:
        """Yields the pages of an answer that can hold no more than `rows_at_most` rows.

        Raises:
            AlpacaError: The pages do not end, or name no next one in a way that can be read.
        """
        most = math.ceil(rows_at_most / limit) + self._config.spare_pages
        seen: set[str] = set()
        asked: dict[str, Any] = {**query, "limit": limit}
        for _ in range(most):
            page = self._reader.get(client, path, asked)
            yield page
            token = page.get("next_page_token", 0)
            if not isinstance(token, str | None):
                raise AlpacaError(f"Alpaca {path}: an answer without a readable next_page_token; run it again later")
            if not token:
                return
            if token in seen:
                raise AlpacaError(f"Alpaca {path}: a page names itself as the next one; run it again later")
            seen.add(token)
            asked["page_token"] = token
        raise AlpacaError(
            f"Alpaca {path}: {most} pages and no end, more than the calendar can fill for {query['symbols'][:60]}; "
            "run it again later, or raise spare_pages"
        )


class _Bar(BaseModel):
    model_config = ConfigDict(extra="ignore")

    t: AwareDatetime
    o: Number
    h: Number
    l: Number  # noqa: E741  (Alpaca's name)
    c: Number
    v: Number


_BARS = TypeAdapter(dict[str, list[_Bar]])
_ROW = {"symbol": pl.String(), "t": INSTANT, **{name: pl.Float64() for name in (*PRICES, "volume")}}


def _bars_of(page: Mapping[str, Any], group: Sequence[str]) -> dict[str, list[_Bar]]:
    """Returns the bars of a page by symbol, or refuses it."""
    found = page.get("bars", "nothing")
    try:
        bars = _BARS.validate_python(found or {})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        raise BarsError(f"Alpaca: {_place(found, first['loc'])}: {first['msg']} ({first['input']!r:.40})") from error
    if strangers := sorted(set(bars) - set(group)):
        raise BarsError(f"Alpaca: answered bars of {', '.join(strangers)}, which was not asked for; run it again")
    return bars


def _place(found: Any, loc: Sequence[int | str]) -> str:
    """Returns the symbol, time and field that a location in the answer stands for."""
    try:
        symbol, index, *field = loc
        bar = found[symbol][index]
        moment = bar.get("t") if isinstance(bar, dict) else f"number {index}"
        return f"bar of {symbol} at {moment}: {'.'.join(map(str, field))}"
    except (ValueError, KeyError, TypeError):
        return f"bars {'.'.join(map(str, loc))}"


def _frame(symbol: str, bars: Sequence[_Bar]) -> pl.DataFrame:
    columns = {
        "t": [bar.t.astimezone(UTC) for bar in bars],
        "open": [bar.o for bar in bars],
        "high": [bar.h for bar in bars],
        "low": [bar.l for bar in bars],
        "close": [bar.c for bar in bars],
        "volume": [bar.v for bar in bars],
    }
    return pl.DataFrame(columns, {k: v for k, v in _ROW.items() if k != "symbol"}).select(
        pl.lit(symbol).alias("symbol"), pl.all()
    )


def _names(symbols: Sequence[str] | None) -> list[str]:
    if not symbols:
        raise ConfigError("source 'alpaca' needs symbols; set symbols, such as [AAPL, MSFT]")
    for name in symbols:
        if not re.fullmatch(r"[A-Z][A-Z0-9.]{0,11}", name):
            raise ConfigError(f"symbol {name!r}: write it as Alpaca does, in capitals, such as AAPL or BRK.B")
    return sorted(set(symbols))


def _bars_a_day(timeframe: Timeframe) -> int:
    """Returns how many bars a session can have at most, all hours of the night included."""
    return 1 if timeframe == "1Day" else 24 * 60 // _WIRE_MINUTES[timeframe]


def _instant(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _daily(rows: pl.DataFrame) -> pl.DataFrame:
    """Names each bar by its New York date: the hour of its UTC stamp depends on daylight saving."""
    return rows.with_columns(pl.col("t").dt.convert_time_zone(_NEW_YORK.key).dt.date().alias("session"))


def _regular(rows: pl.DataFrame, minutes: int) -> pl.DataFrame:
    """Returns the bars of the regular hours, labelled by their end."""
    ends = rows["t"].dt.offset_by(f"{minutes}m").alias("end")
    labelled = rows.with_columns(ends, sessions_of(ends).alias("session"))
    return labelled.filter(pl.col("session").is_not_null()).select("symbol", "session", "end", *PRICES, "volume")
