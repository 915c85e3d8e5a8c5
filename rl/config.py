"""The one settings tree of `swing-rl`; YAML in `tune_configs/` says only what differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from data_pipeline.build import DataConfig
from data_pipeline.config import Config, read_yaml, set_path, with_overrides
from data_pipeline.folds import FoldsConfig
from envs.simulator import EnvConfig
from rl.judging.criteria import JudgeConfig
from rl.learning.settings import EngineConfig


class Axis(Config):
    """One dimension of a search space: exactly one of the five."""

    grid: tuple[Any, ...] | None = None
    """Every value is tried."""
    choice: tuple[Any, ...] | None = None
    """One value is drawn."""
    integer: tuple[int, int] | None = None
    """Drawn from the whole numbers between two bounds, both included."""
    uniform: tuple[float, float] | None = None
    """Drawn evenly between two bounds."""
    loguniform: tuple[float, float] | None = None
    """Drawn evenly on a log scale between two bounds."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Axis:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of {', '.join(type(self).model_fields)} (found {given or 'none'})")
        if given[0] in ("grid", "choice") and not self.listed:
            raise ValueError(f"{given[0]} is empty; list at least one value")
        return self

    @property
    def listed(self) -> tuple[Any, ...]:
        """The values of a grid or a choice; empty for a range."""
        return self.grid or self.choice or ()

    @property
    def extremes(self) -> tuple[Any, ...]:
        """All listed values, or both ends of a range."""
        return self.listed or self.integer or self.uniform or self.loguniform or ()


class TuneConfig(Config):
    """The sweep."""

    space: dict[str, Axis] = Field(default_factory=dict)
    """Dotted path into this tree -> axis."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Draws from the random axes; the grid is repeated for each."""
    sampler: Literal["random", "tpe"] = "random"
    """random: draws do not depend on scores; tpe: Optuna's tree of Parzen estimators, which draws near what did well.
    """
    seeds: Annotated[int, Field(ge=1)] = 1
    """Trainings of each configuration on each fold, by seeds train.seed, train.seed + 1, …; the score is their median.
    """
    stop_early: bool = False
    """Whether successive halving (ASHA) stops configurations whose first folds are among the worse ones."""
    grace_folds: Annotated[int, Field(ge=1)] = 1
    """Folds that every configuration is trained on before it may be stopped."""
    keep_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of the configurations that goes on where others are stopped."""
    parallel_folds: bool = False
    """Whether the folds of a configuration train side by side: for few configurations and many processors. Nothing is
    stopped early then."""
    env_runners: Annotated[int, Field(ge=0)] = 0
    """Ray workers of each trial; 0 lets a trial sample in its own process, so that trials fill the machine."""
    seed: int = 0
    """Of the draws."""

    @model_validator(mode="after")
    def _folds_in_order(self) -> TuneConfig:
        if self.parallel_folds and self.stop_early:
            raise ValueError("stop_early needs the folds one after another; set parallel_folds or stop_early to false")
        return self


class RunConfig(EngineConfig):
    """Everything that decides a run's result."""

    data: DataConfig = DataConfig()
    """Bars and features."""
    folds: FoldsConfig = FoldsConfig()
    """Walk-forward layout, and the holdout."""
    env: EnvConfig = EnvConfig()
    """Episodes, account, costs."""
    tune: TuneConfig = TuneConfig()
    """Search space."""
    judge: JudgeConfig = JudgeConfig()
    """What the winner must pass."""

    @model_validator(mode="after")
    def _weights_have_a_source(self) -> RunConfig:
        if self.judge.combination == "sharpe" and not self.folds.validation_sessions:
            raise ValueError(
                "judge.combination sharpe weighs members by inner validation, and folds.validation_sessions is 0; "
                "give it some sessions, such as 63, or combine by mean or vote"
            )
        return self


def with_values(config: RunConfig, values: Mapping[str, Any], source: str) -> RunConfig:
    """Returns the settings with dotted paths replaced.

    Raises:
        ConfigError: A path is unknown or a value out of range; `source` is named.
    """
    tree = config.tree()
    for path, value in values.items():
        set_path(tree, path, value)
    return RunConfig.of(tree, source)


def load_config(path: Path | None, assignments: Iterable[str] = ()) -> RunConfig:
    """Returns the settings of a YAML file (None: all defaults) with `path=value` assignments on top.

    Raises:
        ConfigError: Naming file, dotted path and remedy.
    """
    tree = read_yaml(path) if path else {}
    return RunConfig.of(with_overrides(tree, assignments), str(path or "settings"))
