"""Finished parts of a long download, kept on disk so that it can go on where it stopped."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from data_pipeline.config import canonical_json
from data_pipeline.errors import StoreError


class Chunks:
    """A folder of Parquet files, one for each request that was answered in full.

    A file is named by the digest of the request and the digest of its own bytes, so a torn or altered file
    counts as absent. It appears by a rename: a killed process leaves no half.

    Args:
        folder: Is made when the first chunk is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def find(self, request: Mapping[str, Any]) -> pl.DataFrame | None:
        """Returns what `keep` was given for this request, or None."""
        for path in sorted(self._folder.glob(f"{_digest(canonical_json(request))}.*.parquet")):
            try:
                content = path.read_bytes()
                if path.name.split(".")[1] == _digest(content):
                    return pl.read_parquet(io.BytesIO(content))
            except OSError:
                continue
        return None

    def keep(self, request: Mapping[str, Any], rows: pl.DataFrame) -> None:
        """Writes the answer to a request.

        Raises:
            StoreError: The folder cannot be written.
        """
        buffer = io.BytesIO()
        rows.write_parquet(buffer)
        content = buffer.getvalue()
        path = self._folder / f"{_digest(canonical_json(request))}.{_digest(content)}.parquet"
        unfinished = path.with_suffix(f".{os.getpid()}.unfinished")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished.write_bytes(content)
            unfinished.replace(path)
        except OSError as error:
            raise StoreError(
                f"{self._folder}: a finished part cannot be kept ({error.strerror}); make room or name another folder"
            ) from error


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]
