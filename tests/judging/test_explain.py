"""Regimes by pencil and without a look ahead, and features that matter found among those that do not."""

from __future__ import annotations

from dataclasses import replace
from datetime import date

import numpy as np
import pytest

from data_pipeline.errors import ConfigError, StoreError
from data_pipeline.features import FeatureSet
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from data_pipeline.scaling import fit_scaler
from envs.backtest import backtest
from envs.contract import PORTFOLIO_FEATURES, ActionKind, Floats, Window
from envs.costs import Costs
from envs.limits import Limits
from envs.lstm import LstmPolicy
from product import TRAIN
from rl.judging.baselines import EqualWeight, Momentum
from rl.judging.explain import (
    EVERYTHING,
    Ablation,
    Occluded,
    Regime,
    ablation,
    equal_weight_returns,
    feature_groups,
    labels,
    regimes,
)
from rl.judging.metrics import solvent_returns

SPAN = Span(2766, 2830)


def market(closes: Floats) -> Panel:
    """A panel of which the total-return closes matter alone, `[T, N]`."""
    names = ("open", "high", "low", "close", "adjusted_close")
    constant = {"volume": 1e9, "split": 1.0, "dividend": 0.0, "sigma": 0.01, "adv": 1e9, "spread": 0.0}
    count, symbols = closes.shape
    return Panel.of(
        sessions=np.arange(np.datetime64("2005-01-03"), np.datetime64("2005-01-03") + count),
        symbols=tuple("ABCD"[:symbols]),
        feature_names=("x",),
        schema_hash="",
        source={},
        features=np.zeros((count, symbols, 1), np.float32),
        fields=dict.fromkeys(names, closes) | {name: np.full(closes.shape, v) for name, v in constant.items()},
    )


def days(panel: Panel, rows: range) -> list[date]:
    return [panel.sessions[row].item() for row in rows]


def swings(sizes: Floats) -> Floats:
    """Closes whose returns are ± `sizes`, turn about, `[T, 1]`."""
    signs = np.where(np.arange(len(sizes)) % 2, -1.0, 1.0)
    return 100.0 * np.cumprod(1.0 + signs * sizes)[:, None]


def test_volatility_labels_rank_the_latest_against_all_before_it():
    """Three years of slowly growing swings: whatever is latest is the wildest so far; then calm, then in between."""
    sizes = np.concatenate([np.linspace(0.01, 0.03, 700), np.full(60, 0.005), np.full(60, 0.02)])
    panel = market(swings(sizes))
    told = labels(panel, days(panel, range(1, 820)))
    label = dict(zip(range(1, 820), told.volatility, strict=True))
    # Twenty returns make the first volatility at row 20; the 252nd is known at row 271 and labels row 272.
    assert {label[row] for row in range(1, 272)} == {"unknown"}
    assert {label[row] for row in range(272, 701)} == {"wild"}
    assert {label[row] for row in range(722, 761)} == {"calm"}
    assert {label[row] for row in range(782, 820)} == {"middling"}


def test_label_of_a_session_is_known_at_the_close_before_it():
    sizes = np.linspace(0.02, 0.01, 400)  # calmer and calmer
    sizes[330] = 0.2
    panel = market(swings(sizes))
    told = labels(panel, days(panel, range(300, 400))).volatility
    assert set(told) == {"calm", "wild"}
    wild = [row for row, label in zip(range(300, 400), told, strict=True) if label == "wild"]
    assert wild == list(range(331, 351))  # the shock of row 330 is in the twenty returns up to rows 330 .. 349


def test_volatility_that_never_changes_is_middling():
    panel = market(np.full((400, 1), 100.0))
    assert set(labels(panel, days(panel, range(272, 400))).volatility) == {"middling"}


