"""The one shape of every benchmark: interleaved runs, a table for people, one JSON object for machines."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Column, Table

Figure = dict[str, Any]
PIPED_WIDTH = 120
"""Columns of the table where no terminal says how many there are."""


def arguments(description: str) -> argparse.Namespace:
    """Returns the options that every benchmark has."""
    return parser_of(description).parse_args()


def parser_of(description: str) -> argparse.ArgumentParser:
    """Returns a parser of the options that every benchmark has, --quick and --json, to which others may be added."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="smoke form: checks that it works, not its figures")
    parser.add_argument("--json", metavar="FILE", help="write the result as JSON; - prints it as the last line")
    return parser


def interleaved(contestants: Mapping[str, Callable[[], float]], unit: str, runs: int) -> dict[str, Figure]:
    """Runs the contestants in turn (A B A B …) and returns each one's median, min and max.

    Args:
        contestants: Name -> function that runs once and returns its rate.
        unit: Of the rates.
        runs: Rounds, after one that is not counted.
    """
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(runs + 1):
        for name, run in contestants.items():
            rate = run()
            if number:
                rates[name].append(rate)
    return {name: figure(found, unit) for name, found in rates.items()}


def rate(work: Callable[[], int], seconds: float) -> float:
    """Returns units of work per CPU-second of this process.

    Args:
        work: Does some and returns how much; called until `seconds` are used up, so that fast and slow contestants
            are measured for equally long.
        seconds: Of CPU.
    """
    done, used, started = 0, 0.0, time.process_time()
    while used < seconds:
        done += work()
        used = time.process_time() - started
    return done / used


def cpu_seconds() -> float:
    """Returns the CPU-seconds of this process and of all below it that live."""
    times = _ask_all(lambda process: process.cpu_times())
    return float(sum(each.user + each.system for each in times))


def process_lines() -> list[str]:
    """Returns the command lines of this process and of the processes below this one."""
    return [" ".join(line) for line in _ask_all(lambda process: process.cmdline())]


def _ask_all(question: Callable[[psutil.Process], Any]) -> list[Any]:
    answers = []
    for process in (me := psutil.Process(), *me.children(recursive=True)):
        try:
            answers.append(question(process))
        except psutil.NoSuchProcess:
            continue
    return answers


def figure(values: list[float], unit: str) -> Figure:
    """Returns median, min and max of some runs."""
    extent = {"median": statistics.median(values), "min": min(values), "max": max(values)}
    return {**extent, "runs": len(values), "unit": unit}


def publish(
    name: str,
    options: argparse.Namespace,
    figures: dict[str, Figure],
    ratios: dict[str, float],
    skipped: dict[str, str],
) -> None:
    """Prints the table and, where asked for, the JSON object."""
    table = Table(Column("figure", no_wrap=True), "median", "min", "max", "unit", title=name)
    for key, found in figures.items():
        table.add_row(key, *(shown(found[part]) for part in ("median", "min", "max")), found["unit"])
    for key, ratio in ratios.items():
        table.add_row(key, f"{ratio:.2f}", "", "", "ratio")
    for peer, reason in skipped.items():
        table.add_row(peer, "skipped", "", "", reason)
    Console(width=None if sys.stdout.isatty() else PIPED_WIDTH).print(table)
    emit(name, options, {"figures": figures, "ratios": ratios, "skipped": skipped})


def emit(name: str, options: argparse.Namespace, found: Mapping[str, Any]) -> None:
    """Writes or prints the JSON object where it is asked for."""
    result = {
        "benchmark": name,
        "when": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "commit": _commit(),
        "machine": _machine(),
        **found,
    }
    if options.json == "-":
        print(json.dumps(result))
    elif options.json:
        Path(options.json).write_text(json.dumps(result, indent=1), encoding="utf-8")


def shown(value: float) -> str:
    """Returns a figure as people read it: whole when large, two decimals when small."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}"


def _machine() -> dict[str, Any]:
    def installed(package: str) -> str:
        try:
            return version(package)
        except PackageNotFoundError:
            return "absent"

    models = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        **{package: installed(package) for package in ("numpy", "torch", "ray")},
    }


def _cpuinfo() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text(encoding="utf-8").splitlines() if path.is_file() else []


def _commit() -> str:
    asked = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return asked.stdout.strip() or "unknown"
