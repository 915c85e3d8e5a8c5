"""The judge's findings as one self-contained page, with a quantstats tear sheet beside it.

<path>                     verdict, figures, plots, context, limits; plotly inline, no network
<stem>-tearsheet.html      more figures of the policy against its first benchmark
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import plotly.graph_objects as go
import polars as pl
from plotly.offline import get_plotlyjs

from envs.backtest import COST_KINDS, Ledger
from rl.judging.metrics import (
    Comparison,
    Figures,
    Verdict,
    drawdowns,
    equity_path,
    figures,
    holding_sessions,
    solvent_returns,
)

_POLICY_COLOUR = "#2f81f7"
_COLOURS = ("#d97706", "#1a9e6b", "#a371f7", "#8b949e", "#db61a2", "#b08800")
_COST_COLOURS = dict(zip(COST_KINDS, (_POLICY_COLOUR, *_COLOURS, "#57606a"), strict=True))
_FETCHES_OR_FAILS = re.compile(r'<link[^>]*favicon[^>]*>| onload="save\(\)"')
"""In quantstats' page: an icon from the network, and a call of a function that is not there."""
_WEIGHT_SCALE = (  # transparent at zero, so that it suits a light and a dark page
    (0.0, "rgb(217,72,15)"),
    (0.5, "rgba(128,128,128,0)"),
    (1.0, "rgb(47,129,247)"),
)


