"""The ledger of trials: what counts as a try, that nothing is counted twice, and what the commands tell of it."""

from __future__ import annotations

import json
from datetime import date

import pytest
from pydantic import ValidationError

from bucket import endpoint, get, names, put, root, s3  # noqa: F401  (fixtures among them)
from data_pipeline.errors import ConfigError, RunError
from rl.judging.chain import Chain
from rl.judging.trial_ledger import Began, Ended, FoldDates, Judged, Opened, Scored, TrialLedger

FOLDS = (
    FoldDates(name="fold-1", first_session=date(2010, 1, 4), last_session=date(2010, 12, 31)),
    FoldDates(name="fold-2", first_session=date(2011, 1, 3), last_session=date(2011, 12, 30)),
)


def began(trial: int = 0, sweep: str = "first", **others) -> Began:
    facts = {
        "config_hash": f"{trial:064}",
        "values": {"learn.lr": 0.001 * (trial + 1), "model.hidden": 16},
        "seeds": (7, 8),
        "folds": FOLDS,
        "panel": "b7c1",
        "snapshot": {"id": "5d20", "source": "bundled"},
    }
    return Began(sweep=sweep, trial=trial, **{**facts, **others})


def scored(trial: int = 0, sweep: str = "first", seed: int = 7, fold: int = 0, sharpe: float = 0.5) -> Scored:
    dates = FOLDS[fold].tree()
    return Scored.of(
        {
            "sweep": sweep,
            "trial": trial,
            "seed": seed,
            "fold": dates["name"],
            "first_session": dates["first_session"],
            "last_session": dates["last_session"],
            "sharpe": sharpe,
            "total_return": 0.1,
            "seconds": 1.5,
            "returns": [0.01, -1 / 3, 0.0],
        }
    )


def opened(first: date, last: date, sweep: str = "first") -> Opened:
    return Opened(sweep=sweep, candidate="trial 0", by="runs/verdict", first_session=first, last_session=last)


def test_ledger_joins_what_belongs_to_a_trial_and_reads_it_back_as_it_was(root):
    ledger = TrialLedger(root)
    ledger.begin(began(0))
    ledger.begin(began(1))
    scores = [scored(0, seed=seed, fold=fold, sharpe=seed / 3) for seed in (7, 8) for fold in (0, 1)]
    assert [ledger.score(each) for each in scores] == [True] * 4
    assert ledger.score(scored(1)) is True
    assert ledger.end(Ended(sweep="first", trial=0, status="finished", score=1 / 7)) is True
    for reader in (ledger, TrialLedger(root)):
        first, second = reader.trials("first")
        assert (first.began, first.scores, first.status) == (began(0), tuple(scores), "finished")
        assert first.ended.score == 1 / 7
        assert (second.began, second.scores, second.ended) == (began(1), (scored(1),), None)
        assert second.status == "running or abandoned"
        assert reader.count() == 2
        assert reader.head().number == reader.verify().number == 8
    assert {name.split("/")[0] for name in names(root)} == {"ledger"}


def test_ledger_counts_scored_trials_of_all_sweeps_and_neither_seeds_nor_repetitions(tmp_path):
    ledger = TrialLedger(str(tmp_path))
    for sweep, trial in (("first", 0), ("first", 1), ("second", 0)):
        ledger.begin(began(trial, sweep))
    assert ledger.count() == 0, "begun is not scored"
    for seed in (7, 8):
        ledger.score(scored(0, seed=seed))
    assert ledger.count() == 1
    ledger.score(scored(0, "second"))
    assert ledger.count() == 2
    ledger.end(Ended(sweep="first", trial=1, status="failed", error="out of memory"))
    ledger.end(Ended(sweep="first", trial=0, status="stopped"))
    assert ledger.count() == 2
    assert [len(ledger.trials(sweep)) for sweep in (None, "first", "second", "third")] == [3, 2, 1, 0]


def test_ledger_scores_a_training_once_and_the_first_figures_stand(tmp_path):
    ledger, other = (TrialLedger(str(tmp_path)) for _ in range(2))
    assert (ledger.begin(began()), ledger.begin(began()), other.begin(began())) == (True, False, False)
    assert ledger.score(scored(sharpe=0.5)) is True
    assert ledger.score(scored(sharpe=2.5)) is False
    assert other.score(scored(sharpe=3.5)) is False
    assert other.score(scored(seed=8, sharpe=0.25)) is True
    (trial,) = ledger.trials()
    assert [each.sharpe for each in trial.scores] == [0.5, 0.25]
    assert ledger.head().number == 3


