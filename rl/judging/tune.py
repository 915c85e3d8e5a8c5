"""Ray Tune over configurations and walk-forward folds.

A trial trains one configuration on fold after fold and is scored on what it never trained on: the Sharpe
ratio of the concatenated returns on the folds' test spans, net of costs, with the window replay that serving
uses. The holdout is not read.

    <out>/sweep.json             settings, panel, every trial's figures by fold, the winner; written last
    <out>/trials/<digest>/<fold> training runs, named by configuration: a repeated sweep re-uses finished ones
    <out>/ray/                   Ray Tune's own files, TensorBoard's among them
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from ray import tune as ray_tune

from data_pipeline.build import build
from data_pipeline.config import Config
from data_pipeline.errors import RunError
from data_pipeline.folds import Fold, walk_forward
from data_pipeline.panel import Panel, open_panel
from envs.backtest import backtest
from rl.config import Axis, RunConfig, with_values
from rl.judging.metrics import sharpe
from rl.learning.panels import panel_at, share_panel
from rl.learning.train import train


class FoldScore(Config):
    """One configuration on one fold."""

    fold: str
    """Name of the fold."""
    sharpe: float
    """Annualised, of the returns on the fold's test span."""
    total_return: float
    """Over the test span, as a fraction, net of costs."""
    seconds: float
    """Wall time of training."""


class Trial(Config):
    """One configuration."""

    values: dict[str, Any]
    """Dotted path -> value, what the search space chose."""
    config_hash: str
    """Of the resolved settings."""
    folds: tuple[FoldScore, ...]
    """In time order; fewer than the sweep's folds if the trial failed."""
    score: float | None
    """Annualised Sharpe ratio of the test returns of all folds in one series; None if the trial failed."""
    error: str | None = None
    """Why it failed."""

    @property
    def label(self) -> str:
        """The values, short enough for a table."""
        texts = {path: f"{v:.4g}" if isinstance(v, float) else str(v) for path, v in self.values.items()}
        return ", ".join(f"{path.split('.')[-1]}={text}" for path, text in texts.items()) or "as configured"


class Sweep(Config):
    """A finished sweep."""

    config: RunConfig
    """Settings common to all trials."""
    panel: str
    """Folder of the panel."""
    folds: int
    """Number of walk-forward folds."""
    trials: tuple[Trial, ...]
    """Best first, failed ones last."""

    @property
    def winner(self) -> RunConfig:
        """Settings of the best trial."""
        return with_values(self.config, self.trials[0].values, "winner")


def folds_of(panel: Panel, config: RunConfig) -> tuple[tuple[Fold, ...], Fold]:
    """Returns the walk-forward folds and the final fold of a panel.

    Raises:
        FoldError: The layout contradicts itself or the history is too short.
    """
    first_ready = int(np.argmax(panel.ready.any(axis=1)))
    return walk_forward(len(panel.sessions), first_ready + config.model.window_sessions, config.folds)


def tune(config: RunConfig, out: Path, on_result: Callable[[int, int], None] = lambda *_: None) -> Sweep:
    """Runs the sweep and returns it; needs a Ray connection.

    Args:
        config: Settings, the search space among them.
        out: The sweep's folder; trainings that finished there before are re-used.
        on_result: Called with (fold trainings done, fold trainings in all).

    Raises:
        ConfigError: The search space names an unknown path or an impossible value.
        RunError: Every trial failed, or `out` holds a sweep of other settings.
    """
    _check_space(config)
    _claim(out, config)
    panel_folder = build(config.data).resolve()
    folds, _ = folds_of(open_panel(panel_folder), config)
    shelf = share_panel(panel_folder)
    results = list(_fit(config, panel_folder, folds, out.resolve(), on_result))
    del shelf  # trials on other nodes may ask for the panel until here
    trials = tuple(sorted(results, key=lambda trial: -np.inf if trial.score is None else trial.score, reverse=True))
    if trials[0].score is None:
        raise RunError(f"{out}: every trial failed; the first said: {trials[0].error}")
    sweep = Sweep(config=config, panel=str(panel_folder), folds=len(folds), trials=trials)
    scratch = out / "sweep.json.writing"
    scratch.write_text(json.dumps(sweep.tree(), indent=1), encoding="utf-8")
    scratch.replace(out / "sweep.json")
    return sweep


def read_sweep(out: Path) -> Sweep:
    """Returns the finished sweep in `out`.

    Raises:
        RunError: There is none.
    """
    try:
        return Sweep.of(json.loads((out / "sweep.json").read_text(encoding="utf-8")), str(out / "sweep.json"))
    except (OSError, ValueError) as error:
        raise RunError(f"{out}: holds no finished sweep ({error}); run `swing-rl tune --out {out}`") from error


