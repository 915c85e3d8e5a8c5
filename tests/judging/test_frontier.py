"""The cost frontier: the replay is the backtest, many accounts are each alone, pencil break-even and capacity."""

from __future__ import annotations

from datetime import date
from types import SimpleNamespace

import numpy as np
import pytest
from pydantic import ValidationError

from data_pipeline.errors import ConfigError, FoldError
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from envs.backtest import Ledger, backtest
from envs.contract import Floats, Window
from envs.costs import Costs
from envs.limits import Limits
from rl.judging import frontier as subject
from rl.judging.baselines import BASELINES, BuyAndHold, EqualWeight
from rl.judging.frontier import Frontier, Grid, Point, Replay, frontier
from rl.judging.metrics import figures
from rough import EVERY_COST, EVERY_LIMIT, FREE, LOOSE

SPAN = Span(2766, 2900)
SMALL = Grid(factors=(0.0, 1.0, 3.0), accounts_usd=(2e4, 1e7))


class Erratic:
    """Targets drawn from the session alone; some positions are left alone."""

    name, window = "erratic", 5

    def decide(self, window: Window) -> Floats:
        rng = np.random.default_rng(window.session.toordinal())
        targets = rng.uniform(-1, 1, len(window.symbols))
        return np.where(rng.random(len(targets)) < 0.2, np.nan, targets)


class Flips:
    """In and out of everything, session by session; what it does is decided by its own account alone."""

    name, window = "flips", 1

    def decide(self, window: Window) -> Floats:
        return np.where(window.portfolio[:, 0] != 0.0, 0.0, 1.0)


class Short:
    name, window = "short", 1

    def decide(self, window: Window) -> Floats:
        return -np.ones(len(window.symbols))


def sawtooth(sessions: int, gain: float, adv: float = 1e9, sigma: float = 0.01) -> Panel:
    """One symbol that gains while `Flips` holds it: it opens at the last close, and rises in every other session."""
    closes = 100.0 * np.cumprod(np.where(np.arange(sessions) % 2 == 1, 1.0 + gain, 1.0))[:, None]
    opens = np.vstack([closes[:1], closes[:-1]])
    constant = {"volume": 1e15, "split": 1.0, "dividend": 0.0, "sigma": sigma, "adv": adv, "spread": 0.002}
    prices = {"open": opens, "high": closes, "low": opens, "close": closes, "adjusted_close": closes}
    return Panel.of(
        sessions=np.arange(np.datetime64("2010-01-04"), np.datetime64("2010-01-04") + sessions),
        symbols=("A",),
        feature_names=("x",),
        schema_hash="",
        source={},
        features=np.zeros((sessions, 1, 1), np.float32),
        fields=prices | {name: np.full(closes.shape, value) for name, value in constant.items()},
    )


def at(found: Frontier, axis: str, place: float) -> Point:
    """The point of a frontier on an axis, by factor or size."""
    (point,) = (
        p for p in found.points if p.axis == axis and place == (p.initial_cash_usd if axis == "account" else p.factor)
    )
    return point


def without_name(ledger: Ledger) -> tuple[object, ...]:
    return ledger.account.to_dict(as_series=False), ledger.positions.fill_nan(-9.0).to_dict(as_series=False)


@pytest.mark.parametrize("policy", [Erratic(), BuyAndHold(), EqualWeight()], ids=lambda policy: policy.name)
def test_replay_at_the_same_costs_is_the_ledger_again(panel: Panel, policy):
    recorded = backtest(policy, panel, SPAN, Limits(), Costs())
    again = backtest(Replay.of(recorded, panel), panel, SPAN, Limits(), Costs())
    assert again.name == policy.name
    assert without_name(again) == without_name(recorded)