def test_ledger_two_processes_scoring_the_same_training_at_once_add_it_once(tmp_path, monkeypatch):
    ours, theirs = (TrialLedger(str(tmp_path)) for _ in range(2))
    ours.begin(began())
    theirs.trials()
    put_new = type(ours._chain.blobs).put_new
    answers = []

    def after_the_other(self, name, body):
        if self is ours._chain.blobs and not answers:
            answers.append(theirs.score(scored(sharpe=1.0)))
        return put_new(self, name, body)

    monkeypatch.setattr(type(ours._chain.blobs), "put_new", after_the_other)
    assert ours.score(scored(sharpe=2.0)) is False
    assert answers == [True]
    assert [each.sharpe for each in ours.trials()[0].scores] == [1.0]


def test_ledger_scores_a_trial_that_another_process_began_after_it_read(tmp_path):
    driver, worker = (TrialLedger(str(tmp_path)) for _ in range(2))
    driver.begin(began(0))
    assert len(worker.trials()) == 1
    driver.begin(began(1))
    assert worker.score(scored(1)) is True


def test_ledger_end_is_recorded_once_and_a_failed_trial_may_finish_later(tmp_path):
    ledger = TrialLedger(str(tmp_path))
    ledger.begin(began())
    failed = Ended(sweep="first", trial=0, status="failed", error="node lost")
    finished = Ended(sweep="first", trial=0, status="finished", score=0.5)
    assert [ledger.end(each) for each in (failed, failed, finished, finished)] == [True, False, True, False]
    assert ledger.trials()[0].ended == finished
    assert ledger.head().number == 3, "that it failed stays on record"


def test_ledger_refuses_figures_of_a_trial_that_never_began(tmp_path):
    ledger = TrialLedger(str(tmp_path))
    for record in (
        lambda: ledger.score(scored(3)),
        lambda: ledger.end(Ended(sweep="first", trial=3, status="finished")),
    ):
        with pytest.raises(RunError, match="trial 3 of sweep 'first' was never begun; begin it first"):
            record()
    assert ledger.head().number == 0


def test_ledger_refuses_a_trial_begun_again_otherwise(tmp_path):
    ledger = TrialLedger(str(tmp_path))
    ledger.begin(began())
    with pytest.raises(RunError, match="trial 0 of sweep 'first' was begun with other values, panel; give this sweep"):
        ledger.begin(began(panel="ffff", values={"learn.lr": 5.0}))
    assert ledger.begin(began(values={"model.hidden": 16, "learn.lr": 0.001})) is False, "order is nothing"


def test_ledger_refuses_figures_that_are_no_numbers():
    with pytest.raises(ValidationError):
        Scored(**{**scored().model_dump(), "sharpe": float("nan")})
    with pytest.raises(ConfigError, match="returns"):
        Scored.of({**scored().tree(), "returns": ["much"]})


def test_ledger_tells_openings_of_spans_that_share_a_session(root):
    ledger = TrialLedger(root)
    ledger.open(opened(date(2012, 1, 3), date(2012, 12, 31)))
    ledger.open(opened(date(2012, 1, 3), date(2012, 12, 31)))
    ledger.open(opened(date(2013, 1, 2), date(2013, 6, 28), sweep="second"))
    spans = {
        (date(2011, 1, 3), date(2012, 1, 2)): 0,
        (date(2011, 1, 3), date(2012, 1, 3)): 2,
        (date(2012, 6, 1), date(2012, 6, 1)): 2,
        (date(2012, 12, 31), date(2013, 1, 2)): 3,
        (date(2013, 6, 28), date(2014, 1, 2)): 1,
        (date(2013, 6, 29), date(2014, 1, 2)): 0,
    }
    assert {span: len(TrialLedger(root).openings(*span)) for span in spans} == spans
    assert ledger.openings(date(2013, 3, 1), date(2013, 3, 1))[0].sweep == "second"
    assert len(ledger.openings()) == 3, "every opening counts"
    assert ledger.count() == 0


def test_ledger_keeps_verdicts(tmp_path):
    ledger = TrialLedger(str(tmp_path))
    verdict = Judged(sweep="first", candidate="c", decision="reject", reasons=("too few trades",), figures={"p": 0.4})
    ledger.judge(verdict)
    assert TrialLedger(str(tmp_path)).judgements() == ledger.judgements("first") == [verdict]
    assert ledger.judgements("second") == []


def test_ledger_asks_for_nothing_that_it_has_read_when_it_scores(tmp_path, monkeypatch):
    ledger = TrialLedger(str(tmp_path))
    ledger.begin(began())
    kind, asked = type(ledger._chain.blobs), []
    monkeypatch.setattr(kind, "get", lambda self, name: asked.append(name))
    monkeypatch.setattr(kind, "sizes", lambda self, folder: asked.append(folder) or {})
    for seed in range(20):
        ledger.score(scored(seed=seed))
        ledger.score(scored(seed=seed))
    assert asked == []


