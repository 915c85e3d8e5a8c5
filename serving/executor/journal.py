"""What we meant, in SQLite, on disk before any order leaves.

The broker is the truth for what is; the journal is the truth for what was meant. A session's plan, its
order ids and the positions it started from are committed in one transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal, NamedTuple, Self

from pydantic import ValidationError

from data_pipeline.errors import LiveError
from data_pipeline.sessions import sessions_between
from serving.contract import DecisionResponse
from serving.executor.past import Past, Traded
from serving.executor.plan import Intent

_SCHEMA = """
CREATE TABLE IF NOT EXISTS cycles (
    session TEXT PRIMARY KEY,       -- as-of session of the decision
    state TEXT NOT NULL,            -- planned, done
    decision TEXT NOT NULL,
    policy_version TEXT NOT NULL,
    equity REAL NOT NULL,           -- USD, when the orders were planned
    planned_at TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS intents (
    client_order_id TEXT PRIMARY KEY,
    session TEXT NOT NULL REFERENCES cycles (session),
    symbol TEXT NOT NULL,
    position_intent TEXT NOT NULL,
    shares INTEGER NOT NULL,
    price REAL NOT NULL,
    state TEXT NOT NULL,
    filled REAL NOT NULL,
    fill_price REAL,
    note TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS positions (
    session TEXT NOT NULL REFERENCES cycles (session),
    symbol TEXT NOT NULL,
    shares REAL NOT NULL,           -- before the session's orders; once it is done, after them
    PRIMARY KEY (session, symbol)
);
CREATE TABLE IF NOT EXISTS equities (
    session TEXT PRIMARY KEY,
    equity REAL NOT NULL            -- USD, as first seen after the session's close
);
CREATE TABLE IF NOT EXISTS events (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    session TEXT,
    kind TEXT NOT NULL,
    text TEXT NOT NULL
);
"""
_COLUMNS = tuple(Intent.model_fields)


class Cycle(NamedTuple):
    """One session's work in paper mode."""

    session: date
    state: Literal["planned", "done"]
    decision: DecisionResponse


class Journal:
    """An open journal file; every method is one transaction.

    Raises:
        LiveError: The file cannot be opened as a journal.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=FULL")
            self._db.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise LiveError(f"journal {path}: {error}; give a path that can be written") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._db.close()

    def cycle(self, session: date) -> Cycle | None:
        """Returns the work on `session`, or None if none was planned.

        Raises:
            LiveError: It was recorded by a version whose decisions looked otherwise.
        """
        row = self._db.execute("SELECT state, decision FROM cycles WHERE session = ?", [str(session)]).fetchone()
        if row is None:
            return None
        try:
            return Cycle(session, row["state"], DecisionResponse.model_validate_json(row["decision"]))
        except ValidationError as error:
            raise LiveError(
                f"journal {self._path}: the decision of {session} was recorded by another version; "
                "finish that session with it, or wait for the next one"
            ) from error

    def unfinished(self) -> list[date]:
        """Returns the sessions whose plan was not carried out to the end, oldest first."""
        return self._sessions("planned")

    def intents(self, session: date) -> list[Intent]:
        """Returns the orders of `session` in the order of the plan."""
        rows = self._db.execute("SELECT * FROM intents WHERE session = ? ORDER BY rowid", [str(session)])
        return [Intent(**{name: row[name] for name in _COLUMNS}) for row in rows]

    def commit_plan(
        self,
        session: date,
        decision: DecisionResponse,
        equity: float,
        intents: Sequence[Intent],
        positions: Mapping[str, float],
    ) -> None:
        """Records a plan with all its ids, and the positions it starts from, in one transaction."""
        day, version = str(session), decision.policy_version
        with self._db:
            self._db.execute(
                "INSERT INTO cycles VALUES (?, 'planned', ?, ?, ?, ?)",
                [day, decision.model_dump_json(), version, equity, datetime.now(UTC).isoformat()],
            )
            marks = ", ".join("?" for _ in _COLUMNS)
            self._db.executemany(
                f"INSERT INTO intents (session, {', '.join(_COLUMNS)}) VALUES (?, {marks})",  # noqa: S608
                [[day, *intent.model_dump().values()] for intent in intents],
            )
            self._set_positions(day, positions)

    def update(self, intent: Intent) -> None:
        """Records the state and the fills of an order."""
        with self._db:
            self._db.execute(
                """
                UPDATE intents SET state = :state, filled = :filled, fill_price = :fill_price, note = :note
                WHERE client_order_id = :client_order_id
                """,
                intent.model_dump(),
            )

    def finish(self, session: date) -> None:
        """Marks the session as done, and adds what its orders filled to the positions it started from."""
        after = self.positions(session)
        for intent in self.intents(session):
            after[intent.symbol] = after.get(intent.symbol, 0.0) + intent.filled_shares
        with self._db:
            self._db.execute("UPDATE cycles SET state = 'done' WHERE session = ?", [str(session)])
            self._set_positions(str(session), after)

    def positions(self, session: date) -> dict[str, float]:
        """Returns the signed shares before the orders of `session`, or after them once it is done."""
        rows = self._db.execute("SELECT symbol, shares FROM positions WHERE session = ?", [str(session)])
        return {row["symbol"]: row["shares"] for row in rows}

    def sessions_held(self, positions: Mapping[str, float], as_of: date) -> dict[str, int]:
        """Returns for each symbol how many sessions up to `as_of` its position has had its present sign.

        A position opened the session after decision t has been held 1 session at the close of t+1. One
        that the journal did not see open counts as 1.

        Args:
            positions: Signed shares held now.
            as_of: The last completed session.
        """
        done = [session for session in self._sessions("done") if session < as_of]
        books = [(session, self.positions(session)) for session in reversed(done)]
        return {symbol: _held(symbol, shares, books, as_of) for symbol, shares in positions.items()}

    def see_equity(self, session: date, equity: float) -> None:
        """Records the account's equity after the close of `session`, in USD; only the first one seen counts."""
        with self._db:
            self._db.execute("INSERT OR IGNORE INTO equities VALUES (?, ?)", [str(session), equity])

    def past(self) -> Past:
        """Returns the equities that were seen and what was traded."""
        equities = self._db.execute("SELECT session, equity FROM equities")
        traded = self._db.execute(
            """
            SELECT session, equity, TOTAL(filled * COALESCE(fill_price, price)) AS usd
            FROM cycles LEFT JOIN intents USING (session) GROUP BY session
            """
        )
        return Past(
            {date.fromisoformat(row["session"]): row["equity"] for row in equities},
            {date.fromisoformat(row["session"]): Traded(row["usd"], row["equity"]) for row in traded},
        )

    def note(self, kind: str, session: date | None, text: str) -> None:
        """Appends an event, unless it only repeats the last one."""
        day = None if session is None else str(session)
        last = self._db.execute("SELECT session, kind, text FROM events ORDER BY id DESC LIMIT 1").fetchone()
        if last is not None and tuple(last) == (day, kind, text):
            return
        with self._db:
            self._db.execute(
                "INSERT INTO events (at, session, kind, text) VALUES (?, ?, ?, ?)",
                [datetime.now(UTC).isoformat(), day, kind, text],
            )

    def events(self) -> list[tuple[str, str]]:
        """Returns kind and text of every event, oldest first."""
        return [(row["kind"], row["text"]) for row in self._db.execute("SELECT * FROM events ORDER BY id")]

    def _sessions(self, state: str) -> list[date]:
        """Returns the sessions whose work is in `state`, oldest first."""
        rows = self._db.execute("SELECT session FROM cycles WHERE state = ? ORDER BY session", [state])
        return [date.fromisoformat(row["session"]) for row in rows]

    def _set_positions(self, day: str, positions: Mapping[str, float]) -> None:
        self._db.executemany(
            "INSERT OR REPLACE INTO positions VALUES (?, ?, ?)",
            [[day, symbol, shares] for symbol, shares in positions.items()],
        )


def _held(symbol: str, shares: float, books: Sequence[tuple[date, Mapping[str, float]]], as_of: date) -> int:
    """Returns the sessions held; `books` are the positions after each done session, newest first."""
    since: date | None = None
    for session, book in books:
        if book.get(symbol, 0.0) * shares <= 0:
            break
        since = session
    if since is None:
        return int(shares != 0)
    return len(sessions_between(since, as_of)) - 1
