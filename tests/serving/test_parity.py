"""The served decision is the backtest's: for every allocation and every limit, session by session."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest
from asking import request_after

from data_pipeline.assemble import build_panel
from data_pipeline.errors import BarsError
from data_pipeline.features import FeatureSet
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from data_pipeline.scaling import fit_scaler
from envs.backtest import Ledger, backtest
from envs.bundle import Bundle, FeatureEntry, Manifest, PolicyEntry, Verdict
from envs.contract import PORTFOLIO_FEATURES, ActionKind
from envs.costs import Costs
from envs.ensemble import Ensemble
from envs.limits import Limits
from envs.lstm import LstmPolicy
from serving.contract import DecisionResponse, ModelInfo
from serving.policy.decide import decide, model_info

FEATURES = FeatureSet.of(("return_1", "return_5", "sma_20_distance", "realised_volatility_20"))
WINDOW, HIDDEN = 10, 8
SPAN = Span(366, 426)
"""September to November 2012: FB was first traded in May, Apple fell by a quarter."""
DRY = {"IBM": (370, 371, 418, 419), "MSFT": (380, 405)}
"""Rows at which a symbol did not trade."""

LIMITS: dict[str, dict[str, Any]] = {
    "equal": {},
    "equal_risk": {"allocation": "equal_risk"},
    "volatility_target": {"allocation": "volatility_target", "volatility_target": 0.2},
    "kelly": {"allocation": "kelly", "kelly_edge_bps": 4.0},
    "risk_per_trade": {"risk_per_trade": 0.005},
    "long_only": {"long_only": True},
    "unshortable": {"unshortable": ["AAPL", "IBM"]},
    "max_net": {"max_net": 0.2},
    "min_holding": {"min_holding_sessions": 6},
    "max_holding": {"max_holding_sessions": 4},
    "turnover": {"turnover_per_year": 15.0},
    "max_session_loss": {"max_session_loss": 0.005},
    "max_drawdown": {"max_drawdown": 0.018},
    "all": {
        "allocation": "equal_risk",
        "risk_per_trade": 0.02,
        "max_net": 0.5,
        "min_holding_sessions": 3,
        "max_holding_sessions": 12,
        "turnover_per_year": 40.0,
        "max_session_loss": 0.004,
        "max_drawdown": 0.012,
    },
}


@pytest.fixture(scope="module")
def history(bars: pl.DataFrame) -> pl.DataFrame:
    """Two years of bars in which some symbols do not trade on some sessions."""
    recent = bars.filter(pl.col("session").is_between(pl.date(2011, 3, 28), pl.date(2013, 2, 28)))
    sessions = recent["session"].unique().sort()
    dry = pl.any_horizontal(
        (pl.col("symbol") == symbol) & pl.col("session").is_in(sessions.gather(rows).implode())
        for symbol, rows in DRY.items()
    )
    return recent.with_columns(volume=pl.when(dry).then(0.0).otherwise(pl.col("volume")))


@pytest.fixture(scope="module")
def market(history: pl.DataFrame) -> Panel:
    return build_panel(history, FEATURES)


@pytest.fixture(scope="module")
def policy(market: Panel) -> LstmPolicy:
    return network(market)


def network(market: Panel, seed: int = 5, window: int = WINDOW, training: tuple[int, int] = (0, 300)) -> LstmPolicy:
    """One that never learnt, changes its mind often, and looks at its own position."""
    rng = np.random.default_rng(seed)
    shapes = {
        "lstm.weight_ih": (4 * HIDDEN, len(FEATURES.names)),
        "lstm.weight_hh": (4 * HIDDEN, HIDDEN),
        "lstm.bias": (4 * HIDDEN,),
        "trunk.weight": (HIDDEN, HIDDEN + len(PORTFOLIO_FEATURES)),
        "trunk.bias": (HIDDEN,),
        "actor.weight": (2, HIDDEN),
        "actor.bias": (2,),
    }
    weights = {name: rng.normal(0, 0.7, shape).astype(np.float32) for name, shape in shapes.items()}
    return LstmPolicy("restless", window, weights, fit_scaler(market, Span(*training)), ActionKind.CONTINUOUS)


def bundle_of(policy: LstmPolicy | Ensemble, market: Panel, limits: Limits) -> Bundle:
    manifest = Manifest(
        features=tuple(FeatureEntry(name=f.name, look_back=f.look_back) for f in FEATURES.features),
        feature_schema_hash=FEATURES.schema_hash,
        policy=PolicyEntry.describing(policy),
        symbols=market.symbols,
        exchange=market.exchange,
        limits=limits,
        costs=Costs(),
        data={},
        config={},
        config_hash="",
        code="",
        results={},
        verdict=Verdict(decision="reject", reasons=()),
    )
    return Bundle(manifest, "0" * 64, policy, {})


def answer_after(t: int, history: pl.DataFrame, market: Panel, ledger: Ledger, bundle: Bundle) -> DecisionResponse:
    """The served decision after the close of row `t`, holding what the ledger held."""
    manifest = bundle.manifest
    return decide(
        request_after(history, market, ledger, t, manifest.history_sessions, manifest.limits), bundle, FEATURES
    )


def decided(ledger: Ledger, session: Any) -> dict[str, float | None]:
    """Target weights with which the fills of `session` were made; None where the position was left alone."""
    rows = ledger.positions.filter(pl.col("session") == session)
    return dict(rows.select("symbol", "target_weight").rows())


def held(ledger: Ledger, session: Any) -> dict[str, float]:
    """Weights after the close of `session`."""
    return dict(ledger.positions.filter(pl.col("session") == session).select("symbol", "weight").rows())


@pytest.mark.parametrize("name", LIMITS)
def test_decisions_of_successive_sessions_are_the_ledgers(
    name: str, history: pl.DataFrame, market: Panel, policy: LstmPolicy
) -> None:
    limits = Limits.of(LIMITS[name])
    bundle = bundle_of(policy, market, limits)
    ledger, plain = (backtest(policy, market, SPAN, each, Costs()) for each in (limits, Limits()))
    for t in range(SPAN.start - 1, SPAN.stop - 1):
        answer = answer_after(t, history, market, ledger, bundle)
        theirs = decided(ledger, market.sessions[t + 1].item())
        assert answer.left_alone == [symbol for symbol, weight in theirs.items() if weight is None], market.sessions[t]
        given = {symbol: weight for symbol, weight in theirs.items() if weight is not None}
        assert answer.weights == pytest.approx(given, abs=1e-9), market.sessions[t]
        present = held(ledger, market.sessions[t].item())
        kept = sum(present.get(symbol, 0.0) for symbol in answer.left_alone)
        assert sum(answer.weights.values()) + kept + answer.cash == pytest.approx(1.0)
    assert name == "equal" or not ledger.positions["target_weight"].equals(plain.positions["target_weight"])


def test_decisions_of_an_ensemble_of_different_windows_and_scalers_are_the_ledgers(
    history: pl.DataFrame, market: Panel, policy: LstmPolicy
) -> None:
    other, third = network(market, 6, 3, (0, 200)), network(market, 7, 25, (100, 300))
    ensemble = Ensemble("together", (policy, other, third), "sharpe", (0.5, 0.2, 0.3))
    bundle = bundle_of(ensemble, market, Limits())
    assert bundle.manifest.history_sessions == 25 + 20
    ledger = backtest(ensemble, market, SPAN, Limits(), Costs())
    for t in range(SPAN.start - 1, SPAN.stop - 1, 7):
        answer = answer_after(t, history, market, ledger, bundle)
        theirs = decided(ledger, market.sessions[t + 1].item())
        assert answer.left_alone == [symbol for symbol, weight in theirs.items() if weight is None], market.sessions[t]
        given = {symbol: weight for symbol, weight in theirs.items() if weight is not None}
        assert answer.weights == pytest.approx(given, abs=1e-9), market.sessions[t]
    assert ledger.positions["target_position"].n_unique() > 200


def test_symbol_that_did_not_trade_is_left_alone_and_not_closed(
    history: pl.DataFrame, market: Panel, policy: LstmPolicy
) -> None:
    ledger = backtest(policy, market, SPAN, Limits(), Costs())
    t = DRY["IBM"][0]
    answer = answer_after(t, history, market, ledger, bundle_of(policy, market, Limits()))
    assert held(ledger, market.sessions[t].item())["IBM"] != 0
    assert (answer.left_alone, answer.not_ready, answer.positions["IBM"]) == (["IBM"], ["IBM"], 0.0)
    assert "IBM" not in answer.weights


def test_stopped_account_closes_also_what_did_not_trade(
    history: pl.DataFrame, market: Panel, policy: LstmPolicy
) -> None:
    limits = Limits(max_drawdown=0.018)
    ledger = backtest(policy, market, SPAN, limits, Costs())
    answer = answer_after(DRY["IBM"][-1], history, market, ledger, bundle_of(policy, market, limits))
    assert answer.weights == dict.fromkeys(market.symbols, 0.0)
    assert (answer.left_alone, answer.not_ready, answer.cash) == ([], ["IBM"], 1.0)


@pytest.mark.parametrize("name", [name for name, tree in LIMITS.items() if Limits.of(tree).remembers])
def test_limits_that_remember_refuse_a_request_without_the_accounts_past(
    name: str, history: pl.DataFrame, market: Panel, policy: LstmPolicy
) -> None:
    limits = Limits.of(LIMITS[name])
    bundle, ledger = bundle_of(policy, market, limits), backtest(policy, market, SPAN, limits, Costs())
    request = request_after(history, market, ledger, 400, bundle.manifest.history_sessions, limits)
    assert request.account is not None
    with pytest.raises(BarsError, match="request account: absent"):
        decide(request.model_copy(update={"account": None}), bundle, FEATURES)


@pytest.mark.parametrize("override", [None, "rehearsal of the desk"])
def test_decision_tells_the_override_of_its_bundle(
    override: str | None, history: pl.DataFrame, market: Panel, policy: LstmPolicy
) -> None:
    bundle = bundle_of(policy, market, Limits())
    manifest = bundle.manifest.model_copy(update={"verdict": Verdict(decision="reject", reasons=(), override=override)})
    ledger = backtest(policy, market, SPAN, Limits(), Costs())
    answer = answer_after(400, history, market, ledger, replace(bundle, manifest=manifest))
    assert (answer.verdict, answer.override) == ("reject", override)


@pytest.mark.parametrize(("name", "needed"), [("all", True), ("unshortable", False)])
def test_model_tells_its_limits_and_whether_it_needs_the_account(
    name: str, needed: bool, market: Panel, policy: LstmPolicy
) -> None:
    limits = Limits.of(LIMITS[name])
    told = ModelInfo.model_validate_json(model_info(bundle_of(policy, market, limits)).model_dump_json(), strict=True)
    assert told.needs_account is needed
    assert Limits.of(told.limits) == limits
