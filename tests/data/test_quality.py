"""Quality: every planted defect is found where it is, and the bundled history has none."""

from __future__ import annotations

from datetime import date

import numpy as np
import polars as pl
import pytest

from data_pipeline.errors import BarsError, ConfigError
from data_pipeline.quality import FINDING, QualityConfig, findings, intraday_findings, require
from data_pipeline.schema import PRICES
from data_pipeline.sessions import sessions_between
from data_pipeline.sources.worlds import NoiseWorld, WorldBars, WorldConfig
from planted import BROKEN, three_bars
from ticks import ticks

SYMBOL = "NOISE0001"


@pytest.fixture(scope="module")
def clean() -> pl.DataFrame:
    """Three symbols over two years, of which there is nothing to find."""
    return WorldBars(WorldConfig(world=NoiseWorld(), symbols=3, sessions=504)).fetch()


def _day(clean: pl.DataFrame, row: int) -> date:
    return clean.filter(pl.col("symbol") == SYMBOL)["session"][row]


def _rows(clean: pl.DataFrame, first: int, count: int = 1) -> pl.Expr:
    """True on so many rows of the symbol."""
    return (pl.col("symbol") == SYMBOL) & pl.col("session").is_between(
        _day(clean, first), _day(clean, first + count - 1)
    )


def _scaled(clean: pl.DataFrame, first: int, factor: float) -> pl.DataFrame:
    """All prices of the symbol from a row on times a factor."""
    on = pl.when(_rows(clean, first, 504 - first)).then(factor).otherwise(1.0)
    return clean.with_columns(pl.col("open", "high", "low", "close") * on)


def _told(found: pl.DataFrame) -> list[tuple[object, ...]]:
    return found.select("severity", "check", "symbol", "session", "rows").rows()


def test_findings_of_a_clean_table_are_none_in_the_right_columns(clean):
    found = findings(clean)
    assert found.is_empty()
    assert found.schema == FINDING


def test_findings_of_the_bundled_history_are_these_true_ones(bars):
    found = findings(bars)
    assert found.filter(pl.col("severity") == "error").is_empty()
    assert _told(found.filter(pl.col("severity") == "warning")) == [
        ("warning", "extreme", "AAPL", date(2000, 9, 29), 1),  # a profit warning: closed 51.9 % lower
        ("warning", "few", "FB", date(2012, 5, 18), 196),  # listed that day
    ]
    assert _told(found.filter(pl.col("severity") == "note")) == [
        ("note", "life", "FB", date(2012, 5, 18), 196),
        ("note", "life", "GOOG", date(2004, 8, 19), 2148),
    ]


@pytest.mark.parametrize(("check", "changes"), [(check, changes) for check, changes, _ in BROKEN.values()], ids=BROKEN)
def test_findings_of_a_row_that_is_refused_name_the_check(check, changes):
    found = findings(three_bars(**changes)).filter(pl.col("severity") == "error", pl.col("check") != "missing")
    assert found.select("check", "session", "rows").rows() == [(check, date(2020, 1, 3), 1)]


def test_findings_tell_every_defect_of_a_table_not_the_first_only(clean):
    broken = clean.with_columns(
        close=pl.when(_rows(clean, 10)).then(None).otherwise("close"),
        volume=pl.when(_rows(clean, 20, 3)).then(-1.0).otherwise("volume"),
    )
    found = findings(pl.concat([broken, clean.filter(_rows(clean, 40, 2))]))
    assert _told(found.filter(pl.col("severity") == "error")) == [
        ("error", "duplicate", SYMBOL, _day(clean, 40), 2),
        ("error", "order", SYMBOL, _day(clean, 40), 1),
        ("error", "value", SYMBOL, _day(clean, 10), 1),
        ("error", "volume", SYMBOL, _day(clean, 20), 3),
    ]


@pytest.mark.parametrize(("missing", "severity"), [(1, "warning"), (9, "warning"), (10, "error"), (30, "error")])
def test_findings_of_a_gap_tell_its_first_session_and_length(clean, missing, severity):
    found = findings(clean.filter(~_rows(clean, 100, missing)))
    assert _told(found) == [(severity, "gap", SYMBOL, _day(clean, 100), missing)]


def test_findings_of_a_weekly_table_are_an_error_though_each_gap_is_short(clean):
    weekly = clean.filter((pl.col("symbol") != SYMBOL) | (pl.col("session").dt.weekday() == 3))
    missing = findings(weekly).filter(pl.col("check") == "missing")
    kept = weekly.filter(pl.col("symbol") == SYMBOL)
    life = len(sessions_between(kept["session"][0], kept["session"][-1]))
    assert _told(missing) == [("error", "missing", SYMBOL, kept["session"][0], life - kept.height)]
    assert missing["detail"][0].startswith(f"{life - kept.height} of the {life} sessions")