def test_replay_of_a_saved_ledger_still_leaves_alone_what_was_left_alone(panel: Panel, tmp_path):
    recorded = backtest(Erratic(), panel, SPAN, Limits(), Costs())
    recorded.save(tmp_path)
    again = backtest(Replay.of(Ledger.load(tmp_path), panel), panel, SPAN, Limits(), Costs())
    assert without_name(again) == without_name(recorded)
    assert recorded.positions["target_position"].is_nan().sum() > 50


def test_replay_where_nothing_is_recorded_is_refused(panel: Panel):
    recorded = backtest(EqualWeight(), panel, SPAN, Limits(), Costs())
    replay = Replay.of(recorded, panel)
    for span in (Span(SPAN.start - 1, SPAN.stop), Span(SPAN.start, SPAN.stop + 1)):
        with pytest.raises(ConfigError, match="equal-weight: no decision is recorded at 201"):
            backtest(replay, panel, span, Limits(), Costs())
    with pytest.raises(ConfigError, match="for C, B, A"):
        replay.decide(SimpleNamespace(session=panel.sessions[SPAN.start].item(), symbols=("C", "B", "A")))


@pytest.mark.parametrize("span", [Span(SPAN.start, SPAN.stop - 1), Span(SPAN.start + 1, SPAN.stop + 1)])
def test_frontier_over_other_sessions_than_the_ledgers_is_refused(panel: Panel, span):
    recorded = backtest(EqualWeight(), panel, SPAN, Limits(), Costs())
    with pytest.raises(ConfigError, match="its ledger is of other sessions or symbols"):
        frontier(recorded, panel, span, Limits(), Costs())
    with pytest.raises(FoldError, match="start at row 1 or later"):
        subject.replayed(np.zeros((9, 5)), panel, Span(0, 9), Limits(), [subject.Setting(Costs(), 1.0, 1e5)])


def test_frontier_of_other_symbols_than_the_ledgers_is_refused(panel: Panel):
    recorded = backtest(EqualWeight(), panel, SPAN, Limits(), Costs())
    with pytest.raises(ConfigError, match="its ledger is of other sessions or symbols"):
        frontier(recorded, panel.changed(symbols=panel.symbols[::-1]), SPAN, Limits(), Costs())


EVERYTHING = Limits.of({**EVERY_LIMIT, "unshortable": ["AAPL", "IBM"]})


@pytest.mark.parametrize(
    ("limits", "costs"),
    [
        (Limits(), Costs()),
        (Limits(fractional=True, no_trade_band=0.0), Costs(slippage_bps=3.0)),
        (EVERYTHING, Costs.of(EVERY_COST)),
    ],
    ids=["default", "fractional", "everything"],
)
def test_every_account_of_a_frontier_is_the_backtest_of_the_replay_alone(panel: Panel, limits, costs):
    """The fast way against the obvious one; also where costs are asked whether they are zero, and spreads estimated."""
    recorded = backtest(Erratic(), panel, SPAN, limits, costs)
    found = frontier(recorded, panel, SPAN, limits, costs, 50_000.0, SMALL, seed=4)
    assert len(found.points) == 4 * 3 + 2
    for point in found.points:
        dearer, priced = costs, panel
        if point.axis == "all":
            dearer = costs.scaled(point.factor)
        elif point.axis != "account":
            update = {name: getattr(costs, name) * point.factor for name in subject.AXES[point.axis]}
            dearer = costs.model_copy(update=update)
        if costs.spread == "high_low" and point.axis in ("all", "spread"):
            priced = panel.changed(fields={**panel.fields, "spread": panel.fields["spread"] * point.factor})
        cash = point.initial_cash_usd
        alone = figures(backtest(Replay.of(recorded, panel), priced, SPAN, limits, dearer, cash, 4))
        assert (point.sharpe, point.annual_return) == (alone.sharpe, alone.cagr), (point.axis, point.factor)
        assert point.turnover_per_year == pytest.approx(alone.turnover_per_year, rel=1e-12)
        assert point.cost_bps_per_year == pytest.approx(alone.cost_bps_per_year, rel=1e-12, abs=1e-12)
    assert [p.initial_cash_usd for p in found.points] == [50_000.0] * 12 + [2e4, 1e7]
    assert at(found, "all", 0.0).cost_bps_per_year < at(found, "all", 1.0).cost_bps_per_year


