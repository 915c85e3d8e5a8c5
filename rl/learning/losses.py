"""The mathematics of actor-critic learning, as pure functions of time-major arrays `[T, B]`.

Time: `values[t]` is V(s_t), `rewards[t]` is r_{t+1}, `next_values[t]` is V(s_{t+1}), 0 where the episode terminated
and of the final observation where it was truncated. `ended[t]`: the episode's last step, either way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

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
    entropy: Tensor
    """Mean over the batch, in nats."""
    value: Tensor
    """Mean squared error of the critic."""
    kl: Tensor
    """Estimate of KL(acting ‖ present) in nats (Schulman's k3: never negative)."""
    clipped: Tensor
    """Share of ratios beyond the clip."""
    sample_share: Tensor
    """Effective sample size over sample size: (Σ ρ)² / (n Σ ρ²)."""


def actor_critic_loss(
    log_likelihoods: Tensor,
    acted: Tensor | None,
    values: Tensor,
    entropies: Tensor,
    advantages: Tensor,
    targets: Tensor,
    weights: Weights,
) -> Loss:
    """Returns PPO's clipped loss, or that of A2C, which has its gradient where the policy is the one that acted.

    Args:
        log_likelihoods: Of the actions under the present policy, `[T, B]`, with a graph.
        acted: Of the actions under the policy that acted; None: it is the present one.
        values: With a graph.
        entropies: With a graph.
        advantages: A constant.
        targets: Of the values, a constant.
        weights: Of the terms.
    """
    if weights.normalise and advantages.numel() > 1:
        advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
    gain, told = (
        ((log_likelihoods * advantages).mean(), _NO_MOVE)
        if acted is None
        else _clipped(log_likelihoods - acted, advantages, weights.clip)
    )
    error = (values - targets).square().mean()
    entropy = entropies.mean()
    total = -gain + weights.value * 0.5 * error - weights.entropy * entropy
    return Loss(total, entropy.detach(), error.detach(), *told)


def _clipped(move: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, tuple[Tensor, Tensor, Tensor]]:
    """Returns PPO's gain, and the last three of `Loss`, of changes in log-likelihood."""
    ratios = move.exp()
    bounded = ratios.clamp(1.0 - clip, 1.0 + clip)
    gain = torch.minimum(ratios * advantages, bounded * advantages).mean()
    with torch.no_grad():
        kl = (ratios - 1.0 - move).mean()
        clipped = (ratios != bounded).float().mean()
        share = ratios.sum().square() / (ratios.numel() * ratios.square().sum())
    return gain, (kl, clipped, share)


_NO_MOVE = (torch.tensor(0.0), torch.tensor(0.0), torch.tensor(1.0))


def explained_variance(values: Floats32, targets: Floats32) -> float:
    """Returns 1 - Var(targets - values) / Var(targets); 0 is no better than a constant."""
    spread = _variance(targets)
    return 1.0 - _variance(targets - values) / spread if spread > 0 else 0.0


def _variance(numbers: Floats32) -> float:
    centred = (numbers - numbers.mean()).ravel()
    return float(centred @ centred) / centred.size
