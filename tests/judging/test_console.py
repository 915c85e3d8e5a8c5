"""Tables for people."""

from __future__ import annotations

from io import StringIO

import pytest
from rich.console import Console

from rl.config import RunConfig
from rl.console import sweep_table
from rl.judging.tune import FoldScore, Sweep, Trial


def _printed(folds: int) -> str:
    scores = [FoldScore(fold=f"fold-{i}", sharpe=float(i), total_return=0.0, seconds=1.0) for i in range(1, folds + 1)]
    good = Trial(values={"learn.lr": 0.001}, config_hash="", folds=tuple(scores), score=1.5)
    failed = Trial(values={"learn.lr": 0.1}, config_hash="", folds=(), score=None, error="out of memory")
    console = Console(width=110, file=StringIO())
    console.print(sweep_table(Sweep(config=RunConfig(), panel="", folds=folds, trials=(good, failed))))
    return console.file.getvalue()


def test_sweep_table_of_few_folds_shows_each():
    text = _printed(2)
    assert all(words in text for words in ("fold-1", "fold-2", "2.00", "1.50", "out of memory"))


@pytest.mark.parametrize("folds", [7, 31])
def test_sweep_table_of_many_folds_shows_their_extremes_on_one_line(folds):
    text = _printed(folds)
    assert "fold-1" not in text
    row = next(line for line in text.splitlines() if "lr=0.001" in line)
    assert [float(cell) for cell in row.split("│")[2:-1]] == [1.0, (folds + 1) / 2, float(folds), 1.5]
