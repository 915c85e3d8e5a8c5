"""Settings of the executor, and the credentials that only the environment may hold."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator

from data_pipeline.config import Config
from data_pipeline.errors import LiveError
from envs.limits import Limits
from serving.contract import TOKEN_VARIABLE

_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

Positive = Annotated[float, Field(gt=0)]
Symbol = Annotated[str, Field(pattern=r"^[A-Z][A-Z0-9.]{0,9}$")]


class ExecutorConfig(Config):
    """What the executor trades, where, and within which bounds."""

    strategy: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,15}$")] = "swing"
    """Name that starts every order id; how our orders are told from anyone else's."""
    mode: Literal["dry-run", "paper"] = "dry-run"
    """dry-run plans and sends nothing; paper sends the orders to a paper account."""
    policy_url: str = "http://127.0.0.1:8000"
    """Base URL of the policy server."""
    broker_url: str | None = None
    """Base URL of a fake broker, for trading and data alike; left out: Alpaca's paper account."""
    feed: Literal["iex", "sip"] = "iex"
    """Alpaca data feed of the sizing prices; sip needs a paid plan."""
    symbols: tuple[Symbol, ...] = ()
    """Symbols that may trade; must be those of the model. Empty: take the model's."""
    bars: str = "bundled"
    """Source of the daily bars: 'bundled', or a Parquet or CSV file."""
    limits: Limits = Limits()
    """The server applies the model's limits; a decision outside these is not clipped: the executor holds."""
    max_order_usd: Positive | None = None
    """Hold when one order is larger than this; left out: no cap."""
    max_orders_per_session: Annotated[int, Field(ge=1)] = 40
    """Hold when a plan has more orders than this."""
    minutes_after_open: Annotated[int, Field(ge=0, le=180)] = 15
    """The trading window starts this long after the open (09:45 in New York)."""
    minutes_before_close: Annotated[int, Field(ge=0, le=180)] = 30
    """The trading window ends this long before the close (15:30, on half days 12:30)."""
    max_clock_skew_s: Positive = 5.0
    """Hold when the local and the broker's clock differ by more."""
    max_price_age_s: Positive = 900.0
    """Hold when the last trade of a symbol is older, by the broker's clock."""
    settle_timeout_s: Positive = 60.0
    """How long a leg may take to fill before its rest is cancelled."""
    poll_s: Positive = 1.0
    """Pause between two looks at open orders."""
    journal: Path = Path("executor.sqlite")
    """The SQLite file that records what was meant."""
    allow_rejected: bool = False
    """Let a policy that the judge rejected trade in paper mode, also without an override in its bundle."""

    @field_validator("mode", mode="before")
    @classmethod
    def _no_live(cls, value: Any) -> Any:
        if value == "live":
            raise ValueError("live trading is not part of this version; use dry-run or paper")
        return value

    @field_validator("limits")
    @classmethod
    def _kept(cls, value: Limits) -> Limits:
        if reasons := unkept(value):
            raise ValueError(f"{'; '.join(reasons)}; leave it out")
        return value

    @field_validator("policy_url", "broker_url")
    @classmethod
    def _plain_url(cls, value: str | None) -> str | None:
        if value is None:
            return None
        parts = urlsplit(value)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ValueError("give a URL such as http://127.0.0.1:8000, or leave the setting out")
        return value.rstrip("/")

    @field_validator("broker_url")
    @classmethod
    def _not_alpaca(cls, value: str | None) -> str | None:
        # An override is the one road by which the real account could be reached.
        host = (urlsplit(value).hostname or "") if value else ""
        if f".{host}".endswith(".alpaca.markets"):
            raise ValueError("is for a fake broker; leave it out to use Alpaca's paper account")
        return value

    @property
    def broker_is_loopback(self) -> bool:
        """True for a fake broker on this machine, whose clock may be simulated."""
        return self.broker_url is not None and urlsplit(self.broker_url).hostname in _LOOPBACK


def unkept(limits: Limits) -> list[str]:
    """Says which settings of `limits` this executor cannot keep, and why."""
    wants = {
        "fractional": (limits.fractional, "orders are sent in whole shares"),
        "stop_loss": (limits.stop_loss is not None, "no protective orders are sent"),
        "take_profit": (limits.take_profit is not None, "no protective orders are sent"),
        "pattern_day_trader": (limits.pattern_day_trader, "the rule ended on 2026-06-04, day trades are not counted"),
    }
    return [f"limits.{name}: {why} by this executor" for name, (wanted, why) in wants.items() if wanted]


class Credentials(BaseModel):
    """Keys and token; masked in every repr, dump and log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key: SecretStr
    secret_key: SecretStr
    policy_token: SecretStr

    @classmethod
    def from_environment(cls) -> Self:
        """Returns the credentials in ALPACA_API_KEY, ALPACA_SECRET_KEY and SWING_POLICY_TOKEN.

        Raises:
            LiveError: A variable is unset or empty.
        """
        return cls(
            api_key=_secret("ALPACA_API_KEY"),
            secret_key=_secret("ALPACA_SECRET_KEY"),
            policy_token=_secret(TOKEN_VARIABLE),
        )


def _secret(variable: str) -> SecretStr:
    value = os.environ.get(variable, "")
    if not value:
        raise LiveError(f"environment variable {variable} is not set; export it (a fake broker takes any value)")
    return SecretStr(value)
