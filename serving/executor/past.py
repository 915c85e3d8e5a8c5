"""What the journal tells of the account's past, for limits that remember: pure, in the words of `envs.limits`.

The equity of a session is the broker's, as first seen after that session's close. Approximation: an executor that
looks only during the next session takes the opening gap for part of the session before. A deposit looks like a gain
and a withdrawal like a loss; start a new journal after one.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import date, timedelta
from itertools import pairwise
from typing import NamedTuple

from data_pipeline.sessions import sessions_between
from envs.limits import turnover_per_session
from serving.contract import AccountState

_LONGEST_BREAK_DAYS = 14


class Traded(NamedTuple):
    """What the orders of one decision traded, in the session after it."""

    usd: float
    """Buys and sales both."""
    equity: float
    """USD, when the orders were planned."""


class Past(NamedTuple):
    """What was seen and done so far, by session."""

    equities: Mapping[date, float]
    """USD, above zero, as first seen after the session's close."""
    traded: Mapping[date, Traded]
    """By the session of the decision."""


def account_state(past: Past, as_of: date, turnover_per_year: float | None) -> AccountState | None:
    """Returns the account's state after the close of `as_of`; None where its last return is not known.

    An account without any past stands at its peak. One whose equity was not seen in the session before `as_of`
    has no honest last return: a longer one would be a guess at when it was lost.

    Args:
        past: Holds the equity of `as_of`; nothing later is read.
        as_of: The last completed session.
        turnover_per_year: The budget that fills are charged to; None: there is none.
    """
    equities = {session: equity for session, equity in past.equities.items() if session <= as_of}
    now = equities[as_of]
    first_ever = len(equities) == 1 and not any(session < as_of for session in past.traded)
    before = now if first_ever else equities.get(session_before(as_of))
    if before is None:
        return None
    return AccountState(
        drawdown=1.0 - now / max(equities.values()),
        session_return=now / before - 1.0,
        turnover_used=0.0 if turnover_per_year is None else _turnover_used(past, as_of, turnover_per_year),
        may_open=True,
    )


def session_before(session: date) -> date:
    """Returns the exchange session before `session`."""
    days = sessions_between(session - timedelta(days=_LONGEST_BREAK_DAYS), session - timedelta(days=1))
    before: date = days[-1].item()
    return before


def _turnover_used(past: Past, as_of: date, per_year: float) -> float:
    """Returns used_t = max(used_tm1 - per_year / 252, 0) + traded_t / equity_t, as `envs.portfolio` counts it."""
    used = 0.0
    days = [day.item() for day in sessions_between(min(past.traded, default=as_of), as_of)]
    for decided, filled in pairwise(days):
        used = max(used - turnover_per_session(per_year), 0.0)
        if decided in past.traded:
            usd, planned_with = past.traded[decided]
            used += usd / past.equities.get(filled, planned_with)
    return used
