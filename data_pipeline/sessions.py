"""Exchange sessions, from `exchange_calendars`, with no network."""

from __future__ import annotations

import functools
from datetime import date

import numpy as np
import numpy.typing as npt

from data_pipeline.errors import ConfigError

Sessions = npt.NDArray[np.datetime64]
_FIRST = date(1990, 1, 1)


def sessions_between(start: date, end: date, exchange: str = "XNYS") -> Sessions:
    """Returns the sessions of `exchange` from `start` to `end`, both included, as datetime64[D].

    Raises:
        ConfigError: The exchange is unknown, or the dates are outside 1990-01-01 .. end of next year.
    """
    days = _all_sessions(exchange)
    first, last = np.datetime64(start, "D"), np.datetime64(end, "D")
    if start < _FIRST or last > days[-1]:
        raise ConfigError(f"{start} .. {end}: sessions of {exchange} are known from {_FIRST} to {days[-1]}")
    low, high = np.searchsorted(days, first), np.searchsorted(days, last, side="right")
    return days[low:high]


def next_session(session: date, exchange: str = "XNYS") -> date:
    """Returns the first session after `session`."""
    days = _all_sessions(exchange)
    following = days[np.searchsorted(days, np.datetime64(session, "D"), side="right")]
    result: date = following.item()
    return result


@functools.cache
def _all_sessions(exchange: str) -> Sessions:
    # Imported here: it costs half a second, and most commands never ask.
    import exchange_calendars  # noqa: PLC0415

    if exchange not in exchange_calendars.get_calendar_names():
        raise ConfigError(f"unknown exchange {exchange!r}; give a calendar name such as XNYS")
    calendar = exchange_calendars.get_calendar(exchange, start=_FIRST)
    return np.asarray(calendar.sessions.to_numpy(), dtype="datetime64[D]")
