"""The `swing-live` command: serve a policy, trade it on paper, or rehearse against a fake broker."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from zoneinfo import ZoneInfo

import typer

from data_pipeline.errors import LiveError, one_line_errors

if TYPE_CHECKING:
    from collections.abc import Callable

    from serving.executor.config import ExecutorConfig
    from serving.executor.cycle import CycleReport

EXIT_HOLD = 3
_PAUSE_S = 60.0

cli = typer.Typer(
    help="""Serve a policy bundle, and trade it: dry run first, then on Alpaca's paper account.

    A rehearsal needs no account. Export ALPACA_API_KEY, ALPACA_SECRET_KEY and SWING_POLICY_TOKEN (any
    values) in three terminals, then run in turn:

    1. swing-live serve bundles/first

    2. swing-live fake-broker --now 2012-06-15T10:00 --port 8100

    3. swing-live cycle --broker-url http://127.0.0.1:8100
    """,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of executor settings.")]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", help="One setting as path=value, such as limits.max_gross=0.5.")
]
Mode = Annotated[str | None, typer.Option(help="dry-run (default: sends nothing) or paper.")]
PolicyUrl = Annotated[str | None, typer.Option(help="Base URL of the policy server.")]
BrokerUrl = Annotated[str | None, typer.Option(help="Base URL of a fake broker; left out: Alpaca's paper account.")]
Bars = Annotated[str | None, typer.Option(help="Source of daily bars: 'bundled', or a Parquet or CSV file.")]
Symbols = Annotated[str | None, typer.Option(help="Comma list of the symbols that may trade; left out: the model's.")]
JournalPath = Annotated[Path | None, typer.Option("--journal", help="SQLite file that records what was meant.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(version("swing-rl"))
        raise typer.Exit


@cli.callback()
def _options(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    pass


@cli.command()
def serve(
    bundle: Annotated[Path, typer.Argument(help="The bundle folder that `swing-rl export` wrote.")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
) -> None:
    """Serve a policy bundle over HTTP until stopped.

    Clients send raw bars and get target weights; the token they must present is SWING_POLICY_TOKEN.

    Example: swing-live serve bundles/first --port 8000
    """
    from serving.policy import server  # noqa: PLC0415  (loads Ray)

    server.serve(bundle, host, port)


@cli.command()
def cycle(
    *,
    config: ConfigFile = None,
    assignments: Assignments = None,
    mode: Mode = None,
    policy_url: PolicyUrl = None,
    broker_url: BrokerUrl = None,
    bars: Bars = None,
    symbols: Symbols = None,
    journal: JournalPath = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of a table.")] = False,
) -> None:
    """Do one pass: ask the policy about the last completed session and plan its orders.

    In dry-run mode the plan is only shown. In paper mode it is journalled and sent, once per session.
    Exit status: 0 planned or done, 3 on hold (the reasons are printed), 2 for an error of yours.

    Example: swing-live cycle --broker-url http://127.0.0.1:8100 --set limits.max_gross=0.5

    Example: swing-live cycle --mode paper --symbols AAPL,IBM --bars bars.parquet
    """
    direct = {
        "mode": mode,
        "policy_url": policy_url,
        "broker_url": broker_url,
        "bars": bars,
        "journal": journal,
    }
    settings = _settings(config, assignments, direct, symbols)
    with _pass(settings) as work:
        report = work()
    if as_json:
        typer.echo(report.model_dump_json())
    else:
        _show(report)
    if report.state in {"hold", "locked"}:
        raise typer.Exit(EXIT_HOLD)


@cli.command()
def run(
    *,
    config: ConfigFile = None,
    assignments: Assignments = None,
    mode: Mode = None,
    policy_url: PolicyUrl = None,
    broker_url: BrokerUrl = None,
    bars: Bars = None,
    symbols: Symbols = None,
    journal: JournalPath = None,
) -> None:
    """Do a pass every minute until SIGTERM or Ctrl-C, printing one JSON line for each.

    A pass that has begun is finished first. Whatever a stopped pass left is taken up by the next one.

    Example: swing-live run --config live.yaml --mode paper
    """
    direct = {
        "mode": mode,
        "policy_url": policy_url,
        "broker_url": broker_url,
        "bars": bars,
        "journal": journal,
    }
    settings = _settings(config, assignments, direct, symbols)
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    with _pass(settings) as work:
        while not stop.is_set():
            typer.echo(work().model_dump_json())
            stop.wait(_PAUSE_S)


@cli.command()
def fake_broker(
    now: Annotated[str, typer.Option(help="Simulated time, New York unless it has an offset.")] = "2012-06-15T10:00",
    bars: Annotated[str, typer.Option(help="Source of prices: 'bundled', or a Parquet or CSV file.")] = "bundled",
    cash: Annotated[float, typer.Option(help="Starting cash in USD.")] = 100_000.0,
    position: Annotated[
        list[str] | None,
        typer.Option(help="Shares held at the start, such as AAPL=100 or IBM=-50; repeatable."),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; 0 takes a free one.")] = 0,
) -> None:
    """Run a local stand-in for Alpaca until stopped; its address is printed as one JSON line.

    Orders fill at once at the open of the simulated day. PUT /fake/clock with {"now": "..."} moves the
    clock, PUT /fake/faults with [{"kind": "hang", "path": "/v2/orders"}] makes requests fail. Any API keys
    are accepted.

    Example: swing-live fake-broker --now 2012-06-15T10:00 --cash 50000 --position AAPL=20 --port 8100
    """
    from data_pipeline.sources.source import SourceConfig, source_of  # noqa: PLC0415
    from serving.fake.app import serve  # noqa: PLC0415  (loads FastAPI)
    from serving.fake.broker import FakeBroker  # noqa: PLC0415

    broker = FakeBroker(
        source_of(SourceConfig(source=bars)), _moment(now), cash, dict(_holding(item) for item in position or [])
    )
    serve(broker, port)


@one_line_errors
def main() -> None:
    """Runs the command line; an error of the user's exits with 2."""
    cli()


