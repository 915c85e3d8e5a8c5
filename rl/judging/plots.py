"""Plots of the report: accounts on the holdout, the candidate among its twins, and what dearer trading leaves."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

import numpy as np
import plotly.graph_objects as go

from envs.backtest import COST_KINDS, Ledger
from rl.judging.frontier import AXES, Frontier, Point
from rl.judging.metrics import Figures, drawdowns, equity_path, holding_sessions
from rl.judging.pages import BAR_PX, BLUE, COLOURS, DIVERGING, colour_bar, drawing
from rl.judging.twins import Twins

_COST_COLOURS = dict(zip(COST_KINDS, (BLUE, *COLOURS, "#57606a"), strict=True))
_MARKS = ("circle", "square", "triangle-up", "x")
_TWIN_BINS = 24


def equity(ledgers: Sequence[Ledger]) -> go.Figure:
    """Returns each account's value after each close."""
    lines = [_line(i, ledger, equity_path(ledger)[1:], "%{y:$,.0f}") for i, ledger in enumerate(ledgers)]
    figure = drawing(lines, 460, "Session (date)", "Equity (USD, log scale)")
    return figure.update_yaxes(type="log", tickformat="$~s", minor_showgrid=False)


def drawdown(ledgers: Sequence[Ledger]) -> go.Figure:
    """Returns how far each account stood below its highest value so far."""
    lines = [_line(i, ledger, drawdowns(equity_path(ledger))[1:], "%{y:.1%}") for i, ledger in enumerate(ledgers)]
    figure = drawing(lines, 380, "Session (date)", "Drawdown (%)")
    return figure.update_yaxes(tickformat=".0%")


def positions(ledger: Ledger) -> go.Figure:
    """Returns the weight of each symbol after each close."""
    by_symbol = ledger.positions.pivot("symbol", index="session", values="weight").drop("session")
    weights = by_symbol.to_numpy().T
    bound = max(float(np.abs(weights).max()), 0.01)
    heat = go.Heatmap(
        x=_sessions(ledger),
        y=[escape(symbol) for symbol in by_symbol.columns],
        z=weights,
        zmin=-bound,
        zmax=bound,
        colorscale=DIVERGING,
        colorbar=colour_bar("Weight (% of equity)", ".0%"),
        hovertemplate="%{y} %{x|%Y-%m-%d}: %{z:.1%}<extra></extra>",
    )
    figure = drawing([heat], max(200, 80 + 34 * len(weights)) + BAR_PX, "Session (date)", "Symbol")
    figure.update_layout(hovermode="closest", margin_b=60 + BAR_PX)
    return figure.update_yaxes(autorange="reversed", showgrid=False, type="category")


def costs(found: Sequence[Figures]) -> go.Figure:
    """Returns what each account paid, by kind."""
    bars = [
        go.Bar(
            y=[escape(f.name) for f in found],
            x=[f.costs_usd[kind] for f in found],
            orientation="h",
            name=kind,
            marker_color=_COST_COLOURS[kind],
            hovertemplate="%{x:$,.2f}",
        )
        for kind in COST_KINDS
        if any(f.costs_usd[kind] for f in found)
    ]
    figure = drawing(bars, 140 + 32 * len(found), "Costs paid (USD)", "Account")
    figure.update_layout(barmode="stack", bargap=0.4, hovermode="y unified")
    figure.update_xaxes(tickformat="$~s", rangemode="tozero", showgrid=True, nticks=6)
    return figure.update_yaxes(autorange="reversed", showgrid=False)


def holding(ledger: Ledger) -> go.Figure:
    """Returns how many positions were held for how long."""
    bars = go.Histogram(
        x=holding_sessions(ledger),
        nbinsx=40,
        marker_color=BLUE,
        hovertemplate="%{x} sessions: %{y} positions<extra></extra>",
    )
    figure = drawing([bars], 300, "Holding time (sessions)", "Positions (count)").update_layout(bargap=0.05)
    return figure.update_layout(hovermode="closest").update_xaxes(rangemode="tozero")


