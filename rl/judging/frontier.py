"""The cost frontier: what becomes of a record of decisions when trading costs more, or the account is larger.

The target positions of a ledger are repeated, so that costs and size are all that differs. All accounts of a
frontier are stepped at once: prices of a cost model are numbers for each account.

T sessions of a span, N symbols, B accounts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from itertools import pairwise
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from pydantic import Field, model_validator

from data_pipeline.config import Config
from data_pipeline.errors import ConfigError, FoldError
from data_pipeline.folds import Span
from data_pipeline.panel import COLUMNS, Panel
from envs.backtest import COST_KINDS, Ledger, backtest
from envs.chance import derived, keys_of, uniforms
from envs.contract import Bools, Floats, Policy, Window
from envs.costs import SESSIONS_PER_YEAR, Costs
from envs.limits import Limits
from envs.market import column, shortable_symbols, step_bars
from envs.portfolio import Fills, opening_book, step
from rl.judging.metrics import sharpe

Axis = Literal["commission", "spread", "impact", "all", "account"]
AXES: dict[Axis, tuple[str, ...]] = {
    "commission": (
        "commission_usd_per_share",
        "commission_usd_per_order",
        "commission_bps",
        "commission_minimum_usd",
    ),
    "spread": ("half_spread_bps",),
    "impact": ("impact",),
}
"""Prices that an axis multiplies; "all" multiplies every price, slippage, fees, borrowing and interest too."""
_ASKED_FOR_ZERO = ("commission_bps", "commission_usd_per_order", "commission_minimum_usd", "slippage_bps")
"""`envs.costs` looks whether these are zero: of accounts that are stepped together all are, or none."""
_ROUNDING = 1e-9


class Grid(Config):
    """Where the frontier is looked at."""

    factors: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=2)] = (0.0, 0.5, 1.0, 2.0, 5.0, 10.0)
    """Multiply the prices of an axis; rising."""
    accounts_usd: tuple[Annotated[float, Field(gt=0)], ...] = (1e4, 1e5, 1e6, 1e7, 1e8, 1e9)
    """Cash to start with, at the costs as they are; rising."""

    @model_validator(mode="after")
    def _rises(self) -> Grid:
        for name, values in (("factors", self.factors), ("accounts_usd", self.accounts_usd)):
            if any(after <= before for before, after in pairwise(values)):
                raise ValueError(f"{name} {values} do not rise; sort them and give each once")
        return self


class Point(Config):
    """One account."""

    axis: Axis
    """What was multiplied; account: nothing, the account's size is what differs."""
    factor: float
    """By which; 1 for account."""
    initial_cash_usd: float
    """Before the first fill."""
    sharpe: float
    """Annualised, net of costs."""
    annual_return: float
    """Compound growth per year, net of costs; cash earns nothing, so it is the return over cash."""
    cost_bps_per_year: float
    """All costs over mean equity."""
    turnover_per_year: float
    """USD traded, buys and sales both, over mean equity."""


class Frontier(Config):
    """What a policy's record bears."""

    name: str
    """Of the policy."""
    form: Literal["replayed", "decided anew"]
    """replayed: the recorded target positions at every cost. decided anew: the policy saw its own account at each
    cost. It trades less at higher costs only if it learnt to."""
    points: tuple[Point, ...]
    """By axis, then by factor or size."""
    break_even_factor: float | None
    """Factor on all costs at which `annual_return` falls to 0, between two of the grid by a straight line; the grid's
    first where it is not above 0 even there; none: above 0 to the grid's end."""
    benchmark_return: float | None
    """Annual return that was to be beaten besides cash."""
    break_even_factor_over_benchmark: float | None
    """The same with `benchmark_return` for 0. The benchmark is not made to pay more: pessimistic for the policy."""
    capacity_usd: float | None
    """Account beyond the best size of the grid at which the annual return over cash, or over the benchmark if there is
    one, falls to half of the best, by a straight line over the logarithm of size; 0 where no size earns any; none:
    beyond the grid. It counts impact, and orders that a session's volume cannot fill."""
    monotone: Literal["held", "broken", "not promised"]
    """Whether more cost never made richer. Not promised: where the policy decided anew, where limits depend on the
    account's past, or after a margin call or an order that the volume cut."""
    tolerance: float
    """Part of equity by which an account may end richer than one at less cost, because of whole shares, the no-trade
    band and the least trade; see `_allowed`. 0 where nothing is promised."""
    faults: tuple[str, ...]
    """Each a complete sentence; any is a fault of the simulator or of this module, not of the policy."""


