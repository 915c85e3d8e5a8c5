"""Ensembles by pencil, on real backtests, and their members' disagreement."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

import numpy as np
import pytest

from data_pipeline.errors import BundleError, ConfigError
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from data_pipeline.scaling import fit_scaler
from envs.backtest import backtest
from envs.bundle import Bundle
from envs.contract import ActionKind, Floats, Window
from envs.costs import Costs
from envs.ensemble import Combination, Ensemble, combined
from envs.limits import Limits
from envs.lstm import LstmPolicy
from rl.judging.baselines import BuyAndHold, Cash, EqualWeight, Momentum, MovingAverages, VolatilityTarget
from rl.judging.ensemble import disagreement, sharpe_weights, watched, weighted_by_validation

NAN = float("nan")
SPAN = Span(2766, 2900)
EVERY: tuple[Combination, ...] = ("mean", "vote", "sharpe")


@dataclass
class Says:
    """Says the same of every session, and remembers what it was shown."""

    positions: tuple[float, ...]
    window: int = 1
    name: str = "says"
    shown: Window | None = None

    def decide(self, window: Window) -> Floats:
        self.shown = window
        return np.array(self.positions)


class Erratic:
    """Targets drawn from the session alone; some positions are left alone."""

    window = 5

    def __init__(self, seed: int) -> None:
        self.seed, self.name = seed, f"erratic-{seed}"

    def decide(self, window: Window) -> Floats:
        rng = np.random.default_rng([self.seed, window.session.toordinal()])
        targets = rng.uniform(-1, 1, len(window.symbols))
        return np.where(rng.random(len(targets)) < 0.3, NAN, targets)


def seen(count: int, sessions: int = 1, ready: Floats | bool = True) -> Window:
    values = np.arange(sessions * count, dtype=np.float64).reshape(sessions, count)
    portfolio = np.full((count, 2), 0.5, np.float32)
    known = values[..., None].astype(np.float32), values, portfolio, np.broadcast_to(np.asarray(ready, np.bool_), count)
    return Window(date(2010, 1, 4), tuple("ABCDEFGH"[:count]), *known)


def equal(combination: Combination, members: int) -> tuple[float, ...]:
    return (1.0 / members,) * members if combination == "sharpe" else ()


@pytest.mark.parametrize(
    ("combination", "weights", "targets", "expected"),
    [
        ("mean", (), [1.0, 0.5, -0.6], 0.3),
        ("mean", (), [1.0, NAN, -0.5], 0.25),  # two of three speak
        ("mean", (), [1.0, NAN], 1.0),  # half of them: the one that speaks decides
        ("mean", (), [1.0, NAN, NAN], NAN),  # most leave it alone
        ("mean", (), [NAN, NAN], NAN),
        ("vote", (), [1.0, 1.0, -1.0], 1.0),
        ("vote", (), [-1.0, -1.0, 0.0], -1.0),
        ("vote", (), [1.0, -1.0], 0.0),
        ("vote", (), [1.0, 1.0, -1.0, -1.0, 0.0], 0.0),  # a tie of two is cash, which has fewer votes
        ("vote", (), [1.0, 1.0, 0.0, 0.0, -1.0], 0.0),
        ("vote", (), [1.0, 1.0, 0.0, -1.0], 1.0),  # most frequent, if not by a majority
        ("vote", (), [0.6, 0.51, -1.0], 1.0),
        ("vote", (), [0.5, 0.4, 1.0], 0.0),  # half a position and less is cash
        ("vote", (), [-7.0, -0.9, 0.0], -1.0),
        ("vote", (), [-1.0, NAN, NAN, -1.0, 1.0], -1.0),
        ("vote", (), [-1.0, NAN, NAN], NAN),
        ("vote", (), [1.0, NAN, -1.0], 0.0),
        ("sharpe", (0.5, 0.25, 0.25), [1.0, 1.0, -1.0], 0.5),
        ("sharpe", (0.0, 1.0), [1.0, -0.25], -0.25),
        ("sharpe", (0.2, 0.8), [NAN, 0.7], 0.7),
        ("sharpe", (0.6, 0.2, 0.2), [NAN, 0.7, 0.1], NAN),  # one of three, but most of the weight
        ("sharpe", (0.5, 0.3, 0.2), [NAN, 1.0, -0.5], 0.4),
        ("sharpe", (0.0, 1.0), [1.0, NAN], NAN),  # a voice without weight is not heard
    ],
)
def test_ensemble_of_targets_comes_to_the_pencil_s(combination, weights, targets, expected):
    members = tuple(Says((target,)) for target in targets)
    assert Ensemble("e", members, combination, weights).decide(seen(1)) == pytest.approx([expected], nan_ok=True)


def test_combination_is_symbol_by_symbol():
    targets = np.array([[1.0, NAN, 0.0, -1.0], [0.0, NAN, 1.0, -1.0], [0.2, 1.0, 1.0, -1.0]])
    assert combined(targets, "mean") == pytest.approx([0.4, NAN, 2 / 3, -1.0], nan_ok=True)
    assert combined(targets, "vote") == pytest.approx([0.0, NAN, 1.0, -1.0], nan_ok=True)


def test_ensemble_shows_each_member_the_last_rows_that_it_wants():
    members = Says((0.0,) * 3, 2), Says((0.0,) * 3, 7), Says((0.0,) * 3, 1)
    ensemble, window = Ensemble("e", members), seen(3, 7)
    assert ensemble.window == 7
    ensemble.decide(window)
    for member in members:
        assert member.shown is not None
        np.testing.assert_array_equal(member.shown.features, window.features[-member.window :])
        np.testing.assert_array_equal(member.shown.closes, window.closes[-member.window :])
        assert member.shown.session == window.session
        assert member.shown.portfolio is window.portfolio


@pytest.mark.parametrize("combination", EVERY)
def test_ensemble_holds_nothing_of_what_is_not_ready(combination):
    members = (Says((1.0, 1.0, NAN)), Says((1.0, 1.0, NAN)))
    window = seen(3, ready=np.array([1.0, 0.0, 0.0]))
    assert Ensemble("e", members, combination, equal(combination, 2)).decide(window).tolist() == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("combination", EVERY)
@pytest.mark.parametrize("member", [BuyAndHold(), MovingAverages()], ids=lambda policy: policy.name)
def test_ensemble_of_the_same_member_trades_as_the_member_does(panel: Panel, member, combination):
    """BuyAndHold leaves positions alone and reads its own account; both are long, flat or silent."""
    for count in (1, 3):
        ensemble = Ensemble("e", (member,) * count, combination, equal(combination, count))
        ledgers = [backtest(policy, panel, SPAN, Limits(), Costs()) for policy in (ensemble, member)]
        assert ledgers[0].account.equals(ledgers[1].account)
        assert ledgers[0].positions.equals(ledgers[1].positions, null_equal=True)


def test_ensemble_of_three_baselines_in_the_backtest_targets_their_mean(panel: Panel):
    members = (EqualWeight(), Momentum(), VolatilityTarget())
    span = Span(2000, 2060)
    alone = [backtest(member, panel, span, Limits(), Costs()).positions["target_position"] for member in members]
    together = backtest(Ensemble("e", members), panel, span, Limits(), Costs())
    expected = np.mean([positions.to_numpy() for positions in alone], axis=0)
    np.testing.assert_allclose(together.positions["target_position"].to_numpy(), expected)
    assert len(set(expected.round(6))) > 10


@pytest.mark.parametrize(
    ("members", "combination", "weights", "words"),
    [
        (0, "mean", (), "has no members"),
        (2, "mean", (0.5, 0.5), "mean takes no weights"),
        (2, "vote", (0.5, 0.5), "vote takes no weights"),
        (2, "sharpe", (), "give each one of at least 0, sum 1"),
        (2, "sharpe", (1.0,), "of 2 members"),
        (2, "sharpe", (1.5, -0.5), "at least 0"),
        (2, "sharpe", (0.5, 0.6), "sum 1"),
        (2, "sharpe", (0.5, NAN), "sum 1"),
    ],
)
def test_ensemble_that_is_none_is_refused(members, combination, weights, words):
    with pytest.raises(ConfigError, match=f"ensemble e: .*{words}"):
        Ensemble("e", (Cash(),) * members, combination, weights)


@pytest.mark.parametrize(
    ("ratios", "expected"),
    [
        ((1.0, 3.0), (0.25, 0.75)),
        ((0.5, -2.0, 1.5), (0.25, 0.0, 0.75)),
        ((-0.1, -2.0), (0.5, 0.5)),
        ((0.0, -2.0, 0.0, -1.0), (0.25,) * 4),
        ((-3.0,), (1.0,)),
    ],
)
def test_sharpe_weights_are_in_proportion_and_never_negative(ratios, expected):
    assert sharpe_weights(ratios) == pytest.approx(expected)


@pytest.mark.parametrize("ratios", [(), (1.0, NAN), (1.0, float("inf"))])
def test_sharpe_weights_of_what_is_no_number_are_refused(ratios):
    with pytest.raises(ConfigError, match="give a finite number for each member"):
        sharpe_weights(ratios)


def test_weights_of_validation_know_nothing_of_what_comes_after(panel: Panel):
    members = (EqualWeight(), MovingAverages(), Says((-1.0,) * 5, name="short"))
    validation = Span(2280, 2532)
    ensemble = weighted_by_validation("e", members, panel, validation, Limits(), Costs())
    assert ensemble.combination == "sharpe"
    assert sum(ensemble.weights) == pytest.approx(1.0)
    assert ensemble.weights[2] == 0.0  # 2009 was no year to be short in
    assert 0 < ensemble.weights[0] != ensemble.weights[1] > 0
    rng = np.random.default_rng(0)
    fields = {name: values.copy() for name, values in panel.fields.items()}
    for values in fields.values():
        values[validation.stop :] *= rng.uniform(0.5, 2.0, values[validation.stop :].shape)
    poisoned = panel.changed(fields=fields)
    assert weighted_by_validation("e", members, poisoned, validation, Limits(), Costs()) == ensemble
    earlier = weighted_by_validation("e", members, panel, Span(2240, 2492), Limits(), Costs())
    assert earlier.weights != ensemble.weights


def test_disagreement_is_the_deviation_of_those_who_speak():
    members = Says((1.0, 1.0, 0.5, NAN, NAN, 1.0)), Says((-1.0, 1.0, 0.0, 0.3, NAN, 0.0))
    window = seen(6, ready=np.array([1.0, 1.0, 1.0, 1.0, 1.0, 0.0]))
    spread = disagreement(Ensemble("e", members), window)
    assert spread == pytest.approx([1.0, 0.0, 0.25, 0.0, NAN, NAN], nan_ok=True)
    silent = disagreement(Ensemble("e", members, "sharpe", (1.0, 0.0)), window)
    np.testing.assert_array_equal(silent, spread)  # weight or none, every member counts


class Turns:
    """Long until a day, short from it on."""

    name, window = "turns", 1

    def __init__(self, day: date) -> None:
        self.day = day

    def decide(self, window: Window) -> Floats:
        return np.full(len(window.symbols), 1.0 if window.session < self.day else -1.0)


def test_watched_disagreement_belongs_to_the_decision_before_the_session(panel: Panel):
    turn = 2800
    members = Turns(panel.sessions[turn].item()), EqualWeight()
    found = watched(Ensemble("e", members), panel, SPAN, Limits(), Costs())
    first = turn + 1 - SPAN.start  # decided at the close of `turn`, it fills in the session after
    assert found.disagreement.shape == (len(SPAN),)
    assert (found.disagreement[:first] == 0.0).all()
    assert (found.disagreement[first:] == 1.0).all()
    targets = found.ledger.positions["target_position"].to_numpy().reshape(len(SPAN), -1)
    assert (targets[:first, 0] == 1.0).all()
    assert (targets[first:, 0] == 0.0).all()


@pytest.mark.parametrize("combination", EVERY)
def test_watched_ledger_is_the_backtests_and_its_disagreement_the_mean_over_symbols(panel: Panel, combination):
    ensemble = Ensemble("e", tuple(Erratic(k) for k in range(3)), combination, equal(combination, 3))
    found = watched(ensemble, panel, SPAN, Limits(), Costs())
    plain = backtest(ensemble, panel, SPAN, Limits(), Costs())
    assert found.ledger.account.equals(plain.account)
    assert found.ledger.positions.equals(plain.positions, null_equal=True)
    for row in (0, 77, len(SPAN) - 1):
        ready = panel.ready[SPAN.start - 5 + row : SPAN.start + row].all(axis=0)
        window = seen(5, ready=ready)
        window = Window(panel.sessions[SPAN.start - 1 + row].item(), panel.symbols, *list(vars(window).values())[2:])
        assert found.disagreement[row] == pytest.approx(np.nanmean(disagreement(ensemble, window)))
    assert 0.2 < np.nanmean(found.disagreement) < 0.7


def test_watched_disagreement_where_all_are_silent_is_unknown(panel: Panel):
    found = watched(Ensemble("e", (Says((NAN,) * 5),)), panel, Span(2000, 2003), Limits(), Costs())
    assert np.isnan(found.disagreement).all()
    assert found.ledger.account["traded"].sum() == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning:ray.*")  # at Ray's import
def test_export_holds_each_member_against_torch(panel: Panel, monkeypatch):
    import torch

    from rl.judging.export import _golden
    from rl.learning.network import SwingNet, policy_arrays
    from rl.learning.settings import ModelConfig

    members = []
    for name, window, training in (("a", 5, Span(1738, 2746)), ("b", 12, Span(1000, 1700))):
        torch.manual_seed(window)
        arrays = policy_arrays(SwingNet(len(panel.feature_names), ActionKind.DISCRETE, ModelConfig(hidden=8)))
        arrays["actor.weight"] = arrays["actor.weight"] * 300.0
        members.append(LstmPolicy(name, window, arrays, fit_scaler(panel, training), ActionKind.DISCRETE))
    ensemble = Ensemble("both", tuple(members))
    golden = _golden(ensemble, panel)
    shapes = {name: array.shape for name, array in golden.items()}
    assert shapes.pop("features") == (12, 4, len(panel.feature_names))
    assert shapes == {"portfolio": (4, 2), "outputs-0": (4, 3), "outputs-1": (4, 3), "positions": (4,)}
    Bundle(None, "", ensemble, golden).check()
    honest = LstmPolicy.outputs
    monkeypatch.setattr(
        LstmPolicy, "outputs", lambda self, *seen: honest(self, *seen) + np.float32(2e-3 if self.name == "b" else 0.0)
    )
    with pytest.raises(BundleError, match=r"b: NumPy and torch disagree by 0.002 on 64 windows; nothing was exported"):
        _golden(ensemble, panel)
