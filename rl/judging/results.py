"""A sweep as people and programs look at it, finished or as far as it got, and its page."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import plotly.graph_objects as go

from data_pipeline.clearance import Clearance, kept_clearance
from data_pipeline.config import Config
from data_pipeline.errors import RunError
from rl.config import Axis, RunConfig
from rl.judging.pages import (
    BAR_PX,
    BLUE,
    COLOURS,
    DIVERGING,
    alarm,
    causality,
    colour_bar,
    drawing,
    facts,
    fold_names,
    fold_ratios,
    is_spread,
    page,
    paragraph,
    plot_section,
    section,
    suspicion,
    table,
    trials_table,
    write,
)
from rl.judging.place import Place, parent
from rl.judging.trial_ledger import TrialLedger
from rl.judging.tune import Sweep, Trial, read_sweep, trial_of

STATUSES = ("finished", "stopped early", "running or abandoned", "failed")
_TICKS = 5
_AXIS_PX, _LETTER_PX = 130, 8
_NOTHING_SEARCHED = "no setting was searched, so there is one configuration"


class Results(Config):
    """A sweep and its record."""

    sweep: Sweep
    """What is known of it; of one that is not finished, what its ledger holds so far."""
    finished: bool
    """Whether every configuration that it was to try is done."""
    unended: tuple[int, ...]
    """Numbers of the trials that have no end on record: they run, or were abandoned."""
    ledger: str
    """Where the trial ledger is."""
    tried: int
    """N: trials with a score in the whole project."""
    recorded: int
    """Trials of this sweep in the ledger."""
    head: str
    """Number and hash of the ledger's newest entry now."""
    tensorboard: str
    """Folder of TensorBoard's files, on the node that ran the sweep."""

    def status(self, trial: Trial) -> str:
        """Returns one of `STATUSES`."""
        if trial.number in self.unended:
            return STATUSES[2]
        return STATUSES[1] if trial.status == "stopped" else trial.status

    @property
    def counts(self) -> dict[str, int]:
        """Status -> number of trials, of those that occur."""
        found = Counter(map(self.status, self.sweep.trials))
        return {status: found[status] for status in STATUSES if found[status]}

    @property
    def warnings(self) -> dict[str, str]:
        """Name -> sentence on what is missing."""
        trials, found = self.sweep.trials, dict[str, str]()
        if not self.finished:
            done = sum(len(trial.folds) for trial in trials)
            found["unfinished"] = (
                f"this sweep is not finished; it is shown as far as it got: {len(trials)} configurations begun, {done} "
                "trainings scored. If it does not run any more, `swing-rl tune --resume` goes on with it."
            )
        if self.recorded != len(trials):
            found["unrecorded"] = (
                f"the trial ledger in {self.ledger} holds {self.recorded} trials of this sweep, the sweep itself "
                f"{len(trials)}: look whether the ledger was moved or removed, for a verdict counts what it holds."
            )
        return found

    def facts(self) -> dict[str, Any]:
        """Returns everything, JSON-ready: the sweep's own tree, and beside it what its record says."""
        return {
            **self.sweep.tree(),
            "finished": self.finished,
            "counts": self.counts,
            "unended": list(self.unended),
            "ledger": {"place": self.ledger, "count": self.tried, "in_sweep": self.recorded, "head": self.head},
            "tensorboard": self.tensorboard,
        }


def read_results(root: str) -> Results:
    """Returns the results of the sweep in `root`, a folder or URI.

    Raises:
        RunError: There is no sweep, or its ledger is damaged.
    """
    place = Place(root)
    finished = place.read("sweep.json") is not None
    sweep = read_sweep(root) if finished else _begun(place)
    ledger = TrialLedger(sweep.project)
    records = ledger.trials(sweep.id)
    return Results(
        sweep=sweep,
        finished=finished,
        unended=tuple(record.began.trial for record in records if record.ended is None),
        ledger=ledger.place,
        tried=ledger.count(),
        recorded=len(records),
        head=ledger.head().text,
        tensorboard=str(place.folder / "ray"),
    )


