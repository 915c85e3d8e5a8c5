"""Benchmarks: their shape and their honesty, not their figures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from benchmarks import simulator
from benchmarks.peers import PEERS
from envs.costs import Costs
from product import ROOT

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
