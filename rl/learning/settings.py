"""Settings of the network, of learning, and of how much to train."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field, model_validator

from data_pipeline.config import Config

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(Config):
    """The recurrent network."""

    hidden: Positive = 64
    """LSTM units."""
    layers: Annotated[int, Field(ge=1, le=2)] = 1
    """LSTM layers."""
    dense: Positive = 32
    """Width of the dense layer, in which the portfolio state joins the LSTM's output."""
    attention_heads: Annotated[int, Field(ge=0)] = 0
    """Heads of causal attention over the LSTM's outputs; 0: none. They must divide `hidden`."""
    attention_sessions: Positive = 32
    """Sessions that attention looks at, the present one among them."""
    critic_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the dense layer that is dropped before the value head while learning. The actor has none, for a policy
    other than the one that acted would make the gradient wrong. What is estimated while acting drops nothing."""
    action_deviation: PositiveFloat = 0.3
    """Continuous actions only: standard deviation of the first policy, learned from there."""
    bf16: bool = False
    """LSTM in bfloat16 where the processor has such instructions; heads, loss and optimiser stay in float32."""
    window_sessions: Positive = 60
    """W: sessions replayed from a zero state for each decision in judging and serving."""
    bptt_sessions: Positive = 32
    """Steps of a fragment: a worker samples so many at a time, and a gradient flows back through all of them. Fastest
    where it divides the length of an episode."""

    @model_validator(mode="after")
    def _heads_divide(self) -> ModelConfig:
        if self.attention_heads and self.hidden % self.attention_heads:
            raise ValueError(f"attention_heads {self.attention_heads} do not divide hidden {self.hidden}")
        return self


class LearnConfig(Config):
    """What all algorithms have in common."""

    lr: PositiveFloat = 1e-3
    """Adam's step size."""
    lr_fall: Share = 0.5
    """The step size falls linearly to 0 over this last share of the budget."""
    gamma: Share = 0.97
    """Discount per session; 0.97 looks about 33 sessions ahead."""
    gae_lambda: Share = 0.95
    """λ of generalised advantage estimation; 1 gives the n-step returns of the A3C paper, n to the fragment's end."""
    entropy: NonNegative = 0.005
    """Weight of the entropy bonus."""
    value_weight: PositiveFloat = 0.5
    """Weight of the value loss."""
    grad_clip: PositiveFloat = 0.5
    """Gradients are scaled down to this global norm."""
    cost_rise: Share = 0.5
    """All costs rise linearly from 0 to their full size over this first share of the budget. With full costs from the
    first step, an untrained policy learns that trading only loses, and never trades again."""
    scale_rewards: bool = True
    """Whether rewards are divided by the running deviation of the discounted return."""
    normalise_advantages: bool = True
    """Whether advantages get mean 0 and deviation 1 in each batch. Without, the policy learns more slowly where returns
    are mostly noise, and more exactly where they are not."""


class A3cConfig(Config):
    """Asynchronous advantage actor-critic (Mnih et al. 2016); its bounds hold for asynchronous PPO too."""

    max_staleness: Annotated[int, Field(ge=0)] = 16
    """A gradient is dropped when more updates than this, for each worker there is, were applied since its weights were
    sent. Where all are equally fast it is one less than the number of workers."""
    staleness_aware: bool = False
    """Whether the step size of a gradient is divided by its staleness (Zhang et al. 2016)."""
    request_lead_s: NonNegative = 0.02
    """A worker gets its next request so long before it is expected to answer the last one: what both take on their way.
    It never waits then, but its next weights lack its own latest gradient. 0: it is asked when it has answered."""
    request_timeout_s: PositiveFloat = 120.0
    """A worker that has not answered for so long is killed and started anew."""


class PpoConfig(Config):
    """Proximal policy optimisation (Schulman et al. 2017)."""

    clip: PositiveFloat = 0.2
    """Probability ratios are clipped to 1 ± this."""
    epochs: Positive = 4
    """Passes over each batch."""
    minibatches: Positive = 4
    """Gradients in each pass; each sees some slots, whole fragments long. Asynchronous workers cut each their own
    fragment: with two of them, half as many make gradients of as many slots, and faster ones."""
    target_kl: PositiveFloat | None = None
    """Passes over a batch end when the policy has moved so far, in nats; None: never."""
    vtrace: bool = True
    """Asynchronous only: whether values and advantages are corrected for stale weights (Espeholt et al. 2018)."""
    max_age: Positive = 256
    """Asynchronous only: a fragment is dropped when more updates than this were applied since it was sampled. Each
    worker takes `epochs` × `minibatches` gradients from a fragment, while all others' are applied."""


class AlgorithmName(StrEnum):
    """The algorithms."""

    A3C = "a3c"
    PPO = "ppo"
    ASYNC_PPO = "async-ppo"


class TrainConfig(Config):
    """What trains, how much, and on how many workers."""

    algorithm: AlgorithmName = AlgorithmName.PPO
    """a3c and async-ppo: workers compute gradients, which are applied as they arrive. ppo: in step."""
    steps: Positive = 100_000
    """Environment steps in all."""
    env_runners: Annotated[int, Field(ge=0)] = 2
    """Ray workers that sample; 0 samples in the learner's own process."""
    envs_per_runner: Positive = 32
    """Slots stepped at once by each."""
    remote_learner: bool = False
    """Whether weights are kept and updated by a worker of their own rather than by the driver."""
    iteration_steps: Positive = 8192
    """Environment steps between two lines of progress, at least."""
    checkpoint_iterations: Positive = 5
    """Iterations between checkpoints."""
    seed: int = 0
    """Of environments, network and sampling."""


class EngineConfig(Config):
    """Network, learning, and how much of it."""

    model: ModelConfig = ModelConfig()
    """Network."""
    learn: LearnConfig = LearnConfig()
    """What all algorithms have in common."""
    a3c: A3cConfig = A3cConfig()
    """A3C, and what holds for asynchronous PPO too."""
    ppo: PpoConfig = PpoConfig()
    """PPO, in step or asynchronous."""
    train: TrainConfig = TrainConfig()
    """Algorithm, budget and workers."""