class Setting(NamedTuple):
    """What one account starts with and pays."""

    costs: Costs
    spread_factor: float
    """On the spread estimated from highs and lows, which `costs` do not hold."""
    cash: float


class Accounts(NamedTuple):
    """What B accounts did.

    Attributes:
        equity: USD before the first fill and after each close, `[T + 1, B]`.
        paid: Costs of all kinds in each session, USD `[T, B]`.
        traded: Bought and sold in each session, USD `[T, B]`.
        called: A margin call closed positions, `[B]`.
        cut: An order was too large for a session's volume, `[B]`.
    """

    equity: Floats
    paid: Floats
    traded: Floats
    called: Bools
    cut: Bools


@dataclass(frozen=True)
class Replay:
    """Repeats the recorded target positions, whatever its own account has become.

    Attributes:
        name: Of the policy whose decisions they are.
        symbols: Order of the N axis.
        targets: By session of the decision, `[N]` each; NaN leaves a position alone, as recorded.
        window: 1.
    """

    name: str
    symbols: tuple[str, ...]
    targets: Mapping[date, Floats]
    window: int = 1

    @classmethod
    def of(cls, ledger: Ledger, panel: Panel) -> Replay:
        """Returns the replay of `ledger`, which was recorded on the sessions of `panel`.

        Raises:
            ConfigError: It was recorded on other symbols or sessions.
        """
        first = panel.session_index(ledger.account["session"][0])
        targets = recorded_targets(ledger, panel, Span(first, first + len(ledger.account)))
        decided = panel.sessions[first - 1 : first - 1 + len(targets)].tolist()
        return cls(ledger.name, panel.symbols, dict(zip(decided, targets, strict=True)))

    def decide(self, window: Window) -> Floats:
        """Returns what was decided at that session, `[N]`.

        Raises:
            ConfigError: Nothing was, or for other symbols.
        """
        if window.symbols != self.symbols or window.session not in self.targets:
            raise ConfigError(
                f"{self.name}: no decision is recorded at {window.session} for {', '.join(window.symbols)}; "
                "replay it on the panel and the span of its ledger"
            )
        return self.targets[window.session]


def recorded_targets(ledger: Ledger, panel: Panel, span: Span) -> Floats:
    """Returns the target positions of a ledger over `span`, `[T, N]`; NaN where a position was left alone.

    Raises:
        ConfigError: The ledger was recorded on other symbols or sessions.
    """
    sessions = panel.sessions[span.start : span.stop]
    symbols = tuple(ledger.positions["symbol"].head(len(panel.symbols)))
    if ledger.account["session"].to_list() != sessions.tolist() or symbols != panel.symbols:
        raise ConfigError(f"{ledger.name}: its ledger is of other sessions or symbols; give the panel and span of it")
    return ledger.positions["target_position"].to_numpy().reshape(len(sessions), -1)


