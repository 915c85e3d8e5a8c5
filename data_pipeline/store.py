"""Immutable snapshots of bars: Parquet parts and a manifest, whole or absent.

    <root>/parts/<sha256>.parquet   one timeframe and year (intraday: month), named by the hash of its bytes
    <root>/snapshots/<id>.json      the manifest, written last: the commit

The id is taken from the content and its provenance: writing the same bars again changes nothing, and an update
adds a manifest and the parts that changed. No part is ever removed or altered, so no writer can harm a snapshot of
another; parts that a killed writer left without a manifest wait for the run that writes the same bars again.
Bars that return to an earlier state *are* that earlier snapshot, with its time.
"""

from __future__ import annotations

import hashlib
import io
import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import polars as pl
from pyarrow import fs

from data_pipeline.blobs import blobs_at
from data_pipeline.config import canonical_json
from data_pipeline.errors import StoreError, UnknownSymbolError
from data_pipeline.schema import Timeframe

FORMAT = 2
SERIES = ("source", "feed", "adjustment")
"""What tells one series of snapshots from another: the keys of provenance that an update keeps."""
CHANGES: dict[str, pl.DataType] = {
    "symbol": pl.String(),
    "session": pl.Date(),
    "end": pl.Datetime("us", "UTC"),
    "column": pl.String(),
    "change": pl.String(),
    "old": pl.Float64(),
    "new": pl.Float64(),
}
"""Columns of `Store.changes`; `end` in intraday tables only."""
_ROW_GROUP_ROWS = 131_072
_AGAIN = "write the same bars again (`swing-data fetch`) to mend it"


@dataclass(frozen=True)
class Snapshot:
    """A committed snapshot.

    The manifest holds `format id content provenance fetched_at written_at calendar code`, per timeframe
    `tables: rows symbols first_session last_session`, `parts: timeframe period sha256 content rows bytes`, and
    `sha256`, the hash of all of that.
    """

    id: str
    manifest: Mapping[str, Any]

    @property
    def provenance(self) -> Mapping[str, str]:
        """Source, feed, adjustment and whatever else the writer said of the bars."""
        provenance: Mapping[str, str] = self.manifest["provenance"]
        return provenance

    @property
    def written_at(self) -> datetime:
        """When it was committed, by the writer's clock."""
        return datetime.fromisoformat(self.manifest["written_at"])

    def parts(self, timeframe: Timeframe) -> dict[str, Mapping[str, Any]]:
        """Returns the parts of a timeframe by period, oldest first; none if it is not held."""
        return {part["period"]: part for part in self.manifest["parts"] if part["timeframe"] == timeframe}


