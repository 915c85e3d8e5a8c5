"""Training on Ray workers over the training span of one fold.

A run's folder holds
    config.json, task.json   what is trained, written first
    progress.jsonl           one line per iteration
    tensorboard/             the same figures as TensorBoard events
    checkpoint/              RLlib's own state, pickle inside: for this machine's eyes, never for a bundle
    weights.safetensors      the acting half of the network, written last: the run is complete
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from data_pipeline.errors import RunError
from data_pipeline.folds import Span
from data_pipeline.scaling import Scaler, fit_scaler
from envs.lstm import LstmPolicy
from rl.config import RunConfig
from rl.learning.panels import panel_at, share_panel

log = logging.getLogger(__name__)

WEIGHTS = "weights.safetensors"
MOST_REBUILDS = 3
"""Times that a run whose learner died is built anew and goes on from its checkpoint."""
MOVES = 1e-3
"""Mean change of the action from one step to the next below which a policy is said not to trade."""
SEEDS_APART = 100_003
"""Between the seeds of a run and of its continuation, which must not see the same episodes again."""


@dataclass(frozen=True)
class Progress:
    """One training iteration."""

    iteration: int
    steps: int
    """Environment steps so far."""
    steps_wanted: int
    seconds: float
    """Wall time of this process so far."""
    episode_return: float | None
    """Mean return of recent episodes, in percent of log equity; None before the first one ended."""
    entropy: float
    """Of the policy, in nats."""
    value_explained: float
    """Explained variance of the value function."""
    session: int
    """0 for the first start of the run, one more at each `--resume`."""
    figures: dict[str, float]
    """Of the algorithm: staleness, kl, gradient_norm, steps_per_second and more, means over the iteration."""


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    policy: LstmPolicy
    folder: Path
    seconds: float
    collapsed: bool
    """Whether the policy ended in never changing its position."""


def train(
    config: RunConfig,
    panel_folder: Path,
    span: Span,
    out: Path,
    resume: bool = False,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Trained:
    """Trains on `span` of the panel and returns the policy; needs a Ray connection (`ray_session`).

    Args:
        config: All settings.
        panel_folder: A saved panel, readable by every worker.
        span: Training rows; the scaler is fitted on them too.
        out: The run's folder.
        resume: Continue from the last checkpoint, or return at once if the run is complete.
        on_progress: Called after each iteration.

    Raises:
        RunError: `out` holds another run, or one that is not to be resumed.
    """
    started = time.monotonic()
    scaler = fit_scaler(panel_at(panel_folder), span)
    task = {"panel": str(panel_folder.resolve()), "span": list(span), "scaler": scaler.tree()}
    _claim(out, config, task, resume)
    if not (out / WEIGHTS).is_file():
        arrays = _learn(config, task, out, on_progress, started)
        save_file(arrays, out / f"{WEIGHTS}.writing")
        (out / f"{WEIGHTS}.writing").replace(out / WEIGHTS)
        shutil.rmtree(out / "checkpoint", ignore_errors=True)
    return Trained(policy_of(out, config, scaler), out, time.monotonic() - started, _collapsed(out))


def policy_of(run: Path, config: RunConfig, scaler: Scaler, name: str | None = None) -> LstmPolicy:
    """Returns the trained policy of a complete run's folder, named after its algorithm where no name is given."""
    weights, model = load_file(run / WEIGHTS), config.model
    return LstmPolicy(
        name or f"{config.train.algorithm.value}-lstm",
        model.window_sessions,
        weights,
        scaler,
        config.env.action,
        attention_heads=model.attention_heads,
        attention_sessions=model.attention_sessions if model.attention_heads else 0,
    )


def _claim(out: Path, config: RunConfig, task: dict[str, Any], resume: bool) -> None:
    wanted = {"config.json": config.tree(), "task.json": task}
    if (out / "config.json").is_file():
        if not resume:
            raise RunError(f"{out}: holds a run already; add --resume to continue it or choose another --out")
        for name, tree in wanted.items():
            if json.loads((out / name).read_text(encoding="utf-8")) != tree:
                raise RunError(f"{out}: was started with other settings ({name}); choose another --out")
        return
    out.mkdir(parents=True, exist_ok=True)
    for name, tree in reversed(wanted.items()):
        (out / name).write_text(json.dumps(tree, indent=1, sort_keys=True), encoding="utf-8")