def run_trial(
    values: Mapping[str, Any],
    config: RunConfig,
    panel_folder: Path,
    folds: tuple[Fold, ...],
    out: Path,
    on_fold: Callable[[Trial], None],
) -> Trial:
    """Trains one configuration fold after fold and returns it scored; `on_fold` sees each intermediate state."""
    chosen = with_values(config, {**values, "train.env_runners": config.tune.env_runners}, "trial")
    folder = out / "trials" / chosen.digest()[:16]
    panel = panel_at(panel_folder)
    returns: list[np.ndarray[Any, Any]] = []
    scores: list[FoldScore] = []
    for fold in folds:
        trained = train(chosen, panel_folder, fold.train, folder / fold.name, resume=True)
        env = chosen.env
        ledger = backtest(trained.policy, panel, fold.test, env.limits, env.costs, env.initial_cash_usd)
        ledger.save(folder / fold.name / "test")
        returns.append(ledger.returns())
        scores.append(
            FoldScore(
                fold=fold.name,
                sharpe=sharpe(returns[-1]).ratio,
                total_return=float(np.prod(1.0 + returns[-1]) - 1.0),
                seconds=round(trained.seconds, 2),
            )
        )
        trial = Trial(
            values=dict(values),
            config_hash=chosen.digest(),
            folds=tuple(scores),
            score=sharpe(np.concatenate(returns)).ratio,
        )
        on_fold(trial)
    return trial


class _Count(ray_tune.Callback):  # type: ignore[misc]
    """Counts fold trainings for a progress display."""

    def __init__(self, on_result: Callable[[int, int], None], total: int) -> None:
        self.on_result, self.total, self.done = on_result, total, 0

    def on_trial_result(self, *_: Any, **__: Any) -> None:
        self.done += 1
        self.on_result(self.done, self.total)

    def __getstate__(self) -> dict[str, Any]:
        # Tune pickles its callbacks beside the sweep; a live display neither can nor need be kept.
        return {}


def _fit(
    config: RunConfig,
    panel_folder: Path,
    folds: tuple[Fold, ...],
    out: Path,
    on_result: Callable[[int, int], None],
) -> Iterator[Trial]:
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"  # Tune would take Ctrl-C for "done" and return half a sweep
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the newer console output ignores verbose=0
    tree = config.tree()

    def trainable(values: dict[str, Any]) -> None:
        run_trial(
            values,
            RunConfig.of(tree),
            panel_folder,
            folds,
            out,
            lambda trial: ray_tune.report({"score": trial.score, "trial": trial.tree()}),
        )

    bundles = [{"CPU": 1.0}] * (1 + config.tune.env_runners)
    tuner = ray_tune.Tuner(
        ray_tune.with_resources(trainable, ray_tune.PlacementGroupFactory(bundles)),
        param_space={path: _axis(axis) for path, axis in config.tune.space.items()},
        tune_config=ray_tune.TuneConfig(
            metric="score",
            mode="max",
            num_samples=config.tune.samples,
            search_alg=ray_tune.search.BasicVariantGenerator(random_state=config.tune.seed),
            trial_dirname_creator=lambda trial: f"trial_{trial.trial_id}",
        ),
        run_config=ray_tune.RunConfig(
            name="ray",
            storage_path=str(out),
            verbose=0,
            callbacks=[_Count(on_result, count_of(config) * len(folds))],
            failure_config=ray_tune.FailureConfig(max_failures=1),
        ),
    )
    for result in tuner.fit():
        yield _trial_of(result, len(folds))


def _trial_of(result: Any, folds: int) -> Trial:
    trial = Trial.of(result.metrics["trial"]) if "trial" in (result.metrics or {}) else None
    if trial is not None and result.error is None and len(trial.folds) == folds:
        return trial
    done = trial.folds if trial is not None else ()
    said = str(result.error).strip().splitlines()[-1] if result.error else f"ended after {len(done)} of {folds} folds"
    return Trial(values=dict(result.config or {}), config_hash="", folds=done, score=None, error=said)


def count_of(config: RunConfig) -> int:
    """Returns the number of configurations that the search space makes."""
    grids = [len(axis.grid) for axis in config.tune.space.values() if axis.grid is not None]
    return int(np.prod(grids, dtype=int)) * config.tune.samples


def _axis(axis: Axis) -> Any:
    if axis.grid is not None:
        return ray_tune.grid_search(list(axis.grid))
    if axis.choice is not None:
        return ray_tune.choice(list(axis.choice))
    if axis.uniform is not None:
        return ray_tune.uniform(*axis.uniform)
    if axis.loguniform is not None:
        return ray_tune.loguniform(*axis.loguniform)
    raise AssertionError("an axis has exactly one kind")


def _check_space(config: RunConfig) -> None:
    for path, axis in config.tune.space.items():
        for value in axis.grid or axis.choice or axis.uniform or axis.loguniform or ():
            with_values(config, {path: value}, f"tune.space {path}")


def _claim(out: Path, config: RunConfig) -> None:
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "config.json", json.dumps(config.tree(), indent=1, sort_keys=True)
    if path.is_file() and path.read_text(encoding="utf-8") != text:
        raise RunError(f"{out}: holds a sweep of other settings; choose another --out")
    path.write_text(text, encoding="utf-8")
