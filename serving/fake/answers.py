"""The account, orders, positions and prices as Alpaca's JSON."""

from __future__ import annotations

import uuid
from datetime import UTC, date, datetime, timedelta
from typing import Any

from serving.fake.broker import MARGIN, BookedOrder, FakeBroker, Lot, dollars
from serving.fake.market import NAMES, Hours, schedule


def account_json(broker: FakeBroker) -> dict[str, Any]:
    """Returns the answer to GET /v2/account."""
    values = {symbol: lot.shares * broker.price(symbol) for symbol, lot in broker.lots.items()}
    long, short = (sum(v for v in values.values() if v * sign > 0) for sign in (1, -1))
    margin = (long - short) / MARGIN
    return {
        "id": str(uuid.uuid5(NAMES, "account")),
        "account_number": "PAFAKE000001",
        "status": "ACTIVE",
        "currency": "USD",
        "cash": dollars(broker.cash),
        "equity": dollars(broker.equity),
        "last_equity": dollars(broker.equity),
        "portfolio_value": dollars(broker.equity),
        "buying_power": dollars(broker.buying_power),
        "regt_buying_power": dollars(broker.buying_power),
        "non_marginable_buying_power": dollars(max(0.0, broker.cash)),
        "multiplier": f"{MARGIN:g}",
        "long_market_value": dollars(long),
        "short_market_value": dollars(short),
        "position_market_value": dollars(long - short),
        "initial_margin": dollars(margin),
        "maintenance_margin": dollars(margin),
        "last_maintenance_margin": dollars(margin),
        "sma": dollars(broker.equity),
        "accrued_fees": "0",
        "created_at": "2000-01-03T14:30:00Z",
        "trading_blocked": False,
        "transfers_blocked": False,
        "account_blocked": False,
        "trade_suspended_by_user": False,
        "shorting_enabled": True,
    }


def clock_json(broker: FakeBroker) -> dict[str, Any]:
    """Returns the answer to GET /v2/clock."""
    bells = schedule().values()
    return {
        "timestamp": broker.now.isoformat(),
        "is_open": broker.is_open,
        "next_open": min(bell.open for bell in bells if bell.open > broker.now).isoformat(),
        "next_close": min(bell.close for bell in bells if bell.close > broker.now).isoformat(),
    }


def day_json(day: date, hours: Hours) -> dict[str, str]:
    """Returns one exchange day of GET /v2/calendar."""
    return {
        "date": day.isoformat(),
        "open": hours.open.strftime("%H:%M"),
        "close": hours.close.strftime("%H:%M"),
        "session_open": "0400",
        "session_close": "2000",
        "settlement_date": (day + timedelta(days=1)).isoformat(),
    }


def asset_json(symbol: str) -> dict[str, Any]:
    """Returns the asset of `symbol`."""
    return {
        "id": asset_id(symbol),
        "class": "us_equity",
        "exchange": "NASDAQ",
        "symbol": symbol,
        "name": symbol,
        "status": "active",
        "tradable": True,
        "marginable": True,
        "shortable": True,
        "easy_to_borrow": True,
        "borrow_status": "easy_to_borrow",
        "fractionable": False,
        "attributes": [],
    }


def position_json(broker: FakeBroker, symbol: str, lot: Lot) -> dict[str, Any]:
    """Returns one position."""
    price = broker.price(symbol)
    before = broker.close_before(symbol)
    value, cost = lot.shares * price, lot.shares * lot.price
    reserved = sum(abs(o.signed) for o in broker.open_orders() if o.asked.symbol == symbol)
    intraday = lot.shares * (price - before)
    return {
        "asset_id": asset_id(symbol),
        "symbol": symbol,
        "exchange": "NASDAQ",
        "asset_class": "us_equity",
        "asset_marginable": True,
        "avg_entry_price": str(lot.price),
        "qty": f"{lot.shares:g}",
        "qty_available": f"{max(0.0, abs(lot.shares) - reserved):g}",
        "side": "long" if lot.shares > 0 else "short",
        "market_value": dollars(value),
        "cost_basis": dollars(cost),
        "unrealized_pl": dollars(value - cost),
        "unrealized_plpc": str((value - cost) / abs(cost)),
        "unrealized_intraday_pl": dollars(intraday),
        "unrealized_intraday_plpc": str(intraday / abs(lot.shares * before)),
        "current_price": str(price),
        "lastday_price": str(before),
        "change_today": str(price / before - 1),
    }


def order_json(order: BookedOrder) -> dict[str, Any]:
    """Returns one order."""
    asked, filled = order.asked, order.status == "filled"
    ended = {
        status: _stamp(order.ended_at) if order.status == status else None
        for status in ("filled", "expired", "canceled")
    }
    return {
        "id": order.id,
        "client_order_id": asked.client_order_id,
        "created_at": _stamp(order.at),
        "updated_at": _stamp(order.ended_at or order.at),
        "submitted_at": _stamp(order.at),
        **{f"{status}_at": moment for status, moment in ended.items()},
        "expires_at": _stamp(order.expires_at),
        "failed_at": None,
        "replaced_at": None,
        "replaced_by": None,
        "replaces": None,
        "asset_id": asset_id(asked.symbol),
        "symbol": asked.symbol,
        "asset_class": "us_equity",
        "notional": None,
        "qty": str(int(asked.qty)),
        "filled_qty": str(int(asked.qty)) if filled else "0",
        "filled_avg_price": str(order.fill_price) if filled else None,
        "order_class": asked.order_class,
        "order_type": asked.type,
        "type": asked.type,
        "side": asked.side,
        "position_intent": order.intent,
        "time_in_force": asked.time_in_force,
        "limit_price": None if asked.limit_price is None else str(asked.limit_price),
        "stop_price": None,
        "status": order.status,
        "extended_hours": asked.extended_hours,
        "legs": None,
        "trail_percent": None,
        "trail_price": None,
        "hwm": None,
        "subtag": None,
        "source": None,
    }


def trade_json(broker: FakeBroker, symbol: str) -> dict[str, Any]:
    """Returns the last trade of `symbol`."""
    last_bell = max(hours.close for hours in schedule().values() if hours.open <= broker.now)
    moment = min(broker.now, last_bell)
    return {"t": _stamp(moment), "x": "Q", "p": broker.price(symbol), "s": 100, "c": ["@"], "i": 1, "z": "C"}


def asset_id(symbol: str) -> str:
    """Returns the id of the asset of `symbol`, which is always the same."""
    return str(uuid.uuid5(NAMES, symbol))


def _stamp(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
