"""Builds and writes one panel, and prints its peak memory and CPU; a process of its own for benchmarks.features."""

from __future__ import annotations

import json
import resource
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
            "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
