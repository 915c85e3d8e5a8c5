"""Tables for people."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from rl.config import RunConfig
from rl.console import sweep_table
from rl.judging.tune import FoldScore, Sweep, Trial


def _printed(folds: int, seeds: int = 1) -> str:
    scores = [
        FoldScore(fold=f"fold-{i}", seed=seed, sharpe=i + 0.5 * seed, total_return=0.0, seconds=1.0)
        for i in range(1, folds + 1)
        for seed in range(seeds)
    ]
    good = Trial(values={"learn.lr": 0.001}, config_hash="", folds=tuple(scores), score=1.5, quartiles=(1.2, 1.9))
    error = "out of memory [/red]"
    failed = Trial(values={"learn.lr": 0.1}, config_hash="", status="failed", folds=(), score=None, error=error)
    sweep = Sweep(id="s", project="", config=RunConfig(), panel="", folds=folds, trials=(good, failed), ledger_head="")
    console = Console(width=140, file=StringIO())
    console.print(sweep_table(sweep))
    return console.file.getvalue()


def _cells(text: str, label: str) -> list[str]:
    row = next(line for line in text.splitlines() if label in line)
    return [cell.strip() for cell in row.split("│")[1:-1]]


def test_sweep_table_of_few_folds_shows_each_and_what_failed():
    text = _printed(2)
    assert all(words in text for words in ("fold-1", "fold-2"))
    assert _cells(text, "lr=0.001") == ["lr=0.001", "finished", "1.00", "2.00", "1.50"]
    assert _cells(text, "lr=0.1 ") == ["lr=0.1", "failed: out of memory [/red]", "–", "–", "–"]


def test_sweep_table_of_several_seeds_shows_medians_and_quartiles():
    text = _printed(2, seeds=3)
    assert _cells(text, "lr=0.001") == ["lr=0.001", "finished", "1.50", "2.50", "1.50", "1.20 .. 1.90"]


@pytest.mark.parametrize("folds", [7, 31])
def test_sweep_table_of_many_folds_shows_their_extremes_on_one_line(folds):
    text = _printed(folds)
    assert "fold-1" not in text
    assert [float(cell) for cell in _cells(text, "lr=0.001")[2:]] == [1.0, (folds + 1) / 2, float(folds), 1.5]
