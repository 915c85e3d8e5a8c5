"""PPO by RLlib on Ray workers, over the training span of one fold.

A run's folder holds
    config.json, task.json   what is trained, written first
    progress.jsonl           one line per iteration
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
from envs.bundle import LstmPolicy
from rl.config import RunConfig
from rl.learning.panels import panel_at, share_panel

ENV_NAME = "swing"
WEIGHTS = "weights.safetensors"


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


@dataclass(frozen=True)
class Trained:
    """A finished run."""

    policy: LstmPolicy
    folder: Path
    seconds: float


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
    return Trained(policy_of(out, config, scaler), out, time.monotonic() - started)


def policy_of(run: Path, config: RunConfig, scaler: Scaler, name: str = "ppo-lstm") -> LstmPolicy:
    """Returns the trained policy of a complete run's folder."""
    weights = load_file(run / WEIGHTS)
    return LstmPolicy(name, config.model.window_sessions, weights, scaler, config.env.action)


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
    from rl.learning.network import policy_arrays  # noqa: PLC0415  (torch: seconds to import)

    shelf = share_panel(Path(task["panel"]))
    algorithm = _ppo(config, task).build_algo()
    try:
        checkpoint = out / "checkpoint"
        if checkpoint.is_dir():
            algorithm.restore_from_path(str(checkpoint.resolve()))
        steps = 0
        while steps < config.train.steps:
            result = algorithm.train()
            progress = _progress(result, config, time.monotonic() - started)
            steps = progress.steps
            _append(out / "progress.jsonl", asdict(progress))
            on_progress(progress)
            if progress.iteration % config.train.checkpoint_iterations == 0:
                _checkpoint(algorithm, checkpoint)
        return policy_arrays(algorithm.get_module().unwrapped().net)
    finally:
        algorithm.stop()
        del shelf  # workers may ask for the panel until here


def _ppo(config: RunConfig, task: dict[str, Any]) -> Any:
    import torch  # noqa: PLC0415
    from ray.rllib.algorithms.ppo import PPOConfig  # noqa: PLC0415
    from ray.rllib.core.rl_module.rl_module import RLModuleSpec  # noqa: PLC0415
    from ray.tune.registry import register_env  # noqa: PLC0415

    from rl.learning.module import SwingModule  # noqa: PLC0415

    for name in ("ray", "ray.rllib", "ray.tune"):  # they warn of their own deprecated calls
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    register_env(ENV_NAME, _make_env)
    ppo, amount = config.ppo, config.train
    slots = max(amount.env_runners, 1) * amount.envs_per_runner
    return (
        PPOConfig()
        .environment(ENV_NAME, env_config={**task, "settings": config.env.tree()})
        .env_runners(
            num_env_runners=amount.env_runners,
            num_envs_per_env_runner=amount.envs_per_runner,
            rollout_fragment_length=max(ppo.batch_steps // slots, 1),
            gym_env_vectorize_mode="vector_entry_point",
        )
        .rl_module(
            rl_module_spec=RLModuleSpec(
                module_class=SwingModule,
                model_config={
                    "hidden": config.model.hidden,
                    "action": config.env.action.value,
                    "max_seq_len": config.model.bptt_sessions,
                },
            )
        )
        .training(
            lr=ppo.lr,
            gamma=ppo.gamma,
            lambda_=ppo.gae_lambda,
            clip_param=ppo.clip,
            entropy_coeff=ppo.entropy,
            vf_loss_coeff=ppo.value_weight,
            vf_clip_param=float("inf"),  # RLlib clamps the loss itself, which stops learning of large errors
            use_kl_loss=False,
            grad_clip=ppo.grad_clip,
            grad_clip_by="global_norm",
            num_epochs=ppo.epochs,
            train_batch_size_per_learner=ppo.batch_steps,
            minibatch_size=ppo.minibatch_steps,
        )
        .debugging(seed=amount.seed, log_level="ERROR")
        .reporting(min_sample_timesteps_per_iteration=0, min_time_s_per_iteration=0)
    )


def _make_env(context: dict[str, Any]) -> Any:
    """RLlib calls this with `num_envs` for a vector environment and without for the space probe."""
    import torch  # noqa: PLC0415

    from envs.market import Market  # noqa: PLC0415
    from envs.swing import SwingEnv, SwingVectorEnv  # noqa: PLC0415

    torch.set_num_threads(1)
    market = Market(panel_at(Path(context["panel"])), Scaler.of(context["scaler"], "scaler"))
    arguments = {"panel": market, "span": tuple(context["span"]), "settings": context["settings"]}
    if "num_envs" in context:
        return SwingVectorEnv(context["num_envs"], **arguments)
    return SwingEnv(**arguments)


def _progress(result: dict[str, Any], config: RunConfig, seconds: float) -> Progress:
    learner = result["learners"]["default_policy"]
    episode_return = result["env_runners"].get("episode_return_mean", np.nan)
    return Progress(
        iteration=int(result["training_iteration"]),
        steps=int(result["num_env_steps_sampled_lifetime"]),
        steps_wanted=config.train.steps,
        seconds=round(seconds, 3),
        episode_return=float(episode_return) if np.isfinite(episode_return) else None,
        entropy=float(learner["entropy"]),
        value_explained=float(learner["vf_explained_var"]),
    )


def _append(path: Path, line: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")


def _checkpoint(algorithm: Any, folder: Path) -> None:
    scratch, old = folder.with_name("checkpoint.writing"), folder.with_name("checkpoint.old")
    for leftover in (scratch, old):
        shutil.rmtree(leftover, ignore_errors=True)
    algorithm.save_to_path(str(scratch.resolve()))
    if folder.exists():
        folder.replace(old)
    scratch.replace(folder)
    shutil.rmtree(old, ignore_errors=True)
