"""`swing-rl jobs`: the commands as jobs of a real Ray head, started and ended inside scripts/contained.py."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from data_pipeline.errors import RunError
from rl.jobs import entrypoint_of

ROOT = Path(__file__).parents[1]
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
    "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    "RAY_AUTH_MODE": "disabled",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    # Without it `ray start` turns 127.0.0.1 into the machine's outer address and listens on all of them.
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S": "0",
}
SMALL = (
    "data.symbols=[AAPL, IBM]",
    "model.hidden=8",
    "model.window_sessions=10",
    "model.bptt_sessions=8",
    "train.iteration_steps=256",
    "ppo.minibatches=2",
    "ppo.epochs=1",
    "train.envs_per_runner=8",
    "train.env_runners=1",
)


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@pytest.fixture(scope="module")
def head() -> Iterator[str]:
    """The dashboard's address of a Ray head; when it has ended, none of its processes may live."""
    port, dashboard, agent, client, autoscaler_metrics, dashboard_metrics = free_ports(6)
    # Unix sockets live below it, and their paths may have about a hundred characters.
    with tempfile.TemporaryDirectory(prefix="r", ignore_cleanup_errors=True) as folder:
        log_path = Path(folder) / "head.log"
        command = ["ray", "start", "--head", "--block", "--include-dashboard=true", "--disable-usage-stats"]
        command += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--port={port}"]
        command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
        command += [f"--ray-client-server-port={client}", f"--temp-dir={folder}/ray", "--num-cpus=2"]
        command += ["--object-store-memory=200000000"]
        ports = {
            "AUTOSCALER_METRIC_PORT": str(autoscaler_metrics),
            "DASHBOARD_METRIC_PORT": str(dashboard_metrics),
        }
        with log_path.open("w") as log:
            process = subprocess.Popen(
                [sys.executable, str(ROOT / "scripts" / "contained.py"), "--", *command],
                stdout=log,
                stderr=log,
                env={**ENVIRONMENT, **ports},
                cwd=ROOT,
            )
        address = f"http://127.0.0.1:{dashboard}"
        try:
            deadline = time.monotonic() + 60
            while not answers(f"{address}/api/version"):
                assert process.poll() is None, log_path.read_text()
                assert time.monotonic() < deadline, log_path.read_text()
                time.sleep(0.1)
            yield address
        finally:
            below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            process.wait(timeout=60)
        assert len(below) > 3
        assert not [each for each in below if each.is_running()]


def jobs_command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "rl.cli", "jobs", *arguments]


