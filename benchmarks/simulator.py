"""Slot-steps per CPU-second of the vector environment on bundled bars, all daily costs on."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

from benchmarks.shape import arguments, interleaved, publish
from data_pipeline.assemble import build_panel
from data_pipeline.features import FeatureSet
from data_pipeline.folds import Span
from data_pipeline.scaling import fit_scaler
from data_pipeline.sources.bundled import BundledBars
from envs.market import Market
from envs.swing import SwingVectorEnv

PEERS = ("gym-anytrading", "gym-trading-env", "finrl")


def main() -> None:
    """Measures batches of 64, 1,024 and 4,096 slots."""
    options = arguments(__doc__ or "")
    panel = build_panel(BundledBars().fetch(), FeatureSet.of())
    span = Span(200, len(panel.sessions))
    market = Market(panel, fit_scaler(panel, span))
    steps, runs = (20, 1) if options.quick else (400, 5)
    contestants = {f"slot_steps_per_cpu_s_b{slots}": _rate(market, span, slots, steps) for slots in (64, 1024, 4096)}
    figures = interleaved(contestants, "slot-steps per CPU-second", runs)
    publish("simulator", options, figures, {}, dict.fromkeys(PEERS, "no adapter in this version"))


def _rate(market: Market, span: Span, slots: int, steps: int) -> Callable[[], float]:
    env = SwingVectorEnv(slots, market, span)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(0, 3, (steps, slots))

    def run() -> float:
        started = time.process_time()
        for row in actions:
            env.step(row)
        return slots * steps / (time.process_time() - started)

    return run


if __name__ == "__main__":
    main()
