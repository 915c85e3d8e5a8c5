"""What a sweep showed out of sample, in numbers that count every try: the folds' test spans, never the holdout.

T sessions, N configurations.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date
from typing import NamedTuple

import numpy as np

from data_pipeline.config import Config
from data_pipeline.errors import RunError
from data_pipeline.folds import Fold
from data_pipeline.panel import Panel
from envs.backtest import backtest
from envs.contract import Floats, Policy
from envs.costs import SESSIONS_PER_YEAR
from envs.simulator import EnvConfig
from rl.judging import significance
from rl.judging.course import returns_of
from rl.judging.criteria import JudgeConfig
from rl.judging.metrics import drawdowns, sharpe, solvent_returns
from rl.judging.trial_ledger import TrialLedger, TrialRecord


class Account(Config):
    """An account over the concatenated test spans of all folds, by its returns."""

    name: str
    """Of the policy."""
    sharpe: float
    """Annualised."""
    sharpe_lower: float | None
    """Lower end of its 95 % interval (studentised block bootstrap); None where the returns allow none."""
    sharpe_upper: float | None
    """Upper end."""
    annual_return: float
    """Compound growth per year."""
    volatility: float
    """Per year."""
    max_drawdown: float
    """Zero or negative."""
    value_at_risk: float
    """Loss of one session that is exceeded in one of twenty."""
    expected_shortfall: float
    """Mean loss of those sessions."""
    beta: float
    """To equal weight."""


class Evidence(Config):
    """Statistics of the winner and of the search for it."""

    winner: str
    """Its settings."""
    benchmark: str
    """The baseline to beat."""
    first_session: date
    """Of the first fold's test span."""
    last_session: date
    """Of the last fold's test span."""
    sessions: int
    """T."""
    configurations: int
    """N of this sweep, those stopped early included."""
    trials: int
    """Tried in the whole project, by the trial ledger."""
    accounts: tuple[Account, ...]
    """The winner's, then the baselines'."""
    superiority_p: float
    """Of Hansen's test, consistent form: how often luck alone makes the best of N look so superior."""
    superiority_lower: float
    """The same, liberal form."""
    superiority_upper: float
    """The same, conservative form."""
    overfitting: float | None
    """PBO: how often the best in one half of the sessions is among the worse configurations in the other. Where all
    are equally good, or bad, it is 0.5. None with one configuration."""
    loss: float | None
    """How often the best against the benchmark in one half does no better than the benchmark in the other. None with
    one configuration."""
    deflated_sharpe: float
    """Probability that the winner's ratio is above what the best of all trials would have by luck."""
    deflated_threshold: float
    """That ratio, per year."""
    difference: float
    """Winner's Sharpe ratio less the benchmark's, per year (Ledoit and Wolf 2008)."""
    difference_lower: float | None
    """Lower end of its 95 % interval; None where the returns allow none."""
    difference_upper: float | None
    """Upper end."""
    difference_p: float
    """Two-sided p-value."""
    minimum_sessions: float | None
    """Sessions after which such a Sharpe ratio would be surely above zero (MinTRL); None: never."""
    minimum_years: float
    """History below which the best of so many trials is expected to show a Sharpe ratio of 1 by luck (MinBTL)."""


class Series(NamedTuple):
    """Out-of-sample returns of one sweep."""

    sessions: tuple[date, ...]
    """T of them."""
    returns_TN: Floats
    """Of each configuration, the mean over its seeds; where one was stopped early, the benchmark's from then on."""
    labels: tuple[int, ...]
    """Numbers of the N trials."""
    baselines: dict[str, Floats]
    """Name -> `[T]`."""


def series_of(
    records: Sequence[TrialRecord],
    panel: Panel,
    folds: Sequence[Fold],
    env: EnvConfig,
    baselines: Sequence[Policy],
    benchmark: str,
) -> Series:
    """Returns the returns of all trials with a whole fold, and of the baselines on the same sessions."""
    spans = [fold.test for fold in folds]
    account = (env.limits, env.costs, env.initial_cash_usd)
    base = {
        policy.name: np.concatenate([solvent_returns(backtest(policy, panel, span, *account)) for span in spans])
        for policy in baselines
    }
    sessions = tuple(panel.sessions[row].item() for span in spans for row in range(span.start, span.stop))
    scored = [record for record in records if _complete_folds(record)]
    if not scored:
        raise RunError("the trial ledger holds no whole fold of this sweep; is it the ledger that the sweep wrote to?")
    columns = [_filled(record, base[benchmark]) for record in scored]
    labels = tuple(record.began.trial for record in scored)
    return Series(sessions, np.stack(columns, axis=1), labels, base)