def test_volatility_labels_on_real_bars_are_the_terciles_of_the_history(panel: Panel):
    rows = range(600, 2600, 19)
    closes = panel.fields["adjusted_close"]
    for row, label in zip(rows, labels(panel, days(panel, rows)).volatility, strict=True):
        returns = equal_weight_returns(closes[:row])  # to the close before the session
        past = [returns[t - 19 : t + 1].std(ddof=1) for t in range(20, row)]
        below = np.mean(np.array(past) < past[-1])
        assert label == ("calm" if below < 1 / 3 else "middling" if below < 2 / 3 else "wild"), row


def test_trend_labels_compare_fifty_sessions_with_two_hundred():
    path = np.concatenate([100.0 + np.arange(300), 398.0 - np.arange(250)])
    panel = market(path[:, None])
    told = labels(panel, days(panel, range(1, 550))).trend
    for row, label in zip(range(1, 550), told, strict=True):
        seen = path[:row]  # up to the close before
        expected = "up" if seen[-50:].mean() > seen[-200:].mean() else "down"
        assert label == ("unknown" if row < 200 else expected), row
    assert {"up", "down"} < set(told)


def test_the_set_is_the_mean_of_those_that_have_a_return():
    closes = np.array([[100.0, 50.0, np.nan], [110.0, 50.0, np.nan], [110.0, np.nan, 7.0], [121.0, 60.0, 14.0]])
    assert equal_weight_returns(closes) == pytest.approx([0.0, 0.05, 0.0, 0.55])


def test_labels_do_not_change_with_what_comes_after(panel: Panel):
    cut = 2400
    rng = np.random.default_rng(0)
    fields = {name: values.copy() for name, values in panel.fields.items()}
    fields["adjusted_close"][cut:] *= rng.uniform(0.5, 2.0, fields["adjusted_close"][cut:].shape)
    poisoned = panel.changed(fields=fields)
    before, after = days(panel, range(600, cut + 1)), days(panel, range(600, 2600))
    assert labels(poisoned, before) == labels(panel, before)
    assert labels(panel, after).volatility[: len(before)] == labels(panel, before).volatility
    assert labels(poisoned, after) != labels(panel, after)
    known = labels(panel, after)
    assert {"calm", "middling", "wild"} <= set(known.volatility)
    assert set(known.trend) == {"up", "down"}


def test_labels_of_sessions_in_several_runs_are_those_of_each(panel: Panel):
    one, other = days(panel, range(900, 950)), days(panel, range(2000, 2010))
    together = labels(panel, one + other)
    assert together.volatility == labels(panel, one).volatility + labels(panel, other).volatility
    with pytest.raises(StoreError, match="is not in the panel"):
        labels(panel, [date(2050, 1, 3)])


def test_regimes_split_the_sessions_and_their_returns(panel: Panel):
    rows = range(500, 2500)
    rng = np.random.default_rng(1)
    returns, benchmark = rng.normal(0.001, 0.01, (2, len(rows)))
    found = regimes(days(panel, rows), returns, benchmark, panel)
    told = labels(panel, days(panel, rows))
    assert [(each.kind, each.name) for each in found] == [
        ("volatility", "calm"),
        ("volatility", "middling"),
        ("volatility", "wild"),
        ("trend", "up"),
        ("trend", "down"),
    ]
    for kind in ("volatility", "trend"):
        parts = [each for each in found if each.kind == kind]
        assert sum(each.sessions for each in parts) == len(rows)
        whole = sum(each.annual_return * each.sessions for each in parts) / len(rows)
        assert whole == pytest.approx(returns.mean() * 252)
    wild = np.array([label == "wild" for label in told.volatility])
    assert found[2].sessions == wild.sum()
    assert found[2].annual_return == pytest.approx(returns[wild].mean() * 252)
    assert found[2].sharpe == pytest.approx(returns[wild].mean() / returns[wild].std(ddof=1) * 252**0.5)
    assert found[2].sharpe_error == pytest.approx((252 / wild.sum()) ** 0.5, rel=0.1)
    assert found[2].excess == pytest.approx((returns - benchmark)[wild].mean() * 252)


