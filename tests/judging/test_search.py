"""What a sweep tries: all of the grid, fresh draws, and the same again after an interruption."""

from __future__ import annotations

import pytest

from data_pipeline.errors import ConfigError
from rl.config import TuneConfig
from rl.judging.search import Past, Search, size_of

SPACE = {
    "learn.lr": {"loguniform": [1e-4, 1e-2]},
    "model.hidden": {"choice": [16, 32, 64]},
    "model.bptt_sessions": {"integer": [20, 60]},
    "learn.entropy": {"uniform": [0.0, 0.1]},
}
GRID = {"train.algorithm": {"grid": ["a3c", "ppo"]}, "env.costs": {"grid": [[1, 2], [3, 4], [5, 6]]}}


def config(space=None, **settings):
    return TuneConfig.of({"space": SPACE if space is None else space, **settings})


def proposals(search, scores=float):
    found = []
    while (proposal := search.propose()) is not None:
        found.append(proposal)
        search.tell(proposal[0], scores(proposal[0]))
    return found


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_draws_are_inside_their_axes_and_all_different(sampler):
    found = proposals(Search(config(samples=20, sampler=sampler)))
    assert [number for number, _ in found] == list(range(20))
    for _, values in found:
        assert list(values) == list(SPACE)
        assert 1e-4 <= values["learn.lr"] <= 1e-2
        assert values["model.hidden"] in (16, 32, 64)
        assert isinstance(values["model.bptt_sessions"], int)
        assert 20 <= values["model.bptt_sessions"] <= 60
        assert 0.0 <= values["learn.entropy"] <= 0.1
    assert len({values["learn.lr"] for _, values in found}) == 20


def test_grid_is_gone_through_in_order_for_each_sample_with_values_of_any_kind():
    settings = config({**GRID, **SPACE}, samples=2)
    found = [values for _, values in proposals(Search(settings))]
    grid = [(algorithm, costs) for algorithm in ("a3c", "ppo") for costs in ([1, 2], [3, 4], [5, 6])]
    assert size_of(settings) == len(found) == 12
    assert [(each["train.algorithm"], each["env.costs"]) for each in found] == grid * 2
    assert len({each["learn.lr"] for each in found}) == 12


def test_no_space_is_one_configuration_as_it_stands():
    assert proposals(Search(config({}))) == [(0, {})]


@pytest.mark.parametrize("sampler", ["random", "tpe"])
@pytest.mark.parametrize("cut", [0, 1, 7, 15])
def test_interrupted_search_goes_on_as_if_nothing_had_happened(sampler, cut):
    settings = config(samples=16, sampler=sampler)
    whole = proposals(Search(settings))
    past = [Past(values, float(number), True) for number, values in whole[:cut]]
    assert proposals(Search(settings, past)) == whole[cut:]


def test_configuration_under_way_when_the_sweep_was_killed_is_told_later():
    settings = config(samples=4)
    whole = proposals(Search(settings))
    past = [Past(whole[0][1], 0.0, True), Past(whole[1][1], None, False)]
    search = Search(settings, past)
    assert search.propose() == whole[2]
    search.tell(1, 1.0)
    search.tell(2, None)
    assert search.propose() == whole[3]
    assert search.propose() is None


def test_other_seeds_draw_otherwise():
    one, other = (proposals(Search(config(samples=3, seed=seed))) for seed in (0, 1))
    assert all(a != b for a, b in zip(one, other, strict=True))


def test_tree_of_parzen_estimators_draws_near_what_did_well():
    space = {"learn.lr": {"uniform": [0.0, 1.0]}}
    search = Search(config(space, samples=60, sampler="tpe"))
    found = []
    while (proposal := search.propose()) is not None:
        found.append(proposal[1]["learn.lr"])
        search.tell(proposal[0], -abs(found[-1] - 0.3))
    late = found[30:]
    assert sum(abs(value - 0.3) < 0.15 for value in late) > 20  # 9 of 30 by chance


@pytest.mark.parametrize(
    ("axis", "message"),
    [
        ({"grid": []}, "grid is empty"),
        ({"choice": []}, "choice is empty"),
        ({}, "exactly one of"),
        ({"grid": [1], "choice": [1]}, "exactly one of"),
    ],
)
def test_axis_without_one_meaning_is_refused(axis, message):
    with pytest.raises(ConfigError, match=message):
        config({"learn.lr": axis})


def test_parallel_folds_cannot_be_stopped_early():
    with pytest.raises(ConfigError, match="stop_early needs the folds one after another"):
        config(parallel_folds=True, stop_early=True)
