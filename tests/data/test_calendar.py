"""Sessions and bells of the exchange, by hand-picked days and by the clock of New York."""

from __future__ import annotations

from datetime import date, datetime
from zoneinfo import ZoneInfo

import exchange_calendars
import numpy as np
import polars as pl
import pytest

from data_pipeline.errors import BarsError, ConfigError
from data_pipeline.sessions import (
    bells_of,
    month_closes,
    next_session,
    ordinals,
    schedule,
    sessions_between,
    sessions_of,
    week_closes,
    week_ends,
)

NEW_YORK = ZoneInfo("America/New_York")
HALF_DAYS_2024 = [date(2024, 7, 3), date(2024, 11, 29), date(2024, 12, 24)]


def _days(*texts: str):
    return np.array(texts, dtype="datetime64[D]")


def _new_york(*texts: str) -> pl.Series:
    clock = [datetime.fromisoformat(text).replace(tzinfo=NEW_YORK) for text in texts]
    return pl.Series("end", clock, dtype=pl.Datetime("us", "America/New_York"))


def test_schedule_of_a_year_has_its_sessions_and_half_days_on_the_clock_of_new_york():
    table = schedule(date(2024, 1, 1), date(2024, 12, 31))
    assert table.height == 252
    closing = {}
    for session, opening, close in table.iter_rows():
        assert f"{opening.astimezone(NEW_YORK):%Y-%m-%d %H:%M}" == f"{session} 09:30"
        closing.setdefault(f"{close.astimezone(NEW_YORK):%H:%M}", []).append(session)
    assert closing["13:00"] == HALF_DAYS_2024
    assert len(closing["16:00"]) == 249


@pytest.mark.parametrize(
    ("day", "opening", "close"),
    [
        ("2024-03-08", "14:30", "21:00"),
        ("2024-03-11", "13:30", "20:00"),  # clocks went forward on the Sunday between
        ("2024-07-03", "13:30", "17:00"),
        ("2024-11-01", "13:30", "20:00"),
        ("2024-11-04", "14:30", "21:00"),  # and back
        ("2024-11-29", "14:30", "18:00"),
    ],
)
def test_schedule_around_clock_changes_and_half_days_rings_at_the_right_utc(day, opening, close):
    session = date.fromisoformat(day)
    row = schedule(session, session).row(0)
    assert [f"{bell:%H:%M%z}" for bell in row[1:]] == [f"{opening}+0000", f"{close}+0000"]


def test_schedule_types_are_those_of_the_intraday_table():
    expected = {"session": pl.Date(), "open": pl.Datetime("us", "UTC"), "close": pl.Datetime("us", "UTC")}
    assert dict(schedule(date(2024, 1, 1), date(2024, 1, 5)).schema) == expected


def test_schedule_of_an_unknown_exchange_says_what_to_give():
    with pytest.raises(ConfigError, match=r"unknown exchange 'NOWHERE'.*XNYS"):
        schedule(date(2024, 1, 1), date(2024, 1, 5), "NOWHERE")


def test_schedule_of_another_exchange_has_its_own_bells():
    london = schedule(date(2024, 1, 2), date(2024, 1, 2), "XLON").row(0)
    assert [f"{bell:%H:%M}" for bell in london[1:]] == ["08:00", "16:30"]


def test_bells_of_days_in_any_order_are_theirs_and_null_on_a_holiday():
    found = bells_of(pl.Series([date(2024, 7, 5), date(2024, 7, 4), date(2024, 7, 3), date(2024, 7, 5)]))
    assert [bell and f"{bell:%d %H:%M}" for bell in found["close"]] == ["05 20:00", None, "03 17:00", "05 20:00"]


def test_sessions_of_instants_hold_what_follows_the_opening_bell_up_to_the_closing_bell():
    instants = _new_york(
        "2024-07-03 13:00:00.000001",
        "2024-07-03 13:00",
        "2024-07-03 09:30:00.000001",
        "2024-07-03 09:30",
        "2024-07-02 16:00",
        "2024-07-04 12:00",
        "2024-07-06 12:00",
        "1989-12-29 12:00",
    )
    half, day = date(2024, 7, 3), date(2024, 7, 2)
    assert sessions_of(instants).to_list() == [None, half, half, None, day, None, None, None]


def test_sessions_of_no_instant_is_null():
    assert sessions_of(pl.Series([None], dtype=pl.Datetime("ms", "UTC"))).to_list() == [None]


def test_sessions_of_instants_without_a_zone_are_refused():
    with pytest.raises(BarsError, match=r"end is Datetime.*no time zone.*replace_time_zone"):
        sessions_of(pl.Series("end", [None], dtype=pl.Datetime("us")))


def test_week_closes_on_the_last_session_of_the_calendar_week_holidays_included():
    days = sessions_between(date(2024, 3, 21), date(2024, 4, 5))
    closes = {"2024-03-22", "2024-03-28", "2024-04-05"}  # 29 March was Good Friday
    assert {str(day) for day in days[week_closes(days)]} == closes


def test_week_closes_of_a_cut_history_never_look_at_where_it_is_cut():
    days = sessions_between(date(2020, 1, 1), date(2024, 12, 31))
    whole = week_closes(days)
    for stop in range(len(days) - 30, len(days)):
        assert (week_closes(days[:stop]) == whole[:stop]).all()
    assert [week_closes(day[None])[0] for day in _days("2024-07-03", "2024-07-05")] == [False, True]


def test_week_ends_are_the_last_session_with_the_same_iso_week():
    days = sessions_between(date(2015, 1, 5), date(2024, 12, 27))
    last = {day.item().isocalendar()[:2]: day for day in days}
    assert (week_ends(days) == [last[day.item().isocalendar()[:2]] for day in days]).all()


def test_week_closes_of_a_market_that_never_rests_are_sundays():
    days = sessions_between(date(2024, 3, 1), date(2024, 3, 14), "24/7")
    assert [str(day) for day in days[week_closes(days, "24/7")]] == ["2024-03-03", "2024-03-10"]


def test_month_closes_on_the_last_session_of_the_month():
    days = sessions_between(date(2024, 2, 26), date(2024, 6, 3))
    closes = ["2024-02-29", "2024-03-28", "2024-04-30", "2024-05-31"]
    assert [str(day) for day in days[month_closes(days)]] == closes


@pytest.mark.parametrize("ask", [lambda day: week_ends(_days(str(day))), next_session])
def test_the_last_session_the_calendar_knows_has_no_known_end_of_week_and_no_successor(ask):
    last = exchange_calendars.get_calendar("XNYS").last_session.date()
    with pytest.raises(ConfigError, match=rf"{last}: the calendar of XNYS ends {last}; ask for an earlier session"):
        ask(last)


def test_ordinals_of_neighbours_differ_by_one_over_a_long_weekend():
    assert np.diff(ordinals(_days("2024-01-12", "2024-01-16", "2024-01-18"))).tolist() == [1, 2]


def test_ordinals_of_a_holiday_are_refused_by_its_date():
    with pytest.raises(ConfigError, match=r"2024-07-04: not a session of XNYS; drop the day"):
        ordinals(_days("2024-07-03", "2024-07-04"))


def test_sessions_of_an_exchange_whose_calendar_starts_late_say_where_it_starts():
    assert str(sessions_between(date(2020, 1, 1), date(2020, 1, 7), "XTKS")[0]) == "2020-01-06"
    with pytest.raises(ConfigError, match="XTKS are known from 1997-01-06"):
        sessions_between(date(1991, 1, 2), date(1991, 2, 1), "XTKS")