def test_regimes_with_too_little_history_are_unknown_and_said_to_be(panel: Panel):
    found = regimes(days(panel, range(1, 40)), np.zeros(39), np.zeros(39), panel)
    assert [(each.kind, each.name, each.sessions) for each in found] == [
        ("volatility", "unknown", 39),
        ("trend", "unknown", 39),
    ]
    assert (found[0].sharpe, found[0].sharpe_error) == (0.0, None)
    with pytest.raises(ConfigError, match="39 sessions, 39 returns, 38 of the benchmark"):
        regimes(days(panel, range(1, 40)), np.zeros(39), np.zeros(38), panel)


def test_regimes_of_a_ledger_tell_when_it_did_well(panel: Panel):
    span = Span(1000, 2500)
    policy, hold = (backtest(each, panel, span, Limits(), Costs()) for each in (Momentum(), EqualWeight()))
    sessions = policy.account["session"].to_list()
    found = regimes(sessions, solvent_returns(policy), solvent_returns(hold), panel)
    assert sum(each.sessions for each in found) == 2 * len(span)
    assert tuple(Regime.of(each.tree()) for each in found) == found


def test_default_features_fall_into_families():
    names = FeatureSet.of().names
    groups = feature_groups(names)
    assert {"trend", "momentum", "volatility", "volume", "regime", "calendar", "risk", "week trend"} < set(groups)
    assert sorted(column for columns in groups.values() for column in columns) == list(range(len(names)))
    assert {names[column] for column in groups["volume"]} == {
        "relative_volume_20",
        "on_balance_slope_20",
        "accumulation_slope_20",
        "illiquidity_60",
    }


def test_feature_that_is_none_of_ours_is_a_group_by_itself():
    groups = feature_groups(("return_1", "alpha_7", "rsi_14", "beta", "return_0"))
    assert groups == {"momentum": (0, 2), "alpha_7": (1,), "beta": (3,), "return_0": (4,)}


class Follows:
    """Long where the latest value of one feature is above a level, short where it is below."""

    name = "follows"

    def __init__(self, column: int | None, level: float = 0.0, window: int = 3) -> None:
        self.column, self.level, self.window = column, level, window

    def decide(self, window: Window) -> Floats:
        if self.column is None:
            return np.ones(len(window.symbols))
        return np.sign(window.features[-1, :, self.column].astype(np.float64) - self.level)


def test_occluded_policy_sees_medians_and_nothing_else_changed():
    features = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    features[0, 1, 2] = np.nan
    values = features, np.zeros((2, 3)), np.zeros((3, 2), np.float32), np.ones(3, np.bool_)
    window = Window(date(2010, 1, 4), ("A", "B", "C"), *values)
    shown: list[Window] = []

    class Sees(Follows):
        def decide(self, window: Window) -> Floats:
            shown.append(window)
            return super().decide(window)

    policy = Occluded(Sees(0, window=2), (1, 2), np.array([-1.0, -2.0, -3.0, -4.0]))
    assert (policy.name, policy.window) == ("follows", 2)
    before = features.copy()
    policy.decide(window)
    np.testing.assert_array_equal(features, before)
    (told,) = shown
    np.testing.assert_array_equal(told.features[..., [0, 3]], features[..., [0, 3]])
    assert (told.features[..., 1] == -2.0).all()
    assert np.isnan(told.features[0, 1, 2])
    assert np.isnan(told.features[..., 2]).sum() == 1
    assert np.nanmax(told.features[..., 2]) == -3.0
    assert told.features.dtype == np.float32
    assert replace(told, features=features) == window