def test_an_axis_multiplies_its_own_costs_and_no_others(panel: Panel):
    recorded = backtest(Erratic(), panel, SPAN, Limits(), Costs())
    paid = figures(recorded).costs_usd
    found = frontier(recorded, panel, SPAN, Limits(), Costs(), grid=SMALL)
    whole = at(found, "all", 1.0).cost_bps_per_year
    shares = {axis: 1.0 - at(found, axis, 0.0).cost_bps_per_year / whole for axis in ("commission", "spread", "impact")}
    assert shares == pytest.approx({kind: paid[kind] / sum(paid.values()) for kind in shares}, rel=0.05)
    assert at(found, "all", 0.0).cost_bps_per_year == 0.0
    assert {at(found, axis, 1.0).sharpe for axis in subject.AXES} == {figures(recorded).sharpe}


@pytest.mark.parametrize("limits", [Limits(), Limits(no_trade_band=0.0, fractional=True)], ids=["whole", "fractional"])
def test_more_cost_never_made_the_baselines_richer(panel: Panel, limits):
    for policy in (*BASELINES, Erratic()):
        recorded = backtest(policy, panel, SPAN, limits, Costs())
        found = frontier(recorded, panel, SPAN, limits, Costs())
        assert (found.monotone, found.faults) == ("held", ()), policy.name
        assert found.tolerance < (1e-6 if limits.fractional else 0.02)
        returns = [at(found, "all", factor).annual_return for factor in Grid().factors]
        assert returns == sorted(returns, reverse=True)
        assert policy.name == "cash" or returns[0] > returns[-1]


@pytest.mark.parametrize("rebate", [1e-5, 1e-3])
def test_costs_that_make_richer_are_reported_as_faults(panel: Panel, monkeypatch, rebate):
    """A simulator in which a dearer spread pays: found at once with fractions, and beyond the tolerance with shares."""
    honest = subject._for_each_account

    def paying(costs):
        return honest([c.model_copy(update={"half_spread_bps": -1e4 * rebate * c.half_spread_bps}) for c in costs])

    recorded = backtest(Erratic(), panel, SPAN, Limits(), Costs())
    monkeypatch.setattr(subject, "_for_each_account", paying)
    exact = frontier(recorded, panel, SPAN, Limits(fractional=True, no_trade_band=0.0), Costs(), grid=SMALL)
    assert exact.monotone == "broken"
    assert exact.faults[0].startswith("With spread costs times 1 the account was ")
    assert "richer than times 0 on 2011-0" in exact.faults[0]
    coarse = frontier(recorded, panel, SPAN, Limits(), Costs(), grid=SMALL)
    assert coarse.monotone == ("broken" if rebate == 1e-3 else "held")
    assert bool(coarse.faults) == (coarse.monotone == "broken")


def test_where_sizes_are_not_proportional_nothing_is_promised(panel: Panel):
    recorded = backtest(Erratic(), panel, SPAN, Limits(), Costs())
    thin = Costs(max_participation=1e-6)
    asked = {
        "past": frontier(recorded, panel, SPAN, Limits(max_drawdown=0.05), Costs(), grid=SMALL),
        "cut": frontier(recorded, panel, SPAN, Limits(), thin, grid=SMALL),
        "anew": frontier(recorded, panel, SPAN, Limits(), Costs(), grid=SMALL, policy=Erratic()),
    }
    doubling, span = sawtooth(5, 0.9), Span(1, 5)
    short = backtest(Short(), doubling, span, Limits(), Costs())
    assert short.account["margin_call"].any()
    asked["called"] = frontier(short, doubling, span, Limits(), Costs(), grid=SMALL)
    assert {name: found.monotone for name, found in asked.items()} == dict.fromkeys(asked, "not promised")
    assert {found.tolerance for found in asked.values()} == {0.0}
    # A large account that the volume cuts says nothing of the accounts on the axes of costs.
    large = Grid(factors=(0.0, 1.0), accounts_usd=(1e12,))
    assert frontier(recorded, panel, SPAN, Limits(), Costs(), grid=large).monotone == "held"


