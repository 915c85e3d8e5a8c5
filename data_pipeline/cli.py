"""The `swing-data` command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, get_args

import polars as pl
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from data_pipeline.build import DataConfig, build, chosen_snapshot, fetch
from data_pipeline.config import read_yaml, with_overrides
from data_pipeline.errors import ConfigError, one_line_errors
from data_pipeline.features import FeatureSet
from data_pipeline.panel import open_panel
from data_pipeline.quality import SEVERITIES, findings
from data_pipeline.schema import Timeframe
from data_pipeline.sources.files import FileBars
from data_pipeline.sources.source import source_of
from data_pipeline.store import Snapshot, Store

app = typer.Typer(
    name="swing-data",
    help="Bars to panels: fetch bars into immutable snapshots, check them, compute causal features, prove that "
    "nothing sees the future.\n\n"
    "Start with `swing-data build`, which needs no network: it uses a real history that ships in a package.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of tables.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with a `data:` section, such as tune_configs/demo.yaml."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, e.g. --set symbols=[AAPL,IBM]. Repeatable."),
]
StoreRoot = Annotated[str, typer.Option(help="Root of the snapshots: a folder or an s3:// URI.")]
_MOST_ROWS = 40


@app.command("fetch")
def fetch_command(config: ConfigFile = None, assignments: Settings = None, as_json: Json = False) -> None:
    """Read a source, check its bars, and commit them as a snapshot.

    Sources: 'bundled'; a file or folder of Parquet or CSV; 'alpaca' (keys from ALPACA_API_KEY and
    ALPACA_SECRET_KEY; a fetch that was interrupted goes on where it stopped); 'world', a synthetic market.

    Examples:
      swing-data fetch --set source=my_bars.csv --set files.columns={close: Last}
      swing-data fetch --set source=alpaca --set symbols=[AAPL,MSFT] --set start=2016-01-04
      swing-data fetch --set source=world --set synthetic.world={name: hmm}
    """
    settings = _settings(config, assignments)
    with _bar("fetch", as_json) as show:
        snapshot = fetch(settings, show)
    _tell({"snapshot": snapshot.id, **snapshot.manifest}, as_json, _snapshot_facts(snapshot))


@app.command("build")
def build_command(config: ConfigFile = None, assignments: Settings = None, as_json: Json = False) -> None:
    """Fetch, compute features, and write the memory-mapped panel.

    A panel that only lacks the newest sessions is continued. `--set snapshot=ID` builds from a snapshot of the
    store instead of fetching, `--set as_of=2026-11-20T21:30:00Z` from the newest of that time.

    Example: swing-data build --set start=2005-01-01 --set features=my_features.yaml
    """
    settings = _settings(config, assignments)
    with _bar("features", as_json) as show:
        folder = build(settings, on_progress=show)
    panel = open_panel(folder)
    _tell(
        {
            "panel": str(folder),
            "snapshot": panel.source["snapshot"],
            "sessions": f"{panel.sessions[0]} .. {panel.sessions[-1]} ({len(panel.sessions)})",
            "symbols": list(panel.symbols),
            "features": list(panel.feature_names),
            "schema_hash": panel.schema_hash,
            "ready_cells": int(panel.ready.sum()),
        },
        as_json,
    )


@app.command("check")
def check_command(
    source: Annotated[
        str | None, typer.Argument(help="As the setting `source`; left out: what the settings say.")
    ] = None,
    config: ConfigFile = None,
    assignments: Settings = None,
    as_json: Json = False,
) -> None:
    """Check daily bars without storing anything; the status is 1 if any finding is an error.

    Example: swing-data check my_bars.parquet
    """
    named = [f"source={json.dumps(source)}"] if source else []
    settings = _settings(config, [*named, *(assignments or [])])
    found = findings(_to_check(settings), settings.exchange, settings.quality)
    counts = {severity: found.filter(pl.col("severity") == severity).height for severity in SEVERITIES}
    if as_json:
        rows = [{k: str(v) if k == "session" else v for k, v in row.items()} for row in found.iter_rows(named=True)]
        typer.echo(json.dumps({"source": settings.source, "counts": counts, "findings": rows}))
    else:
        told = ", ".join(f"{number} {severity}{'s' * (number != 1)}" for severity, number in counts.items())
        Console().print(_frame_table(found, f"{settings.source}: {told}"))
    if counts["error"]:
        raise typer.Exit(1)


@app.command("show")
def show_command(
    snapshot: Annotated[str | None, typer.Argument(help="Id of a snapshot; left out: list them all.")] = None,
    store: StoreRoot = "store",
    symbol: Annotated[str | None, typer.Option(help="Draw this symbol to --html.")] = None,
    features: Annotated[str, typer.Option(help="Features to draw, separated by commas.")] = "rsi_14,atr_14,drawdown_60",
    html: Annotated[Path | None, typer.Option(help="Page to write; needs --symbol.")] = None,
    linear: Annotated[bool, typer.Option("--linear", help="Prices on a linear axis.")] = False,
    exchange: Annotated[str, typer.Option(help="Exchange calendar.")] = "XNYS",
    as_json: Json = False,
) -> None:
    """List the snapshots of a store, tell one's story, or draw a symbol of it with chosen features.

    Examples:
      swing-data show
      swing-data show 3f2a9c51d0e8b7a6
      swing-data show 3f2a9c51d0e8b7a6 --symbol IBM --features rsi_14,week.return_4 --html ibm.html
    """
    from data_pipeline.draw import draw  # noqa: PLC0415  (only this command draws)
    from data_pipeline.story import story, tables  # noqa: PLC0415

    kept = Store(store)
    if (symbol is None) != (html is None) or (symbol and not snapshot):
        raise ConfigError("drawing takes a snapshot, --symbol and --html together; give all three")
    if snapshot is None:
        _list(kept, store, as_json)
    elif symbol and html:
        page = draw(html, kept, snapshot, symbol, tuple(features.split(",")), exchange, log_prices=not linear)
        _tell({"page": str(page), "snapshot": snapshot, "symbol": symbol, "features": features.split(",")}, as_json)
    else:
        told = story(kept, snapshot, exchange)
        if as_json:
            typer.echo(json.dumps(told))
        else:
            Console().print(tables(told))


@app.command("diff")
def diff_command(
    before: Annotated[str, typer.Argument(help="Id of a snapshot.")],
    after: Annotated[str, typer.Argument(help="Id of a later one.")],
    store: StoreRoot = "store",
    timeframe: Annotated[str, typer.Option(help="1Day, 1Hour or 5Min.")] = "1Day",
    as_json: Json = False,
) -> None:
    """Say which bars two snapshots do not share: added, removed, or altered from one value to another.

    Example: swing-data diff 3f2a9c51d0e8b7a6 77d0a1be02c4f955
    """
    if timeframe not in get_args(Timeframe):
        raise ConfigError(f"--timeframe {timeframe!r}: choose from {', '.join(get_args(Timeframe))}")
    chosen: Timeframe = timeframe  # type: ignore[assignment]
    found = Store(store).changes(before, after, chosen)
    if as_json:
        rows = [
            {k: str(v) if k in ("session", "end") else v for k, v in r.items()} for r in found.iter_rows(named=True)
        ]
        typer.echo(json.dumps({"before": before, "after": after, "changes": rows}))
        return
    Console().print(_frame_table(found, f"{before} → {after}: {found.height:,} values differ"))


@app.command("audit")
def audit_command(
    config: ConfigFile = None,
    assignments: Settings = None,
    pipeline: Annotated[
        str | None, typer.Option(help="Audit your own code: package.module:attribute, see data_pipeline.audit.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the garbage and of the sessions looked at.")] = 0,
    as_json: Json = False,
) -> None:
    """Prove that nothing sees the future: poison all later bars, compute again, and name what moved.

    Features, panel fields and scaler are compared bit for bit at sessions all over the history. Each leak is
    named with its column, session and cause, and the status is 1. Nothing is stored. `swing-rl train` and `tune` ask
    for the same before they begin.

    Example: swing-data audit --set features=my_features.yaml
    """
    from data_pipeline.audit import audit, load_pipeline, pipeline_of  # noqa: PLC0415

    settings = _settings(config, assignments)
    feature_set = FeatureSet.of(settings.features)
    bars, intraday = _tables_of(settings)
    symbols = settings.symbols or tuple(bars["symbol"].unique().sort())
    own = pipeline_of(feature_set, symbols, settings.exchange)
    audited = load_pipeline(pipeline, feature_set) if pipeline else own
    with _bar("audit", as_json) as show:
        result = audit(bars, audited, intraday, seed=seed, on_progress=show)
    if as_json:
        typer.echo(json.dumps({"passed": result.passed, **result.tree()}))
    else:
        Console().print(_audit_table(result))
    if not result.passed:
        raise typer.Exit(1)


def _settings(config: Path | None, assignments: list[str] | None) -> DataConfig:
    tree = read_yaml(config).get("data", {}) if config else {}
    return DataConfig.of(with_overrides(tree, assignments or []), str(config or "settings"))


def _to_check(settings: DataConfig) -> pl.DataFrame:
    """Daily bars as they are, so that all findings are told, not the first."""
    source = source_of(settings)
    read = source.unchecked if isinstance(source, FileBars) else source.fetch
    return read(settings.symbols, settings.start, settings.end)


def _tables_of(settings: DataConfig) -> tuple[pl.DataFrame, pl.DataFrame | None]:
    """Daily and, where a feature reads them, 5-minute bars, of the chosen snapshot or of the source."""
    wanted, store = settings.timeframes, Store(settings.store)
    if (snapshot := chosen_snapshot(settings, store)) is not None:
        tables = [store.read(snapshot.id, timeframe) for timeframe in wanted]
    else:
        source = source_of(settings)
        tables = [source.fetch(settings.symbols, settings.start, settings.end, timeframe) for timeframe in wanted]
    return tables[0], tables[1] if len(tables) > 1 else None


@contextmanager
def _bar(title: str, as_json: bool) -> Iterator[Callable[[int, int], None]]:
    """Yields a function that shows (done, in all) on one live line of stderr, which is gone at the end."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    console = Console(stderr=True)
    quiet = as_json or not console.is_terminal
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=quiet) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, total=total, completed=done)


