"""An ensemble's weights, fixed before it is judged, and how far its members disagree while it is.

The policy itself is `envs.ensemble.Ensemble`: it is judged by `envs.backtest`, exported and served like any other.

M members, T sessions, N symbols.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from data_pipeline.errors import ConfigError
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from envs.backtest import Ledger, backtest
from envs.contract import Floats, Policy, Window
from envs.costs import Costs
from envs.ensemble import Ensemble
from envs.limits import Limits
from rl.judging.metrics import sharpe, solvent_returns


def sharpe_weights(ratios: Sequence[float]) -> tuple[float, ...]:
    """Returns weights in proportion to Sharpe ratios, `[M]`: 0 for a negative one, equal if none is positive.

    The ratios must come from before what is judged: inner validation, never the test span.

    Raises:
        ConfigError: There are none, or one is no finite number.
    """
    known = np.asarray(ratios, np.float64)
    if not len(known) or not np.isfinite(known).all():
        raise ConfigError(f"Sharpe ratios {tuple(ratios)}: give a finite number for each member")
    positive = np.maximum(known, 0.0)
    share = positive if positive.any() else np.ones(len(known))
    return tuple((share / share.sum()).tolist())


def weighted_by_validation(
    name: str,
    members: Sequence[Policy],
    panel: Panel,
    validation: Span,
    limits: Limits,
    costs: Costs,
    initial_cash: float = 100_000.0,
) -> Ensemble:
    """Returns the ensemble weighted by its members' Sharpe ratios, net of costs, over the validation span.

    Args:
        name: Of the ensemble.
        members: M policies, trained on what comes before the span.
        panel: The market.
        validation: Rows of inner validation; they end before what the ensemble is judged on.
        limits: As it will be judged.
        costs: As it will be judged.
        initial_cash: USD.
    """
    ledgers = [backtest(member, panel, validation, limits, costs, initial_cash) for member in members]
    weights = sharpe_weights([sharpe(solvent_returns(ledger)).ratio for ledger in ledgers])
    return Ensemble(name, tuple(members), "sharpe", weights)


def disagreement(ensemble: Ensemble, window: Window) -> Floats:
    """Returns the standard deviation of the members' target positions, `[N]`: 0 they agree, 1 half long, half short.

    Every member counts alike, whatever its weight. Those that leave a position alone do not count; NaN where all do,
    and where the symbol is not ready.
    """
    return _spread(ensemble.targets(window), window)


def disagreement_text(mean: float) -> str:
    """Returns a mean disagreement as a sentence."""
    return (
        f"The members' target positions differ by {mean:.2f} (standard deviation, mean over symbols and sessions; 0: "
        "they agree, 1: half long, half short)."
    )


def _spread(targets: Floats, window: Window) -> Floats:
    spoken = ~np.isnan(targets)
    count = spoken.sum(axis=0)
    mean = np.nan_to_num(targets).sum(axis=0) / np.maximum(count, 1)
    variance = np.where(spoken, (targets - mean) ** 2, 0.0).sum(axis=0) / np.maximum(count, 1)
    return np.where(window.ready & (count > 0), np.sqrt(variance), np.nan)


@dataclass(frozen=True)
class Watched:
    """An ensemble's account, and how far its members disagreed.

    Attributes:
        ledger: As of `envs.backtest.backtest`.
        disagreement: Mean over symbols of `disagreement` at the decision for each session of the ledger, `[T]`; NaN
            where no symbol was ready or no member spoke.
    """

    ledger: Ledger
    disagreement: Floats

    @property
    def mean_disagreement(self) -> float | None:
        """Over the sessions; None where it is known of none."""
        known = self.disagreement[~np.isnan(self.disagreement)]
        return float(known.mean()) if len(known) else None


def watched(
    ensemble: Ensemble,
    panel: Panel,
    span: Span,
    limits: Limits,
    costs: Costs,
    initial_cash: float = 100_000.0,
    seed: int = 0,
) -> Watched:
    """Returns the backtest of an ensemble with its members' disagreement; arguments as for `backtest`."""
    watcher = _Watcher(ensemble)
    ledger = backtest(watcher, panel, span, limits, costs, initial_cash, seed)
    return Watched(ledger, np.array(watcher.seen))


@dataclass
class _Watcher:
    """Decides as the ensemble does and writes down the disagreement, in the order of the decisions."""

    ensemble: Ensemble
    seen: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.ensemble.name

    @property
    def window(self) -> int:
        return self.ensemble.window

    def decide(self, window: Window) -> Floats:
        targets = self.ensemble.targets(window)
        spread = _spread(targets, window)
        known = spread[~np.isnan(spread)]
        self.seen.append(float(known.mean()) if len(known) else float("nan"))
        return np.where(window.ready, self.ensemble.combine(targets), 0.0)
