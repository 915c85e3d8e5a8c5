"""Alpaca's corporate actions as splits and dividends of a bars table.

Assumed, as Alpaca does not say: a dividend is per share as of its ex-date, so after a split of the same
day; a cash dividend without a currency is in USD.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import date
from itertools import groupby
from typing import Annotated, Any, NamedTuple

import polars as pl
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_pipeline.errors import BarsError

Rate = Annotated[float, Field(strict=True, allow_inf_nan=False, gt=0)]


class Action(NamedTuple):
    """What one action does to a share held before its ex-date: shares it becomes, and USD paid on each of these."""

    symbol: str
    ex_date: date
    split: float = 1.0
    dividend: float = 0.0


class _Row(BaseModel):
    model_config = ConfigDict(extra="ignore")

    id: str
    symbol: str
    ex_date: date


class _Split(_Row):
    new_rate: Rate
    old_rate: Rate

    def action(self) -> Action | None:
        return Action(self.symbol, self.ex_date, split=self.new_rate / self.old_rate)


class _StockDividend(_Row):
    rate: Rate

    def action(self) -> Action | None:
        return Action(self.symbol, self.ex_date, split=1.0 + self.rate)


class _CashDividend(_Row):
    rate: Rate
    currency: str = ""

    def action(self) -> Action | None:
        if self.currency not in {"", "USD"}:
            return None
        return Action(self.symbol, self.ex_date, dividend=self.rate)


_EXPRESSED: Mapping[str, type[_Split | _StockDividend | _CashDividend]] = {
    "forward_splits": _Split,
    "reverse_splits": _Split,
    "stock_dividends": _StockDividend,
    "cash_dividends": _CashDividend,
}


def read_actions(
    page: Mapping[str, Any], symbols: Sequence[str], first: date, last: date
) -> tuple[dict[str, Action], list[str]]:
    """Returns the actions of a page with an ex-date from `first` to `last`: by id, and those bars cannot express.

    The latter are named by kind, symbol and date: spin-offs, mergers, name changes, unit splits, payments in
    another currency, and any kind that Alpaca adds.

    Raises:
        BarsError: The page or an action cannot be read.
    """
    kinds = page.get("corporate_actions")
    if not isinstance(kinds, dict) or not all(isinstance(rows, list) for rows in kinds.values()):
        raise BarsError("Alpaca: an answer without readable corporate_actions; run it again later")
    expressed: dict[str, Action] = {}
    others: list[str] = []
    for kind, rows in kinds.items():
        for row in rows:
            model = _EXPRESSED.get(kind)
            action = None if model is None else (read := _parsed(model, kind, row)).action()
            if action is None:
                others += _named(kind, row, symbols, first, last)
            elif action.symbol in symbols and first <= action.ex_date <= last:
                expressed[read.id] = action
    return expressed, others


def with_actions(bars: pl.DataFrame, actions: Iterable[Action]) -> pl.DataFrame:
    """Returns daily `bars` with split and dividend.

    An action stands on the symbol's first bar from its ex-date on. One before the symbol's first bar
    concerns none and is left out; so is one after its last bar.
    """
    sessions = {key[0]: rows["session"].to_list() for key, rows in bars.partition_by("symbol", as_dict=True).items()}
    placed: dict[tuple[str, date], list[Action]] = {}
    for action in actions:
        days = sessions.get(action.symbol, [])
        row = bisect.bisect_left(days, action.ex_date)
        if row < len(days) and action.ex_date >= days[0]:
            placed.setdefault((action.symbol, days[row]), []).append(action)
    schema = {"symbol": pl.String, "session": pl.Date, "split": pl.Float64, "dividend": pl.Float64}
    table = [(*place, *_together(there)) for place, there in placed.items()]
    joined = bars.join(
        pl.DataFrame(table, schema, orient="row"), on=["symbol", "session"], how="left", maintain_order="left"
    )
    return joined.with_columns(pl.col("split").fill_null(1.0), pl.col("dividend").fill_null(0.0))


def _together(actions: Iterable[Action]) -> tuple[float, float]:
    """Returns one split and the dividend per share after it."""
    split, dividend = 1.0, 0.0
    for _, same_day in groupby(sorted(actions, key=lambda a: a.ex_date), key=lambda a: a.ex_date):
        there = list(same_day)
        factor = math.prod(action.split for action in there)
        dividend = dividend / factor + sum(action.dividend for action in there)
        split *= factor
    return split, dividend


def _parsed(model: type[_Split | _StockDividend | _CashDividend], kind: str, row: Any) -> Any:
    try:
        return model.model_validate(row)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        names = row if isinstance(row, dict) else {}
        where = f"{names.get('symbol')} {names.get('ex_date')}: {'.'.join(map(str, first['loc']))}"
        raise BarsError(f"Alpaca: {kind} of {where}: {first['msg']} ({first['input']!r:.40})") from error


def _named(kind: str, row: Any, symbols: Sequence[str], first: date, last: date) -> list[str]:
    """Returns "kind symbol date" if the action lies in the span and concerns one of `symbols`."""
    if not isinstance(row, dict):
        raise BarsError(f"Alpaca: {kind} holds {row!r:.40}, not an action; run it again later")
    day = next((str(row[key]) for key in ("ex_date", "effective_date", "process_date") if row.get(key)), "undated")
    concerned = sorted({value for key, value in row.items() if key.endswith("symbol") and value in symbols})
    inside = day == "undated" or str(first) <= day <= str(last)
    return [f"{kind} {symbol} {day}" for symbol in concerned if inside]
