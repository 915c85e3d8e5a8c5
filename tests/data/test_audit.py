"""The leakage audit: it passes what is honest, and names column, session, cause and reach of every planted leak."""

from __future__ import annotations

import json
import sys
from datetime import date

import numpy as np
import polars as pl
import pytest

import leaks
from data_pipeline.audit import AT_THE_OPEN, INSTANTS, Audit, Pipeline, audit, load_pipeline, pipeline_of
from data_pipeline.errors import BarsError, ConfigError, StoreError
from data_pipeline.features import FeatureSet
from data_pipeline.intraday import checked_intraday, to_daily
from data_pipeline.leakage import furthest
from data_pipeline.poison import AFTER_THE_OPEN, Poison, Poisonable, differing
from data_pipeline.schema import checked
from data_pipeline.sessions import month_ends, sessions_between, week_ends
from ticks import ticks

TRIO = ("S00", "S01", "S02")
KINDS = ("garbage", "drop", "gaps", "actions", "no actions", "garbage without actions")
DAY = date(2012, 8, 15)


@pytest.fixture(scope="module")
def recent(bars) -> pl.DataFrame:
    """Two years, in which one symbol is listed."""
    return bars.filter(pl.col("session") >= date(2011, 1, 1))


@pytest.fixture(scope="module")
def five() -> pl.DataFrame:
    """Two months of 5-minute bars with a half day."""
    return ticks(TRIO, date(2024, 6, 3), date(2024, 7, 31))


@pytest.fixture(scope="module")
def days(five) -> pl.DataFrame:
    return checked(to_daily(five), "ticks")


def _ahead(leak, bars) -> int:
    """Sessions of the history after the leak's instant."""
    return bars.filter(pl.col("session") > leak.altered_after)["session"].n_unique()


def _left(leak, ends) -> int:
    """Sessions of the leak's week or month after its instant."""
    day = np.array([leak.altered_after], "datetime64[D]")
    return len(sessions_between(leak.altered_after, ends(day)[0].item())) - 1


# ---- what is honest


def test_default_features_pass_on_the_bundled_history(bars, panel):
    done = []
    found = audit(bars, pipeline_of(FeatureSet.of(), panel.symbols), on_progress=lambda *step: done.append(step))
    assert found.passed, [str(leak) for leak in found.leaks]
    assert set(found.columns) == {*panel.feature_names, *panel.fields, "tradable", "ready_run"}
    assert found.unmoved == ("weekday", "year_sine", "year_cosine")
    assert (found.sessions, found.symbols, len(found.instants)) == (len(panel.sessions), 5, INSTANTS)
    assert found.cells_compared > 20_000_000
    assert found.scaler_spans >= 8
    assert found.notes == ()
    assert done == [(n, INSTANTS) for n in range(1, INSTANTS + 1)]
    reasons = {instant.why for instant in found.instants}
    for why in ("middle of a week", "last session of a week", "session before a split", "edge of a block"):
        assert why in reasons


def test_features_of_intraday_bars_pass_and_half_days_are_looked_at(five, days):
    found = audit(days, leaks.hourly(TRIO), five)
    assert found.passed, [str(leak) for leak in found.leaks]
    assert {instant.session for instant in found.instants if instant.why == "half day"} == {date(2024, 7, 3)}
    assert {"hour.rsi_14", "5min.session_volatility"} <= set(found.columns) - set(found.unmoved)


def test_features_of_intraday_bars_are_looked_at_before_a_change_of_the_clocks():
    five = ticks(TRIO[:1], date(2024, 2, 26), date(2024, 3, 22))
    found = audit(checked(to_daily(five), "ticks"), leaks.hourly(TRIO[:1]), five)
    assert found.passed, [str(leak) for leak in found.leaks]
    before = [instant.session for instant in found.instants if instant.why == "session before a change of the clocks"]
    assert before == [date(2024, 3, 8)]


def test_hours_over_the_night_pass_when_labelled_by_their_end(five, days):
    assert audit(days, leaks.hourly(TRIO, "end"), five).passed


# ---- what leaks