def _settings(
    config: Path | None, assignments: list[str] | None, direct: dict[str, Any], symbols: str | None
) -> ExecutorConfig:
    """Returns the settings of a file, overridden by --set, overridden by the direct options."""
    from data_pipeline.config import read_yaml, with_overrides  # noqa: PLC0415
    from serving.executor.config import ExecutorConfig  # noqa: PLC0415

    tree = with_overrides({} if config is None else read_yaml(config), assignments or [])
    tree.update((name, value) for name, value in direct.items() if value is not None)
    if symbols is not None:
        tree["symbols"] = symbols.split(",")
    return ExecutorConfig.of(tree, "executor settings")


@contextmanager
def _pass(settings: ExecutorConfig) -> Iterator[Callable[[], CycleReport]]:
    """Yields a function that does one pass."""
    from data_pipeline.sources.source import SourceConfig, source_of  # noqa: PLC0415
    from serving.executor.broker import Broker  # noqa: PLC0415  (loads alpaca-py)
    from serving.executor.config import Credentials  # noqa: PLC0415
    from serving.executor.cycle import cycle as one_pass  # noqa: PLC0415
    from serving.executor.journal import Journal  # noqa: PLC0415
    from serving.executor.policy_client import PolicyClient  # noqa: PLC0415

    credentials = Credentials.from_environment()
    source = source_of(SourceConfig(source=settings.bars))
    broker = Broker(settings, credentials)
    with (
        PolicyClient(settings.policy_url, credentials.policy_token) as policy,
        Journal(settings.journal) as journal,
    ):
        yield lambda: one_pass(settings, broker, policy, journal, source, now=datetime.now(UTC))


def _show(report: CycleReport) -> None:
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    console = Console(highlight=False)
    equity = "unknown" if report.equity is None else f"{report.equity:,.2f} USD"
    console.print(f"[bold]{report.state}[/bold] ({report.mode})  session {report.session}  equity {equity}")
    if report.policy_version is not None:
        console.print(f"policy {report.policy_version}, verdict {report.verdict}", markup=False)
    if report.weights or report.left_alone:
        table = Table("symbol", "weight", "order", "shares", "price USD", "state")
        targets = {symbol: f"{weight:+.3f}" for symbol, weight in report.weights.items()}
        targets |= dict.fromkeys(report.left_alone, "left alone")
        for symbol, target in sorted(targets.items()):
            orders = [order for order in report.orders if order.symbol == symbol]
            for order in orders:
                name, shares = order.position_intent.replace("_", " "), f"{order.shares:,}"
                table.add_row(symbol, target, name, shares, f"{order.price:,.2f}", order.state)
            if not orders:
                table.add_row(symbol, target, "none", "", "", "")
        console.print(table)
    for kind, lines in (("warning", report.warnings), ("reason", report.reasons)):
        for line in lines:
            console.print(f"{kind}: {line}", markup=False)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise LiveError(f"--now {text!r}: write it as 2012-06-15T10:00") from error
    return moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo("America/New_York"))


def _holding(item: str) -> tuple[str, float]:
    symbol, _, shares = item.partition("=")
    try:
        return symbol, float(int(shares))
    except ValueError as error:
        raise LiveError(f"--position {item!r}: write it as AAPL=100, in whole shares") from error


if __name__ == "__main__":
    main()
