"""Panels: stored symbol by symbol, whole or refused."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_pipeline.assemble import build_panel
from data_pipeline.build import DataConfig, build
from data_pipeline.errors import StoreError
from data_pipeline.features import FeatureSet
from data_pipeline.panel import COLUMNS, STORED, Panel, open_panel, run_lengths, save_panel, write_panel

FEW = FeatureSet.of(("rsi_14", "relative_volume_20"))
SYMBOLS = ("MSFT", "MISSING", "GOOG", "IBM")


@pytest.fixture(scope="module")
def holes(bars) -> pl.DataFrame:
    """Bars of which some are missing and some without volume; those of GOOG end early."""
    chance = pl.Series(np.random.default_rng(0).random(bars.height))
    ended = (pl.col("symbol") == "GOOG") & (pl.col("session") > date(2012, 6, 1))
    silenced = bars.with_columns(volume=pl.when(chance < 0.02).then(0.0).otherwise("volume"))
    return silenced.filter((chance < 0.98) & ~ended)


@pytest.fixture(scope="module")
def holey(holes) -> Panel:
    return build_panel(holes, FEW, SYMBOLS)


def _flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def _assert_equal(a: Panel, b: Panel) -> None:
    """All stored arrays, bit for bit."""
    for attribute in STORED.values():
        assert getattr(a, attribute).tobytes() == getattr(b, attribute).tobytes(), attribute


# ---- layout


def test_panel_stores_each_symbols_rows_together_and_answers_views(tmp_path, panel):
    t, n, f = len(panel.sessions), len(panel.symbols), len(panel.feature_names)
    shapes = {"sessions": (t,), "features": (n, t, f), "bars": (n, t, len(COLUMNS)), "ready_run": (n, t)}
    for each in (panel, open_panel(save_panel(panel, tmp_path))):
        for name, attribute in STORED.items():
            assert getattr(each, attribute).shape == shapes.get(name, (n,))
            assert getattr(each, attribute).flags.c_contiguous
        assert each.features.shape == (t, n, f)
        assert np.shares_memory(each.features, each.features_NTF)
        assert tuple(each.fields) == COLUMNS
        for k, values in enumerate(each.fields.values()):
            assert np.shares_memory(values, each.bars_NTK)
            np.testing.assert_array_equal(values, each.bars_NTK[..., k].T)


def test_panel_saved_and_opened_is_the_same_and_memory_mapped_without_a_copy(tmp_path, panel):
    folder = save_panel(panel, tmp_path)
    again = open_panel(folder, verify=True)
    _assert_equal(again, panel)
    for name, attribute in STORED.items():
        stored = getattr(again, attribute)
        assert isinstance(stored.base, np.memmap)
        assert not stored.flags.writeable
        assert np.load(folder / f"{name}.npy").tobytes() == stored.tobytes()
    assert save_panel(panel, tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_panel_of_arrays_by_session_is_the_one_built_of_bars(holey):
    _assert_equal(holey.changed(), holey)


def test_panel_with_other_features_is_ready_where_they_are_finite(holey):
    features = holey.features.copy()
    features[100:200, 0] = np.nan
    changed = holey.changed(features=features)
    assert changed.ready_run_NT[0, 200:210].tolist() == run_lengths(holey.ready[200:210, 0]).tolist()
    np.testing.assert_array_equal(changed.ready[:100], holey.ready[:100])
    assert not changed.ready[100:200, 0].any()


def test_panel_without_all_columns_or_with_another_is_refused(panel):
    fields = panel.fields
    with pytest.raises(ValueError, match="fields mood: missing or unknown; give exactly open, high"):
        panel.changed(fields=fields | {"mood": fields["open"]})
    del fields["spread"]
    with pytest.raises(ValueError, match="fields spread: missing"):
        panel.changed(fields=fields)


# ---- how long each symbol has been ready, and its last bar


def test_run_lengths_by_pencil():
    ready = np.array([[True, True, False, True, True], [False, False, True, True, True]])
    np.testing.assert_array_equal(run_lengths(ready), [[1, 2, 0, 1, 2], [0, 0, 1, 2, 3]])
    np.testing.assert_array_equal(run_lengths(ready, before=7), [[8, 9, 0, 1, 2], [0, 0, 1, 2, 3]])
    assert run_lengths(ready).dtype == np.int32
    assert run_lengths(ready[:, :0], before=7).shape == (2, 0)


def test_ready_run_on_bars_with_holes_equals_a_plain_loop(holey):
    volume, features = holey.fields["volume"], holey.features
    for n in range(len(SYMBOLS)):
        run, runs = 0, []
        for t in range(len(holey.sessions)):
            run = run + 1 if volume[t, n] > 0 and np.isfinite(features[t, n]).all() else 0
            runs.append(run)
        assert holey.ready_run_NT[n].tolist() == runs
    np.testing.assert_array_equal(holey.ready, holey.ready_run_NT.T > 0)
    assert 0.9 < holey.ready[:, SYMBOLS.index("IBM")].mean() < 1.0
    assert holey.ready_run_NT.max() > 100


def test_last_bar_is_the_row_after_which_a_symbol_has_none(holey):
    close = holey.fields["close"]
    for n, symbol in enumerate(SYMBOLS):
        rows = np.flatnonzero(np.isfinite(close[:, n]))
        assert holey.last_bar_N[n] == (rows[-1] if len(rows) else -1), symbol
    assert holey.last_bar_N[1] == -1
    assert holey.sessions[holey.last_bar_N[2]] <= np.datetime64("2012-06-01")


@pytest.mark.parametrize("known", [date(2002, 3, 15), date(2012, 5, 16), date(2012, 11, 7), date(2013, 2, 28)])
def test_panel_continued_on_bars_with_holes_equals_the_full_rebuild_bit_for_bit(holes, holey, known):
    before = build_panel(holes.filter(pl.col("session") <= known), FEW, SYMBOLS)
    _assert_equal(build_panel(holes, FEW, SYMBOLS, before=before), holey)


# ---- whole or refused


def test_panel_built_straight_into_files_is_the_one_built_in_memory(tmp_path, bars, panel):
    direct = write_panel(lambda allocate: build_panel(bars, FeatureSet.of(), allocate=allocate), tmp_path)
    assert save_panel(panel, tmp_path) == direct


@pytest.mark.parametrize("name", STORED)
def test_panel_flipped_byte_is_refused(tmp_path, holey, name):
    folder = save_panel(holey, tmp_path)
    _flip(folder / f"{name}.npy", -1)
    with pytest.raises(StoreError, match=f"{name} altered"):
        open_panel(folder, verify=True)


def test_panel_of_an_older_format_is_refused_and_built_again(tmp_path, bars):
    bars.filter(pl.col("symbol") == "IBM").write_parquet(tmp_path / "ibm.parquet")
    config = DataConfig(
        source=str(tmp_path / "ibm.parquet"), features=FEW.names, store=str(tmp_path / "s"), panels=tmp_path / "p"
    )
    older = build(config.model_copy(update={"end": date(2012, 12, 31)}))
    head = json.loads((older / "panel.json").read_text())
    (older / "panel.json").write_text(json.dumps(head | {"format": 2}))
    with pytest.raises(StoreError, match=rf"{older}: a panel of format 2, .* build it again with `swing-data build`"):
        open_panel(older)
    assert open_panel(build(config)).sessions[-1] == bars["session"].max()


def test_panel_whose_making_fails_leaves_nothing(tmp_path):
    def failing(allocate):
        allocate("features", (10, 10), np.float32)
        raise StoreError("the bars are gone")

    with pytest.raises(StoreError, match="gone"):
        write_panel(failing, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_panel_that_the_disk_has_no_room_for_is_one_clear_error(tmp_path):
    """The limit on file size stands for a full disk: asking for the room fails before anything is mapped."""
    code = (
        "import resource, sys; from pathlib import Path; import numpy as np;"
        "from data_pipeline.panel import write_panel;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20));"
        "write_panel(lambda allocate: allocate('features', (4096, 4096), np.float32), Path(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "StoreError" in done.stderr.splitlines()[-1]
    assert "cannot write the panel" in done.stderr
    assert list(tmp_path.iterdir()) == []
