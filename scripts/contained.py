"""Runs a command so that nothing it started outlives it, daemons included (Linux).

    python scripts/contained.py [--grace S] -- COMMAND [ARGUMENT …]

This process becomes a child subreaper: whatever loses its parent below it, by a double fork or by setsid,
becomes its own child and can be found, ended and reaped. SIGINT, SIGTERM and SIGHUP are passed on to the
command; a second one ends everything at once. Only SIGKILL of this very process lets the rest escape.

Exit status: the command's own; 128 + signal if a signal ended it; 130 after Ctrl-C; 126 or 127 if it could
not be started.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
POLL_S = 0.05


def run(command: Sequence[str], grace_s: float = 5.0) -> int:
    """Returns the exit status of `command`, once it and every process it started are gone.

    Call it from the main thread of a process that has no other children: it reaps them all.

    Args:
        command: Program and arguments; no shell is involved.
        grace_s: How long what is left over may take to end on SIGTERM before it is killed.

    Raises:
        OSError: The program cannot be started.
    """
    become_subreaper()
    # A signal that we were started to ignore (nohup) stays ignored, by us and by the command.
    passed_on = {s for s in PASSED_ON if signal.getsignal(s) is not signal.SIG_IGN}
    with _blocked({*passed_on, signal.SIGCHLD}) as old_mask:
        child = os.posix_spawnp(
            command[0],
            list(command),
            os.environ,
            setsid=True,
            setsigmask=old_mask,
            setsigdef=[signal.SIGPIPE],
        )
        status, received = _wait(child, passed_on)
        end_children(0.0 if len(received) > 1 else grace_s, passed_on)
    if signal.SIGINT in received:
        return 128 + signal.SIGINT
    return status if status >= 0 else 128 - status


def become_subreaper() -> None:
    """Makes this process the new parent of every descendant whose own parent ends."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER) failed")


def descendants(pid: int) -> list[int]:
    """Returns the ids of all living processes below `pid`, parents before children; zombies are left out."""
    children = defaultdict(list)
    zombies = set()
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            # The name, in parentheses, may itself hold spaces and parentheses.
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            children[int(parent)].append(int(folder.name))
            if state in "ZX":
                zombies.add(int(folder.name))
    found = [pid]
    for parent_pid in found:
        found.extend(children[parent_pid])
    return [each for each in found[1:] if each not in zombies]


def end_children(grace_s: float, hasteners: Collection[signal.Signals] = ()) -> None:
    """Ends and reaps every descendant: SIGTERM, then SIGKILL after `grace_s` seconds.

    SIGCHLD should be blocked, or each round takes a whole poll.

    Args:
        grace_s: Seconds; 0 kills at once.
        hasteners: Blocked signals; the first to arrive ends the grace.
    """
    deadline = time.monotonic() + grace_s
    asked: set[int] = set()
    while _reap() is not None:
        overdue = time.monotonic() >= deadline
        for pid in descendants(os.getpid()):
            with contextlib.suppress(ProcessLookupError):
                if overdue:
                    os.kill(pid, signal.SIGKILL)
                elif pid not in asked:
                    os.kill(pid, signal.SIGTERM)
                    asked.add(pid)
        arrived = signal.sigtimedwait({*hasteners, signal.SIGCHLD}, POLL_S)
        if arrived and arrived.si_signo != signal.SIGCHLD:
            deadline = time.monotonic()


def _wait(child: int, passed_on: Collection[signal.Signals]) -> tuple[int, list[signal.Signals]]:
    received: list[signal.Signals] = []
    while True:
        number = signal.Signals(signal.sigwait({*passed_on, signal.SIGCHLD}))
        if number != signal.SIGCHLD:
            received.append(number)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child, number if len(received) == 1 else signal.SIGKILL)
        ended = _reap() or {}
        if child in ended:
            return ended[child], received


def _reap() -> dict[int, int] | None:
    """Returns pid -> exit code (minus the signal) of the children that ended; None if there is no child."""
    ended: dict[int, int] = {}
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return ended or None
        if pid == 0:
            return ended
        ended[pid] = os.waitstatus_to_exitcode(status)


@contextlib.contextmanager
def _blocked(signals: Collection[signal.Signals]) -> Iterator[set[int]]:
    # Blocked and waited for, not handled: no moment is left in which one could be lost.
    old_mask = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield {int(each) for each in old_mask}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, old_mask)


def main() -> int:
    """Returns the exit status for the arguments of this process."""
    parser = argparse.ArgumentParser(description="Run a command so that nothing it started outlives it.")
    parser.add_argument("--grace", type=float, default=5.0, metavar="S", help="seconds before SIGKILL (5)")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- COMMAND [ARGUMENT …]")
    arguments = parser.parse_args()
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        parser.error("no command given; write it after --")
    try:
        return run(command, arguments.grace)
    except OSError as error:
        print(f"error: {command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
        return 127 if isinstance(error, FileNotFoundError) else 126


if __name__ == "__main__":
    sys.exit(main())
