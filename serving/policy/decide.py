"""Raw bars to target weights: a pure function of request and bundle.

The features come from the pipeline's own code, the window is replayed from a zero state, and the weights
come from the limits that the policy was judged with: the answer is the backtest's for the same session and
account. A margin call is the broker's business here; the simulation's closes everything at the next open.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import polars as pl

from data_pipeline.assemble import build_panel
from data_pipeline.errors import BarsError, BundleError
from data_pipeline.features import FeatureSet
from data_pipeline.panel import Panel
from data_pipeline.schema import checked
from envs.backtest import window_at
from envs.bundle import Bundle
from envs.contract import Bools, Floats, Ints
from envs.limits import Limits, target_weights
from envs.market import shortable_symbols
from serving.contract import DecisionRequest, DecisionResponse, Holding, ModelInfo

_FLAT = Holding(weight=0.0, sessions_held=0)


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
        needs_account=manifest.limits.remembers,
    )


def decide(request: DecisionRequest, bundle: Bundle, features: FeatureSet) -> DecisionResponse:
    """Returns the decision for the session after `request.as_of_session`.

    A loss that stops the account (`max_drawdown`, `max_session_loss`) gives every symbol the weight 0, also one
    that is not ready and would otherwise be left alone: as in the simulation, a stop closes what it can.

    Raises:
        BarsError: The request does not fit the model: its bars have other symbols, end too early or too late, or are
            too few, or the account's past is absent and the limits depend on it.
    """
    manifest = bundle.manifest
    standing = _standing(request, manifest.symbols, manifest.limits)
    panel = _panel(request, bundle, features)
    last, ready, symbols = len(panel.sessions) - 1, panel.ready, panel.symbols
    held = (standing.weights, standing.sessions_held)
    window = window_at(manifest.window, panel, ready, last, *held, manifest.limits)
    positions = np.where(window.ready, bundle.policy.decide(window), 0.0)
    shortable = shortable_symbols(symbols, manifest.limits.unshortable)
    sigma = panel.fields["sigma"][last]
    weights = target_weights(positions, ready[last], shortable, sigma, standing, manifest.limits)
    alone = np.isnan(weights)
    return DecisionResponse(
        request_id=request.request_id,
        as_of_session=request.as_of_session,
        computed_at=datetime.now(UTC),
        policy_version=bundle.version,
        feature_schema_hash=features.schema_hash,
        verdict=manifest.verdict.decision,
        override=manifest.verdict.override,
        positions=dict(zip(symbols, positions.tolist(), strict=True)),
        weights={s: float(weight) for s, weight in zip(symbols, weights, strict=True) if not np.isnan(weight)},
        left_alone=_chosen(symbols, alone),
        cash=float(1.0 - np.where(alone, standing.weights, weights).sum()),
        not_ready=_chosen(symbols, ~window.ready),
    )


class _Standing(NamedTuple):
    """The account as the request describes it; satisfies `limits.Standing`."""

    weights: Floats
    sessions_held: Ints
    drawdown: Floats
    session_return: Floats
    turnover_used: Floats
    may_open: Bools


def _standing(request: DecisionRequest, symbols: tuple[str, ...], limits: Limits) -> _Standing:
    account = request.account
    if account is None and limits.remembers:
        raise BarsError(
            "request account: absent, and the model's limits depend on the account's past; "
            "send drawdown, session_return, turnover_used and may_open"
        )
    holdings = [request.portfolio.get(symbol, _FLAT) for symbol in symbols]
    return _Standing(
        weights=np.array([holding.weight for holding in holdings]),
        sessions_held=np.array([holding.sessions_held for holding in holdings]),
        # Unread where unknown; NaN, so that no limit could take it for a quiet past.
        drawdown=np.asarray(np.nan if account is None else account.drawdown),
        session_return=np.asarray(np.nan if account is None else account.session_return),
        turnover_used=np.asarray(np.nan if account is None else account.turnover_used),
        may_open=np.asarray(account is not None and account.may_open),
    )


def _chosen(symbols: tuple[str, ...], mask: Bools) -> list[str]:
    return [symbol for symbol, wanted in zip(symbols, mask, strict=True) if wanted]


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
