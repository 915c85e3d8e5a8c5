"""Bundles and what became of them: candidate, challenger, champion, retired.

    <root>/registry/00000001.json      a hash chain of added, promoted and retired (see `chain`): the state and history
    <root>/bundles/<version>/<file>    the files of each bundle, put before the event that names them

Each change is one event, put whole or not at all: a killed promoter leaves the old state. There is one champion at
most. When another bundle becomes champion the former one retires, and nothing is lost by that: unlike a bundle that
somebody retired for a reason, it may be promoted again and is then champion at once, so going back takes one command.
It does not turn into a challenger, because those are what a desk tries out next, and former champions would pile up
among them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, TypeAlias

from pydantic import ValidationError

from data_pipeline.config import Config, canonical_json
from data_pipeline.errors import BundleError, RunError
from envs.bundle import Bundle, Manifest, bundle_files, bundle_of, place_bundle, with_override
from rl.judging.chain import Chain, Draft, Entry

FOLDER = "registry"
State = Literal["candidate", "challenger", "champion", "retired"]
_PLAIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


class Added(Config):
    """A bundle was listed."""

    version: str
    """Name of this very bundle: its policy and the start of its hash."""
    sha256: str
    """Of its manifest.json, which holds the hashes of all other files."""
    files: dict[str, str]
    """Relative name -> sha256, manifest.json among them."""
    decision: Literal["promote", "reject"]
    """The judge's verdict."""
    override: str | None
    """Why an operator uses it in spite of that; it stands in the bundle."""
    config_hash: str
    """Of the settings it was trained with."""
    code: str
    """What trained it."""


class Promoted(Config):
    """A bundle went one step up."""

    version: str
    """The bundle in its new state."""
    state: Literal["challenger", "champion"]
    """Its new state."""
    replaced: str | None
    """The former champion, now retired."""
    overridden: str | None = None
    """The bundle of which this one is a copy that carries an override; it retires."""
    added: Added | None = None
    """The copy; it is listed by this event."""


class Retired(Config):
    """A bundle is not to be used any more."""

    version: str
    """Which."""
    reason: str
    """Why."""


class Listed(Config):
    """A bundle as it stands."""

    version: str
    """Name of this very bundle."""
    state: State
    """candidate, challenger, champion or retired."""
    sha256: str
    """Of its manifest.json, which holds the hashes of all other files."""
    decision: Literal["promote", "reject"]
    """The judge's verdict."""
    override: str | None
    """Why an operator uses it in spite of that."""
    config_hash: str
    """Of the settings it was trained with."""
    code: str
    """What trained it."""
    files: dict[str, str]
    """Relative name -> sha256."""
    added_at: datetime
    """When it was listed."""
    changed_at: datetime
    """When it came into this state."""
    overrides: str | None = None
    """The bundle of which this one is a copy that carries an override."""
    replaced_by: str | None = None
    """The champion that took its place, if that is why it retired."""
    reason: str | None = None
    """Why it retired."""


Listing: TypeAlias = list[Listed]


class Change(Config):
    """A line of a bundle's history."""

    number: int
    """Of the event."""
    at: datetime
    """When."""
    text: str
    """What happened, in words."""


class Shown(Config):
    """All that is known of a bundle."""

    listed: Listed
    """As it stands."""
    history: tuple[Change, ...]
    """Every change, oldest first."""
    manifest: Manifest
    """What it is, verified."""


class Shelf(NamedTuple):
    """The registry at one event."""

    bundles: Mapping[str, Listed]
    """By version, in the order in which they were listed."""

    @property
    def champion(self) -> str | None:
        """Version of the champion."""
        return next((each.version for each in self.bundles.values() if each.state == "champion"), None)


Event = Added | Promoted | Retired
_KINDS: dict[str, type[Added] | type[Promoted] | type[Retired]] = {
    "added": Added,
    "promoted": Promoted,
    "retired": Retired,
}


