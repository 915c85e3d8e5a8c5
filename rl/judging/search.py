"""Which configurations a sweep tries, and in which order; the same ones again after any interruption.

Optuna draws. What it needs to know of the past comes from the trial ledger, so there is no second record of a sweep.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from rl.config import Axis, TuneConfig

SEEDS_APART = 7919
"""Between the seeds of two draws: each draw has a seed of its own, so that a resumed sweep draws on, not again."""
RANDOM_FIRST = 8
"""Draws before the tree of Parzen estimators has seen enough."""


class Past(NamedTuple):
    """A configuration that was tried before."""

    values: Mapping[str, Any]
    """Dotted path -> value."""
    score: float | None
    """None: it has none yet."""
    over: bool
    """Whether it is done; otherwise `tell` is still to come."""


def size_of(config: TuneConfig) -> int:
    """Returns the number of configurations that a sweep tries."""
    return int(np.prod([len(axis.grid) for axis in config.space.values() if axis.grid is not None], dtype=int)) * (
        config.samples
    )


class Search:
    """Proposes configuration after configuration.

    A grid is gone through in order, once for each sample, with fresh draws of the random axes.
    """

    def __init__(self, config: TuneConfig, past: Sequence[Past] = ()) -> None:
        """Goes on after `past`, which holds the first proposals in their order."""
        import optuna  # noqa: PLC0415  (half a second)

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.config, self.size = config, size_of(config)
        self._study = optuna.create_study(direction="maximize")
        self._spread = {path: _distribution(axis) for path, axis in config.space.items()}
        for values, score, over in past:
            state = optuna.trial.TrialState.COMPLETE if over else optuna.trial.TrialState.RUNNING
            codes = {path: _code(axis, values[path]) for path, axis in config.space.items()}
            self._study.add_trial(
                optuna.trial.create_trial(
                    params=codes, distributions=self._spread, value=score if over else None, state=state
                )
            )

    @property
    def proposed(self) -> int:
        """Number of configurations proposed so far, those of the past included."""
        return len(self._study.trials)

    def propose(self) -> tuple[int, dict[str, Any]] | None:
        """Returns the next configuration's number and values by dotted path; None when all were proposed."""
        number = self.proposed
        if number >= self.size:
            return None
        self._study.sampler = self._sampler(self.config.seed + SEEDS_APART * number)
        if fixed := self._grid_point(number):
            self._study.enqueue_trial(fixed)
        codes = self._study.ask(self._spread).params
        return number, {path: _value(axis, codes[path]) for path, axis in self.config.space.items()}

    def tell(self, number: int, score: float | None) -> None:
        """Takes note of the score of a configuration, None if it failed."""
        import optuna  # noqa: PLC0415

        state = optuna.trial.TrialState.FAIL if score is None else optuna.trial.TrialState.COMPLETE
        self._study.tell(number, score, state=state)

    def _sampler(self, seed: int) -> Any:
        from optuna.samplers import RandomSampler, TPESampler  # noqa: PLC0415

        if self.config.sampler == "random":
            return RandomSampler(seed=seed)
        return TPESampler(seed=seed, n_startup_trials=RANDOM_FIRST)

    def _grid_point(self, number: int) -> dict[str, int]:
        """Returns the codes of the grid's axes of one proposal; the last axis changes fastest."""
        sizes = {path: len(axis.grid) for path, axis in self.config.space.items() if axis.grid is not None}
        point = np.unravel_index(number % int(np.prod([*sizes.values(), 1])), (*sizes.values(), 1))
        return {path: int(code) for path, code in zip(sizes, point, strict=False)}


def _distribution(axis: Axis) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution  # noqa: PLC0415

    if axis.integer is not None:
        return IntDistribution(*axis.integer)
    if axis.uniform is not None:
        return FloatDistribution(*axis.uniform)
    if axis.loguniform is not None:
        return FloatDistribution(*axis.loguniform, log=True)
    return CategoricalDistribution(range(len(axis.listed)))


def _value(axis: Axis, code: Any) -> Any:
    """Returns what Optuna's code of a value stands for: listed values are coded by their place."""
    return axis.listed[code] if axis.listed else code


def _code(axis: Axis, value: Any) -> Any:
    return list(axis.listed).index(value) if axis.listed else value