class Store:
    """Snapshots under one root: a folder, an `s3://bucket/prefix` URI, or a path in a pyarrow filesystem."""

    def __init__(self, root: str | Path, filesystem: fs.FileSystem | None = None) -> None:
        self._blobs = blobs_at(str(root), filesystem)

    def write(
        self,
        tables: Mapping[Timeframe, pl.DataFrame],
        provenance: Mapping[str, str],
        fetched_at: datetime | None = None,
    ) -> Snapshot:
        """Commits checked bars and returns their snapshot; the same bars and provenance give the same one.

        Args:
            tables: Bars by timeframe, each with `symbol` and `session`, intraday ones also `end`; any order of rows.
            provenance: What a `BarSource` says of them; part of the id, so without the time of fetching.
            fetched_at: When the source was read, with a time zone; None: now.

        Raises:
            StoreError: Nothing to write, a null value, or writing failed; then nothing that looks like a snapshot
                is left, and earlier ones are untouched.
        """
        _refuse_unfit(tables)
        self._blobs.sweep()
        there = self._blobs.sizes("parts")  # also the first word with S3, whose answer to a listing says what is wrong
        parts = [
            self._put_part(timeframe, period, rows, there)
            for timeframe, table in sorted(tables.items())
            for period, rows in _periods(timeframe, table)
        ]
        contents = [[part["timeframe"], part["period"], part["content"]] for part in parts]
        facts = {"content": _digest(contents), "provenance": dict(provenance)}
        snapshot_id = _digest(facts)[:16]
        known = self._manifest(snapshot_id)
        if isinstance(known, dict) and known["parts"] == parts:
            return Snapshot(snapshot_id, known)
        now = datetime.now(UTC)
        manifest = {
            "format": FORMAT,
            "id": snapshot_id,
            **facts,
            "fetched_at": (fetched_at or now).isoformat(),
            # Bars that were only encoded anew by another polars keep their time.
            "written_at": known["written_at"] if isinstance(known, dict) else now.isoformat(),
            "calendar": f"exchange_calendars {version('exchange_calendars')}",
            "code": code_version(),
            "tables": {timeframe: _extent(table) for timeframe, table in tables.items()},
            "parts": parts,
        }
        body = _sealed(manifest)
        self._blobs.put(f"snapshots/{snapshot_id}.json", body, hashlib.sha256(body).hexdigest())
        return Snapshot(snapshot_id, json.loads(body))

    def snapshots(self) -> list[Snapshot]:
        """Returns all whole snapshots, oldest first; `damaged` tells of the others."""
        return self._survey()[0]

    def damaged(self) -> list[str]:
        """Returns one line for each manifest that was altered, or misses a part or some of its bytes."""
        return self._survey()[1]

    def snapshot(self, snapshot_id: str) -> Snapshot:
        """Returns one snapshot, its manifest verified and its parts present.

        Raises:
            StoreError: It does not exist, was altered, or misses a part.
        """
        found = self._judged(self._manifest(snapshot_id), self._blobs.sizes("parts"))
        if isinstance(found, str):
            raise StoreError(found)
        return found

    def as_of(self, when: datetime, series: Mapping[str, str] | None = None) -> Snapshot:
        """Returns the newest snapshot committed at or before `when`: the view of that time.

        Args:
            when: With a time zone.
            series: Provenance to look for, such as `{"source": "alpaca", "feed": "sip"}`; needed where several
                series (`SERIES`) share the root.

        Raises:
            StoreError: There is none, it is unclear which series is meant, or one is damaged (it might be the one).
        """
        if when.tzinfo is None:
            raise StoreError(f"as of {when}: says no time zone; write it like 2024-05-31T21:00:00+00:00")
        whole, damaged = self._survey()
        if damaged:
            raise StoreError(f"{damaged[0]}; until then it is unknown which snapshot was the newest")
        wanted = dict(series or {})
        candidates = [s for s in whole if s.written_at <= when and wanted.items() <= s.provenance.items()]
        named = sorted({", ".join(f"{key}={s.provenance.get(key)}" for key in SERIES) for s in candidates})
        if len(named) > 1:
            raise StoreError(f"store {self._blobs.place} holds several series ({' | '.join(named)}); name one of them")
        if not candidates:
            raise StoreError(
                f"store {self._blobs.place}: no snapshot of {wanted or 'any series'} as of {when.isoformat()}; "
                "list what there is with `swing-data show`"
            )
        return candidates[-1]

    def read(
        self, snapshot_id: str, timeframe: Timeframe = "1Day", symbols: Sequence[str] | None = None
    ) -> pl.DataFrame:
        """Returns bars of a snapshot, sorted by symbol, then time; every part is verified first.

        Args:
            snapshot_id: Of `snapshots`.
            timeframe: Which table.
            symbols: Keep these only; None: all.

        Raises:
            StoreError: The snapshot or the timeframe is absent, or a part was altered.
            UnknownSymbolError: A symbol that the table does not hold.
        """
        snapshot = self.snapshot(snapshot_id)
        table = snapshot.manifest["tables"].get(timeframe)
        if table is None:
            held = ", ".join(snapshot.manifest["tables"])
            raise StoreError(f"snapshot {snapshot_id!r} holds no {timeframe} bars (but {held}); fetch them")
        unknown = sorted(set(symbols or ()) - set(table["symbols"]))
        if unknown:
            raise UnknownSymbolError(
                f"snapshot {snapshot_id!r}: no {timeframe} bars for {', '.join(unknown)}; "
                f"it holds {', '.join(table['symbols'])}"
            )
        return _joined([self._rows(snapshot, part, symbols) for part in snapshot.parts(timeframe).values()])

    def changes(self, before: str, after: str, timeframe: Timeframe = "1Day") -> pl.DataFrame:
        """Returns what differs between two snapshots, one row per symbol, session (`end`) and column.

        Columns: symbol, session, end (intraday only), column, change ("added", "removed" or "altered": the bar is
        new, gone, or has another value), old, new. Parts with equal content are not even read.

        Raises:
            StoreError: A snapshot is absent, a part was altered, or neither holds the timeframe.
        """
        first, second = self.snapshot(before), self.snapshot(after)
        olds, news = first.parts(timeframe), second.parts(timeframe)
        if not olds and not news:
            raise StoreError(f"neither snapshot {before!r} nor {after!r} holds {timeframe} bars; choose another")
        keys = _keys(timeframe)
        differences = [pl.DataFrame(schema={k: v for k, v in CHANGES.items() if k != "end" or k in keys})]
        for period in sorted({*olds, *news}):
            if period in olds and period in news and olds[period]["content"] == news[period]["content"]:
                continue
            old = self._rows(first, olds[period]) if period in olds else self._rows(second, news[period]).clear()
            new = self._rows(second, news[period]) if period in news else old.clear()
            differences.append(_differences(old, new, keys))
        return pl.concat(differences)

    def _put_part(
        self, timeframe: Timeframe, period: str, rows: pl.DataFrame, there: Mapping[str, int]
    ) -> dict[str, Any]:
        buffer = io.BytesIO()
        rows.write_parquet(buffer, compression="zstd", statistics=True, row_group_size=_ROW_GROUP_ROWS)
        body = buffer.getvalue()
        sha256 = hashlib.sha256(body).hexdigest()
        name = _part_name(sha256)
        if name not in there or not self._blobs.holds(name, sha256):
            self._blobs.put(name, body, sha256)
        return {
            "timeframe": timeframe,
            "period": period,
            "sha256": sha256,
            "content": _content_hash(rows),
            "rows": rows.height,
            "bytes": len(body),
        }

    def _rows(self, snapshot: Snapshot, part: Mapping[str, Any], symbols: Sequence[str] | None = None) -> pl.DataFrame:
        body = self._blobs.get(_part_name(part["sha256"]))
        if body is None or hashlib.sha256(body).hexdigest() != part["sha256"]:
            fault = "is missing" if body is None else "was altered"
            where = f"{_part_name(part['sha256'])} ({part['timeframe']} {part['period']})"
            raise StoreError(f"snapshot {snapshot.id!r} in {self._blobs.place}: {where} {fault}; {_AGAIN}")
        if symbols is None:
            return pl.read_parquet(io.BytesIO(body))
        return pl.scan_parquet(io.BytesIO(body)).filter(pl.col("symbol").is_in(list(symbols))).collect()

    def _survey(self) -> tuple[list[Snapshot], list[str]]:
        files = [name for name in self._blobs.sizes("snapshots") if name.endswith(".json")]
        with ThreadPoolExecutor(8) as pool:  # on S3 each is a round trip
            manifests = list(pool.map(self._manifest, [PurePosixPath(name).stem for name in files]))
        sizes = self._blobs.sizes("parts")  # after the manifests: parts are put before them
        judged = [self._judged(manifest, sizes) for manifest in manifests]
        whole = [found for found in judged if isinstance(found, Snapshot)]
        return sorted(whole, key=lambda s: (s.written_at, s.id)), [found for found in judged if isinstance(found, str)]

    def _manifest(self, snapshot_id: str) -> dict[str, Any] | str:
        """The verified manifest, or what is wrong with it."""
        name = f"snapshots/{snapshot_id}.json"
        body = self._blobs.get(name)
        if body is None:
            return f"snapshot {snapshot_id!r} is not in {self._blobs.place}; list what there is with `swing-data show`"
        manifest = _opened(body)
        if manifest is None or manifest["id"] != snapshot_id:
            return f"snapshot {snapshot_id!r} in {self._blobs.place}: {name} was altered; {_AGAIN}, or remove that file"
        if manifest["format"] != FORMAT:
            return (
                f"snapshot {snapshot_id!r}: format {manifest['format']}, not {FORMAT}; read it with {manifest['code']}"
            )
        return manifest

    def _judged(self, manifest: dict[str, Any] | str, sizes: Mapping[str, int]) -> Snapshot | str:
        """The snapshot, or what is wrong with it as far as its manifest and a listing of the parts tell."""
        if isinstance(manifest, str):
            return manifest
        for part in manifest["parts"]:
            name = _part_name(part["sha256"])
            if sizes.get(name) != part["bytes"]:
                return f"snapshot {manifest['id']!r} in {self._blobs.place}: {name} is missing or torn; {_AGAIN}"
        return Snapshot(manifest["id"], manifest)


