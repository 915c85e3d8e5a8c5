"""Bars: the bundled history against its own adjusted close, and what is refused."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from bokeh_sampledata.stocks import data as published

from data_pipeline.errors import BarsError, ConfigError, UnknownSymbolError
from data_pipeline.features import with_adjusted
from data_pipeline.schema import checked
from data_pipeline.sessions import next_session, sessions_between
from data_pipeline.sources.bundled import BundledBars
from data_pipeline.sources.files import FileBars
from data_pipeline.sources.source import source_of


def test_bundled_bars_adjusted_by_their_actions_give_the_published_total_return(bars):
    ours = with_adjusted(bars).with_columns(adjusted=pl.col("close") * pl.col("factor"))
    theirs = pl.from_pandas(published).sort("ticker", "date")
    for symbol in ours["symbol"].unique():
        a = np.diff(np.log(ours.filter(pl.col("symbol") == symbol)["adjusted"].to_numpy()))
        b = np.diff(np.log(theirs.filter(pl.col("ticker") == symbol)["adj_close"].to_numpy()))
        np.testing.assert_allclose(a, b, atol=1e-9)


def test_bundled_bars_splits_are_those_that_happened(bars):
    splits = bars.filter(pl.col("split") != 1).select("symbol", "session", "split").rows()
    assert splits == [
        ("AAPL", date(2000, 6, 21), 2.0),
        ("AAPL", date(2005, 2, 28), 2.0),
        ("MSFT", date(2003, 2, 18), 2.0),
    ]


def test_bundled_bars_stand_on_exchange_sessions_only(bars):
    days = bars.filter(pl.col("symbol") == "IBM")["session"].to_numpy()
    assert (sessions_between(date(2000, 3, 1), date(2013, 3, 1)) == days.astype("datetime64[D]")).all()


def test_next_session_after_a_friday_before_a_holiday_is_tuesday():
    assert next_session(date(2013, 1, 18)) == date(2013, 1, 22)


def test_bundled_bars_unknown_symbol_is_named_with_what_there_is():
    with pytest.raises(UnknownSymbolError, match=r"XYZ.*AAPL"):
        BundledBars().fetch(["AAPL", "XYZ"])


def _bars(**changes):
    columns = {
        "symbol": ["A", "A", "A"],
        "session": [date(2020, 1, 2), date(2020, 1, 3), date(2020, 1, 6)],
        "open": [10.0, 11.0, 12.0],
        "high": [11.0, 12.0, 13.0],
        "low": [9.0, 10.0, 11.0],
        "close": [10.5, 11.5, 12.5],
        "volume": [100.0, 200.0, 300.0],
    }
    return pl.DataFrame(columns | changes)


BROKEN = {
    "NaN": ({"close": [10.5, float("nan"), 12.5]}, "NaN"),
    "null": ({"volume": [100.0, None, 300.0]}, "missing"),
    "duplicate": ({"session": [date(2020, 1, 2), date(2020, 1, 3), date(2020, 1, 3)]}, "duplicate session"),
    "unsorted": ({"session": [date(2020, 1, 2), date(2020, 1, 6), date(2020, 1, 3)]}, "earlier than the row before"),
    "negative price": ({"low": [9.0, -1.0, 11.0]}, "at or below zero"),
    "high below close": ({"high": [11.0, 11.2, 13.0]}, "does not bracket"),
    "negative volume": ({"volume": [100.0, -2.0, 300.0]}, "negative volume"),
}


@pytest.mark.parametrize(("changes", "words"), BROKEN.values(), ids=BROKEN)
def test_checked_bars_with_a_defect_are_refused_with_symbol_and_session(changes, words):
    with pytest.raises(BarsError, match=rf"mine: .*{words}.*A 2020-01-0[36]"):
        checked(_bars(**changes), "mine")


def test_checked_bars_without_actions_get_none():
    bars = checked(_bars(), "mine")
    assert bars["split"].to_list() == [1.0] * 3
    assert bars["dividend"].to_list() == [0.0] * 3


def test_checked_bars_without_a_column_name_it():
    with pytest.raises(BarsError, match="column volume missing"):
        checked(_bars().drop("volume"), "mine")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_file_bars_read_back_what_was_written(tmp_path: Path, suffix):
    path = tmp_path / f"bars.{suffix}"
    getattr(_bars(), f"write_{suffix}")(path)
    assert FileBars(path).fetch().equals(checked(_bars(), "mine"))


def test_source_of_an_absent_file_says_what_to_give():
    with pytest.raises(ConfigError, match="bundled"):
        source_of("nowhere.csv")


@pytest.mark.parametrize("defect", ["NaN", "duplicate", "unsorted", "negative price"])
def test_fetch_of_a_broken_file_exits_2_with_one_line_and_writes_nothing(tmp_path: Path, command, defect):
    path = tmp_path / "bars.parquet"
    _bars(**BROKEN[defect][0]).write_parquet(path)
    done = command("swing-data", "fetch", "--set", f"source={path}", "--set", f"store={tmp_path / 'store'}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert BROKEN[defect][1] in done.stderr
    assert not (tmp_path / "store").exists()


def test_build_with_an_unknown_symbol_exits_2_and_writes_nothing(tmp_path: Path, command):
    done = command(
        "swing-data",
        "build",
        "--set",
        "symbols=[AAPL, XYZ]",
        "--set",
        f"store={tmp_path}/s",
        "--set",
        f"panels={tmp_path}/p",
    )
    assert done.returncode == 2
    assert "XYZ" in done.stderr
    assert list(tmp_path.iterdir()) == []