def _begun(place: Place) -> Sweep:
    """Returns a sweep that is not finished, from its settings and the ledger."""
    text = place.read("config.json")
    if text is None:
        raise RunError(f"{place.root}: holds no sweep; begin one with `swing-rl tune --out {place.root}`")
    try:
        head = json.loads(text)
        name, config = str(head["sweep"]), RunConfig.of(head["config"], f"{place.root}/config.json")
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{place.root}/config.json: is not readable ({error}); sweep again in another place") from error
    project = str(head.get("project") or parent(place.root))
    ledger = TrialLedger(project)
    records = ledger.trials(name)
    began = records[0].began if records else None
    panel = "" if began is None else str(config.data.panels / began.panel)
    return Sweep(
        id=name,
        project=project,
        config=config,
        panel=panel,
        clearance=(kept_clearance(Path(panel), config.data) if panel else None)
        or Clearance(forced=not config.data.audit),
        folds=(config.folds.count or 0) if began is None else len(began.folds),
        trials=tuple(sorted(map(trial_of, records), key=_order)),
        ledger_head=ledger.head().text,
    )


def _order(trial: Trial) -> tuple[bool, bool, float]:
    """Sorts finished trials first, the best of them on top."""
    return trial.score is None, trial.status != "finished", -(trial.score or 0.0)


def write_results(path: Path, results: Results) -> Path:
    """Writes the page of a sweep, whole or not at all, and returns `path`."""
    sweep = results.sweep
    scored = [trial for trial in sweep.trials if trial.score is not None]
    best = f"in the folds' test spans for {scored[0].label}" if scored else ""
    sections = (
        causality(sweep.clearance),
        *(alarm(name, says) for name, says in results.warnings.items()),
        suspicion(scored[0].score or 0.0, best) if scored else "",
        _status_section(results),
        *(_plot_sections(results, scored) if scored else ()),
        _table_section(results),
        _record_section(results),
    )
    subtitle = (
        f"{len(sweep.trials)} configurations on {sweep.folds} walk-forward folds"
        f"{', ' + str(sweep.config.tune.seeds) + ' seeds each' if sweep.config.tune.seeds > 1 else ''}. "
        "The score is the Sharpe ratio per year of the test spans of all folds in one series, net of costs."
    )
    return write(path, page(f"Sweep {sweep.id}", subtitle, sections))


def _status_section(results: Results) -> str:
    rows = [(status, str(count)) for status, count in results.counts.items()]
    failed = [trial for trial in results.sweep.trials if trial.error and trial.number not in results.unended]
    errors = [(f"#{trial.number}", trial.label, trial.error or "") for trial in failed]
    return section(
        "Status",
        table("statuses", ("Status", "Configurations"), rows) if rows else paragraph("Nothing was begun yet."),
        f"<h3>What failed</h3>{table('errors', ('Number', 'Configuration', 'Error'), errors)}" if errors else "",
    )


def _plot_sections(results: Results, scored: Sequence[Trial]) -> Iterable[str]:
    space = results.sweep.config.tune.space
    if space:
        axes = [*(dimension(path, axis, scored) for path, axis in space.items()), _score_dimension(scored)]
        yield plot_section(
            "parallel",
            "Settings and score",
            "Each line is a configuration; it crosses every axis at its setting and ends at its score. The bluer, the "
            f"better; the thick one is the best. {_left_out(results, scored)}",
            _parallel(axes, scored),
            least_width=_axis_px(axes) * len(axes),
        )
    else:
        yield section("Settings and score", paragraph(f"There is no such plot: {_NOTHING_SEARCHED}."))
    yield plot_section("scores", "Score by configuration", _scores_caption(scored), _scores(scored))
    yield plot_section(
        "folds",
        "Folds",
        "Sharpe ratio per year of each configuration on each fold's test span: blue above zero, orange below, grey "
        "near zero, no colour where it was not trained. The best is on top.",
        _fold_map(results.sweep.trials),
    )


def _left_out(results: Results, scored: Sequence[Trial]) -> str:
    missing = len(results.sweep.trials) - len(scored)
    return f"Left out for want of a score: {missing}." if missing else ""


class Dimension(NamedTuple):
    """One axis of the parallel coordinates, from 0 at the bottom to 1 at the top."""

    name: str
    """HTML."""
    places: tuple[float, ...]
    """Of each configuration."""
    ticks: dict[str, float]
    """Text -> place."""


def dimension(path: str, axis: Axis, trials: Sequence[Trial]) -> Dimension:
    """Returns the axis of a setting: listed values at equal distances, ranges as they are drawn from."""
    values = [trial.values[path] for trial in trials]
    group, _, name = path.rpartition(".")
    label = f"{escape(group)}.<br>{escape(name)}" if group else escape(name)
    if axis.listed:
        texts = list(dict.fromkeys(map(_text, axis.listed)))
        room = max(len(texts) - 1, 1)
        ticks = {text: place / room for place, text in enumerate(texts)}
        return Dimension(label, tuple(ticks[_text(value)] for value in values), ticks)
    low, high = map(float, axis.extremes)
    logarithmic = axis.loguniform is not None
    numbers = [float(value) for value in values]
    ticks = _ticks(low, high, logarithmic, whole=axis.integer is not None)
    scaled = tuple(_place(number, low, high, logarithmic) for number in numbers)
    return Dimension(f"{label}<br>(log scale)" if logarithmic else label, scaled, ticks)


