"""Runs every benchmark and keeps the results: benchmarks/results/<date>.json and docs/performance.md."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.shape import shown

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results"
NAMES = ("features", "simulator", "training", "learning", "scaling", "judge")


def main() -> None:
    """Runs them one after another, each in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "what", nargs="*", help=f"of {', '.join(NAMES)}, or files that `--json FILE` wrote, to be taken in; none: all"
    )
    fresh: list[dict[str, Any]] = [
        _run(what) if what in NAMES else json.loads(Path(what).read_text(encoding="utf-8"))
        for what in parser.parse_args().what or NAMES
    ]
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{datetime.now(UTC):%Y-%m-%d}.json"
    today = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    path.write_text(json.dumps(_renewed(today, fresh), indent=1), encoding="utf-8")
    (ROOT / "docs" / "performance.md").write_text(_page(_newest()), encoding="utf-8")


def _run(name: str) -> dict[str, Any]:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--json", "-"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    print(done.stdout, end="")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def _renewed(old: list[dict[str, Any]], fresh: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns the results with those of benchmarks that ran anew in the place of older ones."""
    names = {result["benchmark"] for result in fresh}
    kept = [result for result in old if result["benchmark"] not in names]
    return sorted(kept + fresh, key=lambda result: NAMES.index(result["benchmark"]))


def _newest() -> list[dict[str, Any]]:
    """Returns the newest results of each benchmark, whatever day they are of."""
    results: list[dict[str, Any]] = []
    for path in sorted(FOLDER.glob("*.json")):
        results = _renewed(results, json.loads(path.read_text(encoding="utf-8")))
    return results


def _page(results: list[dict[str, Any]]) -> str:
    lines = ["# Performance", "", "Written by `make bench`; medians, and the machine they were measured on.", ""]
    for result in results:
        lines += [
            f"## {result['benchmark']}",
            "",
            f"{result['when']}, commit {result['commit']}, {result['machine']}",
            "",
        ]
        kinds = {"scores": _scores, "figures": _figures}
        lines += next((rows for name, rows in kinds.items() if name in result), _numbers)(result)
        lines += ["", *(f"Skipped: {peer}, {why}." for peer, why in result["skipped"].items()), ""]
    return "\n".join(lines)


def _numbers(result: dict[str, Any]) -> list[str]:
    rest = {k: v for k, v in result.items() if k not in ("benchmark", "when", "commit", "machine", "skipped")}
    return ["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rest.items())]


def _figures(result: dict[str, Any]) -> list[str]:
    lines = ["| figure | median | unit |", "|---|---:|---|"]
    lines += [f"| {k} | {shown(f['median'])} | {f['unit']} |" for k, f in result["figures"].items()]
    return lines + [f"| {k} | {ratio:.2f} | ratio |" for k, ratio in result["ratios"].items()]


def _scores(result: dict[str, Any]) -> list[str]:
    lines = ["| world | algorithm | score / optimum: median (seeds) | CPU-minutes, at most | CPU-seconds to 0.95 |"]
    lines.append("|---|---|---|---:|---|")
    for world, found in result["scores"].items():
        for algorithm, each in found.items():
            seeds = ", ".join(f"{s:.3f} ± {e:.3f}" for s, e in zip(each["seeds"], each["standard_errors"], strict=True))
            passed = ", ".join("–" if s is None else f"{s:.0f}" for s in each["cpu_seconds_to_0.95"])
            score = f"{each['median']:.3f} ({seeds})"
            lines.append(f"| {world} | {algorithm} | {score} | {each['cpu_minutes']:.2f} | {passed} |")
    for name, each in result["controls"].items():
        seeds = ", ".join(f"{score:.3f}" for score in each["seeds"])
        lines.append(f"| {name} | control | {each['median']:.3f} ({seeds}) | | |")
    return lines


if __name__ == "__main__":
    main()
