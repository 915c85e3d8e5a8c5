"""The honest judge on markets whose truth is known: noise must be rejected, a planted signal promoted.

    python -m benchmarks.judge                          20 sweeps on noise, 10 on a signal: hours on two cores
    python -m benchmarks.judge --noise 4 --signal 2     fewer

Each market is drawn anew, swept with 8 configurations over its walk-forward folds, and its winner is judged as
`swing-rl tune` and `swing-rl validate` do, until a gate fails (`judge.thrifty`): only what passes all is promoted. The
signal is a `prop` world as
prices; a policy's score there is its expected reward over the optimum (`envs.optimum`), on paths that nobody trained
on. Each market keeps its folder (`--folder`), so that a run that was interrupted goes on.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from benchmarks.shape import emit, parser_of
from data_pipeline.assemble import build_panel
from data_pipeline.errors import one_line_errors
from data_pipeline.features import FeatureSet
from data_pipeline.folds import Span
from data_pipeline.sources.worlds import WorldBars, WorldConfig, expected_rewards, paths
from envs.backtest import backtest
from envs.optimum import optimum
from rl.config import RunConfig
from rl.judging.tune import read_sweep, tune
from rl.judging.validate import Validation, read_validation, validate
from rl.learning.cluster import ray_session

FEATURES = ("world_cue", "return_1", "return_5", "realised_volatility_20", "rsi_14")
WORLDS: dict[str, dict[str, Any]] = {
    "noise": {"name": "noise", "c": 0.1, "noise": 1.5},
    "signal": {"name": "prop", "q": 0.95, "sd": 0.4, "c": 0.5, "noise": 0.5},
}
SYMBOLS, SCORED_SESSIONS, SCORED_SYMBOLS, FRESH_SEED = 12, 1500, 10, 10_000
PERCENT = 0.01
"""A return of 1 in the world, as a price return."""

SPACE: dict[str, tuple[Any, ...]] = {
    "learn.lr": (0.003, 0.001),
    "learn.normalise_advantages": (False, True),
    "model.bptt_sessions": (16, 32),
}


class Size(NamedTuple):
    """How much is spent on a market."""

    steps: int = 600_000
    """Of each training."""
    train: int = 1008
    """Sessions; so are the next two."""
    test: int = 252
    holdout: int = 504
    twins: int = 8
    axes: int = 3
    """Of the search space."""


FULL, QUICK = Size(), Size(steps=2_048, train=200, test=60, holdout=80, twins=4)


def settings(world: dict[str, Any], seed: int, folder: Path, size: Size = FULL) -> RunConfig:
    """Returns the settings of one sweep: two values on each axis, 2 folds, the world's own costs and no others.

    Args:
        world: Its name and parameters.
        seed: Of market and training.
        folder: Of bars and panels.
        size: See `Size`.
    """
    costless = dict.fromkeys(("commission_usd_per_share", "impact", "borrow_bps_per_year", "margin_bps_per_year"), 0.0)
    costless |= {"sec_fee_usd_per_million_sold": 0.0, "taf_usd_per_share_sold": 0.0, "cat_usd_per_share": 0.0}
    sessions = 400 + size.train + 2 * size.test + size.holdout
    axes = list(SPACE.items())[: size.axes]
    return RunConfig.of(
        {
            "data": {
                "source": "world",
                "synthetic": {
                    "world": world,
                    "symbols": SYMBOLS,
                    "sessions": sessions,
                    "seed": seed,
                    "return_scale": PERCENT,
                },
                "features": list(FEATURES),
                "store": str(folder / "store"),
                "panels": str(folder / "panels"),
            },
            "folds": {
                "train_sessions": size.train,
                "validation_sessions": 0,
                "test_sessions": size.test,
                "holdout_sessions": size.holdout,
                "count": 2,
            },
            "env": {
                "costs": {**costless, "half_spread_bps": world["c"] * PERCENT * 1e4},
                "limits": {"fractional": True},
            },
            "model": {"hidden": 32, "window_sessions": 40, "bptt_sessions": 16},
            "learn": {"lr_fall": 0.8, "entropy": 0.02},
            "train": {"algorithm": "a3c", "steps": size.steps, "envs_per_runner": 32, "seed": seed},
            "tune": {
                "space": {path: {"grid": list(values)} for path, values in axes},
                "seed": seed,
            },
            # What failed already is not looked at further: no verdict depends on it, and most of the time does.
            "judge": {"twins": size.twins, "thrifty": True, "seed": seed},
        },
        "benchmark",
    )


def judged(kind: str, number: int, folder: Path, size: Size = FULL) -> Validation:
    """Returns the verdict on one market, from its folder if it was given there before."""
    market = folder / f"{kind}-{number}"
    config = settings(WORLDS[kind], number, market, size)
    verdict = market / "verdict"
    if (verdict / "validation.json").is_file():
        return read_validation(verdict)
    sweep = market / "project" / "sweep"
    if not (sweep / "sweep.json").is_file():
        tune(config, sweep, resume=True)
    read_sweep(sweep)
    return validate(sweep, verdict)


def score(validation: Validation) -> float | None:
    """Returns the judged policy's expected reward over the optimum, on paths of the same world that are nobody's.

    None: a gate failed before it was trained.
    """
    if not validation.figures:
        return None
    known = validation.config.data.synthetic
    fresh = WorldConfig.of(
        {**known.tree(), "seed": FRESH_SEED, "symbols": SCORED_SYMBOLS, "sessions": SCORED_SESSIONS}, "fresh"
    )
    panel = build_panel(WorldBars(fresh).fetch(), FeatureSet.of(FEATURES))
    policy, env = validation.policy(), validation.config.env
    first = int(np.argmax(panel.ready.all(axis=1))) + policy.window + 1
    ledger = backtest(policy, panel, Span(first, SCORED_SESSIONS), env.limits, env.costs, env.initial_cash_usd)
    table = ledger.positions.pivot("symbol", index="session", values="target_position").drop("session")
    positions = table.to_numpy()
    seen = paths(fresh)
    decided = slice(first - 1, SCORED_SESSIONS - 1)  # the session before the one that fills
    rewards = expected_rewards(known.world, positions, seen._replace(expected=seen.expected[decided]))
    return float(rewards.mean() / optimum(known.world).average_reward)


@one_line_errors
def main() -> None:
    """Sweeps, judges and publishes."""
    parser = parser_of(__doc__.splitlines()[0])
    parser.add_argument("--noise", type=int, default=20, help="markets of noise")
    parser.add_argument("--signal", type=int, default=10, help="markets with a planted signal")
    parser.add_argument("--folder", type=Path, help="keeps everything, and goes on where it stopped; none: a new one")
    options = parser.parse_args()
    counts = {"noise": 1, "signal": 1} if options.quick else {"noise": options.noise, "signal": options.signal}
    size = QUICK if options.quick else FULL
    folder = options.folder or Path(tempfile.mkdtemp(prefix="judge-"))
    console, found = Console(stderr=True), dict[str, list[Validation]]()
    with ray_session():
        for kind, count in counts.items():
            for number in range(count):
                validation = judged(kind, number, folder.resolve(), size)
                found.setdefault(kind, []).append(validation)
                console.print(
                    f"{kind} {number}: {validation.verdict.decision}", *validation.verdict.reasons, sep="\n  "
                )
    scores = [score(validation) for validation in found.get("signal", [])]
    promoted = {
        kind: sum(each.verdict.decision == "promote" for each in found.get(kind, [])) for kind in ("noise", "signal")
    }
    results = {
        "noise_promoted": promoted["noise"],
        "noise_sweeps": counts["noise"],
        "signal_promoted": promoted["signal"],
        "signal_markets": counts["signal"],
        "signal_scores": scores,
        "signal_score_median": median(known) if (known := [each for each in scores if each is not None]) else None,
        "gates_passed": {kind: _gates(each) for kind, each in found.items()},
        **{
            f"{kind}_{name}": [getattr(each.evidence, name) for each in validations]
            for kind, validations in found.items()
            for name in ("superiority_p", "loss", "overfitting")
        },
    }
    Console().print_json(data=results)
    emit("judge", options, {**results, "skipped": {}})


def _gates(validations: list[Validation]) -> dict[str, int]:
    names = dict.fromkeys(gate.name for each in validations for gate in each.verdict.gates)
    return {
        name: sum(gate.passed for each in validations for gate in each.verdict.gates if gate.name == name)
        for name in names
    }


if __name__ == "__main__":
    main()