def _only(found: Audit, column: str):
    assert [leak.column for leak in found.leaks] == [column], [str(leak) for leak in found.leaks]
    return found.leaks[0]


PLANTED = {
    "centred window": (leaks.CENTRED, "centred_21", "window", 10),
    "forward window": (leaks.FORWARD, "highest_5", "window", 5),
    "return of tomorrow": (leaks.TOMORROW, "tomorrow", "next session", 1),
    "return of five sessions ahead": (leaks.FIVE_AHEAD, "five_ahead", "shift", 5),
    "breadth with tomorrow's close": (leaks.BREADTH_OF_TOMORROW, "breadth_50", "next session", 1),
    "ready only if it trades tomorrow": (leaks.READY_TOMORROW, "ready_run", "next session", 1),
    "same-day close at the open": (leaks.SAME_DAY_CLOSE, "gap", "own bar", 0),
    "prices adjusted backwards": (leaks.ADJUSTED_BACKWARDS, "adjusted_close", "later action", _ahead),
    "whole-sample z-score": (leaks.STANDARDISED, "return_1", "whole sample", _ahead),
    "tomorrow, said to be known at the open": (leaks.COMING_SESSION, "coming", "next session", 1),
    "share of the history elapsed": (leaks.ELAPSED, "elapsed", "length", None),
    "noise without a seed": (leaks.JITTERED, "jittered", "unstable", None),
}


@pytest.mark.parametrize(("pipeline", "column", "cause", "reach"), PLANTED.values(), ids=PLANTED)
def test_planted_leak_is_named_with_its_cause_and_reach(recent, pipeline, column, cause, reach):
    leak = _only(audit(recent, pipeline), column)
    assert leak.cause == cause
    if callable(reach):
        assert 0.9 * reach(leak, recent) <= leak.reach_sessions <= reach(leak, recent)
    else:
        assert leak.reach_sessions == reach
    assert leak.symbol in leaks.SYMBOLS
    assert leak.session <= leak.altered_after
    assert leak.cells > 0
    line = str(leak)
    assert line.startswith(f"{column} {leak.symbol} {leak.session}: {cause}: ")
    assert "\n" not in line


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize(
    ("pipeline", "cause"),
    [(leaks.CENTRED, "window"), (leaks.WEEK_BY_START, "longer bar"), (leaks.MONTH_BY_START, "longer bar")],
)
def test_planted_leak_is_named_whatever_the_seed(recent, pipeline, cause, seed):
    assert [leak.cause for leak in audit(recent, pipeline, seed=seed).leaks] == [cause]


@pytest.mark.parametrize(
    ("pipeline", "column", "ends", "word"),
    [
        (leaks.WEEK_BY_START, "week_by_start", week_ends, "week"),
        (leaks.MONTH_BY_START, "month_by_start", month_ends, "month"),
    ],
)
def test_longer_bar_labelled_by_its_start_reaches_to_its_close(recent, pipeline, column, ends, word):
    leak = _only(audit(recent, pipeline), column)
    assert leak.cause == "longer bar"
    assert leak.reach_sessions == _left(leak, ends) > 0
    assert f"a {word} is seen before it closes" in leak.explanation


def test_week_labelled_by_its_start_shows_on_wednesday_and_not_on_friday(recent):
    wednesday, friday = date(2012, 8, 15), date(2012, 8, 17)
    assert audit(recent, leaks.WEEK_BY_START, sessions=[friday]).passed
    found = audit(recent, leaks.WEEK_BY_START, sessions=[wednesday, friday])
    leak = _only(found, "week_by_start")
    assert (leak.cause, leak.reach_sessions, leak.altered_after) == ("longer bar", 2, wednesday)
    assert [instant.why for instant in found.instants] == ["asked for", "asked for"]


@pytest.mark.parametrize("months", [(date(2024, 6, 3), date(2024, 7, 31)), (date(2024, 2, 1), date(2024, 3, 29))])
def test_hour_labelled_by_its_start_is_named_with_the_minutes_it_is_early(months):
    five = ticks(TRIO, *months)
    leak = _only(audit(checked(to_daily(five), "ticks"), leaks.hourly(TRIO, "start"), five), "hour.return_1")
    assert (leak.cause, leak.reach_sessions) == ("longer bar", 1)
    assert "ends 30 minutes into the next session" in leak.explanation


