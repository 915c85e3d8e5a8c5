"""Failures on demand: any route of the fake can be made to fail, over HTTP or from Python.

A fault applies to the next `count` requests that match, after `skip` of them passed. With `after` the
request is carried out first and its answer lost: the order is booked, the client does not know.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, MutableMapping
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from pydantic import BaseModel, ConfigDict, Field
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.fake.market import token_after

_LIMIT_PER_MINUTE = 200
_BEYOND_ALL = "~"

Kind = Literal[
    "status",
    "hang",
    "drop",
    "drop_half",
    "bad_json",
    "headers",
    "repeated_token",
    "endless_empty_pages",
    "endless_same_page",
    "symbol_missing",
    "nan_price",
]


class Fault(BaseModel):
    """One way to fail."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    kind: Kind
    """status: answer `status` and `body`. hang: never answer. drop: reset the connection, drop_half: in the
    middle of the body. bad_json: half of the body as if it were whole. headers: only add `headers`. The
    rest spoil an answer: its page token, one symbol, or one price."""
    path: str = "*"
    """Path of the route, with * for anything."""
    method: str = "*"
    """HTTP method, or * for any."""
    count: Annotated[int, Field(ge=1)] = 1
    """How many requests fail."""
    skip: Annotated[int, Field(ge=0)] = 0
    """How many matching requests pass before."""
    after: bool = False
    """The request is carried out before status, hang and drop take its answer."""
    status: Annotated[int, Field(ge=200, le=599)] = 500
    """Status of the answer, for the kind status."""
    body: str = '{"code": 50010000, "message": "internal server error occurred"}'
    """Body of the answer, for the kind status."""
    headers: dict[str, str] = {}
    """Headers added to, or put in place of, those of the answer."""
    symbol: str | None = None
    """Symbol that is left out or spoilt; none: the first of the answer."""


class Call(NamedTuple):
    """A request that the fake got."""

    method: str
    path: str
    query: Mapping[str, str]


class Faults:
    """What is still to fail, and what was asked; faults are taken in the order given."""

    def __init__(self) -> None:
        self.pending: list[Fault] = []
        self.calls: list[Call] = []

    def put(self, *faults: Fault) -> None:
        """Replaces what is still to fail."""
        self.pending = [fault.model_copy() for fault in faults]

    def next_for(self, call: Call) -> Fault | None:
        """Returns the fault that this request meets, and counts it."""
        self.calls.append(call)
        for fault in self.pending:
            if fault.method in {"*", call.method} and fnmatchcase(call.path, fault.path):
                if fault.skip:
                    fault.skip -= 1
                    return None
                fault.count -= 1
                self.pending = [left for left in self.pending if left.count]
                return fault
        return None


class FaultyWire:
    """ASGI middleware that stands between the service and its clients; routes under /fake/ are spared.

    Args:
        app: The service.
        faults: What fails.
        reset_at: Returns the epoch second at which the request limit is renewed, for the headers. The limit
            is told and not enforced.
    """

    def __init__(self, app: ASGIApp, faults: Faults, reset_at: Callable[[], int]) -> None:
        self.app = app
        self.faults = faults
        self.reset_at = reset_at

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request, or fails to."""
        if scope["type"] != "http" or scope["path"].startswith("/fake/"):
            await self.app(scope, receive, send)
            return
        query = dict(parse_qsl(scope["query_string"].decode(), keep_blank_values=True))
        call = Call(scope["method"], scope["path"], query)
        fault = self.faults.next_for(call)
        answer = _Answer(200, self._limit_headers())
        replaced = fault is not None and fault.kind in {"status", "hang", "drop"}
        if fault is None or not replaced or fault.after:
            await self.app(scope, receive, answer.take)
        if fault is not None:
            if fault.kind == "hang":
                await _gone(receive)
                return
            if fault.kind == "drop":
                await _reset(receive)
                return
            _spoil(answer, fault, len(self.faults.calls))
        half = fault is not None and fault.kind == "drop_half"
        await answer.give(send, cut=half)
        if half:
            await _reset(receive)

    def _limit_headers(self) -> dict[str, str]:
        limit = {"limit": _LIMIT_PER_MINUTE, "remaining": _LIMIT_PER_MINUTE - 1, "reset": self.reset_at()}
        return {f"x-ratelimit-{name}": str(value) for name, value in limit.items()}


class _Answer:
    """An answer held back until it is known what becomes of it."""

    def __init__(self, status: int, headers: MutableMapping[str, str]) -> None:
        self.status, self.headers, self.body = status, headers, b""

    async def take(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers.update((name.decode(), value.decode()) for name, value in message["headers"])
        else:
            self.body += message.get("body", b"")

    async def give(self, send: Send, *, cut: bool) -> None:
        if self.status != 204:
            self.headers["content-length"] = str(len(self.body))
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        await send({"type": "http.response.start", "status": self.status, "headers": headers})
        body = self.body[: len(self.body) // 2] if cut else self.body
        await send({"type": "http.response.body", "body": body, "more_body": cut})


def _spoil(answer: _Answer, fault: Fault, number: int) -> None:
    """Changes `answer` as `fault` says; `number` makes a token unlike those before."""
    if fault.kind == "status":
        answer.status, answer.body = fault.status, fault.body.encode()
        answer.headers["content-type"] = "application/json" if fault.body.startswith("{") else "text/html"
    elif fault.kind == "bad_json":
        answer.body = answer.body[: len(answer.body) // 2]
    elif fault.kind not in {"headers", "drop_half"}:
        page = json.loads(answer.body)
        _spoil_page(page, fault, str(number))
        answer.body = json.dumps(page).encode()  # NaN stays NaN
    answer.headers.update({name.lower(): value for name, value in fault.headers.items()})


def _spoil_page(page: dict[str, Any], fault: Fault, number: str) -> None:
    if fault.kind == "repeated_token":
        page["next_page_token"] = token_after("", "")
    elif fault.kind == "endless_same_page":
        page["next_page_token"] = token_after("", "", number)
    elif fault.kind == "endless_empty_pages":
        page["next_page_token"] = page["next_page_token"] or token_after(_BEYOND_ALL, "", number)
    elif (symbol := fault.symbol or next(iter(page["bars"]), None)) in page["bars"]:
        if fault.kind == "symbol_missing":
            del page["bars"][symbol]
        else:
            page["bars"][symbol][-1]["c"] = float("nan")


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _reset(receive: Receive) -> None:
    """Breaks the connection; ASGI has no message for that, so uvicorn's own transport is taken."""
    await asyncio.sleep(0)
    receive.__self__.transport.abort()  # type: ignore[attr-defined]
    await _gone(receive)
