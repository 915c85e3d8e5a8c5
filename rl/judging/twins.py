"""Zero-skill twins: the candidate trained anew on features that say nothing of the returns that follow.

For a twin, blocks of sessions of the features change places while prices stay. Each side keeps its own past and
future, its crises and its calm, and nothing of one can be told from the other. What a twin earns, it earns by leaning
the way the market went and by luck, as its optimiser does everywhere; a candidate that does no better has no skill.
Training and holdout are permuted each by itself, so that a twin's training sees no more than the candidate's did.
A twin has all members and seeds of the candidate, combined alike, for an ensemble does better than one by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data_pipeline.config import Config
from data_pipeline.folds import Fold
from data_pipeline.panel import Panel, open_panel, save_panel
from envs.backtest import backtest
from envs.contract import Ints
from rl.judging.candidate import Candidate
from rl.judging.metrics import sharpe, solvent_returns
from rl.learning.panels import panel_at, share_panel


class Twins(Config):
    """The candidate among its twins, by Sharpe ratio on the holdout."""

    candidate: float
    """Annualised."""
    twins: tuple[float, ...]
    """Annualised, in no order."""
    p_value: float
    """(1 + twins at least as good) / (1 + twins)."""


def ranked(candidate: float, twins: list[float]) -> Twins:
    """Returns the candidate's place among its twins."""
    better = sum(twin >= candidate for twin in twins)
    return Twins(candidate=candidate, twins=tuple(twins), p_value=(1 + better) / (1 + len(twins)))


def twin_ratios(
    candidate: Candidate,
    panel_folder: Path,
    final: Fold,
    out: Path,
    on_twin: Callable[[int, int], None] = lambda *_: None,
) -> list[float]:
    """Trains the twins and returns their annualised Sharpe ratios on the holdout; needs a Ray connection.

    Args:
        candidate: Whose twins they are; `judge` of its settings says how many.
        panel_folder: Of the panel.
        final: Training, inner validation and holdout.
        out: Folder for the runs; those that finished there before are not repeated.
        on_twin: Is told (twins done, twins in all).
    """
    import ray  # noqa: PLC0415

    judge, out = candidate.config.judge, out.resolve()
    alone = candidate.changed("train.env_runners", 0)
    panel, shelves, waiting = open_panel(panel_folder), [], []
    task = ray.remote(_ratio).options(num_cpus=1, max_retries=1)
    for number in range(judge.twins):
        seed = judge.seed + number
        # Not among the panels that a build may continue.
        twin = save_panel(twin_of(panel, final, judge.twin_block_sessions, seed), out / "panels")
        shelves.append(share_panel(twin))  # nodes without the folder may ask for the panel until this returns
        waiting.append(task.remote(alone, twin, final, out / f"twin-{number}"))
    ratios: list[float] = []
    while waiting:
        ready, waiting = ray.wait(waiting)
        ratios += ray.get(ready)
        on_twin(len(ratios), judge.twins)
    return ratios


def _ratio(candidate: Candidate, panel: Path, final: Fold, folder: Path) -> float:
    """Trains one twin in this process."""
    policy = candidate.trained(panel, final, folder)
    ledger = backtest(policy, panel_at(panel), final.test, *candidate.account)
    return sharpe(solvent_returns(ledger)).ratio


def twin_of(panel: Panel, final: Fold, block: int, seed: int) -> Panel:
    """Returns the panel with blocks of its features permuted, before the holdout and in it, symbol by symbol.

    A symbol's rows without all its features stay as they are. Symbols with as many rows are permuted alike.
    """
    features = panel.features.copy()
    complete = np.asarray(np.isfinite(features).all(axis=-1))
    for start, stop in ((0, final.test.start), tuple(final.test)):
        for column in range(len(panel.symbols)):
            rows = start + np.flatnonzero(complete[start:stop, column])
            features[rows, column] = panel.features[rows[_permuted(len(rows), block, seed)], column]
    return panel.changed(features=features, source={**panel.source, "twin": f"seed {seed}, blocks of {block}"})


def _permuted(rows: int, block: int, seed: int) -> Ints:
    """Returns the numbers 0 to `rows` - 1 in blocks, none of them in its old place."""
    blocks = np.array_split(np.arange(rows), max(rows // block, 2))
    rng = np.random.default_rng([seed, rows])
    # A cycle through all blocks in random order: each takes the place of the one before it.
    cycle = rng.permutation(len(blocks))
    order = np.empty(len(blocks), np.int64)
    order[cycle] = np.roll(cycle, 1)
    result: Ints = np.concatenate([blocks[number] for number in order])
    return result