def write_report(
    path: Path,
    *,
    title: str,
    ledgers: Sequence[Ledger],
    verdict: Verdict | None,
    context: Mapping[str, str],
    trials: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Writes the report and its tear sheet, each whole or not at all, and returns `path`.

    Args:
        path: Of the page; its folder is made.
        title: Heading.
        ledgers: The policy's first, then the baselines', all over the same out-of-sample sessions.
        verdict: On that policy; None where nothing is judged.
        context: What was judged and how, name to value: data snapshot, spans, hashes.
        trials: One row for each configuration that was tried, column to value, the columns those of the
            first; a number is shown with two decimals, None as a dash. Empty: not recorded.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    benchmark = ledgers[1].name if verdict is None else verdict.comparisons[0].benchmark
    tear_sheet = _write_tear_sheet(path.with_name(f"{path.stem}-tearsheet.html"), title, ledgers, benchmark)
    found = [figures(ledger) for ledger in ledgers]
    sections = (
        "" if verdict is None else _verdict_section(verdict, len(trials)),
        _figures_section(found, tear_sheet),
        _plot_section(
            "equity", "Equity", "Account value after each close, net of costs, on a logarithmic axis.", _equity(ledgers)
        ),
        _plot_section(
            "drawdown", "Drawdown", "How far equity stood below its highest value so far.", _drawdown(ledgers)
        ),
        _plot_section(
            "positions",
            f"Positions of {ledgers[0].name}",
            "Weight of each symbol after each close. Blue is long, orange is short, no colour is no position.",
            _positions(ledgers[0]),
        ),
        _plot_section("costs", "Costs paid", "All costs of the whole span, by kind.", _costs(found)),
        _plot_section("holding", "Holding time", _holding_caption(found[0]), _holding(ledgers[0])),
        _trials_section(trials),
        _context_section(context, found[0]),
        _limits_section(found[0], len(trials)),
    )
    return _write(path, _page(title, found[0], sections))


def _verdict_section(verdict: Verdict, tried: int) -> str:
    reasons = "".join(f"<li>{escape(reason)}</li>" for reason in verdict.reasons)
    rows = [_comparison_row(comparison) for comparison in verdict.comparisons]
    head = ("Against", "Excess per year", "95 % interval", "p, one-sided", "Bootstrap block, sessions")
    number = f"{tried}" if tried else "not recorded"
    return (
        f'<section id="verdict" class="{verdict.decision}"><p class="decision">{verdict.decision}</p>'
        f"<ul>{reasons}</ul>{_table('comparisons', head, rows)}"
        f'<p>Configurations tried before this one was chosen: <strong id="tried">{number}</strong>. '
        "The intervals are those of one candidate taken by itself; they are not corrected for that number.</p>"
        "</section>"
    )


def _comparison_row(comparison: Comparison) -> tuple[str, ...]:
    return (
        comparison.benchmark,
        f"{comparison.excess:+.1%}",
        f"{comparison.lower:+.1%} to {comparison.upper:+.1%}",
        f"{comparison.p_value:.3f}",
        f"{comparison.block_sessions}",
    )


_FIGURE_ROWS: tuple[tuple[str, Callable[[Figures], str]], ...] = (
    ("Total return", lambda f: f"{f.total_return:+.1%}"),
    ("Return per year (CAGR)", lambda f: f"{f.cagr:+.1%}"),
    ("Volatility per year", lambda f: f"{f.volatility:.1%}"),
    ("Sharpe ratio per year ± standard error", lambda f: f"{f.sharpe:.2f}" + _or_dash(f.sharpe_error, " ± {:.2f}", "")),
    ("Largest drawdown", lambda f: f"{f.max_drawdown:.1%}"),
    ("Exposure, mean of gross weight", lambda f: f"{f.exposure:.0%}"),
    ("Turnover per year, multiple of equity", lambda f: f"{f.turnover_per_year:.1f}"),
    ("Trades", lambda f: f"{f.trades:,}"),
    ("Holding time in sessions, mean", lambda f: _or_dash(f.mean_holding_sessions, "{:.1f}")),
    ("Holding time in sessions, median", lambda f: _or_dash(f.median_holding_sessions, "{:.1f}")),
    ("Costs paid, USD", lambda f: f"{f.cost_usd:,.0f}"),
    ("Costs per year, bps of equity", lambda f: f"{f.cost_bps_per_year:.1f}"),
    ("Final equity, USD", lambda f: f"{f.final_equity_usd:,.0f}"),
)


def _figures_section(found: Sequence[Figures], tear_sheet: Path | None) -> str:
    rows = [(label, *(text(f) for f in found)) for label, text in _FIGURE_ROWS]
    link = (
        f'<p><a id="tearsheet" href="{quote(tear_sheet.name)}">Tear sheet</a>: monthly returns, rolling figures, '
        "worst drawdowns.</p>"
        if tear_sheet
        else "<p>There is no tear sheet: the returns to be compared do not vary.</p>"
    )
    return f"<section><h2>Figures</h2>{_table('figures', ('', *(f.name for f in found)), rows)}{link}</section>"


def _trials_section(trials: Sequence[Mapping[str, Any]]) -> str:
    if not trials:
        return ""
    columns = list(trials[0])
    rows = [[_cell(trial.get(column)) for column in columns] for trial in trials]
    return (
        f"<section><h2>Configurations tried</h2><details><summary>{len(trials)} configurations, scored out "
        f"of sample on earlier folds, and so chosen</summary>{_table('trials', columns, rows)}"
        "</details></section>"
    )


def _context_section(context: Mapping[str, str], policy: Figures) -> str:
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in context.items())
    return (
        "<section><h2>Context</h2>"
        f"<p>Out of sample means: the {policy.sessions} sessions from {policy.first_session} to "
        f"{policy.last_session} come after every session that the network was trained on, that its inputs were "
        "scaled by, and that its configuration was chosen on, with a gap between. Each decision was made after a "
        "close, from what was known then, and filled at the next session's open. All accounts saw the same "
        f"sessions, symbols, limits and costs.</p><dl>{items}</dl></section>"
    )


def _limits_section(policy: Figures, tried: int) -> str:
    error = _or_dash(policy.sharpe_error, " of {:.2f}", " that is unknown")
    number = f"{tried}" if tried else "an unrecorded number of"
    chosen = "one configuration" if tried == 1 else f"the best of {number} configurations"
    return (
        "<section><h2>Limits</h2>"
        f"<p>This is one stretch of history, one set of symbols and {chosen}. The Sharpe ratio of "
        f"{policy.sessions} sessions has a standard error{error}, so a small gain cannot be told from luck. The "
        "more configurations were tried, the better the best of them looks by luck alone, and neither the "
        "intervals nor the p-values allow for that. Symbols that are known today have survived until today; "
        "only the differences between accounts on the same symbols mean something.</p>"
        "<p>Fills are simulated: an order gets the opening price as far as its share of the session's volume allows, "
        "and its market impact is charged as a cost but moves no later price. Cash earns no interest, and taxes are "
        "left out. Past returns, simulated ones most of all, promise nothing.</p></section>"
    )


