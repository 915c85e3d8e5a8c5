"""Intraday bars: a year of 5-minute bars for 20 symbols against plain loops, and no future in any column."""

from __future__ import annotations

import math
from datetime import date, datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import polars as pl
import pytest

from data_pipeline.errors import BarsError, ConfigError
from data_pipeline.intraday import attach, checked_intraday, closed_before, resample, to_daily, to_weekly
from data_pipeline.schema import PRICES
from data_pipeline.sessions import bells_of, schedule
from ticks import SYMBOLS, ticks

NEW_YORK, UTC = ZoneInfo("America/New_York"), ZoneInfo("UTC")
HALF_DAYS = {date(2024, 7, 3), date(2024, 11, 29), date(2024, 12, 24)}
VALUES = (*PRICES, "volume")


@pytest.fixture(scope="module")
def year() -> pl.DataFrame:
    return ticks()


@pytest.fixture(scope="module")
def gappy() -> pl.DataFrame:
    """Three symbols that trade in 2 of 5 bars only, so whole hours and closing bars are missing."""
    bars = ticks(SYMBOLS[:3], seed=1)
    return bars.filter(np.random.default_rng(1).random(bars.height) < 0.4)


def _instant(clock: str) -> datetime:
    return datetime.fromisoformat(clock).replace(tzinfo=NEW_YORK).astimezone(UTC)


# ---- the year


def test_year_of_five_minutes_has_every_bar_of_every_session(year):
    assert checked_intraday(year, 5, "ticks").equals(year)
    per_session = year.group_by("symbol", "session").len()
    assert per_session.height == 252 * len(SYMBOLS)
    half = pl.col("session").is_in(list(HALF_DAYS))
    assert set(per_session.filter(half)["len"]) == {42}
    assert set(per_session.filter(~half)["len"]) == {78}
    assert year.height == 20 * (249 * 78 + 3 * 42)


def test_year_starts_and_ends_each_session_on_the_clock_of_new_york(year):
    one = year.filter(pl.col("symbol") == SYMBOLS[0])
    clock = pl.col("end").dt.convert_time_zone("America/New_York").dt.strftime("%H:%M")
    found = one.group_by("session").agg(first=clock.first(), last=clock.last())
    assert set(found["first"]) == {"09:35"}
    early = found.filter(pl.col("last") != "16:00")
    assert set(early["session"]) == HALF_DAYS
    assert set(early["last"]) == {"13:00"}


def test_checked_pandas_in_another_zone_and_unit_gives_the_same_table(year):
    theirs = year.drop("session").with_columns(
        pl.col("end").dt.convert_time_zone("America/New_York").dt.cast_time_unit("ns")
    )
    assert checked_intraday(theirs.to_pandas(), 5, "pandas").equals(year)


def test_checked_bars_of_interleaved_symbols_come_back_in_order(gappy):
    assert checked_intraday(gappy.sort("end", "symbol"), 5, "mine").equals(gappy)


def test_checked_bars_of_interleaved_symbols_with_one_out_of_order_are_refused(gappy):
    bars = gappy.sort("end", "symbol")
    with pytest.raises(BarsError, match=r"earlier than the row before it .*sort by end"):
        checked_intraday(pl.concat([bars[1000:], bars[:1000]]), 5, "mine")


# ---- what is refused


def _change(column: str, row: int, value) -> pl.Expr:
    return pl.when(pl.int_range(pl.len()) == row).then(value).otherwise(pl.col(column)).alias(column)


label = pl.col("end")
BROKEN = {
    "NaN": (_change("close", 40, math.nan), "missing, NaN or infinite value"),
    "null": (_change("volume", 40, None), "missing, NaN or infinite value"),
    "no end": (_change("end", 40, None), "empty symbol or end"),
    "labelled by start": (label - timedelta(minutes=5), r"bar outside the session .*label bars by their end"),
    "after the bell": (_change("end", 77, label + timedelta(minutes=5)), r"bar outside the session .*21:05"),
    "weekend": (_change("end", 77, label + timedelta(days=1)), r"bar outside the session .*2024-03-09"),
    "neighbour's session": (_change("session", 40, date(2024, 3, 7)), r"session that is not the bar's .*leave"),
    "no session": (_change("session", 40, None), "session that is not the bar's"),
    "off the grid": (_change("end", 40, label - timedelta(minutes=1)), r"off the grid of 5 minutes .*17:54"),
    "backwards": (_change("end", 40, label - timedelta(minutes=10)), r"earlier than the row before it .*sort by"),
    "duplicate": (_change("end", 40, label - timedelta(minutes=5)), r"duplicate end .*17:50"),
    "zero price": (_change("low", 40, 0.0), "price at or below zero"),
    "negative volume": (_change("volume", 40, -1.0), "negative volume"),
    "high below close": (_change("high", 40, pl.col("low")), "does not bracket"),
}


