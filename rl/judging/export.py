"""A validated policy to a bundle, refused where NumPy and torch disagree."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from data_pipeline.errors import BundleError
from data_pipeline.features import FeatureSet
from data_pipeline.panel import Panel
from data_pipeline.store import code_version
from envs.bundle import (
    GOLDEN_TOLERANCE,
    Bundle,
    FeatureEntry,
    Manifest,
    PolicyEntry,
    Verdict,
    golden_of,
    networks_of,
    write_bundle,
)
from envs.contract import PORTFOLIO_FEATURES, Floats32
from envs.ensemble import Ensemble
from envs.lstm import LstmPolicy
from rl.judging.validate import Validation, read_validation

RANDOM_WINDOWS = 64


def export(validation_folder: Path, out: Path) -> Bundle:
    """Writes the bundle of a validation and returns it, read back.

    A rejected policy is exported too, with its verdict: the executor plans with it and does not trade.

    Raises:
        RunError: There is no validation in the folder.
        BundleError: NumPy and torch disagree by more than 1e-5, or `out` is not a bundle's place.
    """
    validation = read_validation(validation_folder)
    panel = validation.open_panel()
    policy = validation.policy()
    manifest = _manifest(validation, panel, policy)
    golden = _golden(policy, panel)
    evidence = {"validation.json": json.dumps(validation.tree(), indent=1, sort_keys=True).encode()}
    return write_bundle(out, manifest, policy, golden, evidence)


def disagreement(policy: LstmPolicy, features: Floats32, portfolio: Floats32) -> tuple[float, Floats32]:
    """Returns the largest difference of NumPy from torch, and torch's outputs `[N, A]`.

    Args:
        policy: The NumPy policy.
        features: Unscaled windows, `[W, N, F]`.
        portfolio: `[N, P]`.
    """
    import torch  # noqa: PLC0415

    from rl.learning.network import net_of  # noqa: PLC0415

    net = net_of(policy.weights, policy.action, policy.attention_heads, policy.attention_sessions)
    with torch.no_grad():
        told, _ = net.recur(torch.from_numpy(policy.scaler.transform(features)), net.zero_state(len(portfolio)))
        outputs, _ = net.heads(net.drive(told[-1]), torch.from_numpy(portfolio))
    reference: Floats32 = outputs.numpy()
    return float(np.abs(policy.outputs(features, portfolio) - reference).max()), reference


def _golden(policy: LstmPolicy | Ensemble, panel: Panel) -> dict[str, Floats32]:
    """Returns the golden observation: four of the windows on which each member was held against torch."""
    rng = np.random.default_rng(0)
    complete = np.isfinite(panel.features).all(axis=-1)
    counts = np.vstack([np.zeros((1, complete.shape[1]), int), complete.cumsum(axis=0)])
    ends = np.argwhere(counts[policy.window :] - counts[: -policy.window] == policy.window)
    chosen = ends[rng.integers(len(ends), size=RANDOM_WINDOWS)]
    features = np.stack([panel.features[t : t + policy.window, n] for t, n in chosen], axis=1)
    portfolio = rng.uniform(-1, 1, (RANDOM_WINDOWS, len(PORTFOLIO_FEATURES))).astype(np.float32)
    answers = []
    for network in networks_of(policy):
        error, outputs = disagreement(network, features[-network.window :], portfolio)
        if not error <= GOLDEN_TOLERANCE:
            raise BundleError(
                f"{network.name}: NumPy and torch disagree by {error:.2g} on {RANDOM_WINDOWS} windows; "
                "nothing was exported"
            )
        answers.append(outputs)
    kept = slice(0, 4)
    return golden_of(policy, features[:, kept], portfolio[kept], [outputs[kept] for outputs in answers])


def _manifest(validation: Validation, panel: Panel, policy: LstmPolicy | Ensemble) -> Manifest:
    config = validation.config
    features = FeatureSet.of(panel.feature_names)
    if features.needs_intraday:
        raise BundleError(
            "the policy reads 5-minute bars, and the policy server is sent daily ones; train on daily features"
        )
    return Manifest(
        features=tuple(FeatureEntry(name=f.name, look_back=f.look_back) for f in features.features),
        feature_schema_hash=panel.schema_hash,
        policy=PolicyEntry.describing(policy),
        symbols=panel.symbols,
        exchange=config.data.exchange,
        limits=config.env.limits,
        costs=config.env.costs,
        data={"panel": Path(validation.panel).name, **{k: str(v) for k, v in panel.source.items()}},
        config=config.tree(),
        config_hash=config.digest(),
        code=code_version(),
        results=_results(validation),
        verdict=Verdict(decision=validation.verdict.decision, reasons=validation.verdict.reasons),
    )


def _results(validation: Validation) -> dict[str, Any]:
    tree = validation.tree()
    return {key: tree[key] for key in ("spans", "figures", "trials")}
