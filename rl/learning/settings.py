"""Settings of the network, of PPO, and of how much to train."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from data_pipeline.config import Config

Positive = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class ModelConfig(Config):
    """Size of the recurrent network."""

    hidden: Positive = 64
    """LSTM units, and width of the dense layer after it."""
    window_sessions: Positive = 60
    """W: sessions replayed from a zero state for each decision in judging and serving."""
    bptt_sessions: Positive = 32
    """Steps that a gradient flows back through."""


class PpoConfig(Config):
    """Proximal policy optimisation (Schulman et al. 2017)."""

    lr: PositiveFloat = 5e-4
    """Adam's step size."""
    gamma: Share = 0.97
    """Discount per session; 0.97 looks about 33 sessions ahead."""
    gae_lambda: Share = 0.9
    """Generalised advantage estimation's λ."""
    clip: PositiveFloat = 0.2
    """Probability ratios are clipped to 1 ± this."""
    entropy: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the entropy bonus."""
    value_weight: PositiveFloat = 0.5
    """Weight of the value loss."""
    grad_clip: PositiveFloat = 0.5
    """Gradients are scaled down to this global norm."""
    epochs: Positive = 4
    """Passes over each batch."""
    batch_steps: Positive = 4096
    """Environment steps sampled, over all runners, for each update."""
    minibatch_steps: Positive = 1024
    """Environment steps in each gradient."""


class TrainConfig(Config):
    """How much to train, and on how many workers."""

    steps: Positive = 100_000
    """Environment steps in all."""
    env_runners: Annotated[int, Field(ge=0)] = 2
    """Ray workers that sample; 0 samples in the learner's own process."""
    envs_per_runner: Positive = 32
    """Slots stepped at once by each."""
    checkpoint_iterations: Positive = 5
    """Iterations between checkpoints."""
    seed: int = 0
    """Of environments, network and sampling."""
