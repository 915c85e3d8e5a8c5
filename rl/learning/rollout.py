"""Acting: one fragment of T steps in B slots, as time-major arrays.

No action changes the market, so the recurrence runs over the whole fragment before the first action, in one call;
each step then costs two small products. Where an episode ends on the way, its slot runs again from a zero
state over the rest. With `grad`, what was computed for acting keeps its graph, and the gradient needs no second
forward pass.

Axes as in `rl.learning.network`. Time: row t of a fragment is the observation of t, the action chosen on it, and the
reward of the step that follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from torch import Tensor

from data_pipeline.errors import ConfigError
from envs.contract import ActionKind, Bools, Floats, Floats32, Ints
from rl.learning.network import State, SwingNet

FORBIDDEN = -1e9
"""Logit of an action that is not allowed; finite, so that entropies are."""


class MarketVectorEnv(Protocol):
    """A vector environment whose market can be read ahead (`envs.swing`, `envs.worlds`).

    Where it has `masks_actions` and that is true, `action_masks()` says what is allowed, `[B, 3]`.
    """

    num_envs: int
    market_features: int
    portfolio_features: tuple[str, ...]
    metadata: dict[str, Any]

    cost_scale: float

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Floats32, dict[str, Any]]:
        """As in Gymnasium."""

    def step(self, actions: Any) -> tuple[Floats32, Floats, Bools, Bools, dict[str, Any]]:
        """As in Gymnasium."""

    def market_ahead(self, steps: int, slots: Ints | None = None) -> Floats32:
        """Returns the market part of this and the next observations, `[steps, b, F]`."""


@dataclass
class Fragment:
    """What happened, in NumPy: it travels between processes.

    Attributes:
        market: `[T, B, F]`.
        portfolio: `[T, B, P]`.
        actions: `[T, B]`: int64, or float32 as sampled, before the environment clips it.
        rewards: As the environment gave them, `[T, B]` float32.
        terminated: `[T, B]`; nothing can be earned after.
        truncated: `[T, B]`; the value goes on.
        starts: Where the observation of t is the first of an episode, `[T, B]`.
        log_likelihoods: Of the actions under the policy that acted, `[T, B]`.
        values: Of that policy's critic, `[T, B]`.
        next_values: Of the observation after the step: 0 where terminated, of the final observation where truncated.
        state: Before the first step.
        allowed: Which actions were, `[T, B, A]`; None: all.
        version: Of the weights that acted.
    """

    market: Floats32
    portfolio: Floats32
    actions: Any
    rewards: Floats32
    terminated: Bools
    truncated: Bools
    starts: Bools
    log_likelihoods: Floats32
    values: Floats32
    next_values: Floats32
    state: tuple[Any, ...]
    allowed: Bools | None = None
    version: int = 0

    def env_steps(self) -> int:
        """Returns T × B."""
        return int(self.rewards.size)

    agent_steps = env_steps  # RLlib's evaluation counts both


class Forward(NamedTuple):
    """The network's answers along a fragment, with their graph if one was asked for."""

    log_likelihoods: Tensor
    """Of the actions, `[T, B]`."""
    values: Tensor
    """`[T, B]`."""
    entropies: Tensor
    """Of the distributions over actions, `[T, B]`."""


class Episodes(NamedTuple):
    """Episodes that ended during a fragment."""

    returns: Floats
    lengths: Ints


NO_EPISODES = Episodes(np.empty(0), np.empty(0, np.int64))


class _Piece(NamedTuple):
    """The rest of a fragment for slots that began an episode on the way."""

    begin: int
    slots: Ints
    told: Tensor
    """What the market says, `[T - begin, b, H]`."""
    last: Tensor
    """The same of the session after the fragment, `[b, H]`."""
    state: State


