"""What the judge's pages share: shell, style, tables, plots and alarms. A page is one file that needs no network."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from data_pipeline.clearance import Clearance

if TYPE_CHECKING:
    from rl.judging.tune import Trial  # loads Ray

SUSPICIOUS_SHARPE = 3.0
"""Annualised, out of sample, net of costs: daily trading of liquid symbols does not earn more for long. What shows
more has mostly seen the future, or its fills or costs are wrong."""
MOST_LEAKS = 12
"""That are told in full."""
BLUE = "#2f81f7"
COLOURS = ("#d97706", "#1a9e6b", "#a371f7", "#8b949e", "#db61a2", "#b08800")
DIVERGING = (  # orange, blue: told apart by the colour-blind; see-through at zero, so it suits a light and a dark page
    (0.0, "rgb(217,72,15)"),
    (0.5, "rgba(128,128,128,0)"),
    (1.0, "rgb(47,129,247)"),
)


def page(title: str, subtitle: str, sections: Iterable[str]) -> str:
    """Returns a whole page; `sections` are HTML, the other two are text."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><script>{get_plotlyjs()}</script></head><body><main>"
        f"<header><h1>{escape(title)}</h1><p>{escape(subtitle)}</p></header>{''.join(sections)}</main></body></html>"
    )


def section(heading: str, *parts: str) -> str:
    """Returns parts that are HTML under a heading that is text."""
    return f"<section><h2>{escape(heading)}</h2>{''.join(parts)}</section>"


def paragraph(text: str) -> str:
    """Returns a paragraph of text, what is between backticks as code."""
    return f"<p>{_marked(text)}</p>"


def alarm(name: str, says: str, *details: str) -> str:
    """Returns a red box: a sentence that nobody must miss, and what is to be known or done."""
    rest = "".join(map(paragraph, details))
    return f'<div class="alarm" id="{name}" role="alert"><p><strong>Warning: {_marked(says)}</strong></p>{rest}</div>'


def causality(clearance: Clearance) -> str:
    """Returns a banner where a panel was forced past the leakage audit, a note where it has none, else nothing."""
    if clearance.suspect:
        return alarm(
            "unaudited",
            "NOT AUDITED: features may see the future.",
            clearance.says,
            *map(str, clearance.leaks[:MOST_LEAKS]),
            "Rely on none of these figures: whoever sees the future earns what nobody can trade for. Mend or drop what "
            "the audit names, and sweep again without data.audit=false.",
        )
    if not clearance.looked_at:
        return f'<div class="note" id="causality">{paragraph(f"Not audited. {clearance.says}")}</div>'
    return ""


def suspicion(ratio: float, where: str) -> str:
    """Returns the alarm on a Sharpe ratio that is too good to be true; empty for any other."""
    if ratio <= SUSPICIOUS_SHARPE:
        return ""
    return alarm(
        "suspicious",
        f"a Sharpe ratio of {ratio:.2f} {where} is nearly always a leak or a mistake.",
        "Before you believe it, run `swing-data audit`, which proves whether features see the future, and look at "
        "the fills and costs in the ledgers.",
    )


def facts(pairs: Mapping[str, str]) -> str:
    """Returns names with their values, both text."""
    items = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in pairs.items())
    return f'<dl class="facts">{items}</dl>'


