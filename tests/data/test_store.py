"""Snapshots on disk: whole or absent, whatever happens to their writers, their bytes and their disk."""

from __future__ import annotations

import errno
import itertools
import math
import os
import subprocess
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from data_pipeline import store as store_module
from data_pipeline.errors import StoreError, UnknownSymbolError
from data_pipeline.store import CHANGES, Store
from writers import PROGRAM, PROVENANCE, earlier, environment, later, racing, run, table, watched


def _flip(path: Path, at: int) -> None:
    body = bytearray(path.read_bytes())
    body[at] ^= 1
    path.write_bytes(body)


def _files(root: Path) -> set[str]:
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def _hours(months: tuple[int, ...]) -> pl.DataFrame:
    rows = [
        (symbol, date(2024, month, 3), datetime(2024, month, 3, hour, 30, tzinfo=UTC), 9.0, 12.0, 8.0, 10.0, 100.0)
        for symbol in ("A", "B")
        for month in months
        for hour in (15, 16, 17)
    ]
    names = ["symbol", "session", "end", "open", "high", "low", "close", "volume"]
    types = {"end": pl.Datetime("us", "UTC")}
    return pl.DataFrame(rows, schema=names, orient="row", schema_overrides=types)


def test_store_written_bars_come_back_and_the_same_bars_make_no_second_snapshot(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    files = {name: (tmp_path / name).stat().st_mtime_ns for name in _files(tmp_path)}
    assert store.read(first.id).equals(earlier())
    assert store.write({"1Day": earlier()}, PROVENANCE) == first
    assert {name: (tmp_path / name).stat().st_mtime_ns for name in _files(tmp_path)} == files
    assert store.write({"1Day": earlier()}, PROVENANCE | {"feed": "other"}).id != first.id
    assert store.write({"1Day": earlier().head(5)}, PROVENANCE).id != first.id
    assert len(store.snapshots()) == 3


def test_store_rows_in_any_order_and_in_any_chunks_are_the_same_snapshot(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    shuffled = earlier().sample(fraction=1.0, shuffle=True, seed=3)
    pieces = pl.concat([shuffled.slice(at, 5) for at in range(0, shuffled.height, 5)], rechunk=False)
    assert pieces.n_chunks() > 1
    assert store.write({"1Day": pieces}, PROVENANCE) == first


def test_store_update_of_one_session_reuses_the_parts_of_other_years(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Day": later()}, PROVENANCE)
    before = _files(tmp_path)
    next_session = table((2022,)).filter(pl.col("session") == date(2022, 1, 7))
    update = pl.concat([later(), next_session.with_columns(session=pl.lit(date(2022, 1, 8)))])
    second = store.write({"1Day": update}, PROVENANCE)
    fresh = _files(tmp_path) - before
    assert {Path(name).parent.name for name in fresh} == {"parts", "snapshots"}
    assert len(fresh) == 2
    assert store.read(first.id).equals(later())
    assert store.read(second.id).equals(update.sort("symbol", "session"))


def test_store_reads_only_the_symbols_asked_for_and_names_an_unknown_one(tmp_path):
    store = Store(tmp_path)
    snapshot = store.write({"1Day": earlier()}, PROVENANCE)
    assert store.read(snapshot.id, symbols=["B"]).equals(earlier().filter(pl.col("symbol") == "B"))
    with pytest.raises(UnknownSymbolError, match=r"XYZ.*A, B"):
        store.read(snapshot.id, symbols=["A", "XYZ"])


def test_store_symbols_that_come_and_go_are_read_back_sorted(tmp_path):
    store = Store(tmp_path)
    bars = pl.concat(
        [table((2019,), ("A", "B")), table((2020,), ("B", "C")), table((2021,), ("A", "C")), table((2022,), ("AA",))]
    )
    snapshot = store.write({"1Day": bars}, PROVENANCE)
    assert store.read(snapshot.id).equals(bars.sort("symbol", "session"))


def test_store_intraday_bars_are_parted_by_month_and_stand_beside_the_daily_ones(tmp_path):
    store = Store(tmp_path)
    snapshot = store.write({"1Hour": _hours((1, 2, 3)), "1Day": later()}, PROVENANCE)
    assert list(snapshot.parts("1Hour")) == ["2024-01", "2024-02", "2024-03"]
    assert list(snapshot.parts("1Day")) == ["2020", "2021", "2022"]
    assert store.read(snapshot.id, "1Hour").equals(_hours((1, 2, 3)))
    assert store.read(snapshot.id).equals(later())
    with pytest.raises(StoreError, match="holds no 5Min bars"):
        store.read(snapshot.id, "5Min")
    assert store.write({"1Day": later(), "1Hour": _hours((1, 2, 3))}, PROVENANCE) == snapshot


def test_store_manifest_tells_the_story_of_its_bars(tmp_path):
    start = datetime.now(UTC)
    fetched = datetime(2024, 1, 5, 22, tzinfo=UTC)
    manifest = Store(tmp_path).write({"1Day": later()}, PROVENANCE, fetched).manifest
    assert manifest["provenance"] == PROVENANCE
    assert manifest["tables"]["1Day"] == {
        "rows": 42,
        "symbols": ["A", "B"],
        "first_session": "2020-01-01",
        "last_session": "2022-01-07",
    }
    assert [part["rows"] for part in manifest["parts"]] == [14, 14, 14]
    assert manifest["fetched_at"] == "2024-01-05T22:00:00+00:00"
    assert start <= datetime.fromisoformat(manifest["written_at"]) <= datetime.now(UTC)
    assert manifest["calendar"].startswith("exchange_calendars 4.")
    assert manifest["code"].startswith("swing-rl 0.")


def test_store_parts_are_plain_parquet_named_by_their_hash(tmp_path):
    snapshot = Store(tmp_path).write({"1Day": later()}, PROVENANCE)
    parts = [tmp_path / "parts" / f"{part['sha256']}.parquet" for part in snapshot.manifest["parts"]]
    assert pl.read_parquet(parts).sort("symbol", "session").equals(later())
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {path.name for path in parts}


def test_store_another_encoding_of_the_same_bars_is_the_same_snapshot_of_the_same_time(tmp_path, monkeypatch):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    monkeypatch.setattr(store_module, "_ROW_GROUP_ROWS", 4)
    again = store.write({"1Day": earlier()}, PROVENANCE)
    assert (again.id, again.written_at) == (first.id, first.written_at)
    assert again.manifest["parts"] != first.manifest["parts"]
    assert store.read(first.id).equals(earlier())


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ({}, "no tables"),
        ({"1Day": earlier().clear()}, "no bars"),
        ({"1Day": earlier().with_columns(volume=pl.lit(None, pl.Float64()))}, "empty values in volume"),
    ],
)
def test_store_refuses_what_is_no_table_of_bars_and_writes_nothing(tmp_path, tables, words):
    with pytest.raises(StoreError, match=words):
        Store(tmp_path / "store").write(tables, PROVENANCE)
    assert not (tmp_path / "store").exists()


def test_store_that_does_not_exist_holds_nothing(tmp_path):
    store = Store(tmp_path / "nowhere")
    assert store.snapshots() == []
    with pytest.raises(StoreError, match=r"'0123' is not in .*nowhere; list"):
        store.read("0123")
    assert not (tmp_path / "nowhere").exists()


def test_store_folder_that_is_being_made_while_it_is_listed_is_an_empty_one(tmp_path):
    def not_yet() -> None:
        raise FileNotFoundError("Cannot list directory")  # as pyarrow does then, whatever allow_not_found says

    assert watched(str(tmp_path), not_yet).snapshots() == []


def test_store_uri_with_credentials_is_refused_without_repeating_them():
    with pytest.raises(StoreError, match="environment") as caught:
        Store("s3://AKIAEXAMPLE:wJalrXUtnFEMI@bucket/prefix")
    assert "AKIA" not in str(caught.value)
    assert "wJalr" not in str(caught.value)


def test_store_file_uri_is_the_folder(tmp_path):
    snapshot = Store(tmp_path.as_uri()).write({"1Day": earlier()}, PROVENANCE)
    assert Store(tmp_path).snapshots() == [snapshot]


def test_as_of_gives_the_view_of_that_time(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    second = store.write({"1Day": later()}, PROVENANCE)
    tick = timedelta(microseconds=1)
    assert store.as_of(first.written_at) == first
    assert store.as_of(second.written_at - tick) == first
    assert store.as_of(second.written_at) == second
    assert store.as_of(datetime.now(UTC) + timedelta(days=1)) == second
    with pytest.raises(StoreError, match="no snapshot of any series as of"):
        store.as_of(first.written_at - tick)
    with pytest.raises(StoreError, match="time zone"):
        store.as_of(datetime(2024, 1, 1))  # noqa: DTZ001


def test_as_of_where_series_share_the_root_wants_one_named(tmp_path):
    store = Store(tmp_path)
    sip = store.write({"1Day": earlier()}, {"source": "alpaca", "feed": "sip", "adjustment": "raw"})
    iex = store.write({"1Day": later()}, {"source": "alpaca", "feed": "iex", "adjustment": "raw"})
    now = datetime.now(UTC)
    with pytest.raises(StoreError, match=r"several series .*feed=iex.*feed=sip"):
        store.as_of(now)
    assert store.as_of(now, {"feed": "sip"}) == sip
    assert store.as_of(now, {"source": "alpaca", "feed": "iex"}) == iex
    with pytest.raises(StoreError, match="no snapshot of"):
        store.as_of(now, {"source": "files"})


def test_changes_between_snapshots_by_pencil(tmp_path):
    store = Store(tmp_path)
    before = table((2019, 2020), ("A",)).head(9)
    day = pl.col("session")
    after = pl.concat(
        [
            before.filter(day != date(2019, 1, 2)).with_columns(
                volume=pl.when(day == date(2020, 1, 1)).then(7.0).otherwise("volume")
            ),
            table((2021,), ("A",)).head(1),
        ]
    )
    ids = [store.write({"1Day": bars}, PROVENANCE).id for bars in (before, after)]
    found = store.changes(*ids)
    assert found.schema == {name: dtype for name, dtype in CHANGES.items() if name != "end"}
    assert found.filter(pl.col("change") == "altered").rows() == [
        ("A", date(2020, 1, 1), "volume", "altered", 100.0, 7.0)
    ]
    removed, added = (found.filter(pl.col("change") == word) for word in ("removed", "added"))
    names = ["close", "dividend", "high", "low", "open", "split", "volume"]
    assert removed["column"].to_list() == added["column"].to_list() == names
    assert set(removed["session"]) == {date(2019, 1, 2)}
    assert set(added["session"]) == {date(2021, 1, 1)}
    assert removed["old"].to_list() == [12.0, 0.0, 12.0, 8.0, 9.0, 1.0, 200.0]
    assert removed["new"].null_count() == added["old"].null_count() == 7
    assert added["new"].to_list() == [11.0, 0.0, 12.0, 8.0, 9.0, 1.0, 100.0]
    assert found.height == 15
    assert store.changes(ids[0], ids[0]).is_empty()


def test_changes_does_not_read_parts_that_both_snapshots_share(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    second = store.write({"1Day": later()}, PROVENANCE)
    _flip(tmp_path / "parts" / f"{first.parts('1Day')['2020']['sha256']}.parquet", 100)
    assert store.changes(first.id, second.id).height == 14 * 2 * 7


def test_changes_of_intraday_bars_name_the_end_of_the_bar(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Hour": _hours((1, 2))}, PROVENANCE)
    second = store.write({"1Hour": _hours((1,)), "1Day": earlier()}, PROVENANCE)
    found = store.changes(first.id, second.id, "1Hour")
    assert found.schema == CHANGES
    assert set(found["change"]) == {"removed"}
    assert found.height == 6 * 5
    assert store.changes(first.id, second.id)["change"].unique().to_list() == ["added"]
    with pytest.raises(StoreError, match="holds 5Min"):
        store.changes(first.id, second.id, "5Min")


def test_store_part_with_a_flipped_byte_is_refused_and_mended_by_the_same_write(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    part = next((tmp_path / "parts").iterdir())
    for at in range(0, part.stat().st_size, 37):
        _flip(part, at)
        with pytest.raises(StoreError, match=r"was altered; write the same bars again"):
            store.read(first.id)
        _flip(part, at)
    _flip(part, 100)
    assert store.write({"1Day": earlier()}, PROVENANCE) == first
    assert store.read(first.id).equals(earlier())


def test_store_manifest_with_any_byte_flipped_is_refused(tmp_path):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    path = tmp_path / "snapshots" / f"{first.id}.json"
    for at in range(path.stat().st_size):
        _flip(path, at)
        with pytest.raises(StoreError, match=r"\.json was altered"):
            store.snapshot(first.id)
        _flip(path, at)
    assert store.snapshot(first.id) == first


@pytest.mark.parametrize("damage", ["manifest cut", "manifest renamed", "part cut", "part gone"])
def test_store_torn_snapshot_is_not_listed_and_the_earlier_one_stays(tmp_path, damage):
    store = Store(tmp_path)
    first = store.write({"1Day": earlier()}, PROVENANCE)
    second = store.write({"1Day": later()}, PROVENANCE)
    manifest = tmp_path / "snapshots" / f"{second.id}.json"
    part = tmp_path / "parts" / f"{second.parts('1Day')['2022']['sha256']}.parquet"
    torn = second.id
    if damage == "manifest renamed":
        torn = "0" * 16
        manifest.rename(manifest.with_name(f"{torn}.json"))
    elif damage == "part gone":
        part.unlink()
    else:
        path = manifest if damage == "manifest cut" else part
        path.write_bytes(path.read_bytes()[:-1])
    assert store.snapshots() == [first]
    (line,) = store.damaged()
    assert torn in line
    assert "write the same bars again" in line
    with pytest.raises(StoreError, match=torn):
        store.read(torn)
    with pytest.raises(StoreError, match="unknown which snapshot was the newest"):
        store.as_of(datetime.now(UTC))
    assert store.read(first.id).equals(earlier())


def test_store_writer_killed_at_every_operation_leaves_the_earlier_snapshot_and_no_half_one(tmp_path):
    kills = int(run("kill", tmp_path))
    assert kills > 15
    committed = []
    for k in range(1, kills + 1):
        store = Store(tmp_path / str(k))
        first, *more = store.snapshots()
        assert store.read(first.id).equals(earlier())
        assert all(store.read(snapshot.id).equals(later()) for snapshot in more)
        assert store.damaged() == []
        assert store.read(store.write({"1Day": later()}, PROVENANCE).id).equals(later())
        committed.append(bool(more))
    assert not committed[0]
    assert committed == sorted(committed), "once the manifest is moved, the snapshot is there"


def test_store_disk_that_fails_at_every_operation_gives_one_error_and_leaves_the_earlier_snapshot(tmp_path):
    def write(root: Path, k: float) -> int:
        count = itertools.count(1)

        def before() -> None:
            if next(count) >= k:
                raise OSError(errno.ENOSPC, "No space left on device")

        watched(str(root), before).write({"1Day": later()}, PROVENANCE)
        return next(count) - 1

    Store(tmp_path / "free").write({"1Day": earlier()}, PROVENANCE)
    operations = write(tmp_path / "free", math.inf)
    assert operations > 15
    for k in range(1, operations + 1):
        store = Store(tmp_path / str(k))
        first = store.write({"1Day": earlier()}, PROVENANCE)
        with pytest.raises(StoreError, match=r"^.*No space left on device; free space there.*$"):
            write(tmp_path / str(k), k)
        assert store.snapshots() == [first]
        assert store.damaged() == []
        assert store.read(first.id).equals(earlier())


def test_store_on_a_full_disk_gives_one_error_and_leaves_the_earlier_snapshot(tmp_path):
    inside = 'mount -t tmpfs -o size=256k none "$1" && shift && exec "$@"'
    mounting = ["unshare", *([] if os.getuid() == 0 else ["--user", "--map-root-user"]), "--mount", "sh", "-c", inside]
    trial = subprocess.run([*mounting, "sh", tmp_path, "true"], capture_output=True, text=True, check=False)
    if trial.returncode:
        pytest.skip(f"cannot mount a small tmpfs here ({trial.stderr.strip()}); the limited file size stands in")
    command = [*mounting, "sh", tmp_path, *PROGRAM, "fill", tmp_path / "store", "0"]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No space left on device; free space there" in done.stdout


def test_store_over_the_limit_of_file_sizes_gives_one_error_and_leaves_the_earlier_snapshot(tmp_path):
    assert "File too large; raise the limit" in run("fill", tmp_path / "store", "10000")


def test_store_two_writers_at_once_and_a_reader_see_whole_snapshots_only(tmp_path):
    rounds, store = 12, Store(tmp_path)
    with racing(tmp_path, rounds) as writing:
        while writing():
            for snapshot in store.snapshots():
                store.read(snapshot.id)
            assert store.damaged() == []
    assert len(store.snapshots()) == 3 * rounds
    closes = {store.read(snapshot.id)["close"].min() for snapshot in store.snapshots()}
    assert closes == {11.0 + n for n in range(rounds)}
    assert list((tmp_path / "writing").iterdir()) == []


def test_store_leftovers_of_a_killed_writer_are_swept_after_a_day(tmp_path):
    scratch = tmp_path / "writing"
    scratch.mkdir()
    for name, age_s in (("old", 90_000), ("young", 3_600)):
        (scratch / name).write_bytes(b"half a part")
        os.utime(scratch / name, (datetime.now(UTC).timestamp() - age_s,) * 2)
    Store(tmp_path).write({"1Day": earlier()}, PROVENANCE)
    assert [path.name for path in scratch.iterdir()] == ["young"]


def test_store_flushes_every_file_before_its_name_and_every_folder_after_it(tmp_path, monkeypatch):
    flushed: list[tuple[str, bool]] = []
    fsync = os.fsync

    def watching(handle: int) -> None:
        path = Path(f"/proc/self/fd/{handle}").readlink()
        flushed.append((path.relative_to(tmp_path).parts[0], path.is_dir()))
        fsync(handle)

    store = Store(tmp_path)
    store.write({"1Day": earlier()}, PROVENANCE)
    monkeypatch.setattr(os, "fsync", watching)
    store.write({"1Day": table((2022,))}, PROVENANCE)
    assert flushed == [("writing", False), ("parts", True), ("writing", False), ("snapshots", True)]


def test_store_large_bars_are_written_and_read_without_copies_of_the_whole(tmp_path):
    assert float(run("weigh", tmp_path, "write")) < 0.8
    assert float(run("weigh", tmp_path, "read")) < 2.8
