"""A real S3 server on loopback with one empty bucket, `market`, and bytes there or in a folder, to be spoilt.

Tests import the fixtures that they use, and `endpoint` with them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.client import BaseClient
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

SECRET = "wJalrXUtnFEMI-very-secret"
REGION = "eu-central-1"


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    put, one_at_a_time = S3Response.put_object, threading.Lock()

    def put_object(self):
        with one_at_a_time:  # S3 looks and puts at once; moto's threads look, then put
            return put(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(S3Response, "put_object", put_object)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture
def s3(endpoint: str, tmp_path, monkeypatch) -> Iterator[BaseClient]:
    """A client of the server; the environment leads the store there."""
    for name, value in {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_REGION": REGION,
        "AWS_ACCESS_KEY_ID": "AKIAIOSFODNN7EXAMPLE",
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "NO_PROXY": "127.0.0.1",
        "no_proxy": "127.0.0.1",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    httpx.post(f"{endpoint}/moto-api/reset").raise_for_status()
    client = boto3.client("s3", region_name=REGION)
    client.create_bucket(Bucket="market", CreateBucketConfiguration={"LocationConstraint": REGION})
    yield client
    client.close()


@pytest.fixture(params=["disk", "s3"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Where things are kept: once a folder, once the bucket."""
    if request.param == "disk":
        return str(tmp_path / "project")
    request.getfixturevalue("s3")
    return "s3://market/project"


def get(root: str, name: str) -> bytes:
    """The bytes of a file or object."""
    if not root.startswith("s3://"):
        return (Path(root) / name).read_bytes()
    return _client().get_object(**_address(root, name))["Body"].read()


def put(root: str, name: str, body: bytes | None) -> None:
    """Replaces a file or object behind everybody's back; None removes it."""
    if root.startswith("s3://"):
        client, address = _client(), _address(root, name)
        client.delete_object(**address) if body is None else client.put_object(**address, Body=body)
    elif body is None:
        (Path(root) / name).unlink()
    else:
        (Path(root) / name).write_bytes(body)


def names(root: str) -> list[str]:
    """The names of all files or objects."""
    if not root.startswith("s3://"):
        return sorted(str(path.relative_to(root)) for path in Path(root).rglob("*") if path.is_file())
    prefix = _address(root, "")["Key"]
    found = _client().list_objects_v2(Bucket="market", Prefix=prefix).get("Contents", [])
    return [item["Key"].removeprefix(prefix) for item in found]


def _client() -> BaseClient:
    return boto3.client("s3", region_name=REGION)


def _address(root: str, name: str) -> dict[str, str]:
    bucket, _, prefix = root.removeprefix("s3://").partition("/")
    return {"Bucket": bucket, "Key": f"{prefix}/{name}"}
