"""A panel reaches nodes that do not have its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import RunError
from data_pipeline.panel import Panel, open_panel, save_panel
from rl.learning.cluster import ray_session
from rl.learning.panels import panel_at, share_panel

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_panel(panel, tmp_path_factory.mktemp("panels"))


def test_panel_where_its_folder_is_is_memory_mapped(folder):
    found = panel_at(folder)
    assert isinstance(found.features, np.memmap)
    assert not found.features.flags.writeable


def test_panel_elsewhere_comes_from_the_object_store_equal_and_uncopied(folder):
    import ray

    elsewhere = Path("/not/on/this/node") / folder.name

    @ray.remote
    def read() -> tuple[bool, bool, int]:
        found, first = panel_at(elsewhere), open_panel(folder)
        same = np.array_equal(found.features, first.features, equal_nan=True) and all(
            np.array_equal(found.fields[name], first.fields[name], equal_nan=True) for name in first.fields
        )
        private = sum(
            int(line.split()[1])
            for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
            if line.startswith("Private_Dirty")
        )
        again = [panel_at(elsewhere) for _ in range(20)]
        grown = sum(
            int(line.split()[1])
            for line in Path("/proc/self/smaps_rollup").read_text().splitlines()
            if line.startswith("Private_Dirty")
        )
        assert len(again) == 20
        return same, found.features.flags.writeable, grown - private

    with ray_session(cpus=1):
        with pytest.raises(RunError, match="neither on this node nor offered"):
            panel_at(elsewhere)
        shelf = share_panel(folder)
        same, writeable, grown_kib = ray.get(read.remote())
        del shelf
    assert same
    assert not writeable
    assert grown_kib < 5 * folder.joinpath("features.npy").stat().st_size / 1024
