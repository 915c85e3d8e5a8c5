"""A policy bundle: written, read, and verified.

    bundle/
      manifest.json            what the policy is, what it was trained on, what was found; hashes of the rest
      weights.safetensors      the network, or those of an ensemble's members; names begin with member-0/, member-1/ …
      golden.safetensors       one recorded observation, each network's answer and what they come to
      evidence/...             whatever the judge left

No pickle and no torch: `envs.lstm` runs what it holds. Loading checks every hash, refuses a manifest that is not byte
for byte what was written, and runs the golden observation.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator
from safetensors.numpy import load, save

from data_pipeline.assemble import RISK_WINDOW_SESSIONS
from data_pipeline.config import Config, canonical_json
from data_pipeline.errors import BundleError
from data_pipeline.scaling import Scaler
from envs.contract import PORTFOLIO_FEATURES, ActionKind, Floats32
from envs.costs import Costs
from envs.ensemble import Combination, Ensemble, fault_of
from envs.limits import Limits
from envs.lstm import LstmPolicy, greedy_positions

WEIGHTS, GOLDEN, MANIFEST = "weights.safetensors", "golden.safetensors", "manifest.json"
OVERRIDE = "evidence/override.json"
GOLDEN_TOLERANCE = 1e-5


class FeatureEntry(Config):
    """One feature of the ordered schema."""

    name: str
    """As in `data_pipeline.features`."""
    look_back: int
    """Sessions it looks back."""


class Verdict(Config):
    """What the judge said."""

    decision: Literal["promote", "reject"]
    """Promote or reject."""
    reasons: tuple[str, ...]
    """Complete sentences with the numbers."""
    override: str | None = None
    """Why an operator uses a policy that was rejected; None: nobody does."""


class MemberEntry(Config):
    """One network."""

    name: str
    """Shown where members are told apart."""
    window: int
    """Sessions that are replayed from a zero state for each decision."""
    attention_heads: Annotated[int, Field(ge=0)] = 0
    """Heads of the attention over the LSTM's outputs; 0: there is none."""
    attention_sessions: Annotated[int, Field(ge=0)] = 0
    """Last sessions of the window that it looks at, the present one included; 0 without attention."""
    action: ActionKind
    """Meaning of the outputs."""
    scaler: Scaler
    """Fitted on the training sessions."""


class PolicyEntry(Config):
    """How a policy is made of networks."""

    members: Annotated[tuple[MemberEntry, ...], Field(min_length=1)]
    """One, or those of an ensemble in their order; all read the same features."""
    combination: Combination | None = None
    """How an ensemble's members become one; none: the policy is its only member."""
    weights: tuple[float, ...] = ()
    """Of the members, where they are combined by sharpe."""

    @model_validator(mode="after")
    def _is_one_policy(self) -> PolicyEntry:
        if self.combination is not None:
            fault = fault_of(len(self.members), self.combination, self.weights)
        else:
            lone = len(self.members) == 1 and not self.weights
            fault = None if lone else "has several members or weights and no combination; name one"
        if fault is not None:
            raise ValueError(f"the policy {fault}")
        return self

    @classmethod
    def describing(cls, policy: LstmPolicy | Ensemble) -> Self:
        """Returns what a manifest says of `policy`.

        Raises:
            BundleError: A member is no network.
        """
        members = tuple(
            MemberEntry(
                name=network.name,
                window=network.window,
                attention_heads=network.attention_heads,
                attention_sessions=network.attention_sessions,
                action=network.action,
                scaler=network.scaler,
            )
            for network in networks_of(policy)
        )
        if isinstance(policy, Ensemble):
            return cls(members=members, combination=policy.combination, weights=policy.weights)
        return cls(members=members)

    def policy(self, name: str, arrays: Mapping[str, Floats32]) -> LstmPolicy | Ensemble:
        """Returns the policy called `name`, its weights taken from `arrays` as a bundle names them."""
        networks = tuple(
            LstmPolicy(
                member.name,
                member.window,
                _member_arrays(arrays, number),
                member.scaler,
                member.action,
                member.attention_heads,
                member.attention_sessions,
            )
            for number, member in enumerate(self.members)
        )
        return Ensemble(name, networks, self.combination, self.weights) if self.combination else networks[0]


