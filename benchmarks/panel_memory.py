"""Builds and writes one panel, and prints its peak memory and CPU; a process of its own for benchmarks.features."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.features import market
from data_pipeline.assemble import build_panel
from data_pipeline.features import FeatureSet
from data_pipeline.panel import write_panel


def main() -> None:
    """Takes the numbers of symbols and sessions."""
    symbols, sessions = map(int, sys.argv[1:])
    bars = market(symbols, sessions)
    started = time.process_time()
    with tempfile.TemporaryDirectory() as root:
        folder = write_panel(lambda allocate: build_panel(bars, FeatureSet.of(), allocate=allocate), Path(root))
        used = time.process_time() - started
        told = {
            "rows": bars.height,
            "cpu_s": used,
            "panel_bytes": sum(file.stat().st_size for file in folder.iterdir()),
            "peak_bytes": _peak_bytes(),
        }
    print(json.dumps(told))


def _peak_bytes() -> int:
    """Returns the most memory this process held; getrusage would count its parent's as well, kept over exec."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))


if __name__ == "__main__":
    main()