def _score_dimension(trials: Sequence[Trial]) -> Dimension:
    scores = [trial.score or 0.0 for trial in trials]
    low, high = min(scores), max(scores)
    if high - low < 0.01:
        low, high = low - 0.5, high + 0.5
    ticks = {f"{value:.2f}": _place(value, low, high) for value in np.linspace(low, high, _TICKS)}
    return Dimension("Sharpe ratio<br>per year", tuple(_place(score, low, high) for score in scores), ticks)


def _ticks(low: float, high: float, logarithmic: bool, *, whole: bool) -> dict[str, float]:
    between = np.geomspace(low, high, _TICKS) if logarithmic else np.linspace(low, high, _TICKS)
    values = [float(round(value)) if whole else float(f"{value:.2g}") for value in between[1:-1]]
    return {_text(value): _place(value, low, high, logarithmic) for value in dict.fromkeys([low, *values, high])}


def _place(value: float, low: float, high: float, logarithmic: bool = False) -> float:
    if low == high:
        return 0.5
    if logarithmic:
        value, low, high = np.log10([value, low, high]).tolist()
    return (value - low) / (high - low)


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _axis_px(axes: Sequence[Dimension]) -> int:
    """Returns the room that the widest name or tick needs."""
    texts = [text for axis in axes for text in (*axis.name.split("<br>"), *axis.ticks)]
    return max(_AXIS_PX, _LETTER_PX * max(map(len, texts)) + 20)


def _parallel(axes: Sequence[Dimension], trials: Sequence[Trial]) -> go.Figure:
    """Returns parallel coordinates as plain lines: they print, and need no WebGL."""
    score = axes[-1].places
    worst_first = sorted(range(len(trials)), key=lambda number: score[number])
    lines = [
        go.Scatter(
            x=list(range(len(axes))),
            y=[axis.places[number] for axis in axes],
            mode="lines+markers",
            line={
                "color": _shade(score[number]),
                "width": 3.2 if number == worst_first[-1] else 1.4,
                "simplify": False,
            },
            marker={"size": 6},
            hovertemplate=f"{_hover(trials[number])}<extra></extra>",
        )
        for number in worst_first
    ]
    levels = max(len(axis.ticks) for axis in axes)
    figure = drawing(lines, max(420, 140 + 22 * levels), "", "").update_layout(showlegend=False, hovermode="closest")
    figure.update_layout(margin={"l": 10, "r": 10, "t": 80, "b": 20}, annotations=_tick_texts(axes))
    figure.update_yaxes(visible=False, range=[-0.06, 1.06])
    return figure.update_xaxes(
        side="top",
        tickvals=list(range(len(axes))),
        ticktext=[axis.name for axis in axes],
        range=[-0.5, len(axes) - 0.5],
        showgrid=True,
        zeroline=False,
        tickangle=0,
        title=None,
    )


def _tick_texts(axes: Sequence[Dimension]) -> list[dict[str, Any]]:
    return [
        {
            "x": number,
            "y": place,
            "text": escape(text),
            "showarrow": False,
            "xanchor": "left",
            "xshift": 6,
            "bgcolor": "rgba(0,0,0,0)",
        }
        for number, axis in enumerate(axes)
        for text, place in axis.ticks.items()
    ]


def _shade(place: float) -> str:
    """Returns a colour from orange at 0 over grey to blue at 1."""
    ends = ((217, 72, 15), (139, 148, 158), (47, 129, 247))
    low, high, part = (ends[0], ends[1], place * 2) if place < 0.5 else (ends[1], ends[2], place * 2 - 1)
    return "rgb({},{},{})".format(*(round(a + (b - a) * part) for a, b in zip(low, high, strict=True)))


def _hover(trial: Trial) -> str:
    settings = "<br>".join(f"{escape(path)} = {escape(_text(value))}" for path, value in trial.values.items())
    return "<br>".join(filter(None, [f"#{trial.number}", settings, f"Sharpe ratio {trial.score or 0.0:.2f}"]))


