"""Any policy over a panel to a ledger, by the same step that trains it.

The account holds all symbols of the panel. For each session of the span the policy decides at the close
before it and fills at its open, so the first return of a span is that of its first session.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from data_pipeline.errors import FoldError, StoreError
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from envs.chance import derived, keys_of, uniforms
from envs.contract import Bools, Floats, Ints, Policy, Window, portfolio_state
from envs.costs import Costs, TradeCosts
from envs.limits import Limits, budgets
from envs.market import column, shortable_symbols, step_bars
from envs.portfolio import Book, Fills, opening_book, step

TRADE_COST_KINDS = TradeCosts._fields
COST_KINDS = (*TRADE_COST_KINDS, "borrow", "delisting", "interest")


@dataclass(frozen=True)
class Ledger:
    """What an account did.

    Attributes:
        name: Of the policy.
        initial_cash: USD before the first fill.
        account: One row per session of the fills: session, equity, cash, gross (Σ |weight| after the close), all
            of `COST_KINDS`, dividends, traded (USD each, of that session), margin_call (it closed everything).
        positions: One row per session and symbol: session, symbol, target_position, target_weight (null where
            the position was left alone), weight (after the close), shares, ordered, filled, price (null if
            nothing filled at the open), exited, exit_price (of protective orders; null if none), then USD of
            `COST_KINDS` but interest, and dividends.
    """

    name: str
    initial_cash: float
    account: pl.DataFrame
    positions: pl.DataFrame

    def returns(self) -> Floats:
        """Returns the simple return of each session, `[T]`, net of costs."""
        equity = np.concatenate([[self.initial_cash], self.account["equity"].to_numpy()])
        return np.asarray(equity[1:] / equity[:-1] - 1.0)

    def save(self, folder: Path) -> None:
        """Writes account.parquet, positions.parquet and, last, ledger.json into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, table in (("account", self.account), ("positions", self.positions)):
            scratch = folder / f"{name}.parquet.writing"
            table.write_parquet(scratch)
            scratch.replace(folder / f"{name}.parquet")
        head = {"name": self.name, "initial_cash": self.initial_cash}
        (folder / "ledger.json").write_text(json.dumps(head), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Ledger:
        """Returns the ledger that `save` wrote.

        Raises:
            StoreError: There is none in the folder.
        """
        try:
            head: dict[str, Any] = json.loads((folder / "ledger.json").read_text(encoding="utf-8"))
            tables = (pl.read_parquet(folder / f"{name}.parquet") for name in ("account", "positions"))
            return cls(head["name"], head["initial_cash"], *tables)
        except (OSError, ValueError, KeyError, pl.exceptions.PolarsError) as error:
            raise StoreError(f"{folder}: no readable ledger ({error}); run the backtest again") from error


def window_at(
    length: int, panel: Panel, ready: Bools, t: int, weights: Floats, sessions_held: Ints, limits: Limits
) -> Window:
    """Returns what a policy may know at the close of row `t`.

    Args:
        length: W; t must be at least W - 1.
        panel: The market.
        ready: `panel.ready`, `[T, N]`.
        t: Row of the decision session.
        weights: Of the account after that close, `[N]`.
        sessions_held: Since each position took its present sign, `[N]`.
        limits: Give the budgets.
    """
    rows, fields = slice(t - length + 1, t + 1), panel.fields
    features = panel.features[rows]
    complete = ready[t] & np.isfinite(features).all(axis=(0, 2))
    budget = budgets(ready[t], fields["sigma"][t], limits)
    return Window(
        session=panel.sessions[t].item(),
        symbols=panel.symbols,
        features=features,
        closes=fields["adjusted_close"][rows],
        portfolio=portfolio_state(weights, budget, sessions_held),
        ready=complete,
    )


def backtest(
    policy: Policy,
    panel: Panel,
    span: Span,
    limits: Limits,
    costs: Costs,
    initial_cash: float = 100_000.0,
    seed: int = 0,
) -> Ledger:
    """Returns the ledger of `policy` over the sessions of `span`, starting with cash alone.

    Args:
        policy: Decides.
        panel: The market.
        span: Rows of the sessions that fill.
        limits: Allocation and limits.
        costs: The cost model.
        initial_cash: USD.
        seed: Of random slippage, where `costs` have it.

    Raises:
        FoldError: The span leaves no room for the policy's window before its first session.
    """
    if span.start < policy.window or span.stop > len(panel.sessions):
        raise FoldError(
            f"{policy.name} needs {policy.window} sessions before row {span.start} of {len(panel.sessions)}; "
            "start the span later or give a longer history"
        )
    ready, bars_KNT = panel.ready, panel.bars_NTK.transpose(2, 0, 1)
    shortable = shortable_symbols(panel.symbols, limits.unshortable)
    members, key = np.arange(len(panel.symbols)), keys_of([seed])
    book = opening_book(np.asarray(initial_cash), column(bars_KNT, "close")[:, span.start - 1])
    history: list[tuple[Book, Floats, Fills]] = []
    for t in range(span.start - 1, span.stop - 1):
        window = window_at(policy.window, panel, ready, t, book.weights, book.sessions_held, limits)
        positions = np.where(window.ready, policy.decide(window), 0.0)
        luck = uniforms(derived(key, t * len(members) + members))
        listed = t < panel.last_bar_N
        bars = step_bars(bars_KNT[..., t], bars_KNT[..., t + 1], ready[t], shortable, listed, luck)
        book, fills = step(book, positions, bars, limits, costs)
        history.append((book, positions, fills))
    return _ledger(policy.name, initial_cash, panel, span, history)


def _ledger(
    name: str, initial_cash: float, panel: Panel, span: Span, history: list[tuple[Book, Floats, Fills]]
) -> Ledger:
    books, positions, fills = zip(*history, strict=True)
    cells = {
        "target_position": np.stack(positions),
        "target_weight": np.stack([f.target_weight for f in fills]),
        "weight": np.stack([b.weights for b in books]),
        "shares": np.stack([b.shares for b in books]),
        "ordered": np.stack([f.ordered for f in fills]),
        "filled": np.stack([f.filled for f in fills]),
        "price": np.stack([np.where(f.filled != 0, f.price, np.nan) for f in fills]),
        "exited": np.stack([f.exited for f in fills]),
        "exit_price": np.stack([np.where(f.exited != 0, f.exit_price, np.nan) for f in fills]),
        **{kind: np.stack([getattr(f.costs, kind) for f in fills]) for kind in TRADE_COST_KINDS},
        **{kind: np.stack([getattr(f, kind) for f in fills]) for kind in ("borrow", "delisting", "dividends")},
    }
    sessions = pl.Series("session", panel.sessions[span.start : span.stop]).cast(pl.Date)
    account = pl.DataFrame(
        {
            "session": sessions,
            "equity": np.array([float(b.equity) for b in books]),
            "cash": np.array([float(b.cash) for b in books]),
            "gross": np.abs(cells["weight"]).sum(axis=1),
            **{kind: cells[kind].sum(axis=1) for kind in (*TRADE_COST_KINDS, "borrow", "delisting")},
            "interest": np.array([float(f.interest) for f in fills]),
            "dividends": cells["dividends"].sum(axis=1),
            "traded": np.array([float(f.traded) for f in fills]),
            "margin_call": np.array([bool(f.called) and bool((f.held != 0).any()) for f in fills]),
        }
    )
    count = len(panel.symbols)
    rows: Ints = np.repeat(np.arange(len(sessions)), count)
    table = pl.DataFrame(
        {
            "session": sessions.gather(rows),
            "symbol": list(panel.symbols) * len(sessions),
            **{key: value.reshape(-1) for key, value in cells.items()},
        }
    ).with_columns(pl.col("target_weight", "price", "exit_price").fill_nan(None))
    return Ledger(name, initial_cash, account, table)
