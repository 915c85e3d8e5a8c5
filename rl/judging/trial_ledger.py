"""Every trial that was ever scored in a project: the record that the number of tries is taken from.

    <project>/ledger/00000001.json   a hash chain of began, scored, ended, opened and judged (see `chain`)

Nothing is ever removed, failed and stopped trials neither, so that a verdict can count what was tried and not only
what is shown. The project is the parent of its sweeps; all of them share one ledger.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from typing import Any, Literal, TypeVar

from pydantic import ValidationError

from data_pipeline.config import Config, canonical_json
from data_pipeline.errors import RunError
from rl.judging.chain import Chain, Draft, Entry, Head

FOLDER = "ledger"


class FoldDates(Config):
    """The test span of a fold."""

    name: str
    """Such as fold-1."""
    first_session: date
    """First session that is scored."""
    last_session: date
    """Last session that is scored."""


class Began(Config):
    """A trial was started."""

    sweep: str
    """Id of its sweep."""
    trial: int
    """Its number in the sweep."""
    config_hash: str
    """Of the resolved settings."""
    values: dict[str, Any]
    """Dotted path -> value, what the search space chose."""
    seeds: tuple[int, ...]
    """One training of each fold for each: replicas of one trial."""
    folds: tuple[FoldDates, ...]
    """In time order."""
    panel: str
    """Name of the panel's folder: the hash of its content."""
    snapshot: dict[str, str]
    """Id of the data snapshot and where its bars come from."""


class Measured(Config):
    """What one training came to on what it was not trained on."""

    seed: int
    """Of the training."""
    fold: str
    """Name of the fold."""
    first_session: date
    """First session of `returns`."""
    last_session: date
    """Last session of `returns`."""
    sharpe: float
    """Annualised."""
    total_return: float
    """A fraction, net of costs."""
    seconds: float
    """Wall time of the training."""
    returns: tuple[float, ...]
    """Out of sample, one fraction for each session, net of costs."""


class Scored(Measured):
    """A training was measured on what it was not trained on."""

    sweep: str
    """Id of its sweep."""
    trial: int
    """Its number in the sweep."""


class Ended(Config):
    """A trial came to an end."""

    sweep: str
    """Id of its sweep."""
    trial: int
    """Its number in the sweep."""
    status: Literal["finished", "stopped", "failed"]
    """stopped: early, because others did better."""
    score: float | None = None
    """What the sweep ranks by; None: it has none."""
    error: str | None = None
    """Why it failed."""


class Opened(Config):
    """Somebody looked at the holdout."""

    sweep: str
    """Id of the sweep whose holdout it is."""
    candidate: str
    """What was judged on it."""
    by: str
    """Who or what opened it, such as the folder of the validation."""
    first_session: date
    """First session of the holdout."""
    last_session: date
    """Last session of the holdout."""


class Judged(Config):
    """A verdict was given."""

    sweep: str
    """Id of the sweep."""
    candidate: str
    """What was judged."""
    decision: Literal["promote", "reject"]
    """The verdict."""
    reasons: tuple[str, ...]
    """Complete sentences with the numbers."""
    figures: dict[str, Any]
    """What it was judged by."""


@dataclass(frozen=True)
class TrialRecord:
    """All that is known of one trial."""

    began: Began
    """How it was started."""
    scores: tuple[Scored, ...]
    """In the order in which they were recorded."""
    ended: Ended | None
    """The latest word on its end."""

    @property
    def status(self) -> str:
        """finished, stopped or failed; without an end, nobody can tell whether it still runs."""
        return "running or abandoned" if self.ended is None else self.ended.status


@dataclass
class _Trial:
    began: Began
    scores: dict[tuple[int, str], Scored] = field(default_factory=dict)
    ended: Ended | None = None


C = TypeVar("C", bound=Config)