def test_hour_that_is_still_forming_is_told_from_one_that_is_seen_early(five, days):
    leak = _only(audit(days, leaks.hourly(TRIO, "end", forming=True), five), "hour.return_1")
    assert (leak.cause, leak.reach_sessions) == ("length", None)
    assert "a bar that is still forming" in leak.explanation


def test_whole_sample_of_an_indicator_reaches_to_the_end_of_its_block(bars):
    """Blocks are computed at once; one ends with 2009."""
    history = bars.filter(pl.col("session").is_between(date(2008, 6, 2), date(2012, 1, 31)))
    leak = _only(audit(history, leaks.OVER_ITS_MEAN), "over_its_mean")
    assert leak.cause == "whole sample"
    assert "its block of 2520 sessions" in leak.explanation
    assert leak.altered_after < date(2009, 12, 1)
    assert leak.reach_sessions < 400 < _ahead(leak, history)


def test_leak_at_the_last_session_but_one_is_no_whole_sample(recent):
    leak = _only(audit(recent, leaks.TOMORROW, sessions=[date(2013, 2, 28)]), "tomorrow")
    assert (leak.cause, leak.reach_sessions) == ("next session", 1)


def test_back_fill_reaches_to_the_first_value(recent):
    leak = _only(audit(recent, leaks.BACK_FILLED), "filled_50")
    sessions = recent.filter(pl.col("symbol") == leak.symbol)["session"]
    assert leak.cause == "back-fill"
    assert leak.reach_sessions == 49 - sessions.to_list().index(leak.altered_after)


def test_other_symbols_are_mentioned_where_they_are_read(recent):
    everyone, own = audit(recent, leaks.BREADTH_OF_TOMORROW), audit(recent, leaks.TOMORROW)
    assert "other symbols" in _only(everyone, "breadth_50").explanation
    assert "other symbols" not in _only(own, "tomorrow").explanation


@pytest.mark.parametrize(
    ("part", "values"),
    [("close", ("close",)), ("high and low", ("high", "low")), ("volume", ("volume",))],
)
def test_own_bar_names_what_is_read_of_it(recent, part, values):
    """Fields of the panel itself, said to be known at the open."""
    found = audit(recent, leaks.HONEST._replace(known_at_open=AT_THE_OPEN | {"rsi_14", *values}), sessions=[DAY])
    by_column = {leak.column: leak for leak in found.leaks}
    assert set(by_column) - {"rsi_14"} == set(values)
    for value in values:
        assert f"its own session's {value};" in by_column[value].explanation
    assert "its own session's close;" in by_column["rsi_14"].explanation


def test_intraday_bars_of_the_session_are_not_known_at_its_open(five, days):
    early = leaks.hourly(TRIO)._replace(known_at_open=frozenset({"hour.return_1"}))
    leak = _only(audit(days, early, five), "hour.return_1")
    assert (leak.cause, leak.reach_sessions) == ("own bar", 0)
    assert "its own session's intraday bars" in leak.explanation


def test_scaler_fitted_to_the_whole_sample_is_named_for_every_feature(recent):
    found = audit(recent, leaks.SCALED_ON_ALL)
    assert [leak.column for leak in found.leaks] == list(leaks.NAMES)
    for leak in found.leaks:
        assert leak.cause == "scaler"
        assert leak.reach_sessions > 0.5 * _ahead(leak, recent)
        assert leak.session <= leak.altered_after


def test_scaler_fitted_one_session_too_long_is_named_with_that_reach(recent):
    found = audit(recent, leaks.SCALED_ONE_TOO_LONG)
    assert {leak.cause for leak in found.leaks} == {"scaler"}
    reached = {leak.column: leak.reach_sessions for leak in found.leaks}
    assert reached["return_1"] == reached["rsi_14"] == 1


