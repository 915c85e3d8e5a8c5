"""The one settings tree of `swing-rl`; YAML in `tune_configs/` says only what differs from it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, model_validator

from data_pipeline.build import DataConfig
from data_pipeline.config import Config, read_yaml, set_path, with_overrides
from data_pipeline.folds import FoldsConfig
from envs.simulator import EnvConfig
from rl.learning.settings import EngineConfig


class Axis(Config):
    """One dimension of a search space: exactly one of the four."""

    grid: tuple[Any, ...] | None = None
    """Every value is tried."""
    choice: tuple[Any, ...] | None = None
    """One value is drawn."""
    uniform: tuple[float, float] | None = None
    """Drawn evenly between two bounds."""
    loguniform: tuple[float, float] | None = None
    """Drawn evenly on a log scale between two bounds."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Axis:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"give exactly one of grid, choice, uniform, loguniform (found {given or 'none'})")
        return self


class TuneConfig(Config):
    """The sweep."""

    space: dict[str, Axis] = Field(default_factory=dict)
    """Dotted path into this tree -> axis."""
    samples: Annotated[int, Field(ge=1)] = 1
    """Draws from the random axes; the grid is repeated for each."""
    env_runners: Annotated[int, Field(ge=0)] = 0
    """Ray workers of each trial; 0 lets a trial sample in its own process, so that trials fill the machine."""
    seed: int = 0
    """Of the random axes."""


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
