"""The bundle's reader against torch, its refusal of any altered byte, and the backtest's ledger."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from data_pipeline.errors import BundleError, FoldError
from data_pipeline.folds import Span
from data_pipeline.scaling import Scaler
from envs.backtest import backtest
from envs.bundle import (
    ATTENTION_WEIGHTS,
    FeatureEntry,
    LstmPolicy,
    Manifest,
    Verdict,
    _manifest_bytes,
    greedy_positions,
    read_bundle,
    write_bundle,
)
from envs.contract import PORTFOLIO_FEATURES, ActionKind
from envs.costs import Costs
from envs.limits import Limits

SPAN = Span(2766, 2900)
FEATURES, UNITS = 7, 12
NETWORKS = [(1, 0), (2, 0), (1, 3), (2, 4)]
"""Layers and attention heads."""


class Erratic:
    """Targets drawn from the session alone, so that every run agrees."""

    name, window = "erratic", 5

    def decide(self, window):
        rng = np.random.default_rng(window.session.toordinal())
        return rng.uniform(-1, 1, len(window.symbols))


class Reference(torch.nn.Module):
    """The network by torch's own layers, over whole windows with an explicit mask."""

    def __init__(self, layers: int, heads: int, outputs: int) -> None:
        super().__init__()
        self.lstm = torch.nn.LSTM(FEATURES, UNITS, layers)
        self.attention = torch.nn.MultiheadAttention(UNITS, heads) if heads else None
        self.trunk = torch.nn.Linear(UNITS + len(PORTFOLIO_FEATURES), 10)
        self.actor = torch.nn.Linear(10, outputs)
        for parameter in self.parameters():
            torch.nn.init.normal_(parameter, std=0.5)

    def forward(self, scaled, portfolio, sessions):
        seen, _ = self.lstm(scaled)
        if self.attention is not None:
            ago = torch.arange(len(scaled))[:, None] - torch.arange(len(scaled))
            seen = seen + self.attention(seen, seen, seen, attn_mask=(ago < 0) | (ago >= sessions))[0]
        return self.actor(torch.tanh(self.trunk(torch.cat([seen[-1], portfolio], dim=1))))

    def policy(self, action: ActionKind, window: int, heads: int, sessions: int) -> LstmPolicy:
        arrays = {name: tensor.detach().numpy() for name, tensor in self.named_parameters()}
        weights = {name: array for name, array in arrays.items() if name.startswith(("trunk.", "actor."))}
        for number, layer in enumerate(("lstm", "lstm2")[: self.lstm.num_layers]):
            for part in ("weight_ih", "weight_hh"):
                weights[f"{layer}.{part}"] = arrays[f"lstm.{part}_l{number}"]
            weights[f"{layer}.bias"] = arrays[f"lstm.bias_ih_l{number}"] + arrays[f"lstm.bias_hh_l{number}"]
        if heads:
            names = ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")
            weights |= {to: arrays[f"attention.{name}"] for to, name in zip(ATTENTION_WEIGHTS, names, strict=True)}
        scaler = Scaler(median=tuple(np.linspace(-1, 1, FEATURES)), spread=tuple(np.linspace(0.5, 2, FEATURES)))
        return LstmPolicy("reference", window, weights, scaler, action, heads, sessions if heads else 0)


def recorded(window, layers, heads, sessions=9, action=ActionKind.DISCRETE):
    """A policy and what it must answer, as a golden observation."""
    torch.manual_seed(window)
    net = Reference(layers, heads, 3 if action is ActionKind.DISCRETE else 1)
    policy = net.policy(action, window, heads, sessions)
    rng = np.random.default_rng(window)
    features = rng.normal(0, 1, (window, 5, FEATURES)).astype(np.float32)
    portfolio = rng.uniform(-1, 1, (5, 2)).astype(np.float32)
    median, spread = (torch.tensor(numbers) for numbers in (policy.scaler.median, policy.scaler.spread))
    scaled = ((torch.tensor(features) - median) / spread).clip(-5, 5).float()
    outputs = net(scaled, torch.tensor(portfolio), sessions).detach().numpy()
    return policy, {"features": features, "portfolio": portfolio, "outputs": outputs}


