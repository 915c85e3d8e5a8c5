"""The fake's HTTP service."""

from __future__ import annotations

import json
import socket
import sys
from collections.abc import Mapping
from datetime import date
from typing import Annotated, Any, Literal

from fastapi import Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import AwareDatetime, BaseModel

from data_pipeline.errors import LiveError
from serving.fake.answers import (
    account_json,
    asset_id,
    asset_json,
    clock_json,
    day_json,
    order_json,
    position_json,
    trade_json,
)
from serving.fake.broker import OPEN_STATES, FakeBroker, OrderRequest
from serving.fake.faults import Fault, FaultyWire
from serving.fake.market import ActionsQuery, BarsQuery, RefusedError, schedule


class ClockSetting(BaseModel):
    """The body of PUT /fake/clock."""

    now: AwareDatetime


def app(broker: FakeBroker) -> FastAPI:
    """Returns the HTTP service of `broker`.

    Beside Alpaca's routes, PUT /fake/clock with `{"now": "2013-02-28T10:00:00-05:00"}` moves the clock, and
    PUT /fake/faults with a list such as `[{"kind": "status", "status": 504, "path": "/v2/orders",
    "method": "POST", "count": 2, "after": true}]` sets what fails next (see `Fault`); GET shows what is left.
    """
    service = FastAPI(
        title="fake broker",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        dependencies=[Depends(_authorised)],
    )
    service.add_middleware(FaultyWire, faults=broker.faults, reset_at=lambda: int(broker.now.timestamp()) + 60)
    _add_answers_to_errors(service)
    _add_account_routes(service, broker)
    _add_order_routes(service, broker)
    _add_data_routes(service, broker)
    _add_routes_of_the_fake(service, broker)
    return service


def serve(broker: FakeBroker, port: int = 0) -> None:
    """Serves `broker` on 127.0.0.1 until stopped; prints the address as one JSON line when it listens.

    Args:
        broker: The account and market.
        port: 0 takes a free one.

    Raises:
        LiveError: The port is taken.
    """
    import uvicorn  # noqa: PLC0415  (the routes are also served by others)

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
        except OSError as error:
            raise LiveError(f"port {port}: {error.strerror}; give another, or 0 for a free one") from error
        listener.listen(128)
        address = f"http://127.0.0.1:{listener.getsockname()[1]}"
        sys.stdout.write(json.dumps({"url": address}) + "\n")
        sys.stdout.flush()
        config = uvicorn.Config(app(broker), log_level="warning", ws="none", lifespan="off")
        uvicorn.Server(config).run(sockets=[listener])


def _authorised(request: Request) -> None:
    names = ("APCA-API-KEY-ID", "APCA-API-SECRET-KEY")
    if request.url.path.startswith(("/v1/", "/v2/")) and not all(request.headers.get(name) for name in names):
        raise RefusedError(401, None, "forbidden.")


def _add_answers_to_errors(service: FastAPI) -> None:
    @service.exception_handler(RefusedError)
    async def refused(_: Request, error: RefusedError) -> Response:
        return JSONResponse(error.body, error.status)

    @service.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return JSONResponse({"code": 42210000, "message": f"{where}: {first['msg']}"}, 422)


def _add_account_routes(service: FastAPI, broker: FakeBroker) -> None:
    @service.get("/v2/account")
    async def account() -> dict[str, Any]:
        return account_json(broker)

    @service.get("/v2/clock")
    async def clock() -> dict[str, Any]:
        return clock_json(broker)

    @service.get("/v2/calendar")
    async def calendar(start: date = date.min, end: date = date.max) -> list[dict[str, str]]:
        days = schedule().items()
        return [day_json(day, hours) for day, hours in days if start <= day <= end]

    @service.get("/v2/assets/{symbol}")
    async def asset(symbol: str) -> dict[str, Any]:
        found = next((s for s in broker.market.symbols if symbol in {s, asset_id(s)}), None)
        if found is None:
            raise RefusedError(404, 40410000, f"asset not found for {symbol}")
        return asset_json(found)

    @service.get("/v2/positions")
    async def positions() -> list[dict[str, Any]]:
        return [position_json(broker, symbol, lot) for symbol, lot in sorted(broker.lots.items())]


def _add_order_routes(service: FastAPI, broker: FakeBroker) -> None:
    @service.post("/v2/orders")
    async def submit(body: Annotated[dict[str, Any], Body()]) -> dict[str, Any]:
        broker.requests.append(body)
        return order_json(broker.submit(_parsed(body)))

    @service.get("/v2/orders")
    async def orders(
        status: Literal["open", "closed", "all"] = "open",
        limit: Annotated[int, Query(ge=1, le=500)] = 50,
        symbols: str | None = None,
    ) -> list[dict[str, Any]]:
        wanted = None if symbols is None else symbols.split(",")
        found = [
            order
            for order in reversed(broker.orders)
            if (status == "all" or (order.status in OPEN_STATES) == (status == "open"))
            and (wanted is None or order.asked.symbol in wanted)
        ]
        return [order_json(order) for order in found[:limit]]

    @service.get("/v2/orders:by_client_order_id")
    async def by_client_order_id(client_order_id: str) -> dict[str, Any]:
        return order_json(broker.order(lambda o: o.asked.client_order_id == client_order_id, client_order_id))

    @service.get("/v2/orders/{order_id}")
    async def by_id(order_id: str) -> dict[str, Any]:
        return order_json(broker.order(lambda o: o.id == order_id, order_id))

    @service.delete("/v2/orders/{order_id}", status_code=204)
    async def cancel(order_id: str) -> None:
        broker.cancel(broker.order(lambda o: o.id == order_id, order_id))

    @service.delete("/v2/orders", status_code=207)
    async def cancel_all() -> list[dict[str, Any]]:
        open_orders = broker.open_orders()
        for order in open_orders:
            broker.cancel(order)
        return [{"id": order.id, "status": 200} for order in open_orders]


def _add_data_routes(service: FastAPI, broker: FakeBroker) -> None:
    @service.get("/v2/stocks/trades/latest")
    async def latest_trades(symbols: str) -> dict[str, Any]:
        known = [symbol for symbol in symbols.split(",") if symbol in broker.market.symbols]
        return {"trades": {symbol: trade_json(broker, symbol) for symbol in known}}

    @service.get("/v2/stocks/bars")
    async def bars(query: Annotated[BarsQuery, Query()]) -> Response:
        return JSONResponse(broker.market.bars(query, broker.now))

    @service.get("/v1/corporate-actions")
    async def corporate_actions(query: Annotated[ActionsQuery, Query()]) -> Response:
        return JSONResponse(broker.market.corporate_actions(query))


def _add_routes_of_the_fake(service: FastAPI, broker: FakeBroker) -> None:
    @service.put("/fake/clock")
    async def set_clock(setting: ClockSetting) -> dict[str, Any]:
        broker.move_to(setting.now)
        return clock_json(broker)

    @service.put("/fake/faults")
    async def set_faults(faults: list[Fault]) -> list[Fault]:
        broker.faults.put(*faults)
        return broker.faults.pending

    @service.get("/fake/faults")
    async def faults_left() -> list[Fault]:
        return broker.faults.pending


def _parsed(body: Mapping[str, Any]) -> OrderRequest:
    try:
        return OrderRequest.model_validate(body)
    except ValueError as error:
        raise RefusedError(422, 42210000, " ".join(str(error).split())) from error
