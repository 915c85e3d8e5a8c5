"""The bundled history against its own adjusted close, and corporate actions recovered from one."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from bokeh_sampledata.stocks import data as published

from data_pipeline.adjusted import adjustment_factor
from data_pipeline.errors import BarsError, UnknownSymbolError
from data_pipeline.sessions import sessions_between
from data_pipeline.sources.actions import with_actions
from data_pipeline.sources.bundled import BundledBars


def test_bundled_bars_adjusted_by_their_actions_give_the_published_total_return(bars):
    theirs = pl.from_pandas(published).sort("ticker", "date")
    for (symbol,), rows in bars.group_by("symbol"):
        ours = rows["close"].to_numpy() * adjustment_factor(rows)
        total = theirs.filter(pl.col("ticker") == symbol)["adj_close"].to_numpy()
        np.testing.assert_allclose(np.diff(np.log(ours)), np.diff(np.log(total)), atol=1e-9)


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


def test_bundled_bars_unknown_symbol_is_named_with_what_there_is():
    with pytest.raises(UnknownSymbolError, match=r"XYZ.*AAPL"):
        BundledBars().fetch(["AAPL", "XYZ"])


def test_build_with_an_unknown_symbol_exits_2_and_writes_nothing(tmp_path: Path, command):
    settings = ("symbols=[AAPL, XYZ]", f"store={tmp_path}/s", f"panels={tmp_path}/p")
    done = command("swing-data", "build", *(word for setting in settings for word in ("--set", setting)))
    assert done.returncode == 2
    assert "XYZ" in done.stderr
    assert list(tmp_path.iterdir()) == []


def _two_years(split: float = 1.0, dividend: float = 0.0, decimals: int | None = None) -> pl.DataFrame:
    """One symbol whose 250th session splits or pays; adj_close counts back from the end, as vendors do."""
    moves = np.random.default_rng(3).normal(0, 0.01, 500)
    adjusted = 20 * np.exp(moves.cumsum())
    before = adjusted[249] * 1.0
    factor = np.where(np.arange(500) < 250, split / (1 - dividend / before), 1.0)
    days = sessions_between(date(2010, 1, 4), date(2011, 12, 30))[:500]
    seen = adjusted if decimals is None else adjusted.round(decimals)
    return pl.DataFrame({"symbol": "A", "session": days, "close": adjusted * factor, "adj_close": seen})


@pytest.mark.parametrize("split", [2.0, 1.5, 7.0, 20.0, 0.5, 0.1, 0.05])
def test_actions_of_a_split_are_found_on_its_session_and_nowhere_else(split):
    found = with_actions(_two_years(split=split), "mine")
    np.testing.assert_allclose(found["split"][250], split)
    assert (found["split"] != 1).sum() == 1
    assert found["dividend"].sum() == 0


@pytest.mark.parametrize("decimals", [None, 6, 4, 3, 2])
def test_actions_of_one_dividend_are_that_dividend_however_adj_close_is_rounded(decimals):
    found = with_actions(_two_years(dividend=0.1, decimals=decimals), "mine")
    paid = found.filter(pl.col("dividend") > 0)
    assert paid["session"].to_list() == [found["session"][250]]
    np.testing.assert_allclose(paid["dividend"], 0.1, atol=0.011 if decimals == 2 else 2e-3)


def test_actions_are_told_apart_by_symbol():
    two = pl.concat([_two_years(split=2.0), _two_years(dividend=0.2).with_columns(symbol=pl.lit("B"))])
    found = with_actions(two, "mine")
    assert found.filter(pl.col("split") != 1).select("symbol").rows() == [("A",)]
    assert found.filter(pl.col("dividend") > 0).select("symbol").rows() == [("B",)]


def test_actions_of_an_adjusted_close_that_falls_are_refused():
    with pytest.raises(BarsError, match=r"mine: adj_close falls by 10.0% against close at A 20\d\d-.*mend"):
        with_actions(_two_years(split=0.9), "mine")


@pytest.mark.parametrize("value", [None, float("nan"), 0.0])
def test_actions_of_a_missing_adjusted_close_are_refused(value):
    bars = _two_years().with_columns(adj_close=pl.when(pl.int_range(500) == 9).then(value).otherwise("adj_close"))
    with pytest.raises(BarsError, match=r"mine: adj_close is .* at A 2010-01-15"):
        with_actions(bars, "mine")
