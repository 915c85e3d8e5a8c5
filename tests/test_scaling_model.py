"""The model of many runners: laws that it must obey, then one smoke run of the benchmark that feeds it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.scaling_model import LATEST, Cost, Costs, Design, Plan, predict
from product import ROOT

COSTS = Costs(
    gradient_bytes=1000,
    fragment_steps=64,
    compute_s=(0.1,),
    call=Cost(0.0),
    wait_s=0.001,
    wait_per_runner_s=0.0,
    get_s=0.002,
    apply=Cost(0.004),
    publish_s=0.002,
    send=Cost(0.001),
    serve=Cost(0.004),
)
SERVE_S = 0.01
INSTANT = replace(
    COSTS, compute_s=(0.08, 0.1, 0.12), wait_s=0.0, get_s=0.0, apply=Cost(0.0), publish_s=0.0, send=Cost(0.0)
)
SPREAD = replace(COSTS, compute_s=(0.05, 0.1, 0.15))


def test_one_runner_alternates_with_the_driver_and_is_never_stale():
    found = predict(COSTS, Plan(1))
    assert found.gradients_per_s == pytest.approx(1 / (0.1 + SERVE_S))
    assert found.env_steps_per_s == pytest.approx(64 / (0.1 + SERVE_S))
    assert (found.staleness, found.staleness_max, found.kept) == (0, 0, 1)
    assert found.busy["runners"] == pytest.approx(0.1 / (0.1 + SERVE_S))
    assert found.busy["driver"] == pytest.approx(SERVE_S / (0.1 + SERVE_S))


def test_one_runner_that_is_asked_ahead_never_waits_and_is_one_version_late():
    found = predict(COSTS, Plan(1, lead_s=0.02))
    assert found.gradients_per_s == pytest.approx(1 / 0.1)
    assert (found.staleness, found.staleness_max) == (1, 1)
    assert found.busy["runners"] == pytest.approx(1.0)
    assert found.busy["driver"] == pytest.approx(SERVE_S / 0.1)


def test_lead_that_ends_while_the_driver_looks_at_the_answer_changes_nothing():
    assert predict(COSTS, Plan(1, lead_s=0.002)) == predict(COSTS, Plan(1)), "look and fetch take 0.003"


def test_fragment_that_is_shorter_than_expected_comes_before_its_runner_is_asked_ahead():
    found = predict(replace(COSTS, compute_s=(0.05, 0.15)), Plan(1, lead_s=0.02))
    assert found.staleness == pytest.approx(0.5, abs=0.1), "after each long fragment, and after few short ones"
    assert 1 / (0.1 + SERVE_S) < found.gradients_per_s < 1 / 0.1


def test_runners_that_compute_nothing_have_two_requests_each_at_a_driver_that_never_rests():
    found = predict(replace(COSTS, compute_s=(0.0,)), Plan(2, lead_s=0.02))
    assert found.staleness == pytest.approx(3, abs=0.3), "four requests are out"
    assert found.busy["driver"] == pytest.approx(1.0, abs=0.01)


def test_expected_duration_follows_the_latest_as_in_the_crew():
    from rl.learning import crew

    assert LATEST == crew._LATEST


@pytest.mark.parametrize("runners", [2, 7, 64])
def test_instantaneous_driver_gives_each_runner_its_own_rate(runners):
    found = predict(INSTANT, Plan(runners))
    assert found.gradients_per_s == pytest.approx(runners / 0.1, rel=0.01)
    assert found.staleness == pytest.approx(runners - 1, rel=0.01)
    assert found.bottleneck == "runners"


@pytest.mark.parametrize("runners", [32, 128])
def test_saturated_driver_sets_the_rate_whatever_the_runners(runners):
    costs = replace(SPREAD, wait_s=0.0)  # one look serves a batch, so that it costs less the more there are
    found = predict(costs, Plan(runners))
    assert found.gradients_per_s == pytest.approx(costs.rate(Design.DRIVER), rel=0.01)
    assert found.busy["driver"] == pytest.approx(1.0)


def test_look_is_shared_by_the_batch_it_finds():
    found = predict(replace(SPREAD, wait_s=0.0, wait_per_runner_s=0.001), Plan(200))
    assert 1 / found.gradients_per_s < SERVE_S + 0.002, "and not a fifth of a second for each"


@given(
    runners=st.integers(1, 40),
    spread=st.lists(st.floats(0.001, 0.3), min_size=1, max_size=5),
    cores=st.none() | st.integers(1, 8),
    design=st.sampled_from(Design),
    bound=st.none() | st.integers(0, 40),
    lead=st.sampled_from([0.0, 0.02, 0.5]),
)
@settings(max_examples=25, deadline=None)
def test_no_gradient_is_lost_and_mean_staleness_is_the_number_of_other_requests(
    runners, spread, cores, design, bound, lead
):
    link = {"bytes_per_s": 1e6, "latency_s": 0.001}
    plan = Plan(runners, cores, **link, design=design, shards=2, max_staleness=bound, lead_s=lead)
    found = predict(replace(COSTS, compute_s=tuple(spread)), plan, gradients=40 * runners)
    tally, most = found.tally, 2 * runners if lead and design is Design.DRIVER else runners
    assert tally.sent == tally.applied + tally.refused + tally.under_way
    assert 0 <= tally.under_way <= most
    if bound is None:  # between two gradients of one runner lie those of all others: n - 1 on average, always
        assert (1 - 0.05) * runners - 1.05 <= found.staleness <= (1 + 0.05) * most - 0.95
    else:
        assert found.kept > 0
    assert all(0 <= share <= 1 for share in found.busy.values())


@pytest.mark.parametrize("runners", [2, 4, 16])
def test_two_cores_give_the_rate_of_two_whatever_the_runners(runners):
    found = predict(INSTANT, Plan(runners, cores=2))
    assert found.gradients_per_s == pytest.approx(2 / 0.1, rel=0.02)
    assert found.busy["runners"] == pytest.approx(1.0)


def test_driver_shares_the_cores_with_the_runners():
    found = predict(SPREAD, Plan(4, cores=2))  # no core ever rests
    assert found.gradients_per_s == pytest.approx(2 / (0.1 + SERVE_S), rel=0.02)


def test_same_seed_gives_the_same_prediction_and_another_seed_another():
    first, again, other = (predict(SPREAD, Plan(5), seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


@pytest.mark.parametrize(
    ("changes", "plan", "name"),
    [
        ({}, Plan(2), "runners"),
        ({"apply": Cost(0.02)}, Plan(64), "driver apply"),
        ({"get_s": 0.02}, Plan(64), "driver transfer"),
        ({"gradient_bytes": 20_000}, Plan(64, bytes_per_s=1e6), "network"),
        ({}, Plan(64, design=Design.LEARNER), "remote learner"),
        ({}, Plan(64, design=Design.SHARDS, shards=2), "shards"),
    ],
)
def test_bottleneck_is_named(changes, plan, name):
    assert predict(replace(SPREAD, **changes), plan).bottleneck == name


def test_network_bound_rate_is_that_of_the_link():
    found = predict(replace(SPREAD, gradient_bytes=20_000), Plan(64, bytes_per_s=1e6, latency_s=0.01))
    assert found.gradients_per_s == pytest.approx(1e6 / 20_000, rel=1e-3)


def test_latency_counts_twice():
    assert predict(COSTS, Plan(1, latency_s=0.02)).gradients_per_s == pytest.approx(1 / (0.1 + SERVE_S + 0.04))


def test_accumulation_moves_the_bottleneck_back_to_the_runners():
    bound, moved = (predict(SPREAD, Plan(32, accumulate=k)) for k in (1, 8))
    assert bound.bottleneck == "driver apply" or bound.bottleneck == "driver transfer"
    assert moved.bottleneck == "runners"
    assert moved.env_steps_per_s > 2.5 * bound.env_steps_per_s


def test_remote_learner_leaves_the_driver_two_requests_for_each_gradient():
    found = predict(SPREAD, Plan(64, design=Design.LEARNER))
    assert found.gradients_per_s == pytest.approx(1 / (0.004 + 0.004), rel=1e-3), "serve, apply"
    assert COSTS.rate(Design.LEARNER) == pytest.approx(1 / (0.004 + 0.004))
    assert found.busy["driver"] == pytest.approx(0.62, abs=0.02), "bound at 2 + 2 ms in 8, and the look"


def test_shards_divide_what_grows_with_bytes_and_nothing_else():
    costs = replace(SPREAD, apply=Cost(0.001, 1e-5), serve=Cost(0.002))
    one, four = (predict(costs, Plan(128, design=Design.SHARDS, shards=s)) for s in (1, 4))
    assert one.gradients_per_s == pytest.approx(1 / (0.002 + 0.011), rel=1e-3)
    assert four.gradients_per_s == pytest.approx(1 / (0.002 + 0.001 + 0.0025), rel=1e-3)
    assert four.gradients_per_s == pytest.approx(costs.rate(Design.SHARDS, 4), rel=1e-3)


def test_staleness_bound_keeps_about_as_many_runners_useful_as_it_allows_versions():
    found = predict(INSTANT, Plan(128, max_staleness=31))
    assert found.gradients_per_s == pytest.approx(32 / 0.1, rel=0.2)
    assert found.kept == pytest.approx(32 / 128, rel=0.2)
    assert found.staleness_max > 31


@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_scaling_benchmark_prints_the_shape_that_all_share(tmp_path):
    plot = tmp_path / "plot.svg"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.scaling", "--quick", "--json", "-", "--plot", plot],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert set(told) == {"benchmark", "when", "commit", "machine", "figures", "ratios", "skipped"}
    assert told["benchmark"] == "scaling"
    assert {f"predicted_vs_measured_{n}" for n in (1, 2, 4)} <= set(told["ratios"])
    assert {f"saturation_predicted_vs_measured_{n}" for n in (1, 2, 4, 8)} <= set(told["ratios"])
    for kind, runners in {"": (1, 2, 4), "saturation_": (1, 2, 4, 8)}.items():
        names = {f"{kind}{who}_gradients_per_s_{n}" for who in ("measured", "predicted") for n in runners}
        assert names <= set(told["figures"])
    for figure in told["figures"].values():
        assert set(figure) == {"median", "min", "max", "runs", "unit"}
        assert 0 < figure["min"] <= figure["median"] <= figure["max"]
    assert plot.read_text(encoding="utf-8").lstrip().startswith("<?xml")