def _plot_section(name: str, heading: str, caption: str, figure: go.Figure) -> str:
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_height=f"{figure.layout.height}px",
        config={"displayModeBar": False, "responsive": True},
    )
    return f"<section><h2>{escape(heading)}</h2><p>{escape(caption)}</p><figure>{plot}</figure></section>"


def _equity(ledgers: Sequence[Ledger]) -> go.Figure:
    lines = [_line(i, ledger, equity_path(ledger)[1:], "%{y:$,.0f}") for i, ledger in enumerate(ledgers)]
    figure = _figure(lines, 420, "Session (date)", "Equity (USD, log scale)")
    return figure.update_yaxes(type="log", tickformat="$~s", minor_showgrid=False)


def _drawdown(ledgers: Sequence[Ledger]) -> go.Figure:
    lines = [_line(i, ledger, drawdowns(equity_path(ledger))[1:], "%{y:.1%}") for i, ledger in enumerate(ledgers)]
    return _figure(lines, 320, "Session (date)", "Drawdown (%)").update_yaxes(tickformat=".0%")


def _line(place: int, ledger: Ledger, values: Iterable[float], hover: str) -> go.Scatter:
    colour = _COLOURS[(place - 1) % len(_COLOURS)] if place else _POLICY_COLOUR
    return go.Scatter(
        x=_sessions(ledger),
        y=values,
        name=escape(ledger.name),
        mode="lines",
        line={"color": colour, "width": 1.2 if place else 2.6},
        zorder=-place,
        hovertemplate=hover,
    )


def _positions(ledger: Ledger) -> go.Figure:
    by_symbol = ledger.positions.pivot("symbol", index="session", values="weight").drop("session")
    weights = by_symbol.to_numpy().T
    bound = max(float(np.abs(weights).max()), 0.01)
    heat = go.Heatmap(
        x=_sessions(ledger),
        y=[escape(symbol) for symbol in by_symbol.columns],
        z=weights,
        zmin=-bound,
        zmax=bound,
        colorscale=_WEIGHT_SCALE,
        colorbar={"title": {"text": "Weight (% of equity)", "side": "right"}, "tickformat": ".0%", "thickness": 14},
        hovertemplate="%{y} %{x|%Y-%m-%d}: %{z:.1%}<extra></extra>",
    )
    figure = _figure([heat], 120 + 34 * len(weights), "Session (date)", "Symbol")
    return figure.update_layout(hovermode="closest").update_yaxes(autorange="reversed", showgrid=False, type="category")


def _costs(found: Sequence[Figures]) -> go.Figure:
    bars = [
        go.Bar(
            x=[escape(f.name) for f in found],
            y=[f.costs_usd[kind] for f in found],
            name=kind,
            marker_color=_COST_COLOURS[kind],
            hovertemplate="%{y:$,.2f}",
        )
        for kind in COST_KINDS
        if any(f.costs_usd[kind] for f in found)
    ]
    figure = _figure(bars, 320, "Account", "Costs paid (USD)").update_layout(barmode="stack", bargap=0.5)
    return figure.update_yaxes(tickformat="$,~f", rangemode="tozero")


def _holding(ledger: Ledger) -> go.Figure:
    bars = go.Histogram(
        x=holding_sessions(ledger),
        nbinsx=40,
        marker_color=_POLICY_COLOUR,
        hovertemplate="%{x} sessions: %{y} positions<extra></extra>",
    )
    figure = _figure([bars], 300, "Holding time (sessions)", "Positions (count)").update_layout(bargap=0.05)
    return figure.update_layout(hovermode="closest").update_xaxes(rangemode="tozero")


def _holding_caption(policy: Figures) -> str:
    if policy.mean_holding_sessions is None:
        return f"{policy.name} held no position."
    return (
        f"Positions of {policy.name} by the number of closes they were held over: mean "
        f"{policy.mean_holding_sessions:.1f}, median {policy.median_holding_sessions:.1f}. One that was still "
        "open at the end counts as long as it was seen."
    )


