"""Reasons to hold: pure functions of what was read; an empty list means go on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from datetime import date, datetime, timedelta

import polars as pl

from envs.limits import Limits
from serving.contract import AccountState, DecisionResponse, ModelInfo
from serving.executor.broker import Account, Clock, Order, Price, Session
from serving.executor.config import ExecutorConfig, unkept
from serving.executor.plan import Intent

_CHECKED_HERE = frozenset(
    {"max_weight", "max_gross", "max_net", "long_only", "unshortable", "no_trade_band", "minimum_trade_usd"}
)
"""Limits that the executor holds a decision or its own orders to; the policy server alone applies the others."""
_WITHOUT_MONEY = frozenset({"dry-run", "paper"})
"""Modes; live trading, once there is such a mode, is not among them."""


def account_reasons(account: Account) -> list[str]:
    """Holds on an account that is not fit to trade."""
    reasons = []
    if account.status != "ACTIVE":
        reasons.append(f"account status is {account.status}, not ACTIVE")
    if account.trading_blocked or account.account_blocked:
        reasons.append("account is blocked from trading")
    if account.equity <= 0:
        reasons.append(f"account equity is {account.equity:.2f} USD")
    return reasons


def window_reasons(clock: Clock, today: Session | None, config: ExecutorConfig) -> list[str]:
    """Holds outside the trading window, by the broker's clock; `today` is None on a day off."""
    if not clock.is_open or today is None:
        return ["market is closed"]
    start = today.opens_at + timedelta(minutes=config.minutes_after_open)
    end = today.closes_at - timedelta(minutes=config.minutes_before_close)
    if start <= clock.timestamp <= end:
        return []
    time = clock.timestamp.astimezone(start.tzinfo)
    return [f"{time:%H:%M} is outside the trading window {start:%H:%M} to {end:%H:%M} New York"]


def skew_reasons(clock: Clock, now: datetime, config: ExecutorConfig) -> list[str]:
    """Holds when the local clock `now` and the broker's differ too much."""
    skew = abs((now - clock.timestamp).total_seconds())
    if skew <= config.max_clock_skew_s:
        return []
    return [f"local and broker clock differ by {skew:.0f} s (at most {config.max_clock_skew_s:g} s)"]


def open_order_reasons(orders: Sequence[Order], ours: Collection[str]) -> list[str]:
    """Holds while an order is open that the present plan (client order ids `ours`) does not know."""
    return [
        f"open order {order.client_order_id} for {order.symbol} is not part of the present plan"
        for order in orders
        if order.client_order_id not in ours
    ]


def position_reasons(positions: Mapping[str, float], symbols: Collection[str]) -> list[str]:
    """Holds on a position that the plan could not handle."""
    reasons = [f"position in {symbol}, which is not traded here" for symbol in positions if symbol not in symbols]
    fractional = [symbol for symbol, shares in positions.items() if shares != int(shares)]
    return reasons + [f"fractional position in {symbol}" for symbol in fractional]


def symbol_reasons(wanted: Collection[str], known: Collection[str]) -> list[str]:
    """Holds when the configured symbols (none: any) are not those of the model."""
    if not wanted or set(wanted) == set(known):
        return []
    return [f"configured symbols {', '.join(sorted(wanted))} are not the model's {', '.join(sorted(known))}"]


def limit_differences(limits: Limits, model: ModelInfo) -> list[str]:
    """Says where the executor's limits are not those the policy was judged with."""
    return [
        f"limits.{name} is {ours} here, the policy was judged with {model.limits[name]}"
        for name, ours in limits.tree().items()
        if name in model.limits and model.limits[name] != ours
    ]


def unkept_reasons(judged: Limits) -> list[str]:
    """Holds on a policy that was judged with limits that this executor cannot keep."""
    return [f"the policy was judged with {reason}; judge and export it without" for reason in unkept(judged)]


def unapplied_reasons(limits: Limits, judged: Limits) -> list[str]:
    """Holds on a limit that was set for the executor and that nobody would apply: the server has another."""
    ours, theirs = limits.tree(), judged.tree()
    return [
        f"limits.{name} is {ours[name]} here, but only the policy server applies it, with {theirs[name]}; "
        "judge and export the policy with it, or leave it out here"
        for name in sorted(limits.model_fields_set - _CHECKED_HERE)
        if ours[name] != theirs[name]
    ]


def no_last_return(before: date) -> str:
    """Says why limits that remember cannot be kept: nobody looked at the account after the close of `before`."""
    return (
        f"journal has no equity of {before}, and the policy's limits need the account's last return; "
        "in paper mode this pass records today's, so that the next session can be decided"
    )


def stops(state: AccountState, judged: Limits) -> list[str]:
    """Says which loss has stopped the account: then all targets are 0."""
    found = []
    if judged.max_drawdown is not None and state.drawdown > judged.max_drawdown:
        found.append(f"stopped: equity is {state.drawdown:.1%} below its highest close (max_drawdown)")
    if judged.max_session_loss is not None and state.session_return < -judged.max_session_loss:
        found.append(f"stopped: the last session returned {state.session_return:.1%} (max_session_loss)")
    return found


def bar_reasons(bars: pl.DataFrame, symbols: Sequence[str], as_of: date) -> list[str]:
    """Holds when a symbol has no bar of the as-of session; nothing is filled forward.

    This holds for stops too. A stop closes what is not ready as well, but an order is only sent on data that is
    whole: a missing bar mostly says that ours is broken, and in a halted symbol no order would fill. The broker's
    own margin rules stay in force meanwhile.
    """
    present = set(bars.filter(pl.col("session") == as_of)["symbol"])
    return [f"no bar of {symbol} for {as_of}" for symbol in symbols if symbol not in present]


def verdict_reasons(decision: DecisionResponse, mode: str) -> list[str]:
    """Holds on a policy that the judge rejected; an override in its bundle counts where no money is at stake."""
    if decision.verdict == "promote" or (decision.override is not None and mode in _WITHOUT_MONEY):
        return []
    return [f"policy {decision.policy_version} was rejected by its judge"]


def override_warnings(decision: DecisionResponse) -> list[str]:
    """Says that the policy is used in spite of its judge, and why."""
    if decision.override is None:
        return []
    return [f"policy {decision.policy_version} was rejected by its judge and is used by override: {decision.override}"]


def price_reasons(prices: Mapping[str, Price], symbols: Sequence[str]) -> list[str]:
    """Holds when a symbol has no price to size its order."""
    return [f"no price of {symbol}" for symbol in symbols if symbol not in prices]


def price_age_reasons(prices: Mapping[str, Price], clock: Clock, config: ExecutorConfig) -> list[str]:
    """Holds on a last trade that is too old by the broker's clock."""
    ages = {symbol: (clock.timestamp - price.time).total_seconds() for symbol, price in prices.items()}
    return [
        f"last trade of {symbol} is {age:.0f} s old (at most {config.max_price_age_s:g} s)"
        for symbol, age in ages.items()
        if age > config.max_price_age_s
    ]


def plan_reasons(intents: Sequence[Intent], config: ExecutorConfig) -> list[str]:
    """Holds on a plan beyond the caps."""
    reasons = []
    if len(intents) > config.max_orders_per_session:
        reasons.append(f"{len(intents)} orders in one session (at most {config.max_orders_per_session})")
    if config.max_order_usd is not None:
        reasons += [
            f"{intent.client_order_id} is {intent.notional_usd:.0f} USD (at most {config.max_order_usd:g})"
            for intent in intents
            if intent.notional_usd > config.max_order_usd
        ]
    return reasons