def _learn(
    config: RunConfig,
    task: dict[str, Any],
    out: Path,
    on_progress: Callable[[Progress], None],
    started: float,
) -> dict[str, Any]:
    from rl.learning.algorithm import LearnerLostError  # noqa: PLC0415  (Ray and torch: seconds to import)

    _shelf = share_panel(Path(task["panel"]))  # workers may ask for the panel until this returns
    for rebuild in range(MOST_REBUILDS + 1):
        try:
            return _run(config, task, out, on_progress, started)
        except LearnerLostError as error:
            if rebuild == MOST_REBUILDS:
                raise RunError(f"{error}, {MOST_REBUILDS + 1} times; continue with --resume") from error
            log.warning("%s; going on from the last checkpoint", error)
    raise AssertionError("the loop returns or raises")


def _run(
    config: RunConfig,
    task: dict[str, Any],
    out: Path,
    on_progress: Callable[[Progress], None],
    started: float,
) -> dict[str, Any]:
    from tensorboardX import SummaryWriter  # noqa: PLC0415

    from rl.learning.build import algorithm_config, market_context  # noqa: PLC0415
    from rl.learning.network import policy_arrays  # noqa: PLC0415

    context = market_context(task["panel"], tuple(task["span"]), task["scaler"], config.env.tree())
    session = _sessions(out / "progress.jsonl")
    algorithm = algorithm_config(config, context, config.train.seed + SEEDS_APART * session).build_algo()
    try:
        checkpoint = out / "checkpoint"
        if checkpoint.is_dir():
            _restore(algorithm, checkpoint)
        with SummaryWriter(str(out / "tensorboard"), purge_step=algorithm.steps) as board:
            while algorithm.steps < config.train.steps:
                progress = _progress(algorithm.train(), algorithm.steps, config, session, time.monotonic() - started)
                _append(out / "progress.jsonl", asdict(progress))
                _draw(board, progress)
                on_progress(progress)
                if progress.iteration % config.train.checkpoint_iterations == 0:
                    _checkpoint(algorithm, checkpoint)
        return policy_arrays(algorithm.trained())
    finally:
        algorithm.stop()


def _collapsed(out: Path) -> bool:
    """Returns whether the last iteration's actions hardly ever changed."""
    last = (out / "progress.jsonl").read_text(encoding="utf-8").splitlines()[-1]
    return bool(json.loads(last)["figures"].get("moves", 1.0) < MOVES)


def _sessions(progress: Path) -> int:
    """Returns how many sessions of a run wrote to its progress file."""
    if not progress.is_file():
        return 0
    lines = progress.read_text(encoding="utf-8").splitlines()
    return 1 + int(json.loads(lines[-1])["session"]) if lines else 0


def _progress(result: dict[str, Any], steps: int, config: RunConfig, session: int, seconds: float) -> Progress:
    learner, workers = result["learners"]["default_policy"], result["env_runners"]
    episode_return = workers.get("episode_return_mean", np.nan)
    figures = {name: round(float(value), 6) for name, value in learner.items()}
    return Progress(
        iteration=int(result["training_iteration"]),
        steps=steps,
        steps_wanted=config.train.steps,
        seconds=round(seconds, 3),
        episode_return=float(episode_return) if np.isfinite(episode_return) else None,
        entropy=figures.pop("entropy", float("nan")),
        value_explained=figures.pop("explained_variance", float("nan")),
        session=session,
        figures={**figures, "steps_per_second": round(float(workers["steps_per_second"]), 1)},
    )


def _draw(board: Any, progress: Progress) -> None:
    figures = {name: value for name, value in asdict(progress).items() if isinstance(value, int | float)}
    for name, value in {**figures, **progress.figures}.items():
        if np.isfinite(value):  # some are not looked at in every iteration
            board.add_scalar(f"train/{name}", value, progress.steps)


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _restore(algorithm: Any, folder: Path) -> None:
    try:
        algorithm.restore_from_path(str(folder.resolve()))
    except (KeyError, RuntimeError, ValueError) as error:  # what torch and RLlib say of states that do not fit
        said = str(error).strip().splitlines()[0]
        raise RunError(
            f"{folder}: was written by another version of the engine ({said}); choose another --out, or remove "
            f"{folder.parent} to begin anew"
        ) from error


def _checkpoint(algorithm: Any, folder: Path) -> None:
    scratch, old = folder.with_name("checkpoint.writing"), folder.with_name("checkpoint.old")
    for leftover in (scratch, old):
        shutil.rmtree(leftover, ignore_errors=True)
    algorithm.save_to_path(str(scratch.resolve()))
    if folder.exists():
        folder.replace(old)
    scratch.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