class Manifest(Config):
    """Everything a user of the policy must know."""

    format: Literal[4] = 4
    """Version of this layout."""
    features: tuple[FeatureEntry, ...]
    """Ordered; the F axis."""
    feature_schema_hash: str
    """Of the feature set the policy was trained with."""
    portfolio_features: tuple[str, ...] = PORTFOLIO_FEATURES
    """Ordered; the P axis."""
    policy: PolicyEntry
    """The network, or the networks and how they become one."""
    symbols: tuple[str, ...]
    """Universe, in order."""
    exchange: str
    """Calendar."""
    limits: Limits
    """Judged with these."""
    costs: Costs
    """Judged with these."""
    data: dict[str, str]
    """Snapshot, panel and provenance."""
    config: dict[str, Any]
    """The resolved settings of the run."""
    config_hash: str
    """sha256 of them."""
    code: str
    """Version and git commit that trained it."""
    results: dict[str, Any]
    """Figures by fold and on the holdout."""
    verdict: Verdict
    """Promote or reject, with reasons."""

    @property
    def window(self) -> int:
        """W: sessions that a decision looks at, the longest of the members' windows."""
        return max(member.window for member in self.policy.members)

    @property
    def history_sessions(self) -> int:
        """Sessions of bars that a decision needs: the window and the longest look-back before it, and volatility."""
        look_back = self.window + max(feature.look_back for feature in self.features)
        return max(look_back, RISK_WINDOW_SESSIONS + 1)


def networks_of(policy: LstmPolicy | Ensemble) -> tuple[LstmPolicy, ...]:
    """Returns the networks of a policy: itself, or an ensemble's members.

    Raises:
        BundleError: A member is no network.
    """
    if isinstance(policy, LstmPolicy):
        return (policy,)
    networks = tuple(member for member in policy.members if isinstance(member, LstmPolicy))
    if len(networks) < len(policy.members):
        others = ", ".join(member.name for member in policy.members if not isinstance(member, LstmPolicy))
        raise BundleError(f"{policy.name}: {others} is no network; a bundle holds networks only")
    return networks


def golden_of(
    policy: LstmPolicy | Ensemble, features: Floats32, portfolio: Floats32, outputs: Sequence[Floats32]
) -> dict[str, Floats32]:
    """Returns the golden observation of a bundle.

    Args:
        policy: Says what the outputs come to.
        features: Unscaled, `[W, N, F]`, W the longest window.
        portfolio: `[N, P]`.
        outputs: Of the reference networks, `[N, A]` for each member, which saw the last sessions of its own window.
    """
    answers = {f"outputs-{number}": each for number, each in enumerate(outputs)}
    return {"features": features, "portfolio": portfolio, **answers, "positions": _positions(policy, outputs)}


