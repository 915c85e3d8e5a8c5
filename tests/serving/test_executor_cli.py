"""The `swing-live` command, as a process."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys

import pytest

from tests.serving.conftest import Desk

# exchange_calendars reads a pandas property that pandas 3.1 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:Series.values returning an ndarray that drops timezone")

EXECUTOR = ("config", "broker", "policy_client", "journal", "gates", "plan", "cycle")


def swing_live(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def options(desk: Desk) -> list[str]:
    return [
        *("--broker-url", desk.broker_url, "--policy-url", desk.policy_url, "--symbols", "AAA,BBB"),
        *("--bars", str(desk.folder / "bars.parquet"), "--journal", str(desk.journal_path)),
    ]


@pytest.mark.parametrize("module", [*(f"serving.executor.{name}" for name in EXECUTOR), "serving.cli"])
def test_import_loads_neither_torch_nor_ray(module: str) -> None:
    program = f"import sys, {module}; print([m for m in ('torch', 'ray', 'fastapi') if m in sys.modules])"
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
def test_help_gives_an_example(command: list[str], example: str) -> None:
    told = swing_live(*command, "--help")
    assert told.returncode == 0
    assert example in told.stdout


def test_cycle_prints_one_json_object_and_exits_0(desk: Desk) -> None:
    done = swing_live("cycle", *options(desk), "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["state"], report["mode"], len(report["orders"])) == ("planned", "dry-run", 2)
    assert desk.posted == []


def test_cycle_prints_a_table_of_the_planned_orders(desk: Desk) -> None:
    done = swing_live("cycle", *options(desk))
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("planned", "AAA", "buy to open", "400", "sell to open"))


def test_cycle_reads_a_file_and_lets_options_win(desk: Desk) -> None:
    file = desk.folder / "live.yaml"
    file.write_text("mode: dry-run\nmax_orders_per_session: 1\n")
    done = swing_live(
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
    assert json.loads(done.stdout)["state"] == "done"
    assert len(desk.posted) == 2


def test_cycle_on_hold_exits_3_and_says_why(desk: Desk) -> None:
    desk.policy.status = 503
    held = swing_live("cycle", *options(desk))
    assert held.returncode == 3
    assert "reason: policy server answered 503" in held.stdout


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
def test_user_error_is_one_line_and_exits_2(arguments: list[str], message: str) -> None:
    failed = swing_live(*arguments)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: ")
    assert failed.stderr.count("\n") == 1
    assert message in failed.stderr


def test_run_prints_a_pass_and_stops_on_sigterm_with_0(desk: Desk) -> None:
    command = [sys.executable, "-m", "serving.cli", "run", *options(desk), "--mode", "paper"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert select.select([process.stdout], [], [], 60)[0]
        assert json.loads(process.stdout.readline())["state"] == "hold"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
