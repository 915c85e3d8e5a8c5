"""Walk-forward and combinatorial folds, before a holdout that stays shut until the judge opens it.

    |----- block -----|gap|- test -|                                      fold-1
             |----- block -----|gap|- test -|                             fold-2 ...
                      |----- block -----|gap|-------- holdout --------|   final

    block = |--- train ---|gap|- validation -|, or training alone if there is no inner validation

Spans are row ranges of a panel's sessions, the stop excluded. A sweep chooses by the folds' test spans, so only
the holdout is untouched. The gap keeps a position opened on the last training session, and its label, out of
what follows. Rows before a span may be read for features and recurrent burn-in; they are past, so this is no
leak, and they are not scored.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import Field

from data_pipeline.config import Config
from data_pipeline.errors import ConfigError, FoldError

Positive = Annotated[int, Field(ge=1)]
Length = Annotated[int, Field(ge=0)]
Rows = npt.NDArray[np.int64]
C = TypeVar("C", bound="_Separation")


class Span(NamedTuple):
    """Rows `start` .. `stop`, the stop excluded."""

    start: int
    stop: int

    def __len__(self) -> int:
        """Returns the number of sessions."""
        return self.stop - self.start


class Fold(NamedTuple):
    """What is learnt from, what a training may choose by, and what is then judged on."""

    name: str
    train: Span
    validation: Span
    """Empty without inner validation."""
    test: Span
    """Out of sample; of the final fold, the holdout."""


class Split(NamedTuple):
    """One combination: what is learnt from, and what is then judged on."""

    name: str
    train: tuple[Span, ...]
    test: tuple[Span, ...]
    paths: tuple[int, ...]
    """Path of each test span: the spans of one path, of all splits, make up the history once."""


class _Separation(Config):
    purge_sessions: Length = 20
    """Left out between training and what is judged: at least the label's horizon and the longest holding."""
    label_horizon_sessions: Length = 20
    """How far a label, or the outcome of a decision, reaches into the sessions after it."""
    holdout_sessions: Positive = 504
    """The last sessions of the history, shut until the judge opens them."""


class FoldsConfig(_Separation):
    """Walk-forward layout, in sessions."""

    scheme: Literal["rolling", "expanding"] = "rolling"
    """rolling: blocks of equal length; expanding: every block begins with the first usable session."""
    train_sessions: Positive = 504
    """Length of a block, inner validation included; the first one's least length if they expand."""
    validation_sessions: Length = 63
    """End of each block that is kept from learning, for choices within a training; 0: none."""
    test_sessions: Positive = 63
    """Length of each fold's out-of-sample span."""
    step_sessions: Positive | None = None
    """From one fold to the next; None: test_sessions; more leaves sessions between test spans unjudged."""
    embargo_sessions: Length = 0
    """Added to each purge, against what is serially correlated for longer than a label reaches."""
    count: Positive | None = None
    """Number of walk-forward folds, the most recent ones; None: all that fit."""

    @property
    def gap(self) -> int:
        """Sessions between training and what is judged."""
        return self.purge_sessions + self.embargo_sessions

    @property
    def step(self) -> int:
        """Sessions from one fold to the next."""
        return self.step_sessions or self.test_sessions

    def needed(self, count: int = 1) -> int:
        """Returns the usable sessions that `count` folds and the final one take."""
        one = self.train_sessions + self.gap + self.test_sessions + self.gap + self.holdout_sessions
        return one + (count - 1) * self.step


class CombinatorialConfig(_Separation):
    """Layout of combinatorial purged cross-validation (López de Prado 2018, chapter 12)."""

    folds: Annotated[int, Field(ge=3, le=16)] = 6
    """Parts of equal length that the history is cut into."""
    test_folds: Annotated[int, Field(ge=2, le=15)] = 2
    """Parts judged at a time; every combination of so many is one split."""
    embargo_sessions: Length = 60
    """Left out beyond the purge after what is judged: at least the longest look-back and the longest holding."""

    @property
    def part(self) -> int:
        """Fewest sessions of a part of which something is left to learn from between two judged ones."""
        return 2 * self.purge_sessions + self.embargo_sessions + 2


