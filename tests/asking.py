"""What the executor would ask the policy server after a session, holding what a ledger held."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl

from data_pipeline.panel import Panel
from envs.backtest import Ledger
from envs.limits import Limits
from serving.contract import AccountState, DecisionRequest, Holding, SymbolBars
from serving.executor.past import Past, Traded, account_state


def request_after(
    bars: pl.DataFrame, panel: Panel, ledger: Ledger, t: int, history: int, limits: Limits
) -> DecisionRequest:
    """Returns the request after the close of row `t`; `bars` are those of the panel, `history` sessions are sent."""
    day, first = panel.sessions[t].item(), panel.sessions[t - history + 1].item()
    sent = bars.filter(pl.col("session").is_between(first, day))
    columns = list(SymbolBars.model_fields)
    return DecisionRequest(
        request_id=f"session-{day}",
        as_of_session=day,
        bars={
            symbol: SymbolBars(**{c: rows[c].to_list() for c in columns}) for (symbol,), rows in sent.group_by("symbol")
        },
        portfolio=_holdings(ledger, day),
        account=_state(panel, ledger, day, limits) if limits.remembers else None,
    )


def _holdings(ledger: Ledger, day: date) -> dict[str, Holding]:
    so_far = ledger.positions.filter(pl.col("session") <= day)
    return {
        symbol: Holding(weight=rows["weight"][-1], sessions_held=_sessions_held(np.sign(rows["shares"].to_numpy())))
        for (symbol,), rows in so_far.group_by("symbol", maintain_order=True)
    }


def _sessions_held(signs: np.ndarray) -> int:
    if signs[-1] == 0:
        return 0
    other = np.flatnonzero(signs != signs[-1])
    return len(signs) - 1 - int(other[-1]) if len(other) else len(signs)


def _state(panel: Panel, ledger: Ledger, day: date, limits: Limits) -> AccountState | None:
    filled = ledger.account["session"].to_list()
    first = panel.session_index(filled[0])
    decided = [session.item() for session in panel.sessions[first - 1 : first - 1 + len(filled)]]
    equity = ledger.account["equity"].to_list()
    equities = {decided[0]: ledger.initial_cash, **dict(zip(filled, equity, strict=True))}
    traded = dict(zip(decided, map(Traded, ledger.account["traded"], equity), strict=True))
    known = Past(
        {session: value for session, value in equities.items() if session <= day},
        {session: value for session, value in traded.items() if session < day},
    )
    return account_state(known, day, limits.turnover_per_year)
