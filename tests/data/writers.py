"""Writers that are killed, that race or that run out of disk: each runs in a process of its own.

A process that has used polars cannot be forked safely, so `python writers.py kill …` is a process that has not: it
forks one child for every operation at which a write can be cut, and each child dies at its own.
"""

from __future__ import annotations

import itertools
import os
import resource
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from pyarrow import fs

from data_pipeline.errors import StoreError
from data_pipeline.store import Store

KILLED = 9
PROGRAM = [sys.executable, __file__]
PROVENANCE = {"source": "test", "feed": "none", "adjustment": "raw"}


def earlier() -> pl.DataFrame:
    """Daily bars of two symbols in one year."""
    return table((2020,))


def later() -> pl.DataFrame:
    """`earlier` and two years more: the first part is shared."""
    return table((2020, 2021, 2022))


def table(years: tuple[int, ...], symbols: tuple[str, ...] = ("A", "B"), close: float = 10.0) -> pl.DataFrame:
    """Daily bars: the first week of January of each year."""
    rows = [
        (symbol, date(year, 1, day), close - 1, close + 2, close - 2, close + day, 100.0 * day, 1.0, 0.0)
        for symbol in symbols
        for year in years
        for day in range(1, 8)
    ]
    names = ["symbol", "session", "open", "high", "low", "close", "volume", "split", "dividend"]
    return pl.DataFrame(rows, schema=names, orient="row")


def large(rows: int) -> pl.DataFrame:
    """Daily bars of one symbol that cannot be compressed: 64 bytes a row, 23 kB a part."""
    noise = np.random.default_rng(0).random((rows, 7))
    days = pl.date_range(date(1900, 1, 1), date(1900, 1, 1) + timedelta(days=rows - 1), eager=True)
    return pl.DataFrame(noise, schema=earlier().columns[2:]).select(
        pl.lit("A").alias("symbol"), days.alias("session"), pl.all()
    )


def environment() -> dict[str, str]:
    """That of the tests, with the project to import."""
    return os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


class WatchedFilesystem(fs.FileSystemHandler):
    """Local disk that calls `before` ahead of each operation; what is written goes out in two halves."""

    def __init__(self, before: Callable[[], None]) -> None:
        self._disk, self._before = fs.LocalFileSystem(), before

    def get_type_name(self):
        return "watched"

    def normalize_path(self, path):
        return path

    def get_file_info(self, paths):
        self._before()
        return self._disk.get_file_info(paths)

    def get_file_info_selector(self, selector):
        self._before()
        return self._disk.get_file_info(selector)

    def create_dir(self, path, recursive):
        self._before()
        self._disk.create_dir(path, recursive=recursive)

    def delete_file(self, path):
        self._before()
        self._disk.delete_file(path)

    def move(self, src, dest):
        self._before()
        self._disk.move(src, dest)

    def open_input_stream(self, path):
        self._before()
        return self._disk.open_input_stream(path)

    def open_output_stream(self, path, metadata):
        self._before()
        return pa.PythonFile(_InHalves(path, self._before), mode="w")

    def _unused(self, *arguments):
        raise NotImplementedError

    copy_file = delete_dir = delete_dir_contents = delete_root_dir_contents = _unused
    open_append_stream = open_input_file = _unused


