"""Gradients: computed where the fragments are, shipped as one flat vector, applied by the optimiser.

An A3C worker samples a fragment for every gradient and reuses the forward pass that chose the actions. An asynchronous
PPO worker keeps its fragment for several passes, each with the newest weights. Synchronous PPO learns from the
fragments of all workers in one place. All three go down the same loss.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from envs.contract import Floats32, Ints
from rl.learning.losses import Loss, Weights, actor_critic_loss, explained_variance, gae, vtrace
from rl.learning.network import Joined, State, SwingNet
from rl.learning.progress import Discounted, Moments
from rl.learning.rollout import NO_EPISODES, Episodes, Forward, Fragment, Sampler, permitted


class Order(NamedTuple):
    """What a worker is asked to do: the schedules' present values, beside the weights."""

    version: int
    """Of the weights."""
    cost_scale: float
    """Charges in the reward are multiplied by this."""
    reward_scale: float
    """Rewards are multiplied by this before learning."""
    entropy: float
    """Weight of the entropy bonus."""


class Report(NamedTuple):
    """What a worker has to say beside its gradient or fragment."""

    version: int
    """Of the weights that the gradient was computed with."""
    acted: int
    """Of the weights that acted."""
    steps: int
    """New environment steps."""
    episodes: Episodes
    """That ended in them."""
    moments: Moments
    """Of the discounted return in them, unscaled."""
    figures: dict[str, float]
    """Of the loss, and of the policy's move since it acted."""


@dataclass(frozen=True)
class Recipe:
    """How to learn from a fragment; see `rl.learning.settings` for the meaning."""

    steps: int
    gamma: float = 0.97
    lambda_: float = 0.95
    value: float = 0.5
    clip: float = 0.2
    epochs: int = 4
    minibatches: int = 4
    target_kl: float | None = None
    vtrace: bool = True
    normalise: bool = True
    max_age: int = 256

    def weights(self, entropy: float) -> Weights:
        """Returns the weights of the loss."""
        return Weights(entropy, self.value, self.clip, self.normalise)


class GradientWorker(ABC):
    """Acts and computes gradients with weights that it is given."""

    def __init__(self, sampler: Sampler, recipe: Recipe, seed: int | None = None) -> None:
        self.sampler, self.recipe = sampler, recipe
        self.weights = Joined(sampler.net.parameters())
        self._returns = Discounted(recipe.gamma, np.zeros(sampler.env.num_envs))
        self._rng = np.random.default_rng(seed)

    @abstractmethod
    def gradient(self, vector: Floats32, order: Order) -> tuple[Floats32, Report]:
        """Returns the gradient of the loss, as one vector, at the weights `vector`."""

    def fragment(self, vector: Floats32, order: Order) -> tuple[Fragment, Report]:
        """Returns a fragment acted with the weights `vector`, its rewards scaled."""
        self.weights.load(vector)
        fragment, _, report = self._sample(order, grad=False)
        return fragment, report

    def _sample(self, order: Order, grad: bool) -> tuple[Fragment, Forward, Report]:
        self.sampler.env.cost_scale = order.cost_scale
        fragment, forward, episodes = self.sampler.sample(self.recipe.steps, grad=grad)
        moments = self._returns.moments(fragment.rewards, fragment.terminated | fragment.truncated)
        fragment.rewards *= np.float32(order.reward_scale)
        fragment.version = order.version
        moves = np.abs(np.diff(fragment.actions, axis=0))
        figures = {"moves": float(moves.mean())} if moves.size else {}
        return fragment, forward, Report(order.version, order.version, fragment.env_steps(), episodes, moments, figures)


class A3cWorker(GradientWorker):
    """One fragment, one gradient."""

    observed_columns = 4
    """Slots on which the policy's move since its last fragment is measured, every `observed_every` gradients."""
    observed_every = 8

    def __init__(self, sampler: Sampler, recipe: Recipe, seed: int | None = None) -> None:
        super().__init__(sampler, recipe, seed)
        self._last: Fragment | None = None
        self._count = 0

    def gradient(self, vector: Floats32, order: Order) -> tuple[Floats32, Report]:
        """Samples, and returns the gradient through the pass that acted."""
        self.weights.load(vector)
        figures = self._move()
        fragment, forward, report = self._sample(order, grad=True)
        advantages, targets = advantages_of(fragment, self.recipe)
        loss = loss_of(forward, None, advantages, targets, self.recipe.weights(order.entropy))
        vector = self.weights.gradient(loss.total)
        self._last = fragment
        figures |= report.figures | {
            "entropy": loss.entropy,
            "value_loss": loss.value,
            "explained_variance": explained_variance(fragment.values, targets),
        }
        return vector, report._replace(figures=figures)

    def _move(self) -> dict[str, float]:
        """Returns how far the policy has moved since it acted last, looked at every now and then."""
        self._count += 1
        if self._last is None or self._count % self.observed_every:
            return {}
        columns = np.arange(min(self.observed_columns, self._last.rewards.shape[1]))
        with torch.no_grad():
            loss = fragment_loss(
                self.sampler.net, self._last, columns, self._last.values, self._last.values, self.recipe.weights(0.0)
            )
        return {"kl": loss.kl, "sample_share": loss.sample_share}