class Sampler:
    """Steps a vector environment with a network.

    Attributes:
        net: Read at each fragment; whoever changes its weights does so between two fragments.
        env: In SAME_STEP mode.
    """

    def __init__(self, net: SwingNet, env: MarketVectorEnv, seed: int | None = None) -> None:
        """Resets the environment.

        Raises:
            ConfigError: The environment resets itself in another mode, or offers other features than the network has.
        """
        if env.metadata.get("autoreset_mode") is not AutoresetMode.SAME_STEP:
            raise ConfigError(
                f"autoreset_mode {env.metadata.get('autoreset_mode')}: a step must be a decision; make the environment "
                "with autoreset_mode=SameStep"
            )
        offered, wanted = (
            (env.market_features, len(env.portfolio_features)),
            (
                net.market_features,
                net.portfolio_features,
            ),
        )
        if offered != wanted:
            raise ConfigError(f"environment with (market, portfolio) features {offered}, network for {wanted}")
        self.net, self.env = net, env
        self.rng = np.random.default_rng(seed)
        self.restart(seed)

    def restart(self, seed: int | None = None) -> None:
        """Begins new episodes in all slots."""
        self._obs, _ = self.env.reset(seed=seed)
        self._fresh = np.ones(self.env.num_envs, np.bool_)
        self._state = self.net.zero_state(self.env.num_envs)
        self._returns = np.zeros(self.env.num_envs)
        self._lengths = np.zeros(self.env.num_envs, np.int64)

    def sample(self, steps: int, *, grad: bool = False, explore: bool = True) -> tuple[Fragment, Forward, Episodes]:
        """Acts for `steps` decisions in each slot.

        Args:
            steps: T.
            grad: Whether `Forward` carries a graph to the parameters.
            explore: Draw actions from the policy, or take its most probable ones.
        """
        self.net.eval()
        with torch.set_grad_enabled(grad):
            return self._sample(steps, explore)

    def _sample(self, steps: int, explore: bool) -> tuple[Fragment, Forward, Episodes]:
        net, env = self.net, self.env
        count, split = env.num_envs, env.market_features
        market = env.market_ahead(steps + 1)
        before, (told, last, after) = self._state, self._told(market, self._state)
        acting = _Acting(net, told, last, self._noise(steps) if explore else None)
        portfolio = np.empty((steps, count, self._obs.shape[1] - split), np.float32)
        actions = np.empty((steps, count), np.int64 if net.action is ActionKind.DISCRETE else np.float32)
        rewards = np.empty((steps, count), np.float32)
        terminated, truncated = np.zeros((2, steps, count), np.bool_)
        starts = np.zeros((steps, count), np.bool_)
        starts[0] = self._fresh
        allowed = np.empty((steps, count, 3), np.bool_) if getattr(env, "masks_actions", False) else None
        pieces: list[_Piece] = []
        finals: list[tuple[int, Ints, Floats32, Floats32]] = []
        for t in range(steps):
            portfolio[t] = self._obs[:, split:]
            if allowed is not None:
                allowed[t] = env.action_masks()  # type: ignore[attr-defined]
            actions[t] = acting.choose(t, portfolio[t], None if allowed is None else allowed[t])
            chosen = actions[t] if net.action is ActionKind.DISCRETE else actions[t][:, None]
            self._obs, reward, terminated[t], truncated[t], infos = env.step(chosen)
            rewards[t] = reward
            over = terminated[t] | truncated[t]
            self._fresh = over
            if not np.count_nonzero(over):
                continue
            slots = np.flatnonzero(over)
            cut = np.flatnonzero(truncated[t])
            finals.append((t, cut, acting.after(t)[cut], infos["final_obs"][cut, split:]))
            if t + 1 == steps:
                continue
            rest = env.market_ahead(steps - t, slots)
            pieces.append(_Piece(t + 1, slots, *self._told(rest, net.zero_state(len(slots)))))
            acting.replace(t + 1, slots, pieces[-1])
            market[t + 1 :, slots] = rest
            starts[t + 1, slots] = True
        self._state = self._carried(after, pieces, starts)
        answers = acting.answers
        values = answers[..., -1]
        outputs, learned = self._answers(_joined(told, pieces), portfolio, acting.halves, answers)
        likelihoods, entropies = net.judge(permitted(outputs, allowed), torch.from_numpy(actions))
        fragment = Fragment(
            market=market[:steps],
            portfolio=portfolio,
            actions=actions,
            rewards=rewards,
            terminated=terminated,
            truncated=truncated,
            starts=starts,
            log_likelihoods=likelihoods.detach().numpy(),
            values=values,
            next_values=self._next_values(acting, values, finals, terminated),
            state=tuple(part.numpy() for part in before),
            allowed=allowed,
        )
        return fragment, Forward(likelihoods, learned, entropies), self._episodes(rewards, terminated | truncated)

    def _answers(self, told: Tensor, portfolio: Floats32, halves: Floats32, answers: Floats32) -> tuple[Tensor, Tensor]:
        """Returns the actor's outputs `[T, B, A]` and the values that learn `[T, B]`, arguments as of `SwingNet.known`.

        Where the critic drops some of its inputs, the last layers are computed once more, with torch's graph.
        """
        net, held = self.net, torch.from_numpy(portfolio)
        if not (torch.is_grad_enabled() and net.model.critic_dropout):
            return net.known(told, held, torch.from_numpy(halves), torch.from_numpy(answers))
        net.train()
        outputs, learned = net.heads(net.drive(told), held)
        net.eval()
        return outputs, learned

    def _carried(self, after: State, pieces: list[_Piece], starts: Bools) -> State:
        """Returns the state to go on with: that of each slot's last piece, and zero where an episode just ended."""
        for piece in pieces:
            ongoing = np.flatnonzero(~starts[piece.begin + 1 :, piece.slots].any(axis=0))
            after = after.put(torch.from_numpy(piece.slots[ongoing]), piece.state.at(torch.from_numpy(ongoing)))
        ended = torch.from_numpy(np.flatnonzero(self._fresh))
        return after.put(ended, self.net.zero_state(len(ended))) if len(ended) else after

    def _episodes(self, rewards: Floats32, ended: Bools) -> Episodes:
        """Returns the episodes that ended, slot by slot, and carries the rest on."""
        if not ended.any():
            self._returns += rewards.sum(axis=0, dtype=np.float64)
            self._lengths += len(rewards)
            return NO_EPISODES
        sums = np.vstack([-self._returns, rewards.cumsum(axis=0, dtype=np.float64)])  # so that differences are sums
        slots, steps = np.nonzero(ended.T)
        before = np.where(np.diff(slots, prepend=-1) > 0, 0, np.roll(steps, 1) + 1)  # row of `sums` at their start
        carried = np.where(before == 0, self._lengths[slots], 0)
        done = Episodes(sums[steps + 1, slots] - sums[before, slots], steps + 1 - before + carried)
        last = np.zeros(rewards.shape[1], np.int64)
        np.maximum.at(last, slots, steps + 1)
        everywhere = np.arange(rewards.shape[1])
        self._lengths = np.where(last == 0, self._lengths, 0) + len(rewards) - last
        self._returns = sums[-1] - sums[last, everywhere]
        return done

    def _told(self, market: Floats32, state: State) -> tuple[Tensor, Tensor, State]:
        """Returns what n sessions say, `[n, b, H]`, what the one after says, `[b, H]`, and the state after n."""
        rows = torch.from_numpy(market)
        told, after = self.net.recur(rows[:-1], state)
        with torch.no_grad():
            return told, self.net.recur(rows[-1:], after)[0][0], after

    def _next_values(
        self,
        acting: _Acting,
        values: Floats32,
        finals: list[tuple[int, Ints, Floats32, Floats32]],
        terminated: Bools,
    ) -> Floats32:
        """Returns `[T, B]`: the values of what came after each step."""
        last = acting.values(acting.last, self._obs[:, self.env.market_features :])
        following = np.concatenate([values[1:], last[None]])
        for t, slots, doubled, portfolio in finals:
            following[t, slots] = acting.values(doubled, portfolio)
        return np.where(terminated, np.float32(0), following)

    def _noise(self, steps: int) -> Floats32:
        """Returns what is added to outputs, `[T, B, A]`: the largest sum is then a draw, or the sum itself is."""
        shape = (steps, self.env.num_envs)
        if self.net.action is ActionKind.CONTINUOUS:
            drawn = self.rng.standard_normal((*shape, 1), np.float32)
            return drawn * np.float32(self.net.log_std.detach().exp().item())
        even = self.rng.random((*shape, 3), np.float32)
        return -np.log(-np.log(np.maximum(even, np.float32(1e-30))))  # Gumbel


