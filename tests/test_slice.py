"""The whole slice, from bars to the served decision: nothing sees the future, and all clocks agree."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from ipaddress import ip_address

import grpc
import httpx
import numpy as np
import polars as pl
import psutil
import pytest
import torch
from asking import request_after

from data_pipeline.assemble import build_panel
from data_pipeline.features import FeatureSet
from data_pipeline.folds import Span
from data_pipeline.scaling import fit_scaler
from envs.backtest import backtest
from envs.bundle import PolicyEntry, golden_of, read_bundle, write_bundle
from envs.contract import ActionKind
from envs.limits import Limits
from envs.lstm import LstmPolicy
from envs.market import Market
from envs.swing import SwingVectorEnv
from product import BIN, ROOT, environment
from rl.judging.export import disagreement
from rl.judging.trial_ledger import TrialLedger
from rl.judging.tune import read_sweep
from rl.judging.validate import read_validation
from rl.learning.network import SwingNet, policy_arrays
from rl.learning.settings import ModelConfig
from serving.contract import DecisionResponse
from serving.policy.decide import decide, feature_set_of

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*"),  # Ray Serve's own calls at import
    pytest.mark.filterwarnings("ignore:Field name:UserWarning"),
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince20"),
]

SESSIONS = tuple(range(2780, 3260, 40))


@pytest.fixture(scope="module")
def restless(story, tmp_path_factory):
    """A bundle whose policy changes its mind often, so that agreement means something."""
    manifest = read_bundle(story.bundle).manifest
    torch.manual_seed(3)
    net = SwingNet(len(manifest.features), ActionKind.DISCRETE, ModelConfig(hidden=16))
    torch.nn.init.normal_(net.actor.weight, std=2.0)
    told = manifest.policy.members[0]
    policy = LstmPolicy("restless", told.window, policy_arrays(net), told.scaler, told.action)
    panel = read_validation(story.verdict).open_panel()
    features = panel.features[2000 : 2000 + policy.window, [0, 3, 4]]
    portfolio = np.zeros((3, 2), np.float32)
    _, outputs = disagreement(policy, features, portfolio)
    folder = tmp_path_factory.mktemp("restless") / "bundle"
    manifest = manifest.model_copy(update={"policy": PolicyEntry.describing(policy)})
    write_bundle(folder, manifest, policy, golden_of(policy, features, portfolio, [outputs]), {})
    return folder


@pytest.fixture(scope="module")
def ledger(restless, panel):
    bundle = read_bundle(restless)
    return backtest(bundle.policy, panel, Span(2766, 3270), bundle.manifest.limits, bundle.manifest.costs)


def _decided(ledger, panel, t: int, column: str) -> dict[str, float | None]:
    """What the backtest decided after the close of row t."""
    rows = ledger.positions.filter(pl.col("session") == panel.sessions[t + 1].item())
    return dict(rows.select("symbol", column).rows())


def test_story_leaves_what_it_promises(story):
    sweep, validation = read_sweep(story.sweep), read_validation(story.verdict)
    assert len(sweep.trials) == 2
    assert all(len(trial.folds) == 2 for trial in sweep.trials)
    assert sweep.trials[0].score >= sweep.trials[1].score
    assert validation.figures[0].name == "ppo-lstm"
    assert {"buy-and-hold", "equal-weight", "cash"} < {f.name for f in validation.figures}
    assert (story.verdict / "report.html").stat().st_size > 1e6
    ledger = TrialLedger(str(story.root))
    assert [opened.sweep for opened in ledger.openings()] == [sweep.id]
    assert [judged.decision for judged in ledger.judgements()] == [validation.verdict.decision]
    assert ledger.count() == 2
    assert len(validation.twins.twins) == 2
    assert len(list((story.root / "panels").iterdir())) == 1  # a build must not go on from a twin's panel
    bundle = read_bundle(story.bundle)
    assert bundle.manifest.verdict.decision == validation.verdict.decision
    assert not [p for p in story.bundle.rglob("*") if p.suffix in (".pkl", ".pt", ".pickle")]


def test_nothing_after_a_session_changes_what_is_decided_there(restless, bars, panel, ledger):
    """Poisons every later row; features, scaler, observations, decisions and answers must not move."""
    bundle, rng = read_bundle(restless), np.random.default_rng(0)
    for t in (2800, 2950, 3150):
        day = panel.sessions[t].item()
        wild = pl.when(pl.col("session") > day).then(pl.Series(rng.uniform(0.3, 3.0, bars.height))).otherwise(1.0)
        poisoned = bars.with_columns(
            *(pl.col(name) * wild for name in ("open", "high", "low", "close", "volume")),
            dividend=pl.when(pl.col("session") > day).then(0.5).otherwise(pl.col("dividend")),
        )
        other = build_panel(poisoned, FeatureSet.of(panel.feature_names))
        np.testing.assert_array_equal(other.features[: t + 1], panel.features[: t + 1])
        train = Span(1738, 2746)
        assert fit_scaler(other, train) == fit_scaler(panel, train)
        assert _observations(other, train) == _observations(panel, train)
        again = backtest(bundle.policy, other, Span(2766, 3270), bundle.manifest.limits, bundle.manifest.costs)
        until = pl.col("session") <= panel.sessions[t + 1].item()
        targets = ("session", "symbol", "target_position", "target_weight", "ordered")
        assert again.positions.filter(until).select(targets).equals(ledger.positions.filter(until).select(targets))
        assert not again.account.equals(ledger.account)
        features, told = feature_set_of(bundle), (bundle.manifest.history_sessions, bundle.manifest.limits)
        answers = [
            decide(request_after(table, panel, ledger, t, *told), bundle, features) for table in (bars, poisoned)
        ]
        assert answers[0].weights == answers[1].weights
        assert answers[0].left_alone == answers[1].left_alone


def _observations(panel, span) -> bytes:
    env = SwingVectorEnv(8, Market(panel, fit_scaler(panel, span)), span)
    seen = [env.reset(seed=0)[0]] + [env.step(np.full(8, step % 3))[0] for step in range(50)]
    return np.stack(seen).tobytes()


def test_served_decision_equals_the_backtests(restless, bars, panel, ledger):
    bundle = read_bundle(restless)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = "a-token-of-this-test"
    command = [sys.executable, str(ROOT / "scripts" / "contained.py"), "--", str(BIN / "swing-live"), "serve"]
    command += [str(restless), "--port", str(port)]
    env = environment() | {"SWING_POLICY_TOKEN": token}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as server:
        try:
            url = next(json.loads(line)["url"] for line in server.stdout if line.startswith("{"))
            _assert_closed_to_strangers(server.pid)
            with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
                _assert_refusals(client, bars, panel, ledger)
                info = client.get("/policy/v1/model").json()
                assert info["policy_version"] == bundle.version
                decisions = set()
                for t in SESSIONS:
                    request = request_after(bars, panel, ledger, t, info["history_sessions"], bundle.manifest.limits)
                    body = client.post("/policy/v1/decisions", json=request.model_dump(mode="json"))
                    assert body.status_code == 200, body.text
                    answer = DecisionResponse.model_validate_json(body.content)
                    assert answer.positions == _decided(ledger, panel, t, "target_position"), panel.sessions[t]
                    targets = answer.weights | dict.fromkeys(answer.left_alone)
                    assert targets == pytest.approx(_decided(ledger, panel, t, "target_weight")), panel.sessions[t]
                    decisions.update(answer.positions.values())
                assert decisions == {-1.0, 0.0, 1.0}
        finally:
            server.terminate()
            server.wait(60)
    assert not [p for p in psutil.process_iter(["cmdline"]) if str(restless) in " ".join(p.info["cmdline"] or [])]


def _assert_refusals(client: httpx.Client, bars, panel, ledger) -> None:
    request = json.loads(request_after(bars, panel, ledger, 2800, 400, Limits()).model_dump_json())
    assert client.post("/policy/v1/decisions", json=request, headers={"Authorization": "Bearer no"}).status_code == 401
    late = client.post("/policy/v1/decisions", json=request | {"as_of_session": "2011-01-03"})
    assert late.status_code == 409
    assert "newest session" in late.json()["detail"]
    assert client.post("/policy/v1/decisions", json=request | {"surprise": 1}).status_code == 422
    request["bars"]["AAPL"]["close"][-1] = "NaN"
    assert client.post("/policy/v1/decisions", json=request).status_code == 422


def _assert_closed_to_strangers(pid: int) -> None:
    family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    listeners = [c.laddr for p in family for c in p.net_connections("inet") if c.status == psutil.CONN_LISTEN]
    assert listeners
    # One port of a Serve replica is open to all by Ray's own code: it must refuse whoever lacks the secret.
    outer = [address for address in listeners if not ip_address(address.ip.removeprefix("::ffff:")).is_loopback]
    assert len(outer) <= 1
    for address in outer:
        with grpc.insecure_channel(f"127.0.0.1:{address.port}") as channel:
            call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
            with pytest.raises(grpc.RpcError) as refused:
                call(b"", timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