class AsyncPpoWorker(GradientWorker):
    """Several passes over a fragment, each minibatch with the newest weights."""

    def __init__(self, sampler: Sampler, recipe: Recipe, seed: int | None = None) -> None:
        super().__init__(sampler, recipe, seed)
        self._kept: Fragment | None = None
        self._columns: Iterator[Ints] = iter(())

    def gradient(self, vector: Floats32, order: Order) -> tuple[Floats32, Report]:
        """Samples if the last fragment is used up or too old, and returns the gradient of its next minibatch."""
        self.weights.load(vector)
        columns = next(self._columns, None)
        report = Report(order.version, order.version, 0, NO_EPISODES, Moments(), {})
        age = 0 if self._kept is None else order.version - self._kept.version
        if self._kept is None or columns is None or not 0 <= age <= self.recipe.max_age:  # below 0: a rollback
            self._kept, _, report = self._sample(order, grad=False)
            self._columns = minibatches(self._kept.rewards.shape[1], self.recipe, self._rng)
            columns = next(self._columns)
        loss, explained = self._loss(self._kept, columns, order)
        if self.recipe.target_kl is not None and loss.kl > self.recipe.target_kl:
            self._columns = iter(())
        figures = {**report.figures, **loss_figures(loss), "explained_variance": explained}
        return self.weights.gradient(loss.total), report._replace(acted=self._kept.version, figures=figures)

    def _loss(self, fragment: Fragment, columns: Ints, order: Order) -> tuple[Loss, float]:
        part = columns_of(fragment, columns)
        forward = answers(self.sampler.net, part)
        now = forward.values.detach().numpy()
        if self.recipe.vtrace:
            ratios = np.exp(forward.log_likelihoods.detach().numpy() - part.log_likelihoods)
            advantages, targets = vtrace(
                part.rewards,
                now,
                renewed(now, part),
                part.terminated | part.truncated,
                ratios,
                self.recipe.gamma,
                self.recipe.lambda_,
            )
        else:
            advantages, targets = advantages_of(part, self.recipe)
        loss = loss_of(forward, part.log_likelihoods, advantages, targets, self.recipe.weights(order.entropy))
        return loss, explained_variance(now, targets)


def advantages_of(fragment: Fragment, recipe: Recipe) -> tuple[Floats32, Floats32]:
    """Returns the advantages and the value targets of a fragment under the policy that acted, `[T, B]` each."""
    ended = fragment.terminated | fragment.truncated
    advantages = gae(fragment.rewards, fragment.values, fragment.next_values, ended, recipe.gamma, recipe.lambda_)
    return advantages, advantages + fragment.values


def renewed(values: Floats32, fragment: Fragment) -> Floats32:
    """Returns next values `[T, B]` under new weights, where the fragment holds the observation after the step.

    The last step of a fragment and of an episode keep those of the weights that acted.
    """
    ended = fragment.terminated[:-1] | fragment.truncated[:-1]
    return np.concatenate([np.where(ended, fragment.next_values[:-1], values[1:]), fragment.next_values[-1:]])


def answers(net: SwingNet, fragment: Fragment) -> Forward:
    """Returns what the network says along a fragment that is replayed, with a graph.

    The critic drops what `model.critic_dropout` says.
    """
    net.train()
    state = State(*(torch.from_numpy(part) for part in fragment.state))
    told = net.unroll(torch.from_numpy(fragment.market), state, torch.from_numpy(fragment.starts))
    outputs, values = net.heads(net.drive(told), torch.from_numpy(fragment.portfolio))
    likelihoods, entropies = net.judge(permitted(outputs, fragment.allowed), torch.from_numpy(fragment.actions))
    return Forward(likelihoods, values, entropies)


def loss_of(
    forward: Forward, acted: Floats32 | None, advantages: Floats32, targets: Floats32, weights: Weights
) -> Loss:
    """Returns the loss of the network's answers along a fragment; see `actor_critic_loss`, arrays are `[T, B]`."""
    return actor_critic_loss(
        forward.log_likelihoods, acted, forward.values, forward.entropies, advantages, targets, weights
    )