def _list(kept: Store, root: str, as_json: bool) -> None:
    snapshots = kept.snapshots()
    if as_json:
        typer.echo(json.dumps([{"id": s.id, **s.manifest} for s in snapshots]))
        return
    table = Table(title=f"Store {root}")
    for column in ("snapshot", "source", "bars", "first", "last", "committed"):
        table.add_column(column, no_wrap=column in ("snapshot", "first", "last"))
    for s in snapshots:
        for timeframe, held in s.manifest["tables"].items():
            span = (held["first_session"], held["last_session"])
            table.add_row(
                s.id,
                f"{s.provenance['source']} {s.provenance.get('feed', '')}",
                f"{held['rows']:,} {timeframe} of {len(held['symbols'])} symbols",
                *span,
                s.written_at.isoformat(timespec="seconds"),
            )
    Console().print(table)
    for line in kept.damaged():
        sys.stderr.write(f"damaged: {line}\n")


def _snapshot_facts(snapshot: Snapshot) -> dict[str, Any]:
    tables = snapshot.manifest["tables"].items()
    return {
        "snapshot": snapshot.id,
        **{
            timeframe: f"{held['rows']:,} bars, {held['first_session']} .. {held['last_session']}, "
            f"{_some(held['symbols'])}"
            for timeframe, held in tables
        },
        **snapshot.provenance,
        "committed": snapshot.written_at.isoformat(timespec="seconds"),
        "calendar": snapshot.manifest["calendar"],
        "code": snapshot.manifest["code"],
    }


