"""`scripts/contained.py`: nothing a command started outlives it."""

from __future__ import annotations

import os
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

CONTAINED = Path(__file__).parents[1] / "scripts" / "contained.py"
descendants = runpy.run_path(str(CONTAINED))["descendants"]

# Double fork with a session of its own, as daemons do; the daemon writes its pid and ignores SIGTERM.
DAEMON = """
import os, signal, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        if "stubborn" in sys.argv:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        with open(sys.argv[1] + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".part", sys.argv[1])
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists(sys.argv[1]):
    time.sleep(0.01)
"""


def heed_sigint() -> None:
    # A shell that runs the tests in the background has them ignore SIGINT.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(CONTAINED), *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_sigint,  # noqa: PLW1509  (no threads here)
    )


def status_of(*arguments: str) -> int:
    process = start(*arguments)
    process.communicate(timeout=30)
    return process.returncode


def python(code: str, *arguments: str) -> list[str]:
    return ["--", sys.executable, "-c", code, *arguments]


def wait_until(condition: Callable[[], bool], deadline_s: float = 20) -> None:
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "waited too long"
        time.sleep(0.02)


@pytest.mark.parametrize("status", [0, 1, 2, 42])
def test_contained_command_ends_passes_its_exit_status_through(status: int) -> None:
    assert status_of(*python(f"raise SystemExit({status})")) == status


def test_contained_command_killed_returns_128_plus_signal() -> None:
    assert status_of(*python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")) == 137


@pytest.mark.parametrize(("program", "status"), [("/no/such/program", 127), ("/etc/passwd", 126)])
def test_contained_command_cannot_start_says_so(program: str, status: int) -> None:
    process = start("--", program)
    _, stderr = process.communicate(timeout=30)
    assert (process.returncode, stderr.count("\n")) == (status, 1)
    assert program in stderr


@pytest.mark.parametrize("temper", ["meek", "stubborn"])
def test_contained_daemon_left_behind_is_ended(tmp_path: Path, temper: str) -> None:
    pid_file = tmp_path / "pid"
    assert status_of("--grace", "0.5", *python(DAEMON, str(pid_file), temper)) == 0
    assert not psutil.pid_exists(int(pid_file.read_text()))


def test_daemon_without_containment_survives(tmp_path: Path) -> None:
    # The danger is real: the same daemon, started plainly, is still there afterwards.
    pid_file = tmp_path / "pid"
    subprocess.run(python(DAEMON, str(pid_file))[1:], check=True, timeout=30)
    daemon = psutil.Process(int(pid_file.read_text()))
    assert daemon.is_running()
    daemon.kill()


def test_contained_ctrl_c_half_way_returns_130_and_leaves_nothing(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    process = start(*python(DAEMON + "\ntime.sleep(600)", str(pid_file)))
    wait_until(pid_file.exists)
    below = psutil.Process(process.pid).children(recursive=True)
    assert int(pid_file.read_text()) in [each.pid for each in below]
    assert len(below) == 2

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "KeyboardInterrupt" in stderr  # the command itself was interrupted, not merely killed
    assert not [each for each in below if each.is_running()]


def test_contained_sigterm_is_passed_on_and_status_kept(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))
pathlib.Path(sys.argv[1]).touch()
signal.pause()
"""
    process = start(*python(code, str(ready)))
    wait_until(ready.exists)
    process.terminate()
    process.communicate(timeout=30)
    assert process.returncode == 7


def test_contained_second_ctrl_c_hastens_a_deaf_command(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    code = """
import pathlib, signal, sys
signal.signal(signal.SIGINT, lambda *_: pathlib.Path(sys.argv[1] + ".heard").touch())
pathlib.Path(sys.argv[1]).touch()
while True:
    signal.pause()
"""
    process = start("--grace", "600", *python(code, str(ready)))
    wait_until(ready.exists)
    process.send_signal(signal.SIGINT)
    wait_until((tmp_path / "ready.heard").exists)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130


def test_contained_ctrl_c_while_ending_leftovers_cuts_the_grace_short(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    process = start("--grace", "600", *python(DAEMON, str(pid_file), "stubborn"))
    wait_until(pid_file.exists)
    daemon = psutil.Process(int(pid_file.read_text()))
    # The command has ended when its daemon is all that is left.
    wait_until(lambda: psutil.Process(process.pid).children() == [daemon])
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 0
    assert not daemon.is_running()


def test_descendants_of_a_tree_are_found_parents_first() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(600)'])"
    parent = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_until(lambda: len(descendants(os.getpid())) >= 2)
        found = descendants(parent.pid)
        assert found == [each.pid for each in psutil.Process(parent.pid).children(recursive=True)]
        assert len(found) == 1
        everyone = descendants(os.getpid())
        assert everyone.index(parent.pid) < everyone.index(found[0])
    finally:
        for each in [*psutil.Process(parent.pid).children(recursive=True), parent]:
            each.kill()
        parent.wait()