def frontier(
    ledger: Ledger,
    panel: Panel,
    span: Span,
    limits: Limits,
    costs: Costs,
    initial_cash: float = 100_000.0,
    grid: Grid | None = None,
    *,
    benchmark_return: float | None = None,
    policy: Policy | None = None,
    seed: int = 0,
) -> Frontier:
    """Returns the frontier of the decisions in `ledger`.

    Args:
        ledger: Recorded on `panel` over `span`.
        panel: The market.
        span: Rows of the sessions that fill.
        limits: Allocation and limits.
        costs: Factor 1 of each axis.
        initial_cash: USD, on every axis but account.
        grid: Factors and account sizes; none: the defaults.
        benchmark_return: Annual return of a benchmark over the same sessions, net of its costs.
        policy: Where it is given, it decides anew in each account, which takes a backtest each.
        seed: Of random slippage; the same luck in every account.

    Raises:
        ConfigError: The ledger was recorded on other symbols or sessions.
        FoldError: The span starts at the panel's first session, or leaves no room for the policy's window.
    """
    grid = grid or Grid()
    places = _places(grid, costs, initial_cash)
    settings = tuple(dict.fromkeys(places.values()))
    targets = recorded_targets(ledger, panel, span)
    if policy is None:
        accounts = replayed(targets, panel, span, limits, settings, seed)
    else:
        accounts = _decided_anew(policy, panel, span, limits, settings, seed)
    points = [
        _point(*place, setting.cash, *(values[:, settings.index(setting)] for values in accounts[:3]))
        for place, setting in places.items()
    ]
    on_all = [point for point in points if point.axis == "all"]
    gains, excess = (_gains(on_all, benchmark) for benchmark in (0.0, benchmark_return or 0.0))
    sizes = _gains([point for point in points if point.axis == "account"], benchmark_return or 0.0)
    steps = _steps(grid, places, settings, accounts, limits) if policy is None else None
    faults, tolerance = _faults(steps or (), accounts, _slack(targets, panel, span, limits), panel, span)
    return Frontier(
        name=ledger.name,
        form="replayed" if policy is None else "decided anew",
        points=tuple(points),
        break_even_factor=_crossing(grid.factors, gains, 0.0),
        benchmark_return=benchmark_return,
        break_even_factor_over_benchmark=None if benchmark_return is None else _crossing(grid.factors, excess, 0.0),
        capacity_usd=_capacity(grid.accounts_usd, sizes),
        monotone="not promised" if steps is None else "broken" if faults else "held",
        tolerance=tolerance,
        faults=faults,
    )


def replayed(
    targets: Floats, panel: Panel, span: Span, limits: Limits, settings: Sequence[Setting], seed: int = 0
) -> Accounts:
    """Returns accounts that follow the same target positions, each as `envs.backtest.backtest` would run it alone.

    Args:
        targets: Decided for each session of the span at the close before it, `[T, N]`.
        panel: The market.
        span: Rows of the sessions that fill.
        limits: Allocation and limits.
        settings: B of them.
        seed: Of random slippage.

    Raises:
        FoldError: The span starts at the panel's first session, or ends beyond its last.
    """
    if span.start < 1 or span.stop > len(panel.sessions):
        raise FoldError(f"rows {span.start} .. {span.stop} of {len(panel.sessions)}: start at row 1 or later")
    alike: dict[tuple[bool, ...], list[int]] = {}
    for place, setting in enumerate(settings):
        alike.setdefault(tuple(bool(getattr(setting.costs, name)) for name in _ASKED_FOR_ZERO), []).append(place)
    groups = [_stepped(targets, panel, span, limits, [settings[p] for p in places], seed) for places in alike.values()]
    order = np.argsort(np.concatenate(list(alike.values())))
    return Accounts(*(np.concatenate(parts, axis=-1)[..., order] for parts in zip(*groups, strict=True)))


def _stepped(
    targets: Floats, panel: Panel, span: Span, limits: Limits, settings: Sequence[Setting], seed: int
) -> Accounts:
    """Returns the accounts of one group: each of `_ASKED_FOR_ZERO` is zero in all of them, or in none."""
    costs, count = _for_each_account([setting.costs for setting in settings]), len(settings)
    factors = np.array([setting.spread_factor for setting in settings])

    def wide(values: Any) -> Any:
        return np.repeat(values[..., None], count, axis=-1)

    ready, bars_KNT = panel.ready, panel.bars_NTK.transpose(2, 0, 1)
    shortable = wide(shortable_symbols(panel.symbols, limits.unshortable))
    members, key = np.arange(len(panel.symbols)), keys_of([seed])
    now = wide(bars_KNT[..., span.start - 1])
    book = opening_book(np.array([setting.cash for setting in settings]), column(now, "close"))
    called, cut = np.zeros((2, count), np.bool_)
    equity, paid, traded = [book.equity], [], []
    for row, t in enumerate(range(span.start - 1, span.stop - 1)):
        following = wide(bars_KNT[..., t + 1])
        luck = uniforms(derived(key, t * len(members) + members))
        bars = step_bars(now, following, wide(ready[t]), shortable, wide(t < panel.last_bar_N), wide(luck))
        bars = bars._replace(spread=bars.spread * factors)
        book, fills = step(book, wide(targets[row]), bars, limits, costs)
        now = following
        equity.append(book.equity)
        paid.append(_paid(fills))
        traded.append(fills.traded)
        called |= fills.called & (fills.held != 0).any(axis=0)
        cut |= ((fills.filled != 0) & (np.abs(fills.filled) < np.abs(fills.ordered))).any(axis=0)
    return Accounts(np.stack(equity), np.stack(paid), np.stack(traded), called, cut)