def _audit_table(result: Any) -> Table:
    if result.passed:
        table = Table(show_header=False, title="No leak found")
        table.add_row("looked at", result.looked_at)
        for note in result.notes:
            table.add_row("note", note)
        return table
    number = len(result.leaks)
    table = Table(title=f"{number} leak{'s' * (number != 1)}", caption=result.looked_at)
    for head in ("column", "seen first", "cause", "reads ahead", "what it does"):
        table.add_column(head)
    for leak in result.leaks:
        reach = "" if leak.reach_sessions is None else f"{leak.reach_sessions} sessions"
        table.add_row(leak.column, f"{leak.symbol or 'all'} {leak.session}", leak.cause, reach, leak.explanation)
    return table


def _frame_table(frame: pl.DataFrame, title: str) -> Table:
    more = frame.height - _MOST_ROWS
    table = Table(*frame.columns, title=title, caption=f"and {more:,} more; --json tells all" if more > 0 else None)
    for row in frame.head(_MOST_ROWS).iter_rows():
        table.add_row(*("" if value is None else str(value) for value in row))
    return table


def _some(names: list[str], most: int = 6) -> str:
    rest = len(names) - most
    return " ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")


def _tell(facts: dict[str, Any], as_json: bool, shown: dict[str, Any] | None = None) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False)
    for key, value in (shown or facts).items():
        table.add_row(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    Console().print(table)


@one_line_errors
def main() -> None:
    """Entry point of `swing-data`."""
    app()


if __name__ == "__main__":
    main()
