"""A policy bundle: read, verify, and run it as a Policy in plain NumPy.

    bundle/
      manifest.json            what the policy is, what it was trained on, what was found; hashes of the rest
      weights.safetensors      the network
      golden.safetensors       one recorded observation and the network's answer
      evidence/...             whatever the judge left

No pickle and no torch: the network is an LSTM over market features, then two dense layers over its last
output and the portfolio state. Loading checks every hash, refuses a manifest that is not byte for byte
what was written, and runs the golden observation.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from safetensors.numpy import load, save

from data_pipeline.assemble import RISK_WINDOW_SESSIONS
from data_pipeline.config import Config, canonical_json
from data_pipeline.errors import BundleError
from data_pipeline.scaling import Scaler
from envs.contract import PORTFOLIO_FEATURES, ActionKind, Floats, Floats32, Window, positions_of
from envs.costs import Costs
from envs.limits import Limits

WEIGHTS, GOLDEN, MANIFEST = "weights.safetensors", "golden.safetensors", "manifest.json"
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


class Manifest(Config):
    """Everything a user of the policy must know."""

    format: Literal[2] = 2
    """Version of this layout."""
    features: tuple[FeatureEntry, ...]
    """Ordered; the F axis."""
    feature_schema_hash: str
    """Of the feature set the policy was trained with."""
    portfolio_features: tuple[str, ...] = PORTFOLIO_FEATURES
    """Ordered; the P axis."""
    window: int
    """W: sessions that are replayed from a zero state for each decision."""
    action: ActionKind
    """Meaning of the outputs."""
    scaler: Scaler
    """Fitted on the training sessions."""
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
    def history_sessions(self) -> int:
        """Sessions of bars that a decision needs: the window and the longest look-back before it, and volatility."""
        look_back = self.window + max(feature.look_back for feature in self.features)
        return max(look_back, RISK_WINDOW_SESSIONS + 1)


@dataclass(frozen=True)
class LstmPolicy:
    """The recurrent policy in NumPy, as a `Policy`.

    Attributes:
        name: Shown in ledgers.
        window: W.
        weights: lstm.weight_ih [4H, F], lstm.weight_hh [4H, H], lstm.bias [4H] (gates i, f, g, o),
            trunk.weight [H, H + P], trunk.bias [H], actor.weight [A, H], actor.bias [A]; float32.
        scaler: For the market features.
        action: Meaning of the outputs.
    """

    name: str
    window: int
    weights: Mapping[str, Floats32]
    scaler: Scaler
    action: ActionKind

    def decide(self, window: Window) -> Floats:
        """Returns the greedy target positions `[N]`; 0 where the symbol is not ready."""
        outputs = self.outputs(np.nan_to_num(window.features), window.portfolio)
        return np.where(window.ready, greedy_positions(outputs, self.action), 0.0)

    def outputs(self, features: Floats32, portfolio: Floats32) -> Floats32:
        """Returns the network's outputs `[N, A]` after replaying a window from a zero state.

        Args:
            features: Unscaled, `[W, N, F]`.
            portfolio: `[N, P]`.
        """
        weights = self.weights
        hidden = lstm_last(self.scaler.transform(features), weights)
        joined = np.concatenate([hidden, portfolio], axis=1)
        trunk = np.tanh(joined @ weights["trunk.weight"].T + weights["trunk.bias"])
        result: Floats32 = trunk @ weights["actor.weight"].T + weights["actor.bias"]
        return result


def lstm_last(inputs: Floats32, weights: Mapping[str, Floats32]) -> Floats32:
    """Returns the last output `[N, H]` of one LSTM layer over `inputs` `[W, N, F]`, from a zero state."""
    recurrent = np.ascontiguousarray(weights["lstm.weight_hh"].T)
    driven = inputs @ weights["lstm.weight_ih"].T + weights["lstm.bias"]
    width = recurrent.shape[0]
    hidden = cell = np.zeros((inputs.shape[1], width), np.float32)
    for gates in driven:
        gates = gates + hidden @ recurrent  # noqa: PLW2901
        remember_in, forget, proposal, reveal = np.split(gates, 4, axis=1)
        cell = _sigmoid(forget) * cell + _sigmoid(remember_in) * np.tanh(proposal)
        hidden = _sigmoid(reveal) * np.tanh(cell)
    return hidden


def greedy_positions(outputs: Floats32, action: ActionKind) -> Floats:
    """Returns the most probable target positions `[N]` of outputs `[N, A]`.

    Discrete: A logits. Continuous: mean, then log standard deviation.
    """
    chosen = outputs.argmax(axis=1) if action is ActionKind.DISCRETE else outputs[:, 0]
    return positions_of(chosen, action)


@dataclass(frozen=True)
class Bundle:
    """A verified bundle.

    Attributes:
        manifest: What it is.
        digest: sha256 of manifest.json, which holds the hashes of all other files.
        policy: Ready to decide.
        golden: Recorded features `[W, N, F]`, portfolio `[N, P]` and the reference network's outputs `[N, A]`.
    """

    manifest: Manifest
    digest: str
    policy: LstmPolicy
    golden: Mapping[str, Floats32]

    @property
    def version(self) -> str:
        """Name of this very bundle, for responses and journals."""
        return f"{self.policy.name}-{self.digest[:12]}"

    def check(self) -> None:
        """Runs the golden observation.

        Raises:
            BundleError: The answer is not the recorded one.
        """
        answer = self.policy.outputs(self.golden["features"], self.golden["portfolio"])
        error = np.abs(answer - self.golden["outputs"]).max()
        if not error <= GOLDEN_TOLERANCE:
            raise BundleError(f"{self.version}: the golden observation answers {error:.2g} off; export it again")


def write_bundle(
    folder: Path,
    manifest: Manifest,
    policy: LstmPolicy,
    golden: Mapping[str, Floats32],
    evidence: Mapping[str, bytes],
) -> Bundle:
    """Writes a bundle, reads it back, and returns it; `folder` appears whole or is left as it was.

    Args:
        folder: Replaced if it holds a bundle.
        manifest: What it is.
        policy: Gives name and weights.
        golden: features `[W, N, F]` unscaled, portfolio `[N, P]`, outputs `[N, A]` of the reference network.
        evidence: Files by relative name.

    Raises:
        BundleError: `folder` exists and is no bundle, or the bundle does not verify.
    """
    if folder.exists() and not (folder / MANIFEST).is_file():
        raise BundleError(f"{folder}: exists and is no bundle; choose another --out")
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".writing-", dir=folder.parent))
    try:
        files = {
            WEIGHTS: save(_contiguous(policy.weights)),
            GOLDEN: save(_contiguous(golden)),
            **{f"evidence/{name}": body for name, body in evidence.items()},
        }
        for name, body in files.items():
            (scratch / name).parent.mkdir(parents=True, exist_ok=True)
            (scratch / name).write_bytes(body)
        head = {
            "name": policy.name,
            "manifest": manifest.tree(),
            "files": {n: _sha256(b) for n, b in files.items()},
        }
        (scratch / MANIFEST).write_bytes(_manifest_bytes(head))
        bundle = read_bundle(scratch)
        _swap(scratch, folder)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return bundle


def read_bundle(folder: Path) -> Bundle:
    """Returns the verified bundle in `folder`.

    Raises:
        BundleError: A file is missing, altered or unreadable, or the golden answer does not come out.
    """
    raw = _read(folder / MANIFEST, folder)
    try:
        head = json.loads(raw)
        stated = head.pop("sha256")
        files, tree, name = dict(head["files"]), head["manifest"], str(head["name"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise BundleError(f"{folder}: {MANIFEST} is not readable ({error}); export the bundle again") from error
    if raw != _manifest_bytes(head) or stated != _sha256(canonical_json(head)):
        raise BundleError(f"{folder}: {MANIFEST} was altered since it was written; export the bundle again")
    bodies = {path: _read(folder / path, folder) for path in files}
    altered = [path for path, body in bodies.items() if _sha256(body) != files[path]]
    if altered:
        raise BundleError(f"{folder}: {', '.join(altered)} altered since it was written; export the bundle again")
    try:
        manifest = Manifest.model_validate_json(json.dumps(tree))
    except ValidationError as error:
        raise BundleError(
            f"{folder}: written by another version ({error.error_count()} differences); export it again with this one"
        ) from error
    policy = LstmPolicy(name, manifest.window, load(bodies[WEIGHTS]), manifest.scaler, manifest.action)
    bundle = Bundle(manifest, _sha256(raw), policy, load(bodies[GOLDEN]))
    bundle.check()
    return bundle


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


def _sigmoid(x: Floats32) -> Floats32:
    result: Floats32 = 0.5 * np.tanh(0.5 * x) + 0.5  # cannot overflow
    return result
