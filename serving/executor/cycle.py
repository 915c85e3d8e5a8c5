"""One idempotent pass: look at what is, do the next missing step, and hold on anything unclear.

The work is keyed by the last completed session t: the decision uses bars up to the close of t, and its
orders trade in the session after t.
"""

from __future__ import annotations

import fcntl
import math
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from pathlib import Path
from typing import Literal

import polars as pl
from pydantic import BaseModel, ConfigDict

from data_pipeline.errors import SwingError
from data_pipeline.sources.source import BarSource
from envs.limits import Limits
from serving.contract import AccountState, DecisionRequest, DecisionResponse, Holding, ModelInfo, SymbolBars
from serving.executor import gates
from serving.executor.broker import (
    NEW_YORK,
    Account,
    Broker,
    BrokerError,
    Clock,
    Order,
    Refusal,
    Session,
    last_completed,
)
from serving.executor.config import ExecutorConfig
from serving.executor.journal import Journal
from serving.executor.past import account_state, session_before
from serving.executor.plan import Intent, plan
from serving.executor.policy_client import Hold, PolicyClient

_CALENDAR_DAYS = 14  # no run of closed days is longer
_MARGIN_SESSIONS = 20  # a halted session more or less must not starve the features


class CycleReport(BaseModel):
    """What one pass found and did."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    state: Literal["planned", "done", "already-done", "hold", "locked"] = "hold"
    mode: str
    reasons: list[str] = []
    """Why it held; once done, what went wrong with single orders."""
    warnings: list[str] = []
    session: date | None = None
    """As-of session of the decision."""
    policy_version: str | None = None
    verdict: str | None = None
    weights: dict[str, float] = {}
    """Target weights of the symbols that may trade."""
    left_alone: list[str] = []
    """Symbols whose position stays as it is."""
    orders: list[Intent] = []
    equity: float | None = None


def cycle(
    config: ExecutorConfig,
    broker: Broker,
    policy: PolicyClient,
    journal: Journal,
    source: BarSource,
    *,
    now: datetime,
) -> CycleReport:
    """Returns what was planned, done, or why nothing was.

    Args:
        config: Settings; `config.mode` decides whether orders are sent.
        broker: The account.
        policy: Where decisions come from.
        journal: The record at `config.journal`.
        source: Raw daily bars.
        now: Local time, aware; only compared with the broker's clock.
    """
    report = CycleReport(mode=config.mode)
    with _lock(config.journal) as ours:
        if not ours:
            report.state, report.reasons = "locked", [f"another executor works on {config.journal}"]
            return report
        try:
            _guarded(_Pass(config, broker, policy, journal, source, now, report))
            journal.note(report.state, report.session, "; ".join(report.reasons))
        except sqlite3.Error as error:
            report.state, report.reasons = "hold", [f"journal {config.journal}: {error}"]
    return report


class _HoldError(Exception):
    """Ends the pass; nothing further is sent."""

    def __init__(self, reasons: Sequence[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = list(reasons)


@dataclass(frozen=True)
class _Pass:
    """One pass; `report` gathers what is known so far, so that a hold can say it."""

    config: ExecutorConfig
    broker: Broker
    policy: PolicyClient
    journal: Journal
    source: BarSource
    now: datetime
    report: CycleReport

    @property
    def sends(self) -> bool:
        return self.config.mode == "paper"

    def run(self) -> None:
        account, clock = self.broker.account(), self.broker.clock()
        self.report.equity = account.equity
        today = clock.timestamp.astimezone(NEW_YORK).date()
        sessions = self.broker.sessions(today - timedelta(days=_CALENDAR_DAYS), today)
        completed = last_completed(sessions, clock.timestamp)
        if completed is None:
            raise _HoldError([f"broker's calendar names no completed session in {_CALENDAR_DAYS} days"])
        as_of = self.report.session = completed.day
        if self.sends:
            self._see_equity(as_of, account)
            self._close_earlier(as_of)
            if self._is_done(as_of):
                self.report.state = "already-done"
                return
        _hold_on(gates.account_reasons(account))
        self._check_clock(clock, next((s for s in sessions if s.day == today), None))
        stored = self.sends and self.journal.cycle(as_of) is not None
        ours = [intent.client_order_id for intent in self.journal.intents(as_of)] if stored else []
        _hold_on(gates.open_order_reasons(self.broker.open_orders(), ours))
        if not stored:
            self._plan(as_of, account, clock)
        if self.sends:
            self._execute(as_of)
            self.report.state = "done"
        else:
            self.report.state = "planned"

    def _see_equity(self, as_of: date, account: Account) -> None:
        """Records the equity that limits will remember; a pass outside the trading window is nearest to the close."""
        if account.equity > 0:
            self.journal.see_equity(as_of, account.equity)

    def _is_done(self, as_of: date) -> bool:
        """Returns whether the session is done; tells the report what the journal knows of it."""
        if (known := self.journal.cycle(as_of)) is None:
            return False
        self._tell(known.decision)
        self.report.orders = self.journal.intents(as_of)
        return known.state == "done"

    def _check_clock(self, clock: Clock, today: Session | None) -> None:
        self._hold_or_warn(gates.window_reasons(clock, today, self.config), hold=self.sends)
        skew = gates.skew_reasons(clock, self.now, self.config)
        self._hold_or_warn(skew, hold=self.sends and not self.config.broker_is_loopback)

    def _plan(self, as_of: date, account: Account, clock: Clock) -> None:
        positions = self.broker.positions()
        decision = self._decide(as_of, account, positions)
        self._tell(decision)
        rejected = [] if self.config.allow_rejected else gates.verdict_reasons(decision, self.config.mode)
        self._hold_or_warn(rejected, hold=self.sends)
        symbols = sorted(decision.weights)
        prices = self.broker.latest_prices(symbols) if symbols else {}
        _hold_on(gates.price_reasons(prices, symbols))
        self._hold_or_warn(gates.price_age_reasons(prices, clock, self.config), hold=self.sends)
        intents = plan(
            self.config.strategy,
            as_of,
            decision.weights,
            equity=account.equity,
            prices={symbol: prices[symbol].value for symbol in symbols},
            positions=positions,
            limits=self.config.limits,
        )
        self.report.orders = intents
        _hold_on(gates.plan_reasons(intents, self.config))
        if self.sends:
            self.journal.commit_plan(as_of, decision, account.equity, intents, positions)

    def _decide(self, as_of: date, account: Account, positions: Mapping[str, float]) -> DecisionResponse:
        model = self.policy.model()
        if isinstance(model, Hold):
            raise _HoldError([model.reason])
        judged = Limits.of(model.limits, "the policy server's limits")
        _hold_on(gates.unkept_reasons(judged))
        if self.sends:
            _hold_on(gates.unapplied_reasons(self.config.limits, judged))
        _hold_on(gates.symbol_reasons(self.config.symbols, model.symbols))
        _hold_on(gates.position_reasons(positions, model.symbols))
        bars = _bars(self.source, model, as_of)
        _hold_on(gates.bar_reasons(bars, model.symbols, as_of))
        self.report.warnings += gates.limit_differences(self.config.limits, model)
        closes = dict(bars.filter(pl.col("session") == as_of).select("symbol", "close").iter_rows())
        held = self.journal.sessions_held(positions, as_of)
        request = DecisionRequest(
            request_id=f"{self.config.strategy}.{as_of:%Y%m%d}",
            as_of_session=as_of,
            bars=_wire_bars(bars, model),
            portfolio=_holdings(closes, account.cash, positions, held),
            account=self._state(as_of, account, judged) if model.needs_account else None,
        )
        answer = self.policy.decide(request, model, self.config.limits)
        if isinstance(answer, Hold):
            raise _HoldError([answer.reason])
        return answer

    def _state(self, as_of: date, account: Account, judged: Limits) -> AccountState:
        past = self.journal.past()
        seen = past._replace(equities={as_of: account.equity, **past.equities})
        state = account_state(seen, as_of, judged.turnover_per_year)
        if state is None:
            raise _HoldError([gates.no_last_return(session_before(as_of))])
        self.report.warnings += gates.stops(state, judged)
        return state

    def _execute(self, as_of: date) -> None:
        """Sends the stored plan: what reduces first, what increases only if all of that filled."""
        intents = self.journal.intents(as_of)
        reducing = [intent for intent in intents if intent.reduces]
        increasing = [intent for intent in intents if not intent.reduces]
        reduced = self._run_leg(reducing)
        if all(intent.state == "filled" for intent in reduced):
            self._run_leg(increasing)
        else:
            for intent in increasing:
                if intent.state == "planned":
                    self._record(intent, state="skipped", note="a reducing order did not fill")
        self._finish(as_of)
        self.report.reasons = [_shortfall(intent) for intent in self.report.orders if intent.state != "filled"]

    def _run_leg(self, intents: Sequence[Intent]) -> list[Intent]:
        """Sends what was not sent, and returns the orders once all are terminal; else holds."""
        placed = [intent if intent.terminal else self._place(intent) for intent in intents]
        settled = self._settle(placed)
        for intent in settled:
            if not intent.terminal and (order := self.broker.order(intent.client_order_id)) is not None:
                self.broker.cancel(order.id)
        settled = self._settle(settled)
        _hold_on([f"order {i.client_order_id} is still {i.state}" for i in settled if not i.terminal])
        return settled

    def _place(self, intent: Intent) -> Intent:
        """Sends an order, unless the broker has it already from a pass that did not learn of it."""
        known = self.broker.order(intent.client_order_id) if intent.state != "planned" else None
        if known is not None:
            return self._follow(intent, known)
        intent = self._record(intent, state="submitting")
        outcome = self.broker.submit(intent)
        if isinstance(outcome, Refusal):
            return self._record(intent, state="refused", note=outcome.reason)
        if outcome is None:
            raise _HoldError([f"order {intent.client_order_id} was sent, but the broker does not know it yet"])
        return self._follow(intent, outcome)

    def _settle(self, intents: Sequence[Intent]) -> list[Intent]:
        """Returns the orders as they stand once all are terminal or the time is up."""
        deadline = time.monotonic() + self.config.settle_timeout_s
        current = list(intents)
        while True:
            current = [intent if intent.terminal else self._look(intent) for intent in current]
            if all(intent.terminal for intent in current) or time.monotonic() > deadline:
                return current
            time.sleep(self.config.poll_s)

    def _look(self, intent: Intent) -> Intent:
        order = self.broker.order(intent.client_order_id)
        return intent if order is None else self._follow(intent, order)

    def _close_earlier(self, as_of: date) -> None:
        """Ends the plans of earlier sessions: what was not sent by now never will be."""
        for session in self.journal.unfinished():
            if session >= as_of:
                continue
            for intent in self.journal.intents(session):
                if intent.terminal:
                    continue
                order = self.broker.order(intent.client_order_id) if intent.state != "planned" else None
                if order is None:
                    self._record(intent, state="lapsed", note="its session was over")
                elif not self._follow(intent, order).terminal:
                    self.broker.cancel(order.id)
                    raise _HoldError([f"order {intent.client_order_id} of an earlier session is {order.status}"])
            self._finish(session)

    def _finish(self, session: date) -> None:
        self.journal.finish(session)
        self.report.orders = self.journal.intents(session)

    def _follow(self, intent: Intent, order: Order) -> Intent:
        return self._record(intent, state=order.status, filled=order.filled_qty, fill_price=order.filled_avg_price)

    def _record(self, intent: Intent, **changes: object) -> Intent:
        changed = intent.model_copy(update=changes)
        if changed != intent:
            self.journal.update(changed)
        return changed

    def _tell(self, decision: DecisionResponse) -> None:
        self.report.policy_version = decision.policy_version
        self.report.verdict = decision.verdict
        self.report.warnings += gates.override_warnings(decision)
        self.report.weights, self.report.left_alone = decision.weights, decision.left_alone

    def _hold_or_warn(self, reasons: list[str], *, hold: bool) -> None:
        if hold:
            _hold_on(reasons)
        self.report.warnings += reasons


def _guarded(work: _Pass) -> None:
    try:
        work.run()
    except _HoldError as held:
        work.report.reasons = held.reasons
    except (BrokerError, SwingError) as error:
        work.report.reasons = [str(error)]


def _hold_on(reasons: list[str]) -> None:
    if reasons:
        raise _HoldError(reasons)


def _shortfall(intent: Intent) -> str:
    filled = f"{intent.filled:g} of {intent.shares} shares filled"
    return f"{intent.client_order_id} {intent.state}, {filled}" + (f": {intent.note}" if intent.note else "")


@contextmanager
def _lock(journal: Path) -> Iterator[bool]:
    """Yields whether this process alone works on `journal`; the system frees the lock if we die."""
    journal.parent.mkdir(parents=True, exist_ok=True)
    with journal.with_suffix(".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


def _bars(source: BarSource, model: ModelInfo, as_of: date) -> pl.DataFrame:
    """Returns the last bars of each symbol up to and including `as_of`, some more than the model asks."""
    wanted = model.history_sessions + _MARGIN_SESSIONS
    start = as_of - timedelta(days=math.ceil(wanted * 1.5) + _CALENDAR_DAYS)
    bars = source.fetch(model.symbols, start, as_of)
    return bars.group_by("symbol", maintain_order=True).tail(wanted)


def _wire_bars(bars: pl.DataFrame, model: ModelInfo) -> dict[str, SymbolBars]:
    columns = list(SymbolBars.model_fields)
    return {
        symbol: SymbolBars.model_validate(
            bars.filter(pl.col("symbol") == symbol).select(columns).to_dict(as_series=False)
        )
        for symbol in model.symbols
    }


def _holdings(
    closes: Mapping[str, float], cash: float, positions: Mapping[str, float], held: Mapping[str, int]
) -> dict[str, Holding]:
    """Returns what is held, valued at the closes of the as-of session, as the simulation values it."""
    values = {symbol: shares * closes[symbol] for symbol, shares in positions.items()}
    equity = cash + sum(values.values())
    return {symbol: Holding(weight=value / equity, sessions_held=held[symbol]) for symbol, value in values.items()}
