"""A panel reaches nodes that do not have its folder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import RunError
from data_pipeline.panel import STORED, Panel, open_panel, save_panel
from rl.learning.cluster import ray_session
from rl.learning.panels import panel_at, share_panel

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def folder(panel: Panel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_panel(panel, tmp_path_factory.mktemp("panels"))


def test_panel_where_its_folder_is_is_memory_mapped(folder):
    found = panel_at(folder)
    assert isinstance(found.features_NTF.base, np.memmap)
    assert not found.features_NTF.flags.writeable


def test_panel_elsewhere_comes_from_the_object_store_equal_and_uncopied(folder):
    import ray

    elsewhere = Path("/not/on/this/node") / folder.name

    @ray.remote
    def read() -> tuple[set[str], int]:
        def private_kib() -> int:
            lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
            return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty"))

        found, first = panel_at(elsewhere), open_panel(folder)
        wrong = set()
        for attribute in STORED.values():
            array = getattr(found, attribute)
            copied = array.flags.writeable and attribute != "sessions"  # dates travel by value: 8 bytes each
            if copied or array.tobytes() != getattr(first, attribute).tobytes():
                wrong.add(attribute)
        before = private_kib()
        again = [panel_at(elsewhere) for _ in range(20)]
        grown = private_kib() - before
        assert len(again) == 20
        return wrong, grown

    with ray_session(cpus=1):
        with pytest.raises(RunError, match="neither on this node nor offered"):
            panel_at(elsewhere)
        shelf = share_panel(folder)
        wrong, grown_kib = ray.get(read.remote())
        del shelf
    assert wrong == set()
    assert grown_kib < folder.joinpath("bars.npy").stat().st_size / 1024, "20 panels, and not one copy"
