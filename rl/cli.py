"""The `swing-rl` command: each sub-command parses, builds the settings, and calls one function."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from data_pipeline.build import DataConfig
from data_pipeline.clearance import cleared
from data_pipeline.errors import ConfigError, one_line_errors
from data_pipeline.panel import open_panel
from rl.config import load_config
from rl.jobs import jobs_app
from rl.learning.cluster import ray_session
from rl.learning.settings import AlgorithmName
from rl.records import ledger_app, registry_app

app = typer.Typer(
    name="swing-rl",
    help="Learn and judge: train recurrent policies on Ray workers, sweep over walk-forward folds, "
    "validate the winner on an untouched holdout, export it.\n\n"
    "The usual order: tune, validate, export, register, promote; then `swing-live serve`. "
    "Every command also runs as a Ray job: `swing-rl jobs submit -- tune --config … --out …`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(jobs_app, name="jobs")
app.add_typer(ledger_app, name="ledger")
app.add_typer(registry_app)

ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML of settings, such as tune_configs/demo.yaml; none: all defaults."),
]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override one setting, e.g. --set learn.lr=0.001. Repeatable.")
]
Address = Annotated[
    str | None,
    typer.Option(help="Of a running Ray cluster; none: RAY_ADDRESS, else a local one for this command."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of bars and tables.")]


@app.command("train")
def train_command(
    out: Annotated[Path, typer.Option(help="Folder of the run.")],
    config: ConfigFile = None,
    assignments: Settings = None,
    algo: Annotated[
        AlgorithmName | None,
        typer.Option(help="Asynchronous A3C, PPO in step, or asynchronous PPO; none: as configured."),
    ] = None,
    fold: Annotated[str, typer.Option(help="fold-1 (the oldest), fold-2, … or final (up to the holdout).")] = "final",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run that --out holds.")] = False,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Train one configuration on one fold.

    The leakage audit must pass first, once for each panel; --set data.audit=false trains all the same. A run that
    was interrupted, or killed, goes on from its last checkpoint with --resume.

    Example: swing-rl train --algo a3c --config tune_configs/train.yaml --out runs/first --set train.steps=50000
    """
    from rl.judging.tune import folds_of  # noqa: PLC0415
    from rl.learning.train import train  # noqa: PLC0415

    chosen = [f"train.algorithm={algo.value}"] if algo else []
    settings = load_config(config, [*(assignments or []), *chosen])
    panel_folder = _cleared(settings.data, as_json)
    folds, final = folds_of(open_panel(panel_folder), settings)
    spans = {f.name: f.train for f in (*folds, final)}
    if fold not in spans:
        raise ConfigError(f"--fold {fold!r}: choose from {', '.join(spans)}")
    with ray_session(address):
        if as_json:
            trained = train(
                settings, panel_folder, spans[fold], out, resume, lambda p: typer.echo(json.dumps(asdict(p)))
            )
        else:
            from rl.console import training_bar  # noqa: PLC0415

            with training_bar(Console(), f"training on {fold}") as show:
                trained = train(settings, panel_folder, spans[fold], out, resume, show)
            if trained.collapsed:
                Console().print(
                    "[yellow]The policy does not trade any more. If that is not what you want, let costs rise longer: "
                    "--set learn.cost_rise=0.8, or raise learn.entropy.[/yellow]"
                )
    found = {"run": str(trained.folder), "seconds": round(trained.seconds, 1), "collapsed": trained.collapsed}
    typer.echo(json.dumps(found))


def _cleared(settings: DataConfig, as_json: bool) -> Path:
    """Returns the folder of a panel that something may be trained on."""
    from rl.console import audit_bar  # noqa: PLC0415

    if as_json:
        return cleared(settings)[0]
    with audit_bar(Console()) as show:
        return cleared(settings, show)[0]


@app.command("tune")
def tune_command(
    out: Annotated[str, typer.Option(help="Folder of the sweep, or an s3:// URI.")],
    config: ConfigFile = None,
    assignments: Settings = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with a sweep that was interrupted or killed.")
    ] = False,
    project: Annotated[
        str | None, typer.Option(help="Folder or URI that holds the trial ledger; none: the one that --out is in.")
    ] = None,
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Sweep the search space over the walk-forward folds with Ray Tune.

    The leakage audit must pass first, once for each panel; --set data.audit=false sweeps all the same, every report
    says so, and nothing of it is promoted.

    Every trial that is ever scored goes into the project's trial ledger, which the judge counts. A sweep that was
    interrupted goes on with --resume; what finished is not trained again. TensorBoard: tensorboard --logdir OUT/ray

    Example: swing-rl tune --config tune_configs/sweep.yaml --out runs/sweep
    """
    from rl.console import sweep_bar, sweep_table  # noqa: PLC0415
    from rl.judging.tune import tune  # noqa: PLC0415

    settings = load_config(config, assignments or [])
    console = Console()
    with ray_session(address):
        if as_json:
            typer.echo(json.dumps(tune(settings, out, resume=resume, project=project).tree()))
            return
        with sweep_bar(console, "sweep") as (show, show_audit):
            sweep = tune(settings, out, show, resume, project, show_audit)
    console.print(sweep_table(sweep))


@app.command("results")
def results_command(
    sweep: Annotated[str, typer.Argument(help="Folder or s3:// URI of a sweep, finished or not.")],
    html: Annotated[
        Path | None, typer.Option(help="Write a page with plots to this file; it needs no network.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Show what a sweep tried and how each configuration did, also while it runs or after it was interrupted.

    With --json the sweep is printed as one object, with what the trial ledger counts.

    Example: swing-rl results runs/sweep --html runs/sweep.html
    """
    from rl.console import print_results  # noqa: PLC0415
    from rl.judging.results import read_results, write_results  # noqa: PLC0415

    results = read_results(sweep)
    if html is not None:
        write_results(html, results)
    if as_json:
        typer.echo(json.dumps(results.facts()))
        return
    print_results(Console(highlight=False), results)
    if html is not None:
        typer.echo(f"page: {html}")