@pytest.mark.parametrize(("defect", "words"), BROKEN.values(), ids=BROKEN)
def test_checked_bars_with_a_defect_are_refused_with_symbol_and_time(defect, words):
    friday = date(2024, 3, 8)
    bars = ticks(("ACME",), friday, friday).with_columns(defect)
    with pytest.raises(BarsError, match=rf"^mine: (?=.*{words}).* at ACME (2024-03-0|None)") as caught:
        checked_intraday(bars, 5, "mine")
    assert "\n" not in str(caught.value)


def test_checked_hours_by_the_clock_are_refused_as_off_the_grid_of_the_bell():
    monday = date(2024, 3, 11)
    by_clock = ticks(("ACME",), monday, monday).filter(label.dt.minute() == 0)
    with pytest.raises(BarsError, match=r"off the grid of 60 minutes from the opening bell at ACME 2024-03-11 14:00"):
        checked_intraday(by_clock, 60, "mine")


def test_checked_bars_without_a_column_a_zone_or_a_row_say_so(gappy):
    with pytest.raises(BarsError, match=r"mine: column volume missing .*rename"):
        checked_intraday(gappy.drop("volume"), 5, "mine")
    with pytest.raises(BarsError, match=r"mine: .*no time zone"):
        checked_intraday(gappy.with_columns(label.dt.replace_time_zone(None)), 5, "mine")
    with pytest.raises(BarsError, match=r"mine: .*wrong type"):
        checked_intraday(gappy.with_columns(open=pl.lit("ten")), 5, "mine")
    with pytest.raises(BarsError, match=r"mine: holds no bars"):
        checked_intraday(gappy.clear(), 5, "mine")


# ---- longer bars


def _closing_clock(session: date) -> timedelta:
    return timedelta(hours=13 if session in HALF_DAYS else 16)


def _hour_by_clock(row: dict) -> tuple:
    local = row["end"].astimezone(NEW_YORK)
    opening = timedelta(hours=9, minutes=30)
    since = timedelta(hours=local.hour, minutes=local.minute) - opening
    clock = min(opening + math.ceil(since / timedelta(hours=1)) * timedelta(hours=1), _closing_clock(local.date()))
    end = datetime.combine(local.date(), datetime.min.time(), NEW_YORK) + clock
    return row["symbol"], local.date(), end.astimezone(UTC)


def _merged_by_loop(bars: pl.DataFrame, key) -> list[tuple]:
    groups: dict[tuple, list[dict]] = {}
    for row in bars.iter_rows(named=True):
        groups.setdefault(key(row), []).append(row)
    return [
        (
            *at,
            rows[0]["open"],
            max(row["high"] for row in rows),
            min(row["low"] for row in rows),
            rows[-1]["close"],
            pytest.approx(sum(row["volume"] for row in rows), rel=1e-14),
        )
        for at, rows in groups.items()
    ]


def test_resample_to_hours_equals_the_obvious_loop_with_gaps_half_days_and_clock_changes(gappy):
    hours = resample(gappy, 60)
    assert hours.rows() == _merged_by_loop(gappy, _hour_by_clock)
    assert checked_intraday(hours, 60, "hours").equals(hours)


