"""The `swing-live` command."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from collections.abc import Callable

import pytest
from desk import Desk

from serving.cli import main

# exchange_calendars reads a pandas property that pandas 3.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")

EXECUTOR = ("config", "broker", "policy_client", "journal", "gates", "plan", "cycle")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def swing_live(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command line in this process; returns exit status, stdout and stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["swing-live", *arguments])
        with pytest.raises(SystemExit) as left:
            main()
        told = capsys.readouterr()
        return int(left.value.code or 0), told.out, told.err

    return run


def options(desk: Desk) -> list[str]:
    return [
        *("--broker-url", desk.broker_url, "--policy-url", desk.policy_url, "--symbols", "AAA,BBB"),
        *("--bars", str(desk.folder / "bars.parquet"), "--journal", str(desk.journal_path)),
    ]


def test_import_loads_neither_torch_nor_ray() -> None:
    modules = ", ".join(["serving.cli", *(f"serving.executor.{name}" for name in EXECUTOR)])
    program = f"import sys, {modules}; print([m for m in ('torch', 'ray', 'fastapi') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


def test_import_of_the_command_loads_no_client_yet() -> None:
    program = "import sys, serving.cli; print([m for m in ('alpaca', 'polars', 'httpx') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert loaded.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("command", "example"),
    [
        ([], "swing-live serve bundles/first"),
        (["serve"], "swing-live serve bundles/first --port 8000"),
        (["cycle"], "swing-live cycle --mode paper --symbols AAPL,IBM"),
        (["run"], "swing-live run --config live.yaml --mode paper"),
        (["fake-broker"], "swing-live fake-broker --now 2012-06-15T10:00"),
    ],
)
def test_help_gives_an_example(swing_live: Command, command: list[str], example: str) -> None:
    status, told, _ = swing_live(*command, "--help")
    assert status == 0
    assert example in " ".join(told.split())


def test_cycle_prints_one_json_object_and_exits_0(swing_live: Command, desk: Desk) -> None:
    status, told, _ = swing_live("cycle", *options(desk), "--json")
    assert status == 0
    report = json.loads(told)
    assert (report["state"], report["mode"], len(report["orders"])) == ("planned", "dry-run", 2)
    assert desk.posted == []


def test_cycle_prints_a_table_of_the_planned_orders(swing_live: Command, desk: Desk) -> None:
    status, told, _ = swing_live("cycle", *options(desk))
    assert status == 0
    assert all(word in told for word in ("planned", "AAA", "buy to open", "400", "sell to open"))


def test_cycle_table_names_what_is_left_alone(swing_live: Command, desk: Desk) -> None:
    desk.policy.weights, desk.policy.left_alone = {"AAA": 0.4}, ["BBB"]
    _, told, _ = swing_live("cycle", *options(desk))
    row = next(line for line in told.splitlines() if "BBB" in line)
    assert "left alone" in row
    assert "none" in row


def test_cycle_reads_a_file_and_lets_options_win(swing_live: Command, desk: Desk) -> None:
    file = desk.folder / "live.yaml"
    file.write_text("mode: dry-run\nmax_orders_per_session: 1\n")
    _, told, _ = swing_live(
        "cycle",
        "--config",
        str(file),
        *options(desk),
        "--mode",
        "paper",
        "--set",
        "max_orders_per_session=2",
        "--json",
    )
    assert json.loads(told)["state"] == "done"
    assert len(desk.posted) == 2


def test_cycle_on_hold_exits_3_and_says_why(swing_live: Command, desk: Desk) -> None:
    desk.policy.status = 503
    status, told, _ = swing_live("cycle", *options(desk))
    assert status == 3
    assert "reason: policy server answered 503" in told


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cycle", "--mode", "live"], "live trading is not part of this version"),
        (["cycle", "--broker-url", ""], "broker_url"),
        (["cycle", "--bars", "nowhere.csv"], "nowhere.csv"),
        (["cycle", "--config", "nowhere.yaml"], "nowhere.yaml"),
        (["cycle", "--set", "limits.max_gros=0.5"], "limits.max_gros"),
        (["fake-broker", "--now", "yesterday"], "write it as 2012-06-15T10:00"),
        (["fake-broker", "--position", "AAA"], "write it as AAPL=100"),
    ],
)
def test_user_error_is_one_line_and_exits_2(swing_live: Command, arguments: list[str], message: str) -> None:
    status, _, told = swing_live(*arguments)
    assert status == 2
    assert told.startswith("error: ")
    assert told.count("\n") == 1
    assert message in told


def test_run_prints_a_pass_and_stops_on_sigterm_with_0(desk: Desk) -> None:
    command = [sys.executable, "-m", "serving.cli", "run", *options(desk), "--mode", "paper"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
        assert json.loads(process.stdout.readline())["state"] == "done"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
