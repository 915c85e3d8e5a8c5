"""What is wrong, or worth a look, in a table of bars.

A finding is a row of the table that `findings` returns:

| column | type | meaning |
|---|---|---|
| severity | String | error (the build stops), warning (look at it), note (accepted, or good to know) |
| check | String | name of the check, see below |
| symbol | String | ticker |
| session | Date | first session it concerns |
| rows | UInt32 | bars, or missing sessions, that it concerns |
| detail | String | what was seen |
| remedy | String | what to do |

| check | looks for |
|---|---|
| key value price volume range action order duplicate | rows that `schema.checked` refuses, one finding per symbol |
| calendar | bars on days that are no sessions of the exchange |
| gap, missing | sessions without a bar inside a symbol's life: each run of them, and their share |
| stale | the same open, high, low and close in session after session |
| split_jump | a price ratio of a usual split that holds, without a split |
| split_unmatched | a split that the prices do not show |
| extreme | any other move beyond a threshold |
| silent | sessions without volume |
| few | a symbol with few sessions |
| hours, holes | intraday: bars outside the session, bars missing within sessions |
| life | a symbol that starts after the table's first session or ends before its last |

Findings look at the whole history, both ways in time: they judge data, and no feature reads them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from datetime import date
from typing import Annotated

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from data_pipeline.config import Config
from data_pipeline.errors import BarsError
from data_pipeline.schema import (
    ORDER_CHECKS,
    PRICES,
    ROW_CHECKS,
    RowCheck,
    conform,
    in_order,
    order_checks,
    value_checks,
)
from data_pipeline.sessions import Sessions, bells_of, sessions_between, sessions_of

SEVERITIES = ("error", "warning", "note")
FINDING = pl.Schema(
    {
        "severity": pl.String(),
        "check": pl.String(),
        "symbol": pl.String(),
        "session": pl.Date(),
        "rows": pl.UInt32(),
        "detail": pl.String(),
        "remedy": pl.String(),
    }
)
REFUSED = ("hours", "calendar", *(check.name for check in (*ROW_CHECKS, *ORDER_CHECKS)))
USUAL_SPLITS = ((3, 2), (2, 1), (3, 1), (4, 1), (5, 1), (7, 1), (10, 1), (20, 1))  # new, old; and the inverse
SMALLEST_TOLD_SPLIT = 1.25  # the step of a smaller one is lost among the moves of a day

Positive = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0)]
_SAME = pl.col("symbol") == pl.col("symbol").shift(1)


class QualityConfig(Config):
    """Thresholds of the checks, and what was looked at and accepted."""

    gap_error_sessions: Positive = 10
    """A run of this many missing sessions is an error; a shorter one is a warning."""
    missing_error_share: Fraction = 0.1
    """Missing sessions above this share of a symbol's life are an error."""
    stale_sessions: Annotated[int, Field(ge=2)] = 5
    """This many sessions in a row with the same open, high, low and close are a warning."""
    split_open_tolerance: Fraction = 0.04
    """How far the open after a split-like jump may be from the exact ratio, as a fraction."""
    split_close_tolerance: Fraction = 0.15
    """How far the close of that session may be from it: a jump that does not hold is a bad tick."""
    extreme_return: Fraction = 0.4
    """A total return beyond this fraction in one session, either way, is a warning."""
    few_sessions: Positive = 252
    """Fewer sessions of a symbol are a warning."""
    accepted: tuple[str, ...] = ()
    """Findings that were looked at and are right, such as gap:IBM or extreme:AAPL: they become notes."""


def findings(bars: pl.DataFrame, exchange: str = "XNYS", config: QualityConfig | None = None) -> pl.DataFrame:
    """Returns the findings of daily bars, errors first; see the module.

    Args:
        bars: A table with the columns of `data_pipeline.schema`, checked or not.
        exchange: Whose sessions count.
        config: Thresholds; None: the defaults.

    Raises:
        BarsError: A column is missing or of the wrong type.
        ConfigError: The exchange is unknown, or a session is outside its calendar.
    """
    config = config or QualityConfig()
    bars = conform(bars, "bars")
    placed, parts = _placed(bars, "session")
    refused = _refusals(bars, ROW_CHECKS)
    sound = placed.filter(~pl.any_horizontal(check.bad for check in ROW_CHECKS)) if refused else placed
    parts += [*refused, *_calendar_findings(placed, exchange, config), *_move_findings(sound, config)]
    return _ranked([*parts, _stale_findings(sound, config), _silent_findings(sound)], config)