def walk_forward(sessions: int, warm_up: int, config: FoldsConfig) -> tuple[tuple[Fold, ...], Fold]:
    """Returns the walk-forward folds, oldest first, and the final fold, whose test span is the holdout.

    The last fold ends where the gap before the holdout begins.

    Args:
        sessions: Rows of the panel.
        warm_up: Rows at its start that are read only: features are incomplete or windows not full.
        config: The layout.

    Raises:
        FoldError: The settings contradict each other or the history is too short; says what would fit.
        ConfigError: skfolio is not installed.
    """
    _check_walk_forward(sessions, warm_up, config)
    count = config.count or _count_that_fits(sessions - warm_up, config)
    expanding = config.scheme == "expanding"
    end = sessions - config.holdout_sessions - config.gap
    block_stop = end - (count - 1) * config.step - config.test_sessions - config.gap
    origin = warm_up if expanding else block_stop - config.train_sessions
    splitter = _skfolio().WalkForward(
        test_size=config.step,
        train_size=block_stop - origin,
        purged_size=config.gap,
        expand_train=expanding,
    )
    # The last step may reach past `end`; of each, only the test span at its beginning is judged.
    rows = np.zeros((block_stop - origin + config.gap + count * config.step, 1))
    folds = []
    for number, (learnt, judged) in enumerate(splitter.split(rows), 1):
        (block,), start = _spans(learnt, origin), int(judged[0]) + origin
        folds.append(_fold(f"fold-{number}", block, Span(start, start + config.test_sessions), config))
    block = Span(warm_up if expanding else end - config.train_sessions, end)
    return tuple(folds), _fold("final", block, Span(sessions - config.holdout_sessions, sessions), config)


def combinatorial(sessions: int, warm_up: int, config: CombinatorialConfig) -> tuple[Split, ...]:
    """Returns every split of the sessions between the warm-up and the holdout, which none of them touches.

    Training may lie after what is judged, in several spans, apart from it by purge and embargo.

    Args:
        sessions: Rows of the panel.
        warm_up: Rows at its start that are read only.
        config: The layout.

    Raises:
        FoldError: The settings contradict each other or the history is too short; says what would fit.
        ConfigError: skfolio is not installed.
    """
    _check_combinatorial(sessions, warm_up, config)
    splitter = _skfolio().CombinatorialPurgedCV(
        n_folds=config.folds,
        n_test_folds=config.test_folds,
        purged_size=config.purge_sessions,
        embargo_size=config.embargo_sessions,
    )
    rows = np.zeros((sessions - config.holdout_sessions - config.purge_sessions - warm_up, 1))
    return tuple(
        Split(
            f"split-{number}",
            _spans(learnt, warm_up),
            tuple(span for part in judged for span in _spans(part, warm_up)),
            tuple(map(int, paths)),
        )
        for number, ((learnt, judged), paths) in enumerate(
            zip(splitter.split(rows), splitter.get_path_ids(), strict=True), 1
        )
    )


def _skfolio() -> Any:
    try:
        from skfolio import model_selection  # noqa: PLC0415  (two seconds, and not in the base installation)
    except ImportError as error:
        raise ConfigError("folds need the package skfolio: pip install 'swing-rl[train]'") from error
    return model_selection


def _spans(rows: Rows, offset: int) -> tuple[Span, ...]:
    """Returns the runs of consecutive rows, moved by `offset`."""
    runs = np.split(rows + offset, np.flatnonzero(np.diff(rows) > 1) + 1)
    return tuple(Span(int(run[0]), int(run[-1]) + 1) for run in runs)


def _fold(name: str, block: Span, test: Span, config: FoldsConfig) -> Fold:
    if not config.validation_sessions:
        return Fold(name, block, Span(block.stop, block.stop), test)
    validation = Span(block.stop - config.validation_sessions, block.stop)
    return Fold(name, Span(block.start, validation.start - config.gap), validation, test)


def _check_walk_forward(sessions: int, warm_up: int, config: FoldsConfig) -> None:
    consistent, faults = _consistent(config)
    fitting = _shortened(sessions - warm_up, consistent)
    if fitting != config:
        count = config.count or 1
        shortage = (
            f"{sessions} sessions, {warm_up} of them to warm up, are too few for {count} fold{'s' * (count > 1)} of "
            f"{config.train_sessions} + {config.test_sessions} with a holdout of {config.holdout_sessions} and gaps "
            f"of {config.gap}"
        )
        needed = warm_up + consistent.needed(count)
        raise _refusal(
            "; ".join(faults) or shortage, config, consistent, fitting, needed if needed > sessions else None
        )


