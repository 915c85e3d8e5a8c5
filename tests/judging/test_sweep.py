"""Real sweeps on real Ray Tune: killed again and again, on disk and in a bucket, and what Tune itself leaves."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

from bucket import endpoint, names, root, s3  # noqa: F401  (fixtures)
from product import BIN, ROOT, environment, tiny_settings
from rl.config import RunConfig
from rl.judging.course import seeds_of
from rl.judging.place import Place
from rl.judging.search import Search, size_of
from rl.judging.trial_ledger import TrialLedger

pytestmark = [pytest.mark.ray, pytest.mark.timeout(1800)]

KILLS = 3


def settings(folder: Path, samples: int = 4, folds: int = 2) -> dict[str, object]:
    space = {
        "learn.lr": {"loguniform": [0.0003, 0.003]},
        "model.bptt_sessions": {"integer": [16, 32]},
    }
    train = {"steps": 16384, "envs_per_runner": 32, "iteration_steps": 1024, "checkpoint_iterations": 2}
    tiny = tiny_settings(folder)
    spans = {**tiny["folds"], "count": folds}
    return {**tiny, "folds": spans, "train": train, "tune": {"space": space, "samples": samples}}


def sweeping(config: Path, out: str, *more: str) -> subprocess.Popen[bytes]:
    contained = [sys.executable, str(ROOT / "scripts" / "contained.py"), "--grace", "1", "--"]
    command = [str(BIN / "swing-rl"), "tune", "--config", str(config), "--out", out, "--json", *more]
    with (config.parent / "tune.log").open("ab") as log:
        return subprocess.Popen([*contained, *command], env=environment(), stdout=log, stderr=log)


def trainings(out: str) -> dict[str, str]:
    """The records of finished trainings, as they are."""
    place = Place(out)
    if "://" in out:
        found = [name for name in names(out) if name.endswith("training.json")]
    else:  # no deeper, where folders come and go
        found = [str(path.relative_to(out)) for path in Path(out).glob("trials/*/seed-*/*/training.json")]
    return {name: place.read(name) for name in found}


def kill(driver: subprocess.Popen[bytes]) -> None:
    """SIGKILL of the driver alone; containment then ends what it leaves."""
    for child in psutil.Process(driver.pid).children():
        child.kill()
    driver.wait(60)


def test_sweep_killed_three_times_ends_with_the_same_trials_none_trained_twice(
    root, tmp_path, monkeypatch, pytestconfig
):
    """4 configurations on 2 folds; with `pytest --thorough` 12 on 4."""
    samples, folds = (12, 4) if pytestconfig.getoption("--thorough") else (4, 2)
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # where a bucket's trainings go first
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")  # its sockets want a short path
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    path, out, luck = tmp_path / "sweep.yaml", f"{root}/sweep", random.Random(0)
    tree = settings(tmp_path, samples, folds)
    path.write_text(yaml.safe_dump(tree))
    seen: dict[str, str] = {}
    for number in range(KILLS):
        with sweeping(path, out, *(["--resume"] if number else [])) as driver:
            goal, limit = len(seen) + luck.randint(1, samples * folds // 4), time.monotonic() + 400
            while (
                len(trainings(out)) < min(goal, samples * folds - 1)
                and driver.poll() is None
                and time.monotonic() < limit
            ):
                time.sleep(0.1)
            time.sleep(luck.uniform(0, 2))
            assert driver.poll() is None, (tmp_path / "tune.log").read_text()[-3000:]
            kill(driver)
        now = trainings(out)
        assert seen.items() <= now.items()
        seen = now
    with sweeping(path, out, "--resume") as driver:
        assert driver.wait(800) == 0, (tmp_path / "tune.log").read_text()[-3000:]

    config = RunConfig.of(tree, "test")
    wanted = [values for _, values in _all(Search(config.tune))]
    sweep = json.loads(Place(out).read("sweep.json"))
    assert [trial["values"] for trial in sorted(sweep["trials"], key=lambda each: each["number"])] == wanted
    assert seen.items() <= trainings(out).items()  # no record was written again
    ledger = TrialLedger(root)
    assert ledger.verify().text == sweep["ledger_head"]
    records = ledger.trials(sweep["id"])
    assert [record.status for record in records] == ["finished"] * size_of(config.tune)
    pairs = {(seed, fold) for seed in seeds_of(config) for fold in (f"fold-{n + 1}" for n in range(folds))}
    for record in records:
        assert {(each.seed, each.fold) for each in record.scores} == pairs
    scored = [entry for entry in ledger._chain.entries() if entry.kind == "scored"]
    assert len(scored) == len(pairs) * len(records) == len(trainings(out))

    with sweeping(path, out, "--resume") as driver:  # nothing is left to do
        assert driver.wait(120) == 0
    assert TrialLedger(root).head().text == sweep["ledger_head"]


def _all(search):
    while (proposal := search.propose()) is not None:
        yield proposal
        search.tell(proposal[0], 0.0)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep with folds side by side, one impossible configuration among two."""
    folder = tmp_path_factory.mktemp("finished")
    tree = settings(folder)
    space = {"learn.lr": {"grid": [0.001, 1e30]}, "learn.entropy": {"loguniform": [0.003, 0.03]}}
    tree |= {"tune": {"space": space, "parallel_folds": True}}
    tree["train"] = {"steps": 2048, "envs_per_runner": 32, "iteration_steps": 1024}
    (folder / "sweep.yaml").write_text(yaml.safe_dump(tree))
    with sweeping(folder / "sweep.yaml", str(folder / "sweep")) as driver:
        assert driver.wait(400) == 0, (folder / "tune.log").read_text()[-3000:]
    return folder


def test_trial_that_fails_is_told_with_its_error_and_stops_no_other(finished):
    sweep = json.loads((finished / "sweep" / "sweep.json").read_text())
    good, bad = sweep["trials"]
    assert (good["status"], bad["status"]) == ("finished", "failed")
    assert [score["fold"] for score in good["folds"]] == ["fold-1", "fold-2"]
    assert "lower learn.lr" in bad["error"]
    assert bad["score"] is None


def test_sweep_that_is_there_is_not_swept_over(finished, command):
    path = finished / "sweep.yaml"
    again = command("swing-rl", "tune", "--config", path, "--out", finished / "sweep")
    assert again.returncode == 2
    assert "holds a sweep already; add --resume" in again.stderr
    other = ("--set", "train.steps=4096", "--resume")
    changed = command("swing-rl", "tune", "--config", path, "--out", finished / "sweep", *other)
    assert changed.returncode == 2
    assert "holds a sweep of other settings" in changed.stderr


def test_tensorboard_finds_readable_runs_with_their_settings(finished):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    runs = sorted(path.name for path in (finished / "sweep" / "ray").glob("trial-*"))
    name = next(name for name in runs if "fold=fold-1," in name and "lr=0.001" in name)
    assert re.fullmatch(r"trial-000\d fold=fold-1,entropy=0.0[0-9]+,lr=0.001", name)
    run = finished / "sweep" / "ray" / name
    events = EventAccumulator(str(run))
    events.Reload()
    assert "ray/tune/score" in events.Tags()["scalars"]
    data = HParamsPluginData.FromString(events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content)
    assert {"learn.entropy", "learn.lr"} <= set(data.session_start_info.hparams)
