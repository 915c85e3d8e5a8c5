"""The course of a sweep, as its driver keeps it: what is to be trained next, what came out, and when to stop.

Everything is in the trial ledger before it counts, and is taken from there when a sweep goes on after an interruption.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, Literal, NamedTuple

import numpy as np

from data_pipeline.folds import Fold
from data_pipeline.panel import Panel
from envs.contract import Floats
from rl.config import RunConfig, with_values
from rl.judging.metrics import sharpe
from rl.judging.place import Training
from rl.judging.search import Past, Search
from rl.judging.trial_ledger import Began, Ended, FoldDates, Scored, TrialLedger, TrialRecord


class Job(NamedTuple):
    """What one Tune trial does."""

    trial: int
    """Number of the configuration in the sweep."""
    values: Mapping[str, Any]
    """Dotted path -> value."""
    folds: tuple[str, ...]
    """To be trained on one after another."""


class Course:
    """See the module."""

    def __init__(
        self, config: RunConfig, sweep: str, panel: Panel, panel_name: str, folds: Sequence[Fold], ledger: TrialLedger
    ) -> None:
        """Takes up a sweep where the ledger says it stands: what failed is tried again, what ended well is not."""
        self.config, self.sweep, self.ledger = config, sweep, ledger
        self.folds = tuple(fold.name for fold in folds)
        self.seeds = seeds_of(config)
        self._dates = tuple(_dates(panel, fold) for fold in folds)
        self._panel, self._source = panel_name, {key: str(value) for key, value in panel.source.items()}
        records = ledger.trials(sweep)
        self.search = Search(config.tune, [_past(record) for record in records])
        self._waiting: deque[Job] = deque()
        self._open: dict[int, int] = {}
        self._errors: dict[int, str] = {}
        self._scores: dict[int, dict[int, float]] = defaultdict(dict)  # folds done -> score, by trial
        for record in records:
            self._take_up(record)

    @property
    def jobs_left(self) -> int:
        """Number of jobs that are not begun yet, those not yet proposed included."""
        each = len(self.folds) if self.config.tune.parallel_folds else 1
        return len(self._waiting) + each * (self.search.size - self.search.proposed)

    @property
    def trainings(self) -> tuple[int, int]:
        """Number of trainings that are done, of stopped trials all, and of all that there are."""
        each = len(self.folds) * len(self.seeds)
        records = self.ledger.trials(self.sweep)
        done = sum(each if _is_over(record) else len(record.scores) for record in records)
        return done, each * self.search.size

    def next(self) -> Job | None:
        """Returns the next job; None when all were given out."""
        if not self._waiting:
            proposal = self.search.propose()
            if proposal is None:
                return None
            self._queue(*proposal)
        job = self._waiting.popleft()
        self.ledger.begin(
            Began(
                sweep=self.sweep,
                trial=job.trial,
                config_hash=chosen(self.config, job.values).digest(),
                values=dict(job.values),
                seeds=self.seeds,
                folds=self._dates,
                panel=self._panel,
                snapshot=self._source,
            )
        )
        return job

    def scored(self, trial: int, trainings: Sequence[Training]) -> None:
        """Records what trainings came to."""
        for training in trainings:
            tree = training.tree()
            del tree["files"]
            self.ledger.score(Scored.of({"sweep": self.sweep, "trial": trial, **tree}, "training"))

    def stops(self, trial: int, done: int, score: float) -> bool:
        """Returns whether a trial with so many folds done is among the worse ones (ASHA, Li et al. 2020).

        A rung is after `grace_folds` folds, twice as many, four times, and so on. A trial goes on if its score is in
        the best `keep_share` of those that have reached the rung so far, itself among them.
        """
        rungs = [self.config.tune.grace_folds * 2**number for number in range(len(self.folds))]
        if not self.config.tune.stop_early or done not in rungs or done >= len(self.folds):
            return False
        self._scores[trial][done] = score
        reached = [scores[done] for scores in self._scores.values() if done in scores]
        return score < float(np.quantile(reached, 1.0 - self.config.tune.keep_share))

    def ended(self, job: Job, error: str | None = None) -> None:
        """Takes note that a job is over; its trial is when all its jobs are."""
        if error:
            self._errors[job.trial] = error
        self._open[job.trial] -= 1
        if self._open[job.trial]:
            return
        record = next(each for each in self.ledger.trials(self.sweep) if each.began.trial == job.trial)
        said = self._errors.pop(job.trial, None)
        score, _ = score_of(record)
        status: Literal["finished", "stopped", "failed"] = "failed" if said else "finished"
        if not said and len(record.scores) < len(self.folds) * len(self.seeds):
            status = "stopped"
        self.ledger.end(
            Ended(sweep=self.sweep, trial=job.trial, status=status, score=None if said else score, error=said)
        )
        self.search.tell(job.trial, None if said else score)

    def _take_up(self, record: TrialRecord) -> None:
        for done in range(1, len(self.folds)):
            scores = [each for each in record.scores if each.fold in self.folds[:done]]
            if len(scores) == done * len(self.seeds):
                self._scores[record.began.trial][done] = score_of(record, self.folds[:done])[0] or 0.0
        if not _is_over(record):
            self._queue(record.began.trial, record.began.values)

    def _queue(self, trial: int, values: Mapping[str, Any]) -> None:
        groups = [(fold,) for fold in self.folds] if self.config.tune.parallel_folds else [self.folds]
        self._open[trial] = len(groups)
        self._waiting += [Job(trial, values, group) for group in groups]


def chosen(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns the settings of a trial, of its first seed."""
    return with_values(config, {**values, "train.env_runners": config.tune.env_runners}, "trial")


def seeds_of(config: RunConfig) -> tuple[int, ...]:
    """Returns the seeds of each configuration's trainings."""
    return tuple(config.train.seed + number for number in range(config.tune.seeds))


def returns_of(record: TrialRecord, folds: Sequence[str] | None = None) -> dict[int, Floats]:
    """Returns each seed's out-of-sample returns, the folds in time order in one series.

    Args:
        record: Of the trial.
        folds: Only these; None: all that are scored.
    """
    found: dict[int, Floats] = {}
    for seed in record.began.seeds:
        mine = [each for each in record.scores if each.seed == seed and (folds is None or each.fold in folds)]
        if mine:
            found[seed] = np.concatenate([np.array(each.returns) for each in sorted(mine, key=_first_session)])
    return found


def score_of(
    record: TrialRecord, folds: Sequence[str] | None = None
) -> tuple[float | None, tuple[float, float] | None]:
    """Returns the median over seeds of the Sharpe ratio of all folds in one series, and its quartiles.

    Both are None where nothing is scored.
    """
    return spread_of([sharpe(returns).ratio for returns in returns_of(record, folds).values()])


def spread_of(ratios: Sequence[float]) -> tuple[float | None, tuple[float, float] | None]:
    """Returns the median and the quartiles of some numbers; None for none."""
    if not ratios:
        return None, None
    low, high = np.quantile(ratios, [0.25, 0.75])
    return median(ratios), (float(low), float(high))


def _first_session(scored: Scored) -> Any:
    return scored.first_session


def _is_over(record: TrialRecord) -> bool:
    return record.ended is not None and record.ended.status != "failed"


def _past(record: TrialRecord) -> Past:
    score = record.ended.score if record.ended else None
    return Past(record.began.values, score, _is_over(record) and score is not None)


def _dates(panel: Panel, fold: Fold) -> FoldDates:
    first, last = panel.sessions[fold.test.start].item(), panel.sessions[fold.test.stop - 1].item()
    return FoldDates(name=fold.name, first_session=first, last_session=last)
