"""Several configurations as one candidate: from a sweep through the judge to the bundle, and its twins likewise."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest
import yaml
from asking import request_after
from safetensors.numpy import load_file, save_file

from data_pipeline.errors import ConfigError, RunError
from data_pipeline.folds import Fold, Span
from data_pipeline.panel import open_panel
from envs.backtest import Ledger, backtest
from envs.bundle import read_bundle
from envs.ensemble import Ensemble
from product import tiny_settings
from rl.config import RunConfig, with_values
from rl.judging import candidate as module
from rl.judging.baselines import EqualWeight
from rl.judging.candidate import Candidate, Member, candidate_of
from rl.judging.ensemble import weighted_by_validation
from rl.judging.explain import EVERYTHING, feature_groups
from rl.judging.export import export
from rl.judging.metrics import sharpe, solvent_returns
from rl.judging.trial_ledger import TrialLedger
from rl.judging.tune import Sweep, Trial, folds_of, tune
from rl.judging.validate import Validation, read_validation, validate
from rl.learning.cluster import ray_session
from serving.policy.decide import decide, feature_set_of

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*Overriding environment rllib-single-agent-env-v0"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),
]

# which configurations


def sweep_of(trials: list[Trial], **judge: Any) -> Sweep:
    config = RunConfig.of({"train": {"seed": 5}, "tune": {"seeds": 2}, "judge": judge})
    return Sweep(id="s", project="", config=config, panel="", folds=1, trials=tuple(trials), ledger_head="")


def trial(number: int, status: str = "finished", **values: Any) -> Trial:
    values = {path.replace("__", "."): value for path, value in values.items()}
    return Trial(number=number, values=values, config_hash="", status=status, folds=(), score=1.0 - 0.1 * number)


TRIALS = [
    trial(3, train__algorithm="a3c", model__window_sessions=90),
    trial(1, learn__lr=0.01, env__initial_cash_usd=5000.0),
    trial(2),
    trial(0, "stopped"),
    trial(4, "failed"),
]


def test_candidate_is_the_best_finished_configurations_with_each_seed():
    found = candidate_of(sweep_of(TRIALS, ensemble=2, combination="vote"))
    assert [member.run for member in found.members] == [f"trial-{k}/seed-{seed}" for k in (3, 1) for seed in (5, 6)]
    settings = [member.config for member in found.members]
    assert [each.train.algorithm.value for each in settings] == ["a3c", "a3c", "ppo", "ppo"]
    assert [each.learn.lr for each in settings] == [0.001, 0.001, 0.01, 0.01]
    assert found.window == 90
    assert found.account[-1] == 100_000.0  # the winner's
    assert found.label == (
        "vote of algorithm=a3c, window_sessions=90, seed 5; algorithm=a3c, window_sessions=90, seed 6; "
        "lr=0.01, initial_cash_usd=5000, seed 5; lr=0.01, initial_cash_usd=5000, seed 6"
    )


def test_configurations_that_did_not_finish_are_no_members():
    assert len(candidate_of(sweep_of(TRIALS, ensemble=3)).members) == 6
    with pytest.raises(RunError, match=r"3 of its configurations finished, and judge.ensemble is 4; try again"):
        candidate_of(sweep_of(TRIALS, ensemble=4))


def test_sharpe_without_inner_validation_is_refused_before_anything_is_trained(swing_rl, tmp_path):
    tree = {**tiny_settings(tmp_path), "judge": {"combination": "sharpe"}}
    (tmp_path / "sweep.yaml").write_text(yaml.safe_dump(tree))
    status, _, error = swing_rl("tune", "--config", str(tmp_path / "sweep.yaml"), "--out", str(tmp_path / "sweep"))
    assert status == 2
    assert "judge.combination sharpe weighs members by inner validation, and folds.validation_sessions is 0" in error
    assert "give it some sessions" in error
    assert len(error) < 400  # not the whole tree
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.yaml"]


def test_more_members_than_configurations_are_refused_before_anything_is_trained(tmp_path):
    config = RunConfig.of({**tiny_settings(tmp_path), "judge": {"ensemble": 3}})
    with pytest.raises(ConfigError, match=r"judge.ensemble 3: the sweep tries 2 configurations; widen tune.space"):
        tune(config, tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


# by which weights


@dataclass
class Leans(EqualWeight):
    """Always the same way."""

    side: float
    scaler: None = None
    name: str = field(default="leans")

    def decide(self, window):
        return self.side * super().decide(window)


@pytest.mark.parametrize(("start", "weights"), [(2028, (0.0, 1.0)), (2280, (1.0, 0.0))], ids=["2008", "2009"])
def test_weights_are_measured_on_inner_validation(start, weights, panel, monkeypatch):
    sides = {0: Leans(1.0), 1: Leans(-1.0)}
    monkeypatch.setattr(module, "train", lambda config, *_, **__: SimpleNamespace(policy=sides[config.train.seed]))
    monkeypatch.setattr(module, "policy_of", lambda _, config, *__: sides[config.train.seed])
    monkeypatch.setattr(module, "panel_at", lambda _: panel)
    members = tuple(Member(trial=0, label="", config=RunConfig.of({"train": {"seed": seed}})) for seed in sides)
    fold = Fold("final", Span(1000, 2000), Span(start, start + 252), Span(start + 272, start + 500))
    for combination, expected in (("sharpe", weights), ("mean", ())):
        candidate = Candidate(members=members, combination=combination)
        assert candidate.trained(Path("panel"), fold, Path("runs")).weights == expected


# from the sweep to the bundle


WEIGHTED = pytest.mark.parametrize("judged", ["sharpe"], indirect=True, scope="module")


@pytest.fixture(scope="module")
def cluster():
    with ray_session(cpus=4):
        yield


@pytest.fixture(scope="module")
def sweep(cluster, tmp_path_factory):
    """Two algorithms on one fold."""
    folder = tmp_path_factory.mktemp("project")
    tiny = tiny_settings(folder)
    tree = {
        **tiny,
        "data": {**tiny["data"], "features": ["return_1", "return_5", "rsi_14", "realised_volatility_20"]},
        "folds": {
            "train_sessions": 400,
            "validation_sessions": 60,
            "test_sessions": 60,
            "holdout_sessions": 120,
            "count": 1,
        },
        "env": {"action": "continuous"},
        "train": {"steps": 2048, "envs_per_runner": 32, "env_runners": 0, "iteration_steps": 1024},
        "tune": {"space": {"train.algorithm": {"grid": ["ppo", "a3c"]}}},
        "judge": {"ensemble": 2, "combination": "sharpe", "twins": 1, "twin_level": 0.5, "overfitting_blocks": 2},
    }
    return tune(RunConfig.of(tree), folder / "sweep")


@dataclass(frozen=True)
class Judged:
    """A verdict on members that change their mind often."""

    sweep: Sweep
    folder: Path

    @property
    def found(self) -> Validation:
        return read_validation(self.folder / "verdict")

    @property
    def holdout(self) -> Span:
        return self.final.test

    @property
    def final(self) -> Fold:
        return folds_of(self.found.open_panel(), self.sweep.config)[1]

    @property
    def ledger(self) -> Ledger:
        return Ledger.load(self.folder / "verdict" / "ledgers" / self.found.figures[0].name)


@pytest.fixture(scope="module", params=["sharpe", "mean", "vote"])
def judged(request, sweep, tmp_path_factory):
    """Trained; then made restless, which a training that was repeated would undo; then judged."""
    folder = tmp_path_factory.mktemp(request.param)
    twins = 1 if request.param == "sharpe" else 0
    config = with_values(sweep.config, {"judge.combination": request.param, "judge.twins": twins}, "test")
    sweep = sweep.model_copy(update={"config": config})
    (folder / "sweep").mkdir()
    (folder / "sweep" / "sweep.json").write_text(json.dumps(sweep.tree()))
    panel = Path(sweep.panel)
    _, final = folds_of(open_panel(panel), config)
    candidate_of(sweep).trained(panel, final, folder / "verdict" / "final")
    for path in runs(folder / "verdict" / "final"):
        arrays = load_file(path)
        save_file({**arrays, "actor.weight": 300.0 * arrays["actor.weight"]}, path)
    validate(folder / "sweep", folder / "verdict")
    return Judged(sweep, folder)


def runs(folder: Path) -> list[Path]:
    return sorted(folder.glob("trial-*/seed-*/weights.safetensors"))


@pytest.mark.ray
def test_candidate_of_two_algorithms_is_judged_and_named_as_one(judged):
    found, combination = judged.found, judged.sweep.config.judge.combination
    policy = found.policy()
    assert isinstance(policy, Ensemble)
    assert policy.combination == combination
    assert policy.name == found.figures[0].name
    assert {member.config.train.algorithm.value for member in found.candidate.members} == {"ppo", "a3c"}
    opened = [each for each in TrialLedger(judged.sweep.project).openings() if combination in each.candidate]
    assert {each.candidate for each in opened} == {found.candidate.label}
    assert all(member.label in found.candidate.label for member in found.candidate.members)
    assert 0.0 < found.disagreement <= 1.0


@pytest.mark.ray
def test_validation_and_bundle_decide_as_what_was_judged(judged, bars, tmp_path):
    found, ledger = judged.found, judged.ledger
    panel = found.open_panel()
    bundle = export(judged.folder / "verdict", tmp_path / "bundle")
    assert bundle.manifest.policy.combination == judged.sweep.config.judge.combination
    assert bundle.manifest.policy.weights == found.weights
    assert [member.name for member in bundle.manifest.policy.members] == [each.name for each in found.candidate.members]
    for policy in (found.policy(), read_bundle(tmp_path / "bundle").policy):
        again = backtest(policy, panel, judged.holdout, *found.candidate.account)
        assert again.account.equals(ledger.account)
        assert again.positions.equals(ledger.positions)
    assert ledger.positions["target_position"].n_unique() > 1
    features, told = feature_set_of(bundle), (bundle.manifest.history_sessions, bundle.manifest.limits)
    for t in range(judged.holdout.start, judged.holdout.stop - 1, 30):
        answer = decide(request_after(bars, panel, ledger, t, *told), bundle, features)
        rows = ledger.positions.filter(pl.col("session") == panel.sessions[t + 1].item())
        assert answer.positions == dict(rows.select("symbol", "target_position").rows())


@pytest.mark.ray
@WEIGHTED
def test_weights_are_kept_and_are_those_of_validation(judged):
    found = judged.found
    policy, account = found.policy(), found.candidate.account
    again = weighted_by_validation("again", policy.members, found.open_panel(), judged.final.validation, *account)
    assert found.weights == again.weights == policy.weights
    assert sum(found.weights) == pytest.approx(1.0)


@pytest.mark.ray
@WEIGHTED
def test_twin_is_an_ensemble_of_as_many_trainings(judged):
    folder, found = judged.folder / "verdict" / "twins", judged.found
    assert [path.parent.parent.name for path in runs(folder / "twin-0")] == ["trial-0", "trial-1"]
    (panel,) = (folder / "panels").iterdir()
    twin = found.candidate.changed("train.env_runners", 0).trained(panel, judged.final, folder / "twin-0")
    assert isinstance(twin, Ensemble)
    assert twin.combination == found.candidate.combination
    ledger = backtest(twin, open_panel(panel), judged.holdout, *found.candidate.account)
    assert found.twins.twins == (sharpe(solvent_returns(ledger)).ratio,)


@pytest.mark.ray
def test_ablation_of_the_candidate_is_kept_and_shown(judged):
    found = judged.found
    groups = feature_groups(found.open_panel().feature_names)
    assert [each.group for each in found.ablations] == [*groups, EVERYTHING]
    assert found.ablations[-1].position_change > 0
    page = (judged.folder / "verdict" / "report.html").read_text("utf-8")
    assert 'id="ablations"' in page
    assert f"differ by {found.disagreement:.2f}" in page


@pytest.mark.ray
@WEIGHTED
def test_second_verdict_in_the_same_folder_trains_nothing_again(judged, swing_rl):
    verdict, found = judged.folder / "verdict", judged.found
    kept = [*runs(verdict / "final"), *runs(verdict / "twins" / "twin-0")]
    before = [path.stat().st_mtime_ns for path in kept]
    assert len(kept) == 4
    status, told, error = swing_rl("validate", str(judged.folder / "sweep"), "--out", str(verdict))
    assert status == 0, error
    assert f"target positions differ by {found.disagreement:.2f}" in told
    assert [path.stat().st_mtime_ns for path in kept] == before
    again = judged.found
    assert again.spans["opened"] != found.spans["opened"]
    same = {"spans", "ledger_head", "verdict"}
    assert again.model_copy(update={name: getattr(found, name) for name in same}) == found
