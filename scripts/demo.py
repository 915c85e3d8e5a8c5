"""The whole product on bundled real data, as `make demo` shows it, from bars to orders.

Learning and judging run in this process; the policy server, the broker's stand-in and the executor are the
real commands, talking over loopback.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.rule import Rule
from rich.table import Table

from data_pipeline.build import build
from data_pipeline.panel import open_panel
from data_pipeline.sessions import next_session
from rl.config import load_config
from rl.console import evidence_table, judging_bar, sweep_bar, sweep_table, validation_table
from rl.judging.export import export
from rl.judging.tune import folds_of, tune
from rl.judging.validate import Validation, validate
from rl.learning.cluster import ray_session

ROOT = Path(__file__).parents[1]
OUT = Path("runs/demo")
BIN = Path(sys.executable).parent


def main() -> None:
    """Tells the story from bars to orders."""
    os.chdir(ROOT)
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray's core speaks of its own workings otherwise
    console = Console() if sys.stdout.isatty() else Console(width=110)
    started = time.monotonic()
    shutil.rmtree(OUT, ignore_errors=True)
    config = load_config(Path("tune_configs/demo.yaml"))

    _step(console, 1, "Bars and features", "real daily history that ships in a package; no network")
    panel = open_panel(build(config.data))
    folds, final = folds_of(panel, config)
    console.print(
        f"{len(panel.symbols)} symbols ({', '.join(panel.symbols)}), {len(panel.sessions)} sessions "
        f"{panel.sessions[0]} .. {panel.sessions[-1]}, {len(panel.feature_names)} causal features, "
        f"{len(folds)} walk-forward folds, {len(final.test)} sessions kept shut for the verdict"
    )

    with ray_session():
        _step(console, 2, "Sweep", "Ray Tune over configurations × folds; scored on sessions not trained on")
        with sweep_bar(console, "sweep") as (show_sweep, show_audit):
            sweep = tune(config, OUT / "sweep", show_sweep, on_audit=show_audit)
        console.print(sweep_table(sweep))

        _step(
            console,
            3,
            "Verdict",
            "the search as a whole, then the holdout, opened on record, and the winner's zero-skill twins",
        )
        with judging_bar(console) as (show_training, show_twins):
            validation = validate(OUT / "sweep", OUT / "verdict", show_training, show_twins)

    _step(console, 4, "Bundle", "weights and manifest, every byte hashed, no pickle")
    bundle = export(OUT / "verdict", OUT / "bundle")
    console.print(f"{OUT / 'bundle'}: {bundle.version}")

    _step(
        console,
        5,
        "Decision and orders",
        "Ray Serve answers over HTTP; the executor plans, dry-run, on a fake broker",
    )
    with console.status("starting the policy server and the fake broker …"):
        report = _decide(panel.sessions[-1].item())

    _step(console, 6, "Result", f"in {time.monotonic() - started:.0f} s")
    console.print(evidence_table(validation.evidence))
    console.print(validation_table(validation))
    _print_verdict(console, validation)
    _print_orders(console, report)
    console.print(f"report: {OUT / 'verdict' / 'report.html'}\nbundle: {OUT / 'bundle'}")


def _decide(last_session: Any) -> dict[str, Any]:
    """Serves the bundle, asks for tomorrow's orders, and returns the executor's own report."""
    credentials = {"ALPACA_API_KEY": "demo", "ALPACA_SECRET_KEY": secrets.token_urlsafe(16)}
    environment = os.environ | credentials | {"SWING_POLICY_TOKEN": secrets.token_urlsafe(24)}
    morning = f"{next_session(last_session)}T09:50:00-05:00"
    serve = [str(BIN / "swing-live"), "serve", str(OUT / "bundle"), "--port", str(_free_port())]
    broker = [str(BIN / "swing-live"), "fake-broker", "--port", "0", "--now", morning]
    with _started(serve, environment) as policy_url, _started(broker, environment) as broker_url:
        cycle = [
            str(BIN / "swing-live"),
            "cycle",
            "--json",
            "--policy-url",
            policy_url,
            "--broker-url",
            broker_url,
        ]
        cycle += ["--bars", "bundled", "--journal", str(OUT / "journal.sqlite")]
        answer = subprocess.run(cycle, env=environment, capture_output=True, text=True, check=False)
    if answer.returncode not in (0, 3):
        raise SystemExit(f"the executor failed ({answer.returncode}): {answer.stderr.strip()}")
    report: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return report


@contextmanager
def _started(command: list[str], environment: dict[str, str]) -> Iterator[str]:
    """Starts a server that prints its URL as JSON when it is ready, yields the URL, and stops it."""
    log = OUT / f"{command[1]}.log"
    with (
        log.open("w") as errors,
        subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True) as server,
    ):
        try:
            yield _url(server, log)
        finally:
            server.terminate()
            server.wait(30)


def _url(server: subprocess.Popen[str], log: Path) -> str:
    for line in server.stdout or ():
        if line.startswith("{"):
            return str(json.loads(line)["url"])
    raise SystemExit(f"{server.args[1]} did not start: {log.read_text()[-2000:]}")  # type: ignore[index]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _step(console: Console, number: int, title: str, note: str) -> None:
    console.print()
    console.print(Rule(f"[bold]{number}. {title}[/bold]  {note}", align="left"))


def _print_verdict(console: Console, validation: Validation) -> None:
    console.print(f"verdict: [bold]{validation.verdict.decision}[/bold]")
    for reason in validation.verdict.reasons:
        console.print(f"  • {reason}")
    policy, hold = validation.figures[0], next(f for f in validation.figures if f.name == "buy-and-hold")
    if policy.total_return <= hold.total_return:
        against = f"{policy.total_return:+.1%} against {hold.total_return:+.1%}"
        console.print(f"The policy did not beat buy-and-hold: {against}.")


def _print_orders(console: Console, report: dict[str, Any]) -> None:
    by, on = report["policy_version"], report["session"]
    orders = {order["symbol"]: order for order in report["orders"]}
    table = Table("symbol", "target weight", "order", "at about", title=f"Decision after {on}, by {by}")
    for symbol, weight in report["weights"].items():
        order = orders.get(symbol)
        what = f"{order['position_intent'].replace('_', ' ')} {order['shares']:,}" if order else "none"
        table.add_row(symbol, f"{weight:.1%}", what, f"${order['price']:,.2f}" if order else "")
    console.print(table)
    console.print(f"executor: {report['state']}, dry run, nothing was sent")
    for reason in report["reasons"]:
        console.print("on hold:", reason)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        raise SystemExit("interrupted; `make demo` starts afresh") from None
