"""An append-only record: JSON entries in a chain of hashes, one object each, in a folder or a bucket.

    <root>/<folder>/00000001.json   canonical JSON of {number, previous, at, kind, body}

`previous` is the sha256 of the bytes of the entry before, 64 zeros in the first. So whoever remembers a head (one
number, one hash) can tell whether any entry up to it was altered, removed or exchanged. Nothing but such a memory
holds the newest entry: without one, a record whose end was cut off looks like a shorter one.

An entry is put only where there is none: a writer who finds his number taken reads on and takes the next. Somebody
always gets on; whoever appends without any pause may keep others waiting until he is done.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

from data_pipeline.blobs import blobs_at
from data_pipeline.config import canonical_json
from data_pipeline.errors import RunError

NOTHING = "0" * 64
"""The hash that stands before the first entry."""
_FIELDS = {"number": int, "previous": str, "at": str, "kind": str, "body": dict}
_NAME = re.compile(r"(?!0{8})\d{8}\.json")
_READERS = 8  # on S3 each entry is a round trip
_REMEDY = "bring the files back as they were, from a backup or the bucket's versions, before you rely on this record"


class Entry(NamedTuple):
    """One entry, verified."""

    number: int
    """From 1."""
    previous: str
    """sha256 of the entry before; `NOTHING` in the first."""
    at: datetime
    """When it was written, by the writer's clock; UTC."""
    kind: str
    """What `body` is."""
    body: Mapping[str, Any]
    """As JSON gives it."""
    sha256: str
    """Of its bytes."""


class Head(NamedTuple):
    """The newest entry: enough to tell later whether anything was altered."""

    number: int
    """Its number, which is how many there are; 0: none."""
    sha256: str
    """Of its bytes; `NOTHING` if there is none."""

    @property
    def text(self) -> str:
        """Number and hash in one word, to write down."""
        return f"{self.number}:{self.sha256}"

    @classmethod
    def of(cls, text: str) -> Self:
        """Returns the head that `text` was written from.

        Raises:
            RunError: It is no such word.
        """
        if not re.fullmatch(r"\d{1,8}:[0-9a-f]{64}", text):
            raise RunError(f"head {text!r}: write it as it was printed, NUMBER:SHA256 with 64 hex digits")
        number, _, sha256 = text.partition(":")
        return cls(int(number), sha256)


class Draft(NamedTuple):
    """What is to be appended."""

    kind: str
    """What `body` is."""
    body: Mapping[str, Any]
    """Anything that JSON can say; no NaN."""


