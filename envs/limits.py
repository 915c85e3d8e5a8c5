"""Allocation and limits: one object for environment, backtest and executor.

A target position in [-1, 1] is a part of the symbol's *budget*, the weight that a full position has. Allocation
sets the budgets; everything else may only shrink or delay what was asked for. Closing is always allowed, but
for the least holding time.

All arrays are `[N, ...]` for symbols and `[...]` for accounts. A weight of NaN means: leave the position alone.
"""

from __future__ import annotations

from typing import Annotated, Literal, Protocol

import numpy as np
from pydantic import Field, model_validator

from data_pipeline.config import Config
from envs.contract import Bools, Floats, Ints, total
from envs.costs import SESSIONS_PER_YEAR

Fraction = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Sessions = Annotated[int, Field(ge=1)]

TURNOVER_SESSIONS = 20
"""The turnover budget can be saved up for this long."""
PDT_EQUITY_USD, PDT_DAY_TRADES, PDT_SESSIONS = 25_000.0, 3, 5
"""FINRA rule 4210 before 2026-06-04: below this equity, no fourth day trade within five sessions."""


class Limits(Config):
    """What the account may hold, and how fast it may change its mind; shares are of equity."""

    allocation: Literal["equal", "equal_risk", "volatility_target", "kelly"] = "equal"
    """How budgets are set. equal: the same for each tradable symbol; equal_risk: the same volatility for each;
    volatility_target: so that all full positions together reach `volatility_target`; kelly: see `kelly_fraction`."""
    volatility_target: Positive = 0.10
    """Volatility of the account per year when every position is full, for allocation volatility_target."""
    kelly_fraction: Fraction = 0.5
    """Part of the Kelly weight edge / variance, for allocation kelly."""
    kelly_edge_bps: Annotated[float, Field(ge=0)] | None = None
    """Expected return per session of a full position, measured where nothing was chosen; none: unknown, so the
    Kelly budget is zero."""
    kelly_cap: Fraction = 0.25
    """Largest Kelly budget of one symbol."""
    risk_per_trade: Fraction | None = None
    """Largest loss of one position at its stop; without a stop, at a move of `risk_sigmas` daily volatilities."""
    risk_sigmas: Positive = 3.0
    """Adverse move that stands for a stop, in daily volatilities."""
    max_weight: Fraction = 0.95
    """Largest absolute weight of one symbol."""
    max_gross: Fraction = 0.95
    """Largest sum of absolute weights; the rest stays cash, so that an opening gap does not borrow."""
    max_net: Fraction = 1.0
    """Largest absolute sum of weights."""
    long_only: bool = False
    """Turn short targets into cash."""
    unshortable: tuple[str, ...] = ()
    """Symbols that cannot be borrowed: short targets become cash."""
    fractional: bool = False
    """Orders in fractions of a share, to six decimals; otherwise whole shares."""
    no_trade_band: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Skip a trade smaller than this share of equity, unless it closes the position."""
    minimum_trade_usd: Annotated[float, Field(ge=0)] = 0.0
    """Skip a trade smaller than this, unless it closes the position."""
    min_holding_sessions: Annotated[int, Field(ge=0)] = 0
    """A position is not reduced before it was held this long; stops and margin calls are not bound by it."""
    max_holding_sessions: Sessions | None = None
    """A position is closed after this many sessions; it may be opened again from the next decision on."""
    turnover_per_year: Positive | None = None
    """Budget of USD traded, buys and sales both, over equity. What is not used can be saved for 20 sessions; opening
    and increasing trades shrink to what is left."""
    max_session_loss: Fraction | None = None
    """After a session that lost more than this, everything is closed at the next open."""
    max_drawdown: Fraction | None = None
    """Once equity is this far below its highest close, everything is closed and stays so; an episode ends."""
    stop_loss: Fraction | None = None
    """Protective order this far on the wrong side of the average entry price, inside the session."""
    take_profit: Positive | None = None
    """Protective order this far on the right side of the average entry price, inside the session."""
    pattern_day_trader: bool = False
    """Apply the pattern-day-trader rule that held before 2026-06-04: below 25,000 USD nothing is opened once three
    day trades fell within five sessions. Only protective orders can make a day trade here."""

    @model_validator(mode="after")
    def _holding_times_agree(self) -> Limits:
        if self.max_holding_sessions is not None and self.max_holding_sessions < self.min_holding_sessions:
            raise ValueError(
                f"max_holding_sessions {self.max_holding_sessions} is below min_holding_sessions "
                f"{self.min_holding_sessions}; raise one or lower the other"
            )
        return self

    @property
    def brackets(self) -> bool:
        """True where positions carry protective orders."""
        return self.stop_loss is not None or self.take_profit is not None

    @property
    def remembers(self) -> bool:
        """True where targets depend on the account's past beyond its weights and holding times."""
        return any(
            (self.max_session_loss, self.max_drawdown, self.turnover_per_year is not None, self.pattern_day_trader)
        )


