"""What `swing-rl` shows a person: a live line for long work, and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
    from rl.judging.tune import Sweep
    from rl.judging.validate import Validation
    from rl.learning.train import Progress as Iteration


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
            note = f"return {returned} per episode, entropy {iteration.entropy:.2f}"
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
    """Returns all trials with their validation figures, best first."""
    folds = [f"fold-{i + 1}" for i in range(sweep.folds)]
    table = Table("configuration", *folds, "all folds", title="Validation Sharpe ratio, net of costs")
    for trial in sweep.trials:
        by_fold = {score.fold: f"{score.sharpe:.2f}" for score in trial.folds}
        score = trial.error or "failed" if trial.score is None else f"{trial.score:.2f}"
        table.add_row(trial.label, *(by_fold.get(fold, "–") for fold in folds), score)
    return table


def validation_table(validation: Validation) -> Table:
    """Returns the policy against its baselines on the test window."""
    table = Table(title=f"Test window {validation.test['test']}, net of costs, never trained on")
    for heading in ("", "return", "Sharpe ± SE", "max drawdown", "turnover / year", "costs paid"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=not heading)
    for f in validation.figures:
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
