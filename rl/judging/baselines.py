"""Policies that anyone can have for nothing; a learnt one must beat them on the same symbols and sessions.

They hold no state, so one instance may serve any number of backtests.
"""

from __future__ import annotations

import numpy as np

from envs.contract import Floats, Policy, Window
from envs.costs import SESSIONS_PER_YEAR

_MONTH_SESSIONS, _YEAR_SESSIONS = 21, 252
_QUARTER_SESSIONS = 60


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


class VolatilityTarget:
    """Equal weight, shrunk so that the whole would have varied by 10 % a year over the last 60 sessions.

    The judge's fixed benchmark. Volatility timing: Fleming, Kirby and Ostdiek (2001), Moreira and Muir (2017);
    Harvey et al. (2018) find that it raises the Sharpe ratio of stocks. A position never exceeds its full budget: in
    calm markets this is `EqualWeight`.

    Limits: the standard deviation of 60 total-return sessions is all that it knows of risk, so it is late at both
    ends of a crisis. A policy does not see the budgets; full ones together are taken for the whole account, so with
    the usual `max_gross` of 0.95 the account aims at 9.5 %. A symbol is held after 61 complete sessions.
    """

    name = "vol-target-10"
    window = _QUARTER_SESSIONS + 1
    volatility = 0.10
    """Wanted, per year."""

    def decide(self, window: Window) -> Floats:
        """See `Policy.decide`; nothing is held while fewer than two returns are known."""
        deviation = equal_weight_deviation(window.closes[:, window.ready]) * SESSIONS_PER_YEAR**0.5
        scale = 0.0 if np.isnan(deviation) else self.volatility / max(deviation, self.volatility)
        return window.ready * scale


def equal_weight_deviation(closes: Floats) -> float:
    """Returns the standard deviation per session of an equally weighted set with closes `[W, N]`.

    The set is brought back to equal weights each session. A return that an absent close (NaN) leaves unknown is the
    mean of the others'; a session without any is left out. NaN for fewer than two sessions.
    """
    returns = closes[1:] / closes[:-1] - 1.0
    known = np.isfinite(returns)
    some = known.any(axis=1)
    together = np.where(known, returns, 0.0).sum(axis=1)[some] / known.sum(axis=1)[some]
    return float(together.std(ddof=1)) if len(together) > 1 else float("nan")


class MovingAverages:
    """Holds the symbols whose mean close of 10 sessions is above that of 50.

    The variable moving average of Brock, Lakonishok and LeBaron (1992), long or flat, on total-return closes.
    """

    name = "sma-10-50"
    window = 50
    short = 10
    """Sessions of the shorter mean."""

    def decide(self, window: Window) -> Floats:
        """See `Policy.decide`; a symbol that lacks one of the closes is not held."""
        above = window.closes[-self.short :].mean(axis=0) > window.closes.mean(axis=0)
        return np.asarray(above & window.ready, np.float64)


BASELINES: tuple[Policy, ...] = (
    EqualWeight(),
    BuyAndHold(),
    Momentum(),
    VolatilityTarget(),
    MovingAverages(),
    Cash(),
)