class Standing(Protocol):
    """How an account stands after the close of the decision session."""

    @property
    def weights(self) -> Floats:
        """Signed value of each position over equity, `[N, ...]`."""

    @property
    def sessions_held(self) -> Ints:
        """Sessions since each position took its present sign, 0 when flat, `[N, ...]`."""

    @property
    def drawdown(self) -> Floats:
        """How far equity stands below its highest close, a fraction of it, `[...]`."""

    @property
    def session_return(self) -> Floats:
        """Return of the last session, `[...]`."""

    @property
    def turnover_used(self) -> Floats:
        """USD traded over equity that the turnover budget has not yet paid for, `[...]`."""

    @property
    def may_open(self) -> Bools:
        """False where a rule lets positions only shrink, `[...]`."""


def budget_caps(ready: Bools, sigma: Floats, limits: Limits) -> dict[str, Floats]:
    """Returns what bounds a full position's weight, by name, `[N, ...]` each; the budget is the least.

    Args:
        ready: True where a target may be set.
        sigma: Daily volatility as a fraction; NaN or 0 is unknown, and a budget that needs it is then 0.
        limits: The account's limits.
    """
    caps = {"allocation": _allocated(ready, sigma, limits), "max_weight": np.full(sigma.shape, limits.max_weight)}
    if limits.allocation == "kelly":
        caps["kelly_cap"] = np.full(sigma.shape, limits.kelly_cap)
    if limits.risk_per_trade is not None:
        stop = limits.risk_sigmas * sigma if limits.stop_loss is None else np.full(sigma.shape, limits.stop_loss)
        caps["risk_per_trade"] = _over(np.full(sigma.shape, limits.risk_per_trade), stop)
    return caps


def budgets(ready: Bools, sigma: Floats, limits: Limits) -> Floats:
    """Returns the weight of a full position, broadcasts to `[N, ...]`; arguments as for `budget_caps`."""
    if limits.allocation == "equal" and limits.risk_per_trade is None:
        if len(ready) == 1:
            return np.asarray(min(limits.max_gross, limits.max_weight))
        return np.minimum(limits.max_gross / np.maximum(ready.sum(axis=0), 1), limits.max_weight)
    budget = np.minimum.reduce(list(budget_caps(ready, sigma, limits).values()))
    gross = total(np.where(ready, budget, 0.0))
    return budget * np.minimum(1.0, limits.max_gross / np.maximum(gross, limits.max_gross))


def _allocated(ready: Bools, sigma: Floats, limits: Limits) -> Floats:
    count = np.maximum(ready.sum(axis=0), 1)
    equal = np.full(sigma.shape, limits.max_gross) / count
    if limits.allocation == "equal":
        return equal
    if limits.allocation == "equal_risk":
        calm = np.where(ready, _over(np.ones_like(sigma), sigma), 0.0)
        return limits.max_gross * _over(calm, np.broadcast_to(total(calm), calm.shape))
    if limits.allocation == "volatility_target":
        # As if all symbols moved together: errs on the side of smaller positions.
        return _over(np.full(sigma.shape, limits.volatility_target / SESSIONS_PER_YEAR**0.5), sigma * count)
    edge = (limits.kelly_edge_bps or 0.0) * 1e-4
    return limits.kelly_fraction * _over(np.full(sigma.shape, edge), sigma**2)