def jobs(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        jobs_command(*arguments),
        cwd=ROOT,
        env={**ENVIRONMENT, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def status_of(address: str, job: str) -> dict[str, Any]:
    result = jobs("status", "--address", address, "--json", job)
    assert result.returncode == 0, result.stderr
    outcome: dict[str, Any] = json.loads(result.stdout)
    return outcome


def start_following(address: str, job: str, *command: str) -> subprocess.Popen[str]:
    """Starts a submission and returns it at the job's first sign of life."""
    process = subprocess.Popen(
        jobs_command("submit", "--address", address, "--submission-id", job, "--", *command),
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Running entrypoint"):
            return process
    raise AssertionError(f"the log ended early, exit code {process.wait()}")


@pytest.fixture
def training(tmp_path: Path) -> list[str]:
    """A training command that writes below `tmp_path` only."""
    places = (f"data.store={tmp_path}/store", f"data.panels={tmp_path}/panels")
    options = [part for setting in (*SMALL, *places) for part in ("--set", setting)]
    return ["train", "--json", "--out", str(tmp_path / "run"), *options]


def test_entrypoint_with_awkward_arguments_is_quoted_for_the_shell() -> None:
    line = entrypoint_of(["train", "--set", "data.symbols=[AAPL, IBM]", "it's", "$HOME"])
    expected = """python -m rl.cli train --set 'data.symbols=[AAPL, IBM]' 'it'"'"'s' '$HOME'"""
    assert line == expected
    parsed = subprocess.run(
        ["sh", "-c", f'set -- {line}; printf "%s\\n" "$@"'], capture_output=True, text=True, check=True
    )
    assert parsed.stdout.splitlines()[3:] == ["train", "--set", "data.symbols=[AAPL, IBM]", "it's", "$HOME"]


@pytest.mark.parametrize("out", [["--out", "runs/first"], ["--out=runs/first"]])
def test_entrypoint_with_relative_out_is_refused(out: list[str]) -> None:
    with pytest.raises(RunError, match=r"--out runs/first.*absolute path"):
        entrypoint_of(["train", *out])


@pytest.mark.parametrize("out", ["/data/runs/first", "s3://bucket/runs/first"])
def test_entrypoint_with_lasting_out_is_accepted(out: str) -> None:
    assert entrypoint_of(["train", "--out", out]).endswith(out)


def test_entrypoint_without_command_is_refused() -> None:
    with pytest.raises(RunError, match="no command given"):
        entrypoint_of([])


@pytest.mark.parametrize("address", ["http://127.0.0.1:{port}", "127.0.0.1:{port}", "http://[bad"])
def test_jobs_submit_to_unreachable_address_exits_2_with_one_clear_line(address: str) -> None:
    address = address.format(port=free_ports(1)[0])
    started = time.monotonic()
    result = jobs("submit", "--address", address, "--", "train", "--out", "/tmp/never")
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
    assert address in result.stderr
    assert time.monotonic() - started < 15


def test_jobs_submit_to_silent_server_gives_up(tmp_path: Path) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        result = jobs("status", "--address", address, "any")
    assert result.returncode == 2
    assert "no Ray dashboard answers" in result.stderr


def test_jobs_submit_outside_the_repository_exits_2(tmp_path: Path) -> None:
    result = jobs("submit", "--working-dir", str(tmp_path), "--", "train", "--out", "/tmp/never")
    assert result.returncode == 2
    assert f"{tmp_path}: holds no rl/cli.py" in result.stderr


@pytest.mark.ray
def test_head_listens_on_loopback_only(head: str) -> None:
    port = int(head.rpartition(":")[2])
    everyone = {each.pid: each for each in psutil.process_iter()}
    owner = next(
        each.pid
        for each in psutil.net_connections("tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid
    )
    # Up to scripts/contained.py, then down to all of its processes.
    root = next(each for each in everyone[owner].parents() if "contained.py" in " ".join(each.cmdline()))
    family = {each.pid for each in root.children(recursive=True)}
    listening = {
        each.laddr.ip
        for each in psutil.net_connections("inet")
        if each.pid in family and each.status == psutil.CONN_LISTEN
    }
    assert listening <= {"127.0.0.1", "::ffff:127.0.0.1"}


@pytest.mark.ray
def test_jobs_submit_training_is_followed_live_and_succeeds(head: str, training: list[str], tmp_path: Path) -> None:
    process = start_following(head, "trains", *training, "--set", "train.steps=512")
    assert status_of(head, "trains")["status"] == "RUNNING"  # we read its log while it runs
    rest, _ = process.communicate(timeout=100)
    assert process.returncode == 0, rest
    assert (tmp_path / "run" / "weights.safetensors").is_file()
    iterations = [json.loads(line)["steps"] for line in rest.splitlines() if '"steps_wanted"' in line]
    assert iterations == sorted(set(iterations))
    assert iterations[-1] >= 512
    assert "job trains: SUCCEEDED" in rest
    assert status_of(head, "trains") == {
        "submission_id": "trains",
        "status": "SUCCEEDED",
        "exit_code": 0,
        "message": "Job finished successfully.",
    }
    logs = jobs("logs", "--address", head, "trains")
    assert logs.stdout.count('"steps_wanted"') == len(iterations)

    again = jobs("submit", "--address", head, "--submission-id", "trains", "--", *training)
    assert again.returncode == 2
    assert "already exists" in again.stderr.splitlines()[-1]


@pytest.mark.ray
def test_jobs_submit_unknown_setting_returns_the_commands_exit_code(head: str, training: list[str]) -> None:
    result = jobs("submit", "--address", head, "--json", "--", *training, "--set", "train.stepps=1")
    assert result.returncode == 2, result.stderr
    outcome = json.loads(result.stdout)
    assert (outcome["status"], outcome["exit_code"]) == ("FAILED", 2)
    assert "unknown key 'train.stepps'" in result.stderr  # with --json the log goes to stderr


@pytest.mark.ray
def test_jobs_submit_ctrl_c_leaves_the_job_running_until_it_is_stopped(head: str, training: list[str]) -> None:
    process = start_following(head, "long", *training, "--set", "train.steps=10000000")
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=30)
    assert process.returncode == 130, rest
    assert "job long goes on" in rest
    assert f"swing-rl jobs stop --address {head}" in rest
    assert status_of(head, "long") == {
        "submission_id": "long",
        "status": "RUNNING",
        "exit_code": None,
        "message": "Job is currently running.",
    }

    assert jobs("stop", "--address", head, "long").stdout == "job long: is being stopped\n"
    followed = jobs("logs", "--address", head, "--follow", "long")
    assert followed.returncode == 0, followed.stderr
    ended = status_of(head, "long")
    assert (ended["status"], ended["exit_code"]) == ("STOPPED", 1)


@pytest.mark.ray
def test_jobs_submit_past_its_deadline_is_stopped_and_failed(head: str, training: list[str]) -> None:
    options = ["--deadline-s", "1", "--submission-id", "late", "--json"]
    result = jobs("submit", "--address", head, *options, "--", *training, "--set", "train.steps=10000000")
    assert result.returncode == 124
    assert json.loads(result.stdout)["status"] == "FAILED"
    deadline = time.monotonic() + 30
    while status_of(head, "late")["status"] in {"PENDING", "RUNNING"}:
        assert time.monotonic() < deadline


@pytest.mark.ray
def test_jobs_status_of_unknown_job_exits_2(head: str) -> None:
    result = jobs("status", "--address", head, "nobody")
    assert result.returncode == 2
    assert "nobody does not exist" in result.stderr


@pytest.mark.ray
def test_jobs_status_with_other_authentication_exits_2(head: str, tmp_path: Path) -> None:
    result = jobs("status", "--address", head, "--auth-mode", "token", "nobody", HOME=str(tmp_path))
    assert result.returncode == 2
    assert "Ray refuses access" in result.stderr