def intraday_findings(
    bars: pl.DataFrame, minutes: int, exchange: str = "XNYS", config: QualityConfig | None = None
) -> pl.DataFrame:
    """Returns the findings of intraday bars: those of rows and of the calendar, and `holes`; see the module.

    Args:
        bars: A table with the columns of `data_pipeline.intraday`, checked or not.
        minutes: Length of a bar.
        exchange: Whose sessions and bells count.
        config: Thresholds; None: the defaults.

    Raises:
        ConfigError: The exchange is unknown, or a session is outside its calendar.
    """
    config = config or QualityConfig()
    outside = RowCheck(
        "hours", "bar outside the session", pl.col("own").is_null(), "drop it, or label bars by their end"
    )
    bars = bars.with_columns(sessions_of(bars["end"], exchange).alias("own"))
    refused = _refusals(bars, (*value_checks("end", (*PRICES, "volume")), outside))
    placed, parts = _placed(bars.drop_nulls("own"), "end")
    sessions = placed.group_by("symbol", "session", maintain_order=True).agg(pl.len().alias("rows"))
    parts += [*refused, *_calendar_findings(sessions, exchange, config)]
    return _ranked([*parts, _hole_findings(sessions, minutes, exchange, config)], config)


def require(
    bars: pl.DataFrame, exchange: str = "XNYS", config: QualityConfig | None = None, source: str = "bars"
) -> pl.DataFrame:
    """Returns the findings of `bars`, among which there is no error.

    Args:
        bars: As for `findings`, like the two that follow.
        exchange: Whose sessions count.
        config: Thresholds; None: the defaults.
        source: Named in the error.

    Raises:
        BarsError: The first error and the number of the others.
    """
    found = findings(bars, exchange, config)
    errors = found.filter(pl.col("severity") == "error")
    if errors.is_empty():
        return found
    first = errors.row(0, named=True)
    place = f"{first['check']} at {first['symbol']} {first['session']}"
    more = f" ({errors.height - 1} more error{'s' * (errors.height > 2)})" if errors.height > 1 else ""
    raise BarsError(f"{source}: {place}: {first['detail']}; {first['remedy']}{more}")


def _placed(bars: pl.DataFrame, time: str) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
    """Returns the rows that have a symbol and a time, in order and each once, and the findings about the others."""
    if in_order(bars, time):
        return bars, []
    backwards, again = order_checks(time)
    kept = bars.drop_nulls(["symbol", time])
    ordered = kept.sort("symbol", time, maintain_order=True)
    parts = [_row_findings(kept, backwards), _row_findings(ordered, again)]
    return ordered.filter(~again.bad.fill_null(value=False)), parts


def _refusals(bars: pl.DataFrame, checks: Sequence[RowCheck]) -> list[pl.DataFrame]:
    """Returns the findings about rows that fail a check."""
    failed = bars.select(check.bad.any().alias(check.name) for check in checks).row(0, named=True)
    return [_row_findings(bars, check) for check in checks if failed[check.name]]


def _ranked(parts: list[pl.DataFrame], config: QualityConfig) -> pl.DataFrame:
    """Returns the findings with the accepted ones made notes, errors first."""
    found = pl.concat([pl.DataFrame(schema=FINDING), *parts])
    accepted = pl.format("{}:{}", "check", "symbol").is_in(list(config.accepted)) & ~pl.col("check").is_in(REFUSED)
    rank = pl.col("severity").replace_strict(SEVERITIES, range(len(SEVERITIES)), return_dtype=pl.Int8)
    return found.with_columns(
        severity=pl.when(accepted).then(pl.lit("note")).otherwise("severity"),
    ).sort(rank, "check", "symbol", "session")


def _found(frame: pl.DataFrame, check: str, severity: str | pl.Expr, detail: pl.Expr, remedy: str) -> pl.DataFrame:
    """Returns findings made of a frame with symbol, session and rows."""
    told = pl.lit(severity) if isinstance(severity, str) else severity
    return frame.select(
        told.alias("severity"),
        pl.lit(check).alias("check"),
        pl.col("symbol", "session", "rows"),
        detail.alias("detail"),
        pl.lit(remedy).alias("remedy"),
    ).cast(FINDING)


def _row_findings(bars: pl.DataFrame, check: RowCheck) -> pl.DataFrame:
    names = (*PRICES, "volume")
    values = pl.concat_str(
        (pl.format(f"{name}={{}}", pl.col(name).cast(pl.String).fill_null("none")) for name in names), separator=", "
    )
    bad = bars.filter(check.bad).group_by("symbol", maintain_order=True)
    first = bad.agg(pl.len().alias("rows"), pl.col("session", *names).first())
    return _found(first, check.name, "error", pl.format(f"{check.what} ({{}})", values), check.remedy)


