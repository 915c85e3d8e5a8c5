"""The `swing-rl` commands for what is kept: the ledger of trials and the registry of bundles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from data_pipeline.errors import RunError

if TYPE_CHECKING:
    from rl.judging.registry import Listed, Registry
    from rl.judging.trial_ledger import TrialLedger, TrialRecord

ledger_app = typer.Typer(
    help="Every trial that was ever scored in a project, chained by hashes so that none can be dropped unseen.",
    no_args_is_help=True,
)
registry_app = typer.Typer()

Root = Annotated[str, typer.Argument(help="The project: the folder that holds its sweeps, or an s3://bucket/prefix.")]
RegistryRoot = Annotated[str, typer.Option("--registry", help="Folder of the registry, or an s3://bucket/prefix.")]
Version = Annotated[str, typer.Argument(help="Of a listed bundle, or how it begins; 'champion' for the champion.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
REGISTRY = "runs/registry"


@ledger_app.command("verify")
def verify_command(
    root: Root,
    known: Annotated[
        str | None, typer.Option(help="A head that was printed earlier; what was there then must be there now.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Read every entry of the ledger and check that none was altered, removed or put in between.

    Prints the head, NUMBER:SHA256. Keep it: only with an earlier head can anybody tell that entries were cut off the
    end. Exit status: 0 intact, 2 not, with the first entry that is wrong.

    Example: swing-rl ledger verify runs --known 41:9f2c…
    """
    from rl.judging.chain import Head  # noqa: PLC0415

    ledger = _ledger(root)
    head = ledger.verify(None if known is None else Head.of(known))
    if head.number == 0:
        raise _no_ledger(ledger)
    if as_json:
        typer.echo(json.dumps({"entries": head.number, "head": head.text, "trials": ledger.count()}))
    else:
        typer.echo(f"{ledger.place}: {head.number} entries, {ledger.count()} scored trials, intact\nhead: {head.text}")


@ledger_app.command("show")
def ledger_show_command(
    root: Root,
    sweep: Annotated[str | None, typer.Option(help="Only the trials of this sweep; none: of all.")] = None,
    as_json: Json = False,
) -> None:
    """Show the trials of a project, failed and abandoned ones too, and who opened the holdout.

    N, the number of tries that a verdict must allow for, counts the trials with at least one score, over all sweeps;
    further seeds of a trial are no further trials. With --json every figure is printed but the returns.

    Example: swing-rl ledger show runs --sweep sweep
    """
    from rl.console import trials_table  # noqa: PLC0415

    ledger = _ledger(root)
    head, trials, count = ledger.head(), ledger.trials(sweep), ledger.count()
    if head.number == 0:
        raise _no_ledger(ledger)
    openings = [each for each in ledger.openings() if sweep in (None, each.sweep)]
    judgements = ledger.judgements(sweep)
    if as_json:
        tree = {
            "head": head.text,
            "count": count,
            "trials": [_trial_tree(trial) for trial in trials],
            "openings": [each.tree() for each in openings],
            "judgements": [each.tree() for each in judgements],
        }
        typer.echo(json.dumps(tree))
        return
    console = Console(highlight=False)
    console.print(trials_table(trials))
    for opened in openings:
        span = f"{opened.first_session} .. {opened.last_session}"
        console.print(f"holdout {span} opened for {opened.candidate} by {opened.by}", markup=False)
    for judged in judgements:
        console.print(f"verdict on {judged.candidate}: {judged.decision}", markup=False)
    console.print(f"N = {count} scored trials in all sweeps; head {head.text}", markup=False)


@registry_app.command("register")
def register_command(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder that `swing-rl export` wrote.")],
    registry: RegistryRoot = REGISTRY,
    as_json: Json = False,
) -> None:
    """List a bundle in the registry as a candidate, its files with it.

    A bundle that is listed stays in its state; files of it that were damaged in the registry are mended.

    Example: swing-rl register runs/bundle
    """
    _print_state(_registry(registry).add(bundle), as_json)


@registry_app.command("list")
def list_command(registry: RegistryRoot = REGISTRY, as_json: Json = False) -> None:
    """List the bundles of a registry: the champion, challengers, candidates, then what retired.

    Example: swing-rl list --registry s3://desk/registry
    """
    from rl.console import bundles_table  # noqa: PLC0415

    listed = _registry(registry).list()
    if as_json:
        typer.echo(json.dumps({"bundles": [each.tree() for each in listed]}))
    elif listed:
        Console().print(bundles_table(listed))
    else:
        typer.echo(f"{registry}: lists nothing yet; put a bundle there with `swing-rl register`")


