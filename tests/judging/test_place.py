"""A sweep's place in a folder and in a bucket: the same names, and nothing half there."""

from __future__ import annotations

from datetime import date

import pytest

from bucket import endpoint, root, s3  # noqa: F401  (fixtures)
from data_pipeline.errors import RunError
from rl.judging.place import Place, Training, parent, training_name

TRAINING = Training(
    seed=3,
    fold="fold-1",
    first_session=date(2010, 1, 4),
    last_session=date(2010, 2, 1),
    sharpe=0.5,
    total_return=0.1,
    seconds=1.0,
    returns=(0.01, -0.02),
    files=("test/account.parquet", "weights.safetensors"),
)
HASH = "a" * 64


@pytest.fixture(autouse=True)
def node(tmp_path, monkeypatch):
    """This node's own scratch."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))


def trained(place):
    folder = place.folder / training_name(HASH, 3, "fold-1")
    for name in TRAINING.files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    place.finish(HASH, TRAINING)
    return folder


def test_training_is_there_when_it_is_finished(root):
    place = Place(root)
    assert place.training(HASH, 3, "fold-1") is None
    with pytest.raises(RunError, match="holds no finished training"):
        place.fetched(HASH, 3, "fold-1")
    trained(place)
    assert Place(root).training(HASH, 3, "fold-1") == TRAINING
    assert Place(root).training(HASH, 4, "fold-1") is None


def test_another_node_fetches_the_files_of_a_training(root, tmp_path, monkeypatch):
    trained(Place(root))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "other"))
    folder = Place(root).fetched(HASH, 3, "fold-1")
    assert [(folder / name).read_bytes() for name in TRAINING.files] == [name.encode() for name in TRAINING.files]
    assert root.startswith("s3://") == (tmp_path / "other").is_dir()


def test_text_is_replaced_whole(root):
    place = Place(root)
    assert place.read("sweep.json") is None
    for text in ("one", "two"):
        place.write("sweep.json", text)
        assert Place(root).read("sweep.json") == text


@pytest.mark.parametrize(
    ("sweep", "project"),
    [("runs/sweep", "runs"), ("sweep", "."), ("s3://b/p/sweep", "s3://b/p"), ("s3://b/p/sweep/", "s3://b/p")],
)
def test_project_is_what_the_sweep_is_in(sweep, project):
    assert parent(sweep) == project