def _positions(policy: LstmPolicy | Ensemble, outputs: Sequence[Floats32]) -> Floats32:
    """Returns the target positions that the members' outputs come to, `[N]`."""
    networks = networks_of(policy)
    targets = [greedy_positions(each, network.action) for each, network in zip(outputs, networks, strict=True)]
    together = policy.combine(np.stack(targets)) if isinstance(policy, Ensemble) else targets[0]
    return together.astype(np.float32)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        manifest: What it is.
        digest: sha256 of manifest.json, which holds the hashes of all other files.
        policy: Ready to decide.
        golden: As of `golden_of`.
    """

    manifest: Manifest
    digest: str
    policy: LstmPolicy | Ensemble
    golden: Mapping[str, Floats32]

    @property
    def version(self) -> str:
        """Name of this very bundle, for responses and journals."""
        return f"{self.policy.name}-{self.digest[:12]}"

    def check(self) -> None:
        """Runs the golden observation: each network, then what the recorded outputs come to.

        Positions are those of the recorded outputs, so that no near tie between two actions can tip over.

        Raises:
            BundleError: An answer is not the recorded one.
        """
        networks = networks_of(self.policy)
        recorded = [self._recorded(f"outputs-{number}") for number in range(len(networks))]
        features, portfolio = self._recorded("features"), self._recorded("portfolio")
        for network, outputs in zip(networks, recorded, strict=True):
            self._compare(network.name, network.outputs(features[-network.window :], portfolio), outputs)
        self._compare("what they come to", _positions(self.policy, recorded), self._recorded("positions"))

    def _recorded(self, name: str) -> Floats32:
        if name not in self.golden:
            raise BundleError(f"{self.version}: the golden observation lacks {name}; export it again")
        return self.golden[name]

    def _compare(self, what: str, answer: Floats32, recorded: Floats32) -> None:
        error = np.abs(answer - recorded).max()
        if not error <= GOLDEN_TOLERANCE:
            raise BundleError(
                f"{self.version}: the golden observation answers {error:.2g} off ({what}); export it again"
            )


def write_bundle(
    folder: Path,
    manifest: Manifest,
    policy: LstmPolicy | Ensemble,
    golden: Mapping[str, Floats32],
    evidence: Mapping[str, bytes],
) -> Bundle:
    """Writes a bundle, reads it back, and returns it; `folder` appears whole or is left as it was.

    Args:
        folder: Replaced if it holds a bundle.
        manifest: What it is.
        policy: What `manifest.policy` describes; gives name and weights.
        golden: See `golden_of`.
        evidence: Files by relative name.

    Raises:
        BundleError: `folder` exists and is no bundle, the manifest describes another policy, or the bundle does not
            verify.
    """
    if manifest.policy != PolicyEntry.describing(policy):
        raise BundleError(f"{policy.name}: the manifest describes another policy; make it with PolicyEntry.describing")
    files = {
        WEIGHTS: save(_contiguous(_bundle_arrays(policy))),
        GOLDEN: save(_contiguous(golden)),
        **{f"evidence/{name}": body for name, body in evidence.items()},
    }
    return place_bundle(folder, _with_manifest(files, {"name": policy.name, "manifest": manifest.tree()}))


def place_bundle(folder: Path, files: Mapping[str, bytes]) -> Bundle:
    """Writes the files of a bundle, reads it back, and returns it; `folder` appears whole or is left as it was.

    Args:
        folder: Replaced if it holds a bundle.
        files: All of it by relative name, as `bundle_files` gives them.

    Raises:
        BundleError: `folder` exists and is no bundle, or the bundle does not verify.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: exists and is no bundle; choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        for name in _head(files.get(MANIFEST, b""), str(folder))["files"]:
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(files.get(name, b""))
        (scratch / MANIFEST).write_bytes(files[MANIFEST])
        bundle = read_bundle(scratch)
        _swap(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return bundle


def with_override(files: Mapping[str, bytes], reason: str) -> dict[str, bytes]:
    """Returns the files of the same bundle with an operator's reason for using it in spite of its verdict.

    The reason stands in the manifest (`Verdict.override`) and, beside what it overrides, in an evidence file; so it
    is another bundle, with another version. The same reason gives the same bytes.

    Raises:
        BundleError: The bundle does not verify.
    """
    before = bundle_of(files, "bundle")
    overridden = {"version": before.version, "digest": before.digest, **before.manifest.verdict.tree()}
    evidence = json.dumps({"override": reason, "overridden": overridden}, indent=1, sort_keys=True).encode()
    head = _head(files[MANIFEST], "bundle")
    tree = {**head["manifest"], "verdict": {**head["manifest"]["verdict"], "override": reason}}
    others = {name: body for name, body in files.items() if name != MANIFEST}
    return _with_manifest({**others, OVERRIDE: evidence}, {"name": head["name"], "manifest": tree})


def read_bundle(folder: Path) -> Bundle:
    """Returns the verified bundle in `folder`.

    Raises:
        BundleError: A file is missing, altered or unreadable, or the golden answer does not come out.
    """
    return bundle_of(bundle_files(folder), str(folder))


def bundle_files(folder: Path) -> dict[str, bytes]:
    """Returns the files of the bundle in `folder` by relative name: the manifest and those that it names.

    Raises:
        BundleError: A file is missing or unreadable, or the manifest was altered.
    """
    raw = _read(folder / MANIFEST, folder)
    return {MANIFEST: raw, **{path: _read(folder / path, folder) for path in _head(raw, str(folder))["files"]}}


def bundle_of(files: Mapping[str, bytes], source: str) -> Bundle:
    """Returns the verified bundle that `files` are.

    Args:
        files: By relative name, as `bundle_files` gives them.
        source: Where they are from, for messages.

    Raises:
        BundleError: A file is missing or altered, or the golden answer does not come out.
    """
    raw = files.get(MANIFEST, b"")
    head = _head(raw, source)
    altered = [path for path, sha256 in head["files"].items() if _sha256(files.get(path, b"")) != sha256]
    if altered:
        raise BundleError(f"{source}: {', '.join(altered)} altered since it was written; export the bundle again")
    try:
        manifest = Manifest.model_validate_json(json.dumps(head["manifest"]))
    except ValidationError as error:
        raise BundleError(
            f"{source}: written by another version ({error.error_count()} differences); export it again with this one"
        ) from error
    policy = manifest.policy.policy(head["name"], load(files[WEIGHTS]))
    bundle = Bundle(manifest, _sha256(raw), policy, load(files[GOLDEN]))
    bundle.check()
    return bundle


def _head(raw: bytes, source: str) -> dict[str, Any]:
    """Returns name, manifest tree and hashes of the files, as manifest.json has them."""
    try:
        head: dict[str, Any] = json.loads(raw)
        stated = head.pop("sha256")
        head |= {"files": dict(head["files"]), "manifest": head["manifest"], "name": str(head["name"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{source}: {MANIFEST} is not readable ({error}); export the bundle again") from error
    if raw != _manifest_bytes(head) or stated != _sha256(canonical_json(head)):
        raise BundleError(f"{source}: {MANIFEST} was altered since it was written; export the bundle again")
    outside = [path for path in head["files"] if PurePosixPath(path).is_absolute() or ".." in path.split("/")]
    if outside:
        raise BundleError(f"{source}: {MANIFEST} names {', '.join(outside)}, outside the bundle; do not use it")
    return head


def _with_manifest(files: Mapping[str, bytes], head: Mapping[str, Any]) -> dict[str, bytes]:
    """Returns `files` and the manifest that holds their hashes."""
    sealed = _manifest_bytes({**head, "files": {name: _sha256(body) for name, body in files.items()}})
    return {**files, MANIFEST: sealed}


def _bundle_arrays(policy: LstmPolicy | Ensemble) -> dict[str, Floats32]:
    """Returns the weights of all members under the names that a bundle gives them."""
    networks = enumerate(networks_of(policy))
    return {f"member-{number}/{name}": array for number, network in networks for name, array in network.weights.items()}


def _member_arrays(arrays: Mapping[str, Floats32], number: int) -> dict[str, Floats32]:
    prefix = f"member-{number}/"
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _contiguous(arrays: Mapping[str, Floats32]) -> dict[str, Floats32]:
    # safetensors writes the memory of a strided view as it lies, under the shape of the view.
    return {name: np.ascontiguousarray(array, np.float32) for name, array in arrays.items()}


def _manifest_bytes(head: Mapping[str, Any]) -> bytes:
    """The one spelling of a manifest, its own hash included, so that no byte can change unseen."""
    sealed = {**head, "sha256": _sha256(canonical_json(head))}
    return json.dumps(sealed, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"


def _read(path: Path, folder: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BundleError(f"{folder}: {path.name} cannot be read ({error.strerror}); give a bundle's folder") from error


def _sha256(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _swap(scratch: Path, folder: Path) -> None:
    if not folder.exists():
        scratch.replace(folder)
        return
    retired = scratch.with_name(scratch.name + ".old")
    folder.replace(retired)
    scratch.replace(folder)
    shutil.rmtree(retired)