def _calendar_findings(bars: pl.DataFrame, exchange: str, config: QualityConfig) -> Iterator[pl.DataFrame]:
    if bars.is_empty():
        return
    first, last = bars.select(first=pl.col("session").min(), last=pl.col("session").max()).row(0)
    sessions = sessions_between(first, last, exchange)
    placed = bars.select("symbol", "session", at=pl.Series(_ordinals(bars["session"], first, sessions)))
    strange = placed.filter(pl.col("at") < 0).group_by("symbol", maintain_order=True)
    yield _found(
        strange.agg(pl.len().alias("rows"), pl.col("session").first()),
        "calendar",
        "error",
        pl.lit(f"not a session of {exchange}"),
        "drop the bars or name the right exchange",
    )
    held = placed.filter(pl.col("at") >= 0)
    lives = _lives(held)
    yield from _gap_findings(held, lives, sessions, config)
    yield _found(
        lives.filter(pl.col("rows") < config.few_sessions),
        "few",
        "warning",
        pl.format("{} sessions, {} to {}", "rows", "session", "last"),
        "give more history or leave the symbol out: features need months before they are ready",
    )
    yield _found(
        lives.filter((pl.col("session") > first) | (pl.col("last") < last)),
        "life",
        "note",
        pl.format(f"{{}} to {{}}, the table spans {first} to {last}", "session", "last"),
        "nothing; it is masked outside its life",
    )


def _lives(held: pl.DataFrame) -> pl.DataFrame:
    """Returns rows, first and last session, and sessions between them of each symbol; many times a group_by."""
    begins = np.flatnonzero(held.select(_SAME.fill_null(False).not_()).to_series().to_numpy())
    ends = np.append(begins[1:], held.height) - 1
    return held[begins].select(
        "symbol",
        "session",
        rows=pl.Series(ends - begins + 1),
        last=held["session"][ends],
        life=held["at"][ends] - held["at"][begins] + 1,
    )


def _gap_findings(
    held: pl.DataFrame, lives: pl.DataFrame, sessions: Sessions, config: QualityConfig
) -> Iterator[pl.DataFrame]:
    step = pl.col("at") - pl.col("at").shift(1)
    gaps = held.with_columns(rows=step - 1).filter(_SAME & (step > 1))
    begins = pl.Series(sessions[(gaps["at"] - gaps["rows"]).to_numpy()], dtype=pl.Date)
    long = pl.col("rows") >= config.gap_error_sessions
    yield _found(
        gaps.with_columns(session=begins, until="session"),
        "gap",
        pl.when(long).then(pl.lit("error")).otherwise(pl.lit("warning")),
        pl.format("{} sessions without a bar before {}", "rows", "until"),
        "fetch them; accept it if trading was halted",
    )
    torn = lives.with_columns(rows=pl.col("life") - pl.col("rows"))
    yield _found(
        torn.filter(pl.col("rows") > config.missing_error_share * pl.col("life")),
        "missing",
        "error",
        pl.format("{} of the {} sessions to {} without a bar", "rows", "life", "last"),
        "give a bar for every session",
    )