def code_version() -> str:
    """Returns the package version, and the git commit where the code runs from a checkout."""
    root = Path(__file__).resolve().parents[1]
    commit = "no checkout"
    if (root / ".git").exists():  # else git would answer for whatever repository the package is installed in
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
        try:
            commit = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
        except (OSError, subprocess.SubprocessError):
            commit = "unknown commit"
    return f"swing-rl {version('swing-rl')} ({commit})"


def _digest(value: Any) -> str:
    return hashlib.sha256(canonical_json(value)).hexdigest()


def _part_name(sha256: str) -> str:
    return f"parts/{sha256}.parquet"


def _sealed(facts: Mapping[str, Any]) -> bytes:
    """The bytes of a manifest; there is one rendering, so that any flipped byte shows."""
    return json.dumps({**facts, "sha256": _digest(facts)}, indent=1, sort_keys=True).encode()


def _opened(body: bytes) -> dict[str, Any] | None:
    """The manifest that was sealed in these bytes; None if they were altered or cut."""
    try:
        manifest: dict[str, Any] = json.loads(body)
        facts = {key: value for key, value in manifest.items() if key != "sha256"}
        return manifest if _sealed(facts) == body else None
    except (ValueError, AttributeError):
        return None


def _refuse_unfit(tables: Mapping[Timeframe, pl.DataFrame]) -> None:
    if not tables:
        raise StoreError("no tables to write; give bars of at least one timeframe")
    for timeframe, table in tables.items():
        if table.is_empty():
            raise StoreError(f"{timeframe}: no bars to write; check the symbols and the dates asked for")
        nulls = [column.name for column in table.iter_columns() if column.null_count()]
        if nulls:
            raise StoreError(f"{timeframe}: empty values in {', '.join(nulls)}; drop those rows (`swing-data check`)")


