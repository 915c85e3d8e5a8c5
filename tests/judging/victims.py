"""Writers of chains that are killed or that race, each in a process of its own.

A process that runs threads cannot be forked safely, so `python victims.py kill …` is a process that runs none: it
forks one child for every moment at which a write can be cut, and another one that looks at what is left.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data_pipeline.errors import BundleError
from rl.judging.chain import Chain
from rl.judging.registry import Registry

KILLED = -signal.SIGKILL
PROGRAM = [sys.executable, __file__]
FOLDER = "record"


def run(*command: str | Path) -> Any:
    """What one of the commands below prints, each in a process of its own."""
    done = subprocess.run([*PROGRAM, *command], env=_environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def race(*commands: tuple[str, ...]) -> list[Any]:
    """What several commands print that begin at once."""
    with ExitStack() as stack:
        racers = [stack.enter_context(_waiting(command)) for command in commands]
        for racer in racers:
            assert racer.stdout.readline() == "ready\n"
        for racer in racers:
            racer.stdin.write("go\n")
            racer.stdin.flush()
        answers = [racer.communicate(timeout=60) for racer in racers]
        assert [racer.returncode for racer in racers] == [0] * len(racers), answers
        return [json.loads(told) for told, _ in answers]


@contextmanager
def _waiting(command: tuple[str, ...]) -> Iterator[subprocess.Popen[str]]:
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([*PROGRAM, *command], env=_environment(), text=True, **pipes) as racer:
        try:
            yield racer
        finally:
            racer.kill()


def _environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


def _forked(work: Callable[[], Any]) -> tuple[int, Any]:
    """The exit status and the result of work in a child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            status = 0
        except BaseException as error:
            sys.stderr.write(f"{error!r}\n")
        finally:
            os._exit(status)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        told = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return status, json.loads(told) if told else None


def _die_at(root: str, k: int) -> None:
    """Kills this process at the k-th thing that it does to files under `root`, or at the k-th half of a request."""
    count = itertools.count(1)

    def before() -> None:
        if next(count) == k:
            os.kill(os.getpid(), signal.SIGKILL)

    if not root.startswith("s3://"):
        doing = {"open", "os.link", "os.mkdir", "os.remove", "os.rename"}
        sys.addaudithook(lambda event, facts: before() if event in doing and root in str(facts) else None)
        return
    send = socket.socket.sendall

    def in_halves(self, body, *flags):
        body = bytes(body)
        for half in (body[: len(body) // 2], body[len(body) // 2 :]):
            before()
            send(self, half, *flags)

    socket.socket.sendall = in_halves


def _append_twice(root: str, k: int) -> None:
    chain = Chain(root, FOLDER)
    chain.append("lives", {})
    _die_at(root, k)
    chain.append("dies", {})


def _promote(root: str, version: str) -> str:
    return Registry(root).promote(version, override="rehearsal").version


def kill_append(root: str) -> None:
    """Kills the writer of a second entry at its first, second, … operation, in `root/1`, `root/2`, …, until one lives.

    Prints how many were killed.
    """
    for k in itertools.count(1):
        status, _ = _forked(lambda k=k: _append_twice(f"{root}/{k}", k))
        assert status in (0, KILLED)
        if status == 0:
            print(k - 1)
            return


def kill_promote(root: str, version: str) -> None:
    """Kills the promoter of a rejected bundle at every operation until it is promoted; prints the states after each.

    On S3 only every fifth half of a request is the last one: there are a hundred.
    """
    found = []
    for k in itertools.count(1, 5 if root.startswith("s3://") else 1):
        status, _ = _forked(lambda k=k: (_die_at(root, k), _promote(root, version)))
        assert status in (0, KILLED)
        found.append(_checked(lambda: {each.version: each.state for each in Registry(root).list()}))
        if found[-1][version] == "retired":
            print(json.dumps(found))
            return


def kill_any_time(root: str, rounds: str) -> None:
    """Kills a busy writer at a random moment, many times; prints the numbers that it was told were written."""
    chance, told = random.Random(0), []
    for _ in range(int(rounds)):
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            chain = Chain(root, FOLDER)
            while True:
                os.write(writing, b"%d\n" % chain.append("killed", {"who": os.getpid()}).number)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            told.append(int(pipe.readline()))  # it is under way
            time.sleep(chance.uniform(0, 0.04))
            os.kill(child, signal.SIGKILL)
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == KILLED
            told += map(int, pipe.read().split())
    print(json.dumps(told))


def append_many(root: str, who: str, rounds: str) -> None:
    """Appends in a race, now and then, as a sweep does; prints the numbers."""
    chain, chance, numbers = Chain(root, FOLDER), random.Random(who), []
    _on_your_marks()
    for n in range(int(rounds)):
        numbers.append(chain.append("raced", {"who": who, "n": n}).number)
        time.sleep(chance.uniform(0, 0.05))
    print(json.dumps(numbers))


def promote_many(root: str, version: str, rounds: str) -> None:
    """Tries in a race to make a bundle champion; prints how each try ended."""
    registry, told = Registry(root), []
    _on_your_marks()
    for _ in range(int(rounds)):
        try:
            registry.promote(version)
            told.append("done")
        except BundleError as error:
            told.append(str(error))
    print(json.dumps(told))


def _on_your_marks() -> None:
    print("ready", flush=True)
    sys.stdin.readline()


def _checked(look: Callable[[], Any]) -> Any:
    status, seen = _forked(look)
    assert status == 0
    return seen


if __name__ == "__main__":
    COMMANDS = (kill_append, kill_promote, kill_any_time, append_many, promote_many)
    {command.__name__: command for command in COMMANDS}[sys.argv[1]](*sys.argv[2:])
