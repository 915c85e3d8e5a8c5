"""The bundle's reader against torch, its refusal of any altered byte, and the backtest's ledger."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from data_pipeline.errors import BundleError, FoldError
from data_pipeline.folds import Span
from envs.backtest import backtest
from envs.bundle import lstm_last, read_bundle, write_bundle
from envs.costs import Costs
from envs.limits import Limits

SPAN = Span(2766, 2900)


class Erratic:
    """Targets drawn from the session alone, so that every run agrees."""

    name, window = "erratic", 5

    def decide(self, window):
        rng = np.random.default_rng(window.session.toordinal())
        return rng.uniform(-1, 1, len(window.symbols))


def test_numpy_lstm_equals_torch():
    torch.manual_seed(0)
    net = torch.nn.LSTM(7, 12)
    inputs = torch.randn(40, 9, 7)
    arrays = {name: tensor.detach().numpy() for name, tensor in net.named_parameters()}
    weights = {
        "lstm.weight_ih": arrays["weight_ih_l0"],
        "lstm.weight_hh": arrays["weight_hh_l0"],
        "lstm.bias": arrays["bias_ih_l0"] + arrays["bias_hh_l0"],
    }
    expected = net(inputs)[0][-1].detach().numpy()
    np.testing.assert_allclose(lstm_last(inputs.numpy(), weights), expected, atol=1e-6)


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