@pytest.mark.parametrize(
    ("day", "ends"),
    [
        ("2024-03-11", ["10:30", "11:30", "12:30", "13:30", "14:30", "15:30", "16:00"]),
        ("2024-07-03", ["10:30", "11:30", "12:30", "13:00"]),
    ],
)
def test_resample_to_hours_counts_from_the_opening_bell_and_ends_with_the_closing_one(year, day, ends):
    hours = resample(year.filter(pl.col("session") == date.fromisoformat(day)), 60)
    clock = hours["end"].dt.convert_time_zone("America/New_York").dt.strftime("%H:%M")
    assert clock.to_list() == ends * len(SYMBOLS)


def test_resample_to_the_length_bars_have_changes_nothing(year):
    assert resample(year, 5).equals(year)


def test_resample_in_two_steps_equals_one(year):
    stepwise = resample(resample(year, 30), 60)
    once = resample(year, 60)
    assert stepwise.drop("volume").equals(once.drop("volume"))
    np.testing.assert_allclose(stepwise["volume"], once["volume"], rtol=1e-14)


def test_resample_of_nothing_is_nothing_and_of_no_minutes_refused(year):
    assert resample(year.clear(), 60).schema == year.schema
    with pytest.raises(ConfigError, match="resample to 0 minutes"):
        resample(year, 0)


def test_to_daily_equals_the_obvious_loop(gappy):
    assert to_daily(gappy).rows() == _merged_by_loop(gappy, lambda row: (row["symbol"], row["session"]))


def test_to_daily_of_hours_equals_that_of_five_minutes(year):
    hours, minutes = to_daily(resample(year, 60)), to_daily(year)
    assert hours.drop("volume").equals(minutes.drop("volume"))


def test_to_weekly_equals_the_obvious_loop_over_iso_weeks(gappy):
    daily = to_daily(gappy)
    last = {day.isocalendar()[:2]: day for day in schedule(date(2024, 1, 1), date(2025, 1, 3))["session"]}
    weeks = _merged_by_loop(daily, lambda row: (row["symbol"], last[row["session"].isocalendar()[:2]]))
    assert to_weekly(daily).rows() == [week for week in weeks if week[1] <= date(2024, 12, 31)]


def test_to_weekly_while_the_week_runs_holds_closed_weeks_only(year):
    daily = to_daily(year.filter(pl.col("symbol") == SYMBOLS[0]))
    friday = date(2024, 5, 17)
    for newest in daily["session"].slice(80, 30):
        weeks = to_weekly(daily.filter(pl.col("session") <= newest))["session"]
        assert weeks[-1] <= newest
        assert (friday in weeks) == (newest >= friday)


def test_to_weekly_of_a_symbol_halted_on_friday_is_closed_by_the_calendar(year):
    friday = date(2024, 5, 17)
    daily = to_daily(year.filter(pl.col("session").is_between(date(2024, 5, 13), friday)))
    halted = (pl.col("symbol") == SYMBOLS[1]) & (pl.col("session") == friday)
    weeks = to_weekly(daily.filter(~halted)).filter(pl.col("symbol") == SYMBOLS[1])
    thursday = daily.filter((pl.col("symbol") == SYMBOLS[1]) & (pl.col("session") == date(2024, 5, 16)))
    assert weeks.select("session", "close").rows() == [(friday, thursday["close"].item())]


def test_to_weekly_of_a_good_friday_week_is_labelled_and_closed_on_thursday(year):
    thursday = date(2024, 3, 28)
    weeks = to_weekly(to_daily(year.filter(pl.col("session") <= thursday)))
    assert weeks["session"].max() == thursday


# ---- what was known when


def _known_by_scan(higher: pl.DataFrame, at: datetime, symbol: str) -> float | None:
    closed = [close for name, end, close in higher.iter_rows() if name == symbol and end <= at]
    return closed[-1] if closed else None


def test_attach_gives_the_newest_bar_that_is_closed_as_a_plain_scan_finds_it(gappy):
    hours = resample(gappy, 60)
    found = attach(gappy, hours, {"hour_close": "close"})
    assert found.drop("hour_close").equals(gappy)
    few = hours.filter(pl.col("session") < date(2024, 3, 20)).select("symbol", "end", "close")
    sample = found.filter(pl.col("session") < date(2024, 3, 20)).gather_every(97)
    for symbol, end, value in sample.select("symbol", "end", "hour_close").iter_rows():
        assert value == _known_by_scan(few, end, symbol)