def _scores_caption(scored: Sequence[Trial]) -> str:
    seeds = (
        "The point is the median over seeds, the bar reaches from the lower to the upper quartile."
        if any(is_spread(trial) for trial in scored)
        else "Each was trained with one seed, so nothing says how much of a score is the seed's."
    )
    return f"The best first. {seeds} One that was stopped early is scored on fewer folds."


def _scores(scored: Sequence[Trial]) -> go.Figure:
    kinds = (("finished", "finished", BLUE, "circle"), ("stopped", "stopped early", COLOURS[0], "x"))
    points = [
        _score_points(name, alike, colour, mark)
        for status, name, colour, mark in kinds
        if (alike := [trial for trial in scored if trial.status == status])
    ]
    figure = drawing(points, 380, "Configuration (number)", "Sharpe ratio (per year)")
    figure.update_layout(hovermode="closest", showlegend=len(points) > 1)
    order = [f"#{trial.number}" for trial in scored]
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=order)
    return figure.update_yaxes(tickformat=".2f", nticks=8)


def _score_points(name: str, trials: Sequence[Trial], colour: str, mark: str) -> go.Scatter:
    scores = [trial.score or 0.0 for trial in trials]
    ends = [trial.quartiles or (score, score) for score, trial in zip(scores, trials, strict=True)]
    bars: dict[str, Any] = {
        "type": "data",
        "symmetric": False,
        "array": [high - score for score, (_, high) in zip(scores, ends, strict=True)],
        "arrayminus": [score - low for score, (low, _) in zip(scores, ends, strict=True)],
        "visible": any(map(is_spread, trials)),
    }
    return go.Scatter(
        x=[f"#{trial.number}" for trial in trials],
        y=scores,
        mode="markers",
        name=name,
        marker={"color": colour, "symbol": mark, "size": 9},
        error_y=bars,
        hovertext=list(map(_hover, trials)),
        hoverinfo="text",
    )


def _fold_map(trials: Sequence[Trial]) -> go.Figure:
    trained = [trial for trial in trials if trial.folds]
    folds = fold_names(trained)
    ratios = [[fold_ratios(trial).get(fold) for fold in folds] for trial in trained]
    bound = max((abs(ratio) for row in ratios for ratio in row if ratio is not None), default=0.0) or 1.0
    heat = go.Heatmap(
        x=folds,
        y=[f"#{trial.number}" for trial in trained],
        z=ratios,
        zmin=-bound,
        zmax=bound,
        colorscale=_GREY_AT_ZERO,
        xgap=1,
        ygap=1,
        colorbar=colour_bar("Sharpe ratio (per year)", ".1f"),
        hovertemplate="%{y} on %{x}: %{z:.2f}<extra></extra>",
        hoverongaps=False,
    )
    height = max(260, 90 + (26 if len(trained) <= 40 else 12) * len(trained)) + BAR_PX
    figure = drawing([heat], height, "Fold (its test span, oldest first)", "Configuration (number)")
    figure.update_layout(hovermode="closest", margin_b=60 + BAR_PX).update_xaxes(type="category")
    return figure.update_yaxes(type="category", autorange="reversed", showgrid=False)


_GREY_AT_ZERO = (DIVERGING[0], (0.5, "rgba(128,128,128,0.22)"), DIVERGING[2])


def _table_section(results: Results) -> str:
    if not results.sweep.trials:
        return ""
    return section(
        "Configurations",
        paragraph("Sharpe ratio per year, net of costs; of several seeds the median."),
        trials_table(results.sweep.trials, results.status),
    )


def _record_section(results: Results) -> str:
    sweep = results.sweep
    record = {
        "Scored trials in the whole project (N)": str(results.tried),
        "Trials of this sweep in the ledger": str(results.recorded),
        "Trial ledger": results.ledger,
        "Its head": results.head,
        "Check the ledger": f"swing-rl ledger verify {sweep.project} --known {results.head}",
        "TensorBoard, on the node that ran the sweep": f"tensorboard --logdir {results.tensorboard}",
        "Panel": sweep.panel or "not built yet",
        "Causality": sweep.clearance.says,
        "Settings": f"sha256 {sweep.config.digest()}",
    }
    return section(
        "Record",
        paragraph(
            "Every trial that was ever scored in the project is in its ledger, failed and stopped ones too: the more "
            "there are, the better the best of them looks by luck alone. The best one is a candidate, no more; "
            "`swing-rl validate` judges it."
        ),
        facts(record),
    )
