"""Where the product's commands are, how tests run them, and what a tiny run of them leaves."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from data_pipeline.folds import Span

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TRAIN = Span(1738, 2746)


def environment() -> dict[str, str]:
    """The environment of commands under test: explicit about Ray, loopback only."""
    return os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "COLUMNS": "120"}


@dataclass(frozen=True)
class Story:
    """Folders that the product's own commands filled."""

    root: Path

    @property
    def config(self) -> Path:
        return self.root / "tiny.yaml"

    @property
    def sweep(self) -> Path:
        return self.root / "sweep"

    @property
    def verdict(self) -> Path:
        return self.root / "verdict"

    @property
    def bundle(self) -> Path:
        return self.root / "bundle"


def tiny_settings(root: Path) -> dict[str, object]:
    """Settings that train in seconds."""
    return {
        "data": {"store": str(root / "store"), "panels": str(root / "panels")},
        "folds": {"train_sessions": len(TRAIN), "validation_sessions": 0, "test_sessions": 252, "count": 2},
        "model": {"hidden": 16, "window_sessions": 30},
        "ppo": {"epochs": 1, "minibatches": 2},
        "train": {"steps": 4096, "envs_per_runner": 32, "env_runners": 1, "iteration_steps": 2048},
        "tune": {"space": {"learn.lr": {"grid": [0.0003, 0.001]}}},
        "judge": {"twins": 2, "twin_level": 0.4},
    }