def test_attach_on_the_hour_holds_the_bar_that_just_closed_and_a_minute_bar_before_it_does_not(year):
    hours = resample(year, 60)
    monday = date(2024, 3, 11)
    found = attach(year, hours, {"hour_end": "end"}, within_sessions=0).filter(
        (pl.col("symbol") == SYMBOLS[7]) & (pl.col("session") == monday)
    )
    clock = {f"{end.astimezone(NEW_YORK):%H:%M}": hour for end, hour in found.select("end", "hour_end").iter_rows()}
    assert clock["10:25"] is None
    assert clock["10:30"] == _instant("2024-03-11 10:30")
    assert clock["11:25"] == _instant("2024-03-11 10:30")
    assert clock["15:55"] == _instant("2024-03-11 15:30")
    assert clock["16:00"] == _instant("2024-03-11 16:00")


@pytest.mark.parametrize(
    ("within", "monday_morning"),
    [(None, "2024-03-08 16:00"), (1, "2024-03-08 16:00"), (0, None)],
)
def test_attach_within_sessions_gives_null_rather_than_an_older_bar(year, within, monday_morning):
    one = year.filter((pl.col("symbol") == SYMBOLS[0]) & (pl.col("session") >= date(2024, 3, 8)))
    found = attach(one, resample(one, 60), {"hour_end": "end"}, within_sessions=within)
    value = found.filter(label == _instant("2024-03-11 09:35"))["hour_end"].item()
    assert value == (monday_morning and _instant(monday_morning))
    assert found["hour_end"][:11].null_count() == 11  # nothing has closed before the first hour does


def test_attach_days_and_weeks_are_known_from_the_closing_bell_of_their_session(year):
    daily = to_daily(year)
    found = attach(attach(year, daily, {"day": "session"}), to_weekly(daily), {"week": "session"})
    known = {end: (day, week) for end, day, week in found.select("end", "day", "week").iter_rows()}
    wednesday, thursday, friday = date(2024, 7, 3), date(2024, 3, 28), date(2024, 5, 17)
    assert known[_instant("2024-07-03 12:55")] == (date(2024, 7, 2), date(2024, 6, 28))
    assert known[_instant("2024-07-03 13:00")] == (wednesday, date(2024, 6, 28))
    assert known[_instant("2024-03-28 15:55")] == (date(2024, 3, 27), date(2024, 3, 22))
    assert known[_instant("2024-03-28 16:00")] == (thursday, thursday)
    assert known[_instant("2024-05-20 09:35")] == (friday, friday)


def test_attach_to_days_gives_the_hour_that_ends_with_the_closing_bell(gappy):
    found = attach(to_daily(gappy), resample(gappy, 60), {"hour_end": "end"}, within_sessions=0)
    last = gappy.group_by("symbol", "session").agg(pl.col("end").max())
    whole = found.join(last, on=["symbol", "session"]).join(
        schedule(date(2024, 1, 1), date(2024, 12, 31)), on="session"
    )
    late = whole.filter(pl.col("close_right") - pl.col("end") < timedelta(minutes=30))
    assert late.height > 0.9 * whole.height
    assert (late["hour_end"] == late["close_right"]).all()


@pytest.mark.parametrize("order", [["end", "symbol"], ["symbol", "volume"]])
@pytest.mark.parametrize("which", ["base", "longer"])
def test_attach_of_a_table_out_of_order_is_refused(gappy, which, order):
    tables = {"base": gappy, "longer": resample(gappy, 60)}
    tables[which] = tables[which].sort(order)
    with pytest.raises(BarsError, match=f"the {which} table is not in order; sort it by symbol, then end"):
        attach(*tables.values(), {"hour_close": "close"})


def test_attach_of_a_day_that_is_no_session_is_refused(gappy):
    daily = to_daily(gappy).with_columns(pl.col("session") + timedelta(days=1))
    with pytest.raises(ConfigError, match=r"2024-01-0\d: not a session of XNYS"):
        attach(gappy, daily, {"day_close": "close"})


