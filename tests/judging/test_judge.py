"""The judge on markets whose truth is known, in a small form of `benchmarks.judge`."""

from __future__ import annotations

import pytest

from benchmarks.judge import WORLDS, Size, judged, score, settings
from data_pipeline.build import build
from data_pipeline.errors import RunError
from data_pipeline.panel import open_panel
from envs.backtest import backtest
from rl.config import with_values
from rl.judging.metrics import figures
from rl.judging.tune import folds_of
from rl.learning.cluster import ray_session
from rl.learning.train import train

SMALL = Size(steps=300_000, holdout=252, twins=4, axes=1)


@pytest.fixture(scope="module")
def markets(tmp_path_factory):
    folder = tmp_path_factory.mktemp("markets")
    with ray_session():
        return {kind: judged(kind, 0, folder, SMALL) for kind in ("noise", "signal")}


def test_noise_is_rejected(markets):
    verdict = markets["noise"].verdict
    assert verdict.decision == "reject"
    assert not all(gate.passed for gate in verdict.gates if gate.name in ("superiority", "overfitting"))
    assert score(markets["noise"]) is None
    with pytest.raises(RunError, match="was not trained, for a gate before had failed"):
        markets["noise"].policy()


def test_planted_signal_is_promoted_and_was_learned(markets):
    found = markets["signal"]
    assert found.verdict.decision == "promote", found.verdict.reasons
    assert score(found) > 0.8


def test_ten_times_the_costs_lower_the_turnover(tmp_path):
    config = settings(WORLDS["signal"], 0, tmp_path, SMALL)
    folder = build(config.data)
    panel = open_panel(folder)
    _, final = folds_of(panel, config)
    turnovers = []
    for factor in (1, 10):
        spread = factor * config.env.costs.half_spread_bps
        priced = with_values(config, {"env.costs.half_spread_bps": spread}, "test")
        with ray_session():
            trained = train(priced, folder, final.train, tmp_path / f"times-{factor}")
        env = priced.env
        ledger = backtest(trained.policy, panel, final.test, env.limits, env.costs, env.initial_cash_usd)
        turnovers.append(figures(ledger).turnover_per_year)
    assert turnovers[1] < 0.5 * turnovers[0]