def _figure(traces: Sequence[Any], height: int, x_title: str, y_title: str) -> go.Figure:
    return go.Figure(traces).update_layout(
        template="none",
        height=height,
        margin={"l": 90, "r": 20, "t": 40 if len(traces) > 1 else 10, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hovermode="x unified",
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": "#1f2328"}},
        xaxis={"title": {"text": x_title, "standoff": 14}, "showgrid": False, "automargin": True},
        yaxis={"title": {"text": y_title, "standoff": 14}, "automargin": True},
    )


def _sessions(ledger: Ledger) -> list[Any]:
    return ledger.account["session"].to_list()


def _write_tear_sheet(path: Path, title: str, ledgers: Sequence[Ledger], against: str) -> Path | None:
    """Writes quantstats' page on the policy against the ledger of that name; None if one of them never moved."""
    pair = (ledgers[0], next(ledger for ledger in ledgers if ledger.name == against))
    policy, benchmark = (pl.Series(ledger.name, solvent_returns(ledger)).to_pandas() for ledger in pair)
    if policy.nunique() < 2 or benchmark.nunique() < 2:
        path.unlink(missing_ok=True)
        return None
    for returns, ledger in zip((policy, benchmark), pair, strict=True):
        returns.index = ledger.account["session"].cast(pl.Datetime("ns")).to_pandas()
    scratch = _scratch(path)
    with warnings.catch_warnings():
        # Both call what newer pandas and matplotlib deprecate; nothing here depends on it.
        warnings.filterwarnings("ignore", module=r"quantstats\.|seaborn\.")
        _quantstats_html()(
            policy,
            benchmark=benchmark,
            output=str(scratch),
            title=escape(title),
            strategy_title=escape(pair[0].name),
            benchmark_title=escape(pair[1].name),
            match_dates=False,  # matching drops the sessions before the policy's first trade
        )
    page = _FETCHES_OR_FAILS.sub("", scratch.read_text(encoding="utf-8"))
    scratch.unlink()
    return _write(path, page)


def _quantstats_html() -> Callable[..., None]:
    import matplotlib as mpl  # noqa: PLC0415

    mpl.use("Agg")
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)  # one line for every text without Arial
    from quantstats.reports import html  # noqa: PLC0415  (five seconds and 200 MB)

    function: Callable[..., None] = html
    return function


def _table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    heading = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _or_dash(value: float | None, pattern: str, missing: str = "–") -> str:
    return missing if value is None else pattern.format(value)


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _write(path: Path, text: str) -> Path:
    scratch = _scratch(path)
    scratch.write_text(text, encoding="utf-8")
    return scratch.replace(path)


def _scratch(path: Path) -> Path:
    return path.with_name(f".{path.name}.writing")


def _page(title: str, policy: Figures, sections: Iterable[str]) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(policy.name)} on {policy.sessions} sessions, "
        f"{policy.first_session} to {policy.last_session}, net of costs.</p></header>"
        f"{''.join(sections)}</main></body></html>"
    )


_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --panel: #f6f8fa; --good: #1a7f37; --bad: #b42318; --link: #0969da; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --panel: #151b23; --good: #3fb950; --bad: #f85149; --link: #4493f8; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
header p, section > p { margin: .25rem 0 .75rem; color: var(--soft); }
section { margin-top: 2.5rem; }
a { color: var(--link); }
figure { margin: 0; }
#verdict { background: var(--panel); border-left: .4rem solid var(--bad); border-radius: .25rem;
  padding: 1rem 1.25rem; }
#verdict.promote { border-color: var(--good); }
.decision { font-size: 1.5rem; font-weight: 700; text-transform: uppercase; letter-spacing: .05em; }
#verdict.reject .decision { color: var(--bad); }
#verdict.promote .decision { color: var(--good); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9375rem; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child { text-align: left; font-weight: 400; min-width: 7rem; }
#figures td:nth-child(2), #figures thead th:nth-child(2) { font-weight: 700; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; overflow-wrap: anywhere; }
summary { cursor: pointer; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; gap: 0; } dd { margin-bottom: .5rem; } }
.main-svg .xtick text, .main-svg .ytick text, .main-svg .infolayer text { fill: var(--ink) !important; }
.main-svg .gridlayer path, .main-svg .zl { stroke: var(--line) !important; }
"""