@registry_app.command("show")
def show_command(version: Version, registry: RegistryRoot = REGISTRY, as_json: Json = False) -> None:
    """Show what a bundle is, how its judge found it, and everything that was ever done with it.

    Example: swing-rl show champion
    """
    shown = _registry(registry).show(version)
    if as_json:
        typer.echo(json.dumps(shown.tree()))
        return
    listed, manifest, console = shown.listed, shown.manifest, Console(highlight=False)
    facts = {
        "version": listed.version,
        "state": listed.state + (f" ({listed.reason})" if listed.reason else ""),
        "verdict": "; ".join([listed.decision, *manifest.verdict.reasons]),
        "override": listed.override,
        "copy of": listed.overrides,
        "symbols": ", ".join(manifest.symbols),
        "looks at": f"{manifest.window} sessions of {len(manifest.features)} features",
        "limits": json.dumps(manifest.limits.tree()),
        "costs": json.dumps(manifest.costs.tree()),
        "data": ", ".join(f"{key} {value}" for key, value in manifest.data.items()),
        "settings": f"sha256 {listed.config_hash}",
        "code": listed.code,
        "files": ", ".join(listed.files),
    }
    for name, fact in facts.items():
        if fact:
            console.print(f"{name}: {fact}", markup=False)
    for change in shown.history:
        console.print(f"{change.at:%Y-%m-%d %H:%M:%S} UTC  {change.text}", markup=False)


@registry_app.command("promote")
def promote_command(
    version: Version,
    override: Annotated[
        str | None, typer.Option(help="Why a bundle is used that its judge rejected; it will say so for ever.")
    ] = None,
    registry: RegistryRoot = REGISTRY,
    as_json: Json = False,
) -> None:
    """Move a bundle one step up: candidate, challenger, champion; the former champion retires.

    A champion that was replaced is champion again at once. A bundle that its judge rejected needs --override: a copy
    with your reason in it, under a new version, takes its place; it may trade on paper, and every report says why.

    Example: swing-rl promote a3c-lstm-4be1

    Example: swing-rl promote a3c-lstm-4be1 --override "rehearsal of the desk, paper only"
    """
    _print_state(_registry(registry).promote(version, override), as_json)


@registry_app.command("retire")
def retire_command(
    version: Version,
    reason: Annotated[str, typer.Option(help="Why it is not to be used any more.")],
    registry: RegistryRoot = REGISTRY,
    as_json: Json = False,
) -> None:
    """Take a bundle out of use for good; it stays in the registry, and its history too.

    Example: swing-rl retire a3c-lstm-4be1 --reason "trained on bars that were corrected since"
    """
    _print_state(_registry(registry).retire(version, reason), as_json)


@registry_app.command("fetch")
def fetch_command(
    version: Version,
    out: Annotated[Path, typer.Option(help="Folder of the bundle; replaced if it holds one.")],
    registry: RegistryRoot = REGISTRY,
    as_json: Json = False,
) -> None:
    """Write a bundle of the registry to a folder, every byte checked, for `swing-live serve`.

    Example: swing-rl fetch champion --out runs/champion
    """
    bundle = _registry(registry).fetch(version, out)
    _print({"bundle": str(out), "policy_version": bundle.version}, as_json)


def _ledger(root: str) -> TrialLedger:
    from rl.judging.trial_ledger import TrialLedger  # noqa: PLC0415

    return TrialLedger(root)


def _no_ledger(ledger: TrialLedger) -> RunError:
    return RunError(f"{ledger.place}: holds no entry; give the folder that holds the sweeps, such as runs")


def _registry(root: str) -> Registry:
    from rl.judging.registry import Registry  # noqa: PLC0415

    return Registry(root)


def _trial_tree(trial: TrialRecord) -> dict[str, Any]:
    scores = [{name: fact for name, fact in score.tree().items() if name != "returns"} for score in trial.scores]
    ended = None if trial.ended is None else trial.ended.tree()
    return {"status": trial.status, "began": trial.began.tree(), "scores": scores, "ended": ended}


def _print_state(listed: Listed, as_json: bool) -> None:
    facts = {"version": listed.version, "state": listed.state, "verdict": listed.decision}
    _print(facts if listed.override is None else {**facts, "override": listed.override}, as_json)


def _print(facts: dict[str, str], as_json: bool) -> None:
    typer.echo(json.dumps(facts) if as_json else "\n".join(f"{name}: {fact}" for name, fact in facts.items()))