@pytest.mark.parametrize(
    ("pipeline", "axis"),
    [
        (leaks.MOST_LIQUID, "symbols"),
        (leaks.WHOLE_HISTORIES, "symbols"),
        (leaks.FEATURES_THAT_WORK, "features"),
    ],
)
def test_axis_chosen_with_hindsight_is_named(recent, pipeline, axis):
    leak = _only(audit(recent, pipeline), axis)
    assert (leak.cause, leak.reach_sessions) == ("axis", None)


def test_two_leaks_of_one_pipeline_are_told_apart(recent):
    found = audit(recent, leaks.adjusted_backwards(leaks.CENTRED))
    assert [(leak.column, leak.cause) for leak in found.leaks] == [
        ("centred_21", "window"),
        ("adjusted_close", "later action"),
    ]


# ---- the audit itself


def test_audit_is_json_ready_and_the_same_for_the_same_seed(recent):
    first, again, other = (audit(recent, leaks.CENTRED, seed=seed) for seed in (3, 3, 4))
    assert json.loads(json.dumps(first.tree(), allow_nan=False))["leaks"][0]["cause"] == "window"
    assert first == again
    assert first.instants != other.instants


def test_audit_of_very_many_bars_looks_at_fewer_instants_and_says_so(recent, monkeypatch):
    monkeypatch.setattr("data_pipeline.audit._ROWS_IN_ALL", 10 * recent.height)
    found = audit(recent, leaks.HONEST)
    assert len(found.instants) == 10
    assert found.notes == (f"10 instants only: building {recent.height:,} bars again and again takes long",)


def test_audit_of_a_pipeline_that_ignores_its_bars_is_refused(recent):
    with pytest.raises(ConfigError, match=r"altering all bars after 20\d\d-\d\d-\d\d changes nothing"):
        audit(recent, leaks.from_memory(recent))


def test_audit_of_a_pipeline_that_fills_the_same_arrays_again_is_refused(recent):
    with pytest.raises(ConfigError, match=r"changes nothing .* return new arrays"):
        audit(recent, leaks.into_the_same_arrays(recent))


def test_audit_of_a_pipeline_that_refuses_wild_prices_is_refused_with_its_words(recent):
    with pytest.raises(BarsError, match=r"refuses altered bars after .* moved too much.*without its own checks"):
        audit(recent, leaks.CALM_ONLY)


def test_audit_of_a_pipeline_that_refuses_short_histories_says_so_and_goes_on(recent):
    found = audit(recent, leaks.LONG_ONLY)
    assert found.passed
    assert len(found.notes) == 1
    assert "'drop' after 2011-01-" in found.notes[0]
    assert "too short" in found.notes[0]


def test_audit_with_unknown_columns_or_impossible_sessions_is_refused(recent):
    with pytest.raises(ConfigError, match="known_at_open names no_such"):
        audit(recent, leaks.HONEST._replace(known_at_open=frozenset({"no_such"})))
    with pytest.raises(ConfigError, match="2013-03-01: nothing follows the last session"):
        audit(recent, leaks.HONEST, sessions=[date(2013, 3, 1)])
    with pytest.raises(StoreError, match="2012-08-18 is not in the panel"):
        audit(recent, leaks.HONEST, sessions=[date(2012, 8, 18)])
    with pytest.raises(BarsError, match="2 sessions are too few"):
        audit(recent.filter(pl.col("session") >= date(2013, 2, 28)), leaks.HONEST)


@pytest.mark.parametrize("most", [1, 2, 3, 17, 64])
def test_furthest_equals_a_plain_scan(most):
    for reach in range(1, most + 1):
        asked = []
        assert furthest(lambda ahead, reach=reach: asked.append(ahead) or ahead < reach, most) == reach  # noqa: B023
        assert all(0 < ahead < most for ahead in asked)
        assert len(asked) <= 2 * np.log2(most) + 1


def test_differing_counts_bits_and_takes_every_nan_for_the_same():
    nan, other = np.array([0x7FF8000000000000, 0xFFF8000000000001], np.uint64).view(np.float64)
    a, b = np.array([1.0, nan, nan, 0.0, 1.0, 2.0]), np.array([1.0, other, 3.0, -0.0, nan, np.nextafter(2.0, 3.0)])
    assert differing(a, b).tolist() == [False, False, True, True, True, True]
    assert differing(a, a.astype(np.float32)).tolist() == [False] * 6