def twins(found: Twins) -> go.Figure:
    """Returns the candidate's Sharpe ratio among those of its zero-skill twins."""
    values = [found.candidate, *found.twins]
    room = 0.05 * (max(values) - min(values)) or 0.5
    low, high = min(values) - room, max(values) + room
    counts, edges = np.histogram(found.twins, _TWIN_BINS, (low, high))
    bars = go.Bar(
        x=((edges[:-1] + edges[1:]) / 2.0)[counts > 0],
        y=counts[counts > 0],
        width=(high - low) / _TWIN_BINS,
        name="zero-skill twins",
        marker_color=COLOURS[3],
        hovertemplate="about %{x:.2f}: %{y} of the twins<extra></extra>",
    )
    mark = go.Scatter(
        x=[found.candidate] * 2,
        y=[0, int(counts.max()) + 0.5],
        mode="lines+markers",
        marker={"symbol": "diamond", "size": [0, 11], "opacity": 1},
        line={"color": BLUE, "width": 2.6},
        name=f"candidate: {found.candidate:.2f}, p = {found.p_value:.2f}",
        hovertemplate="the candidate: %{x:.2f}<extra></extra>",
    )
    figure = drawing([bars, mark], 320, "Sharpe ratio on the holdout (per year)", "Twins (count)")
    figure.update_layout(hovermode="closest").update_xaxes(range=[low, high])
    return figure.update_yaxes(dtick=max(1, int(counts.max()) // 5), range=[0, int(counts.max()) + 1])


def cost_frontier(found: Frontier) -> go.Figure:
    """Returns the annual return at each factor on the costs of each axis, with both break-evens.

    Factors stand at equal distances. A break-even lies between two of them by a straight line, as it was computed.
    """
    factors = sorted({point.factor for point in found.points if point.axis != "account"})
    traces = [_axis_line(number, axis, found.points, factors) for number, axis in enumerate((*AXES, "all"))]
    last = len(factors) - 1
    if found.benchmark_return is not None:
        traces.append(_level("benchmark, at its own costs", [0, last], found.benchmark_return))
    for (says, factor, level), symbol in zip(_break_evens(found), ("diamond", "star"), strict=False):
        place = float(np.interp(factor, factors, range(last + 1)))
        traces.append(_mark(f"break-even with {says}: × {factor:.2f}", place, level, symbol))
    figure = drawing(traces, 460, "Factor on costs (multiple of those assumed)", "Return (% per year)")
    figure.update_xaxes(
        tickvals=list(range(last + 1)), ticktext=[f"× {factor:g}" for factor in factors], zeroline=False
    )
    return figure.update_layout(hovermode="closest").update_yaxes(tickformat=".0%")


def cost_caption(found: Frontier) -> str:
    """Returns in words where the break-evens are."""
    form = (
        "The recorded decisions, repeated where trading is dearer or cheaper."
        if found.form == "replayed"
        else "The policy decided anew where trading is dearer or cheaper."
    )
    over = found.benchmark_return
    parts = [form, _break_even("cash", found.break_even_factor, found, 0.0)]
    if over is not None:
        parts.append(_break_even("the benchmark", found.break_even_factor_over_benchmark, found, over))
    kept = {
        "held": f"More cost never made richer, as it must be (tolerance {found.tolerance:.2%} of equity).",
        "broken": "More cost made richer somewhere: see the warning.",
        "not promised": "Whether more cost never makes richer cannot be promised here, so it was not checked.",
    }
    return " ".join([*parts, kept[found.monotone]])


def size_frontier(found: Frontier) -> go.Figure:
    """Returns the annual return of accounts of each size, with the capacity."""
    sizes = [point for point in found.points if point.axis == "account"]
    traces = [_points_line("account of that size", sizes, [p.initial_cash_usd for p in sizes], BLUE, _MARKS[0])]
    over = found.benchmark_return or 0.0
    if found.benchmark_return is not None:
        ends = [sizes[0].initial_cash_usd, sizes[-1].initial_cash_usd]
        traces.append(_level("benchmark, at its own size", ends, over))
    if found.capacity_usd:
        half = max(point.annual_return - over for point in sizes) / 2.0 + over
        traces.append(_mark(f"capacity: {_usd(found.capacity_usd)}", found.capacity_usd, half, "diamond"))
    figure = drawing(traces, 400, "Account (USD, log scale)", "Return (% per year)").update_layout(hovermode="closest")
    decades = sorted({p.initial_cash_usd for p in sizes})
    figure.update_xaxes(type="log", tickvals=decades, ticktext=[_usd(each) for each in decades])
    return figure.update_yaxes(tickformat=".0%")


def size_caption(found: Frontier) -> str:
    """Returns in words where the capacity is."""
    over = "cash" if found.benchmark_return is None else "the benchmark"
    sizes = [point for point in found.points if point.axis == "account"]
    largest = max(point.initial_cash_usd for point in sizes)
    if max(sizes, key=lambda point: point.annual_return).initial_cash_usd == largest:
        says = (
            f"The largest, {_usd(largest)}, does best: its orders are cut by the volume, and no capacity can be told."
        )
    elif found.capacity_usd is None:
        says = f"The return over {over} does not fall to half of its best up to {_usd(largest)}."
    elif not found.capacity_usd:
        says = f"No size earns more than {over}, so there is no capacity."
    else:
        says = f"Capacity: at {_usd(found.capacity_usd)} the return over {over} is half of its best."
    return f"The same decisions in accounts of other sizes: a larger one pays more impact. {says}"


def _break_even(what: str, factor: float | None, found: Frontier, level: float) -> str:
    factors = [point.factor for point in found.points if point.axis == "all"]
    if factor is None:
        return f"With all costs it stays above {what} up to × {factors[-1]:g}."
    if not _crosses(factor, found, level):
        return f"With all costs it is not above {what} even at × {factors[0]:g}."
    return f"With all costs it falls to {what} at × {factor:.2f}."


def _crosses(factor: float | None, found: Frontier, level: float) -> bool:
    """Returns whether a break-even is a place on the grid at which the return falls to `level`."""
    first = next(point for point in found.points if point.axis == "all")
    return factor is not None and first.annual_return > level


def _break_evens(found: Frontier) -> Iterable[tuple[str, float, float]]:
    """Yields name, factor and level of the break-evens that lie on the grid."""
    over = found.benchmark_return
    for says, factor, level in (
        ("cash", found.break_even_factor, 0.0),
        ("the benchmark", found.break_even_factor_over_benchmark, over or 0.0),
    ):
        if factor is not None and _crosses(factor, found, level):
            yield says, factor, level


def _axis_line(number: int, axis: str, points: Iterable[Point], factors: Sequence[float]) -> go.Scatter:
    mine = [point for point in points if point.axis == axis]
    colour = BLUE if axis == "all" else COLOURS[number]
    places = [factors.index(point.factor) for point in mine]
    return _points_line("all costs" if axis == "all" else axis, mine, places, colour, _MARKS[number])


def _points_line(name: str, points: Sequence[Point], x: Sequence[float], colour: str, mark: str) -> go.Scatter:
    return go.Scatter(
        x=x,
        y=[point.annual_return for point in points],
        customdata=[(point.sharpe, point.cost_bps_per_year, point.turnover_per_year) for point in points],
        name=name,
        mode="lines+markers",
        line={"color": colour, "width": 2.6 if colour == BLUE else 1.6},
        marker={"symbol": mark, "size": 8},
        hovertemplate=f"{name}: %{{y:.1%}} a year<br>Sharpe ratio %{{customdata[0]:.2f}}<br>"
        "costs %{customdata[1]:.0f} bps a year<br>turnover %{customdata[2]:.1f} a year<extra></extra>",
    )


def _level(name: str, ends: Sequence[float], value: float) -> go.Scatter:
    return go.Scatter(
        x=list(ends),
        y=[value] * 2,
        name=name,
        mode="lines",
        line={"color": COLOURS[3], "width": 1.6, "dash": "dash"},
        hovertemplate=f"{name}: %{{y:.1%}} a year<extra></extra>",
    )


def _mark(name: str, x: float, y: float, symbol: str) -> go.Scatter:
    return go.Scatter(
        x=[x],
        y=[y],
        name=name,
        mode="markers",
        marker={"symbol": symbol, "size": 13, "color": COLOURS[4], "line": {"color": "#ffffff", "width": 1}},
        hovertemplate=f"{name}<extra></extra>",
    )


def _line(place: int, ledger: Ledger, values: Iterable[float], hover: str) -> go.Scatter:
    colour = COLOURS[(place - 1) % len(COLOURS)] if place else BLUE
    return go.Scatter(
        x=_sessions(ledger),
        y=values,
        name=escape(ledger.name),
        mode="lines",
        line={"color": colour, "width": 1.2 if place else 2.6},
        zorder=-place,
        hovertemplate=hover,
    )


def _sessions(ledger: Ledger) -> list[Any]:
    return ledger.account["session"].to_list()


def _usd(amount: float) -> str:
    """Returns an amount in few characters: $250k, $1.5M, $2B."""
    for unit, name in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if amount >= 0.9995 * unit:
            return f"${amount / unit:.3g}{name}"
    return f"${amount:.3g}"