def _hole_findings(sessions: pl.DataFrame, minutes: int, exchange: str, config: QualityConfig) -> pl.DataFrame:
    """Returns findings about the bars that are missing within the sessions a symbol has, from a count of each."""
    bells = bells_of(sessions["session"], exchange)
    length = (bells["close"] - bells["open"]).dt.total_minutes()
    holes = (
        sessions.with_columns(due=(length + minutes - 1) // minutes)
        .with_columns(missing=pl.col("due") - pl.col("rows"))
        .group_by("symbol", maintain_order=True)
        .agg(
            pl.col("missing").sum().alias("rows"),
            pl.col("due").sum(),
            pl.col("session").filter(pl.col("missing") > 0).first(),
        )
        .filter(pl.col("rows") > 0)
    )
    torn = pl.col("rows") > config.missing_error_share * pl.col("due")
    return _found(
        holes,
        "holes",
        pl.when(torn).then(pl.lit("error")).otherwise(pl.lit("warning")),
        pl.format("{} of {} bars within sessions missing", "rows", "due"),
        "fetch them; accept it if the symbol trades seldom",
    )


def _ordinals(days: pl.Series, first: date, sessions: Sessions) -> npt.NDArray[np.int32]:
    """Returns the row of each day in `sessions`, -1 where it is none: by a table, for there may be millions."""
    start = np.datetime64(first, "D")
    since = (days.to_numpy() - start).astype(int)
    table = np.full(since.max() + 1, -1, np.int32)
    table[(sessions - start).astype(int)] = np.arange(len(sessions))
    return table[since]


def _stale_findings(bars: pl.DataFrame, config: QualityConfig) -> pl.DataFrame:
    repeats = pl.all_horizontal(_SAME, *(pl.col(name) == pl.col(name).shift(1) for name in PRICES))
    again = bars.lazy().with_row_index("at").filter(repeats).select("symbol", "session", "close", "at").collect()
    # Row numbers rise by one inside a run, so less the count of rows so far they are one number per run.
    runs = again.group_by(pl.col("at") - pl.int_range(pl.len(), dtype=pl.UInt32), maintain_order=True).agg(
        pl.col("symbol", "session", "close").first(), (pl.len() + 1).alias("rows")
    )
    return _found(
        runs.filter(pl.col("rows") >= config.stale_sessions),
        "stale",
        "warning",
        pl.format("{} sessions in a row with the same open, high, low and close {}", "rows", "close"),
        "fetch these sessions again; accept it if the price did not move",
    )


def _move_findings(bars: pl.DataFrame, config: QualityConfig) -> Iterator[pl.DataFrame]:
    """Yields findings about growth over the last close, with split and dividend put back."""
    gross = pl.col("split") / pl.col("before")
    moves = (
        bars.lazy()
        .with_columns(before=pl.when(_SAME).then(pl.col("close").shift(1)), rows=pl.lit(1))
        .with_columns(
            open_growth=(pl.col("open") + pl.col("dividend")) * gross,
            close_growth=(pl.col("close") + pl.col("dividend")) * gross,
        )
        .with_columns(
            extreme=(pl.col("close_growth") - 1).abs() > config.extreme_return,
            jump=_usual_split(config),
            unseen=_unseen_split(),
        )
        .filter(pl.col("extreme") | pl.col("jump").is_not_null() | pl.col("unseen"))
        .collect()
    )
    seen = pl.format("{} to {}", pl.col("before").round(4), pl.col("close").round(4))
    # News moves prices this far too, and a close alone cannot tell.
    alone = pl.col("open") == pl.col("close")
    doubtful = pl.col("jump").is_in(["3 for 2", "2 for 3"]) | (pl.col("jump").is_in(["2 for 1", "1 for 2"]) & alone)
    yield _found(
        moves.filter(pl.col("jump").is_not_null()),
        "split_jump",
        pl.when(doubtful).then(pl.lit("warning")).otherwise(pl.lit("error")),
        pl.format("closed from {}, as a split of {} would do", seen, "jump"),
        "declare the split; accept it if the move was real",
    )
    yield _found(
        moves.filter("unseen"),
        "split_unmatched",
        "error",
        pl.format("split {} but the close went from {}", "split", seen),
        "give raw prices with splits, or split-adjusted prices without",
    )
    yield _found(
        moves.filter(pl.col("extreme") & pl.col("jump").is_null() & ~pl.col("unseen")),
        "extreme",
        "warning",
        pl.format("total return {}%, closed from {}", ((pl.col("close_growth") - 1) * 100).round(1), seen),
        "compare it with another source; accept it if it was real",
    )


def _usual_split(config: QualityConfig) -> pl.Expr:
    """Names the split, such as `2 for 1`, that a jump without a declared one looks like; null where none."""

    def like(new: int, old: int) -> pl.Expr:
        at_open = (pl.col("open_growth") * new / old - 1).abs() <= config.split_open_tolerance
        at_close = (pl.col("close_growth") * new / old - 1).abs() <= config.split_close_tolerance
        return pl.when((pl.col("split") == 1) & at_open & at_close).then(pl.lit(f"{new} for {old}"))

    return pl.coalesce(*(like(*pair) for pair in USUAL_SPLITS), *(like(old, new) for new, old in USUAL_SPLITS))


def _unseen_split() -> pl.Expr:
    """True where the open is nearer to no split than to the declared one, if that is large enough to tell."""
    declared = pl.col("open_growth").log().abs()
    undone = (pl.col("open_growth") / pl.col("split")).log().abs()
    return (pl.col("split").log().abs() >= math.log(SMALLEST_TOLD_SPLIT)) & (undone < declared)


def _silent_findings(bars: pl.DataFrame) -> pl.DataFrame:
    silent = bars.filter(pl.col("volume") == 0)
    lives = bars.filter(pl.col("symbol").is_in(silent["symbol"].unique().to_list())).group_by("symbol").len("life")
    first = silent.group_by("symbol", maintain_order=True).agg(pl.len().alias("rows"), pl.col("session").first())
    counts = first.join(lives, on="symbol", maintain_order="left")
    always = pl.col("rows") == pl.col("life")
    return _found(
        counts,
        "silent",
        pl.when(always).then(pl.lit("error")).otherwise(pl.lit("warning")),
        pl.format("{} of {} bars without volume", "rows", "life"),
        "give volumes: nothing fills in a session without",
    )
