"""Steps per CPU-second of our environments with all daily costs on, beside those of others on the same real bars.

Everybody trades IBM at random, resets included. The ratios divide our 1,024 slots by a peer's fastest form. How the
rate and a worker's own memory hold as the panel grows is measured on panels opened from disk, which repeat IBM with
prices and volumes of their own. `numpy_sums_per_cpu_s` says how quick the machine was just then: bare additions of two
arrays of 1,024 numbers, counted in numbers; a slot-step costs as many of them as `numpy_sums_per_slot_step` says.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.peers import PEERS, Forms
from benchmarks.shape import Figure, arguments, figure, interleaved, publish, rate
from benchmarks.stepping import Work, slot_steps_of, steps_of
from data_pipeline.adjusted import adjustment_factor
from data_pipeline.assemble import build_panel
from data_pipeline.features import FeatureSet
from data_pipeline.folds import Span
from data_pipeline.panel import COLUMNS, Allocate, Panel, open_panel, run_lengths, write_panel
from data_pipeline.scaling import Scaler, fit_scaler
from data_pipeline.sources.bundled import BundledBars
from envs.market import Market
from envs.swing import PortfolioVectorEnv, SwingEnv, SwingVectorEnv

ALL_COSTS = {
    "commission_usd_per_share": 0.005,
    "commission_usd_per_order": 0.10,
    "commission_bps": 0.5,
    "commission_minimum_usd": 1.0,
    "half_spread_bps": 2.0,
    "spread": "high_low",
    "impact": 0.5,
    "max_participation": 0.1,
    "slippage_bps": 1.0,
    "borrow_bps_per_year": 50.0,
    "margin_bps_per_year": 650.0,
    "sec_fee_usd_per_million_sold": 20.60,
    "taf_usd_per_share_sold": 0.000195,
    "taf_maximum_usd": 9.79,
    "cat_usd_per_share": 0.000003,
}
"""Every cost there is; none is at a value that would let the simulator leave it out."""
SETTINGS: dict[str, Any] = {"costs": ALL_COSTS}
EPISODE_STEPS = 129
"""Decisions of an episode, and the step that starts the next one."""
NARROW, WIDE, SESSIONS = 10, 5_000, 2_500
UNIT = "steps per CPU-second"
YARDSTICK = "numpy_sums_per_cpu_s"
_PRICED = ("open", "high", "low", "close", "dividend", "adjusted_close")
_COUNTED = ("volume", "adv")


def main() -> None:
    """Measures everybody in turn, and memory in processes of their own."""
    options = arguments(__doc__ or "")
    seconds, runs = (0.01, 1) if options.quick else (0.5, 7)
    wide, sessions = (50, 400) if options.quick else (WIDE, SESSIONS)
    bars = BundledBars().fetch(["IBM"])
    real = build_panel(bars, FeatureSet.of())
    scaler = fit_scaler(real, Span(0, len(real.sessions)))
    peers, skipped = available(_adjusted(bars.to_pandas()), seconds)
    with tempfile.TemporaryDirectory() as root:
        folders = {size: repeated(real, size, sessions, Path(root)) for size in (NARROW, wide)}
        works = _ours(Market(real, scaler)) | _by_width(folders, scaler)
        contestants = {name: _timed(work, seconds) for name, work in (works | {YARDSTICK: _sums}).items()}
        for peer, forms in peers.items():
            contestants |= {f"{peer}_{form}": run for form, run in forms.items()}
        figures = interleaved(contestants, UNIT, runs)
        figures |= _memory(folders, scaler, runs)
    ours = figures["slot_steps_per_cpu_s_b1024"]["median"]
    ratios = {
        f"vs_{peer}": ours / max(figures[f"{peer}_{form}"]["median"] for form in forms) for peer, forms in peers.items()
    }
    ratios["numpy_sums_per_slot_step"] = figures[YARDSTICK]["median"] / ours
    rates = {size: figures[f"slot_steps_per_cpu_s_b1024_{size}_symbols"]["median"] for size in folders}
    ratios[f"symbols_{wide}_vs_{NARROW}"] = rates[wide] / rates[NARROW]
    publish("simulator", options, figures, ratios, skipped)


def available(day: pd.DataFrame, seconds: float) -> tuple[dict[str, Forms], dict[str, str]]:
    """Returns the peers that are installed, and why each other one is skipped."""
    forms, skipped = {}, {}
    for name, build in PEERS.items():
        try:
            forms[name] = build(day, seconds)
        except ImportError as error:
            skipped[name] = str(error)
    return forms, skipped


def repeated(real: Panel, symbols: int, sessions: int, root: Path) -> Path:
    """Writes the last sessions of a real symbol so many times over, prices and volumes varied; returns the folder."""
    rng = np.random.default_rng(0)
    price, count = rng.uniform(0.5, 2.0, (2, symbols))
    scale_NK = np.stack([price if c in _PRICED else count if c in _COUNTED else np.ones(symbols) for c in COLUMNS], -1)
    features_TF, bars_TK = real.features_NTF[0, -sessions:], real.bars_NTK[0, -sessions:]

    def filled(allocate: Allocate) -> Panel:
        sessions_T = allocate("sessions", (sessions,), real.sessions.dtype)
        features_NTF = allocate("features", (symbols, *features_TF.shape), np.float32)
        bars_NTK = allocate("bars", (symbols, *bars_TK.shape), np.float64)
        ready_run_NT = allocate("ready_run", (symbols, sessions), np.int32)
        last_bar_N = allocate("last_bar", (symbols,), np.int64)
        sessions_T[:], features_NTF[:], last_bar_N[:] = real.sessions[-sessions:], features_TF, sessions - 1
        np.multiply(bars_TK, scale_NK[:, None], out=bars_NTK)
        ready_run_NT[:] = run_lengths(real.ready_run_NT[0, -sessions:] > 0)
        return replace(
            real,
            sessions=sessions_T,
            symbols=tuple(f"S{number:05d}" for number in range(symbols)),
            features_NTF=features_NTF,
            bars_NTK=bars_NTK,
            ready_run_NT=ready_run_NT,
            last_bar_N=last_bar_N,
        )

    return write_panel(filled, root)


def _adjusted(bars: pd.DataFrame) -> pd.DataFrame:
    """Returns open, high, low, close and volume by session, fit for those who know neither splits nor dividends."""
    factor = adjustment_factor(bars)
    prices = bars[["open", "high", "low", "close"]].mul(factor, axis=0)
    return prices.assign(volume=bars["volume"] / factor).set_index(pd.DatetimeIndex(bars["session"]))


def _ours(market: Market) -> dict[str, Work]:
    span = Span(0, market.sessions)
    alone = SwingEnv(market, span, settings=SETTINGS)
    return {
        **{f"slot_steps_per_cpu_s_b{slots}": _slots(slots, market) for slots in (64, 1024, 4096)},
        "scalar_steps_per_cpu_s": steps_of(alone, _actions(EPISODE_STEPS).tolist()),
    }


def _by_width(folders: Mapping[int, Path], scaler: Scaler) -> dict[str, Work]:
    markets = {size: Market(open_panel(folder), scaler) for size, folder in folders.items()}
    narrow, accounts = markets[NARROW], 64
    portfolio = PortfolioVectorEnv(accounts, narrow, Span(0, narrow.sessions), settings=SETTINGS)
    return {
        **{f"slot_steps_per_cpu_s_b1024_{size}_symbols": _slots(1024, market) for size, market in markets.items()},
        f"account_steps_per_cpu_s_b{accounts}_{NARROW}_symbols": slot_steps_of(
            portfolio, _actions(EPISODE_STEPS, accounts, NARROW)
        ),
    }


def _slots(slots: int, market: Market) -> Work:
    env = SwingVectorEnv(slots, market, Span(0, market.sessions), settings=SETTINGS)
    return slot_steps_of(env, _actions(EPISODE_STEPS, slots))


def _sums() -> int:
    numbers = np.ones(1024)
    for _ in range(1000):
        numbers + numbers
    return 1000 * len(numbers)


def _actions(*shape: int) -> Any:
    return np.random.default_rng(0).integers(0, 3, shape)


def _timed(work: Work, seconds: float) -> Callable[[], float]:
    return lambda: rate(work, seconds)


def _memory(folders: Mapping[int, Path], scaler: Scaler, runs: int) -> dict[str, Figure]:
    """Private memory of fresh workers on panels of so many symbols, in turn."""
    told: dict[int, list[float]] = {size: [] for size in folders}
    for _ in range(runs):
        for size, folder in folders.items():
            command = [sys.executable, "-m", "benchmarks.worker_memory", str(folder), json.dumps(scaler.tree())]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            told[size].append(float(done.stdout))
    return {f"worker_private_mib_{size}": figure(grown, "MiB, grown by") for size, grown in told.items()}


if __name__ == "__main__":
    main()
