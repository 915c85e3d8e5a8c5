"""The bundle's reader against torch, its refusal of any altered byte, and the backtest's ledger."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from datetime import date

import numpy as np
import polars as pl
import pytest
import torch

from data_pipeline.errors import BundleError, FoldError
from data_pipeline.folds import Span
from data_pipeline.scaling import Scaler
from envs.backtest import backtest
from envs.bundle import (
    FeatureEntry,
    Manifest,
    PolicyEntry,
    Verdict,
    _manifest_bytes,
    golden_of,
    read_bundle,
    write_bundle,
)
from envs.contract import PORTFOLIO_FEATURES, ActionKind, Window
from envs.costs import Costs
from envs.ensemble import Ensemble
from envs.limits import Limits
from envs.lstm import ATTENTION_WEIGHTS, LstmPolicy, greedy_positions

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
    return policy, golden_of(policy, features, portfolio, [outputs])


def recorded_ensemble(combination="mean", weights=()):
    """Three networks of different windows, depths, scalers and meanings of their outputs, and what they answer."""
    kinds = [(6, 1, 0, ActionKind.DISCRETE), (20, 2, 3, ActionKind.CONTINUOUS), (9, 1, 4, ActionKind.DISCRETE)]
    networks, outputs = [], []
    rng = np.random.default_rng(1)
    features = rng.normal(0, 1, (20, 5, FEATURES)).astype(np.float32)
    portfolio = rng.uniform(-1, 1, (5, 2)).astype(np.float32)
    for number, (window, layers, heads, action) in enumerate(kinds):
        torch.manual_seed(number)
        net = Reference(layers, heads, 3 if action is ActionKind.DISCRETE else 1)
        scaler = Scaler(median=(0.1 * number,) * FEATURES, spread=(1.0 + number,) * FEATURES)
        network = replace(net.policy(action, window, heads, 9), name=f"seed-{number}", scaler=scaler)
        scaled = torch.tensor(scaler.transform(features[-window:]))
        outputs.append(net(scaled, torch.tensor(portfolio), 9).detach().numpy())
        networks.append(network)
    policy = Ensemble("three", tuple(networks), combination, weights)
    return policy, golden_of(policy, features, portfolio, outputs)


def altered(folder, change):
    """Changes the manifest of a bundle and seals it again, as one would who knows how."""
    head = json.loads((folder / "manifest.json").read_bytes())
    del head["sha256"]
    change(head["manifest"])
    (folder / "manifest.json").write_bytes(_manifest_bytes(head))


def manifest_of(policy):
    """A manifest in which little but the network matters."""
    return Manifest(
        features=tuple(FeatureEntry(name=f"f{number}", look_back=1) for number in range(FEATURES)),
        feature_schema_hash="",
        policy=PolicyEntry.describing(policy),
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
    )


@pytest.mark.parametrize("action", list(ActionKind))
@pytest.mark.parametrize("window", [1, 6, 9, 40])
@pytest.mark.parametrize(("layers", "heads"), NETWORKS)
def test_numpy_policy_equals_torch_layers(layers, heads, window, action):
    policy, golden = recorded(window, layers, heads, action=action)
    answer = policy.outputs(golden["features"], golden["portfolio"])
    assert answer.dtype == np.float32
    np.testing.assert_allclose(answer, golden["outputs-0"], rtol=0, atol=1e-5)


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
        folder = tmp_path / "bundle"
        write_bundle(folder, manifest_of(policy), policy, golden, {})
        altered(folder, lambda manifest: manifest["policy"]["members"][0].update(stated))
        with pytest.raises(BundleError, match=words):
            read_bundle(folder)


def test_bundle_of_an_older_format_is_refused(tmp_path):
    policy, golden = recorded(6, 1, 0)
    folder = tmp_path / "bundle"
    write_bundle(folder, manifest_of(policy), policy, golden, {})
    assert json.loads((folder / "manifest.json").read_bytes())["manifest"]["format"] == 4
    altered(folder, lambda manifest: manifest.update(format=3))
    with pytest.raises(BundleError, match=r"written by another version .* export it again with this one"):
        read_bundle(folder)


def window_of(golden, ready=True):
    """The golden observation as a policy sees it."""
    count = golden["portfolio"].shape[0]
    closes = np.ones(golden["features"].shape[:2])
    known = golden["features"], closes, golden["portfolio"], np.full(count, ready)
    return Window(date(2010, 1, 4), tuple("ABCDE"[:count]), *known)


@pytest.mark.parametrize(
    ("combination", "weights"), [("mean", ()), ("vote", ()), ("sharpe", (0.5, 0.2, 0.3)), ("sharpe", (0.0, 1.0, 0.0))]
)
def test_bundle_of_an_ensemble_comes_back_and_decides_as_it_did(tmp_path, combination, weights):
    policy, golden = recorded_ensemble(combination, weights)
    write_bundle(tmp_path / "bundle", manifest_of(policy), policy, golden, {})
    bundle = read_bundle(tmp_path / "bundle")
    assert (bundle.policy.name, bundle.policy.combination, bundle.policy.weights) == ("three", combination, weights)
    assert [member.name for member in bundle.policy.members] == ["seed-0", "seed-1", "seed-2"]
    assert [member.window for member in bundle.policy.members] == [6, 20, 9]
    assert (bundle.manifest.window, bundle.policy.window) == (20, 20)
    assert bundle.manifest.history_sessions == 20 + 1
    answer = bundle.policy.decide(window_of(golden))
    np.testing.assert_array_equal(answer, policy.decide(window_of(golden)))
    np.testing.assert_allclose(answer, golden["positions"], atol=1e-5)
    assert len(set(np.round(answer, 3))) > 1
    assert bundle.policy.decide(window_of(golden, ready=False)).tolist() == [0.0] * 5


def test_bundle_of_an_ensemble_of_one_stays_an_ensemble(tmp_path):
    member, golden = recorded(20, 1, 0, action=ActionKind.CONTINUOUS)
    policy = Ensemble("one", (member,), "vote")
    golden = golden_of(policy, golden["features"], golden["portfolio"], [golden["outputs-0"]])
    write_bundle(tmp_path / "bundle", manifest_of(policy), policy, golden, {})
    answer = read_bundle(tmp_path / "bundle").policy.decide(window_of(golden))
    assert set(answer) <= {-1.0, 0.0, 1.0}
    assert set(member.decide(window_of(golden))) - {-1.0, 0.0, 1.0}  # it alone answers by degrees


def swap_members(manifest):
    manifest["policy"]["members"].reverse()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda manifest: manifest["policy"].update(combination="vote", weights=[]), "what they come to"),
        (lambda manifest: manifest["policy"].update(weights=[0.2, 0.5, 0.3]), "what they come to"),
        (lambda manifest: manifest["policy"]["members"][2].update(window=8), r"off \(seed-2\)"),
        (lambda manifest: manifest["policy"]["members"][1]["scaler"].update(clip=0.5), r"off \(seed-1\)"),
        (swap_members, "attention of 4 heads"),
        (lambda manifest: manifest["policy"]["members"].pop(), "written by another version"),
        (lambda manifest: manifest["policy"].update(weights=[0.5, 0.3, 0.3]), "written by another version"),
        (lambda manifest: manifest["policy"].update(combination=None), "written by another version"),
        (lambda manifest: manifest["policy"].update(combination=None, weights=[]), "written by another version"),
    ],
)
def test_bundle_whose_manifest_tells_of_another_ensemble_is_refused(tmp_path, change, words):
    policy, golden = recorded_ensemble("sharpe", (0.5, 0.2, 0.3))
    folder = tmp_path / "bundle"
    write_bundle(folder, manifest_of(policy), policy, golden, {})
    altered(folder, change)
    with pytest.raises(BundleError, match=words):
        read_bundle(folder)


@pytest.mark.parametrize("part", ["outputs-0", "outputs-1", "outputs-2", "positions"])
def test_bundle_of_an_ensemble_with_another_golden_answer_is_refused(tmp_path, part):
    policy, golden = recorded_ensemble()
    wrong = {**golden, part: golden[part] + np.float32(1e-3)}
    with pytest.raises(BundleError, match=r"answers 0\.001 off"):
        write_bundle(tmp_path / "bundle", manifest_of(policy), policy, wrong, {})
    del wrong[part]
    with pytest.raises(BundleError, match=f"lacks {part}"):
        write_bundle(tmp_path / "bundle", manifest_of(policy), policy, wrong, {})
    assert not (tmp_path / "bundle").exists()


def test_bundle_of_what_is_no_network_or_is_described_wrongly_is_refused(tmp_path):
    policy, golden = recorded_ensemble()
    mixed = replace(policy, members=(*policy.members, Erratic()))
    with pytest.raises(BundleError, match="three: erratic is no network"):
        PolicyEntry.describing(mixed)
    with pytest.raises(BundleError, match="the manifest describes another policy"):
        write_bundle(tmp_path / "bundle", manifest_of(replace(policy, combination="vote")), policy, golden, {})


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
