"""Snapshots, panels, scaler and folds: whole or refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import FoldError, StoreError
from data_pipeline.folds import FoldsConfig, Span, walk_forward
from data_pipeline.panel import open_panel, save_panel
from data_pipeline.scaling import fit_scaler
from data_pipeline.store import Store


def _flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def test_store_written_bars_come_back_and_the_same_bars_make_no_second_snapshot(tmp_path, bars):
    store = Store(str(tmp_path))
    first = store.write(bars, {"source": "test"})
    assert store.read(first.id).equals(bars)
    assert store.write(bars, {"source": "test"}).id == first.id
    assert store.write(bars.head(100), {"source": "test"}).id != first.id
    assert len(store.snapshots()) == 2


def test_store_flipped_byte_is_refused(tmp_path, bars):
    store = Store(str(tmp_path))
    snapshot = store.write(bars, {"source": "test"})
    _flip(tmp_path / "bars" / snapshot.id / "bars.parquet", 1000)
    with pytest.raises(StoreError, match="altered"):
        store.read(snapshot.id)


def test_store_without_its_manifest_holds_no_snapshot(tmp_path, bars):
    store = Store(str(tmp_path))
    snapshot = store.write(bars, {"source": "test"})
    (tmp_path / "bars" / snapshot.id / "manifest.json").unlink()
    assert store.snapshots() == []
    with pytest.raises(StoreError):
        store.read(snapshot.id)


def test_panel_saved_and_opened_is_the_same_and_memory_mapped(tmp_path, panel):
    folder = save_panel(panel, tmp_path)
    again = open_panel(folder, verify=True)
    np.testing.assert_array_equal(again.features, panel.features)
    assert isinstance(again.features, np.memmap)
    assert save_panel(panel, tmp_path) == folder


def test_panel_flipped_byte_is_refused(tmp_path, panel):
    folder = save_panel(panel, tmp_path)
    _flip(folder / "close.npy", 5000)
    with pytest.raises(StoreError, match="close altered"):
        open_panel(folder, verify=True)


def test_scaler_does_not_know_what_follows_its_span(panel):
    span = Span(1000, 2000)
    changed = panel.features.copy()
    changed[2000:] = 99.0
    other = type(panel)(**{**panel.__dict__, "features": changed})
    assert fit_scaler(other, span) == fit_scaler(panel, span)


def test_scaler_by_pencil(panel):
    span = Span(1000, 2000)
    scaler = fit_scaler(panel, span)
    cells = panel.features[1000:2000][panel.ready[1000:2000]].astype(float)
    scaled = scaler.transform(panel.features[1000:2000])[panel.ready[1000:2000]]
    np.testing.assert_allclose(np.median(scaled, axis=0), 0.0, atol=1e-6)
    quartiles = np.percentile(cells, [25, 75], axis=0)
    np.testing.assert_allclose(quartiles[1] - quartiles[0], scaler.spread)
    assert np.abs(scaled).max() <= scaler.clip


def test_walk_forward_spans_by_pencil():
    config = FoldsConfig(train_sessions=100, validation_sessions=30, test_sessions=50, purge_sessions=5, count=2)
    folds, final = walk_forward(300, 10, config)
    assert final.judged == Span(250, 300)
    assert final.train == Span(145, 245)
    assert [fold.judged for fold in folds] == [Span(185, 215), Span(215, 245)]
    assert [fold.train for fold in folds] == [Span(80, 180), Span(110, 210)]


def test_walk_forward_judged_sessions_never_touch_training_within_the_purge():
    folds, final = walk_forward(3270, 60, FoldsConfig())
    for fold in (*folds, final):
        assert fold.train.stop + FoldsConfig().purge_sessions <= fold.judged.start
    assert all(fold.judged.stop <= final.judged.start - FoldsConfig().purge_sessions for fold in folds)


@pytest.mark.parametrize("sessions", [2000, 2300, 3000])
def test_walk_forward_too_short_says_what_would_fit(sessions):
    with pytest.raises(FoldError) as caught:
        walk_forward(sessions, 60, FoldsConfig(count=9))
    words = str(caught.value)
    if "folds.count" in words:
        count = int(words.rsplit(" ", 1)[1])
        walk_forward(sessions, 60, FoldsConfig(count=count))
        with pytest.raises(FoldError):
            walk_forward(sessions, 60, FoldsConfig(count=count + 1))
    else:
        with pytest.raises(FoldError):
            walk_forward(sessions, 60, FoldsConfig(count=1))