def _consistent(config: FoldsConfig) -> tuple[FoldsConfig, list[str]]:
    """Returns the settings without what cannot hold whatever the history, and what that was."""
    config, faults = _purged(config)
    step, test, train, inner = config.step, config.test_sessions, config.train_sessions, config.validation_sessions
    if step < test:
        faults.append(f"step_sessions {step} is below test_sessions {test}: test spans would overlap")
        config = config.model_copy(update={"step_sessions": test})
    possible = _inner(train, inner, config.gap)
    if inner != possible:
        text = f"validation_sessions {inner} and a gap of {config.gap} leave nothing of train_sessions {train}"
        faults.append(f"{text} to learn from")
        config = config.model_copy(update={"validation_sessions": possible})
    return config, faults


def _purged(config: C) -> tuple[C, list[str]]:
    purge, horizon = config.purge_sessions, config.label_horizon_sessions
    if purge >= horizon:
        return config, []
    fault = f"purge_sessions {purge} is below label_horizon_sessions {horizon}: labels would reach what is judged"
    return config.model_copy(update={"purge_sessions": horizon}), [fault]


def _shortened(usable: int, config: FoldsConfig) -> FoldsConfig | None:
    """Returns the settings with fewer folds, or shorter ones, that fit; the same if they do; None if none do."""
    fits = _count_that_fits(usable, config)
    if fits >= (config.count or 1):
        return config
    if fits >= 1:
        return config.model_copy(update={"count": fits})
    room = usable - 2 * config.gap
    asked = config.needed() - 2 * config.gap
    test = max(config.test_sessions * room // asked, 1)
    holdout = max(config.holdout_sessions * room // asked, 1)
    train = min(room - test - holdout, config.train_sessions)
    if train < 1:
        return None
    changes = {
        "train_sessions": train,
        "validation_sessions": _inner(train, config.validation_sessions * room // asked, config.gap),
        "test_sessions": test,
        "holdout_sessions": holdout,
        "count": config.count and 1,
    }
    return config.model_copy(update=changes)


def _count_that_fits(usable: int, config: FoldsConfig) -> int:
    return 1 + (usable - config.needed()) // config.step


def _inner(train: int, validation: int, gap: int) -> int:
    """Returns `validation` if the block has room for it and a gap, else half of what the gap leaves."""
    return validation if validation < max(train - gap, 1) else max(train - gap, 0) // 2


def _check_combinatorial(sessions: int, warm_up: int, config: CombinatorialConfig) -> None:
    consistent, faults = _purged(config)
    if config.test_folds >= config.folds:
        faults.append(f"test_folds {config.test_folds} of folds {config.folds} leave nothing to learn from")
        consistent = consistent.model_copy(update={"test_folds": config.folds - 1})
    reserved = warm_up + config.holdout_sessions + consistent.purge_sessions
    fitting = _with_fewer_parts((sessions - reserved) // consistent.part, consistent)
    if fitting != config:
        shortage = (
            f"{sessions} sessions, {warm_up} of them to warm up and {config.holdout_sessions} held out, are too few "
            f"for {config.folds} folds of {config.part} (two purges, an embargo, and some to learn from)"
        )
        needed = reserved + config.folds * consistent.part
        raise _refusal(
            "; ".join(faults) or shortage, config, consistent, fitting, needed if needed > sessions else None
        )


def _with_fewer_parts(fits: int, config: CombinatorialConfig) -> CombinatorialConfig | None:
    if fits >= config.folds:
        return config
    fewer = {"folds": fits, "test_folds": min(config.test_folds, fits - 1)}
    return config.model_copy(update=fewer) if fits >= 3 else None


def _refusal(fault: str, config: C, consistent: C, fitting: C | None, needed: int | None) -> FoldError:
    """Returns the error that says what is wrong and what would do.

    Args:
        fault: What is wrong.
        config: As it was asked for.
        consistent: The same without what cannot hold whatever the history.
        fitting: What fits the present history, if anything does.
        needed: History that `consistent` takes, if that is longer than the present one.
    """
    prefix = "folds." if isinstance(config, FoldsConfig) else ""

    def changes(wanted: C) -> str:
        given = config.tree()
        return ", ".join(f"{prefix}{name}={value}" for name, value in wanted.tree().items() if value != given[name])

    ways = []
    if needed is not None:
        also = changes(consistent)
        ways.append(f"give at least {needed} sessions" + (f" and set {also}" if also else ""))
    if fitting is not None:
        ways.append(f"set {changes(fitting)}")
    return FoldError(f"{fault}; {' or '.join(ways)}")
