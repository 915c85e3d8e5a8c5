"""Requests to remote workers, one at a time each, answered in the order in which they finish.

A worker that dies is started anew by Ray and joins again as soon as it answers; one that hangs is killed first. Nothing
here waits for more than one worker.
"""

from __future__ import annotations

import logging
import time
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


@dataclass(frozen=True)
class Answer:
    """What a worker returned."""

    worker: int
    value: Any


@dataclass(frozen=True)
class _Asked:
    worker: int
    at: float
    ping: bool


class Crew:
    """Remote workers by index.

    Attributes:
        idle: Workers that wait for a request, longest first.
        lost: How often a worker died or was killed.
    """

    def __init__(self, actors: Mapping[int, Any], timeout_s: float, patience_s: float = 600.0) -> None:
        """Takes over the actors, which must be restartable to join again.

        Args:
            actors: Handles.
            timeout_s: A request that takes longer is given up, and its worker killed.
            patience_s: Without a single answer for so long the run is given up.
        """
        self._actors, self._timeout_s, self._patience_s = dict(actors), timeout_s, patience_s
        self._asked: dict[Any, _Asked] = {}
        self._ping_at: dict[int, float] = {}
        self._heard = time.monotonic()
        self._failures = 0
        self.idle: list[int] = list(self._actors)
        self.lost = 0

    @property
    def busy(self) -> list[int]:
        """Workers whose answer is awaited."""
        return [asked.worker for asked in self._asked.values() if not asked.ping]

    @property
    def absent(self) -> int:
        """How many workers are dead, or not back yet."""
        return len(self._actors) - len(self.idle) - len(self.busy)

    def ask(self, worker: int, method: str, *arguments: Any) -> None:
        """Sends a request to an idle worker."""
        self.idle.remove(worker)
        reference = getattr(self._actors[worker], method).remote(*arguments)
        self._asked[reference] = _Asked(worker, time.monotonic(), ping=False)

    def answers(self, timeout_s: float = 1.0) -> list[Answer]:
        """Returns what has come in, after at most `timeout_s`; workers that are back become idle.

        Raises:
            RunError: Workers fail again and again, or none answers any more.
        """
        self._ping()
        if not self._asked:
            time.sleep(min(timeout_s, PING_EVERY_S))
            self._check_patience()
            return []
        asked = list(self._asked)
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

    def _received(self, reference: Any) -> Answer | None:
        asked = self._asked.pop(reference)
        try:
            value = ray.get(reference)
        except RayActorError:
            if not asked.ping:
                self.lost += 1
                log.warning("worker %d died; it is started anew", asked.worker)
            self._ping_at[asked.worker] = time.monotonic() + PING_EVERY_S
            return None
        except RayTaskError as error:
            self._failures += 1
            cause = str(error.cause if hasattr(error, "cause") else error).strip().splitlines()[-1]
            if self._failures >= MOST_FAILURES:
                raise RunError(f"worker {asked.worker}: {cause} (the {self._failures}th failure in a row)") from error
            log.warning("worker %d: %s; it is started anew", asked.worker, cause)
            self.lost += 1
            self._kill(asked.worker)
            return None
        self._heard = time.monotonic()
        self.idle.append(asked.worker)
        if asked.ping:
            return None
        self._failures = 0
        return Answer(asked.worker, value)

    def _ping(self) -> None:
        now = time.monotonic()
        for worker in [worker for worker, at in self._ping_at.items() if at <= now]:
            del self._ping_at[worker]
            self._asked[self._actors[worker].ping.remote()] = _Asked(worker, now, ping=True)

    def _kill_hung(self) -> None:
        now = time.monotonic()
        for reference, asked in list(self._asked.items()):
            if now - asked.at > self._timeout_s and not asked.ping:
                log.warning("worker %d has not answered for %.0f s; it is killed", asked.worker, now - asked.at)
                del self._asked[reference]
                self.lost += 1
                self._kill(asked.worker)

    def _kill(self, worker: int) -> None:
        ray.kill(self._actors[worker], no_restart=False)
        self._ping_at[worker] = time.monotonic() + PING_EVERY_S

    def _check_patience(self) -> None:
        quiet = time.monotonic() - self._heard
        if quiet > self._patience_s:
            raise RunError(f"no worker has answered for {quiet:.0f} s; see Ray's logs, then continue with --resume")