def _filled(record: TrialRecord, benchmark: Floats) -> Floats:
    mean = np.mean(list(returns_of(record, _complete_folds(record)).values()), axis=0)
    filled = benchmark.copy()
    filled[: len(mean)] = mean
    return filled


def _complete_folds(record: TrialRecord) -> list[str]:
    """Returns the first folds that all seeds have a score on."""
    found: list[str] = []
    for fold in record.began.folds:
        if sum(each.fold == fold.name for each in record.scores) < len(record.began.seeds):
            break
        found.append(fold.name)
    return found


def evidence_of(series: Series, winner: int, label: str, ledger: TrialLedger, config: JudgeConfig) -> Evidence:
    """Returns the statistics.

    Args:
        series: Of the sweep.
        winner: Number of the winning trial.
        label: Its settings.
        ledger: Of the project, for the number of trials and the spread of their ratios.
        config: Of the judge.
    """
    own, benchmark = series.returns_TN[:, series.labels.index(winner)], series.baselines[config.benchmark]
    superior = significance.superior(series.returns_TN, benchmark, seed=config.seed)
    overfitting, loss = _halves(series.returns_TN, benchmark, config.overfitting_blocks)
    shape, trials = significance.moments(own), max(ledger.count(), 1)
    deflated = significance.deflated_sharpe(shape, trials, _spread(ledger))
    difference = significance.sharpe_difference(own, benchmark, seed=config.seed)
    needed = significance.minimum_track_record(shape)
    market = series.baselines["equal-weight"]
    return Evidence(
        winner=label,
        benchmark=config.benchmark,
        first_session=series.sessions[0],
        last_session=series.sessions[-1],
        sessions=len(series.sessions),
        configurations=series.returns_TN.shape[1],
        trials=trials,
        accounts=(
            _account("winner", own, market, config.seed),
            *(_account(name, returns, market, config.seed) for name, returns in series.baselines.items()),
        ),
        superiority_p=superior.p_consistent,
        superiority_lower=superior.p_lower,
        superiority_upper=superior.p_upper,
        overfitting=overfitting,
        loss=loss,
        deflated_sharpe=deflated.probability,
        deflated_threshold=deflated.threshold * SESSIONS_PER_YEAR**0.5,
        difference=difference.difference,
        difference_lower=_finite(difference.lower),
        difference_upper=_finite(difference.upper),
        difference_p=difference.p_value,
        minimum_sessions=_finite(needed),
        minimum_years=significance.minimum_backtest_years(trials, 1.0),
    )


def _halves(returns_TN: Floats, benchmark: Floats, blocks: int) -> tuple[float | None, float | None]:
    """Returns the probabilities of overfitting and of loss, for a choice of several."""
    if returns_TN.shape[1] == 1:
        return None, None
    among = significance.overfitting_probability(returns_TN, blocks)
    against = significance.overfitting_probability(returns_TN - benchmark[:, None], blocks)
    return among.probability, against.loss


def _spread(ledger: TrialLedger) -> float:
    """Returns the standard deviation of all trials' Sharpe ratios per session; 0 for fewer than two."""
    ratios = [
        sharpe(np.mean(list(returns_of(record, folds).values()), axis=0)).ratio / SESSIONS_PER_YEAR**0.5
        for record in ledger.trials()
        if (folds := _complete_folds(record))
    ]
    return float(np.std(ratios, ddof=1)) if len(ratios) > 1 else 0.0


def _account(name: str, returns: Floats, market: Floats, seed: int) -> Account:
    path = np.concatenate([[1.0], np.cumprod(1.0 + returns)])
    ratio = significance.sharpe_interval(returns, seed=seed)
    return Account(
        name=name,
        sharpe=ratio.ratio,
        sharpe_lower=_finite(ratio.lower),
        sharpe_upper=_finite(ratio.upper),
        annual_return=float(max(path[-1], 0.0) ** (SESSIONS_PER_YEAR / len(returns)) - 1.0),
        volatility=float(returns.std(ddof=1)) * SESSIONS_PER_YEAR**0.5,
        max_drawdown=float(drawdowns(path).min()),
        value_at_risk=significance.value_at_risk(returns),
        expected_shortfall=significance.expected_shortfall(returns),
        beta=significance.beta(returns, market),
    )


def _finite(number: float) -> float | None:
    return float(number) if np.isfinite(number) else None
