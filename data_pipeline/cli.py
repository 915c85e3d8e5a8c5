"""The `swing-data` command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from data_pipeline.build import DataConfig, build, fetch
from data_pipeline.config import read_yaml, with_overrides
from data_pipeline.errors import one_line_errors
from data_pipeline.panel import open_panel
from data_pipeline.sources.source import source_of
from data_pipeline.store import Store

app = typer.Typer(
    name="swing-data",
    help="Bars to panels: fetch daily bars into immutable snapshots, check them, compute causal features.\n\n"
    "Start with `swing-data build`, which needs no network: it uses a real history that ships in a package.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")]
ConfigFile = Annotated[
    Path | None,
    typer.Option("--config", help="YAML file with a `data:` section, such as tune_configs/demo.yaml."),
]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override one setting, e.g. --set symbols=[AAPL,IBM]. Repeatable."),
]


@app.command("fetch")
def fetch_command(config: ConfigFile = None, assignments: Settings = None, as_json: Json = False) -> None:
    """Read a source, check its bars, and commit them as a snapshot.

    Example: swing-data fetch --set source=my_bars.csv
    """
    settings = _settings(config, assignments)
    snapshot = fetch(settings)
    _tell({"snapshot": snapshot.id, **snapshot.manifest}, as_json)


@app.command("build")
def build_command(config: ConfigFile = None, assignments: Settings = None, as_json: Json = False) -> None:
    """Fetch, compute features, and write the memory-mapped panel.

    Example: swing-data build --set start=2005-01-01
    """
    folder = build(_settings(config, assignments))
    panel = open_panel(folder)
    _tell(
        {
            "panel": str(folder),
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
    source: Annotated[str, typer.Argument(help="'bundled', or the path of a Parquet or CSV file.")],
    as_json: Json = False,
) -> None:
    """Check bars without storing anything; a bar that is not fit for use is named, and the status is 2.

    Example: swing-data check my_bars.parquet
    """
    bars = source_of(source).fetch()
    _tell(
        {
            "source": source,
            "rows": bars.height,
            "symbols": bars["symbol"].unique().sort().to_list(),
            "first_session": str(bars["session"].min()),
            "last_session": str(bars["session"].max()),
            "splits": bars.filter(bars["split"] != 1).height,
            "dividends": bars.filter(bars["dividend"] > 0).height,
        },
        as_json,
    )


@app.command("show")
def show_command(
    store: Annotated[str, typer.Option(help="Root of the snapshots: a folder or an s3:// URI.")] = "store",
    as_json: Json = False,
) -> None:
    """List the snapshots of a store, oldest first."""
    snapshots = Store(store).snapshots()
    if as_json:
        typer.echo(json.dumps([{"id": s.id, **s.manifest} for s in snapshots]))
        return
    table = Table("snapshot", "source", "symbols", "first", "last", "rows", "written", title=f"Snapshots in {store}")
    for s in snapshots:
        m = s.manifest
        table.add_row(
            s.id,
            m["provenance"]["source"],
            " ".join(m["symbols"]),
            m["first_session"],
            m["last_session"],
            f"{m['rows']:,}",
            m["written_at"],
        )
    Console().print(table)


def _settings(config: Path | None, assignments: list[str] | None) -> DataConfig:
    tree = read_yaml(config).get("data", {}) if config else {}
    return DataConfig.of(with_overrides(tree, assignments or []), str(config or "settings"))


def _tell(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(facts))
        return
    table = Table(show_header=False)
    for key, value in facts.items():
        table.add_row(key, ", ".join(map(str, value)) if isinstance(value, list) else str(value))
    Console().print(table)


@one_line_errors
def main() -> None:
    """Entry point of `swing-data`."""
    app()


if __name__ == "__main__":
    main()
