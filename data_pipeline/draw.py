"""One page with a symbol's bars and features: self-contained, plotly inline, no network.

It shows raw prices as they were traded beside the total-return adjusted close that features are computed from.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from html import escape
from itertools import compress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl

from data_pipeline.assemble import build_panel
from data_pipeline.errors import ConfigError
from data_pipeline.features import Feature, FeatureSet
from data_pipeline.panel import RAW, Panel
from data_pipeline.schema import PRICES
from data_pipeline.sessions import Sessions
from data_pipeline.store import Store
from data_pipeline.story import as_people_say, count, origin

UNITS = {
    "sma_{n}_distance": "% of average",
    "ema_{n}_distance": "% of average",
    "macd_line": "% of price",
    "macd_histogram": "% of price",
    "return_{n}": "log return",
    "roc_{n}": "% change",
    "rsi_{n}": "index, −1 to 1",
    "range_position_{n}": "share of range",
    "overnight_return": "log return",
    "close_in_range": "share of range",
    "atr_{n}": "% of price",
    "bollinger_width_{n}": "% of average",
    "bollinger_position_{n}": "share of band",
    "realised_volatility_{n}": "log return per bar",
    "volatility_ratio_{n}": "log ratio",
    "relative_volume_{n}": "log(1 + ratio)",
    "on_balance_slope_{n}": "share of volume",
    "accumulation_slope_{n}": "share of volume",
    "illiquidity_{n}": "log ratio",
    "volatility_tercile_{n}": "third, −1 to 1",
    "adx_{n}": "index, −1 to 1",
    "trend_regime_{n}": "class, −1 to 1",
    "market_return_{n}": "log return",
    "market_volatility_{n}": "log return per bar",
    "breadth_50": "share, −1 to 1",
    "relative_strength_{n}": "log return",
    "beta_{n}": "slope",
    "correlation_{n}": "−1 to 1",
    "weekday": "−1 Mon to 1 Fri",
    "year_sine": "sine",
    "year_cosine": "cosine",
    "drawdown_{n}": "% of high",
    "downside_deviation_{n}": "log return per bar",
    "session_volatility": "log return",
    "session_return": "log return",
    "session_vwap_distance": "% of average",
    "world_cue": "log ratio",
}
"""What the values of an indicator count, by its pattern; a fraction that is shown in hundredths starts with %."""
_STEPPED = ("volatility_tercile_{n}", "trend_regime_{n}", "weekday")
_LINE, _UP, _DOWN, _VOLUME, _SPLIT, _DIVIDEND = "#2f81f7", "#1a9e6b", "#d9480f", "#8b949e", "#a371f7", "#d97706"
_HEADROOM = 0.12
_HALF_DAY_MS = 43_200_000
_MARGIN = {"l": 80, "r": 20, "t": 70, "b": 60}


class _Row(NamedTuple):
    """One plot of those stacked over the same sessions.

    Attributes:
        heading: HTML above it.
        unit: Title of its axis.
        pixels: Height.
        traces: Of plotly.
        axis: Further settings of its axis.
        empty: Sessions before the first value; None: there is no value.
        flags: Texts at the top of the plot, by session.
        below: Room under it, in pixels.
    """

    heading: str
    unit: str
    pixels: int
    traces: Sequence[dict[str, Any]]
    axis: Mapping[str, Any]
    empty: int | None = 0
    flags: Mapping[str, str] = {}
    below: int = 44


def draw(
    path: Path,
    store: Store,
    snapshot_id: str,
    symbol: str,
    features: tuple[str, ...],
    exchange: str = "XNYS",
    log_prices: bool = True,
) -> Path:
    """Writes one page with a symbol's raw bars, its adjusted close and features, and returns `path`.

    Features are those a panel of the whole snapshot would hold, unscaled: the value drawn at a session is known
    when it closes. The page appears whole or not at all.

    Args:
        path: Of the page; its folder is made.
        store: Where the snapshot is.
        snapshot_id: Of `Store.snapshots`.
        symbol: Which to draw.
        features: Names in the order of drawing; see `data_pipeline.features`.
        exchange: Whose sessions make the time axis.
        log_prices: Draw prices on a logarithmic axis, where equal distances are equal returns.

    Raises:
        ConfigError: plotly is not installed, a feature is unknown, or the page cannot be written.
        StoreError: The snapshot is absent, was altered, or lacks bars that a feature needs.
        UnknownSymbolError: The snapshot does not hold the symbol.
    """
    to_html, plotly_js = _plotly()
    feature_set = FeatureSet.of(features)
    facts = origin(store.snapshot(snapshot_id).manifest, exchange)
    panel = _panel(store, snapshot_id, symbol, feature_set, exchange)
    rows = [_prices(panel, log_prices), _adjusted(panel, log_prices), _volume(panel)]
    rows += [_feature_row(panel, place, feature) for place, feature in enumerate(feature_set.features)]
    figure = _figure(rows, panel.sessions)
    plot = to_html(
        figure,
        full_html=False,
        include_plotlyjs=False,
        div_id="bars",
        default_height=f"{figure['layout']['height']}px",
        config={"displayModeBar": False, "responsive": True},
        post_script=_FIT,
    )
    return _write(path, _page(panel, {"snapshot": snapshot_id, **facts}, feature_set, plot, plotly_js))


def _plotly() -> tuple[Callable[..., str], str]:
    try:
        # An optional package, and half a second.
        from plotly.io import to_html  # noqa: PLC0415
        from plotly.offline import get_plotlyjs  # noqa: PLC0415
    except ImportError as error:
        raise ConfigError("drawing needs the package plotly: pip install 'swing-rl[plots]'") from error
    return to_html, get_plotlyjs()


def _panel(store: Store, snapshot_id: str, symbol: str, feature_set: FeatureSet, exchange: str) -> Panel:
    """Returns the panel of one symbol, from its first bar to its last."""
    of_market = any({"market", "breadth"}.intersection(feature.indicator.inputs) for feature in feature_set.features)
    bars = store.read(snapshot_id, symbols=None if of_market else [symbol])
    intraday = store.read(snapshot_id, "5Min", [symbol]) if feature_set.needs_intraday else None
    panel = build_panel(bars, feature_set, exchange=exchange, intraday=intraday)
    column = panel.symbol_index(symbol)
    held = np.flatnonzero(np.isfinite(panel.fields["close"][:, column]))
    life, own = slice(held[0], held[-1] + 1), slice(column, column + 1)
    return panel.changed(
        sessions=panel.sessions[life],
        symbols=(symbol,),
        features=panel.features[life, own],
        fields={name: values[life, own] for name, values in panel.fields.items()},
    )


def _prices(panel: Panel, log_prices: bool) -> _Row:
    raw = {name: panel.fields[name][:, 0] for name in RAW}
    candles = {
        "type": "candlestick",
        "name": "raw price",
        "x": _days(panel),
        **{name: _numbers(raw[name]) for name in PRICES},
        "increasing": {"line": {"color": _UP, "width": 1}},
        "decreasing": {"line": {"color": _DOWN, "width": 1}},
        "yhoverformat": "$,.2f",
    }
    split, paid = raw["split"] != 1, raw["dividend"] > 0
    splits = _marks(panel, split, "high", "triangle-down", _SPLIT) | {"name": "split"}
    dividends = _marks(panel, paid, "low", "triangle-up", _DIVIDEND) | {"name": "dividend"}
    splits["text"] = [as_people_say(ratio) for ratio in raw["split"][split]]
    dividends["text"] = [f"${usd:,.4g} per share" for usd in raw["dividend"][paid]]
    low, high = np.nanmin(raw["low"]), np.nanmax(raw["high"])
    top = high * (high / low) ** _HEADROOM if log_prices else high + (high - low) * _HEADROOM
    axis = {**_price_axis(log_prices), "autorangeoptions": {"include": float(top)}}
    flags = dict(zip(splits["x"], splits["text"], strict=True))
    unit = "USD per share (log)" if log_prices else "USD per share"
    # Dates stand under the first plot too, for the last may be out of sight. An axis needs a trace to be drawn, and
    # the axis of that one is the first, x: on the plot of a later one, x2, the mouse would miss the candles.
    dates = {"type": "scatter", "x": _days(panel)[:1], "y": [None], "xaxis": "x", "showlegend": False}
    traces = (candles, splits, dividends, dates)
    return _Row("<b>Price</b> · raw, as traded", unit, 340, traces, axis, flags=flags, below=84)


def _marks(panel: Panel, at: npt.NDArray[np.bool_], price: str, symbol: str, colour: str) -> dict[str, Any]:
    """Returns marks on a price of some sessions, whose texts are yet to be given."""
    return {
        "type": "scatter",
        "mode": "markers",
        "x": list(compress(_days(panel), at)),
        "y": _numbers(panel.fields[price][at, 0]),
        "hovertemplate": "%{text}",
        "marker": {"symbol": symbol, "size": 8, "color": colour},
    }


def _adjusted(panel: Panel, log_prices: bool) -> _Row:
    values = panel.fields["adjusted_close"][:, 0]
    line = _line(panel, "adjusted close", values / values[0] * panel.fields["close"][0, 0], "$,.2f")
    heading = (
        f"<b>Adjusted close</b> · total return: one share of {panel.sessions[0]} with its splits, dividends reinvested"
    )
    return _Row(heading, "USD (log)" if log_prices else "USD", 150, (line,), _price_axis(log_prices))


def _price_axis(log_prices: bool) -> dict[str, Any]:
    return {"type": "log" if log_prices else "linear", "tickformat": "$,~r", "minor": {"showgrid": False}, "nticks": 3}


def _volume(panel: Panel) -> _Row:
    bars = {
        "type": "bar",
        "name": "volume",
        "x": _days(panel),
        "y": _numbers(panel.fields["volume"][:, 0]),
        "marker": {"color": _VOLUME, "line": {"width": 0}},
        "hovertemplate": "%{y:.4~s} shares",
        "showlegend": False,
    }
    axis = {"rangemode": "tozero", "tickformat": "~s"}
    return _Row("<b>Volume</b> · raw, as traded", "shares", 100, (bars,), axis)


def _feature_row(panel: Panel, place: int, feature: Feature) -> _Row:
    values = panel.features[:, 0, place]
    known = np.flatnonzero(np.isfinite(values))
    unit = UNITS[feature.indicator.pattern]
    form = (".2%", ".2~%") if unit.startswith("%") else (".4~g", "~g")
    line = _line(panel, feature.name, values, form[0])
    if feature.timeframe == "week" or feature.indicator.pattern in _STEPPED:
        line["line"]["shape"] = "hv"
    heading = f"<b>{feature.name}</b> · {feature.group} · {_known(feature)} · {_warm_up(feature)}"
    empty = int(known[0]) if len(known) else None
    return _Row(heading, unit, 130, (line,), {"tickformat": form[1], "nticks": 6}, empty)


def _line(panel: Panel, name: str, values: npt.NDArray[Any], hover: str) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": _days(panel),
        "y": _numbers(values),
        "line": {"color": _LINE, "width": 1.4},
        "hovertemplate": f"%{{y:{hover}}}",
        "showlegend": False,
    }


def _known(feature: Feature) -> str:
    return "as of the close" if feature.indicator.known_at == "close" else "known at the open"


def _warm_up(feature: Feature) -> str:
    bar = {"day": "session", "week": "week", "hour": "hourly bar", "5min": "5-minute bar"}[feature.timeframe]
    return f"warm-up {count(feature.warm_up, bar)}" if feature.warm_up else "no warm-up"


def _days(panel: Panel) -> list[str]:
    return [str(day) for day in panel.sessions]


def _numbers(values: npt.NDArray[Any]) -> list[float | None]:
    """Plain numbers for JSON, null where there is none: scripts in the page read them too."""
    return pl.Series(values).cast(pl.Float64).round_sig_figs(7).fill_nan(None).to_list()


def _figure(rows: Sequence[_Row], sessions: Sessions) -> dict[str, Any]:
    plotted = sum(row.pixels + row.below for row in rows) - rows[-1].below
    axes: dict[str, Any] = {}
    traces, notes, shapes, top = [], [], [], plotted
    for number, row in enumerate(rows, 1):
        axis = "y" if number == 1 else f"y{number}"
        domain = [max(0.0, (top - row.pixels) / plotted), top / plotted]
        axes[axis.replace("y", "yaxis")] = _y_axis(row, domain)
        traces += [{"xaxis": "x2", **trace, "yaxis": axis} for trace in row.traces]
        notes += [_heading(row, domain[1]), *_flags(row, axis)]
        shapes += [*_shade(row, axis, sessions), *_flag_lines(row, axis)]
        top -= row.pixels + row.below
    time = _time_axis(sessions)
    layout = {
        "template": "none",
        "height": plotted + _MARGIN["t"] + _MARGIN["b"],
        "margin": _MARGIN,
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12},
        "legend": {"orientation": "h", "x": 1, "xanchor": "right", "y": 1 + 4 / plotted, "yanchor": "bottom"},
        "hovermode": "x unified",
        "hoversubplots": "axis",
        "hoverlabel": {"bgcolor": "#ffffff", "font": {"color": "#1f2328"}},
        "bargap": 0.1,
        "xaxis": {**time, "anchor": "y", "matches": "x2", "showgrid": False},
        "xaxis2": {**time, "anchor": axis, "showgrid": True, "rangeselector": _range_selector(plotted)},
        **axes,
        "annotations": notes,
        "shapes": shapes,
    }
    return {"data": traces, "layout": layout}


def _time_axis(sessions: Sessions) -> dict[str, Any]:
    """Days that are no sessions take no room on it."""
    first, last = sessions[[0, -1]].astype("datetime64[ms]").astype(np.int64).tolist()
    bounds = {"minallowed": first - _HALF_DAY_MS, "maxallowed": last + _HALF_DAY_MS}
    return {
        "type": "date",
        "title": {"text": "Session (date)", "standoff": 10},
        **bounds,
        "autorangeoptions": bounds,  # by itself it may cut sessions where days are left out
        "rangeslider": {"visible": False},
        "rangebreaks": _breaks(sessions),
        "tickformatstops": [
            {"dtickrange": [None, "M1"], "value": "%Y-%m-%d"},
            {"dtickrange": ["M1", "M12"], "value": "%Y-%m"},
            {"dtickrange": ["M12", None], "value": "%Y"},
        ],
        "hoverformat": "%A %Y-%m-%d",
        "spikethickness": 1,
        "spikecolor": _VOLUME,
    }


def _range_selector(plotted: int) -> dict[str, Any]:
    steps = [(1, "month"), (3, "month"), (6, "month"), (1, "year"), (5, "year")]
    buttons = [{"count": n, "step": step, "stepmode": "backward", "label": count(n, step)} for n, step in steps]
    return {
        "buttons": [*buttons, {"step": "all", "label": "all"}],
        "x": 0,
        "y": 1 + 34 / plotted,
        "bgcolor": "rgba(128,128,128,.12)",
        "activecolor": "rgba(47,129,247,.35)",
    }


def _breaks(sessions: Sessions) -> list[dict[str, Any]]:
    closed = np.setdiff1d(np.arange(sessions[0], sessions[-1]), sessions)
    if np.is_busday(sessions).all():  # the usual weekend as one rule: the page redraws twice as fast
        return [{"bounds": ["sat", "mon"]}, {"values": [str(day) for day in closed[np.is_busday(closed)]]}]
    return [{"values": [str(day) for day in closed]}]


def _y_axis(row: _Row, domain: list[float]) -> dict[str, Any]:
    return {
        "title": {"text": row.unit, "standoff": 8},
        "domain": domain,
        "fixedrange": True,  # dragging chooses sessions; `_FIT` then fits the values
        "automargin": True,
        "zeroline": False,
        "showticklabels": row.empty is not None,
        **row.axis,
    }


def _heading(row: _Row, top: float) -> dict[str, Any]:
    missing = " · <b>no value: the history is shorter than the warm-up</b>" if row.empty is None else ""
    return {
        "text": row.heading + missing,
        "xref": "paper",
        "yref": "paper",
        "x": 0,
        "y": top,
        "xanchor": "left",
        "yanchor": "bottom",
        "align": "left",
        "showarrow": False,
    }


def _flags(row: _Row, axis: str) -> list[dict[str, Any]]:
    place = {"yref": f"{axis} domain", "y": 1, "xanchor": "left", "yanchor": "top", "showarrow": False}
    return [{"x": day, "text": text, **place} for day, text in row.flags.items()]


def _flag_lines(row: _Row, axis: str) -> list[dict[str, Any]]:
    line = {"type": "line", "y0": 0, "y1": 1, "yref": f"{axis} domain", "layer": "below"}
    return [{"x0": day, "x1": day, **line, "line": {"color": _SPLIT, "width": 1, "dash": "dot"}} for day in row.flags]


def _shade(row: _Row, axis: str, sessions: Sessions) -> list[dict[str, Any]]:
    if row.empty == 0:
        return []
    end = sessions[-1 if row.empty is None else row.empty]
    place = {"type": "rect", "x0": str(sessions[0]), "x1": str(end), "y0": 0, "y1": 1, "yref": f"{axis} domain"}
    return [{**place, "fillcolor": "rgba(128,128,128,.25)", "line": {"width": 0}, "layer": "below"}]


def _page(panel: Panel, facts: Mapping[str, str], feature_set: FeatureSet, plot: str, plotly_js: str) -> str:
    symbol = escape(panel.symbols[0])
    span = f"{count(len(panel.sessions), 'session')}, {panel.sessions[0]} to {panel.sessions[-1]}"
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in facts.items())
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{symbol}: bars and features</title><style>{_STYLE}</style><script>{plotly_js}</script></head><body>"
        f"<main><header><h1>{symbol}</h1><p>{span}</p><dl>{items}</dl></header>"
        "<section><p>A value drawn at a session uses bars up to its close. Shaded: warm-up, no value yet. "
        "Choose a span with the buttons or by dragging; a double click shows all.</p>"
        f'<div class="scroll"><figure>{plot}</figure></div></section>'
        f"<section><h2>Features</h2>{_feature_table(feature_set)}</section></main></body></html>"
    )


def _feature_table(feature_set: FeatureSet) -> str:
    head = ("Feature", "Meaning", "Unit", "Known", "Warm-up", "Looks back, sessions")
    rows = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in _feature_cells(feature)) + "</tr>"
        for feature in feature_set.features
    )
    heading = "".join(f'<th scope="col">{name}</th>' for name in head)
    return (
        f'<div class="scroll"><table id="features"><thead><tr>{heading}</tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _feature_cells(feature: Feature) -> tuple[str, ...]:
    meaning = (feature.indicator.compute.__doc__ or "").partition("\n")[0]
    unit = UNITS[feature.indicator.pattern]
    warm_up = _warm_up(feature).removeprefix("warm-up ")
    return (feature.name, meaning, unit, _known(feature), warm_up, f"{feature.look_back:,}")


def _write(path: Path, text: str) -> Path:
    scratch = path.with_name(f".{path.name}.writing")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(text, encoding="utf-8")
        return scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise ConfigError(f"{path}: cannot be written ({error.strerror}); choose another file") from error


_FIT = """
const plot = document.getElementById('{plot_id}');
plot.on('plotly_relayout', change => {
  if (!Object.keys(change).some(key => key.startsWith('xaxis2.'))) return;
  const [from, to] = plot.layout.xaxis2.range;
  for (const name of Object.keys(plot.layout).filter(key => key.startsWith('yaxis'))) {
    const axis = plot.layout[name];
    let low = Infinity, high = -Infinity;
    for (const trace of plot.data.filter(trace => trace.yaxis === name.replace('axis', ''))) {
      trace.x.forEach((day, at) => {
        const bottom = (trace.low || trace.y)[at], top = (trace.high || trace.y)[at];
        if (day < from || day > to || bottom === null) return;
        low = Math.min(low, bottom);
        high = Math.max(high, top);
      });
    }
    if (low > high) continue;
    if (axis.rangemode === 'tozero') low = 0;
    if (axis.type === 'log') [low, high] = [Math.log10(low), Math.log10(high)];
    const margin = 0.06 * (high - low) || 0.05 * Math.abs(high) || 1;
    const top = axis.autorangeoptions ? 3 * margin : margin;
    axis.range = [axis.rangemode === 'tozero' ? 0 : low - margin, high + top];
    axis.autorange = false;
  }
  Plotly.redraw(plot);  // not relayout: it would leave the axis titles where wider numbers now stand
});
"""
"""In the page: after another span of sessions was chosen, each plot shows its values of that span in full height."""

_STYLE = """
:root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; }
@media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --soft: #9198a1; --line: #3d444d; } }
body { margin: 0; background: var(--page); color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 80rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0; }
h2 { font-size: 1.25rem; margin: 0 0 .25rem; }
header p, section > p { margin: .25rem 0 .75rem; color: var(--soft); }
section { margin-top: 1.5rem; }
figure { margin: 0; min-width: 44rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .9375rem; }
th, td { padding: .35rem .6rem; text-align: left; border-bottom: 1px solid var(--line); }
th { font-weight: 400; color: var(--soft); }
th:last-child, td:last-child { text-align: right; }
td:not(:nth-child(2)) { white-space: nowrap; }
td:nth-child(2) { min-width: 14rem; }
dl { display: flex; flex-wrap: wrap; gap: .5rem 2rem; margin: 0; font-size: .9375rem; }
dt { color: var(--soft); font-size: .8125rem; } dd { margin: 0; overflow-wrap: anywhere; }
.main-svg [class$=tick] text, .main-svg .infolayer text {
  fill: var(--ink) !important; }
.main-svg .gridlayer path { stroke: var(--line) !important; }
"""
