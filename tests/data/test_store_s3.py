"""Snapshots in S3: a real server on loopback, its refusals, and writers that die in the middle of a request."""

from __future__ import annotations

import socket

import boto3
import httpx
import pytest
from botocore.client import BaseClient
from pyarrow import fs

from bucket import SECRET, endpoint, s3  # noqa: F401  (fixtures)
from data_pipeline import blobs
from data_pipeline.errors import StoreError
from data_pipeline.store import Store
from writers import PROVENANCE, earlier, later, racing, run, table


def _keys(s3: BaseClient, prefix: str = "") -> list[str]:
    return [item["Key"] for item in s3.list_objects_v2(Bucket="market", Prefix=prefix).get("Contents", [])]


def _refusal(root: str = "s3://market/bars") -> str:
    """The one line with which reading and writing fail alike."""
    lines = []
    for doing in (lambda: Store(root).snapshots(), lambda: Store(root).write({"1Day": later()}, PROVENANCE)):
        with pytest.raises(StoreError) as caught:
            doing()
        lines.append(str(caught.value))
        assert "\n" not in lines[-1]
        assert SECRET not in lines[-1]
    reasons = {line.partition(": cannot ")[2].partition(": ")[2] for line in lines}
    assert len(reasons) == 1
    return lines[0]


def test_store_on_s3_bars_come_back_and_an_update_adds_two_objects(s3):
    store = Store("s3://market/some/bars")
    first = store.write({"1Day": earlier()}, PROVENANCE)
    stamps = {item["Key"]: item["LastModified"] for item in s3.list_objects_v2(Bucket="market")["Contents"]}
    assert len(stamps) == 2
    assert all(key.startswith(("some/bars/parts/", "some/bars/snapshots/")) for key in stamps)
    assert store.write({"1Day": earlier()}, PROVENANCE) == first
    assert {item["Key"]: item["LastModified"] for item in s3.list_objects_v2(Bucket="market")["Contents"]} == stamps
    second = store.write({"1Day": table((2020, 2021))}, PROVENANCE)
    assert len(_keys(s3)) == 4
    assert store.read(first.id).equals(earlier())
    assert store.read(second.id, symbols=["B"]).equals(table((2020, 2021), ("B",)))
    assert store.snapshots() == [first, second]
    assert store.as_of(first.written_at) == first
    assert set(store.changes(first.id, second.id)["change"]) == {"added"}


def test_store_on_s3_without_a_prefix_and_with_more_parts_than_one_page_lists_all(s3, monkeypatch):
    monkeypatch.setenv("MOTO_S3_DEFAULT_MAX_KEYS", "2")  # the server is a thread of this process
    store = Store("s3://market")
    snapshot = store.write({"1Day": later()}, PROVENANCE)
    assert len(snapshot.manifest["parts"]) == 3
    assert store.snapshots() == [snapshot]


def test_store_on_s3_through_pyarrow_reads_and_adds_to_what_boto3_wrote(s3, endpoint):
    ours = Store("s3://market/bars")
    first = ours.write({"1Day": earlier()}, PROVENANCE)
    filesystem = fs.S3FileSystem(endpoint_override=endpoint, region="eu-central-1")
    theirs = Store("market/bars", filesystem)
    assert theirs.read(first.id).equals(earlier())
    second = theirs.write({"1Day": later()}, PROVENANCE)
    assert ours.snapshots() == [first, second]
    assert ours.read(second.id).equals(later())


