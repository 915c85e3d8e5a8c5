"""Runs every benchmark and keeps the results: benchmarks/results/<date>.json and docs/performance.md."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.shape import shown

ROOT = Path(__file__).parents[1]
NAMES = ("features", "simulator")


def main() -> None:
    """Runs them one after another, each in a process of its own."""
    results = []
    for name in NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}", "--json", "-"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout, end="")
        results.append(json.loads(done.stdout.splitlines()[-1]))
    folder = ROOT / "benchmarks" / "results"
    folder.mkdir(exist_ok=True)
    (folder / f"{datetime.now(UTC):%Y-%m-%d}.json").write_text(json.dumps(results, indent=1), encoding="utf-8")
    (ROOT / "docs" / "performance.md").write_text(_page(results), encoding="utf-8")


def _page(results: list[dict[str, Any]]) -> str:
    lines = ["# Performance", "", "Written by `make bench`; medians, and the machine they were measured on.", ""]
    for result in results:
        lines += [
            f"## {result['benchmark']}",
            "",
            f"{result['when']}, commit {result['commit']}, {result['machine']}",
            "",
        ]
        lines += ["| figure | median | unit |", "|---|---:|---|"]
        lines += [f"| {k} | {shown(f['median'])} | {f['unit']} |" for k, f in result["figures"].items()]
        lines += [f"| {k} | {ratio:.2f} | ratio |" for k, ratio in result["ratios"].items()]
        lines += ["", *(f"Skipped: {peer}, {why}." for peer, why in result["skipped"].items()), ""]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