def _over(numerator: Floats, denominator: Floats) -> Floats:
    """Returns the quotient, 0 where the denominator is not a positive number."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)


def target_weights(
    positions: Floats,
    ready: Bools,
    shortable: Bools,
    sigma: Floats,
    standing: Standing,
    limits: Limits,
) -> Floats:
    """Returns target weights `[N, ...]`; NaN where the position is to be left alone.

    Args:
        positions: Target positions in [-1, 1], `[N, ...]`; NaN leaves a position alone.
        ready: True where a target may be set, `[N, ...]`; elsewhere the position is left alone.
        shortable: True where shares can be borrowed, broadcasts to `[N, ...]`.
        sigma: Daily volatility known at the decision, `[N, ...]`.
        standing: The account.
        limits: Its limits.
    """
    wanted = positions * budgets(ready, sigma, limits)
    if limits.long_only:
        wanted = np.maximum(wanted, 0.0)
    elif limits.unshortable:
        wanted = np.where(shortable, wanted, np.maximum(wanted, 0.0))
    kept = ~ready | np.isnan(positions)
    young: Bools = np.zeros(ready.shape, np.bool_)
    if limits.min_holding_sessions:
        held, weights = standing.sessions_held, standing.weights
        young = (held > 0) & (held < limits.min_holding_sessions)
        kept |= young & (wanted * np.sign(weights) < np.abs(weights))
    if limits.max_holding_sessions is not None:
        wanted = np.where(standing.sessions_held >= limits.max_holding_sessions, 0.0, wanted)
    if limits.turnover_per_year is not None:
        wanted = _within_turnover(wanted, kept, standing, limits.turnover_per_year)
    if limits.pattern_day_trader:
        wanted = np.where(standing.may_open, wanted, _shrinking(wanted, standing.weights))
    if len(ready) > 1 or limits.max_net < limits.max_gross:
        wanted = _within_gross_and_net(wanted, kept, kept | young, standing, limits)
    if np.count_nonzero(kept):
        wanted = np.where(kept, np.nan, wanted)
    if limits.max_drawdown is not None or limits.max_session_loss is not None:
        wanted = np.where(stopped(standing, limits), 0.0, wanted)
    return wanted


def stopped(standing: Standing, limits: Limits) -> Bools:
    """Returns where an account's own loss closes all its positions, `[...]`."""
    lost = standing.session_return < -(limits.max_session_loss or np.inf)
    return lost | (standing.drawdown > (limits.max_drawdown or np.inf))


def _within_gross_and_net(wanted: Floats, kept: Bools, at_least: Bools, standing: Standing, limits: Limits) -> Floats:
    """Shrinks the targets to the room that is left by what is held anyway: `kept`, and the rest of `at_least`."""
    floor = np.where(at_least, standing.weights, 0.0)
    extra = np.where(kept, 0.0, wanted - floor)
    room = limits.max_gross - total(np.abs(floor))
    extra = extra * np.clip(room / np.maximum(total(np.abs(extra)), 1e-12), 0.0, 1.0)
    if limits.max_net < limits.max_gross:
        net = total(floor + extra)
        heavy = extra * np.sign(net) > 0
        excess = np.abs(net) - limits.max_net
        share = np.clip(1.0 - excess / np.maximum(total(np.where(heavy, np.abs(extra), 0.0)), 1e-12), 0.0, 1.0)
        extra = np.where(heavy, extra * share, extra)
    return floor + extra


def turnover_per_session(per_year: float) -> float:
    """Returns what the turnover budget grows by each session, as a share of equity."""
    return per_year / SESSIONS_PER_YEAR


def _within_turnover(wanted: Floats, kept: Bools, standing: Standing, per_year: float) -> Floats:
    """Shrinks what opens or increases a position to the room that what closes leaves."""
    room = turnover_per_session(per_year) * TURNOVER_SESSIONS - standing.turnover_used
    floor = _shrinking(wanted, standing.weights)
    reductions = total(np.where(kept, 0.0, np.abs(standing.weights - floor)))
    increases = total(np.where(kept, 0.0, np.abs(wanted - floor)))
    share = np.clip((room - reductions) / np.maximum(increases, 1e-12), 0.0, 1.0)
    return floor + (wanted - floor) * share


def _shrinking(wanted: Floats, weights: Floats) -> Floats:
    """Returns the part of the way from `weights` to `wanted` that only reduces."""
    return np.where(wanted * weights > 0, np.sign(weights) * np.minimum(np.abs(wanted), np.abs(weights)), 0.0)