def fragment_loss(
    net: SwingNet, fragment: Fragment, columns: Ints, advantages: Floats32, targets: Floats32, weights: Weights
) -> Loss:
    """Returns the loss on some slots of a fragment; advantages and targets are of all slots."""
    part = columns_of(fragment, columns)
    told = answers(net, part)
    return loss_of(told, part.log_likelihoods, advantages[:, columns], targets[:, columns], weights)


def columns_of(fragment: Fragment, columns: Ints) -> Fragment:
    """Returns some slots of a fragment."""
    return _by_column([fragment], lambda parts, axis: parts[0].take(columns, axis=axis))


def beside(fragments: list[Fragment]) -> Fragment:
    """Returns fragments of equal length side by side, as one of more slots."""
    return _by_column(fragments, lambda parts, axis: np.concatenate(parts, axis=axis))


def _by_column(fragments: list[Fragment], join: Callable[[list[Any], int], Any]) -> Fragment:
    arrays = {
        name: join([getattr(fragment, name) for fragment in fragments], 1)
        for name in Fragment.__dataclass_fields__
        if name not in ("state", "version") and getattr(fragments[0], name) is not None
    }
    parts = zip(*(fragment.state for fragment in fragments), strict=True)
    *layers, known = (list(part) for part in parts)
    state = (*(join(part, 1) for part in layers), join(known, 0))
    return Fragment(**arrays, state=state, version=min(fragment.version for fragment in fragments))


def minibatches(slots: int, recipe: Recipe, rng: np.random.Generator) -> Iterator[Ints]:
    """Yields the slots of each gradient: all of them once in each pass, in random groups."""
    for _ in range(recipe.epochs):
        for columns in np.array_split(rng.permutation(slots), min(recipe.minibatches, slots)):
            yield np.sort(columns)


def loss_figures(loss: Loss) -> dict[str, float]:
    """Returns the parts of a loss that people watch."""
    return {
        "entropy": loss.entropy,
        "value_loss": loss.value,
        "kl": loss.kl,
        "clipped": loss.clipped,
        "sample_share": loss.sample_share,
    }


@dataclass
class Optimiser:
    """Adam on a network's parameters, fed with flat gradients.

    Attributes:
        net: Changed by `apply`.
        clip: Gradients are scaled down to this global norm.
        weights: Those of `net`, as one vector.
        adam: Steps them; RLlib's learner keeps its state in checkpoints.
    """

    net: SwingNet
    clip: float
    weights: Joined = field(init=False)
    adam: torch.optim.Adam = field(init=False)

    def __post_init__(self) -> None:
        self.weights = Joined(self.net.parameters())
        self.adam = torch.optim.Adam([self.weights.whole], lr=0.0, eps=1e-5, fused=True)

    def apply(self, gradient: Floats32, lr: float) -> float:
        """Takes a step, and returns the gradient's norm before it was clipped.

        A gradient that is not finite changes nothing, the moments of Adam included; its norm is returned all the same.

        Raises:
            ValueError: The gradient is of a network of another size.
        """
        norm = float(np.linalg.norm(gradient))
        if not np.isfinite(norm):
            return norm
        scaled = self.weights.fitting(gradient) * np.float32(min(1.0, self.clip / (norm + 1e-6)))
        self.weights.whole.grad = torch.from_numpy(scaled)
        for group in self.adam.param_groups:
            group["lr"] = lr
        self.adam.step()
        return norm

    def vector(self) -> Floats32:
        """Returns the weights."""
        return self.weights.vector()


def learn(
    optimiser: Optimiser,
    fragments: list[Fragment],
    recipe: Recipe,
    lr: float,
    entropy: float,
    rng: np.random.Generator,
) -> tuple[dict[str, float], int, int]:
    """Runs PPO's passes over fragments of all workers, and returns mean figures, gradients taken, and refused ones."""
    whole = beside(fragments)
    advantages, targets = advantages_of(whole, recipe)
    weights = recipe.weights(entropy)
    rows: list[dict[str, float]] = []
    refused = 0
    for columns in minibatches(whole.rewards.shape[1], recipe, rng):
        loss = fragment_loss(optimiser.net, whole, columns, advantages, targets, weights)
        norm = optimiser.apply(optimiser.weights.gradient(loss.total), lr)
        if np.isfinite(norm):
            rows.append({**loss_figures(loss), "gradient_norm": norm})
        else:
            refused += 1
        if recipe.target_kl is not None and loss.kl > recipe.target_kl:
            break
    figures = {name: float(np.mean([row[name] for row in rows])) for name in (rows[0] if rows else ())}
    figures["explained_variance"] = explained_variance(whole.values, targets)
    return figures, len(rows), refused
