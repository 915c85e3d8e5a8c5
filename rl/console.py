"""What `swing-rl` shows a person: a live line for long work, and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from statistics import median
from typing import TYPE_CHECKING

from rich.console import Console
from rich.markup import escape
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
    from rl.judging.evidence import Evidence
    from rl.judging.metrics import Figures
    from rl.judging.registry import Listed
    from rl.judging.results import Results
    from rl.judging.trial_ledger import TrialRecord
    from rl.judging.tune import Sweep, Trial
    from rl.judging.validate import Validation
    from rl.learning.train import Progress as Iteration

MOST_FOLD_COLUMNS = 6


@contextmanager
def training_bar(console: Console, title: str) -> Iterator[Callable[[Iteration], None]]:
    """Yields a function that shows each training iteration on one live line."""
    with _bar(console) as bar:
        yield _training(bar, title)


@contextmanager
def judging_bar(console: Console) -> Iterator[tuple[Callable[[Iteration], None], Callable[[int, int], None]]]:
    """Yields functions that show the candidate's training, and (twins done, twins in all), a live line each."""
    with _bar(console) as bar:
        show = _training(bar, "training the candidate")
        task = bar.add_task("zero-skill twins", total=None, note="waiting")

        def show_twins(done: int, total: int) -> None:
            bar.update(task, total=total, completed=done, note="trainings")

        yield show, show_twins


def _training(bar: Progress, title: str) -> Callable[[Iteration], None]:
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

    return show


@contextmanager
def audit_bar(console: Console) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows (sessions audited, sessions in all) on one live line, which is gone at the end."""
    with _bar(console, transient=True) as bar:
        yield _audit(bar)


def _audit(bar: Progress) -> Callable[[int, int], None]:
    task = bar.add_task("leakage audit", total=None, visible=False, note="sessions whose future is altered")
    return lambda done, total: bar.update(task, total=total, completed=done, visible=done < total)


@contextmanager
def sweep_bar(console: Console, title: str) -> Iterator[tuple[Callable[[int, int], None], Callable[[int, int], None]]]:
    """Yields functions that show (trainings done, trainings in all), and the panel's audit before, a live line each."""
    with _bar(console) as bar:
        show_audit = _audit(bar)
        task = bar.add_task(title, total=None, note="starting trials")

        def show(done: int, total: int) -> None:
            bar.update(task, total=total, completed=done, note="configuration × fold")

        yield show, show_audit


def sweep_table(sweep: Sweep, status: Callable[[Trial], str] = lambda trial: trial.status) -> Table:
    """Returns all trials with their out-of-sample figures, best first.

    Args:
        sweep: Finished, or as far as it got.
        status: What became of a trial.
    """
    from rl.judging.pages import is_spread  # noqa: PLC0415

    columns = _fold_columns(sweep)
    several = any(is_spread(trial) for trial in sweep.trials)
    table = Table("configuration", "status", *columns, "all folds", title="Out-of-sample Sharpe ratio, net of costs")
    if several:
        table.add_column("quartiles over seeds")
    for row, trial in enumerate(sweep.trials):
        said = status(trial)
        said += f": {trial.error}" if trial.error and said == trial.status else ""
        cells = [escape(trial.label), escape(said), *(cells[row] for cells in columns.values())]
        cells.append("–" if trial.score is None else f"{trial.score:.2f}")
        if several:
            cells.append("–" if trial.quartiles is None else "{:.2f} .. {:.2f}".format(*trial.quartiles))
        table.add_row(*cells)
    return table


def print_results(console: Console, results: Results) -> None:
    """Prints a sweep with its record, and says so if it is not finished."""
    sweep = results.sweep
    console.print(sweep_table(sweep, results.status))
    counted = ", ".join(f"{count} {status}" for status, count in results.counts.items())
    console.print(f"{sweep.id}: {len(sweep.trials)} configurations: {counted or 'none begun'}", markup=False)
    if sweep.clearance.suspect:
        console.print(f"NOT AUDITED: {sweep.clearance.says}", style="bold red", markup=False)
    for warning in results.warnings.values():
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    record = f"{results.recorded} trials of this sweep, N = {results.tried} scored trials in all sweeps"
    console.print(f"ledger: {record}; head {results.head}", markup=False, soft_wrap=True)
    console.print(f"TensorBoard: tensorboard --logdir {results.tensorboard}", markup=False, soft_wrap=True)


def _fold_columns(sweep: Sweep) -> dict[str, list[str]]:
    """Returns heading -> one cell for each trial: the folds, or their extremes if they would not fit on a line."""
    from rl.judging.pages import fold_ratios  # noqa: PLC0415

    scores = [fold_ratios(trial) for trial in sweep.trials]
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


def evidence_table(evidence: Evidence) -> Table:
    """Returns the winner against its baselines on the folds' test spans."""
    title = f"Out of sample {evidence.first_session} .. {evidence.last_session}, all folds, net of costs"
    table = Table(title=title)
    for heading in ("", "return / year", "Sharpe (95 % interval)", "max drawdown", "ES", "beta"):
        table.add_column(heading, justify="left" if not heading else "right", no_wrap=True)
    for each in evidence.accounts:
        ends = (each.sharpe_lower, each.sharpe_upper)
        interval = "" if None in ends else f" ({each.sharpe_lower:.2f} to {each.sharpe_upper:.2f})"
        table.add_row(
            each.name,
            f"{each.annual_return:+.1%}",
            f"{each.sharpe:.2f}{interval}",
            f"{each.max_drawdown:.1%}",
            f"{each.expected_shortfall:.1%}",
            f"{each.beta:.2f}",
        )
    return table


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


def trials_table(trials: Iterable[TrialRecord]) -> Table:
    """Returns the trials of a ledger as they were begun, whatever became of them."""
    table = Table("sweep", "trial", "configuration", "status", "trainings scored", "score", title="All that was tried")
    for trial in trials:
        began, ended = trial.began, trial.ended
        values = ", ".join(f"{path.split('.')[-1]}={value}" for path, value in began.values.items())
        status = trial.status + (f": {ended.error}" if ended is not None and ended.error else "")
        score = "–" if ended is None or ended.score is None else f"{ended.score:.2f}"
        scored = f"{len(trial.scores)} of {len(began.seeds) * len(began.folds)}"
        cells = (began.sweep, str(began.trial), values or "as configured", status, scored, score)
        table.add_row(*map(escape, cells))
    return table


def bundles_table(bundles: Iterable[Listed]) -> Table:
    """Returns the bundles of a registry in the order given."""
    table = Table(title="Bundles")
    for heading in ("version", "state", "since (UTC)", "verdict", "note"):
        table.add_column(heading, no_wrap=heading != "note", overflow="fold")
    for each in bundles:
        override = f"override: {each.override}" if each.override else ""
        note = "; ".join(text for text in (override, each.reason) if text)
        table.add_row(
            *map(escape, (each.version, each.state, f"{each.changed_at:%Y-%m-%d %H:%M}", each.decision, note))
        )
    return table


def _bar(console: Console, transient: bool = False) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("[dim]{task.fields[note]}"),
        console=console,
        transient=transient,
    )
