"""Where a policy's return comes from: in which regimes it was earned, and which features it hangs on.

T sessions, N symbols, F features.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import Literal, NamedTuple

import numpy as np

from data_pipeline.config import Config
from data_pipeline.errors import ConfigError
from data_pipeline.features import feature
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from data_pipeline.scaling import fit_scaler
from envs.backtest import Ledger, backtest
from envs.contract import Bools, Floats, Policy, Window
from envs.costs import SESSIONS_PER_YEAR, Costs
from envs.limits import Limits
from rl.judging.metrics import sharpe, solvent_returns

VOLATILITY_SESSIONS = 20
TREND_SESSIONS = (50, 200)
"""Of the shorter and the longer mean."""
HISTORY_SESSIONS = 252
"""Volatilities that must be known before one can be ranked."""
VOLATILITIES = ("calm", "middling", "wild", "unknown")
TRENDS = ("up", "down", "unknown")
EVERYTHING = "everything"
"""Group of all features together."""


class Regime(Config):
    """What a policy did in the sessions of one regime."""

    kind: Literal["volatility", "trend"]
    """Of the equally weighted set."""
    name: str
    """calm, middling, wild: the tercile of volatility among all sessions before; up, down: the trend; unknown: too
    little history."""
    sessions: int
    """Out-of-sample sessions that filled in it."""
    annual_return: float
    """Mean daily return times 252, net of costs: the sessions are scattered, so nothing compounds."""
    sharpe: float
    """Annualised, of these sessions alone."""
    sharpe_error: float | None
    """Its standard error; none for returns that do not vary. Regimes are short: mind it."""
    excess: float
    """Mean daily difference from the benchmark, times 252."""


class Ablation(Config):
    """What becomes of a policy that is shown the training medians in place of one group's features."""

    group: str
    """Family of the features, or the name of one that has none; everything: no feature is shown."""
    features: tuple[str, ...]
    """That were hidden."""
    sharpe_change: float
    """Sharpe ratio without them less that with them, over the same sessions: negative where they helped."""
    position_change: float
    """Mean absolute difference of the target positions without them from those with them, over all decisions on a
    symbol that traded and that neither left alone; 0 where the features play no part."""


class Labels(NamedTuple):
    """The regime in which each session filled, known at the close before it, `[T]` each."""

    volatility: tuple[str, ...]
    trend: tuple[str, ...]


def labels(panel: Panel, sessions: Sequence[date]) -> Labels:
    """Returns the regimes of `sessions`, each by bars up to the close of the session before it.

    volatility: standard deviation of the last 20 returns of the equally weighted set, ranked among all such values of
    the panel so far (an expanding history of at least 252): lowest third calm, highest third wild.
    trend: up where the set's mean level of 50 sessions is above that of 200.

    Args:
        panel: Whose symbols make the set; its first rows are the history.
        sessions: Of the panel, in any number of runs; not its first.

    Raises:
        StoreError: The panel lacks one of the sessions.
    """
    decided = [panel.session_index(session) - 1 for session in sessions]
    returns = equal_weight_returns(panel.fields["adjusted_close"][: max(decided, default=0) + 1])
    volatility, trend = _volatility_labels(returns), _trend_labels(returns)
    return Labels(tuple(volatility[t] for t in decided), tuple(trend[t] for t in decided))


def equal_weight_returns(closes: Floats) -> Floats:
    """Returns the mean return over the symbols that have one, `[T]`, of closes `[T, N]`; 0 where none has."""
    returns = np.vstack([np.full((1, closes.shape[1]), np.nan), closes[1:] / closes[:-1] - 1.0])
    known = np.isfinite(returns)
    result: Floats = np.where(known, returns, 0.0).sum(axis=1) / np.maximum(known.sum(axis=1), 1)
    return result


def _volatility_labels(returns: Floats) -> list[str]:
    """Returns the tercile of each session's volatility among those up to it, `[T]`."""
    found, past = ["unknown"] * len(returns), list[float]()
    for t in range(VOLATILITY_SESSIONS, len(returns)):
        now = float(returns[t - VOLATILITY_SESSIONS + 1 : t + 1].std(ddof=1))
        insort(past, now)
        if len(past) >= HISTORY_SESSIONS:
            rank = (bisect_left(past, now) + bisect_right(past, now)) / 2.0 / len(past)
            found[t] = VOLATILITIES[min(int(rank * 3.0), 2)]
    return found


def _trend_labels(returns: Floats) -> list[str]:
    """Returns the trend of the set's total-return level at each session, `[T]`."""
    short, long = TREND_SESSIONS
    sums = np.concatenate([[0.0], np.cumprod(1.0 + returns).cumsum()])
    found = ["unknown"] * min(long - 1, len(returns))
    for t in range(long - 1, len(returns)):
        above = (sums[t + 1] - sums[t + 1 - short]) / short > (sums[t + 1] - sums[t + 1 - long]) / long
        found.append("up" if above else "down")
    return found


