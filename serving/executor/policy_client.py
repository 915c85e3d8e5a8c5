"""Asks the policy server for a decision; anything but a valid answer to this very question is a hold."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import httpx
from pydantic import SecretStr, ValidationError

from envs.limits import Limits
from serving.contract import PREFIX, DecisionRequest, DecisionResponse, Message, ModelInfo

_TIMEOUT_S = 10.0
_TOLERANCE = 1e-6

M = TypeVar("M", bound=Message)


class Hold(NamedTuple):
    """The policy gave nothing that may be traded."""

    reason: str


class PolicyClient:
    """The policy server's two routes that the executor uses."""

    def __init__(self, url: str, token: SecretStr) -> None:
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token.get_secret_value()}"},
            timeout=_TIMEOUT_S,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def model(self) -> ModelInfo | Hold:
        """Returns what the server says of the model it serves."""
        return self._answer(ModelInfo, "GET", "/model", None)

    def decide(self, request: DecisionRequest, model: ModelInfo, limits: Limits) -> DecisionResponse | Hold:
        """Returns the decision if it answers `request`, comes from `model` and keeps within `limits`."""
        answer = self._answer(DecisionResponse, "POST", "/decisions", request)
        if isinstance(answer, Hold):
            return answer
        kept = [request.portfolio[symbol].weight for symbol in answer.left_alone if symbol in request.portfolio]
        reason = _mismatch(answer, request, model) or _imbalance(answer, kept) or _excess(answer, kept, limits)
        return Hold(f"policy: {reason}") if reason else answer

    def _answer(self, kind: type[M], method: str, path: str, body: Message | None) -> M | Hold:
        content = None if body is None else body.model_dump_json()
        headers = {} if content is None else {"Content-Type": "application/json"}
        try:
            reply = self._http.request(method, PREFIX + path, content=content, headers=headers)
        except httpx.HTTPError as error:
            return Hold(f"policy server cannot be reached: {type(error).__name__}")
        if reply.status_code != httpx.codes.OK:
            return Hold(f"policy server answered {reply.status_code}: {' '.join(reply.text.split())[:200]}")
        try:
            return kind.model_validate_json(reply.content, strict=True)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(str(part) for part in first["loc"])
            return Hold(f"policy server's answer is not a valid {kind.__name__}: {where}: {first['msg']}")


def _mismatch(answer: DecisionResponse, request: DecisionRequest, model: ModelInfo) -> str | None:
    """Returns how the answer fails to fit the question, or None."""
    pairs = {
        "request_id": (answer.request_id, request.request_id),
        "as_of_session": (answer.as_of_session, request.as_of_session),
        "policy_version": (answer.policy_version, model.policy_version),
        "feature_schema_hash": (answer.feature_schema_hash, model.feature_schema_hash),
        "symbols of weights and left_alone": (sorted([*answer.weights, *answer.left_alone]), sorted(request.bars)),
        "symbols of positions": (sorted(answer.positions), sorted(request.bars)),
    }
    return next((f"{name} is {got}, not {want}" for name, (got, want) in pairs.items() if got != want), None)


def _imbalance(answer: DecisionResponse, kept: list[float]) -> str | None:
    """Returns how weights, present weights of what is left alone, and cash fail to make one whole, or None."""
    if abs(sum(answer.weights.values()) + sum(kept) + answer.cash - 1) > _TOLERANCE:
        return f"weights and cash {answer.cash:.4f} do not add up to 1"
    return None


def _excess(answer: DecisionResponse, kept: list[float], limits: Limits) -> str | None:
    """Returns which limit the answer breaks, or None."""
    return _excess_of_one(answer.weights, limits) or _excess_of_all(list(answer.weights.values()), kept, limits)


def _excess_of_one(weights: Mapping[str, float], limits: Limits) -> str | None:
    for symbol, weight in weights.items():
        if abs(weight) > limits.max_weight + _TOLERANCE:
            return f"weight {weight:.4f} of {symbol} is beyond max_weight {limits.max_weight}"
        if weight < -_TOLERANCE and limits.long_only:
            return f"weight {weight:.4f} of {symbol} is short in a long-only account"
        if weight < -_TOLERANCE and symbol in limits.unshortable:
            return f"weight {weight:.4f} of {symbol} is short, and limits.unshortable names it"
    return None


def _excess_of_all(given: list[float], kept: list[float], limits: Limits) -> str | None:
    """Checks the sums; what is left alone may have outgrown one by itself, then nothing else may add to it."""
    gross, kept_gross, net = _gross(given), _gross(kept), sum(given) + sum(kept)
    if gross > max(limits.max_gross - kept_gross, 0.0) + _TOLERANCE:
        return f"gross weight {gross + kept_gross:.4f} is beyond max_gross {limits.max_gross}"
    if abs(net) > max(limits.max_net, abs(sum(kept))) + _TOLERANCE:
        return f"net weight {net:.4f} is beyond max_net {limits.max_net}"
    return None


def _gross(weights: list[float]) -> float:
    return sum(abs(weight) for weight in weights)
