"""The driver's side of a sweep without Ray: what is handed out, recorded, stopped early, and taken up again."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace

import numpy as np
import pytest

from data_pipeline.folds import Fold, Span
from rl.config import RunConfig
from rl.judging.course import Course, returns_of, score_of
from rl.judging.metrics import sharpe
from rl.judging.place import Training
from rl.judging.trial_ledger import TrialLedger

LENGTH = 40
FOLDS = tuple(
    Fold(f"fold-{number + 1}", Span(0, 50), Span(50, 50), Span(70 + LENGTH * number, 70 + LENGTH * (number + 1)))
    for number in range(4)
)
PANEL = SimpleNamespace(sessions=np.busday_offset("2010-01-04", np.arange(400)), source={"snapshot": "abc", "rows": 3})


def course(root, **tune):
    tree = {"space": {"learn.lr": {"grid": [0.001, 0.002, 0.003, 0.004]}}, **tune}
    config = RunConfig.of({"tune": tree, "train": {"seed": 5}}, "test")
    return Course(config, "sweep-1", PANEL, "panel-1", FOLDS, TrialLedger(str(root)))


def training(fold, seed=5, mean=0.001):
    returns = np.random.default_rng([seed, FOLDS.index(fold)]).normal(mean, 0.01, LENGTH)
    first = PANEL.sessions[fold.test.start].item()
    return Training(
        seed=seed,
        fold=fold.name,
        first_session=first,
        last_session=first + timedelta(days=LENGTH),
        sharpe=sharpe(returns).ratio,
        total_return=0.1,
        seconds=1.0,
        returns=tuple(returns.tolist()),
        files=("weights.safetensors",),
    )


def run(course, jobs=99, folds=4):
    """Does jobs as trials would, and returns the numbers of their trials."""
    done = []
    while len(done) < jobs and (job := course.next()) is not None:
        for fold in FOLDS[:folds]:
            if fold.name in job.folds:
                course.scored(job.trial, [training(fold, seed, 0.001 * job.trial) for seed in course.seeds])
        course.ended(job)
        done.append(job.trial)
    return done


def statuses(course):
    return [record.status for record in course.ledger.trials("sweep-1")]


def test_course_hands_out_every_configuration_once_and_records_all(tmp_path):
    mine = course(tmp_path)
    assert (mine.jobs_left, mine.trainings) == (4, (0, 16))
    assert run(mine) == [0, 1, 2, 3]
    assert (mine.jobs_left, mine.trainings, mine.next()) == (0, (16, 16), None)
    assert statuses(mine) == ["finished"] * 4
    first = mine.ledger.trials("sweep-1")[0]
    assert (first.began.values, first.began.panel) == ({"learn.lr": 0.001}, "panel-1")
    assert first.began.snapshot == {"snapshot": "abc", "rows": "3"}
    assert [fold.name for fold in first.began.folds] == [fold.name for fold in FOLDS]


@pytest.mark.parametrize("jobs", [0, 1, 3, 4])
def test_course_taken_up_again_hands_out_only_what_did_not_end(tmp_path, jobs):
    assert run(course(tmp_path), jobs) == list(range(jobs))
    again = course(tmp_path)
    assert (again.jobs_left, again.trainings) == (4 - jobs, (4 * jobs, 16))
    assert run(again) == list(range(jobs, 4))
    entries = again.ledger.head().number
    assert run(course(tmp_path)) == []
    assert course(tmp_path).ledger.head().number == entries


def test_configuration_under_way_comes_first_and_its_folds_are_not_recorded_twice(tmp_path):
    killed = course(tmp_path)
    job = killed.next()
    killed.scored(job.trial, [training(FOLDS[0])])
    again = course(tmp_path)
    assert again.trainings == (1, 16)
    assert run(again) == [0, 1, 2, 3]
    record = again.ledger.trials("sweep-1")[0]
    assert [each.fold for each in record.scores] == [fold.name for fold in FOLDS]


def test_configuration_that_failed_is_on_record_and_tried_again(tmp_path):
    mine = course(tmp_path)
    mine.ended(mine.next(), "ValueError: no luck")
    run(mine)
    assert statuses(mine) == ["failed", "finished", "finished", "finished"]
    assert mine.ledger.trials("sweep-1")[0].ended.error == "ValueError: no luck"
    again = course(tmp_path)
    assert run(again) == [0]
    assert statuses(again) == ["finished"] * 4


def test_folds_side_by_side_end_their_trial_when_all_are_in(tmp_path):
    mine = course(tmp_path, parallel_folds=True)
    assert mine.jobs_left == 16
    jobs = [mine.next() for _ in range(4)]
    assert [job.folds for job in jobs] == [(fold.name,) for fold in FOLDS]
    for job, fold in zip(reversed(jobs), reversed(FOLDS), strict=True):
        assert mine.ledger.trials("sweep-1")[0].ended is None
        mine.scored(0, [training(fold)])
        mine.ended(job)
    record = mine.ledger.trials("sweep-1")[0]
    assert record.status == "finished"
    whole = np.concatenate([np.array(training(fold).returns) for fold in FOLDS])
    np.testing.assert_array_equal(returns_of(record)[5], whole)  # in time order, whoever was first


def test_seeds_are_replicas_whose_median_is_the_score(tmp_path):
    mine = course(tmp_path, seeds=3)
    assert mine.seeds == (5, 6, 7)
    run(mine, 1)
    record = mine.ledger.trials("sweep-1")[0]
    ratios = sorted(sharpe(returns).ratio for returns in returns_of(record).values())
    score, (low, high) = score_of(record)
    assert score == record.ended.score == ratios[1]
    assert (low, high) == pytest.approx(((ratios[0] + ratios[1]) / 2, (ratios[1] + ratios[2]) / 2))
    assert mine.ledger.count() == 1


def test_successive_halving_stops_the_worse_half_at_each_rung(tmp_path):
    mine = course(tmp_path, stop_early=True)
    first_rung = [mine.stops(trial, 1, score) for trial, score in enumerate((0.0, 1.0, 2.0, 0.4))]
    assert first_rung == [False, False, False, True]  # the first has no rival yet
    assert mine.stops(0, 3, -9.0) is False  # no rung
    assert mine.stops(0, 4, -9.0) is False  # the end
    assert [mine.stops(1, 2, 1.0), mine.stops(2, 2, 0.5)] == [False, True]


def test_trial_that_was_stopped_says_so_and_rungs_survive_an_interruption(tmp_path):
    mine = course(tmp_path, stop_early=True)
    job = mine.next()
    mine.scored(0, [training(FOLDS[0])])
    mine.ended(job)
    assert statuses(mine) == ["stopped"]
    again = course(tmp_path, stop_early=True)
    assert again.trainings == (4, 16)  # nothing of it is left to do
    assert again.stops(1, 1, training(FOLDS[0]).sharpe - 1.0) is True


def test_nothing_is_stopped_unless_asked_for(tmp_path):
    mine = course(tmp_path)
    assert [mine.stops(trial, 1, score) for trial, score in enumerate((2.0, 1.0, 0.0))] == [False] * 3
