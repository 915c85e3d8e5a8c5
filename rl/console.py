"""What `swing-rl` shows a person: a live line for long work, and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

if TYPE_CHECKING:
    from rl.judging.metrics import Figures
    from rl.judging.tune import Sweep
    from rl.judging.validate import Validation
    from rl.learning.train import Progress as Iteration

MOST_FOLD_COLUMNS = 6


@contextmanager
def training_bar(console: Console, title: str) -> Iterator[Callable[[Iteration], None]]:
    """Yields a function that shows each training iteration on one live line."""
    with _bar(console) as bar:
        task = bar.add_task(title, total=None, note="starting workers")

        returned = "–"  # episodes end together, so most iterations have no new return to show

        def show(iteration: Iteration) -> None:
            nonlocal returned
            if iteration.episode_return is not None:
                returned = f"{iteration.episode_return:+.1f} %"
            figures = iteration.figures
            parts = [f"return {returned} per episode", f"entropy {iteration.entropy:.2f}"]
            parts += [f"{figures['steps_per_second']:,.0f} steps/s", f"staleness {figures['staleness']:.1f}"]
            lost = figures["workers_lost"]
            note = ", ".join([*parts, f"{lost:.0f} workers lost"] if lost else parts)
            bar.update(task, total=iteration.steps_wanted, completed=iteration.steps, note=note)

        yield show


@contextmanager
def sweep_bar(console: Console, title: str) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows (trainings done, trainings in all) on one live line."""
    with _bar(console) as bar:
        task = bar.add_task(title, total=None, note="starting trials")

        def show(done: int, total: int) -> None:
            bar.update(task, total=total, completed=done, note="configuration × fold")

        yield show


def sweep_table(sweep: Sweep) -> Table:
    """Returns all trials with their out-of-sample figures, best first."""
    columns = _fold_columns(sweep)
    table = Table("configuration", *columns, "all folds", title="Out-of-sample Sharpe ratio, net of costs")
    for row, trial in enumerate(sweep.trials):
        score = trial.error or "failed" if trial.score is None else f"{trial.score:.2f}"
        table.add_row(trial.label, *(cells[row] for cells in columns.values()), score)
    return table


def _fold_columns(sweep: Sweep) -> dict[str, list[str]]:
    """Returns heading -> one cell for each trial: the folds, or their extremes if they would not fit on a line."""
    scores = [{score.fold: score.sharpe for score in trial.folds} for trial in sweep.trials]
    if sweep.folds <= MOST_FOLD_COLUMNS:
        names = [f"fold-{number}" for number in range(1, sweep.folds + 1)]
        return {name: [f"{found[name]:.2f}" if name in found else "–" for found in scores] for name in names}
    summaries: dict[str, Callable[[Iterable[float]], float]] = {"worst fold": min, "median": median, "best fold": max}
    return {
        name: [f"{summary(found.values()):.2f}" if found else "–" for found in scores]
        for name, summary in summaries.items()
    }


def validation_table(validation: Validation) -> Table:
    """Returns the policy against its baselines on the holdout."""
    return figures_table(validation.figures, f"Holdout {validation.spans['holdout']}, net of costs, never trained on")


def figures_table(figures: Iterable[Figures], title: str) -> Table:
    """Returns accounts side by side, one a row."""
    table = Table(title=title)
    for heading in ("", "return", "Sharpe ± SE", "max drawdown", "turnover / year", "costs paid"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=not heading)
    for f in figures:
        table.add_row(
            f.name,
            f"{f.total_return:+.1%}",
            f"{f.sharpe:.2f}" + ("" if f.sharpe_error is None else f" ± {f.sharpe_error:.2f}"),
            f"{f.max_drawdown:.1%}",
            f"{f.turnover_per_year:.1f}×",
            f"${f.cost_usd:,.0f}",
        )
    return table


def _bar(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
    )