def test_closed_before_counts_a_bar_that_ends_at_the_instant():
    found = closed_before(np.array([10, 20, 30]), np.array([30, 9, 10, 29, 31]))
    assert found.tolist() == [2, -1, 0, 1, 2]
    assert found.dtype == np.int64
    assert closed_before(np.array([], dtype=np.int64), np.array([5])).tolist() == [-1]


def test_closed_before_agrees_with_attach(gappy):
    one = gappy.filter(pl.col("symbol") == SYMBOLS[2])
    hours = resample(one, 60)
    row = closed_before(hours["end"].to_numpy(), one["end"].to_numpy())
    attached = attach(one, hours.with_row_index("row"), {"row": "row"})["row"].fill_null(-1)
    assert (attached.to_numpy() == row).all()


# ---- no future

INSTANTS = [
    "2024-02-14 10:47",  # inside a 5-minute bar
    "2024-02-14 11:30",  # on the hour
    "2024-02-14 11:29:59.999999",
    "2024-02-14 15:55",
    "2024-02-14 16:00",
    "2024-02-15 03:00",  # at night
    "2024-03-08 15:30",  # the Friday before the clocks go forward
    "2024-03-08 16:00",
    "2024-03-11 09:35",  # the Monday after
    "2024-03-11 10:30",
    "2024-03-28 15:55",  # the week ends on this Thursday
    "2024-03-28 16:00",
    "2024-07-03 12:35",  # half day
    "2024-07-03 13:00",
    "2024-07-05 09:35",
    "2024-11-01 16:00",  # the Friday before the clocks go back
    "2024-11-04 09:35",
    "2024-11-04 15:59",
    "2024-11-29 12:57",
    "2024-12-31 15:50",
]


def _as_made(name: str, higher: pl.DataFrame) -> pl.DataFrame:
    return higher


def _view(bars: pl.DataFrame, labelled=_as_made) -> pl.DataFrame:
    """Returns every 5-minute row with all values of hour, day and week as of its end."""
    daily = to_daily(bars)
    view = bars.select("symbol", "session", "end")
    for name, higher in {"hour": resample(bars, 60), "day": daily, "week": to_weekly(daily)}.items():
        view = attach(view, labelled(name, higher), {f"{name}_{value}": value for value in VALUES})
    return view


def _drop(bars: pl.DataFrame, tau: datetime) -> pl.DataFrame:
    return bars.filter(label <= tau)


def _spoil(bars: pl.DataFrame, tau: datetime) -> pl.DataFrame:
    garbage = pl.when(pl.int_range(pl.len()) % 2 == 0).then(math.nan).otherwise(-1e30)
    return bars.with_columns(pl.when(label > tau).then(garbage).otherwise(pl.col(*VALUES)).name.keep())


def _moved(bars: pl.DataFrame, poison, labelled=_as_made) -> list[tuple[str, str]]:
    """Returns the instants and columns whose known part changes when everything later is poisoned."""
    truth = _view(bars, labelled)
    moved = []
    for clock in INSTANTS:
        tau = _instant(clock)
        known = truth.filter(label <= tau)
        again = _view(poison(bars, tau), labelled).filter(label <= tau)
        moved += [(clock, name) for name in truth.columns if not known[name].equals(again[name])]
    return moved


@pytest.mark.parametrize("poison", [_drop, _spoil])
def test_hour_day_and_week_columns_hold_no_future(year, poison):
    assert _moved(year, poison) == []


@pytest.mark.parametrize("poison", [_drop, _spoil])
def test_hour_day_and_week_columns_of_symbols_with_gaps_hold_no_future(gappy, poison):
    assert _moved(gappy, poison) == []


@pytest.mark.parametrize("poison", [_drop, _spoil])
@pytest.mark.parametrize("name", ["hour", "day", "week"])
def test_hour_day_and_week_columns_labelled_by_their_start_are_caught(year, poison, name):
    def by_start(table: str, higher: pl.DataFrame) -> pl.DataFrame:
        if table != name:
            return higher
        if name == "hour":
            return higher.with_columns(label - timedelta(hours=1))
        return higher.with_columns(end=bells_of(higher["session"])["open"])

    moved = _moved(year.filter(pl.col("symbol").is_in(SYMBOLS[:2])), poison, by_start)
    assert {column.split("_")[0] for _, column in moved} == {name}