@app.command("validate")
def validate_command(
    sweep: Annotated[str, typer.Argument(help="Folder or URI of a finished sweep.")],
    out: Annotated[Path, typer.Option(help="Folder for the final run, ledgers, figures and report.")],
    address: Address = None,
    as_json: Json = False,
) -> None:
    """Judge the sweep's winner: the search as a whole, then the holdout, opened on record, and its zero-skill twins.

    The judge asks, in this order: did the panel pass the leakage audit? Does the best of all that were tried beat the
    benchmark by more than the search explains (SPA)? Does what is best in one half of the sessions beat it in the
    other too? Does it earn more than the benchmark on the holdout, and more than its twins? Thresholds are those of
    judge.* in the sweep's settings. With judge.ensemble=3 the three best configurations act as one, combined by
    judge.combination: mean, vote or sharpe.

    Example: swing-rl validate runs/sweep --out runs/verdict
    """
    from rl.console import evidence_table, judging_bar, validation_table  # noqa: PLC0415
    from rl.judging.ensemble import disagreement_text  # noqa: PLC0415
    from rl.judging.validate import validate  # noqa: PLC0415

    console = Console()
    with ray_session(address):
        if as_json:
            typer.echo(json.dumps(validate(sweep, out).tree()))
            return
        with judging_bar(console) as (show, show_twins):
            validation = validate(sweep, out, show, show_twins)
    console.print(evidence_table(validation.evidence))
    if validation.figures:
        console.print(validation_table(validation))
    if validation.disagreement is not None:
        console.print(disagreement_text(validation.disagreement))
    console.print(f"verdict: {validation.verdict.decision}")
    for reason in validation.verdict.reasons:
        console.print(f"  {reason}")
    if validation.figures:
        console.print(f"report: {out / 'report.html'}")


@app.command("backtest")
def backtest_command(
    policy: Annotated[
        str,
        typer.Argument(
            help="Folder of a bundle, or equal-weight, buy-and-hold, momentum-12-1, vol-target-10, sma-10-50, cash."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for ledgers and report.")],
    config: ConfigFile = None,
    assignments: Settings = None,
    start: Annotated[str | None, typer.Option(help="First session, as 2010-01-04; none: the first possible.")] = None,
    end: Annotated[str | None, typer.Option(help="Last session; none: the last there is.")] = None,
    seed: Annotated[int, typer.Option(help="Of random slippage, where the costs have it.")] = 0,
    as_json: Json = False,
) -> None:
    """Run a policy over a span beside the baselines, by the step that training uses, and save the ledgers.

    A bundle runs with the features, limits and costs that it was judged with, unless --set env.… says otherwise.
    Nothing is judged: a policy that was chosen after looking at these figures is not out of sample any more.

    Example: swing-rl backtest momentum-12-1 --out runs/momentum --set env.costs.half_spread_bps=5
    """
    from rl.console import figures_table  # noqa: PLC0415
    from rl.judging.backtests import policy_named, run, settings_for  # noqa: PLC0415
    from rl.judging.metrics import figures  # noqa: PLC0415

    chosen, bundle = policy_named(policy)
    settings = settings_for(bundle, config, assignments or [])
    ledgers = run(chosen, settings, out, _day("--start", start), _day("--end", end), seed)
    found = [figures(ledger) for ledger in ledgers]
    if as_json:
        typer.echo(json.dumps({"out": str(out), "figures": [each.tree() for each in found]}))
        return
    console = Console()
    console.print(figures_table(found, f"{found[0].first_session} .. {found[0].last_session}, net of costs"))
    console.print(f"ledgers: {out / 'ledgers'}\nreport: {out / 'report.html'}")


def _day(option: str, text: str | None) -> date | None:
    try:
        return None if text is None else date.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: write it as 2010-01-04") from error


@app.command("export")
def export_command(
    validation: Annotated[Path, typer.Argument(help="Folder of a validation.")],
    out: Annotated[Path, typer.Option(help="Folder of the bundle.")],
    as_json: Json = False,
) -> None:
    """Write the judged policy as a bundle: weights and manifest, no pickle, every byte hashed.

    Example: swing-rl export runs/verdict --out runs/bundle
    """
    from rl.judging.export import export  # noqa: PLC0415

    bundle = export(validation, out)
    facts = {
        "bundle": str(out),
        "policy_version": bundle.version,
        "verdict": bundle.manifest.verdict.decision,
    }
    typer.echo(json.dumps(facts) if as_json else "\n".join(f"{key}: {value}" for key, value in facts.items()))


@one_line_errors
def main() -> None:
    """Entry point of `swing-rl`."""
    app()


if __name__ == "__main__":
    main()
