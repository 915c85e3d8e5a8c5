"""Walk-forward folds with purge, counted back from a test window that stays shut until the judge opens it.

    |---- train ----|purge|- validation -|                                   fold 1
             |---- train ----|purge|- validation -|                          fold 2 ...
                              |---- train ----|purge|------- test -------|   final

Spans are row ranges of a panel's sessions, the stop excluded. The purge keeps a position opened on the
last training session, and its label, out of what follows. Windows before a span's first session may be
read for features and recurrent burn-in; they are past, so this is no leak.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

from pydantic import Field

from data_pipeline.config import Config
from data_pipeline.errors import FoldError

Positive = Annotated[int, Field(ge=1)]


class Span(NamedTuple):
    """Rows `start` .. `stop`, the stop excluded."""

    start: int
    stop: int

    def __len__(self) -> int:
        """Returns the number of sessions."""
        return self.stop - self.start


class Fold(NamedTuple):
    """What is learnt from, and what is then judged on."""

    name: str
    train: Span
    judged: Span


class FoldsConfig(Config):
    """Walk-forward layout, in sessions."""

    train_sessions: Positive = 1008
    """Length of each training span."""
    validation_sessions: Positive = 252
    """Length of each validation span; also the step between folds."""
    test_sessions: Positive = 504
    """Length of the final, untouched test span."""
    purge_sessions: Annotated[int, Field(ge=0)] = 20
    """Gap between training and what is judged: at least the longest holding."""
    count: Positive = 2
    """Number of walk-forward folds."""


def walk_forward(sessions: int, warm_up: int, config: FoldsConfig) -> tuple[tuple[Fold, ...], Fold]:
    """Returns the walk-forward folds, oldest first, and the final fold that is judged on the test span.

    Args:
        sessions: Rows of the panel.
        warm_up: Rows at its start in which features are not complete.
        config: The layout.

    Raises:
        FoldError: The history is too short; says how many folds would fit.
    """
    test = Span(sessions - config.test_sessions, sessions)
    end = test.start - config.purge_sessions
    folds = []
    for back in reversed(range(config.count)):
        stop = end - back * config.validation_sessions
        judged = Span(stop - config.validation_sessions, stop)
        train_stop = judged.start - config.purge_sessions
        folds.append(Fold(f"fold-{config.count - back}", Span(train_stop - config.train_sessions, train_stop), judged))
    final = Fold("final", Span(end - config.train_sessions, end), test)
    first = min(folds[0].train.start, final.train.start)
    if first < warm_up:
        fits = config.count - -((first - warm_up) // config.validation_sessions)
        raise FoldError(
            f"{sessions} sessions are {warm_up - first} too few for {config.count} folds of {config.train_sessions} + "
            f"{config.validation_sessions} with a test of {config.test_sessions} and {warm_up} to warm up; "
            + (f"set folds.count to {fits}" if fits > 0 else "shorten folds.train_sessions or folds.test_sessions")
        )
    return tuple(folds), final