@pytest.mark.parametrize(
    ("kind", "body", "words"),
    [
        ("dreamt", {}, "entry 2 is a 'dreamt' of another version"),
        ("scored", {**scored().tree(), "luck": 1}, "entry 2 is a 'scored' of another version"),
        ("scored", scored(5).tree(), "entry 2 is of trial 5 of sweep 'first', which no entry before it begins"),
    ],
)
def test_ledger_with_an_entry_that_makes_no_sense_is_refused(tmp_path, kind, body, words):
    TrialLedger(str(tmp_path)).begin(began())
    Chain(str(tmp_path), "ledger").append(kind, body)
    for read in (TrialLedger.verify, TrialLedger.trials, TrialLedger.count):
        with pytest.raises(RunError, match=words):
            read(TrialLedger(str(tmp_path)))


# The commands


def tried(root: str) -> TrialLedger:
    ledger = TrialLedger(root)
    ledger.begin(began(0))
    ledger.begin(began(1))
    ledger.begin(began(0, "second"))
    ledger.score(scored(0))
    ledger.score(scored(0, seed=8))
    ledger.score(scored(0, "second"))
    ledger.end(Ended(sweep="first", trial=0, status="finished", score=1.25))
    ledger.end(Ended(sweep="first", trial=1, status="failed", error="[out] of memory"))
    ledger.open(opened(date(2012, 1, 3), date(2012, 12, 31)))
    ledger.judge(Judged(sweep="first", candidate="trial 0", decision="reject", reasons=(), figures={}))
    return ledger


def test_command_verify_tells_the_head_and_heeds_a_known_one(swing_rl, root):
    head = tried(root).head()
    status, told, _ = swing_rl("ledger", "verify", root)
    assert status == 0
    assert f"{root}/ledger: 10 entries, 2 scored trials, intact" in told
    assert f"head: {head.text}" in told
    status, told, _ = swing_rl("ledger", "verify", root, "--known", head.text, "--json")
    assert (status, json.loads(told)) == (0, {"entries": 10, "head": head.text, "trials": 2})
    put(root, "ledger/00000010.json", None)
    assert swing_rl("ledger", "verify", root)[0] == 0
    status, told, wrong = swing_rl("ledger", "verify", root, "--known", head.text)
    assert (status, told, wrong.count("\n")) == (2, "", 1)
    assert "entry 10 (00000010.json) was there once" in wrong


def test_command_verify_of_an_altered_ledger_exits_2_with_one_line(swing_rl, root):
    tried(root)
    put(root, "ledger/00000004.json", get(root, "ledger/00000004.json").replace(b"0.5", b"0.9"))
    status, told, wrong = swing_rl("ledger", "verify", root)
    assert (status, told, wrong.count("\n")) == (2, "", 1)
    assert f"error: {root}/ledger: entry 5 (00000005.json) does not follow entry 4" in wrong


def test_command_show_lists_every_trial_with_its_state(swing_rl, tmp_path):
    ledger = tried(str(tmp_path))
    status, told, _ = swing_rl("ledger", "show", str(tmp_path))
    assert status == 0
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    assert rows == [
        ["first", "0", "lr=0.001, hidden=16", "finished", "2 of 4", "1.25"],
        ["first", "1", "lr=0.002, hidden=16", "failed: [out] of memory", "0 of 4", "–"],
        ["second", "0", "lr=0.001, hidden=16", "running or abandoned", "1 of 4", "–"],
    ]
    assert "holdout 2012-01-03 .. 2012-12-31 opened for trial 0 by runs/verdict" in told
    assert "verdict on trial 0: reject" in told
    assert f"N = 2 scored trials in all sweeps; head {ledger.head().text}" in " ".join(told.split())


def test_command_show_as_json_gives_figures_without_returns(swing_rl, tmp_path):
    ledger = tried(str(tmp_path))
    status, told, _ = swing_rl("ledger", "show", str(tmp_path), "--sweep", "second", "--json")
    tree = json.loads(told)
    assert (status, tree["count"], tree["head"]) == (0, 2, ledger.head().text)
    (trial,) = tree["trials"]
    assert trial["status"] == "running or abandoned"
    assert trial["began"] == began(0, "second").tree()
    assert trial["scores"][0]["sharpe"] == 0.5
    assert "returns" not in trial["scores"][0]
    assert (tree["openings"], tree["judgements"]) == ([], [])


@pytest.mark.parametrize("doing", ["show", "verify"])
def test_command_on_a_folder_without_a_ledger_says_so(swing_rl, tmp_path, doing):
    status, _, wrong = swing_rl("ledger", doing, str(tmp_path))
    assert (status, "holds no entry; give the folder that holds the sweeps" in wrong) == (2, True)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("doing", ["show", "verify"])
def test_command_help_gives_an_example(swing_rl, doing):
    status, told, _ = swing_rl("ledger", doing, "--help")
    assert status == 0
    assert f"Example: swing-rl ledger {doing} runs" in " ".join(told.split())
