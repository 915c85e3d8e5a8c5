"""The HTTP contract between the policy server and the executor (major version 1).

The executor sends raw bars, its own holdings and, where the model's limits depend on it, the account's past; the
server answers target weights and remembers nothing. A symbol without a target weight is left alone: no order.
`POST /policy/v1/decisions`, `GET /policy/v1/model`, `GET /policy/v1/ready`, all with a bearer token
from the environment variable `SWING_POLICY_TOKEN`. 401 no token, 409 the request does not fit the model,
422 malformed. Anything but 200 means hold.
"""

from __future__ import annotations

from datetime import date, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

TOKEN_VARIABLE = "SWING_POLICY_TOKEN"  # noqa: S105  (the name of a variable, not a secret)
PREFIX = "/policy/v1"

Price = Annotated[FiniteFloat, Field(gt=0)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
LimitValue = bool | int | FiniteFloat | str | list[str] | None
"""One setting of `envs.limits.Limits` in JSON."""


class Message(BaseModel):
    """Base of all messages: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class SymbolBars(Message):
    """Raw daily bars of one symbol, one list entry per session, oldest first."""

    session: list[date]
    open: list[Price]
    high: list[Price]
    low: list[Price]
    close: list[Price]
    volume: list[NonNegative]
    split: list[Price]
    """Shares that one share became before this session's open; 1 = none."""
    dividend: list[NonNegative]
    """USD per post-split share that went ex before this session's open; 0 = none."""


class Holding(Message):
    """What the account holds of one symbol after the close of `as_of_session`."""

    weight: FiniteFloat
    """Signed market value over equity."""
    sessions_held: Annotated[int, Field(ge=0)]
    """Sessions since the position took its present sign; 0 when flat."""


class AccountState(Message):
    """The account's past up to the close of `as_of_session`, as `envs.limits.Standing` defines it.

    Limits that remember (drawdown, session loss, turnover, day trades) cannot be kept without it.
    """

    drawdown: Annotated[FiniteFloat, Field(ge=0, le=1)]
    """How far equity stands below its highest close, a fraction of that."""
    session_return: Annotated[FiniteFloat, Field(ge=-1)]
    """Return of the last session."""
    turnover_used: NonNegative
    """USD traded over equity that the turnover budget has not yet paid for; 0 without such a budget."""
    may_open: bool
    """False where a rule lets positions only shrink."""


class DecisionRequest(Message):
    """Asks for target weights, to be traded in the session after `as_of_session`."""

    contract: Literal[1] = 1
    request_id: Annotated[str, Field(min_length=1, max_length=128)]
    as_of_session: date
    """The last completed session; every symbol that can trade has a bar for it."""
    bars: dict[str, SymbolBars]
    """For each symbol of the model's universe: at least `history_sessions` sessions, if it is that old."""
    portfolio: dict[str, Holding]
    """Same symbols; a symbol left out is held at weight 0."""
    account: AccountState | None = None
    """The account's past. Wanted where `ModelInfo.needs_account` (409 without it: nothing is assumed), else unread."""


class DecisionResponse(Message):
    """The decision: every symbol of the model is either in `weights` or in `left_alone`."""

    contract: Literal[1] = 1
    request_id: str
    as_of_session: date
    computed_at: datetime
    policy_version: str
    feature_schema_hash: str
    verdict: Literal["promote", "reject"]
    """What the judge said of this policy; only a promoted one may trade without an override."""
    override: str | None = None
    """Why an operator uses a policy that was rejected, as its bundle says; none: nobody does."""
    positions: dict[str, FiniteFloat]
    """Target positions in [-1, 1]."""
    weights: dict[str, FiniteFloat]
    """Target weights after allocation and limits; a symbol that is left alone is absent."""
    left_alone: list[str]
    """Symbols whose position stays as it is, in the order of the model: they did not trade at `as_of_session`, lack
    features, or are held too short a time to be reduced. A weight of 0 instead closes the position."""
    cash: FiniteFloat
    """1 minus the sum of the weights and of the present weights of the symbols left alone."""
    not_ready: list[str]
    """Symbols whose window of history is not complete; their target position is 0."""


class ModelInfo(Message):
    """What a client must know to ask well."""

    contract: Literal[1] = 1
    policy_version: str
    feature_schema_hash: str
    verdict: Literal["promote", "reject"]
    symbols: list[str]
    history_sessions: int
    """Sessions of bars a request should carry."""
    limits: dict[str, LimitValue]
    """The limits the policy was judged with (`envs.limits.Limits`); the server applies them."""
    needs_account: bool
    """Whether these limits depend on the account's past, so that requests must carry `account`."""