def test_break_even_is_where_the_gain_pays_the_costs():
    """A round trip of two sessions earns 40 bps and pays the half spread of 5 bps twice: four times as much is nil."""
    panel, costs = sawtooth(401, 0.004), FREE.model_copy(update={"half_spread_bps": 5.0})
    limits = LOOSE.model_copy(update={"fractional": True, "max_weight": 0.5})
    recorded = backtest(Flips(), panel, Span(1, 401), limits, costs)
    grid = Grid(factors=(0.0, 3.0, 3.9, 4.1, 6.0))
    found = frontier(recorded, panel, Span(1, 401), limits, costs, grid=grid)
    assert found.break_even_factor == pytest.approx(4.0, abs=0.02)
    assert found.break_even_factor_over_benchmark is None
    # Half of the account gains 0.2 % in every second session; costs take as much of it.
    free = at(found, "all", 0.0)
    assert free.annual_return == pytest.approx(1.002**126 - 1.0, rel=1e-3)
    assert at(found, "all", 3.0).cost_bps_per_year == pytest.approx(15 * 252 * 0.5, rel=0.01)
    assert free.turnover_per_year == pytest.approx(252 * 0.5, rel=0.01)
    middle = at(found, "all", 3.0).annual_return
    over = frontier(recorded, panel, Span(1, 401), limits, costs, grid=grid, benchmark_return=middle)
    assert over.break_even_factor_over_benchmark == pytest.approx(3.0)
    assert (over.break_even_factor, over.benchmark_return) == (found.break_even_factor, middle)


@pytest.mark.parametrize(("gain", "factors", "expected"), [(0.02, (0.0, 10.0), None), (-0.01, (0.0, 1.0), 0.0)])
def test_break_even_of_what_always_or_never_gains(gain, factors, expected):
    panel, costs = sawtooth(101, gain), FREE.model_copy(update={"half_spread_bps": 5.0})
    recorded = backtest(Flips(), panel, Span(1, 101), LOOSE, costs)
    found = frontier(recorded, panel, Span(1, 101), LOOSE, costs, grid=Grid(factors=factors))
    assert found.break_even_factor == expected
    assert found.capacity_usd == (0.0 if expected == 0.0 else None)  # no impact: it could be of any size


def test_capacity_is_where_impact_takes_half_of_the_gain():
    """Impact of one side is sigma · √(shares / ADV) = 1 % · √(S / 100 / 1e9): 10 bps, half of the gain, at 1e9 USD."""
    panel, costs = sawtooth(101, 0.002), FREE.model_copy(update={"impact": 1.0})
    # The price rises by a tenth in all, so the same USD are ever fewer shares: a little less impact than at its start.
    limits = LOOSE.model_copy(update={"fractional": True})
    recorded = backtest(Flips(), panel, Span(1, 101), limits, costs, 1e3)
    sizes = tuple(float(size) for size in np.logspace(3, 10, 57))
    wealth = frontier(recorded, panel, Span(1, 101), limits, costs, 1e3, Grid(accounts_usd=sizes))
    exponent = np.log10(wealth.capacity_usd)
    assert exponent == pytest.approx(np.log10(100 * 1e9 * (0.0005 / 0.01) ** 2), abs=0.1)
    best = at(wealth, "account", 1e3).annual_return
    beyond = [p for p in wealth.points if p.axis == "account" and p.initial_cash_usd > wealth.capacity_usd]
    within = [p for p in wealth.points if p.axis == "account" and p.initial_cash_usd < wealth.capacity_usd]
    assert all(p.annual_return < best / 2.0 for p in beyond)
    assert all(p.annual_return > best / 2.0 for p in within)
    harder = frontier(
        recorded, panel, Span(1, 101), limits, costs, 1e3, Grid(accounts_usd=sizes), benchmark_return=0.6 * best
    )
    # 0.4 of the best is left over the benchmark; a fifth of it, not half, may go: (0.2 / 0.5)² of the size.
    assert harder.capacity_usd == pytest.approx(wealth.capacity_usd * 0.16, rel=0.15)


