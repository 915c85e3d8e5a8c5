"""Where a sweep lives: a folder, or a bucket with a folder of each node before it.

Trainings always write to a local folder. In a bucket each appears when it is finished, file by file, the record of it
last; a node that needs one fetches it.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from data_pipeline.blobs import blobs_at
from data_pipeline.errors import RunError
from rl.judging.trial_ledger import Measured

_RECORD = "training.json"


class Training(Measured):
    """One training of a configuration, as its sweep keeps it."""

    files: tuple[str, ...]
    """Everything that it wrote, relative to its folder."""


class Place:
    """Files of a sweep by name.

    Attributes:
        root: As given.
        folder: On this node; where `root` is a bucket, what is not finished is here alone.
    """

    def __init__(self, root: str) -> None:
        self.root = root
        self._blobs = blobs_at(root)
        self._remote = "://" in root
        scratch = Path(tempfile.gettempdir()) / f"swing-rl-{hashlib.sha256(root.encode()).hexdigest()[:16]}"
        self.folder = scratch if self._remote else Path(root)

    def read(self, name: str) -> str | None:
        """Returns the text called `name`; None if there is none."""
        body = self._blobs.get(name)
        return None if body is None else body.decode()

    def write(self, name: str, text: str) -> None:
        """Writes the text called `name`, whole or not at all."""
        self._put(name, text.encode())

    def training(self, config_hash: str, seed: int, fold: str) -> Training | None:
        """Returns the record of a finished training; None if it did not finish yet."""
        name = f"{training_name(config_hash, seed, fold)}/{_RECORD}"
        text = self.read(name)
        return None if text is None else Training.model_validate_json(text)

    def finish(self, config_hash: str, training: Training) -> None:
        """Keeps what a training wrote, and then its record."""
        name = training_name(config_hash, training.seed, training.fold)
        if self._remote:
            for file in training.files:
                self._put(f"{name}/{file}", (self.folder / name / file).read_bytes())
        self.write(f"{name}/{_RECORD}", training.model_dump_json(indent=1))

    def fetched(self, config_hash: str, seed: int, fold: str) -> Path:
        """Returns the folder of a finished training, its files on this node.

        Raises:
            RunError: It did not finish, or a file is gone.
        """
        name = training_name(config_hash, seed, fold)
        training = self.training(config_hash, seed, fold)
        if training is None:
            raise RunError(f"{self.root}/{name}: holds no finished training; run `swing-rl tune --resume`")
        for file in training.files:
            path = self.folder / name / file
            if path.is_file():
                continue
            body = self._blobs.get(f"{name}/{file}")
            if body is None:
                raise RunError(f"{self.root}/{name}: {file} is gone; restore it, or sweep again in another place")
            path.parent.mkdir(parents=True, exist_ok=True)
            scratch = path.with_name(f".{path.name}.writing")
            scratch.write_bytes(body)
            scratch.replace(path)
        return self.folder / name

    def _put(self, name: str, body: bytes) -> None:
        self._blobs.put(name, body, hashlib.sha256(body).hexdigest())


def training_name(config_hash: str, seed: int, fold: str) -> str:
    """Returns the folder of a training in its sweep."""
    return f"trials/{config_hash[:16]}/seed-{seed}/{fold}"


def parent(root: str) -> str:
    """Returns the project that a sweep belongs to: the folder, or the prefix, that it is in."""
    if "://" not in root:
        return str(Path(root).parent)
    project, _, _ = root.rstrip("/").rpartition("/")
    return project
