"""Twins keep each side of the market whole and break what leads from one to the other."""

from __future__ import annotations

import numpy as np
import pytest

from data_pipeline.folds import Fold, Span
from data_pipeline.panel import Panel
from rl.judging.twins import twin_of

SESSIONS, HOLDOUT = 700, 500
FINAL = Fold("final", Span(100, 480), Span(480, 480), Span(HOLDOUT, SESSIONS))


def panel_of(first_rows=(0, 0, 150)):
    """A market whose feature 0 is the very return that follows; symbols begin at different rows."""
    rng = np.random.default_rng(0)
    shape = (SESSIONS, len(first_rows))
    returns = rng.normal(0, 0.01, (SESSIONS + 1, len(first_rows)))
    closes = 50 * np.exp(np.cumsum(returns[:-1], axis=0))
    features = np.stack([returns[1:], np.broadcast_to(np.arange(SESSIONS)[:, None], shape)], axis=-1)
    features = features.astype(np.float32)
    for column, first in enumerate(first_rows):
        features[:first, column] = np.nan
    constant = {"volume": 1e7, "split": 1.0, "dividend": 0.0, "sigma": 0.01, "adv": 1e7, "spread": 0.0}
    prices = dict.fromkeys(("open", "high", "low", "close", "adjusted_close"), closes)
    return Panel.of(
        sessions=np.busday_offset("2010-01-04", np.arange(SESSIONS)),
        symbols=("A", "B", "C"),
        feature_names=("next", "row"),
        schema_hash="",
        source={},
        features=features,
        fields={**prices, **{name: np.full(shape, value) for name, value in constant.items()}},
    )


@pytest.fixture(scope="module")
def panel():
    return panel_of()


def test_twin_has_the_same_prices_and_the_same_feature_rows_in_other_places(panel):
    twin = twin_of(panel, FINAL, 63, seed=0)
    for name, values in panel.fields.items():
        np.testing.assert_array_equal(twin.fields[name], values)
    np.testing.assert_array_equal(twin.ready, panel.ready)
    for column, first in enumerate((0, 0, 150)):
        for rows in (slice(first, HOLDOUT), slice(HOLDOUT, SESSIONS)):
            ours, theirs = panel.features[rows, column, 1], twin.features[rows, column, 1]
            np.testing.assert_array_equal(np.sort(theirs), ours)
            assert (theirs != ours).mean() > 0.95


def test_twin_features_say_nothing_of_the_next_return(panel):
    twin = twin_of(panel, FINAL, 63, seed=0)
    known = ~np.isnan(panel.features[..., 0])
    told = [np.corrcoef(each.features[known][:, 0], panel.features[known][:, 0])[0, 1] for each in (panel, twin)]
    assert told[0] == pytest.approx(1.0)
    assert abs(told[1]) < 4 / np.sqrt(known.sum())


def test_twin_keeps_the_order_of_sessions_within_a_block(panel):
    rows = twin_of(panel, FINAL, 50, seed=0).features[:HOLDOUT, 0, 1]
    assert (np.diff(rows) != 1).sum() < HOLDOUT // 50


def test_symbols_with_as_many_rows_stay_side_by_side(panel):
    twin = twin_of(panel, FINAL, 63, seed=0)
    np.testing.assert_array_equal(twin.features[:, 0, 1], twin.features[:, 1, 1])


def test_twins_differ_by_their_seed_and_are_the_same_again(panel):
    one, again, other = (twin_of(panel, FINAL, 63, seed).features for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(np.nan_to_num(one), np.nan_to_num(other))


@pytest.mark.parametrize("block", [1, 7, 1000])
def test_blocks_of_any_length_move(panel, block):
    twin = twin_of(panel, FINAL, block, seed=3)
    assert (twin.features[:HOLDOUT, 0, 1] != panel.features[:HOLDOUT, 0, 1]).all()
