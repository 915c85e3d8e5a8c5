"""Exchange sessions and their bells, from `exchange_calendars`, with no network.

Half days and daylight saving come from the calendar: bells are instants in UTC, never clock times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from datetime import date

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipeline.errors import BarsError, ConfigError

Sessions = npt.NDArray[np.datetime64]
INSTANT = pl.Datetime("us", "UTC")
_FIRST = date(1990, 1, 1)


def sessions_between(start: date, end: date, exchange: str = "XNYS") -> Sessions:
    """Returns the sessions of `exchange` from `start` to `end`, both included, as datetime64[D].

    Raises:
        ConfigError: The exchange is unknown, or the dates are outside 1990-01-01 .. about a year from now.
    """
    days = _all_sessions(exchange)
    first, last = np.datetime64(start, "D"), np.datetime64(end, "D")
    if start < _FIRST or first < days[0] - 7 or last > days[-1]:
        raise ConfigError(f"{start} .. {end}: sessions of {exchange} are known from {days[0]} to {days[-1]}")
    low, high = np.searchsorted(days, first), np.searchsorted(days, last, side="right")
    return days[low:high]


def next_session(session: date, exchange: str = "XNYS") -> date:
    """Returns the first session after `session`.

    Raises:
        ConfigError: The calendar does not reach that far.
    """
    days = _all_sessions(exchange)
    at = np.searchsorted(days, np.datetime64(session, "D"), side="right")
    if at == len(days):
        raise _beyond(session, exchange)
    following: date = days[at].item()
    return following


def schedule(start: date, end: date, exchange: str = "XNYS") -> pl.DataFrame:
    """Returns the bells of the sessions from `start` to `end`, both included.

    Columns: session Date; open and close, the opening and closing bell, Datetime("us", "UTC").

    Raises:
        ConfigError: As `sessions_between`.
    """
    days = sessions_between(start, end, exchange)
    first = int(np.searchsorted(_all_sessions(exchange), np.datetime64(start, "D")))
    return _schedule(exchange).slice(first, len(days))


def bells_of(sessions: pl.Series, exchange: str = "XNYS") -> pl.DataFrame:
    """Returns session, open and close as `schedule` has them, a row for each of `sessions`; null bells where none."""
    return (
        sessions.alias("session").to_frame().join(_schedule(exchange), on="session", how="left", maintain_order="left")
    )


def sessions_of(instants: pl.Series, exchange: str = "XNYS") -> pl.Series:
    """Returns the session that each instant lies in, Date; null outside the regular hours.

    A session holds the instants after its opening bell, up to and including its closing bell: what suits
    bars labelled by their end. A lunch break, on exchanges that have one, belongs to the session.

    Args:
        instants: Datetime of any unit and time zone, in any order; null gives null.
        exchange: Calendar name.

    Raises:
        BarsError: The instants have no time zone.
    """
    require_zone(instants)
    bells = _schedule(exchange)
    at = instants.cast(INSTANT).to_numpy()
    row = np.searchsorted(bells["open"].to_numpy(), at) - 1
    inside = (row >= 0) & (at <= bells["close"].to_numpy()[row])
    return pl.Series(instants.name, np.where(inside, _all_sessions(exchange)[row], np.datetime64("NaT")))


def require_zone(instants: pl.Series) -> None:
    """Refuses instants without a time zone.

    Raises:
        BarsError: Naming the column, its type and the remedy.
    """
    if getattr(instants.dtype, "time_zone", None) is None:
        raise BarsError(
            f"{instants.name or 'instants'} is {instants.dtype}, which holds no time zone; "
            'name it, for instance by dt.replace_time_zone("America/New_York")'
        )


def ordinals(sessions: Sessions, exchange: str = "XNYS") -> npt.NDArray[np.int64]:
    """Returns the running number of each session, `[T]`: neighbours on the calendar differ by one.

    Raises:
        ConfigError: A day is no session of the exchange.
    """
    days = _all_sessions(exchange)
    at = np.searchsorted(days, sessions)
    strangers = sessions[days[np.minimum(at, len(days) - 1)] != sessions]
    if len(strangers):
        raise ConfigError(f"{strangers[0]}: not a session of {exchange}; drop the day or name the right exchange")
    return at


def week_ends(sessions: Sessions, exchange: str = "XNYS") -> Sessions:
    """Returns the last exchange session of each session's calendar week (Monday to Sunday), `[T]` datetime64[D].

    Known from the calendar, never from data: a week in progress has its end too.

    Raises:
        ConfigError: A day is no session, or so far ahead that the end of its week is not known.
    """
    # 1970-01-01 was a Thursday.
    return _period_ends(sessions, exchange, lambda days: (days.astype(np.int64) + 3) // 7)


def month_ends(sessions: Sessions, exchange: str = "XNYS") -> Sessions:
    """Returns the last exchange session of each session's calendar month, as `week_ends`."""
    return _period_ends(sessions, exchange, lambda days: days.astype("datetime64[M]").astype(np.int64))


def week_closes(sessions: Sessions, exchange: str = "XNYS") -> npt.NDArray[np.bool_]:
    """Returns True on the last exchange session of a calendar week, `[T]`; see `week_ends`."""
    return np.asarray(week_ends(sessions, exchange) == sessions)


def month_closes(sessions: Sessions, exchange: str = "XNYS") -> npt.NDArray[np.bool_]:
    """Returns True on the last exchange session of a calendar month, `[T]`; see `month_ends`."""
    return np.asarray(month_ends(sessions, exchange) == sessions)


def _period_ends(sessions: Sessions, exchange: str, period: Callable[[Sessions], npt.NDArray[np.int64]]) -> Sessions:
    ordinals(sessions, exchange)
    days = _all_sessions(exchange)
    # The calendar stops somewhere inside its last period, so that one has no known end.
    ends = days[:-1][np.diff(period(days)) != 0]
    at = np.searchsorted(ends, sessions)
    if len(unknown := sessions[at == len(ends)]):
        raise _beyond(unknown[0], exchange)
    return ends[at]


def _beyond(day: date | np.datetime64, exchange: str) -> ConfigError:
    last = _all_sessions(exchange)[-1]
    return ConfigError(f"{day}: the calendar of {exchange} ends {last}; ask for an earlier session")


@functools.cache
def _all_sessions(exchange: str) -> Sessions:
    return _schedule(exchange)["session"].to_numpy()


@functools.cache
def _schedule(exchange: str) -> pl.DataFrame:
    # Imported here: it costs half a second, and most commands never ask.
    import exchange_calendars  # noqa: PLC0415

    if exchange not in exchange_calendars.get_calendar_names():
        raise ConfigError(f"unknown exchange {exchange!r}; give a calendar name such as XNYS")
    try:
        table = exchange_calendars.get_calendar(exchange, start=_FIRST).schedule
    except ValueError:  # it is not known so far back
        known = exchange_calendars.get_calendar(exchange).bound_min()
        table = exchange_calendars.get_calendar(exchange, start=known).schedule
    bells = {name: pl.Series(table[name].dt.tz_localize(None).to_numpy()) for name in ("open", "close")}
    return pl.DataFrame({"session": table.index.to_numpy(), **bells}).select(
        pl.col("session").cast(pl.Date),
        pl.col("open", "close").dt.cast_time_unit("us").dt.replace_time_zone("UTC"),
    )