class _Acting:
    """The policy's last layers, a step at a time: each in the library whose call costs less.

    tanh(x) = 2 σ(2x) - 1, and σ is thrice as fast as either library's tanh. So what the dense layer reads is doubled
    beforehand, and the layers after it take σ as it is.

    Attributes:
        halves: σ of the dense layer, `[T, B, D]`; of steps to come, what the market adds to it, doubled.
        last: The latter, of the session after the fragment, `[B, D]`.
    """

    def __init__(self, net: SwingNet, told: Tensor, last: Tensor, noise: Floats32 | None) -> None:
        """Takes what the market says, and how choices stray.

        Args:
            net: The policy.
            told: `[T, B, H]`.
            last: Of the session after the fragment, `[B, H]`.
            noise: `[T, B, A]`; see `Sampler`. None: choices do not stray.
        """
        weights = 2.0 * net.trunk.weight.detach().t()
        self._doubling, self._joins = weights[: net.model.hidden].contiguous(), weights[net.model.hidden :].contiguous()
        self._doubled_bias = 2.0 * net.trunk.bias.detach()
        last_layers = (net.actor, net.critic)
        halved = torch.cat([layer.weight.detach() for layer in last_layers])
        self._bias = (torch.cat([layer.bias.detach() for layer in last_layers]) - halved.sum(1)).numpy()
        self._weights = (2.0 * halved).t().contiguous().numpy()
        self._discrete = net.action is ActionKind.DISCRETE
        self.halves, self.last = self._double(told), self._double(last)
        self._answers = np.empty((*self.halves.shape[:2], len(self._bias)), np.float32)
        self._added = np.full_like(self._answers, -np.inf)  # the last is no choice
        self._added[..., :-1] = self._bias[:-1] if noise is None else noise + self._bias[:-1]

    @property
    def answers(self) -> Floats32:
        """Outputs of all steps, without noise, and the value as the last, `[T, B, A + 1]`."""
        return self._answers + self._bias

    def choose(self, t: int, portfolio: Floats32, allowed: Bools | None) -> Any:
        """Returns the actions `[B]` of step t, for portfolios `[B, P]`."""
        halves = self.halves[t]
        torch.from_numpy(halves).addmm_(torch.from_numpy(portfolio), self._joins).sigmoid_()
        outputs = np.dot(halves, self._weights, out=self._answers[t]) + self._added[t]
        if allowed is not None:
            outputs[:, :-1][~allowed] = -np.inf
        return outputs.argmax(axis=1) if self._discrete else outputs[:, 0]

    def values(self, doubled: Floats32, portfolio: Floats32) -> Floats32:
        """Returns the critic's values `[b]` where the market adds `doubled`, `[b, D]`, to portfolios `[b, P]`."""
        halves = torch.addmm(torch.from_numpy(doubled), torch.from_numpy(portfolio), self._joins).sigmoid_().numpy()
        found: Floats32 = halves @ self._weights[:, -1] + self._bias[-1]
        return found

    def after(self, t: int) -> Floats32:
        """Returns what the market adds in the session after t, doubled, `[B, D]`."""
        return self.halves[t + 1] if t + 1 < len(self.halves) else self.last

    def replace(self, begin: int, slots: Ints, piece: _Piece) -> None:
        """Puts another market into some slots, from step `begin` on."""
        self.halves[begin:, slots] = self._double(piece.told)
        self.last[slots] = self._double(piece.last)

    def _double(self, told: Tensor) -> Floats32:
        """Returns what the market adds to the dense layer, doubled, `[..., D]`, where it says `told`, `[..., H]`."""
        doubled = torch.addmm(self._doubled_bias, told.detach().flatten(0, -2), self._doubling)
        return doubled.view(*told.shape[:-1], -1).numpy()


def permitted(outputs: Tensor, allowed: Bools | None) -> Tensor:
    """Returns outputs `[..., A]` with the logits of forbidden actions so low that their probability is 0."""
    return outputs if allowed is None else outputs.masked_fill(~torch.from_numpy(allowed), FORBIDDEN)


def _joined(told: Tensor, pieces: list[_Piece]) -> Tensor:
    """Returns what the market says, `[T, B, H]`, with each piece in its place."""
    if not pieces:
        return told
    steps = len(told)
    owner = np.full((steps, told.shape[1]), -1, np.int64)
    for number, piece in enumerate(pieces):
        owner[piece.begin :, piece.slots] = number
    places, parts = [], []
    for number, piece in enumerate(pieces):
        mine = owner[piece.begin :, piece.slots] == number
        row, column = np.nonzero(mine)
        places.append(np.stack([row + piece.begin, piece.slots[column]]))
        parts.append(piece.told[torch.from_numpy(mine)])
    rows, columns = torch.from_numpy(np.concatenate(places, axis=1))
    return told.index_put((rows, columns), torch.cat(parts))
