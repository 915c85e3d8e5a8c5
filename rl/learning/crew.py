"""Requests to remote workers, answered in the order in which they finish.

A worker gets its next request shortly before it is expected to finish the last one, so that it never waits for the
driver, and yet works with weights that are as new as can be. One that dies is started anew by Ray and joins again as
soon as it answers; one that hangs is killed first. Nothing here waits for more than one worker.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from data_pipeline.errors import RunError

log = logging.getLogger(__name__)

MOST_FAILURES = 3
"""Exceptions inside workers, with no answer in between, that are taken for bad luck."""
PING_EVERY_S = 0.5
_LATEST = 0.3
"""Share of the latest duration in what a worker's next request is expected to take."""


@dataclass(frozen=True)
class Answer:
    """What a worker returned."""

    worker: int
    value: Any


@dataclass(frozen=True)
class _Asked:
    worker: int
    ping: bool


class Crew:
    """Remote workers by index.

    Attributes:
        lost: How often a worker died or was killed.
    """

    def __init__(
        self, actors: Mapping[int, Any], timeout_s: float, patience_s: float = 600.0, lead_s: float = 0.0
    ) -> None:
        """Takes over the actors, which must be restartable to join again.

        Args:
            actors: Handles.
            timeout_s: A request that takes longer is given up, and its worker killed.
            patience_s: Without a single answer for so long the run is given up.
            lead_s: So long before it is expected to answer, a worker may be asked again; 0: one request at a time.
        """
        self._actors, self._timeout_s, self._patience_s, self._lead_s = dict(actors), timeout_s, patience_s, lead_s
        self._asked: dict[Any, _Asked] = {}
        self._owed: Counter[int] = Counter()  # answers, by worker
        self._away: set[int] = set()
        self._ping_at: dict[int, float] = {}
        self._began: dict[int, float] = dict.fromkeys(self._actors, 0.0)  # the work in hand, or waiting
        self._takes: dict[int, float] = {}
        self._heard = time.monotonic()
        self._failures = 0
        self.lost = 0

    @property
    def busy(self) -> list[int]:
        """Workers whose answer is awaited."""
        return [worker for worker in self._actors if worker not in self._away and self._owed[worker]]

    @property
    def idle(self) -> list[int]:
        """Workers that have nothing to do, longest idle first."""
        waiting = [worker for worker in self._actors if worker not in self._away and not self._owed[worker]]
        return sorted(waiting, key=self._began.__getitem__)

    @property
    def due(self) -> list[int]:
        """Workers to be asked now: those with nothing to do, then those about to finish."""
        now = time.monotonic()
        return self.idle + [worker for worker in self.busy if self._due_at(worker) <= now]

    def is_due(self, worker: int) -> bool:
        """Returns whether a worker is to be asked now."""
        return worker not in self._away and (not self._owed[worker] or self._due_at(worker) <= time.monotonic())

    @property
    def absent(self) -> int:
        """How many workers are dead, or not back yet."""
        return len(self._away)

    def ask(self, worker: int, method: str, *arguments: Any) -> None:
        """Sends a request to a worker that has at most one other, and none if `lead_s` is 0.

        Raises:
            ValueError: It has more, or is away.
        """
        if worker in self._away or self._owed[worker] > (self._lead_s > 0):
            raise ValueError(f"worker {worker}: is away, or owes {self._owed[worker]} answers")
        if not self._owed[worker]:
            self._began[worker] = time.monotonic()
        self._owed[worker] += 1
        self._asked[getattr(self._actors[worker], method).remote(*arguments)] = _Asked(worker, ping=False)

    def answers(self, timeout_s: float = 1.0) -> list[Answer]:
        """Returns what has come in, after at most `timeout_s`; workers that are back become idle.

        Returns early, with nothing, when a worker becomes due.

        Raises:
            RunError: Workers fail again and again, or none answers any more.
        """
        self._ping()
        if not self._asked:
            time.sleep(min(timeout_s, PING_EVERY_S))
            self._check_patience()
            return []
        asked = list(self._asked)
        soonest = min(map(self._due_at, self.busy), default=math.inf)
        timeout_s = min(timeout_s, max(soonest - time.monotonic(), 0.0))
        ready, _ = ray.wait(asked, num_returns=1, timeout=timeout_s)
        if ready:  # others may have finished meanwhile
            ready, _ = ray.wait(asked, num_returns=len(asked), timeout=0)
        found = [self._received(reference) for reference in ready]
        self._kill_hung()
        self._check_patience()
        return [answer for answer in found if answer is not None]

    def drain(self, timeout_s: float) -> None:
        """Waits until no request is out, dropping the answers; for orderly ends and restores."""
        until = time.monotonic() + timeout_s
        while self.busy and time.monotonic() < until:
            self.answers(0.1)

    def _due_at(self, worker: int) -> float:
        """Returns when a busy worker may be asked again."""
        if not self._lead_s or self._owed[worker] > 1 or worker not in self._takes:
            return math.inf
        return self._began[worker] + self._takes[worker] - self._lead_s

    def _received(self, reference: Any) -> Answer | None:
        asked = self._asked.pop(reference)
        self._owed[asked.worker] -= not asked.ping
        try:
            value = ray.get(reference)
        except RayActorError:
            self._lose(asked, "died")
            return None
        except RayTaskError as error:
            self._failures += 1
            cause = str(error.cause if hasattr(error, "cause") else error).strip().splitlines()[-1]
            if self._failures >= MOST_FAILURES:
                raise RunError(f"worker {asked.worker}: {cause} (the {self._failures}th failure in a row)") from error
            self._lose(asked, cause, kill=True)
            return None
        self._heard = now = time.monotonic()
        if asked.ping:
            self._away.discard(asked.worker)
        else:
            took = now - self._began[asked.worker]
            usual = self._takes.get(asked.worker, took)
            self._takes[asked.worker] = usual + _LATEST * (took - usual)
        self._began[asked.worker] = now
        if asked.ping:
            return None
        self._failures = 0
        return Answer(asked.worker, value)

    def _lose(self, asked: _Asked, cause: str, kill: bool = False) -> None:
        """Notes that a worker is gone, once for all its requests, and when to see whether it is back."""
        worker = asked.worker
        if worker in self._away and not asked.ping:
            return
        if not asked.ping:
            self.lost += 1
            log.warning("worker %d: %s; it is started anew", worker, cause)
        self._away.add(worker)
        if kill:
            ray.kill(self._actors[worker], no_restart=False)
        self._ping_at[worker] = time.monotonic() + PING_EVERY_S

    def _ping(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker, at in self._ping_at.items() if at <= now]:
            del self._ping_at[worker]
            self._asked[self._actors[worker].ping.remote()] = _Asked(worker, ping=True)

    def _kill_hung(self) -> None:
        now = time.monotonic()
        for worker in self.busy:
            silent = now - self._began[worker]
            if silent > self._timeout_s:
                for reference in [each for each, asked in self._asked.items() if asked.worker == worker]:
                    del self._asked[reference]
                self._owed[worker] = 0
                self._lose(_Asked(worker, ping=False), f"has not answered for {silent:.0f} s", kill=True)

    def _check_patience(self) -> None:
        quiet = time.monotonic() - self._heard
        if quiet > self._patience_s:
            raise RunError(f"no worker has answered for {quiet:.0f} s; see Ray's logs, then continue with --resume")
