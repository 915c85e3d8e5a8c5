"""The network one observation of each row at a time, by the definition of its parts, and a plain loop that acts with
it: what every fused form must equal.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.distributions import Categorical, Normal

from envs.contract import ActionKind
from rl.learning.network import SwingNet

torch.set_num_threads(1)  # as every worker does; on networks this small, more only wait for each other


def lively(net: SwingNet, scale: float = 0.4, seed: int = 0) -> SwingNet:
    """Draws all parameters large: a fresh actor is so small that an error in it would pass unnoticed."""
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=draw))
    return net


def flat(tensors):
    """Returns the numbers of all tensors in one fresh vector."""
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors]).numpy()


def gradients(loss, net):
    """Returns the gradient of each parameter by name; 0 where none arrives."""
    found = torch.autograd.grad(loss, list(net.parameters()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(parameter) if gradient is None else gradient
        for (name, parameter), gradient in zip(net.named_parameters(), found, strict=True)
    }


def assert_near(one: Any, other: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance, check_dtype=False)


class Rows:
    """B rows; the graph is kept."""

    def __init__(self, net: SwingNet, count: int) -> None:
        self.net = net
        self.h = [torch.zeros(count, net.model.hidden)] * net.model.layers
        self.c, self.age, self.outputs = list(self.h), np.zeros(count, int), []

    def reset(self, begins: np.ndarray) -> None:
        """Forgets everything in the rows where an episode begins, `[B]` bool."""
        keep = torch.tensor(~begins)[:, None]
        self.h, self.c = [h * keep for h in self.h], [c * keep for c in self.c]
        self.age[begins] = 0

    def detach(self) -> None:
        """Cuts the graph, where a fragment ends."""
        self.h, self.c, self.outputs = ([each.detach() for each in kept] for kept in (self.h, self.c, self.outputs))

    def tell(self, market: torch.Tensor) -> torch.Tensor:
        """Takes the market's numbers `[B, F]`, and returns what stands for the market, `[B, H]`."""
        lstm, told = self.net.lstm, market
        for number in range(self.net.model.layers):
            w_ih, w_hh, b_ih, b_hh = (
                getattr(lstm, f"{name}_l{number}") for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            i, f, g, o = (told @ w_ih.T + b_ih + self.h[number] @ w_hh.T + b_hh).chunk(4, 1)
            self.c[number] = torch.sigmoid(f) * self.c[number] + torch.sigmoid(i) * torch.tanh(g)
            told = self.h[number] = torch.sigmoid(o) * torch.tanh(self.c[number])
        if not self.net.model.attention_heads:
            return told
        sessions = self.net.model.attention_sessions
        self.outputs = [*self.outputs, told][-sessions:]
        self.age = np.minimum(self.age + 1, sessions)
        return told + torch.stack([attention(self.net, own) for own in self.own()])

    def own(self) -> list[torch.Tensor]:
        """Returns the outputs of each row's episode that attention may look at, `[n, H]` each."""
        together = torch.stack(self.outputs, 1)
        return [mine[len(mine) - age :] for mine, age in zip(together, self.age, strict=True)]

    def answer(self, obs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns outputs `[B, A]` and values `[B]` of observations `[B, F + P]`."""
        net = self.net
        joined = torch.cat([self.tell(obs[:, : net.market_features]), obs[:, net.market_features :]], 1)
        dense = torch.tanh(joined @ net.trunk.weight.T + net.trunk.bias)
        return dense @ net.actor.weight.T + net.actor.bias, (dense @ net.critic.weight.T + net.critic.bias)[:, 0]

    def values_ahead(self, obs: torch.Tensor) -> np.ndarray:
        """Returns the values `[B]` of observations that would come next; the rows stay where they are."""
        ahead = copy.copy(self)
        ahead.h, ahead.c = list(self.h), list(self.c)
        with torch.no_grad():
            return ahead.answer(obs)[1].numpy()


def attention(net: SwingNet, outputs: torch.Tensor) -> torch.Tensor:
    """Returns what the last of one row's outputs `[n, H]` learns from all of them, `[H]`, a head at a time."""
    width = net.model.hidden
    size = width // net.model.attention_heads
    told, mixed = outputs @ net.attention_in.weight.T + net.attention_in.bias, []
    for head in range(net.model.attention_heads):
        queries, keys, values = (told[:, part * width + head * size :][:, :size] for part in range(3))
        mixed.append(torch.softmax(keys @ queries[-1] / size**0.5, 0) @ values)
    return net.attention_out.weight @ torch.cat(mixed) + net.attention_out.bias


class Played(NamedTuple):
    """What the plain loop saw in one fragment; `[T, B]` where nothing else is said."""

    obs: np.ndarray
    """`[T, B, D]`."""
    outputs: torch.Tensor
    """`[T, B, A]`, forbidden ones far below; this and the next three with a graph."""
    values: torch.Tensor
    log_likelihoods: torch.Tensor
    entropies: torch.Tensor
    next_values: np.ndarray
    rewards: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    starts: np.ndarray
    h: torch.Tensor
    """Before the first step, `[L, B, H]`."""
    c: torch.Tensor
    returns: list[float]
    """Of the episodes that ended, step by step and then slot by slot."""
    lengths: list[int]


class Player:
    """Steps an environment in SAME_STEP mode, and asks the network about one observation of each slot at a time."""

    def __init__(self, net: SwingNet, env: Any, seed: int) -> None:
        self.net, self.env = net, env
        self.obs, _ = env.reset(seed=seed)
        self.rows = Rows(net, env.num_envs)
        self.fresh = np.ones(env.num_envs, bool)
        self.earned, self.lasted = np.zeros(env.num_envs), np.zeros(env.num_envs, int)

    def play(self, actions: np.ndarray) -> Played:
        """Takes the actions of one fragment, `[T, B]`; no gradient flows from it into the one before."""
        self.rows.detach()
        self.rows.reset(self.fresh)
        h, c = torch.stack(self.rows.h), torch.stack(self.rows.c)
        steps, returns, lengths = [], [], []
        for action in actions:
            starts, before = self.fresh, self.obs
            self.rows.reset(starts)
            outputs, values = self.rows.answer(torch.tensor(before))
            if getattr(self.env, "masks_actions", False):
                outputs = torch.where(torch.tensor(self.env.action_masks()), outputs, -1e6)
            policy = self._policy(outputs)
            told = outputs, values, policy.log_prob(torch.tensor(action)), policy.entropy()
            taken = action if self.net.action is ActionKind.DISCRETE else action[:, None]
            self.obs, reward, terminated, truncated, infos = self.env.step(taken)
            self.fresh = terminated | truncated
            ahead = np.where(self.fresh[:, None], infos["final_obs"], self.obs) if self.fresh.any() else self.obs
            following = np.where(terminated, 0, self.rows.values_ahead(torch.tensor(ahead)))
            steps.append((before, *told, following, reward, terminated, truncated, starts))
            self.earned, self.lasted = self.earned + reward, self.lasted + 1
            returns += self.earned[self.fresh].tolist()
            lengths += self.lasted[self.fresh].tolist()
            self.earned[self.fresh], self.lasted[self.fresh] = 0.0, 0
        obs, outputs, values, likelihoods, entropies, *rest = zip(*steps, strict=True)
        told = (torch.stack(each) for each in (outputs, values, likelihoods, entropies))
        return Played(np.stack(obs), *told, *map(np.array, rest), h, c, returns, lengths)

    def _policy(self, outputs: torch.Tensor) -> Any:
        if self.net.action is ActionKind.DISCRETE:
            return Categorical(logits=outputs)
        return Normal(outputs[:, 0], self.net.log_std.exp().expand(len(outputs)))