class _Prices(np.ndarray[Any, np.dtype[np.float64]]):
    """A price for each account, `[B]`: a plain array but for its truth, which `envs.costs` asks as of a number."""

    def __bool__(self) -> bool:
        return True

    def __array_ufunc__(self, ufunc: np.ufunc, method: str, *inputs: Any, **options: Any) -> Any:
        plain = [np.asarray(each) if isinstance(each, _Prices) else each for each in inputs]
        return getattr(ufunc, method)(*plain, **options)


def _for_each_account(costs: Sequence[Costs]) -> Costs:
    """Returns a cost model whose prices are arrays `[B]` where they differ: `envs.costs` only multiplies by them."""
    values = {name: [getattr(each, name) for each in costs] for name in Costs.model_fields}
    differing = {name: np.array(each).view(_Prices) for name, each in values.items() if len(set(each)) > 1}
    return costs[0].model_copy(update=differing)


def _paid(fills: Fills) -> Floats:
    return (fills.costs.total + fills.borrow + fills.delisting).sum(axis=0) + fills.interest


def _decided_anew(
    policy: Policy, panel: Panel, span: Span, limits: Limits, settings: Sequence[Setting], seed: int
) -> Accounts:
    """Returns accounts in each of which the policy decides by what it sees, `Accounts.cut` never set."""
    columns = []
    for costs, factor, cash in settings:
        account = backtest(policy, _with_spread(panel, factor), span, limits, costs, cash, seed).account
        paid = account.select(COST_KINDS).to_numpy().sum(axis=1)
        equity = np.concatenate([[cash], account["equity"].to_numpy()])
        columns.append((equity, paid, account["traded"].to_numpy(), account["margin_call"].any(), False))
    return Accounts(*(np.stack(each, axis=-1) for each in zip(*columns, strict=True)))


def _with_spread(panel: Panel, factor: float) -> Panel:
    """Returns the panel with its estimated spreads multiplied."""
    bars_NTK = panel.bars_NTK.copy()
    bars_NTK[..., COLUMNS.index("spread")] *= factor
    return replace(panel, bars_NTK=bars_NTK)


def _places(grid: Grid, costs: Costs, cash: float) -> dict[tuple[Axis, float], Setting]:
    """Returns the account of each point, by axis and factor or size."""
    places: dict[tuple[Axis, float], Setting] = {}
    for axis in (*AXES, "all"):
        for factor in grid.factors:
            changed = {name: getattr(costs, name) * factor for name in AXES.get(axis, ())}
            dearer = costs.scaled(factor) if axis == "all" else costs.model_copy(update=changed)
            estimated = costs.spread == "high_low" and axis in ("spread", "all")
            places[axis, factor] = Setting(dearer, factor if estimated else 1.0, cash)
    return places | {("account", size): Setting(costs, 1.0, size) for size in grid.accounts_usd}


def _point(axis: Axis, place: float, cash: float, equity: Floats, paid: Floats, traded: Floats) -> Point:
    """Returns the figures of one account, as `rl.judging.metrics.figures` defines them."""
    alive = np.logical_and.accumulate(equity > 0)
    path = np.where(alive, equity, 0.0)
    returns = np.where(path[:-1] > 0, path[1:] / np.where(alive[:-1], path[:-1], 1.0) - 1.0, 0.0)
    invested = float(path.mean()) * len(returns) / SESSIONS_PER_YEAR
    return Point(
        axis=axis,
        factor=1.0 if axis == "account" else place,
        initial_cash_usd=cash,
        sharpe=sharpe(returns).ratio,
        annual_return=float((path[-1] / path[0]) ** (SESSIONS_PER_YEAR / len(returns)) - 1.0),
        cost_bps_per_year=float(paid.sum()) / invested * 1e4,
        turnover_per_year=float(traded.sum()) / invested,
    )


def _gains(points: Sequence[Point], over: float) -> list[float]:
    return [point.annual_return - over for point in points]


def _crossing(places: Sequence[float], values: Sequence[float], level: float) -> float | None:
    """Returns where `values` first fall to `level`, by a straight line between two places; none if they never do."""
    for number, value in enumerate(values):
        if value <= level:
            if number == 0:
                return float(places[0])
            before, left = values[number - 1], places[number - 1]
            return float(left + (places[number] - left) * (before - level) / (before - value))
    return None


