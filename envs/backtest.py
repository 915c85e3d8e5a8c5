"""Any policy over a panel to a ledger, by the same step that trains it.

The account holds all symbols of the panel. For each session of the span the policy decides at the close
before it and fills at its open, so the first return of a span is that of its first session.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from data_pipeline.errors import FoldError
from data_pipeline.folds import Span
from data_pipeline.panel import Panel
from envs.contract import Bools, Floats, Ints, Policy, Window, portfolio_state
from envs.costs import Costs
from envs.limits import Limits, sleeve_budget
from envs.market import gather_bars
from envs.portfolio import Book, Fills, opening_book, step

COST_KINDS = ("commission", "spread", "impact", "borrow")


@dataclass(frozen=True)
class Ledger:
    """What an account did.

    Attributes:
        name: Of the policy.
        initial_cash: USD before the first fill.
        account: One row per session of the fills: session, equity, cash, gross (Σ |weight| after the
            close), commission, spread, impact, borrow, dividends, traded (USD each, of that session).
        positions: One row per session and symbol: session, symbol, target_position, target_weight, weight
            (after the close), shares, ordered, filled, price (null if nothing filled), commission, spread,
            impact, borrow, dividends (USD).
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
        """Writes account.parquet and positions.parquet into `folder`."""
        folder.mkdir(parents=True, exist_ok=True)
        self.account.write_parquet(folder / "account.parquet")
        self.positions.write_parquet(folder / "positions.parquet")


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
        limits: Gives the sleeve budget.
    """
    rows = slice(t - length + 1, t + 1)
    features = panel.features[rows]
    complete = ready[t] & np.isfinite(features).all(axis=(0, 2))
    budget = sleeve_budget(ready[t], limits)
    return Window(
        session=panel.sessions[t].item(),
        symbols=panel.symbols,
        features=features,
        closes=panel.fields["adjusted_close"][rows],
        portfolio=portfolio_state(weights, budget, sessions_held),
        ready=complete,
    )


def backtest(
    policy: Policy, panel: Panel, span: Span, limits: Limits, costs: Costs, initial_cash: float = 100_000.0
) -> Ledger:
    """Returns the ledger of `policy` over the sessions of `span`, starting with cash alone.

    Raises:
        FoldError: The span leaves no room for the policy's window before its first session.
    """
    if span.start < policy.window or span.stop > len(panel.sessions):
        raise FoldError(
            f"{policy.name} needs {policy.window} sessions before row {span.start} of {len(panel.sessions)}; "
            "start the span later or give a longer history"
        )
    ready, columns = panel.ready, np.arange(len(panel.symbols))
    book = opening_book(np.asarray(initial_cash), panel.fields["close"][span.start - 1])
    history: list[tuple[Book, Floats, Fills]] = []
    for t in range(span.start - 1, span.stop - 1):
        window = window_at(policy.window, panel, ready, t, book.weights, book.sessions_held, limits)
        positions = np.where(window.ready, policy.decide(window), 0.0)
        bars = gather_bars(panel, ready, np.asarray(t), columns)
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
        "price": np.stack([f.price for f in fills]),
        **{kind: np.stack([getattr(f.costs, kind) for f in fills]) for kind in ("commission", "spread", "impact")},
        "borrow": np.stack([f.borrow for f in fills]),
        "dividends": np.stack([f.dividends for f in fills]),
    }
    sessions = pl.Series("session", panel.sessions[span.start : span.stop]).cast(pl.Date)
    account = pl.DataFrame(
        {
            "session": sessions,
            "equity": np.array([float(b.equity) for b in books]),
            "cash": np.array([float(b.cash) for b in books]),
            "gross": np.abs(cells["weight"]).sum(axis=1),
            **{kind: cells[kind].sum(axis=1) for kind in (*COST_KINDS, "dividends")},
            "traded": np.nansum(np.abs(cells["filled"]) * cells["price"], axis=1),
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
    ).with_columns(pl.col("price").fill_nan(None))
    return Ledger(name, initial_cash, account, table)
