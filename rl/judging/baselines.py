"""Policies that anyone can have for nothing; a learnt one must beat them on the same symbols and sessions.

They hold no state, so one instance may serve any number of backtests.
"""

from __future__ import annotations

import numpy as np

from envs.contract import Floats, Policy, Window

_MONTH_SESSIONS, _YEAR_SESSIONS = 21, 252


class Cash:
    """Holds nothing."""

    name = "cash"
    window = 1

    def decide(self, window: Window) -> Floats:
        """See `Policy.decide`."""
        return np.zeros(len(window.symbols))


class EqualWeight:
    """Keeps every ready symbol at its full budget: sells what rose, buys what fell, beyond the band."""

    name = "equal-weight"
    window = 1

    def decide(self, window: Window) -> Floats:
        """See `Policy.decide`."""
        return window.ready.astype(np.float64)


class BuyAndHold:
    """Buys every ready symbol at its full budget once, then leaves it alone; dividends stay in cash.

    What is held is left alone, also where a winner outgrows its budget. A symbol that becomes ready later is bought
    at its budget, paid for by trimming the others in proportion.
    """

    name = "buy-and-hold"
    window = 1

    def decide(self, window: Window) -> Floats:
        """See `Policy.decide`."""
        held = window.portfolio[:, 0].astype(np.float64)
        new = window.ready & (held == 0.0)
        room = window.ready.sum() - new.sum()
        kept = held * room / held.sum() if new.any() and held.sum() > room else np.full(len(held), np.nan)
        return np.where(new, 1.0, kept)


class Momentum:
    """Holds the symbols whose last twelve months, the latest left out, returned more than nothing.

    12-1 time-series momentum: Jegadeesh and Titman (1993) skip the latest month for its reversal; the sign
    rule per symbol is that of Moskowitz, Ooi and Pedersen (2012).
    """

    name = "momentum-12-1"
    window = _YEAR_SESSIONS + 1

    def decide(self, window: Window) -> Floats:
        """See `Policy.decide`; a symbol without a close on either session is not held."""
        rose = window.closes[-1 - _MONTH_SESSIONS] > window.closes[-1 - _YEAR_SESSIONS]
        return np.asarray(rose & window.ready, np.float64)


BASELINES: tuple[Policy, ...] = (EqualWeight(), BuyAndHold(), Momentum(), Cash())
