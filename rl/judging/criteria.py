"""What a candidate must pass, and how much is spent on finding out."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from data_pipeline.config import Config
from envs.ensemble import Combination

Level = Annotated[float, Field(gt=0, lt=1)]


class JudgeConfig(Config):
    """Thresholds of the verdict; see `rl.judging.verdict` for what each gate says."""

    benchmark: Literal["vol-target-10", "equal-weight", "buy-and-hold", "momentum-12-1", "sma-10-50"] = "vol-target-10"
    """Which baseline must be beaten, on the same symbols and sessions. Fixed beforehand: the best of several
    baselines, or the one that did worst, would be another choice made after looking."""
    superiority_level: Level = 0.05
    """Gate superiority: largest p-value of the test for superior predictive ability (Hansen 2005), which counts every
    configuration of the sweep."""
    most_overfitting: Level = 0.2
    """Gate overfitting: largest probability that what was best against the benchmark in one half of the sessions does
    no better than it in the other half (the probability of loss of Bailey et al. 2017)."""
    overfitting_blocks: Annotated[int, Field(ge=2, le=20, multiple_of=2)] = 16
    """Even number of parts that the out-of-sample sessions are cut into for it."""
    ensemble: Annotated[int, Field(ge=1)] = 1
    """So many of the sweep's best finished configurations act as one; 1: the winner alone."""
    combination: Combination = "mean"
    """How configurations, and the seeds of each, act as one: the mean of their target positions, a vote, or the mean
    weighted by Sharpe ratios on inner validation (`folds.validation_sessions`)."""
    twins: Annotated[int, Field(ge=0)] = 8
    """Zero-skill twins: the candidate trained anew so many times, on features that belong to other sessions; 0: none.
    """
    twin_level: Level = 0.2
    """Gate twins: largest p-value of the candidate among its twins, (1 + those at least as good) / (1 + twins)."""
    twin_block_sessions: Annotated[int, Field(ge=1)] = 63
    """Length of the blocks that are permuted for a twin."""
    thrifty: bool = False
    """Whether nothing more is trained, and the holdout stays shut, once a gate has failed."""
    seed: int = 0
    """Of bootstraps and permutations."""

    @model_validator(mode="after")
    def _twins_can_decide(self) -> JudgeConfig:
        least = 1.0 / (1 + self.twins)
        if self.twins and least > self.twin_level:
            raise ValueError(
                f"twins {self.twins} can give no p-value below {least:.2f}, so twin_level {self.twin_level:g} would "
                "never be passed; train more twins, or none"
            )
        return self
