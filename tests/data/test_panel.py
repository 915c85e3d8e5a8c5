"""Panels: whole or refused."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.assemble import build_panel
from data_pipeline.errors import StoreError
from data_pipeline.features import FeatureSet
from data_pipeline.panel import open_panel, save_panel, write_panel


def _flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def test_panel_saved_and_opened_is_the_same_and_memory_mapped(tmp_path, panel):
    folder = save_panel(panel, tmp_path)
    again = open_panel(folder, verify=True)
    np.testing.assert_array_equal(again.features, panel.features)
    assert isinstance(again.features, np.memmap)
    assert save_panel(panel, tmp_path) == folder
    assert [path.name for path in tmp_path.iterdir()] == [folder.name]


def test_panel_built_straight_into_files_is_the_one_built_in_memory(tmp_path, bars, panel):
    direct = write_panel(lambda allocate: build_panel(bars, FeatureSet.of(), allocate=allocate), tmp_path)
    assert save_panel(panel, tmp_path) == direct


def test_panel_flipped_byte_is_refused(tmp_path, panel):
    folder = save_panel(panel, tmp_path)
    _flip(folder / "close.npy", 5000)
    with pytest.raises(StoreError, match="close altered"):
        open_panel(folder, verify=True)


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
