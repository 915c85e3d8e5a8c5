"""The gates, by pencil; what they say together is in `benchmarks.judge` and `test_sweep`."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest

from rl.judging.criteria import JudgeConfig
from rl.judging.evidence import Series, evidence_of
from rl.judging.metrics import Comparison
from rl.judging.twins import ranked
from rl.judging.verdict import (
    holdout_gate,
    search_gates,
    shut_gate,
    substance_gate,
    twins_gate,
    verdict_of,
)

CONFIG = JudgeConfig()
SESSIONS = 1008


class Count:
    """A ledger that only knows how much was tried."""

    def __init__(self, trials):
        self._trials = trials

    def count(self):
        return self._trials

    def trials(self):
        return []


def evidence(excess=0.0, configurations=8, seed=0, trials=8, alike=False):
    """Of configurations of which the first (alike: each) has so much excess a session over a noisy benchmark."""
    rng = np.random.default_rng(seed)
    market = rng.normal(4e-4, 0.01, SESSIONS)
    returns = market[:, None] + rng.normal(0, 0.004, (SESSIONS, configurations))
    returns[:, slice(None) if alike else 0] += excess
    sessions = tuple(date.fromordinal(730000 + number) for number in range(SESSIONS))
    baselines = {"vol-target-10": market, "equal-weight": market * 1.1}
    winner = int(np.argmax(returns.mean(axis=0) / returns.std(axis=0)))
    series = Series(sessions, returns, tuple(range(configurations)), baselines)
    return evidence_of(series, winner, "lr=0.001", Count(trials), CONFIG)


def decisions(found):
    return [gate.passed for gate in search_gates(found, CONFIG)]


def test_search_of_a_planted_excess_passes_both_gates():
    assert [decisions(evidence(6e-4, seed=seed)) for seed in range(5)] == [[True, True]] * 5


def test_search_of_noise_seldom_passes():
    passed = [decisions(evidence(seed=seed)) for seed in range(20)]
    assert sum(all(each) for each in passed) <= 2
    assert sum(each[0] for each in passed) <= 3


def test_equally_good_configurations_pass_though_none_is_better_than_another():
    for seed in range(3):
        found = evidence(6e-4, alike=True, seed=seed)
        assert decisions(found) == [True, True]
        assert found.overfitting > 0.2


def test_single_configuration_cannot_be_overfitted_and_is_still_tested():
    found = evidence(configurations=1)
    superiority, overfitting = search_gates(found, CONFIG)
    assert found.overfitting is found.loss is None
    assert (superiority.passed, overfitting.passed) == (False, True)
    assert "none was chosen" in overfitting.says


def test_gate_says_its_numbers_and_the_threshold():
    found = evidence()
    superiority, overfitting = search_gates(found, CONFIG)
    assert f"SPA p = {found.superiority_p:.3f}, not below 0.05" in superiority.says
    assert "the best of 8 configurations against vol-target-10" in superiority.says
    assert f"{found.loss:.2f}, not below 0.2" in overfitting.says
    assert f"{found.overfitting:.2f} (PBO)" in overfitting.says


def test_more_trials_in_the_project_lower_the_deflated_sharpe_ratio_and_need_a_longer_history():
    few, many = evidence(6e-4, trials=8), evidence(6e-4, trials=800)
    assert many.minimum_years > few.minimum_years
    assert many.trials == 800


def comparison(excess):
    return Comparison(
        policy="ppo-lstm",
        benchmark="vol-target-10",
        excess=excess,
        lower=excess - 0.1,
        upper=excess + 0.1,
        p_value=0.3,
        block_sessions=3,
    )


@pytest.mark.parametrize(("excess", "passed"), [(0.02, True), (0.0, False), (-0.02, False)])
def test_holdout_asks_for_a_gain_of_any_size(excess, passed):
    gate = holdout_gate(comparison(excess))
    assert gate.passed is passed
    assert f"{excess:+.1%} a year" in gate.says


@pytest.mark.parametrize(
    ("twins", "p_value", "passed"),
    [([0.0] * 8, 1 / 9, True), ([0.0] * 7 + [1.0], 2 / 9, False), ([1.5] * 8, 1.0, False), ([0.0] * 3, 0.25, False)],
)
def test_candidate_among_its_twins(twins, p_value, passed):
    found = ranked(1.0, twins)
    assert found.p_value == pytest.approx(p_value)
    assert twins_gate(found, CONFIG).passed is passed


@pytest.mark.parametrize(("trades", "sessions", "passed"), [(5, 504, True), (0, 504, False), (5, 19, False)])
def test_substance_needs_trades_and_sessions(trades, sessions, passed):
    gate = substance_gate(SimpleNamespace(name="ppo-lstm", trades=trades, sessions=sessions))
    assert gate.passed is passed
    assert str(sessions) in gate.says


def test_verdict_promotes_only_where_every_gate_is_passed():
    good = [*search_gates(evidence(6e-4), CONFIG), holdout_gate(comparison(0.1))]
    assert verdict_of(good, [comparison(0.1)]).decision == "promote"
    for bad in (shut_gate("twins"), shut_gate("holdout")):
        found = verdict_of([*good, bad], [])
        assert found.decision == "reject"
        assert found.reasons[-1].startswith(f"{bad.name}, failed: ")
    assert verdict_of(good, []).reasons[0].startswith("superiority, passed: ")