def _capacity(sizes: Sequence[float], gains: Sequence[float]) -> float | None:
    """Returns the account in USD at which the gain falls to half of the best; see `Frontier.capacity_usd`."""
    if not sizes or max(gains) <= 0:
        return 0.0 if sizes else None
    best = int(np.argmax(gains))
    exponent = _crossing(np.log10(sizes[best:]).tolist(), gains[best:], gains[best] / 2.0)
    return None if exponent is None else float(10.0**exponent)


Step = tuple[Axis, float, float, int, int]
"""Axis, cheaper factor, dearer factor, and the accounts of both."""


def _steps(
    grid: Grid,
    places: Mapping[tuple[Axis, float], Setting],
    settings: Sequence[Setting],
    accounts: Accounts,
    limits: Limits,
) -> list[Step] | None:
    """Returns the pairs of neighbouring accounts of which the dearer must not be richer; none: nothing is promised."""
    if limits.remembers or (accounts.called | accounts.cut)[: _priced(places, settings)].any():
        return None
    return [
        (axis, low, high, settings.index(places[axis, low]), settings.index(places[axis, high]))
        for axis in (*AXES, "all")
        for low, high in pairwise(grid.factors)
    ]


def _priced(places: Mapping[tuple[Axis, float], Setting], settings: Sequence[Setting]) -> int:
    """Returns how many of the settings, which come first, stand on an axis of costs."""
    return 1 + max(settings.index(setting) for (axis, _), setting in places.items() if axis != "account")


def _slack(targets: Floats, panel: Panel, span: Span, limits: Limits) -> tuple[Floats, Floats]:
    """Returns what may be held beside the target, as a part of equity and in USD, times the move, `[T, N]` each.

    A position is rounded to whole shares and stays where it is inside the band; one that is closed is gone.
    """
    closes, total_return = (panel.fields[name][span.start - 1 : span.stop] for name in ("close", "adjusted_close"))
    moves = np.abs(np.nan_to_num(total_return[1:] / total_return[:-1] - 1.0)) * (targets != 0)
    share = np.nan_to_num(closes[:-1]) * (1e-6 if limits.fractional else 1.0)
    return limits.no_trade_band * moves, (share + limits.minimum_trade_usd) * moves


def _allowed(equity: Floats, slack: tuple[Floats, Floats]) -> Floats:
    """Returns the part of equity that an account may be richer by than a cheaper one, after each session, `[T]`.

    For the same targets more cost never makes richer while sizes are proportional to equity. Whole shares, the band
    and the least trade make two accounts hold slightly different parts of their equity. What that earns has no
    direction, so it grows with the root of time: this is its standard deviation, were each difference as large as it
    can be and apart from the others. They are seldom so large: of some thousand pairs of accounts with random
    decisions the luckiest gained half of this.

    Args:
        equity: Of the cheaper account at the decisions, `[T]`.
        slack: See `_slack`.
    """
    relative, absolute = slack
    each = relative + absolute / np.maximum(equity, _ROUNDING)[:, None]
    return np.sqrt((each**2).sum(axis=1).cumsum()) + _ROUNDING


def _faults(
    steps: Sequence[Step], accounts: Accounts, slack: tuple[Floats, Floats], panel: Panel, span: Span
) -> tuple[tuple[str, ...], float]:
    """Returns a sentence for each step at which more cost made richer, and the largest tolerance at the end."""
    faults, tolerance = [], 0.0
    for axis, low, high, cheap, dear in steps:
        poor, rich = accounts.equity[1:, dear], accounts.equity[1:, cheap]
        allowed = _allowed(accounts.equity[:-1, cheap], slack)
        tolerance = max(tolerance, float(allowed[-1]))
        excess = poor / np.maximum(rich, _ROUNDING) - 1.0 - allowed
        worst = int(excess.argmax())
        if excess[worst] > 0:
            faults.append(
                f"With {axis} costs times {high:g} the account was {excess[worst] + allowed[worst]:.2%} richer than "
                f"times {low:g} on {panel.sessions[span.start + worst]}, and rounding explains {allowed[worst]:.2%}."
            )
    return tuple(faults), tolerance