def table(name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table of text that scrolls by itself where the page is too narrow; the first column names the rows."""
    heading = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in head)
    body = "".join(
        f'<tr><th scope="row">{escape(first)}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll"><table id="{name}"><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def trials_table(trials: Sequence[Trial], status: Callable[[Trial], str]) -> str:
    """Returns all configurations in the order given, with the Sharpe ratio of each fold."""
    folds = fold_names(trials)
    several = any(is_spread(trial) for trial in trials)
    head = ("Number", "Configuration", "Status", *folds, "All folds", *(("Quartiles over seeds",) if several else ()))
    rows = []
    for trial in trials:
        found = fold_ratios(trial)
        cells = [or_dash(found.get(fold), "{:.2f}") for fold in folds]
        ends = [_quartiles(trial)] if several else []
        rows.append(
            (f"#{trial.number}", trial.label, status(trial), *cells, or_dash(trial.score, "{:.2f}"), *ends),
        )
    return table("trials", head, rows)


def fold_names(trials: Iterable[Trial]) -> list[str]:
    """Returns the names of all folds that are scored, in time order."""
    return max(([*fold_ratios(trial)] for trial in trials), key=len, default=[])


def fold_ratios(trial: Trial) -> dict[str, float]:
    """Returns fold -> Sharpe ratio, in time order; of several seeds the median."""
    ratios: dict[str, list[float]] = {}
    for each in trial.folds:
        ratios.setdefault(each.fold, []).append(each.sharpe)
    return {fold: median(of_seeds) for fold, of_seeds in ratios.items()}


def is_spread(trial: Trial) -> bool:
    """Returns whether a trial was trained with more than one seed."""
    return len({each.seed for each in trial.folds}) > 1


def plot_section(name: str, heading: str, caption: str, figure: go.Figure, least_width: int = 0) -> str:
    """Returns a plot under a heading and a caption that are text.

    Args:
        name: Of the plot's element.
        heading: Of the section.
        caption: What is to be seen.
        figure: See `drawing`.
        least_width: In px; on a narrower page the plot scrolls.
    """
    plot = figure.to_html(
        full_html=False,
        include_plotlyjs=False,
        div_id=name,
        default_height=f"{figure.layout.height}px",
        config={"displayModeBar": False, "responsive": True},
    )
    style = f' style="min-width:{least_width}px"' if least_width else ""
    return section(heading, paragraph(caption), f'<div class="scroll"><figure{style}>{plot}</figure></div>')


def drawing(traces: Sequence[Any], height: int, x_title: str, y_title: str) -> go.Figure:
    """Returns a figure in the pages' style; every axis has a name with its unit."""
    return go.Figure(traces).update_layout(
        template="none",
        height=height,
        margin={"l": 70, "r": 20, "t": 40 if len(traces) > 1 else 10, "b": 60},
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"family": "system-ui, sans-serif", "size": 13},
        legend={"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "traceorder": "normal"},
        hovermode="x unified",
        hoverlabel={"bgcolor": "#ffffff", "font": {"color": "#1f2328"}},
        xaxis={**_AXIS, "title": {**_TITLE, "text": x_title}, "showgrid": False, "autotickangles": [0, 90]},
        yaxis={**_AXIS, "title": {**_TITLE, "text": y_title}},
    )


def colour_bar(title: str, ticks: str) -> dict[str, Any]:
    """Returns the key to a heat map's colours, below it: beside it, it would take a narrow page's width."""
    return {
        "title": {"text": title, "side": "bottom", "font": {"size": 13}},
        "orientation": "h",
        "thickness": 12,
        "len": 0.9,
        "yref": "container",
        "y": 0,
        "yanchor": "bottom",
        "tickformat": ticks,
        "nticks": 5,
    }


BAR_PX = 70
"""Height that a figure with a `colour_bar` needs besides, and so much more margin at its bottom."""
_AXIS = {"automargin": True, "ticks": "outside", "ticklen": 4, "tickcolor": "rgba(0,0,0,0)"}
_TITLE = {"standoff": 12, "font": {"size": 13}}


def or_dash(value: float | None, pattern: str, missing: str = "–") -> str:
    """Returns a number by its pattern, or what stands for none."""
    return missing if value is None else pattern.format(value)


def write(path: Path, text: str) -> Path:
    """Writes a page, whole or not at all, and returns its path; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = scratch(path)
    unfinished.write_text(text, encoding="utf-8")
    return unfinished.replace(path)


def scratch(path: Path) -> Path:
    """Returns where a file is until it is whole."""
    return path.with_name(f".{path.name}.writing")


def _marked(text: str) -> str:
    return re.sub("`([^`]+)`", r"<code>\1</code>", escape(text))


def _quartiles(trial: Trial) -> str:
    return "–" if trial.quartiles is None else "{:.2f} to {:.2f}".format(*trial.quartiles)


_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0;
  --panel: #f6f8fa; --good: #1a7f37; --bad: #b42318; --alarm: #fff1f0; --link: #0969da; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d;
  --panel: #151b23; --good: #3fb950; --bad: #f85149; --alarm: #2d1314; --link: #4493f8; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { max-width: 60rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; overflow-wrap: anywhere; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .25rem; }
header p, section > p { margin: .25rem 0 .75rem; color: var(--soft); }
section { margin-top: 2.5rem; }
section > .scroll + p { margin-top: .75rem; }
a { color: var(--link); }
figure { margin: 0; }
code { font-size: .9375em; }
#verdict { background: var(--panel); border-left: .4rem solid var(--bad); border-radius: .25rem;
  padding: 1rem 1.25rem; }
#verdict.promote { border-color: var(--good); }
.decision { font-size: 1.5rem; font-weight: 700; text-transform: uppercase; letter-spacing: .05em; }
#verdict.reject .decision { color: var(--bad); }
#verdict.promote .decision { color: var(--good); }
#gates { list-style: none; padding: 0; margin: 0 0 1rem; }
#gates li { display: grid; grid-template-columns: 4.5rem 1fr; gap: .25rem .75rem; padding: .35rem 0; }
#gates li + li { border-top: 1px solid var(--line); }
#gates .word { font-weight: 700; text-transform: uppercase; font-size: .875rem; line-height: 1.77; }
#gates .passed .word { color: var(--good); }
#gates .failed .word { color: var(--bad); }
.alarm { background: var(--alarm); border: 2px solid var(--bad); border-radius: .25rem; padding: .75rem 1.25rem;
  margin-top: 1.5rem; }
.alarm p { margin: .25rem 0; }
.alarm strong { color: var(--bad); }
#unaudited { background: #a31d14; border-color: #a31d14; color: #ffffff; }
#unaudited strong { color: #ffffff; font-size: 1.5rem; line-height: 1.3; }
.note { background: var(--panel); border-radius: .25rem; color: var(--soft); padding: .25rem 1.25rem;
  margin-top: 1.5rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9375rem;
  overflow-wrap: normal; }
th, td { padding: .35rem .6rem; text-align: right; border-bottom: 1px solid var(--line); }
td { white-space: nowrap; }
th:first-child { text-align: left; font-weight: 400; min-width: 7rem; }
#figures td:nth-child(2), #figures thead th:nth-child(2), #accounts tbody tr:first-child > * { font-weight: 700; }
#statuses { width: auto; min-width: 20rem; }
:is(#trials, #errors) th:first-child { min-width: 0; }
#trials thead th, :is(#accounts, #comparisons, #regimes, #ablations) tbody th { white-space: nowrap; }
#trials :is(th, td):nth-child(2), #trials :is(th, td):nth-child(3), #errors :is(th, td) { text-align: left; }
#trials td:nth-child(2), #errors td { white-space: normal; min-width: 11rem; }
dl { margin: 0; }
dd { margin: 0; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .3rem 1.25rem; }
.facts dt { color: var(--soft); }
#findings dt { margin-top: .9rem; }
#findings dt strong { font-variant-numeric: tabular-nums; }
#findings dd { color: var(--soft); }
summary { cursor: pointer; }
@media (max-width: 40rem) { .facts { grid-template-columns: 1fr; gap: 0; } .facts dd { margin-bottom: .5rem; }
  #gates li { grid-template-columns: 1fr; } }
.main-svg .xtick text, .main-svg .ytick text, .main-svg .infolayer text { fill: var(--ink) !important; }
.main-svg .gridlayer path, .main-svg .zl { stroke: var(--line) !important; }
.main-svg .annotation .bg { fill: var(--page) !important; fill-opacity: .8 !important; }
"""