def test_capacity_is_sought_beyond_the_best_size():
    """A small account cannot buy whole shares of what costs more than it has; that is no capacity."""
    panel = sawtooth(101, 0.002)
    recorded = backtest(Flips(), panel, Span(1, 101), LOOSE, FREE)
    found = frontier(recorded, panel, Span(1, 101), LOOSE, FREE, grid=Grid(accounts_usd=(50.0, 150.0, 1e5, 1e6)))
    assert at(found, "account", 50.0).annual_return == 0.0
    assert 0.0 < at(found, "account", 150.0).annual_return < at(found, "account", 1e5).annual_return
    assert found.capacity_usd is None


def test_policy_that_decides_anew_sees_its_own_account_at_each_cost():
    class Frugal:
        """Leaves its position alone where buying it has cost something: it then weighs more than all of the account."""

        name, window = "frugal", 1

        def decide(self, window: Window) -> Floats:
            held = window.portfolio[:, 0]
            return np.where(held > 1.0002, np.nan, np.where(held > 0, 0.0, 1.0))

    panel, costs = sawtooth(101, 0.0), FREE.model_copy(update={"half_spread_bps": 5.0})
    limits = LOOSE.model_copy(update={"fractional": True})
    span, grid = Span(1, 101), Grid(factors=(0.0, 1.0), accounts_usd=(1e5,))
    recorded = backtest(Frugal(), panel, span, limits, costs)
    repeated = frontier(recorded, panel, span, limits, costs, grid=grid)
    anew = frontier(recorded, panel, span, limits, costs, grid=grid, policy=Frugal())
    assert (repeated.form, anew.form) == ("replayed", "decided anew")
    assert at(anew, "all", 1.0) == at(repeated, "all", 1.0)
    assert at(repeated, "all", 0.0).turnover_per_year == pytest.approx(2.52)  # bought once in a hundred sessions
    assert at(anew, "all", 0.0).turnover_per_year == pytest.approx(252.0)


def test_policy_that_decides_anew_by_the_session_alone_is_its_replay(panel: Panel):
    costs = Costs(spread="high_low")
    recorded = backtest(Erratic(), panel, SPAN, Limits(), costs)
    repeated, anew = (
        frontier(recorded, panel, SPAN, Limits(), costs, grid=SMALL, policy=policy) for policy in (None, Erratic())
    )
    for one, other in zip(repeated.points, anew.points, strict=True):
        assert list(one.tree().values())[1:] == pytest.approx(list(other.tree().values())[1:], rel=1e-12)
    assert anew.capacity_usd == pytest.approx(repeated.capacity_usd)


def test_frontier_goes_through_json(panel: Panel):
    recorded = backtest(EqualWeight(), panel, SPAN, Limits(), Costs())
    found = frontier(recorded, panel, SPAN, Limits(), Costs(), grid=SMALL, benchmark_return=0.01)
    assert Frontier.of(found.tree()) == found
    assert recorded.account["session"][0] == date(2011, 3, 1)


@pytest.mark.parametrize("tree", [{"factors": (1.0, 0.0)}, {"factors": (1.0, 1.0)}, {"accounts_usd": (1e5, 1e4)}])
def test_grid_that_does_not_rise_is_refused(tree):
    with pytest.raises(ValidationError, match="do not rise"):
        Grid(**tree)