def test_findings_know_that_the_exchange_was_shut_in_september_2001(bars):
    autumn = bars.filter(pl.col("session").is_between(date(2001, 9, 4), date(2001, 9, 28)))
    assert not findings(autumn).filter(pl.col("check") == "gap").height
    assert autumn.filter(pl.col("session").is_between(date(2001, 9, 11), date(2001, 9, 14))).is_empty()


def test_findings_of_a_bar_on_a_holiday_are_an_error_and_no_gap(clean):
    holiday = clean.filter(_rows(clean, 0)).with_columns(session=date(2000, 12, 25))
    assert _told(findings(pl.concat([clean, holiday]).sort("symbol", "session"))) == [
        ("error", "calendar", SYMBOL, date(2000, 12, 25), 1)
    ]


def test_findings_on_an_exchange_that_is_not_the_bars_name_days_and_unknown_exchanges_are_refused(clean):
    found = findings(clean, "XLON")
    assert {"calendar", "gap"} <= set(found["check"])
    with pytest.raises(ConfigError, match="NOWHERE"):
        findings(clean, "NOWHERE")


@pytest.mark.parametrize(("length", "found"), [(4, []), (5, [5]), (12, [12])])
def test_findings_of_a_stale_run_tell_its_length(clean, length, found):
    first = clean.filter(_rows(clean, 50)).row(0, named=True)
    same = {
        name: pl.when(_rows(clean, 50, length)).then(first[name]).otherwise(name)
        for name in ("open", "high", "low", "close")
    }
    stale = findings(clean.with_columns(**same)).filter(pl.col("check") == "stale")
    assert stale["rows"].to_list() == found
    assert stale["session"].to_list() == [_day(clean, 51)] * len(found)


@pytest.mark.parametrize("factor", [1 / 2, 1 / 3, 1 / 4, 1 / 5, 1 / 7, 1 / 10, 1 / 20, 2, 3, 4, 5, 7, 10, 20])
def test_findings_of_a_jump_by_a_usual_split_are_an_error_unless_it_is_declared(clean, factor):
    jumped = _scaled(clean, 200, factor)
    found = findings(jumped)
    assert _told(found) == [("error", "split_jump", SYMBOL, _day(clean, 200), 1)]
    new, old = found["detail"][0].split("split of ")[1].split(" would")[0].split(" for ")
    assert int(old) / int(new) == pytest.approx(factor)
    declared = pl.when(_rows(clean, 200)).then(1 / factor).otherwise(1.0)
    assert findings(jumped.with_columns(split=declared)).is_empty()


@pytest.mark.parametrize("factor", [2 / 3, 3 / 2])
def test_findings_of_a_jump_that_news_may_cause_are_a_warning(clean, factor):
    assert _told(findings(_scaled(clean, 200, factor))) == [("warning", "split_jump", SYMBOL, _day(clean, 200), 1)]


def test_findings_of_a_halving_are_a_warning_where_the_close_is_all_there_is(clean):
    flat = _scaled(clean, 200, 0.5).with_columns(pl.col("close").alias(name) for name in ("open", "high", "low"))
    assert _told(findings(flat)) == [("warning", "split_jump", SYMBOL, _day(clean, 200), 1)]


@pytest.mark.parametrize("factor", [0.55, 1.75, 6.0])
def test_findings_of_an_extreme_move_that_no_split_makes_are_a_warning(clean, factor):
    assert _told(findings(_scaled(clean, 200, factor))) == [("warning", "extreme", SYMBOL, _day(clean, 200), 1)]


def test_findings_of_a_dividend_that_explains_the_fall_are_none(clean):
    before = clean.filter(_rows(clean, 199))["close"][0]
    paid = pl.when(_rows(clean, 200)).then(before / 2).otherwise(0.0)
    assert findings(_scaled(clean, 200, 0.5).with_columns(dividend=paid)).is_empty()


@pytest.mark.parametrize("split", [2.0, 1.5, 0.1, 20.0])
def test_findings_of_a_split_that_prices_do_not_show_are_an_error(clean, split):
    declared = pl.when(_rows(clean, 200)).then(split).otherwise(1.0)
    assert _told(findings(clean.with_columns(split=declared))) == [
        ("error", "split_unmatched", SYMBOL, _day(clean, 200), 1)
    ]


def test_findings_of_sessions_without_volume_warn_and_without_any_are_an_error(clean):
    def silent(first, count):
        return clean.with_columns(volume=pl.when(_rows(clean, first, count)).then(0.0).otherwise("volume"))

    assert _told(findings(silent(30, 7))) == [("warning", "silent", SYMBOL, _day(clean, 30), 7)]
    assert _told(findings(silent(0, 504))) == [("error", "silent", SYMBOL, _day(clean, 0), 504)]