class Registry:
    """The bundles under `root`; several processes may change it at once, threads each need their own object.

    A change that was decided on what another process has changed meanwhile is refused. Every method raises RunError
    where the history is damaged, and StoreError where it cannot be read or written. A version may be shortened to
    how it, or its hash, begins; `champion` is the champion.
    """

    def __init__(self, root: str) -> None:
        """Opens the registry without reading it.

        Args:
            root: A folder or an `s3://bucket/prefix` URI.
        """
        self._chain = Chain(root, FOLDER)
        self._blobs = self._chain.blobs

    @property
    def place(self) -> str:
        """Where it is, for messages."""
        return self._blobs.place

    def add(self, bundle_folder: Path) -> Listed:
        """Lists a bundle as a candidate and returns it; one that is listed stays as it is, damaged files are mended.

        Raises:
            BundleError: The bundle does not verify.
        """
        files = bundle_files(bundle_folder)
        added = _added(files, bundle_of(files, str(bundle_folder)))
        known = self._shelf().bundles.get(added.version)
        if known is not None and known.sha256 != added.sha256:
            raise BundleError(f"{self.place}: another bundle is called {added.version}; name the policy otherwise")
        self._put(added, files)

        def draft(entries: Sequence[Entry]) -> Draft | None:
            return None if added.version in self._shelf_of(entries).bundles else _draft(added)

        self._chain.append_if(draft)
        return self._shelf().bundles[added.version]

    def promote(self, version: str, override: str | None = None) -> Listed:
        """Moves a bundle one step up, candidate to challenger to champion, and returns it as it then stands.

        A champion that was replaced is champion again at once. One that its judge rejected needs `override`, which
        goes into a copy of the bundle: the copy, another version, is what is promoted, and the original retires.

        Args:
            version: Which.
            override: Why it is used in spite of its verdict.

        Raises:
            BundleError: It may not be promoted, its files are damaged, or it was changed meanwhile.
        """
        shelf = self._shelf()
        listed = self._find(shelf, version)
        state = self._next(listed)
        files = self._files(listed)
        reason = _reason(listed, override)
        event = Promoted(version=listed.version, state=state, replaced=shelf.champion if state == "champion" else None)
        if reason is not None:
            event = self._overriding(shelf, event, with_override(files, reason))
        return self._record(shelf, listed, event)

    def retire(self, version: str, reason: str) -> Listed:
        """Takes a bundle out of use for good and returns it.

        Raises:
            BundleError: It is retired already, no reason is given, or it was changed meanwhile.
        """
        shelf = self._shelf()
        listed = self._find(shelf, version)
        if listed.state == "retired" and listed.replaced_by is None:
            raise BundleError(f"{listed.version}: is retired already ({listed.reason})")
        if not reason.strip():
            raise BundleError(f"{listed.version}: say why it is to be retired")
        return self._record(shelf, listed, Retired(version=listed.version, reason=reason.strip()))

    def list(self) -> Listing:
        """Returns all bundles, the champion first, then challengers, candidates and retired ones, newest first."""
        order = ("champion", "challenger", "candidate", "retired")
        bundles = sorted(self._shelf().bundles.values(), key=lambda each: each.changed_at, reverse=True)
        return sorted(bundles, key=lambda each: order.index(each.state))

    def show(self, version: str) -> Shown:
        """Returns a bundle with its history and its manifest.

        Raises:
            BundleError: It is not listed, or its manifest is damaged.
        """
        entries = self._chain.entries()
        listed = self._find(self._shelf_of(entries), version)
        events = [(entry, self._event(entry)) for entry in entries]
        told = [(entry, _told(event, listed.version)) for entry, event in events]
        history = tuple(Change(number=entry.number, at=entry.at, text=text) for entry, text in told if text)
        return Shown(listed=listed, history=history, manifest=bundle_of(self._files(listed), self.place).manifest)

    def fetch(self, version: str, folder: Path) -> Bundle:
        """Writes a bundle to `folder`, whole or not at all, and returns it, verified.

        Args:
            version: Which; `champion` for the champion.
            folder: Replaced if it holds a bundle.

        Raises:
            BundleError: It is not listed, a file is damaged, or `folder` exists and is no bundle.
        """
        return place_bundle(folder, self._files(self._find(self._shelf(), version)))

    def _shelf(self) -> Shelf:
        return self._shelf_of(self._chain.entries())

    def _shelf_of(self, entries: Sequence[Entry]) -> Shelf:
        bundles: dict[str, Listed] = {}
        for entry in entries:
            try:
                _apply(self._event(entry), entry.at, bundles)
            except KeyError as error:
                raise RunError(
                    f"{self._chain.place}: entry {entry.number} is about {error}, which was never listed; "
                    "somebody else than this program wrote it"
                ) from error
        return Shelf(bundles)

    def _event(self, entry: Entry) -> Event:
        try:
            return _KINDS[entry.kind].model_validate_json(canonical_json(entry.body))
        except (KeyError, ValidationError) as error:
            raise RunError(
                f"{self._chain.place}: entry {entry.number} is a {entry.kind!r} of another version; "
                "read it with the one it is of"
            ) from error

    def _find(self, shelf: Shelf, version: str) -> Listed:
        if version == "champion":
            if shelf.champion is None:
                raise BundleError(f"{self.place}: there is no champion; promote a bundle to it")
            return shelf.bundles[shelf.champion]
        if version in shelf.bundles:
            return shelf.bundles[version]
        bundles = shelf.bundles.values() if version else ()
        found = [each for each in bundles if each.version.startswith(version) or each.sha256.startswith(version)]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(each.version for each in found or shelf.bundles.values()) or "nothing"
        fault = f"{version!r} may be any of {listed}; write more of it"
        raise BundleError(
            f"{self.place}: {fault if found else f'no bundle is called {version!r} (there is: {listed}); register it'}"
        )

    def _next(self, listed: Listed) -> Literal["challenger", "champion"]:
        if listed.state == "candidate":
            return "challenger"
        if listed.state == "challenger" or listed.replaced_by is not None:
            return "champion"
        if listed.state == "champion":
            raise BundleError(f"{listed.version}: is champion already; there is no higher state")
        raise BundleError(f"{listed.version}: is retired ({listed.reason}) and cannot be promoted; register another")

    def _overriding(self, shelf: Shelf, event: Promoted, files: Mapping[str, bytes]) -> Promoted:
        """Returns the promotion of the copy that `files` are, which are put."""
        added = _added(files, bundle_of(files, self.place))
        if added.version in shelf.bundles:
            raise BundleError(f"{event.version}: with this override it is listed as {added.version}; promote that")
        self._put(added, files)
        changes = {"version": added.version, "overridden": event.version, "added": added}
        return event.model_copy(update=changes)

    def _record(self, seen: Shelf, listed: Listed, event: Promoted | Retired) -> Listed:
        """Appends the event that was decided on `seen`, and returns what it is about.

        Raises:
            BundleError: The bundle, or the champion that it would replace, is not what it was.
        """

        def draft(entries: Sequence[Entry]) -> Draft:
            now = self._shelf_of(entries)
            self._refuse_changed(listed, now.bundles[listed.version])
            if isinstance(event, Promoted) and event.state == "champion" and now.champion != seen.champion:
                raise BundleError(
                    f"{listed.version}: not promoted, for {now.champion or 'nothing'} became champion meanwhile "
                    f"instead of {seen.champion or 'nothing'}; look again (`swing-rl list`), then decide"
                )
            return _draft(event)

        self._chain.append_if(draft)
        return self._shelf().bundles[event.version]

    def _refuse_changed(self, seen: Listed, now: Listed) -> None:
        if now != seen:
            raise BundleError(
                f"{seen.version}: was changed meanwhile from {seen.state} to {now.state}; "
                "look again (`swing-rl list`), then decide"
            )

    def _put(self, added: Added, files: Mapping[str, bytes]) -> None:
        for name, sha256 in added.files.items():
            if not self._blobs.holds(_blob(added.version, name), sha256):
                self._blobs.put(_blob(added.version, name), files[name], sha256)

    def _files(self, listed: Listed) -> dict[str, bytes]:
        """Returns the files of a bundle, their hashes verified, and its golden observation run."""
        files = {}
        for name, sha256 in listed.files.items():
            body = self._blobs.get(_blob(listed.version, name))
            if body is None or hashlib.sha256(body).hexdigest() != sha256:
                fault = "is missing" if body is None else "was altered"
                raise BundleError(
                    f"{self.place}: {_blob(listed.version, name)} {fault}; "
                    "register the same bundle again (`swing-rl register`) to mend it"
                )
            files[name] = body
        bundle_of(files, f"{self.place}: {listed.version}")
        return files