def test_ablation_finds_the_one_group_that_a_policy_follows(panel: Panel):
    column = panel.feature_names.index("rsi_14")
    median = fit_scaler(panel, TRAIN).median[column]
    found = {each.group: each for each in ablation(Follows(column, median), panel, SPAN, TRAIN, Limits(), Costs())}
    assert list(found) == [*feature_groups(panel.feature_names), EVERYTHING]
    assert "rsi_14" in found["momentum"].features
    # At its median the feature says neither long nor short, so every full position is gone.
    assert found["momentum"].position_change == found[EVERYTHING].position_change == 1.0
    plain = backtest(Follows(column, median), panel, SPAN, Limits(), Costs())
    ratio = solvent_returns(plain).mean() / solvent_returns(plain).std(ddof=1) * 252**0.5
    assert found["momentum"].sharpe_change == pytest.approx(-ratio)
    assert ratio != 0
    others = [each for name, each in found.items() if name not in ("momentum", EVERYTHING)]
    assert len(others) > 8
    assert {(each.sharpe_change, each.position_change) for each in others} == {(0.0, 0.0)}
    assert found[EVERYTHING].features == panel.feature_names
    assert Ablation.of(found["momentum"].tree()) == found["momentum"]


def test_ablation_counts_the_moves_of_what_was_ready_alone(panel: Panel):
    """FB becomes ready within the span; before, it has a position of 0 with and without the features."""

    class Leans(Follows):
        def decide(self, window: Window) -> Floats:
            return window.features[-1, :, self.column].astype(np.float64) / 100.0

    span, column = Span(3200, 3240), panel.feature_names.index("rsi_14")
    (found,) = (
        each
        for each in ablation(Leans(column, window=1), panel, span, TRAIN, Limits(), Costs())
        if each.group == "momentum"
    )
    median = fit_scaler(panel, TRAIN).median[column]
    moves = [
        abs(float(panel.features[t, n, column]) - median) / 100.0
        for t in range(3199, 3239)
        for n in range(len(panel.symbols))
        if panel.ready[t, n]
    ]
    assert found.position_change == pytest.approx(np.mean(moves))
    assert 0 < len(moves) < 40 * 5


def test_ablation_of_a_policy_that_reads_no_feature_changes_nothing(panel: Panel):
    found = ablation(Follows(None), panel, SPAN, TRAIN, Limits(), Costs())
    assert {(each.sharpe_change, each.position_change) for each in found} == {(0.0, 0.0)}


def test_ablation_hides_nothing_where_the_policy_speaks_of_no_position(panel: Panel):
    class Silent(Follows):
        def decide(self, window: Window) -> Floats:
            return np.full(len(window.symbols), np.nan)

    found = ablation(Silent(None), panel, SPAN, TRAIN, Limits(), Costs())
    assert {(each.sharpe_change, each.position_change) for each in found} == {(0.0, 0.0)}


def test_hidden_features_of_a_network_are_zero_after_its_scaling(panel: Panel):
    rng = np.random.default_rng(0)
    count, hidden = len(panel.feature_names), 4
    shapes = {
        "lstm.weight_ih": (4 * hidden, count),
        "lstm.weight_hh": (4 * hidden, hidden),
        "lstm.bias": (4 * hidden,),
        "trunk.weight": (hidden, hidden + len(PORTFOLIO_FEATURES)),
        "trunk.bias": (hidden,),
        "actor.weight": (1, hidden),
        "actor.bias": (1,),
    }
    weights = {name: rng.normal(0, 0.3, shape).astype(np.float32) for name, shape in shapes.items()}
    scaler = fit_scaler(panel, TRAIN)
    policy = LstmPolicy("net", 10, weights, scaler, ActionKind.CONTINUOUS)
    blind = {**weights, "lstm.weight_ih": weights["lstm.weight_ih"].copy()}
    hide = feature_groups(panel.feature_names)["volatility"]
    blind["lstm.weight_ih"][:, list(hide)] = 0.0  # what is 0 and what has no weight are the same to it
    occluded = backtest(Occluded(policy, hide, np.asarray(scaler.median)), panel, SPAN, Limits(), Costs())
    without = backtest(replace(policy, weights=blind), panel, SPAN, Limits(), Costs())
    plain = backtest(policy, panel, SPAN, Limits(), Costs())
    targets = [ledger.positions["target_position"].to_numpy() for ledger in (occluded, without, plain)]
    np.testing.assert_allclose(targets[0], targets[1], atol=1e-6)
    assert np.abs(targets[0] - targets[2]).mean() > 0.01