# ---- altered bars


@pytest.mark.parametrize("own", [(), AFTER_THE_OPEN, ("close",), ("high", "intraday")])
@pytest.mark.parametrize("kind", KINDS)
def test_altered_bars_are_fit_for_use_and_the_past_is_untouched(recent, kind, own):
    altered, _ = Poisonable(recent, None, 0).altered(Poison(DAY, kind, own=own))
    checked(altered, kind)
    past = pl.col("session") < DAY if own and kind not in ("drop", "gaps") else pl.col("session") <= DAY
    assert altered.filter(past).equals(recent.filter(past))
    untouched = ["symbol", "session", "open", "split", "dividend"]
    now = pl.col("session") == DAY
    assert altered.filter(now).select(untouched).equals(recent.filter(now).select(untouched))
    assert not altered.filter(pl.col("session") > DAY).equals(recent.filter(pl.col("session") > DAY))


def test_altered_bars_are_garbage_in_every_later_value(recent):
    later = pl.col("session") > DAY
    true = recent.filter(later)
    wild = Poisonable(recent, None, 0).altered(Poison(DAY))[0].filter(later)
    for name in ("open", "high", "low", "close", "volume", "split", "dividend"):
        assert (wild[name] != true[name]).all(), name
    actions = Poisonable(recent, None, 0).altered(Poison(DAY, "actions"))[0].filter(later)
    changed = {name for name in actions.columns if not actions[name].equals(true[name])}
    assert changed == {"split", "dividend"}


def test_altered_bars_may_be_limited_to_sessions_symbols_and_instants(days, five):
    day, until = date(2024, 6, 12), date(2024, 6, 14)
    bars = Poisonable(days, five, 0)
    altered, minutes = bars.altered(Poison(day, until=until, spared="S01"))
    for table, true in ((altered, days), (minutes, five)):
        touched = true.filter(table["close"] != true["close"])
        assert set(touched["symbol"]) == {"S00", "S02"}
        assert (touched["session"].min(), touched["session"].max()) == (date(2024, 6, 13), until)
    instant = five.filter(pl.col("session") == date(2024, 6, 13))["end"][40]
    altered, minutes = bars.altered(Poison(day, table="intraday", instant=instant))
    assert altered.equals(days)
    assert five.filter(minutes["close"] != five["close"])["end"].min() > instant
    assert checked_intraday(minutes, 5, "garbage").equals(minutes)
    gappy, minutes = bars.altered(Poison(day, "gaps"))
    assert 0.1 * days.height < days.height - gappy.height < 0.5 * days.height
    assert minutes.select("symbol", "session").unique().height == gappy.height


# ---- pipelines by name


def test_load_pipeline_takes_a_pipeline_or_what_makes_one_of_a_feature_set():
    chosen = FeatureSet.of(("return_1", "rsi_14"))
    assert load_pipeline("leaks:CENTRED", chosen) is leaks.CENTRED
    assert load_pipeline("leaks:told_at_the_open", chosen).known_at_open == {"return_1"}


def test_load_pipeline_finds_modules_of_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(sys.path))
    (tmp_path / "mine_here.py").write_text("from data_pipeline.audit import Pipeline\nmine = Pipeline(None)\n")
    assert isinstance(load_pipeline("mine_here:mine", FeatureSet.of()), Pipeline)


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("leaks", "write it as package.module:attribute"),
        (":CENTRED", "write it as package.module:attribute"),
        ("no_such_module:x", "No module named 'no_such_module'"),
        ("leaks:NO_SUCH", "has no attribute 'NO_SUCH'"),
        ("leaks:SYMBOLS", "is a tuple; name a data_pipeline.audit.Pipeline"),
    ],
)
def test_load_pipeline_of_something_else_is_refused(target, said):
    with pytest.raises(ConfigError, match=said):
        load_pipeline(target, FeatureSet.of())
