"""The mathematics of actor-critic learning, as pure functions of time-major arrays `[T, B]`.

Time: `values[t]` is V(s_t), `rewards[t]` is r_{t+1}, `next_values[t]` is V(s_{t+1}), 0 where the episode terminated
and of the final observation where it was truncated. `ended[t]`: the episode's last step, either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from envs.contract import Bools, Floats32


def gae(
    rewards: Floats32, values: Floats32, next_values: Floats32, ended: Bools, gamma: float, lambda_: float
) -> Floats32:
    """Returns generalised advantage estimates `[T, B]` (Schulman et al. 2016).

    A_t = δ_t + γ λ (1 - ended_t) A_{t+1} with δ_t = r_{t+1} + γ V(s_{t+1}) - V(s_t), and A_T = 0.
    """
    errors = rewards + np.float32(gamma) * next_values - values
    carried = np.float32(gamma * lambda_) * ~ended
    advantages = np.empty_like(errors)
    advantage = np.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        advantage = errors[t] + carried[t] * advantage
        advantages[t] = advantage
    return advantages


def vtrace(
    rewards: Floats32,
    values: Floats32,
    next_values: Floats32,
    ended: Bools,
    ratios: Floats32,
    gamma: float,
    lambda_: float,
) -> tuple[Floats32, Floats32]:
    """Returns V-trace advantages and value targets, `[T, B]` each (Espeholt et al. 2018, with their λ, ρ̄ = c̄ = 1).

    v_t = V(s_t) + ρ_t δ_t + γ λ ρ_t (1 - ended_t) (v_{t+1} - V(s_{t+1})). The advantage is r_{t+1} + γ v_{t+1} -
    V(s_t) with the corrections ahead of it carried on as in `gae`, so that ratios of 1 give `gae`.

    Args:
        rewards: See the module; so are the next three.
        values: Under the present weights.
        next_values: As `values`.
        ended: See the module.
        ratios: π(a_t) / μ(a_t), present over acting policy.
        gamma: Discount.
        lambda_: As in `gae`.
    """
    clipped = np.minimum(ratios, np.float32(1))
    errors = rewards + np.float32(gamma) * next_values - values
    carried = np.float32(gamma * lambda_) * ~ended
    advantages, targets = np.empty_like(errors), np.empty_like(errors)
    correction = np.zeros_like(errors[0])
    for t in reversed(range(len(errors))):
        advantages[t] = errors[t] + carried[t] * correction
        correction = clipped[t] * advantages[t]
        targets[t] = values[t] + correction
    return advantages, targets


@dataclass(frozen=True)
class Weights:
    """What a loss is made of."""

    entropy: float
    value: float
    clip: float
    normalise: bool


class Loss(NamedTuple):
    """A loss to go down, and what it is made of."""

    total: Tensor
    entropy: float
    """Mean over the batch, in nats."""
    value: float
    """Mean squared error of the critic."""
    kl: float
    """Estimate of KL(acting ‖ present) in nats (Schulman's k3: never negative)."""
    clipped: float
    """Share of ratios beyond the clip."""
    sample_share: float
    """Effective sample size over sample size: (Σ ρ)² / (n Σ ρ²)."""


@np.errstate(over="ignore", invalid="ignore")  # a gradient that is not finite is refused by whoever gets it
def actor_critic_loss(
    log_likelihoods: Tensor,
    acted: Floats32 | None,
    values: Tensor,
    entropies: Tensor,
    advantages: Floats32,
    targets: Floats32,
    weights: Weights,
) -> Loss:
    """Returns PPO's clipped loss, or that of A2C, which has its gradient where the policy is the one that acted.

    Args:
        log_likelihoods: Of the actions under the present policy, `[T, B]`, with a graph.
        acted: Of the actions under the policy that acted; None: it is the present one.
        values: With a graph.
        entropies: With a graph.
        advantages: Of the actions.
        targets: Of the values.
        weights: Of the terms.
    """
    if weights.normalise and advantages.size > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std(ddof=1) + np.float32(1e-8))
    if acted is None:
        gains, slopes, told = log_likelihoods.detach().numpy() * advantages, advantages, (0.0, 0.0, 1.0)
    else:
        gains, slopes, told = _clipped(log_likelihoods.detach().numpy() - acted, advantages, weights.clip)
    errors = values.detach().numpy() - targets
    error, entropy = float(np.square(errors).mean()), float(entropies.detach().mean())
    total = -float(gains.mean()) + weights.value * 0.5 * error - weights.entropy * entropy
    size = np.float32(advantages.size)
    spread = np.full_like(errors, -weights.entropy / size)
    graph = _Loss.apply(  # type: ignore[no-untyped-call]
        total, (slopes / -size, errors * (np.float32(weights.value) / size), spread), log_likelihoods, values, entropies
    )
    return Loss(graph, entropy, error, *told)


class _Loss(torch.autograd.Function):
    """A number whose gradients with respect to some tensors are known."""

    @staticmethod
    def forward(ctx: Any, total: float, gradients: tuple[Floats32, ...], *tensors: Tensor) -> Tensor:
        ctx.gradients = gradients
        return tensors[0].new_tensor(total)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(grad * torch.from_numpy(each) for each in ctx.gradients)


def _clipped(
    move: Floats32, advantages: Floats32, clip: float
) -> tuple[Floats32, Floats32, tuple[float, float, float]]:
    """Returns PPO's gains, their slopes, and the last three of `Loss`, of changes in log-likelihood."""
    ratios = np.exp(move)
    bounded = ratios.clip(1.0 - clip, 1.0 + clip)
    free, held = ratios * advantages, bounded * advantages
    kl, clipped = float((ratios - 1.0 - move).mean()), float((ratios != bounded).mean())
    share = float(ratios.sum() ** 2 / (ratios.size * np.square(ratios).sum()))
    return np.minimum(free, held), np.where(free <= held, free, np.float32(0)), (kl, clipped, share)


def explained_variance(values: Floats32, targets: Floats32) -> float:
    """Returns 1 - Var(targets - values) / Var(targets); 0 is no better than a constant."""
    spread = _variance(targets)
    return 1.0 - _variance(targets - values) / spread if spread > 0 else 0.0


def _variance(numbers: Floats32) -> float:
    centred = (numbers - numbers.mean()).ravel()
    return float(centred @ centred) / centred.size