class TrialLedger:
    """The ledger of a project; several processes may write to it at once, threads each need their own object.

    Every method raises RunError where the record is damaged, and StoreError where it cannot be read or written.
    """

    def __init__(self, root: str) -> None:
        """Opens the ledger without reading it.

        Args:
            root: The project's folder, or an `s3://bucket/prefix` URI.
        """
        self._chain = Chain(root, FOLDER)
        self._taken = 0
        self._trials: dict[tuple[str, int], _Trial] = {}
        self._openings: list[Opened] = []
        self._judgements: list[Judged] = []

    @property
    def place(self) -> str:
        """Where the entries are, for messages."""
        return self._chain.place

    def begin(self, began: Began) -> bool:
        """Records that a trial was started; returns False if that is on record already.

        Raises:
            RunError: On record it was started otherwise.
        """
        return self._add("began", began, lambda: self._begun(began))

    def score(self, scored: Scored) -> bool:
        """Records a training's figures; returns False if there are some of that trial, seed and fold.

        The first figures stand: training again until they please changes nothing.

        Raises:
            RunError: The trial was never begun.
        """
        return self._add("scored", scored, lambda: (scored.seed, scored.fold) in self._trial(scored).scores)

    def end(self, ended: Ended) -> bool:
        """Records how a trial ended; returns False if that is the latest word already.

        A trial that failed may be taken up again and finish: then both stay on record.

        Raises:
            RunError: The trial was never begun.
        """
        return self._add("ended", ended, lambda: self._trial(ended).ended == ended)

    def open(self, opened: Opened) -> Entry:
        """Records that the holdout is opened; call it before looking. Each call counts."""
        return self._chain.append("opened", opened.tree())

    def judge(self, judged: Judged) -> Entry:
        """Records a verdict."""
        return self._chain.append("judged", judged.tree())

    def trials(self, sweep: str | None = None) -> list[TrialRecord]:
        """Returns the trials of a sweep (None: of all), in the order in which they were begun."""
        self._refresh()
        return [
            TrialRecord(trial.began, tuple(trial.scores.values()), trial.ended)
            for trial in self._trials.values()
            if sweep in (None, trial.began.sweep)
        ]

    def count(self) -> int:
        """Returns N, how many trials of all sweeps have a score; seeds are replicas, not trials."""
        self._refresh()
        return sum(1 for trial in self._trials.values() if trial.scores)

    def openings(self, first: date = date.min, last: date = date.max) -> list[Opened]:
        """Returns the openings of any holdout that shares a session with `first` to `last`, both included."""
        self._refresh()
        return [o for o in self._openings if o.first_session <= last and first <= o.last_session]

    def judgements(self, sweep: str | None = None) -> list[Judged]:
        """Returns the verdicts on a sweep (None: on all), oldest first."""
        self._refresh()
        return [judged for judged in self._judgements if sweep in (None, judged.sweep)]

    def head(self) -> Head:
        """Returns the newest entry's number and hash: keep it, and `verify` can tell that nothing was altered."""
        return self._chain.head()

    def verify(self, known: Head | None = None) -> Head:
        """Reads everything anew and returns the head.

        Args:
            known: A head from earlier days; what was there then must be there now.

        Raises:
            RunError: An entry is altered, missing, foreign, or makes no sense where it is.
        """
        head = self._chain.verify(known)
        self._refresh()
        return head

    def _add(self, kind: str, body: Config, known: Callable[[], bool]) -> bool:
        def draft(entries: Sequence[Entry]) -> Draft | None:
            self._take(entries)
            return None if known() else Draft(kind, body.tree())

        return self._chain.append_if(draft) is not None

    def _begun(self, began: Began) -> bool:
        trial = self._trials.get((began.sweep, began.trial))
        if trial is None:
            return False
        ours, theirs = began.tree(), trial.began.tree()
        if other := [name for name in ours if ours[name] != theirs[name]]:
            raise RunError(
                f"{self.place}: trial {began.trial} of sweep {began.sweep!r} was begun with other {', '.join(other)}; "
                "give this sweep a folder of its own"
            )
        return True

    def _trial(self, part: Scored | Ended) -> _Trial:
        key = (part.sweep, part.trial)
        if key not in self._trials:
            self._refresh()  # another process may have begun it
        if key not in self._trials:
            raise RunError(f"{self.place}: trial {part.trial} of sweep {part.sweep!r} was never begun; begin it first")
        return self._trials[key]

    def _refresh(self) -> None:
        self._take(self._chain.entries())

    def _take(self, entries: Sequence[Entry]) -> None:
        """Adds the entries that are new to what is known."""
        for entry in entries[self._taken :]:
            self._take_one(entry)
            self._taken += 1

    def _take_one(self, entry: Entry) -> None:
        if entry.kind == "began":
            began = self._parsed(Began, entry)
            self._trials.setdefault((began.sweep, began.trial), _Trial(began))
        elif entry.kind == "scored":
            scored = self._parsed(Scored, entry)
            self._begun_before(entry, scored).scores.setdefault((scored.seed, scored.fold), scored)
        elif entry.kind == "ended":
            ended = self._parsed(Ended, entry)
            self._begun_before(entry, ended).ended = ended
        elif entry.kind == "opened":
            self._openings.append(self._parsed(Opened, entry))
        elif entry.kind == "judged":
            self._judgements.append(self._parsed(Judged, entry))
        else:
            raise self._strange(entry)

    def _begun_before(self, entry: Entry, part: Scored | Ended) -> _Trial:
        try:
            return self._trials[part.sweep, part.trial]
        except KeyError:
            raise RunError(
                f"{self.place}: entry {entry.number} is of trial {part.trial} of sweep {part.sweep!r}, "
                "which no entry before it begins; somebody else than this program wrote it"
            ) from None

    def _parsed(self, kind: type[C], entry: Entry) -> C:
        try:
            return kind.model_validate_json(canonical_json(entry.body))
        except ValidationError as error:
            raise self._strange(entry) from error

    def _strange(self, entry: Entry) -> RunError:
        return RunError(
            f"{self.place}: entry {entry.number} is a {entry.kind!r} of another version; read it with the one it is of"
        )
