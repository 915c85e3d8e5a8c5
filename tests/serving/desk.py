"""A desk for the executor: real alpaca-py client, fake broker and fake policy server over loopback."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import polars as pl
from fastapi import FastAPI, Request, Response

import loopback  # noqa: F401  (alpaca-py, imported without its warning)
from data_pipeline.sessions import sessions_between
from data_pipeline.sources.files import FileBars
from serving.contract import PREFIX, DecisionRequest
from serving.executor.broker import Broker
from serving.executor.config import Credentials, ExecutorConfig
from serving.executor.cycle import CycleReport, cycle
from serving.executor.journal import Journal
from serving.executor.policy_client import PolicyClient
from serving.fake.broker import FakeBroker, OrderRequest

SECRETS = {
    "ALPACA_API_KEY": "key-5f1e0c",
    "ALPACA_SECRET_KEY": "secret-77ab12",
    "SWING_POLICY_TOKEN": "token-93cd4e",
}
NEW_YORK = ZoneInfo("America/New_York")
AS_OF = date(2012, 6, 14)
TODAY_AT_TEN = datetime(2012, 6, 15, 10, 0, tzinfo=NEW_YORK)


@dataclass
class FakePolicy:
    """Answers the contract; `tamper` may spoil the answer, `status` replaces it."""

    weights: dict[str, float]
    left_alone: list[str] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=lambda: {"max_gross": 0.95})
    needs_account: bool = False
    verdict: str = "promote"
    override: str | None = None
    status: int = 200
    tamper: Callable[[dict[str, Any]], Any] = lambda answer: answer
    asked: list[DecisionRequest] = field(default_factory=list)

    def app(self) -> FastAPI:
        service = FastAPI()

        @service.get(PREFIX + "/model")
        async def model(request: Request) -> Response:
            return self._answer(
                request,
                {
                    "contract": 1,
                    **self._identity(),
                    "symbols": self._symbols,
                    "history_sessions": 10,
                    "limits": self.limits,
                    "needs_account": self.needs_account,
                },
            )

        @service.post(PREFIX + "/decisions")
        async def decide(request: Request) -> Response:
            asked = DecisionRequest.model_validate_json(await request.body())
            self.asked.append(asked)
            kept = sum(asked.portfolio[symbol].weight for symbol in self.left_alone if symbol in asked.portfolio)
            answer = {
                "contract": 1,
                **self._identity(),
                "override": self.override,
                "request_id": asked.request_id,
                "as_of_session": asked.as_of_session.isoformat(),
                "computed_at": datetime.now(UTC).isoformat(),
                "positions": dict.fromkeys(self._symbols, 1.0),
                "weights": self.weights,
                "left_alone": self.left_alone,
                "cash": 1 - sum(self.weights.values()) - kept,
                "not_ready": [],
            }
            return self._answer(request, self.tamper(answer))

        return service

    @property
    def _symbols(self) -> list[str]:
        return sorted([*self.weights, *self.left_alone])

    def _identity(self) -> dict[str, str]:
        return {"policy_version": "toy-1", "feature_schema_hash": "f" * 8, "verdict": self.verdict}

    def _answer(self, request: Request, body: Any) -> Response:
        import json

        if request.headers.get("authorization") != f"Bearer {SECRETS['SWING_POLICY_TOKEN']}":
            return Response(status_code=401)
        text = body if isinstance(body, str) else json.dumps(body)  # NaN stays NaN
        return Response(text, self.status, media_type="application/json")


@dataclass
class Desk:
    """Everything one executor needs, and what it left behind."""

    folder: Path
    broker: FakeBroker
    broker_url: str
    policy: FakePolicy
    policy_url: str

    @property
    def journal_path(self) -> Path:
        return self.folder / "journal.sqlite"

    @property
    def source(self) -> FileBars:
        return FileBars(self.folder / "bars.parquet")

    def config(self, **changes: Any) -> ExecutorConfig:
        tree = {
            "policy_url": self.policy_url,
            "broker_url": self.broker_url,
            "journal": str(self.journal_path),
            "settle_timeout_s": 0.2,
            "poll_s": 0.02,
        }
        return ExecutorConfig.of({**tree, **changes})

    def cycle(
        self, mode: str = "dry-run", broker: type[Broker] = Broker, skew_s: float = 0.0, **changes: Any
    ) -> CycleReport:
        config = self.config(mode=mode, **changes)
        credentials = Credentials.from_environment()
        with (
            PolicyClient(config.policy_url, credentials.policy_token) as policy,
            Journal(config.journal) as journal,
        ):
            now = self.broker.now + timedelta(seconds=skew_s)
            return cycle(config, broker(config, credentials), policy, journal, self.source, now=now)

    @property
    def posted(self) -> list[str]:
        return [body["client_order_id"] for body in self.broker.requests]

    @property
    def held(self) -> dict[str, float]:
        return {symbol: lot.shares for symbol, lot in self.broker.lots.items()}


def flat_bars(closes: dict[str, float], until: date = date(2012, 6, 20)) -> pl.DataFrame:
    """Returns bars whose four prices are the same number every session."""
    days = [day.item() for day in sessions_between(date(2012, 4, 2), until)]
    frames = [
        pl.DataFrame({"session": days}).with_columns(
            pl.lit(symbol).alias("symbol"),
            *(pl.lit(close).alias(name) for name in ("open", "high", "low", "close")),
            pl.lit(1e6).alias("volume"),
        )
        for symbol, close in closes.items()
    ]
    return pl.concat(frames)


def order_of(symbol: str, qty: int, side: str, limit: float | None = None) -> OrderRequest:
    """Returns an order as a person might place it by hand."""
    kind = {"type": "market"} if limit is None else {"type": "limit", "limit_price": limit}
    return OrderRequest.model_validate({"symbol": symbol, "qty": qty, "side": side, "time_in_force": "day", **kind})
