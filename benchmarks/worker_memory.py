"""Opens a saved panel, steps 1,024 slots on it and prints the MiB of its own that took; for benchmarks.simulator."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from benchmarks.simulator import SETTINGS
from benchmarks.stepping import slot_steps_of
from data_pipeline.folds import Span
from envs.market import Market
from envs.swing import SwingVectorEnv

SLOTS, STEPS = 1024, 300


def main() -> None:
    """Takes the panel's folder and the scaler as JSON."""
    folder, scaler = sys.argv[1:]
    before = private_kib()
    market = Market.open(folder, json.loads(scaler))
    env = SwingVectorEnv(SLOTS, market, Span(0, market.sessions), settings=SETTINGS)
    slot_steps_of(env, np.random.default_rng(0).integers(0, 3, (STEPS, SLOTS)))()
    print((private_kib() - before) / 1024)


def private_kib() -> int:
    """Returns this process's own memory: mapped files are not in it, and a fresh process shares nothing else."""
    lines = Path("/proc/self/smaps_rollup").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


if __name__ == "__main__":
    main()