def _added(files: Mapping[str, bytes], bundle: Bundle) -> Added:
    if not _PLAIN.fullmatch(bundle.version):
        raise BundleError(f"{bundle.version!r}: name the policy with letters, digits, dots and dashes only")
    return Added(
        version=bundle.version,
        sha256=bundle.digest,
        files={name: hashlib.sha256(body).hexdigest() for name, body in sorted(files.items())},
        decision=bundle.manifest.verdict.decision,
        override=bundle.manifest.verdict.override,
        config_hash=bundle.manifest.config_hash,
        code=bundle.manifest.code,
    )


def _reason(listed: Listed, override: str | None) -> str | None:
    """Returns the override that the bundle must be given; None: it needs none, or carries it.

    Raises:
        BundleError: It lacks one, or is given one that makes no sense.
    """
    given = None if override is None else override.strip()
    if listed.decision == "promote":
        if given is not None:
            raise BundleError(f"{listed.version}: its judge says promote, there is nothing to override; leave it out")
        return None
    if listed.override is not None:
        if given not in (None, listed.override):
            raise BundleError(f"{listed.version}: carries an override already ({listed.override}); give no other")
        return None
    if not given:
        raise BundleError(
            f"{listed.version}: was rejected by its judge; say in --override why it is to be used nevertheless"
        )
    return given