def test_findings_never_look_across_symbols(clean):
    early, late = clean["session"].quantile(0.4), clean["session"].quantile(0.6)
    prices = pl.when(pl.col("symbol") == SYMBOL).then(10).otherwise(1)
    apart = clean.with_columns(pl.col("open", "high", "low", "close") * prices).filter(
        ((pl.col("symbol") == "NOISE0000") & (pl.col("session") < early))
        | ((pl.col("symbol") == SYMBOL) & (pl.col("session") > late))
    )
    assert set(findings(apart)["check"]) == {"few", "life"}
    flat = clean.filter(pl.col("symbol").is_in(["NOISE0000", SYMBOL]))
    number = pl.int_range(pl.len()).over("symbol")
    ends = pl.when(pl.col("symbol") == SYMBOL).then(number < 4).otherwise(number >= 500)
    flat = flat.with_columns(pl.when(ends).then(100.0).otherwise(name).alias(name) for name in PRICES)
    assert "stale" not in findings(flat)["check"]


def test_findings_of_a_bad_tick_at_the_open_are_not_those_of_a_split(clean):
    halved = pl.when(_rows(clean, 200)).then(0.5).otherwise(1.0)
    assert findings(clean.with_columns(pl.col("open", "low") * halved)).is_empty()


def test_accepted_findings_become_notes_but_refused_rows_stay_errors(clean):
    broken = _scaled(clean, 200, 0.5).with_columns(low=pl.when(_rows(clean, 10)).then(-1.0).otherwise("low"))
    config = QualityConfig(accepted=(f"split_jump:{SYMBOL}", f"price:{SYMBOL}", "gap:OTHER"))
    found = findings(broken, config=config)
    assert found.select("severity", "check").rows() == [("error", "price"), ("note", "split_jump")]


def test_require_of_a_table_with_errors_tells_the_first_and_counts_the_rest(clean):
    broken = _scaled(clean, 200, 0.5).filter(~_rows(clean, 100, 12))
    with pytest.raises(BarsError, match=rf"^mine: gap at {SYMBOL} 2000-.*12 sessions.*fetch them.*\(1 more error\)$"):
        require(broken, source="mine")
    warned = require(clean.filter(~_rows(clean, 100)))
    assert warned["check"].to_list() == ["gap"]


def test_findings_of_an_empty_table_are_none(clean):
    assert findings(clean.clear()).is_empty()


def test_findings_do_not_depend_on_the_order_of_symbols(clean):
    broken = _scaled(clean, 200, 0.5).filter(~_rows(clean, 100, 3))
    assert findings(broken.sort("session", "symbol")).equals(findings(broken))


@pytest.fixture(scope="module")
def five_minutes() -> pl.DataFrame:
    return ticks(("AAPL", "IBM"), date(2024, 10, 28), date(2024, 12, 6))  # a half day, and the clocks' going back


WHOLE = QualityConfig(few_sessions=1)


def test_intraday_findings_of_whole_sessions_are_none(five_minutes):
    assert intraday_findings(five_minutes, 5, config=WHOLE).is_empty()


def test_intraday_findings_tell_missing_bars_missing_sessions_and_strange_hours(five_minutes):
    ibm, day = pl.col("symbol") == "IBM", pl.col("session")
    torn = five_minutes.filter(~(ibm & (day == date(2024, 11, 5)))).filter(
        ~(ibm & (day == date(2024, 11, 29)) & (pl.int_range(pl.len()) % 2 == 0))
    )
    late = five_minutes.tail(1).with_columns(pl.col("end") + pl.duration(hours=2))
    assert _told(intraday_findings(pl.concat([torn, late]), 5, config=WHOLE)) == [
        ("error", "hours", "IBM", date(2024, 12, 6), 1),
        ("warning", "gap", "IBM", date(2024, 11, 5), 1),
        ("warning", "holes", "IBM", date(2024, 11, 29), 21),
    ]


def test_intraday_findings_of_bars_of_another_length_are_an_error(five_minutes):
    sparse = five_minutes.gather_every(3)
    found = intraday_findings(sparse, 5, config=WHOLE)
    assert found.select("severity", "check").unique().rows() == [("error", "holes")]


def test_findings_of_noise_do_not_cry_wolf():
    """Two hundred symbols of fat tails: not one error."""
    world = WorldBars(WorldConfig(world=NoiseWorld(), symbols=100, sessions=1000)).fetch()
    rng = np.random.default_rng(0)
    shake = pl.Series(np.exp(np.clip(0.01 * rng.standard_t(3, world.height), -0.2, 0.2)))
    open_, close = world["open"] * shake, world["close"]
    shaken = world.with_columns(
        open=open_,
        high=pl.max_horizontal(open_, close),
        low=pl.min_horizontal(open_, close),
    )
    assert findings(shaken).filter(pl.col("severity") == "error").is_empty()
