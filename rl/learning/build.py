"""From settings to an RLlib algorithm over one of the project's environments."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray.rllib.core.rl_module.rl_module import RLModuleSpec
from ray.tune.registry import register_env

from data_pipeline.scaling import Scaler
from envs.contract import PORTFOLIO_FEATURES, ActionKind
from envs.market import Market
from envs.swing import SwingEnv, SwingVectorEnv
from envs.worlds import WorldEnv, WorldEnvConfig, WorldVectorEnv
from rl.learning.a3c import A3CConfig
from rl.learning.adapter import quiet
from rl.learning.algorithm import ActorCriticConfig
from rl.learning.module import SwingModule
from rl.learning.panels import panel_at
from rl.learning.ppo import AsyncPPOConfig, PPOConfig
from rl.learning.process import settle
from rl.learning.settings import AlgorithmName, EngineConfig

ENV_NAME = "swing-rl"


def market_context(panel: str, span: tuple[int, int], scaler: Mapping[str, Any], env: Mapping[str, Any]) -> Any:
    """Returns what a worker needs to make the environment of a panel; plain values, so that it travels."""
    return {"panel": panel, "span": list(span), "scaler": dict(scaler), "settings": dict(env)}


def world_context(world: WorldEnvConfig) -> dict[str, Any]:
    """Returns what a worker needs to make the environment of a world with a known optimum."""
    return {"world": world.tree()}


def make_env(context: Mapping[str, Any]) -> Any:
    """Returns the environment that a context describes: a vector one where it holds `num_envs`, else a scalar one.

    `autoreset_mode` is that of the context; without, the one that RLlib's own runners take for granted.
    """
    settle()
    vector = {name: context[name] for name in ("num_envs", "autoreset_mode") if name in context}
    if "world" in context:
        return WorldVectorEnv(settings=context["world"], **vector) if vector else WorldEnv(context["world"])
    market = Market(panel_at(Path(context["panel"])), Scaler.of(context["scaler"], "scaler"))
    arguments = {"panel": market, "span": tuple(context["span"]), "settings": context["settings"]}
    return SwingVectorEnv(**vector, **arguments) if vector else SwingEnv(**arguments)


def algorithm_config(settings: EngineConfig, context: Mapping[str, Any], seed: int | None = None) -> ActorCriticConfig:
    """Returns the RLlib configuration of the algorithm that `settings.train.algorithm` names.

    Args:
        settings: Of engine and network.
        context: Of the environment, by `market_context` or `world_context`.
        seed: In the place of the settings' one, for a run that goes on.
    """
    quiet()
    settle()
    register_env(ENV_NAME, make_env)
    amount, learn = settings.train, settings.learn
    config = _algorithm(settings)
    config.environment(ENV_NAME, env_config=dict(context))
    config.env_runners(
        num_env_runners=amount.env_runners,
        num_envs_per_env_runner=amount.envs_per_runner,
        rollout_fragment_length=settings.model.bptt_sessions,
    )
    config.learners(num_learners=int(amount.remote_learner))
    config.rl_module(rl_module_spec=RLModuleSpec(module_class=SwingModule, model_config=_model(settings, context)))
    config.training(
        lr=learn.lr,
        gamma=learn.gamma,
        grad_clip=learn.grad_clip,
        lambda_=learn.gae_lambda,
        entropy_coeff=learn.entropy,
        vf_loss_coeff=learn.value_weight,
        lr_fall=learn.lr_fall,
        cost_rise=learn.cost_rise,
        scale_rewards=learn.scale_rewards,
        normalise_advantages=learn.normalise_advantages,
        max_staleness=settings.a3c.max_staleness,
        staleness_aware=settings.a3c.staleness_aware,
        request_lead_s=settings.a3c.request_lead_s,
        request_timeout_s=settings.a3c.request_timeout_s,
        total_steps=amount.steps,
        iteration_steps=min(amount.iteration_steps, amount.steps),
    )
    config.debugging(seed=amount.seed if seed is None else seed, log_level="ERROR")
    return config


def _algorithm(settings: EngineConfig) -> ActorCriticConfig:
    if settings.train.algorithm is AlgorithmName.A3C:
        return A3CConfig()
    ppo = settings.ppo
    config = PPOConfig() if settings.train.algorithm is AlgorithmName.PPO else AsyncPPOConfig()
    return config.training(
        clip_param=ppo.clip,
        num_epochs=ppo.epochs,
        minibatches=ppo.minibatches,
        target_kl=ppo.target_kl,
        vtrace=ppo.vtrace,
        max_age=ppo.max_age,
    )


def _model(settings: EngineConfig, context: Mapping[str, Any]) -> dict[str, Any]:
    if "world" in context:
        world = WorldEnvConfig.of(context["world"], "world")
        action, portfolio = world.action, int(world.show_position)
    else:
        action, portfolio = ActionKind(context["settings"]["action"]), len(PORTFOLIO_FEATURES)
    return {
        "model": settings.model.tree(),
        "action": action.value,
        "portfolio_features": portfolio,
        "max_seq_len": settings.model.bptt_sessions,
    }
