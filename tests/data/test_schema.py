"""The bars table: what is refused, and in which words."""

from __future__ import annotations

import numpy as np
import polars as pl
import pytest

from data_pipeline.errors import BarsError, UnknownSymbolError
from data_pipeline.schema import ORDER_CHECKS, checked, in_order, selected
from planted import BROKEN, three_bars


@pytest.mark.parametrize(("changes", "words"), [(c, w) for _, c, w in BROKEN.values()], ids=BROKEN)
def test_checked_bars_with_a_defect_are_refused_with_symbol_session_and_remedy(changes, words):
    with pytest.raises(BarsError, match=rf"mine: .*{words}.* (A|None) 2020-01-0[36] \(open=.*\); \w+"):
        checked(three_bars(**changes), "mine")


def test_checked_bars_without_actions_get_none():
    bars = checked(three_bars(), "mine")
    assert bars["split"].to_list() == [1.0] * 3
    assert bars["dividend"].to_list() == [0.0] * 3


def test_checked_bars_without_a_column_name_it():
    with pytest.raises(BarsError, match="column volume missing"):
        checked(three_bars().drop("volume"), "mine")


def test_checked_bars_session_by_session_come_back_by_symbol(bars):
    assert checked(bars.sort("session", "symbol"), "mine").equals(bars)


def test_in_order_agrees_with_the_order_checks_on_random_tables():
    rng = np.random.default_rng(0)
    answers = []
    for _ in range(300):
        table = pl.DataFrame({"symbol": rng.choice(["A", "B"], 4), "session": rng.integers(0, 6, 4)})
        if rng.random() < 0.5:
            table = table.sort("symbol", "session")
        defects = table.select(pl.any_horizontal(check.bad for check in ORDER_CHECKS).any()).item()
        assert in_order(table) == (table["symbol"].is_sorted() and not defects)
        answers.append(in_order(table))
    assert 50 < sum(answers) < 250


def test_selected_bars_of_a_strange_symbol_name_it_and_what_there_is(bars):
    with pytest.raises(UnknownSymbolError, match=r"XYZ.*AAPL"):
        selected(bars, ["AAPL", "XYZ"], None, None, "mine")