@pytest.mark.parametrize("which", ["parts", "snapshots"])
def test_store_on_s3_object_with_a_flipped_byte_is_refused_and_mended_by_the_same_write(s3, which):
    store = Store("s3://market/bars")
    first = store.write({"1Day": earlier()}, PROVENANCE)
    key = _keys(s3, f"bars/{which}/")[0]
    body = bytearray(s3.get_object(Bucket="market", Key=key)["Body"].read())
    body[len(body) // 2] ^= 1
    s3.put_object(Bucket="market", Key=key, Body=bytes(body))
    with pytest.raises(StoreError, match="was altered"):
        store.read(first.id)
    store.write({"1Day": earlier()}, PROVENANCE)
    assert store.read(first.id).equals(earlier())


def test_store_on_s3_writer_killed_at_every_send_leaves_the_earlier_snapshot_and_no_half_one(s3):
    kills = int(run("kill", "s3://market"))
    assert kills > 15
    committed = []
    for k in range(1, kills + 1):
        store = Store(f"s3://market/{k}")
        first, *more = store.snapshots()
        assert store.read(first.id).equals(earlier())
        assert all(store.read(snapshot.id).equals(later()) for snapshot in more)
        assert store.damaged() == []
        assert store.read(store.write({"1Day": later()}, PROVENANCE).id).equals(later())
        committed.append(bool(more))
    assert not any(committed), "the manifest is the last thing that is sent"


def test_store_on_s3_two_writers_at_once_leave_whole_snapshots_only(s3):
    rounds, store = 5, Store("s3://market/bars")
    with racing("s3://market/bars", rounds) as writing:
        while writing():
            for snapshot in store.snapshots():
                store.read(snapshot.id)
            assert store.damaged() == []
    assert len(store.snapshots()) == 3 * rounds
    closes = {store.read(snapshot.id)["close"].min() for snapshot in store.snapshots()}
    assert closes == {11.0 + n for n in range(rounds)}


def test_store_on_s3_missing_bucket_is_named_with_the_endpoint(s3, endpoint):
    line = _refusal("s3://nowhere/bars")
    assert line.startswith(f"store s3://nowhere/bars at {endpoint}: cannot list snapshots: ")
    assert line.endswith("bucket 'nowhere' does not exist; create it, or correct the s3:// URI")


def test_store_on_s3_impossible_bucket_name_is_one_line(s3):
    assert "Invalid bucket name" in _refusal("s3://mar,ket/bars")
    with pytest.raises(StoreError, match="names no bucket"):
        Store("s3:///bars")


def test_store_on_s3_without_credentials_says_what_to_set(s3, monkeypatch):
    first = Store("s3://market/bars").write({"1Day": earlier()}, PROVENANCE)
    with monkeypatch.context() as bare:
        bare.delenv("AWS_ACCESS_KEY_ID")
        bare.delenv("AWS_SECRET_ACCESS_KEY")
        assert "no credentials; set AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY" in _refusal()
    assert Store("s3://market/bars").read(first.id).equals(earlier())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("unknown key", "credentials are refused (InvalidAccessKeyId); correct AWS_ACCESS_KEY_ID"),
        ("wrong secret", "credentials are refused (SignatureDoesNotMatch); correct AWS_ACCESS_KEY_ID"),
        ("no permission", "forbidden to these credentials (AccessDenied); allow s3:ListBucket"),
    ],
)
def test_store_on_s3_refused_credentials_are_told_apart(s3, endpoint, monkeypatch, fault, words):
    first = Store("s3://market/bars").write({"1Day": earlier()}, PROVENANCE)
    iam = boto3.client("iam", region_name="eu-central-1")
    iam.create_user(UserName="swing")
    key = iam.create_access_key(UserName="swing")["AccessKey"]
    iam.close()
    httpx.post(f"{endpoint}/moto-api/reset-auth", content=b"0").raise_for_status()  # from now on IAM decides
    try:
        with monkeypatch.context() as other:
            if fault != "unknown key":
                other.setenv("AWS_ACCESS_KEY_ID", key["AccessKeyId"])
            if fault == "no permission":
                other.setenv("AWS_SECRET_ACCESS_KEY", key["SecretAccessKey"])
            line = _refusal()
            assert words in line
            assert key["SecretAccessKey"] not in line
    finally:
        httpx.post(f"{endpoint}/moto-api/reset-auth", content=b"inf").raise_for_status()
    assert Store("s3://market/bars").read(first.id).equals(earlier())


def test_store_on_s3_without_network_fails_soon_and_the_earlier_snapshot_stays(s3, monkeypatch):
    first = Store("s3://market/bars").write({"1Day": earlier()}, PROVENANCE)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with monkeypatch.context() as offline:
        offline.setenv("AWS_ENDPOINT_URL", closed)
        line = _refusal()
    assert line.startswith(f"store s3://market/bars at {closed}: ")
    assert line.endswith("check the network and AWS_ENDPOINT_URL, then try again")
    assert Store("s3://market/bars").read(first.id).equals(earlier())


def test_store_on_s3_that_never_answers_is_given_up(s3, monkeypatch):
    monkeypatch.setattr(blobs, "_SILENCE_S", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        assert "no answer (ReadTimeoutError); check the network" in _refusal()


def test_store_on_s3_endpoint_that_is_no_url_is_one_line(s3, monkeypatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL", "nonsense")
    with pytest.raises(StoreError, match="Invalid endpoint: nonsense; correct"):
        Store("s3://market/bars")


def test_command_builds_from_a_bucket_and_a_refusal_is_one_line(s3, command, tmp_path, monkeypatch):
    settings = ("--set", "store=s3://market/bars", "--set", f"panels={tmp_path}", "--set", "features=[rsi_14]")
    done = command("swing-data", "build", *settings, "--json")
    assert done.returncode == 0, done.stderr
    assert _keys(s3, "bars/snapshots/")
    assert f'"snapshot": "{Store("s3://market/bars").snapshots()[0].id}"' in done.stdout
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    down = command("swing-data", "build", *settings)
    assert (down.returncode, down.stderr.count("\n")) == (2, 1)
    assert "127.0.0.1:9" in down.stderr