def manifest_of(policy, **others):
    """A manifest in which little but the network matters."""
    return Manifest(
        features=tuple(FeatureEntry(name=f"f{number}", look_back=1) for number in range(FEATURES)),
        feature_schema_hash="",
        window=policy.window,
        action=policy.action,
        scaler=policy.scaler,
        symbols=("A",),
        exchange="XNYS",
        limits=Limits(),
        costs=Costs(),
        data={},
        config={},
        config_hash="",
        code="",
        results={},
        verdict=Verdict(decision="reject", reasons=()),
        **{"attention_heads": policy.attention_heads, "attention_sessions": policy.attention_sessions, **others},
    )


@pytest.mark.parametrize("action", list(ActionKind))
@pytest.mark.parametrize("window", [1, 6, 9, 40])
@pytest.mark.parametrize(("layers", "heads"), NETWORKS)
def test_numpy_policy_equals_torch_layers(layers, heads, window, action):
    policy, golden = recorded(window, layers, heads, action=action)
    answer = policy.outputs(golden["features"], golden["portfolio"])
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, golden["outputs"], rtol=0, atol=1e-5)


@pytest.mark.parametrize(("layers", "heads"), NETWORKS)
def test_numpy_policy_looks_at_nothing_of_another_symbol(layers, heads):
    policy, golden = recorded(20, layers, heads)
    before = policy.outputs(golden["features"], golden["portfolio"])
    golden["features"][:, 3] += 1.0
    golden["portfolio"][3] += 1.0
    changed = (policy.outputs(golden["features"], golden["portfolio"]) != before).any(axis=1)
    assert changed.tolist() == [False, False, False, True, False]


def test_continuous_policy_takes_the_mean_as_its_position():
    outputs = np.array([[0.25], [-3.0]], np.float32)
    assert greedy_positions(outputs, ActionKind.CONTINUOUS).tolist() == [0.25, -1.0]


@pytest.mark.parametrize("action", list(ActionKind))
@pytest.mark.parametrize(("layers", "heads"), NETWORKS)
def test_bundle_comes_back_with_its_layers_and_attention(tmp_path, layers, heads, action):
    policy, golden = recorded(20, layers, heads, action=action)
    manifest = manifest_of(policy)
    written = write_bundle(tmp_path / "bundle", manifest, policy, golden, {})
    bundle = read_bundle(tmp_path / "bundle")
    assert (bundle.manifest, bundle.digest) == (manifest, written.digest)
    assert (bundle.policy.attention_heads, bundle.policy.attention_sessions) == (heads, 9 if heads else 0)
    assert bundle.policy.weights.keys() == policy.weights.keys()
    for name, array in policy.weights.items():
        np.testing.assert_array_equal(bundle.policy.weights[name], array)


@pytest.mark.parametrize(
    ("stated", "missing", "words"),
    [
        ({"attention_heads": 0}, (), "attention of 0 heads over 9 sessions with the weights attention.in_weight"),
        ({"attention_sessions": 0}, (), "3 heads over 0 sessions"),
        ({"attention_heads": 0, "attention_sessions": 0}, (), "or nothing of these"),
        ({}, ATTENTION_WEIGHTS, "with the weights none; give both numbers and attention.in_weight"),
        ({}, ATTENTION_WEIGHTS[1:2], "give both numbers and attention.in_weight, attention.in_bias"),
        ({"attention_heads": -3}, (), "-3 heads"),
        ({"attention_heads": 5}, (), "5 heads over 9 sessions cannot share out 12 units"),
    ],
)
def test_policy_with_attention_that_does_not_fit_is_refused(tmp_path, stated, missing, words):
    policy, golden = recorded(6, 1, 3)
    weights = {name: array for name, array in policy.weights.items() if name not in missing}
    with pytest.raises(BundleError, match=words):
        replace(policy, weights=weights, **stated)
    if stated.get("attention_heads") != -3 and not missing:
        with pytest.raises(BundleError, match=words):
            write_bundle(tmp_path / "bundle", manifest_of(policy, **stated), policy, golden, {})


