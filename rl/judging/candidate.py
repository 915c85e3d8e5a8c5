"""What is judged: the best of a sweep's configurations, each trained with each seed, acting as one policy.

<folder>/trial-<number>/seed-<seed>/    its trainings
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_pipeline.config import Config
from data_pipeline.errors import RunError
from data_pipeline.folds import Fold
from data_pipeline.scaling import Scaler
from envs.costs import Costs
from envs.ensemble import Combination, Ensemble
from envs.limits import Limits
from envs.lstm import LstmPolicy
from rl.config import RunConfig, with_values
from rl.judging.course import seeds_of
from rl.judging.ensemble import weighted_by_validation
from rl.learning.panels import panel_at
from rl.learning.train import Progress, policy_of, train

if TYPE_CHECKING:
    from rl.judging.tune import Sweep  # loads Ray


class Member(Config):
    """One training."""

    trial: int
    """Number of its configuration in the sweep."""
    label: str
    """What the search space chose for that."""
    config: RunConfig
    """All settings, the training's own seed among them."""

    @property
    def name(self) -> str:
        """Tells it from the others."""
        return f"{self.label}, seed {self.config.train.seed}"

    @property
    def run(self) -> str:
        """Folder of the training, in that of all."""
        return f"trial-{self.trial}/seed-{self.config.train.seed}"


class Candidate(Config):
    """Trainings that act as one policy."""

    members: tuple[Member, ...]
    """The winner's, then those of the next best configurations."""
    combination: Combination
    """How they become one."""

    @property
    def config(self) -> RunConfig:
        """Settings of the winner, whose account all are judged by, also where the sweep was over `env`."""
        return self.members[0].config

    @property
    def account(self) -> tuple[Limits, Costs, float]:
        """Limits, costs and initial cash in USD."""
        env = self.config.env
        return env.limits, env.costs, env.initial_cash_usd

    @property
    def window(self) -> int:
        """W: the longest of the members' windows."""
        return max(member.config.model.window_sessions for member in self.members)

    @property
    def label(self) -> str:
        """All members, for a record."""
        if len(self.members) == 1:
            return self.members[0].label
        return f"{self.combination} of {'; '.join(member.name for member in self.members)}"

    def changed(self, path: str, value: object) -> Candidate:
        """Returns the candidate with one setting of all members changed."""
        members = [
            member.model_copy(update={"config": with_values(member.config, {path: value}, "candidate")})
            for member in self.members
        ]
        return self.model_copy(update={"members": tuple(members)})

    def trained(
        self, panel_folder: Path, fold: Fold, folder: Path, on_progress: Callable[[Progress], None] = lambda _: None
    ) -> LstmPolicy | Ensemble:
        """Trains the members one after another, weighs them, and returns the policy; needs a Ray connection.

        Args:
            panel_folder: Of the panel.
            fold: Trained on its training span; weights are measured on its inner validation.
            folder: Of the trainings; what finished there before is not repeated.
            on_progress: Is told of each iteration.
        """
        policies = [
            train(
                member.config, panel_folder, fold.train, folder / member.run, resume=True, on_progress=on_progress
            ).policy
            for member in self.members
        ]
        weights: tuple[float, ...] = ()
        if self.combination == "sharpe" and len(policies) > 1:
            panel = panel_at(panel_folder)
            weights = weighted_by_validation("weighed", policies, panel, fold.validation, *self.account).weights
        return self.policy(folder, policies[0].scaler, weights)

    def policy(self, folder: Path, scaler: Scaler, weights: Sequence[float]) -> LstmPolicy | Ensemble:
        """Returns what the finished trainings come to.

        Args:
            folder: Of the trainings.
            scaler: Fitted on their span.
            weights: Of the members, where they are combined by sharpe.
        """
        if len(self.members) == 1:
            return policy_of(folder / self.members[0].run, self.config, scaler)
        networks = [policy_of(folder / each.run, each.config, scaler, each.name) for each in self.members]
        algorithms = dict.fromkeys(each.config.train.algorithm.value for each in self.members)
        name = f"{'-'.join(algorithms)}-lstm-x{len(networks)}"
        return Ensemble(name, tuple(networks), self.combination, tuple(weights))


def candidate_of(sweep: Sweep) -> Candidate:
    """Returns the best finished configurations of a sweep, so many as `judge.ensemble` says, with each seed.

    Raises:
        RunError: Fewer finished.
    """
    judge, finished = sweep.config.judge, [trial for trial in sweep.trials if trial.status == "finished"]
    if len(finished) < judge.ensemble:
        raise RunError(
            f"sweep {sweep.id}: {len(finished)} of its configurations finished, and judge.ensemble is "
            f"{judge.ensemble}; try again those that failed with `swing-rl tune --resume`, or sweep more of them"
        )
    members = [
        Member(trial=trial.number, label=trial.label, config=with_values(config, {"train.seed": seed}, trial.label))
        for trial in finished[: judge.ensemble]
        for config in [with_values(sweep.config, trial.values, trial.label)]
        for seed in seeds_of(config)
    ]
    return Candidate(members=tuple(members), combination=judge.combination)
