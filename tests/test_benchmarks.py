"""Benchmarks: their shape and their honesty, not their figures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import simulator
from benchmarks.peers import PEERS
from envs.costs import Costs
from product import ROOT, environment

CARRIES = {
    "features": ({"rows_per_cpu_s", "peak_memory_over_panel"}, {"vs_talib_pandas", "vs_pandas_ta_classic"}),
    "simulator": (
        {
            *(f"slot_steps_per_cpu_s_b{slots}" for slots in (64, 1024, 4096)),
            *("scalar_steps_per_cpu_s", "account_steps_per_cpu_s_b64_10_symbols"),
            *("worker_private_mib_10", "worker_private_mib_50"),
        },
        {"vs_gym_anytrading", "vs_gym_trading_env", "vs_finrl", "symbols_50_vs_10", "numpy_sums_per_slot_step"},
    ),
}


TRAINING_RATIOS = {
    *("a3c_vs_ceiling_b64", "a3c_vs_ceiling_b256", "a3c_bf16_vs_ceiling_b64", "a3c_bf16_vs_ceiling_b256"),
    *("a3c_two_runners_vs_two_ceilings", "a3c_two_runners_vs_two_ceilings_b256", "a3c_vs_rllib", "a3c_vs_sb3"),
    *("ppo4_vs_rllib", "ppo4_vs_sb3"),
    *("async_ppo_vs_ppo", "straggler_a3c", "straggler_ppo"),
}


def _printed(*command):
    """Returns the JSON object that a benchmark prints last; nothing that it started outlives it."""
    contained = [sys.executable, str(ROOT / "scripts" / "contained.py"), "--", sys.executable, "-m"]
    done = subprocess.run(
        [*contained, *command, "--quick", "--json", "-"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
        env=environment(),
    )
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_training_benchmark_carries_every_figure_and_ratio_or_says_why_not():
    told = _printed("benchmarks.training")
    figures = {"ceiling_b64", "a3c_b64", "ceiling_b256", "a3c_b256", "a3c_two_runners", "ppo1", "ppo4", "single_file"}
    assert figures | {"rllib_ppo1", "rllib_ppo4", "sb3_ppo1", "sb3_ppo4"} <= set(told["figures"])
    assert set(told["ratios"]) | set(told["skipped"]) >= TRAINING_RATIOS
    assert all(ratio > 0 for ratio in told["ratios"].values())


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_learning_benchmark_scores_what_it_is_asked_for():
    told = _printed("benchmarks.learning", "--world", "prop", "--set", "q=.9", "sd=.25", "--algo", "a3c")
    found = told["scores"]["prop"]["a3c"]
    assert len(found["seeds"]) == 1
    assert found["median"] == found["seeds"][0]
    assert found["cpu_minutes"] > 0
    assert found["staleness"] >= 0


@pytest.mark.parametrize("name", CARRIES)
def test_benchmark_prints_the_shape_that_all_share(name):
    done = subprocess.run(
        [sys.executable, "-m", f"benchmarks.{name}", "--quick", "--json", "-"],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"benchmark", "when", "commit", "machine", "figures", "ratios", "skipped"}
    assert told["benchmark"] == name
    assert set(told["machine"]) == {"cpu", "cores", "python", "numpy", "torch", "ray"}
    figures, ratios = CARRIES[name]
    assert figures <= set(told["figures"])
    for figure in told["figures"].values():
        assert set(figure) == {"median", "min", "max", "runs", "unit"}
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
    assert ratios == set(told["ratios"]) | {f"vs_{peer}" for peer in told["skipped"]}
    assert all(ratio > 0 for ratio in told["ratios"].values())
    assert all(told["skipped"].values()), "a peer is skipped for a reason"


def test_simulator_benchmark_sets_every_cost():
    costs = Costs.of(simulator.ALL_COSTS)
    assert all(value > 0 for _, value in costs if isinstance(value, float))
    assert costs.spread == "high_low"
    rules = {"maintenance_long", "maintenance_short", "delisting_loss"}
    assert set(simulator.ALL_COSTS) == set(Costs.model_fields) - rules


def test_simulator_benchmark_absent_peer_is_skipped_with_the_reason(monkeypatch):
    def absent(day, seconds):
        raise ImportError("No module named 'finrl'")

    monkeypatch.setattr(simulator, "PEERS", dict.fromkeys(PEERS, absent))
    forms, skipped = simulator.available(None, 0.01)
    assert forms == {}
    assert skipped == dict.fromkeys(PEERS, "No module named 'finrl'")
