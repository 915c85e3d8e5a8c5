"""Immutable snapshots of bars: Parquet on any pyarrow filesystem, whole or absent.

    <root>/bars/<id>/bars.parquet
    <root>/bars/<id>/manifest.json      written last, under a temporary name, then moved: the commit

The id is taken from the content and its provenance, so writing the same bars again changes nothing and
an update adds a new snapshot beside the old one.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import polars as pl
from pyarrow import fs

from data_pipeline.config import canonical_json
from data_pipeline.errors import StoreError
from data_pipeline.schema import COLUMNS


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot: its id and its manifest."""

    id: str
    manifest: Mapping[str, Any]


class Store:
    """Snapshots under one root, a folder or an `s3://bucket/prefix` URI."""

    def __init__(self, root: str) -> None:
        try:
            self._fs, path = fs.FileSystem.from_uri(root) if "://" in root else (fs.LocalFileSystem(), root)
        except Exception as error:  # pyarrow raises its own and OSError alike
            raise StoreError(f"store {root!r}: {error}; give a folder or an s3:// URI") from error
        self._bars = f"{path.rstrip('/')}/bars"

    def write(self, bars: pl.DataFrame, provenance: Mapping[str, str]) -> Snapshot:
        """Commits checked bars as a snapshot and returns it; the same content gives the same snapshot.

        Raises:
            StoreError: Writing failed; nothing that looks like a snapshot is left.
        """
        body = io.BytesIO()
        bars.write_parquet(body, compression="zstd", statistics=True)
        content = {"bars": _content_hash(bars), "provenance": dict(provenance)}
        snapshot_id = hashlib.sha256(canonical_json(content)).hexdigest()[:16]
        if self._exists(f"{self._bars}/{snapshot_id}/manifest.json"):
            return self.snapshot(snapshot_id)
        manifest = {
            "format": 1,
            **content,
            "parquet_sha256": hashlib.sha256(body.getvalue()).hexdigest(),
            "rows": bars.height,
            "symbols": bars["symbol"].unique().sort().to_list(),
            "first_session": str(bars["session"].min()),
            "last_session": str(bars["session"].max()),
            "written_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        try:
            self._fs.create_dir(f"{self._bars}/{snapshot_id}", recursive=True)
            self._put(f"{snapshot_id}/bars.parquet", body.getvalue())
            self._put(f"{snapshot_id}/manifest.json", json.dumps(manifest, indent=1, sort_keys=True).encode())
        except OSError as error:
            raise StoreError(f"{self._bars}: cannot write ({error}); earlier snapshots are untouched") from error
        return Snapshot(snapshot_id, manifest)

    def snapshots(self) -> list[Snapshot]:
        """Returns all committed snapshots, oldest first."""
        selector = fs.FileSelector(self._bars, allow_not_found=True)
        ids = [info.base_name for info in self._fs.get_file_info(selector) if info.type == fs.FileType.Directory]
        whole = [self.snapshot(i) for i in ids if self._exists(f"{self._bars}/{i}/manifest.json")]
        return sorted(whole, key=lambda snapshot: str(snapshot.manifest["written_at"]))

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """Returns one committed snapshot.

        Raises:
            StoreError: It does not exist or its manifest cannot be read.
        """
        try:
            return Snapshot(snapshot_id, json.loads(self._get(f"{snapshot_id}/manifest.json")))
        except (OSError, ValueError) as error:
            raise StoreError(f"snapshot {snapshot_id!r}: {error}; list them with `swing-data show`") from error

    def read(self, snapshot_id: str) -> pl.DataFrame:
        """Returns the bars of a snapshot, after comparing their hash with the manifest.

        Raises:
            StoreError: The snapshot is absent or was altered.
        """
        manifest = self.snapshot(snapshot_id).manifest
        try:
            body = self._get(f"{snapshot_id}/bars.parquet")
        except OSError as error:
            raise StoreError(f"snapshot {snapshot_id!r}: {error}; fetch the bars again") from error
        if hashlib.sha256(body).hexdigest() != manifest["parquet_sha256"]:
            raise StoreError(f"snapshot {snapshot_id!r}: bars.parquet was altered; fetch the bars again")
        return pl.read_parquet(io.BytesIO(body))

    def _put(self, name: str, body: bytes) -> None:
        target, scratch = f"{self._bars}/{name}", f"{self._bars}/{name}.writing"
        with self._fs.open_output_stream(scratch) as stream:
            stream.write(body)
        self._fs.move(scratch, target)

    def _get(self, name: str) -> bytes:
        with self._fs.open_input_stream(f"{self._bars}/{name}") as stream:
            body: bytes = stream.read()
        return body

    def _exists(self, path: str) -> bool:
        return bool(self._fs.get_file_info(path).type == fs.FileType.File)


def _content_hash(bars: pl.DataFrame) -> str:
    """Hash of the values, independent of how Parquet happens to encode them."""
    digest = hashlib.sha256()
    for name in COLUMNS:
        column = bars[name]
        text = column.dtype == pl.String()
        digest.update("\n".join(column).encode() if text else column.to_physical().to_numpy().tobytes())
    return digest.hexdigest()