def _draft(event: Event) -> Draft:
    (kind,) = [kind for kind, model in _KINDS.items() if isinstance(event, model)]
    return Draft(kind, event.tree())


def _apply(event: Event, at: datetime, bundles: dict[str, Listed]) -> None:
    """Changes `bundles` by one event."""
    if isinstance(event, Added):
        bundles.setdefault(event.version, _listed(event, at))
    elif isinstance(event, Retired):
        _change(bundles, event.version, at, state="retired", reason=event.reason, replaced_by=None)
    else:
        if event.replaced is not None:
            reason = f"replaced by {event.version}"
            _change(bundles, event.replaced, at, state="retired", reason=reason, replaced_by=event.version)
        if event.added is not None:
            bundles[event.version] = _listed(event.added, at).model_copy(update={"overrides": event.overridden})
        if event.overridden is not None:
            _change(bundles, event.overridden, at, state="retired", reason=f"used with an override as {event.version}")
        _change(bundles, event.version, at, state=event.state, reason=None, replaced_by=None)


def _listed(added: Added, at: datetime) -> Listed:
    facts = {name: getattr(added, name) for name in type(added).model_fields}
    return Listed(**facts, state="candidate", added_at=at, changed_at=at)


def _change(bundles: dict[str, Listed], version: str, at: datetime, **changes: str | None) -> None:
    bundles[version] = bundles[version].model_copy(update={**changes, "changed_at": at})


def _told(event: Event, version: str) -> str | None:
    """Returns what an event did to a bundle; None: nothing."""
    if isinstance(event, Promoted):
        return _told_of_promotion(event, version)
    if event.version != version:
        return None
    return "listed as candidate" if isinstance(event, Added) else f"retired: {event.reason}"


def _told_of_promotion(event: Promoted, version: str) -> str | None:
    if version == event.replaced:
        return f"retired: replaced by {event.version}"
    if version == event.overridden:
        return f"retired: used with an override as {event.version}"
    if version != event.version:
        return None
    words = [f"promoted to {event.state}"]
    words += [f"in place of {event.replaced}"] if event.replaced else []
    words += [f"as {event.overridden} with the override: {event.added.override}"] if event.added else []
    return " ".join(words)


def _blob(version: str, name: str) -> str:
    return f"bundles/{version}/{name}"
