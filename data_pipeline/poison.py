"""Bars whose future was altered, and what panels that are built of them say differently; see `data_pipeline.audit`.

Altered bars are wild but fit for use: positive prices, high and low that bracket open and close, dividends
below the price. The garbage of a bar does not depend on which others are altered.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import date, datetime
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import polars as pl
import polars.selectors as cs

from data_pipeline.errors import BarsError, ConfigError
from data_pipeline.panel import Panel
from data_pipeline.schema import NO_ACTION, PRICES

Build = Callable[[pl.DataFrame, pl.DataFrame | None], Panel]
Mask = npt.NDArray[np.bool_]
Array = npt.NDArray[Any]
Kind = Literal["garbage", "drop", "gaps", "actions", "no actions", "garbage without actions"]
AFTER_THE_OPEN = ("high", "low", "close", "volume")
"""Daily values of a session that its open does not tell; `intraday` stands for its intraday bars."""
_VALUES: dict[Kind, tuple[str, ...]] = {
    "garbage": (*PRICES, "volume", *NO_ACTION),
    "actions": tuple(NO_ACTION),
    "no actions": (),
    "garbage without actions": (*PRICES, "volume"),
}
_WILD = cs.starts_with("wild_")
_ROWS_ABREAST = 64
_SILENT_SHARE = 0.05  # of altered bars: a halt may be what leaks


class Poison(NamedTuple):
    """Which bars are altered, and how.

    Attributes:
        after: Bars of later sessions are altered.
        kind: garbage: every value; drop: all are missing; gaps: half of them are, of half of the symbols;
            actions: splits and dividends only; no actions: there are neither; garbage without actions: every
            other value besides.
        until: Last session that gets garbage or is dropped; None: all do.
        spared: Symbol that is left alone.
        table: Which table is altered.
        instant: Intraday bars are altered if they end later, whatever their session.
        own: Values of the session `after` itself that are altered too, of `AFTER_THE_OPEN` and "intraday".
    """

    after: date
    kind: Kind = "garbage"
    until: date | None = None
    spared: str | None = None
    table: Literal["both", "day", "intraday"] = "both"
    instant: datetime | None = None
    own: tuple[str, ...] = ()


class Poisonable:
    """Daily bars, and intraday ones if there are any, with garbage at hand for each."""

    def __init__(self, day: pl.DataFrame, intraday: pl.DataFrame | None, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.day, self.intraday = day, intraday
        self._wild_day = day.hstack(_wild(day, rng))
        self._wild_intraday = None if intraday is None else intraday.hstack(_wild(intraday, rng))

    @property
    def rows(self) -> int:
        """Bars of both tables."""
        return self.day.height + (0 if self.intraday is None else self.intraday.height)

    def altered(self, poison: Poison) -> tuple[pl.DataFrame, pl.DataFrame | None]:
        """Returns both tables with the bars altered that `poison` names."""
        day, intraday = self._wild_day, self._wild_intraday
        if poison.table != "intraday":
            day = _altered_day(day, poison)
        if poison.table != "day" and intraday is not None:
            intraday = _altered_intraday(intraday, poison)
        if poison.kind == "gaps" and intraday is not None:
            intraday = intraday.join(day, on=["symbol", "session"], how="semi", maintain_order="left")
        return day.drop(_WILD), None if intraday is None else intraday.drop(_WILD)


def _altered_day(table: pl.DataFrame, poison: Poison) -> pl.DataFrame:
    later = _later(poison)
    if poison.kind in ("drop", "gaps"):
        return table.filter(~later if poison.kind == "drop" else ~(later & pl.col("wild_gap")))
    changes = {name: _where(later, f"wild_{name}", name) for name in _VALUES[poison.kind]}
    if poison.kind in ("no actions", "garbage without actions"):
        ever = _later(poison._replace(until=None))
        changes |= {name: _where(ever, pl.lit(none), name) for name, none in NO_ACTION.items()}
    now = pl.col("session") == poison.after
    own = {name: _where(now, _OWN[name], name) for name in poison.own if name in _OWN}
    return table.with_columns(**changes).with_columns(**own)


def _altered_intraday(table: pl.DataFrame, poison: Poison) -> pl.DataFrame:
    later = _later(poison) if poison.instant is None else pl.col("end") > poison.instant
    if "intraday" in poison.own:
        later |= pl.col("session") == poison.after
    if poison.kind in ("drop", "gaps"):
        return table.filter(~later) if poison.kind == "drop" else table
    names = (name for name in _VALUES[poison.kind] if name not in NO_ACTION)
    return table.with_columns(**{name: _where(later, f"wild_{name}", name) for name in names})


# The rest of a session as it might have been, between the same limits or beyond them.
_OWN = {
    "high": pl.col("high") * 1.37,
    "low": pl.col("low") * 0.71,
    "close": pl.col("low") + 0.31 * (pl.col("high") - pl.col("low")),
    "volume": pl.col("volume") * 1.9 + 1000.0,
}


def _later(poison: Poison) -> pl.Expr:
    later = pl.col("session") > poison.after
    if poison.until is not None:
        later &= pl.col("session") <= poison.until
    if poison.spared is not None:
        later &= pl.col("symbol") != poison.spared
    return later


def _where(mask: pl.Expr, value: str | pl.Expr, name: str) -> pl.Expr:
    return pl.when(mask).then(value).otherwise(name)


def _wild(table: pl.DataFrame, rng: np.random.Generator) -> pl.DataFrame:
    """Returns garbage for every row of a table, column by column.

    Each symbol has a level of its own, so that an order of the symbols does not survive.
    """
    n = table.height
    symbol = table["symbol"].rle_id().to_numpy()
    count = int(symbol[-1]) + 1
    price, traded = np.exp(rng.normal(scale=(1.0, 3.0), size=(count, 2)))[symbol].T
    gappy = (rng.permutation(count) < (count + 1) // 2)[symbol]
    first, last = (table[name].to_numpy() * price * rng.uniform(0.2, 5.0, n) for name in ("open", "close"))
    volume = (table["volume"].to_numpy() + 1e4) * traded * rng.uniform(0.1, 10.0, n)
    values = {
        "open": first,
        "high": np.maximum(first, last) * rng.uniform(1.0, 1.5, n),
        "low": np.minimum(first, last) * rng.uniform(0.6, 1.0, n),
        "close": last,
        "volume": np.where(rng.random(n) < _SILENT_SHARE, 0.0, volume),
        "gap": gappy & (rng.random(n) < 0.5),
    }
    if "split" in table.columns:
        values["split"] = table["split"].to_numpy() * rng.choice([0.5, 2.0], n)
        follows = table.select(pl.col("symbol") == pl.col("symbol").shift(1, fill_value="")).to_series().to_numpy()
        # Below the price of the session before, altered or not.
        past = np.minimum(np.roll(last, 1), np.roll(table["close"].to_numpy(), 1))
        values["dividend"] = follows * rng.uniform(0.001, 0.1, n) * past / values["split"]
    return pl.DataFrame({f"wild_{name}": column for name, column in values.items()})


class Moved(NamedTuple):
    """Cells of one column that differ between two panels.

    Attributes:
        row: Of the earliest cell.
        symbol: Of the earliest cell.
        before: Its value in the first panel.
        after: Its value in the second.
        who: Symbols of which any cell differs, `[N]`.
        now: Symbols of which the newest cell differs, `[N]`.
    """

    row: int
    symbol: int
    before: float | None
    after: float | None
    who: Mask
    now: Mask


class Difference(NamedTuple):
    """One column of two panels, `[rows, N]` each; NaN where the second has no such cell."""

    column: str
    cells: Mask
    before: Array
    after: Array

    def moved(self) -> Moved:
        """Returns the summary of the cells that differ."""
        row, symbol = np.argwhere(self.cells)[0].tolist()
        values = (float(values[row, symbol]) for values in (self.before, self.after))
        before, after = (value if np.isfinite(value) else None for value in values)
        return Moved(row, symbol, before, after, np.asarray(self.cells.any(axis=0)), self.cells[-1].copy())


class Bench:
    """Builds panels of altered bars and compares what they say about the past."""

    def __init__(self, build: Build, bars: Poisonable) -> None:
        self.bars, self._build = bars, build
        self.truth = build(bars.day, bars.intraday)
        self.columns = columns_of(self.truth)
        self.builds, self.cells_compared = 1, 0
        self.refusals: dict[Poison, Exception] = {}
        self._moved: dict[tuple[int, Poison, Poison | None], dict[str, Moved]] = {}
        twice = sorted({name for name in self.columns if self.columns.count(name) > 1})
        if twice:
            raise ConfigError(f"{', '.join(twice)}: a feature is named like another column of the panel; rename it")
        if len(self.truth.sessions) < 3:
            raise BarsError(f"{len(self.truth.sessions)} sessions are too few to audit; give at least 3")

    def day(self, row: int) -> date:
        """Returns the session of a row."""
        day: date = self.truth.sessions[row].item()
        return day

    def panel(self, poison: Poison) -> Panel | None:
        """Returns the panel of altered bars, None where the pipeline refuses them."""
        self.builds += 1
        try:
            return self._build(*self.bars.altered(poison))
        except Exception as error:  # whatever someone's code makes of bars that it did not expect
            self.refusals[poison] = error
            return None

    def unstable(self) -> Iterator[Difference]:
        """Yields the columns that differ when the same bars are built again."""
        self.builds += 1
        again = self._build(self.bars.day, self.bars.intraday)
        yield from self.differences(self.truth, again, len(self.truth.sessions))

    def notes(self) -> Iterator[str]:
        """Yields what the pipeline refused."""
        if self.refusals:
            poison, error = next(iter(self.refusals.items()))
            yield f"{len(self.refusals)} builds refused, such as {poison.kind!r} after {poison.after}: {error}"

    def moved(self, row: int, poison: Poison, against: Poison | None = None) -> dict[str, Moved]:
        """Returns what differs up to `row` from the true panel, or from that of another alteration."""
        key = (row, poison, against)
        if key not in self._moved:
            one = self.truth if against is None else self.panel(against)
            other = self.panel(poison)
            found = () if one is None or other is None else self.differences(one, other, row + 1)
            self._moved[key] = {difference.column: difference.moved() for difference in found}
        return self._moved[key]

    def differences(self, one: Panel, other: Panel, rows: int) -> Iterator[Difference]:
        """Yields the columns that differ in the first `rows` sessions, where both panels have them.

        The ready run follows from the others, so it is named only where it alone differs.
        """
        here, there = overlap(one, other, rows)
        same = isinstance(here, slice) and _same_features(one, other, rows)
        theirs, alone = columns_of(other), one.feature_names == other.feature_names
        for name in (name for name in columns_of(one) if name in theirs):
            a, b = column_of(one, name), column_of(other, name)
            self.cells_compared += rows * a.shape[1]
            if (same and name in one.feature_names) or (name == "ready_run" and not alone):
                continue
            differs = differing(a[here], b[there])
            if differs.any():
                alone = False
                yield Difference(
                    name, *(filled_out(values, here, a[:rows].shape) for values in (differs, a[here], b[there]))
                )


def columns_of(panel: Panel) -> tuple[str, ...]:
    """Returns the names of all that is said about sessions: features, fields, the tradable mask, the ready run."""
    return (*panel.feature_names, *panel.fields, "tradable", "ready_run")


def column_of(panel: Panel, name: str) -> Array:
    """Returns one of `columns_of`, `[T, N]`."""
    if name == "tradable":
        return panel.tradable.astype(np.float64)
    if name == "ready_run":
        return panel.ready_run_NT.T.astype(np.float64)
    if name in panel.feature_names:
        return panel.features[..., panel.feature_names.index(name)]
    return panel.fields[name]


def differing(a: Array, b: Array) -> Mask:
    """Returns where two arrays of one shape differ in any bit; NaN equals NaN."""
    if a.dtype != b.dtype:
        a, b = a.astype(np.float64), b.astype(np.float64)
    bits = f"u{a.itemsize}"
    differs = np.asarray(a.view(bits) != b.view(bits))
    if differs.any():
        differs &= ~(np.isnan(a) & np.isnan(b))
    return differs


def overlap(one: Panel, other: Panel, rows: int) -> tuple[Any, Any]:
    """Returns the index of the cells of each panel that both have, in the first `rows` sessions of the first."""
    if one.symbols == other.symbols and np.array_equal(one.sessions[:rows], other.sessions[:rows]):
        return slice(rows), slice(rows)
    _, here, there = np.intersect1d(one.sessions[:rows], other.sessions, return_indices=True)
    both = [symbol for symbol in one.symbols if symbol in other.symbols]
    columns = ([panel.symbols.index(symbol) for symbol in both] for panel in (one, other))
    return tuple(np.ix_(at, np.array(column, int)) for at, column in zip((here, there), columns, strict=True))  # type: ignore[return-value]


def filled_out(values: Array, index: Any, shape: tuple[int, ...]) -> Array:
    """Returns the values put at an index of a larger array, False or NaN elsewhere."""
    if isinstance(index, slice):
        return values
    result = np.full(shape, False if values.dtype == bool else np.nan)
    result[index] = values
    return result


def _same_features(one: Panel, other: Panel, rows: int) -> bool:
    """Returns whether all features agree bit for bit, without an array of all cells."""
    if one.feature_names != other.feature_names or one.features.dtype != other.features.dtype:
        return False
    parts = (slice(low, min(low + _ROWS_ABREAST, rows)) for low in range(0, rows, _ROWS_ABREAST))
    return not any(differing(one.features[part], other.features[part]).any() for part in parts)