class Chain:
    """The entries under `root/folder`; not to be shared by threads.

    What was read stays in memory: only new entries are read again, and `append` asks for nothing at all unless its
    number is taken.

    Attributes:
        blobs: All that is under `root`.
    """

    def __init__(self, root: str, folder: str) -> None:
        """Opens a chain without reading it.

        Args:
            root: A folder or an `s3://bucket/prefix` URI; what else `blobs_at` takes is good for one writer at a time.
            folder: Where in it the entries are; nothing else may be there.

        Raises:
            StoreError: `root` names no place that can be used.
        """
        self.blobs = blobs_at(root)
        self._folder = folder
        self._known: list[Entry] = []
        self._opened = False

    @property
    def place(self) -> str:
        """Where the entries are, for messages."""
        return f"{self.blobs.place}/{self._folder}"

    def append(self, kind: str, body: Mapping[str, Any]) -> Entry:
        """Adds an entry after all that there are, durably, and returns it.

        Raises:
            RunError: The chain is damaged, or `body` is not JSON.
            StoreError: The place cannot be read or written.
        """
        entry = self.append_if(lambda _: Draft(kind, body))
        if entry is None:
            raise AssertionError("a draft was given")
        return entry

    def append_if(self, draft: Callable[[Sequence[Entry]], Draft | None]) -> Entry | None:
        """Adds what `draft` makes of all entries before it, and returns it; None if that is nothing.

        Whenever another writer was quicker, `draft` is asked again with that writer's entries too: what it decided
        on is what the entry follows. It may raise to give up. What it is asked first may be somewhat old.

        Raises:
            RunError: The chain is damaged, or the draft is not JSON.
            StoreError: The place cannot be read or written.
        """
        if not self._opened:
            self.blobs.sweep()
            self.entries()
        while (drafted := draft(self._known)) is not None:
            head = self._head(self._known)
            body = self._encoded(drafted, head)
            if self.blobs.put_new(self._name(head.number + 1), body):
                self._known.append(self._entry(head, body))
                return self._known[-1]
            self._read_on()
        return None

    def entries(self) -> list[Entry]:
        """Returns all entries, oldest first, each verified when it was read first.

        Raises:
            RunError: One is altered, missing or foreign; the message says which, where, and what is wrong.
            StoreError: The place cannot be read.
        """
        self._known = self._read(self._known)
        self._opened = True
        return list(self._known)

    def head(self) -> Head:
        """Returns the head of `entries`, reading only what is new; raises like it."""
        return self._head(self.entries())

    def verify(self, known: Head | None = None) -> Head:
        """Reads every entry anew and returns the head.

        Args:
            known: A head from earlier days: what was there then must be there now. What this object has read before
                must be there in any case.

        Raises:
            RunError: As `entries`; also if entries that once were there are gone or were exchanged for others.
            StoreError: The place cannot be read.
        """
        entries = self._read([])
        for once in (self._head(self._known), known):
            self._refuse_loss(entries, once or Head(0, NOTHING))
        self._known, self._opened = entries, True
        return self._head(entries)

    def _read(self, known: Sequence[Entry]) -> list[Entry]:
        """Returns `known` and all entries that follow it."""
        numbers = self._numbers()
        last = max(numbers, default=0)
        # A listing of a local folder may miss what is made meanwhile, so what it does not name is asked for.
        unlisted = [entry.number for entry in known if entry.number not in numbers]
        for number in unlisted:
            if self._get(number) is None:
                raise self._wrong(number, f"is gone, and it was there before; entry {last} is the last")
        with ThreadPoolExecutor(_READERS) as pool:
            bodies = pool.map(self._get, range(len(known) + 1, last + 1))
            return self._checked(known, bodies, last)

    def _checked(self, known: Sequence[Entry], bodies: Iterable[bytes | None], last: int) -> list[Entry]:
        entries = list(known)
        for body in bodies:
            head = self._head(entries)
            if body is None:
                raise self._wrong(head.number + 1, f"is missing, though entry {last} is there")
            entries.append(self._entry(head, body))
        return entries

    def _read_on(self) -> None:
        """Reads the entries that were added since."""
        while (body := self._get(len(self._known) + 1)) is not None:
            self._known.append(self._entry(self._head(self._known), body))

    def _numbers(self) -> set[int]:
        numbers = set()
        for path in self.blobs.sizes(self._folder):
            name = path.removeprefix(f"{self._folder}/")
            if _NAME.fullmatch(name):
                numbers.add(int(name[:8]))
            elif name:  # the S3 console makes an object with the name of the folder
                raise RunError(f"{self.place}: {name} is foreign: no entry is called so; move it to another place")
        return numbers

    def _get(self, number: int) -> bytes | None:
        return self.blobs.get(self._name(number))

    def _name(self, number: int) -> str:
        return f"{self._folder}/{number:08}.json"

    def _encoded(self, draft: Draft, head: Head) -> bytes:
        fields = {"number": head.number + 1, "previous": head.sha256, "at": datetime.now(UTC).isoformat()}
        try:
            return canonical_json({**fields, "kind": draft.kind, "body": draft.body})
        except (TypeError, ValueError) as error:
            raise RunError(f"{self.place}: a {draft.kind!r} cannot be appended: {error}; give plain JSON") from error

    def _entry(self, head: Head, body: bytes) -> Entry:
        """Returns the entry that follows `head`."""
        number = head.number + 1
        fields = _fields_of(body)
        if fields is None:
            raise self._wrong(number, "is not as a chain writes it: it was altered or is not whole")
        if fields["number"] != number:
            raise self._wrong(number, f"says that it is entry {fields['number']}: it was moved or renumbered")
        if fields["previous"] != head.sha256:
            other = f"does not follow entry {head.number}: one of the two was altered or exchanged"
            raise self._wrong(number, other if head.number else "does not begin a chain: others were before it once")
        at = datetime.fromisoformat(fields["at"])
        return Entry(number, head.sha256, at, fields["kind"], fields["body"], hashlib.sha256(body).hexdigest())

    def _refuse_loss(self, entries: Sequence[Entry], once: Head) -> None:
        if once.number > len(entries):
            raise self._wrong(
                once.number, f"was there once: entries {len(entries) + 1} to {once.number} were cut off the end"
            )
        if once.sha256 != self._head(entries[: once.number]).sha256:
            raise self._wrong(once.number, f"is not the one that was there: {once.sha256[:12]}… was its hash")

    def _wrong(self, number: int, what: str) -> RunError:
        return RunError(f"{self.place}: entry {number} ({number:08}.json) {what}; {_REMEDY}")

    @staticmethod
    def _head(entries: Sequence[Entry]) -> Head:
        return Head(entries[-1].number, entries[-1].sha256) if entries else Head(0, NOTHING)


def _fields_of(body: bytes) -> dict[str, Any] | None:
    """The fields of an entry; None unless `body` is, byte for byte, what a chain writes."""
    try:
        fields: dict[str, Any] = json.loads(body)
        whole = (
            {name: type(value) for name, value in fields.items()} == _FIELDS
            and datetime.fromisoformat(fields["at"]).utcoffset() is not None
            and canonical_json(fields) == body
        )
    except (ValueError, AttributeError, RecursionError):
        return None
    return fields if whole else None