class _InHalves:
    """A file whose every write is two operations, and whose closing is one."""

    closed = False

    def __init__(self, path: str, before: Callable[[], None]) -> None:
        self._file, self._before = open(path, "wb", buffering=0), before  # noqa: PTH123, SIM115

    def write(self, body):
        body = bytes(body)
        for half in (body[: len(body) // 2], body[len(body) // 2 :]):
            self._before()
            self._file.write(half)
        return len(body)

    def flush(self):
        pass

    def close(self):
        if not self.closed:
            self.closed = True
            with self._file:
                self._before()


def watched(root: str, before: Callable[[], None]) -> Store:
    """A store on disk that calls `before` ahead of each operation."""
    return Store(root, fs.PyFileSystem(WatchedFilesystem(before)))


def run(*command: str | Path) -> str:
    """What one of the commands below prints, each in a process of its own."""
    done = subprocess.run([*PROGRAM, *command], env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def racing(root: str | Path, rounds: int) -> Iterator[Callable[[], bool]]:
    """Two writers at once; yields whether any is still writing."""
    with ExitStack() as stack:
        writers = []
        for who in ("left", "right"):
            writer = subprocess.Popen(
                [*PROGRAM, "race", root, who, str(rounds)],
                env=environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            stack.enter_context(writer)
            stack.callback(writer.kill)
            writers.append(writer)
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        for writer in writers:
            writer.stdin.write("go\n")
            writer.stdin.flush()
        yield lambda: any(writer.poll() is None for writer in writers)
        assert [writer.wait(60) for writer in writers] == [0, 0]


def _die_at(k: int) -> Callable[[], None]:
    count = itertools.count(1)

    def before() -> None:
        if next(count) == k:
            os._exit(KILLED)

    return before


def _write_on_disk(root: str, k: int) -> None:
    Store(root).write({"1Day": earlier()}, PROVENANCE)
    watched(root, _die_at(k)).write({"1Day": later()}, PROVENANCE)


def _write_on_s3(root: str, k: int) -> None:
    store = Store(root)
    store.write({"1Day": earlier()}, PROVENANCE)
    before, send = _die_at(k), socket.socket.sendall

    def in_halves(self, body, *flags):
        body = bytes(body)
        for half in (body[: len(body) // 2], body[len(body) // 2 :]):
            before()
            send(self, half, *flags)

    socket.socket.sendall = in_halves
    store.write({"1Day": later()}, PROVENANCE)


def kill(root: str) -> None:
    """Kills a writer at its first, second, … operation, in `root/1`, `root/2`, …, until one completes."""
    write = _write_on_s3 if root.startswith("s3://") else _write_on_disk
    for k in itertools.count(1):
        child = os.fork()
        if child == 0:
            try:
                write(f"{root}/{k}", k)
            except BaseException as error:
                sys.stderr.write(f"{k}: {error!r}\n")
                os._exit(1)
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if status != KILLED:
            print(k - 1)
            sys.exit(status)


def race(root: str, who: str, rounds: str) -> None:
    """Writes what the other writer writes too, and something of its own, many times."""
    store = Store(root)
    print("ready", flush=True)
    sys.stdin.readline()
    for n in range(int(rounds)):
        store.write({"1Day": table((2019, 2020, 2021), close=10.0 + n)}, PROVENANCE)
        store.write({"1Day": table((2019, 2020), close=10.0 + n)}, PROVENANCE | {"source": who})


def fill(root: str, limit_bytes: str) -> None:
    """Writes a small snapshot, then one that does not fit (`limit_bytes` per file; 0: as the disk is)."""
    store = Store(root)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    if int(limit_bytes):
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit_bytes), int(limit_bytes)))
    try:
        store.write({"1Day": large(20_000)}, PROVENANCE)
    except StoreError as error:
        print(error)
    assert store.snapshots() == [first]
    assert store.damaged() == []
    assert store.read(first.id).equals(earlier())
    assert list((Path(root) / "writing").iterdir()) == []


def weigh(root: str, doing: str) -> None:
    """Prints by how much the process grows at most while it writes or reads a million bars, over their own size."""
    store = Store(root)
    small = store.write({"1Day": earlier()}, PROVENANCE)
    assert store.read(small.id).equals(earlier())  # what is loaded at first use is no cost of the bars
    if doing == "write":
        symbols = pl.DataFrame({"symbol": [f"S{n:04}" for n in range(300)]})
        bars = symbols.join(large(3_650).with_columns(pl.selectors.float().round(3)).drop("symbol"), how="cross")
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is held now
    before = _memory("VmRSS")
    if doing == "write":
        store.write({"1Day": bars}, PROVENANCE)
    else:
        bars = store.read(store.snapshots()[-1].id)
    row_bytes = 16 + 4 + 8 * 7
    print((_memory("VmHWM") - before) / (bars.height * row_bytes))


def _memory(field: str) -> int:
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field)]
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    {"kill": kill, "race": race, "fill": fill, "weigh": weigh}[sys.argv[1]](*sys.argv[2:])