def test_bundle_of_an_older_format_is_refused(tmp_path):
    policy, golden = recorded(6, 1, 0)
    folder = tmp_path / "bundle"
    write_bundle(folder, manifest_of(policy), policy, golden, {})
    head = json.loads((folder / "manifest.json").read_bytes())
    del head["sha256"]
    assert head["manifest"]["format"] == 3
    head["manifest"]["format"] = 2
    (folder / "manifest.json").write_bytes(_manifest_bytes(head))
    with pytest.raises(BundleError, match="written by another version"):
        read_bundle(folder)


def test_ledger_rows_add_up(panel):
    ledger = backtest(Erratic(), panel, SPAN, Limits(), Costs())
    assert ledger.account.height == len(SPAN)
    assert ledger.positions.height == len(SPAN) * len(panel.symbols)
    by_session = ledger.positions.group_by("session", maintain_order=True).agg(pl.col("commission", "spread").sum())
    np.testing.assert_allclose(by_session["spread"], ledger.account["spread"])
    traded = ledger.positions["filled"] != 0
    assert ledger.positions.filter(traded)["price"].is_not_null().all()
    assert ledger.account["gross"].max() < 1.05
    np.testing.assert_allclose(np.prod(1 + ledger.returns()) * 100_000, ledger.account["equity"][-1])


def test_ledger_is_the_same_each_time_and_saved_as_parquet(panel, tmp_path):
    one, two = (backtest(Erratic(), panel, SPAN, Limits(), Costs()) for _ in range(2))
    assert one.account.equals(two.account)
    one.save(tmp_path)
    assert pl.read_parquet(tmp_path / "account.parquet").equals(one.account)


def test_backtest_more_cost_never_makes_richer(panel):
    final = [
        backtest(Erratic(), panel, SPAN, Limits(), Costs(half_spread_bps=bps)).account["equity"][-1]
        for bps in (0, 2, 10, 50)
    ]
    assert final == sorted(final, reverse=True)


def test_backtest_without_room_for_the_window_is_refused(panel):
    with pytest.raises(FoldError, match="5 sessions before"):
        backtest(Erratic(), panel, Span(3, 50), Limits(), Costs())


@pytest.mark.ray
def test_bundle_with_any_flipped_byte_is_refused(story, tmp_path):
    assert read_bundle(story.bundle).manifest.verdict.decision in ("promote", "reject")
    rng = np.random.default_rng(0)
    for path in sorted(p.relative_to(story.bundle) for p in story.bundle.rglob("*") if p.is_file()):
        body = (story.bundle / path).read_bytes()
        for at in rng.integers(len(body), size=8):
            copy = tmp_path / f"{path.name}-{at}"
            shutil.copytree(story.bundle, copy, dirs_exist_ok=True)
            flipped = bytearray(body)
            flipped[at] ^= 1 << rng.integers(8)
            (copy / path).write_bytes(flipped)
            with pytest.raises(BundleError):
                read_bundle(copy)


@pytest.mark.ray
def test_serve_of_a_bundle_with_a_flipped_byte_exits_2_with_one_line(story, tmp_path, command, monkeypatch):
    monkeypatch.setenv("SWING_POLICY_TOKEN", "x" * 20)
    copy = tmp_path / "bundle"
    shutil.copytree(story.bundle, copy)
    weights = copy / "weights.safetensors"
    body = bytearray(weights.read_bytes())
    body[-1] ^= 1
    weights.write_bytes(body)
    done = command("swing-live", "serve", copy, "--port", "1")
    assert done.returncode == 2
    assert "weights.safetensors altered" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.ray
def test_bundle_of_strided_arrays_comes_back_as_it_was(story, tmp_path):
    bundle = read_bundle(story.bundle)
    strided = {name: np.asfortranarray(array) for name, array in bundle.policy.weights.items()}
    policy = replace(bundle.policy, weights=strided)
    again = write_bundle(tmp_path / "bundle", bundle.manifest, policy, bundle.golden, {})
    for name, array in bundle.policy.weights.items():
        np.testing.assert_array_equal(again.policy.weights[name], array)
