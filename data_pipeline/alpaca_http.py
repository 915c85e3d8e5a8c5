"""Alpaca over HTTP: alpaca-py's clients made safe, and reads that wait and try again within bounds.

alpaca-py waits for ever on a silent socket, resends any request by itself, and ignores what the service
says about its request limit.
"""

from __future__ import annotations

import functools
import json
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Annotated, Any, Self

import requests
import tenacity
from alpaca.common.exceptions import APIError
from pydantic import BaseModel, ConfigDict, Field, SecretStr
from requests.adapters import HTTPAdapter

from data_pipeline.config import Config
from data_pipeline.errors import AlpacaError, ConfigError

_PRIVATE = ("_session", "_retry", "_retry_codes")
_FIRST_PAUSE_S = 0.5

Seconds = Annotated[float, Field(gt=0, le=86_400)]
Headers = Mapping[str, str]


class Patience(Config):
    """How long to wait for Alpaca, and how often to ask again."""

    connect_timeout_s: Seconds = 3.05
    """Longest wait for a connection."""
    read_timeout_s: Seconds = 30.0
    """Longest silence inside an answer."""
    attempts: Annotated[int, Field(ge=1, le=20)] = 6
    """How often a request is sent before the fetch fails."""
    max_wait_s: Seconds = 90.0
    """Longest single pause; a service that asks for a longer one ends the fetch."""
    deadline_s: Seconds = 21_600.0
    """Longest time for a whole fetch; no request is sent after it."""