def regimes(sessions: Sequence[date], returns: Floats, benchmark: Floats, panel: Panel) -> tuple[Regime, ...]:
    """Returns what was earned in each regime that occurred: volatility, then trend.

    Args:
        sessions: T out-of-sample sessions; those of several folds may follow one another.
        returns: Of the policy, net of costs, `[T]`.
        benchmark: Of the benchmark on the same sessions, `[T]`.
        panel: See `labels`.

    Raises:
        ConfigError: The lengths differ.
    """
    if not len(sessions) == len(returns) == len(benchmark):
        raise ConfigError(
            f"{len(sessions)} sessions, {len(returns)} returns, {len(benchmark)} of the benchmark: give one for each"
        )
    known = labels(panel, sessions)
    kinds: tuple[tuple[Literal["volatility", "trend"], tuple[str, ...], tuple[str, ...]], ...] = (
        ("volatility", VOLATILITIES, known.volatility),
        ("trend", TRENDS, known.trend),
    )
    return tuple(
        _regime(kind, name, returns[inside], benchmark[inside])
        for kind, names, given in kinds
        for name in names
        if (inside := np.array([label == name for label in given], np.bool_)).any()
    )


def _regime(kind: Literal["volatility", "trend"], name: str, returns: Floats, benchmark: Floats) -> Regime:
    ratio, error = sharpe(returns)
    return Regime(
        kind=kind,
        name=name,
        sessions=len(returns),
        annual_return=float(returns.mean()) * SESSIONS_PER_YEAR,
        sharpe=ratio,
        sharpe_error=error,
        excess=float((returns - benchmark).mean()) * SESSIONS_PER_YEAR,
    )


@dataclass(frozen=True)
class Occluded:
    """A policy that is shown fixed numbers in place of some features.

    Attributes:
        policy: Decides.
        columns: Of the hidden features on the F axis.
        shown: What it sees of every feature that is hidden, `[F]`. A value that is absent (NaN) stays so.
    """

    policy: Policy
    columns: tuple[int, ...]
    shown: Floats

    @property
    def name(self) -> str:
        """Of the policy."""
        return self.policy.name

    @property
    def window(self) -> int:
        """Of the policy."""
        return self.policy.window

    def decide(self, window: Window) -> Floats:
        """See `Policy.decide`."""
        features, columns = window.features.copy(), list(self.columns)
        hidden = features[..., columns]
        features[..., columns] = np.where(np.isnan(hidden), hidden, self.shown[columns])
        return self.policy.decide(replace(window, features=features))


def feature_groups(names: Sequence[str]) -> dict[str, tuple[int, ...]]:
    """Returns the columns of each family of features, in the order of their first appearance.

    Families are those of `data_pipeline.features.Feature.group`: trend, momentum, week momentum …; a name that is no
    feature of ours is a group by itself.
    """
    groups: dict[str, tuple[int, ...]] = {}
    for column, name in enumerate(names):
        try:
            group = feature(name).group
        except ConfigError:
            group = name
        groups[group] = (*groups.get(group, ()), column)
    return groups


def ablation(
    policy: Policy,
    panel: Panel,
    span: Span,
    training: Span,
    limits: Limits,
    costs: Costs,
    initial_cash: float = 100_000.0,
    seed: int = 0,
) -> tuple[Ablation, ...]:
    """Returns what each group of features is worth to a policy, and then all of them together.

    A hidden feature is its median over the training span, which is 0 after scaling: it tells nothing. The policy was
    not trained without it, so this says what the policy hangs on, not what could be learnt without it; groups that
    tell the same can stand in for one another, and each then looks worthless.

    Args:
        policy: Judged.
        panel: The market.
        span: Rows of the sessions that fill, out of sample.
        training: Rows that the policy was trained on; for an ensemble those of any member.
        limits: As it is judged.
        costs: As it is judged.
        initial_cash: USD.
        seed: Of random slippage.
    """
    medians = np.asarray(fit_scaler(panel, training).median)

    def run(each: Policy) -> Ledger:
        return backtest(each, panel, span, limits, costs, initial_cash, seed)

    whole, names = run(policy), panel.feature_names
    ready = panel.ready[span.start - 1 : span.stop - 1].reshape(-1)
    found = []
    for group, columns in (*feature_groups(names).items(), (EVERYTHING, tuple(range(len(names))))):
        without = run(Occluded(policy, columns, medians))
        found.append(
            Ablation(
                group=group,
                features=tuple(names[column] for column in columns),
                sharpe_change=sharpe(solvent_returns(without)).ratio - sharpe(solvent_returns(whole)).ratio,
                position_change=_moved(whole, without, ready),
            )
        )
    return tuple(found)


def _moved(one: Ledger, other: Ledger, ready: Bools) -> float:
    """Returns the mean absolute difference of two ledgers' target positions where `ready`, `[T · N]`, says so."""
    targets = [ledger.positions["target_position"].to_numpy() for ledger in (one, other)]
    moved = np.abs(targets[0] - targets[1])[ready]
    spoken = moved[~np.isnan(moved)]
    return float(spoken.mean()) if len(spoken) else 0.0
