"""Raw bars to target weights: a pure function of request and bundle.

The features come from the pipeline's own code, the window is replayed from a zero state, and the weights
come from the limits that the policy was judged with: the answer is the backtest's for the same session.
"""

from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import polars as pl

from data_pipeline.assemble import build_panel
from data_pipeline.errors import BarsError, BundleError
from data_pipeline.features import FeatureSet
from data_pipeline.panel import Panel
from data_pipeline.schema import checked
from envs.backtest import window_at
from envs.bundle import Bundle
from envs.limits import target_weights
from serving.contract import DecisionRequest, DecisionResponse, Holding, ModelInfo


def feature_set_of(bundle: Bundle) -> FeatureSet:
    """Returns the feature set that the bundle was trained with.

    Raises:
        BundleError: This version computes these features differently.
    """
    features = FeatureSet.of(tuple(feature.name for feature in bundle.manifest.features))
    if features.schema_hash != bundle.manifest.feature_schema_hash:
        raise BundleError(
            f"{bundle.version}: its features differ from this version's; "
            "train it again or serve it with the code it names"
        )
    return features


def model_info(bundle: Bundle) -> ModelInfo:
    """Returns what a client must know to ask well."""
    manifest = bundle.manifest
    return ModelInfo(
        policy_version=bundle.version,
        feature_schema_hash=manifest.feature_schema_hash,
        verdict=manifest.verdict.decision,
        symbols=list(manifest.symbols),
        history_sessions=manifest.history_sessions,
        limits=manifest.limits.tree(),
    )


def decide(request: DecisionRequest, bundle: Bundle, features: FeatureSet) -> DecisionResponse:
    """Returns the decision for the session after `request.as_of_session`.

    Raises:
        BarsError: The bars do not fit the model, end too early or too late, or are too few.
    """
    manifest = bundle.manifest
    panel = _panel(request, bundle, features)
    last = len(panel.sessions) - 1
    holdings = [request.portfolio.get(s, Holding(weight=0.0, sessions_held=0)) for s in panel.symbols]
    weights_now = np.array([holding.weight for holding in holdings])
    held = np.array([holding.sessions_held for holding in holdings])
    ready = panel.ready
    window = window_at(manifest.window, panel, ready, last, weights_now, held, manifest.limits)
    positions = bundle.policy.decide(window)
    weights = target_weights(positions, ready[last], manifest.limits)
    return DecisionResponse(
        request_id=request.request_id,
        as_of_session=request.as_of_session,
        computed_at=datetime.now(UTC),
        policy_version=bundle.version,
        feature_schema_hash=features.schema_hash,
        verdict=manifest.verdict.decision,
        positions=dict(zip(panel.symbols, positions.tolist(), strict=True)),
        weights=dict(zip(panel.symbols, weights.tolist(), strict=True)),
        cash=float(1.0 - weights.sum()),
        not_ready=[s for s, complete in zip(panel.symbols, window.ready, strict=True) if not complete],
    )


def _panel(request: DecisionRequest, bundle: Bundle, features: FeatureSet) -> Panel:
    manifest = bundle.manifest
    strangers = sorted((request.bars.keys() | request.portfolio.keys()) - set(manifest.symbols))
    if strangers:
        raise BarsError(f"{', '.join(strangers)}: not in the model's universe ({', '.join(manifest.symbols)})")
    try:
        frames = [pl.DataFrame(bars.model_dump()).with_columns(symbol=pl.lit(s)) for s, bars in request.bars.items()]
    except pl.exceptions.ShapeError as error:
        raise BarsError("request bars: the lists of a symbol differ in length; send one entry per session") from error
    if not frames:
        raise BarsError("request bars: empty; send the bars of the model's universe")
    panel = build_panel(checked(pl.concat(frames), "request bars"), features, manifest.symbols, manifest.exchange)
    newest = panel.sessions[-1].item()
    if newest != request.as_of_session:
        raise BarsError(
            f"request bars: the newest session is {newest}, as_of_session says {request.as_of_session}; "
            "send bars up to and including the last completed session"
        )
    if len(panel.sessions) < manifest.window:
        raise BarsError(
            f"request bars: {len(panel.sessions)} sessions, the window needs {manifest.window}; "
            f"send {manifest.history_sessions}"
        )
    return panel