class AlpacaKeys(BaseModel):
    """The API keys; masked in every repr, dump and log."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    api_key: SecretStr
    secret_key: SecretStr

    @classmethod
    def from_environment(cls) -> Self:
        """Returns the keys in ALPACA_API_KEY and ALPACA_SECRET_KEY.

        Raises:
            ConfigError: A variable is unset or empty.
        """
        names = {"api_key": "ALPACA_API_KEY", "secret_key": "ALPACA_SECRET_KEY"}
        missing = [variable for variable in names.values() if not os.environ.get(variable)]
        if missing:
            raise ConfigError(
                f"environment variable {' and '.join(missing)} not set; export the keys of your Alpaca account "
                "(a fake server takes any value)"
            )
        return cls(**{field: SecretStr(os.environ[variable]) for field, variable in names.items()})

    def masked(self, text: str) -> str:
        """Returns `text` with both keys blotted out."""
        for secret in (self.api_key, self.secret_key):
            text = text.replace(secret.get_secret_value(), "**********")
        return text


def tame(client: Any, timeout_s: tuple[float, float], on_answer: Callable[[Headers], None] | None = None) -> None:
    """Gives an alpaca-py client timeouts (connect, read), and switches off its own retries.

    Args:
        client: Any of alpaca-py's REST clients.
        timeout_s: For every request.
        on_answer: Is told the headers of every answer.

    Raises:
        ConfigError: This alpaca-py is built in another way.
    """
    missing = [name for name in _PRIVATE if not hasattr(client, name)]
    if missing:
        raise ConfigError(
            f"alpaca-py: {type(client).__name__} has no {', '.join(missing)}, so its retries and missing "
            "timeouts cannot be mended; install alpaca-py 0.44"
        )
    client._retry, client._retry_codes = 0, []
    client._session.trust_env = False
    for scheme in ("http://", "https://"):
        client._session.mount(scheme, _Wire(timeout_s, on_answer))


def may_pass(error: BaseException) -> bool:
    """Returns True for a failure that another try may not meet: 429, 5xx, the network, or an unreadable body."""
    if isinstance(error, APIError):
        return error.status_code == 429 or (error.status_code or 0) >= 500
    return isinstance(error, requests.RequestException | UnreadableError)


def said(error: APIError) -> str:
    """Returns the body of a refusal in one short line; `error.message` fails on a body that is not JSON."""
    return " ".join(str(error).split())[:200]


class UnreadableError(Exception):
    """The body is JSON, yet no object."""


class PatientReader:
    """Reads through alpaca-py's clients with bounded retries, and keeps to the service's request limit.

    Args:
        patience: The bounds.
        keys: Blotted out of every message.
        now: The present, aware.
        sleep: Waits so many seconds.
    """

    def __init__(
        self,
        patience: Patience,
        keys: AlpacaKeys,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._patience = patience
        self._keys = keys
        self._now = now
        self._sleep = sleep
        self._limits: Headers = {}
        self._deadline = float("inf")
        growing = tenacity.wait_exponential(_FIRST_PAUSE_S, patience.max_wait_s - _FIRST_PAUSE_S, min=0)
        self._backoff = growing + tenacity.wait_random(0, _FIRST_PAUSE_S)

    def client(self, kind: Callable[..., Any], url: str | None) -> Any:
        """Returns a client of alpaca-py's class `kind` for `url` (None: Alpaca), fit to be read through `get`."""
        key, secret = (secret.get_secret_value() for secret in (self._keys.api_key, self._keys.secret_key))
        client = kind(key, secret, raw_data=True, url_override=url)
        timeout_s = (self._patience.connect_timeout_s, self._patience.read_timeout_s)
        tame(client, timeout_s, self._note)
        return client

    def start_clock(self) -> None:
        """Starts the time that a whole fetch may take."""
        self._deadline = self._now().timestamp() + self._patience.deadline_s

    def get(self, client: Any, path: str, query: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the JSON object that answers one GET.

        Raises:
            AlpacaError: No usable answer within the bounds, or a refusal.
        """
        tries = tenacity.Retrying(
            retry=tenacity.retry_if_exception(may_pass),
            wait=self._pause,
            stop=self._is_enough,
            sleep=self._sleep,
            reraise=True,
        )
        sent = 0

        def once() -> dict[str, Any]:
            nonlocal sent
            self._keep_to_limit()
            self._keep_to_deadline(path)
            sent += 1
            answer = client.get(path, dict(query))
            if not isinstance(answer, dict):
                raise UnreadableError(f"no JSON object but {type(answer).__name__}")
            return answer

        try:
            return tries(once)
        except APIError as error:
            raise AlpacaError(self._keys.masked(self._refusal(path, error, sent))) from error
        except requests.JSONDecodeError as error:
            raise AlpacaError(f"Alpaca {path}: the body is not JSON, {_times(sent)}; {_LATER}") from error
        except (requests.RequestException, UnreadableError) as error:
            what = error if isinstance(error, UnreadableError) else type(error).__name__
            raise AlpacaError(f"Alpaca {path}: {what}, {_times(sent)}; check the network, then {_LATER}") from error

    def _note(self, headers: Headers) -> None:
        self._limits = headers

    def _keep_to_limit(self) -> None:
        """Waits until the limit is renewed if the last answer used it up; the header is a hint, so bounded."""
        if self._limits.get("X-RateLimit-Remaining") == "0":
            pause = min(self._until_reset(self._limits) or 0.0, self._patience.max_wait_s)
            self._limits = {}
            if pause > 0:
                self._sleep(pause)

    def _keep_to_deadline(self, path: str) -> None:
        if self._now().timestamp() > self._deadline:
            raise AlpacaError(
                f"Alpaca {path}: not finished after deadline_s = {self._patience.deadline_s:g}; "
                "run it again to go on where it stopped, or allow more time"
            )

    def _pause(self, state: tenacity.RetryCallState) -> float:
        """Returns what the service asks for, else a pause that grows and varies."""
        error = state.outcome.exception() if state.outcome else None
        headers = error.response.headers if isinstance(error, APIError) and error.status_code in {429, 503} else {}
        if (asked := _seconds(headers.get("Retry-After"), self._now())) is not None:
            return asked
        if headers and (reset := self._until_reset(headers)):
            return min(reset, self._patience.max_wait_s)
        return float(self._backoff(state))

    def _is_enough(self, state: tenacity.RetryCallState) -> bool:
        return (
            state.attempt_number >= self._patience.attempts
            or state.upcoming_sleep > self._patience.max_wait_s
            or self._now().timestamp() + state.upcoming_sleep > self._deadline
        )

    def _until_reset(self, headers: Headers) -> float | None:
        try:
            pause = float(headers["X-RateLimit-Reset"]) - self._now().timestamp()
        except (KeyError, ValueError):
            return None
        return pause if pause > 0 else None

    def _refusal(self, path: str, error: APIError, sent: int) -> str:
        status, text = error.status_code, said(error)
        if status == 401:
            return f"Alpaca {path}: the keys are refused (401); check ALPACA_API_KEY and ALPACA_SECRET_KEY"
        if status == 403 and "subscription" in text:
            return (
                f"Alpaca {path}: {text}; the free plan gives SIP history that is at least 15 minutes old: "
                "choose an earlier end, feed = iex, or a paid plan"
            )
        if status == 429:
            asked = error.response.headers.get("Retry-After")
            wish = f", Retry-After {asked[:40]}" if asked else ""
            return f"Alpaca {path}: too many requests (429{wish}), {_times(sent)}; {_LATER}"
        if may_pass(error):
            return f"Alpaca {path}: answered {status}, {_times(sent)}: {text}; {_LATER}"
        return f"Alpaca {path}: refused with {status}: {text}; check symbols, dates and plan"


_LATER = "run it again later, finished parts are kept"


class _Wire(HTTPAdapter):
    def __init__(self, timeout_s: tuple[float, float], on_answer: Callable[[Headers], None] | None) -> None:
        self._timeout_s = timeout_s
        self._on_answer = on_answer
        super().__init__()

    def send(self, *args: Any, **kwargs: Any) -> requests.Response:
        response = super().send(*args, **{**kwargs, "timeout": kwargs.get("timeout") or self._timeout_s})
        if self._on_answer is not None:
            self._on_answer(response.headers)
        response.json = functools.partial(_json, response)  # type: ignore[method-assign]
        return response


def _json(response: requests.Response, **_: Any) -> Any:
    """Reads a body by the standard library: requests would take simplejson where that is installed, and refuse NaN."""
    try:
        return json.loads(response.content)
    except ValueError as error:
        raise requests.JSONDecodeError(str(error), response.text, 0) from error


def _times(sent: int) -> str:
    return "once" if sent == 1 else f"{sent} times"


def _seconds(text: str | None, now: datetime) -> float | None:
    """Returns the pause that a Retry-After header asks for, given as seconds or as a date."""
    if text is None:
        return None
    try:
        return max(0.0, float(text))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(text) - now).total_seconds())
    except (TypeError, ValueError):
        return None
