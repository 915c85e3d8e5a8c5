"""A feature that sees the future: caught before anything is trained, and if forced through, the pages shout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from data_pipeline.clearance import Clearance
from data_pipeline.errors import RunError
from rl.config import RunConfig
from rl.judging.results import read_results, write_results
from rl.judging.trial_ledger import TrialLedger
from rl.judging.tune import tune
from rl.judging.validate import validate
from rl.judging.verdict import causality_gate
from rl.learning.cluster import ray_session


def settings(folder: Path, *features: str, **data: Any) -> RunConfig:
    """One configuration on one fold of one symbol: the least that can be swept and judged."""
    return RunConfig.of(
        {
            "data": {
                "symbols": ["IBM"],
                "start": "2009-01-01",
                "features": ["return_1", *features],
                "store": str(folder / "store"),
                "panels": str(folder / "panels"),
                **data,
            },
            "folds": {
                "train_sessions": 200,
                "validation_sessions": 0,
                "test_sessions": 60,
                "holdout_sessions": 80,
                "count": 1,
            },
            "model": {"hidden": 4, "window_sessions": 10},
            "ppo": {"epochs": 1, "minibatches": 1},
            "train": {"steps": 1024, "envs_per_runner": 8, "env_runners": 0, "iteration_steps": 1024},
            "judge": {"twins": 0},
        }
    )


def test_tomorrows_return_is_refused_before_anything_is_trained(tmp_path: Path, tomorrow: str) -> None:
    with pytest.raises(RunError, match=r"tomorrow \(next session, 1 session ahead\).*--set data\.audit=false"):
        tune(settings(tmp_path, tomorrow), tmp_path / "sweep")  # Ray does not even run
    assert not (tmp_path / "sweep").exists()
    assert TrialLedger(str(tmp_path)).trials() == []


def test_train_refuses_it_in_one_line_too(tmp_path: Path, tomorrow: str, swing_rl: Any) -> None:
    tree = {**settings(tmp_path, tomorrow).tree()["data"], "features": ["return_1", tomorrow]}
    chosen = [f"data.{name}={json.dumps(tree[name])}" for name in ("symbols", "start", "features", "store", "panels")]
    status, _, said = swing_rl("train", "--out", str(tmp_path / "run"), *(w for c in chosen for w in ("--set", c)))
    assert status == 2
    assert "tomorrow (next session, 1 session ahead)" in said
    assert not (tmp_path / "run").exists()


@pytest.mark.ray
def test_tomorrows_return_forced_through_is_shouted_and_never_promoted(
    tmp_path: Path, tomorrow: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rl.judging.report._tear_sheet", lambda *_: None)  # seconds that show nothing here
    with ray_session(cpus=2):
        sweep = tune(settings(tmp_path, tomorrow, audit=False), tmp_path / "sweep")
        validation = validate(tmp_path / "sweep", tmp_path / "verdict")
    assert sweep.trials[0].status == "finished"
    assert [leak.column for leak in sweep.clearance.leaks] == ["tomorrow"]
    causality = validation.verdict.gates[0]
    assert (causality.name, causality.passed, validation.verdict.decision) == ("causality", False, "reject")
    assert "tomorrow (next session, 1 session ahead)" in causality.says
    page = write_results(tmp_path / "sweep.html", read_results(str(tmp_path / "sweep")))
    for written in (tmp_path / "verdict" / "report.html", page):
        text = written.read_text("utf-8")
        top = text.split("</header>")[1]
        assert top.startswith('<div class="alarm" id="unaudited"')
        assert "NOT AUDITED: features may see the future" in top
        assert "tomorrow (next session, 1 session ahead)" in top
        assert "tomorrow IBM 20" in top  # where it was seen first


@pytest.mark.parametrize(
    ("clearance", "passed", "says"),
    [
        (Clearance(looked_at="2 columns"), True, "finds nothing that sees the future: 2 columns."),
        (Clearance(unable="2 sessions are too few"), True, "could not be run (2 sessions are too few)"),
        (Clearance(), False, "is not on record"),
        (Clearance(looked_at="2 columns", forced=True), False, "forced through (data.audit=false)"),
        (Clearance(unable="2 sessions are too few", forced=True), False, "could not be run"),
    ],
)
def test_causality_fails_what_was_forced_through_or_never_asked(clearance: Clearance, passed: bool, says: str) -> None:
    gate = causality_gate(clearance)
    assert gate.passed is passed
    assert says in gate.says
