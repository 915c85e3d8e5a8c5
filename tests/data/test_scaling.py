"""The scaler: robust, pooled over symbols, and ignorant of all but its span."""

from __future__ import annotations

import json

import numpy as np
import pytest

from data_pipeline.errors import FoldError
from data_pipeline.folds import Span
from data_pipeline.scaling import Scaler, fit_scaler

SPAN = Span(1000, 2000)


def test_scaler_does_not_know_what_lies_outside_its_span(panel):
    changed = panel.features.copy()
    changed[: SPAN.start], changed[SPAN.stop :] = -99.0, 99.0
    assert fit_scaler(panel.changed(features=changed), SPAN) == fit_scaler(panel, SPAN)


def test_scaler_by_pencil(panel):
    scaler = fit_scaler(panel, SPAN)
    rows = slice(*SPAN)
    cells = panel.features[rows][panel.ready[rows]].astype(float)  # of all symbols
    low, median, high = np.percentile(cells, [25, 50, 75], axis=0)
    assert scaler.median == tuple(median)
    assert scaler.spread == tuple(high - low)
    scaled = scaler.transform(panel.features[rows])
    expected = np.clip((cells - median) / (high - low), -scaler.clip, scaler.clip)
    np.testing.assert_allclose(scaled[panel.ready[rows]], expected, atol=1e-4)
    assert scaled.dtype == np.float32


def test_scaler_missing_stays_missing_and_outliers_are_clipped():
    scaler = Scaler(median=(1.0, 0.0), spread=(2.0, 1.0), clip=3.0)
    features = np.array([[2.0, np.nan], [100.0, -100.0]], np.float32)
    np.testing.assert_array_equal(scaler.transform(features), np.array([[0.5, np.nan], [3.0, -3.0]], np.float32))


def test_scaler_flag_that_rarely_changes_keeps_its_unit(panel):
    features = panel.features.copy()
    features[..., 0] = 0.0
    features[::50, :, 0] = 1.0
    scaler = fit_scaler(panel.changed(features=features), SPAN)
    assert (scaler.median[0], scaler.spread[0]) == (0.0, 1.0)


def test_scaler_without_a_complete_cell_is_refused_with_the_dates(panel):
    first, last = panel.sessions[0], panel.sessions[1]
    with pytest.raises(FoldError, match=f"between {first} and {last}; start the fold later"):
        fit_scaler(panel, Span(0, 2))


def test_scaler_numbers_survive_storage_exactly(panel):
    scaler = fit_scaler(panel, SPAN)
    assert Scaler.of(json.loads(json.dumps(scaler.tree()))) == scaler