def _keys(timeframe: Timeframe) -> tuple[str, ...]:
    """The columns that name a bar, in the order of sorting."""
    return ("symbol", "session") if timeframe == "1Day" else ("symbol", "session", "end")


def _periods(timeframe: Timeframe, table: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Period and sorted rows of each part, one at a time: years of daily bars, months of intraday ones."""
    every, length = ("1y", 4) if timeframe == "1Day" else ("1mo", 7)
    for first in table["session"].unique().dt.truncate(every).unique().sort():
        following = pl.lit(first).dt.offset_by(every)
        rows = table.filter(pl.col("session").is_between(first, following, closed="left"))
        yield first.isoformat()[:length], rows.sort(_keys(timeframe)).rechunk()


def _extent(table: pl.DataFrame) -> dict[str, Any]:
    return {
        "rows": table.height,
        "symbols": table["symbol"].unique().sort().to_list(),
        "first_session": str(table["session"].min()),
        "last_session": str(table["session"].max()),
    }


def _content_hash(rows: pl.DataFrame) -> str:
    """Hash of names and values, independent of how Parquet happens to encode them."""
    digest = hashlib.sha256()
    for column in rows.iter_columns():
        if column.dtype == pl.String():
            runs = column.rle().struct.unnest()
            digest.update(canonical_json([column.name, runs["len"].to_list(), runs["value"].to_list()]))
        else:
            values = np.ascontiguousarray(column.to_physical().to_numpy())
            digest.update(canonical_json([column.name, values.dtype.str]))
            digest.update(values.data)
    return digest.hexdigest()


def _joined(parts: list[pl.DataFrame]) -> pl.DataFrame:
    """Parts, each sorted by symbol and following each other in time, as one table sorted by symbol, then time.

    Empties `parts` column by column, so that the bars are never held twice.
    """
    runs = pl.concat([part["symbol"].rle().struct.unnest() for part in parts])
    runs = runs.with_columns(start=pl.col("len").cum_sum() - pl.col("len")).sort("value", maintain_order=True)
    lengths = runs["len"].to_numpy().astype(np.int32)
    order = np.repeat(
        runs["start"].to_numpy().astype(np.int32) - (np.cumsum(lengths, dtype=np.int32) - lengths), lengths
    )
    order += np.arange(len(order), dtype=np.int32)
    rows = pl.Series(order.view(np.uint32))
    return pl.DataFrame(
        [
            pl.concat([part.drop_in_place(name) for part in parts], rechunk=True).gather(rows)
            for name in parts[0].columns
        ]
    )


def _differences(old: pl.DataFrame, new: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """The rows of `Store.changes` for one period."""
    gone = old.join(new, on=old.columns, how="anti").unpivot(index=keys, variable_name="column", value_name="old")
    come = new.join(old, on=new.columns, how="anti").unpivot(index=keys, variable_name="column", value_name="new")
    change = (
        pl.when(pl.col("old").is_null())
        .then(pl.lit("added"))
        .when(pl.col("new").is_null())
        .then(pl.lit("removed"))
        .otherwise(pl.lit("altered"))
    )
    return (
        gone.join(come, on=[*keys, "column"], how="full", coalesce=True)
        .filter(pl.col("old").ne_missing(pl.col("new")))
        .select(*keys, "column", change.alias("change"), "old", "new")
        .sort(*keys, "column")
    )
