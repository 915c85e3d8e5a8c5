"""Named bytes under one root, each put whole or not at all: in a folder, on a pyarrow filesystem, or in an S3 bucket.

S3 is spoken through boto3 alone. One PutObject is atomic and leaves nothing when its writer dies, whereas pyarrow's
S3 stream is a multipart upload whose pieces stay (and are billed) until somebody aborts it; and S3's own error codes
arrive here, so that an error can say what to mend.
"""

from __future__ import annotations

import errno
import hashlib
import os
import posixpath
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import pyarrow as pa
from pyarrow import fs

from data_pipeline.errors import StoreError

_SCRATCH = "writing"
_CONNECT_S, _SILENCE_S, _ATTEMPTS = 3.0, 10.0, 3
_CONFLICTS, _CONFLICT_PAUSE_S = 5, 0.2  # S3 asks to send again what met another writer in the act
_NO_LINKS = {errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP}
_SCRATCH_LIFE = timedelta(days=1)  # far longer than any write; older files are those of a killed writer


class Blobs(Protocol):
    """Named bytes; a name is `folder/file`. Whatever fails is a StoreError that names `place` and the remedy."""

    place: str

    def put(self, name: str, body: bytes, sha256: str) -> None:
        """Makes `body` (whose hash is `sha256`) readable under `name`, durably, replacing what was there."""

    def put_new(self, name: str, body: bytes) -> bool:
        """Puts `body` like `put` if nothing is called `name`, and returns whether it did; False: something was there.

        Of several writers at once one is told True, and no one's bytes are replaced, in a folder of a local disk and
        on S3. Any other pyarrow filesystem can only look, then move: there that holds for one writer at a time.
        """

    def get(self, name: str) -> bytes | None:
        """Returns the bytes called `name`; None if there are none."""

    def holds(self, name: str, sha256: str) -> bool:
        """Returns whether the bytes with that hash are there already, so that they need no put."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the sizes in bytes of all files of a folder, by name; an absent folder is empty."""

    def sweep(self) -> None:
        """Removes what writers left that were killed more than a day ago."""


def blobs_at(root: str, filesystem: fs.FileSystem | None = None) -> Blobs:
    """Returns the blobs under `root`.

    Args:
        root: A folder, an `s3://bucket/prefix` URI, any other URI that pyarrow knows, or a path in `filesystem`.
        filesystem: Where `root` is; None: as `root` says.

    Raises:
        StoreError: `root` names no place that can be used.
    """
    if filesystem is not None:
        return FolderBlobs(filesystem, root, f"{filesystem.type_name}:{root}")
    if "://" not in root:
        return FolderBlobs(fs.LocalFileSystem(), str(Path(root).absolute()), root)
    uri = urlsplit(root)
    if "@" in uri.netloc or uri.query:
        raise StoreError(f"store {uri.scheme}://…: give no credentials and no options in the URI, but the environment")
    if uri.scheme == "s3":
        return BucketBlobs(uri.netloc, uri.path.strip("/"))
    with _readable(f"store {root}", "open"):
        filesystem, path = fs.FileSystem.from_uri(root)
    return FolderBlobs(filesystem, path, root)


class FolderBlobs:
    """Blobs in a folder of any pyarrow filesystem; each is written under a temporary name, then moved.

    On local disk the file is flushed to the device before the move and its folder after it, so that a power cut
    leaves no name without its bytes either.
    """

    def __init__(self, filesystem: fs.FileSystem, root: str, place: str) -> None:
        self.place = place
        self._fs = filesystem
        self._root = root

    def put(self, name: str, body: bytes, sha256: str) -> None:  # noqa: ARG002  (S3 keeps the hash, a file is read)
        """See `Blobs.put`."""
        with _readable(f"store {self.place}", f"write {name}"), self._written(name, body) as (scratch, target):
            self._fs.move(scratch, target)

    def put_new(self, name: str, body: bytes) -> bool:
        """See `Blobs.put_new`: a hard link to a file that is whole already gives it its name, or fails."""
        if not isinstance(self._fs, fs.LocalFileSystem):
            if self.get(name) is not None:
                return False
            self.put(name, body, "")
            return True
        with _readable(f"store {self.place}", f"write {name}"), self._written(name, body) as (scratch, target):
            try:
                os.link(scratch, target)
                made = True
            except FileExistsError:
                made = Path(scratch).stat().st_nlink > 1  # NFS may repeat a request of ours that it had fulfilled
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                raise StoreError(
                    f"store {self.place}: cannot write {name}: this disk makes no hard links, and without them two "
                    "writers could overwrite one another; choose a folder on another disk, or s3://"
                ) from error
            self._fs.delete_file(scratch)
        return made

    def get(self, name: str) -> bytes | None:
        """See `Blobs.get`."""
        with _readable(f"store {self.place}", f"read {name}"):
            try:
                with self._fs.open_input_stream(self._path(name), compression=None) as stream:
                    body: bytes = stream.read()
            except FileNotFoundError:
                return None
        return body

    def holds(self, name: str, sha256: str) -> bool:
        """See `Blobs.holds`; reads the file, so that a write mends one that was altered."""
        body = self.get(name)
        return body is not None and hashlib.sha256(body).hexdigest() == sha256

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Blobs.sizes`."""
        with _readable(f"store {self.place}", f"list {folder}"):
            return {f"{folder}/{info.base_name}": info.size for info in self._files(folder)}

    def sweep(self) -> None:
        """See `Blobs.sweep`."""
        with _readable(f"store {self.place}", "tidy"):
            for info in self._files(_SCRATCH):
                if info.mtime is not None and datetime.now(UTC) - info.mtime > _SCRATCH_LIFE:
                    with suppress(FileNotFoundError):  # another writer was quicker
                        self._fs.delete_file(info.path)

    def _path(self, name: str) -> str:
        return posixpath.join(self._root, name)

    @contextmanager
    def _written(self, name: str, body: bytes) -> Iterator[tuple[str, str]]:
        """Yields the paths of a scratch file that holds `body` durably and of its target; no scratch file stays."""
        target, scratch = self._path(name), self._path(f"{_SCRATCH}/{uuid.uuid4().hex}")
        self._make_folder(posixpath.dirname(target))
        self._make_folder(posixpath.dirname(scratch))
        try:
            with self._fs.open_output_stream(scratch, compression=None) as stream:
                stream.write(body)
            self._flush(scratch)
            yield scratch, target
        except BaseException:
            with suppress(OSError):
                self._fs.delete_file(scratch)
            raise
        self._flush(posixpath.dirname(target))

    def _files(self, folder: str) -> list[fs.FileInfo]:
        try:
            found = self._fs.get_file_info(fs.FileSelector(self._path(folder)))
        except FileNotFoundError:  # allow_not_found would still raise while another writer makes the folder
            return []
        return [info for info in found if info.type == fs.FileType.File]

    def _make_folder(self, folder: str) -> None:
        parent = posixpath.dirname(folder)
        if parent == folder or self._fs.get_file_info(folder).type == fs.FileType.Directory:
            return
        self._make_folder(parent)
        self._fs.create_dir(folder, recursive=False)
        self._flush(parent)

    def _flush(self, path: str) -> None:
        if not isinstance(self._fs, fs.LocalFileSystem):
            return
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


class BucketBlobs:
    """Blobs in an S3 bucket under a prefix; AWS_ENDPOINT_URL(_S3), AWS_REGION and credentials are boto3's.

    Nothing waits for ever: 3 s to connect, 10 s of silence, three attempts.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        if not bucket:
            raise StoreError("store s3://: names no bucket; write s3://bucket/prefix")
        self.place = f"s3://{bucket}/{prefix}".rstrip("/")
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
        self._client = self._connect()
        self._keeps_first = False

    def put(self, name: str, body: bytes, sha256: str) -> None:
        """See `Blobs.put`."""
        with self._readable(f"write {name}"):
            self._client.put_object(**self._key(name), Body=body, Metadata={"sha256": sha256})

    def put_new(self, name: str, body: bytes) -> bool:
        """See `Blobs.put_new`: a PutObject with If-None-Match.

        Raises:
            StoreError: As `put`; and the server overwrites in spite of If-None-Match, which the first success tries.
        """
        token = uuid.uuid4().hex
        facts = {"sha256": hashlib.sha256(body).hexdigest(), "put": token}
        with self._readable(f"write {name}"):
            # Where an answer was lost, boto3 asks again and is then told that the object is there.
            made = self._put_if_absent(name, body, facts) or self._metadata(name).get("put") == token
            if made and not self._keeps_first and self._put_if_absent(name, body, facts):
                raise StoreError(
                    f"store {self.place}: this server does not heed If-None-Match, and without it two writers "
                    "could overwrite one another; choose a folder, or a server that does (S3, MinIO, moto)"
                )
        self._keeps_first |= made
        return made

    def get(self, name: str) -> bytes | None:
        """See `Blobs.get`."""
        with self._readable(f"read {name}"):
            try:
                body: bytes = self._client.get_object(**self._key(name))["Body"].read()
            except self._client.exceptions.NoSuchKey:
                return None
        return body

    def holds(self, name: str, sha256: str) -> bool:
        """See `Blobs.holds`; asks for the hash that `put` left with the object, which an overwrite by others loses."""
        with self._readable(f"look up {name}"):
            return self._metadata(name).get("sha256") == sha256

    def sizes(self, folder: str) -> dict[str, int]:
        """See `Blobs.sizes`."""
        prefix = f"{self._prefix}{folder}/"
        with self._readable(f"list {folder}"):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=prefix)
            return {
                item["Key"].removeprefix(self._prefix): item["Size"]
                for page in pages
                for item in page.get("Contents", ())
            }

    def sweep(self) -> None:
        """See `Blobs.sweep`; a put that was cut short leaves nothing on S3."""

    def _key(self, name: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": f"{self._prefix}{name}"}

    def _metadata(self, name: str) -> dict[str, str]:
        """What `put` left with the object; empty if there is none."""
        from botocore.exceptions import ClientError  # noqa: PLC0415  (an optional package)

        try:
            metadata: dict[str, str] = self._client.head_object(**self._key(name))["Metadata"]
        except ClientError as error:
            if error.response["Error"]["Code"] == "404":
                return {}
            raise
        return metadata

    def _put_if_absent(self, name: str, body: bytes, metadata: dict[str, str]) -> bool:
        from botocore.exceptions import ClientError  # noqa: PLC0415

        for attempt in range(1, _CONFLICTS + 1):
            try:
                self._client.put_object(**self._key(name), Body=body, Metadata=metadata, IfNoneMatch="*")
            except ClientError as error:
                status = error.response["ResponseMetadata"]["HTTPStatusCode"]
                if status == 412:
                    return False
                if status != 409 or attempt == _CONFLICTS:
                    raise
                time.sleep(_CONFLICT_PAUSE_S)
            else:
                return True
        raise AssertionError("the last attempt returns or raises")

    def _connect(self) -> Any:
        try:
            import boto3  # noqa: PLC0415  (an optional package)
            from botocore.config import Config  # noqa: PLC0415
        except ImportError as error:
            raise StoreError(f"store {self.place}: needs the package boto3: pip install 'swing-rl[s3]'") from error
        config = Config(
            connect_timeout=_CONNECT_S,
            read_timeout=_SILENCE_S,
            retries={"mode": "standard", "total_max_attempts": _ATTEMPTS},
            # bucket.host does not resolve for a server of one's own
            s3={"addressing_style": "path" if self._endpoint else "auto"},
        )
        with self._readable("connect"):
            return boto3.session.Session().client("s3", region_name=os.environ.get("AWS_REGION"), config=config)

    @contextmanager
    def _readable(self, doing: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError  # noqa: PLC0415

        try:
            yield
        except (BotoCoreError, ClientError, ValueError) as error:
            at = f" at {self._endpoint}" if self._endpoint else ""
            raise StoreError(f"store {self.place}{at}: cannot {doing}: {_s3_reason(error, self._bucket)}") from error


@contextmanager
def _readable(place: str, doing: str) -> Iterator[None]:
    try:
        yield
    except (OSError, pa.ArrowException) as error:
        remedies = {
            errno.ENOSPC: "free space there, or choose another store",
            errno.EDQUOT: "free space there, or choose another store",
            errno.EFBIG: "raise the limit of file sizes (ulimit -f), or choose another store",
            errno.EACCES: "grant access to it, or choose another store",
            errno.EROFS: "choose a store that can be written",
        }
        code = getattr(error, "errno", None)
        what = os.strerror(code) if code else " ".join(str(error).split())
        remedy = remedies.get(code or 0, "mend that, or choose another store")
        raise StoreError(f"{place}: cannot {doing}: {what}; {remedy}; what was written earlier is untouched") from error


_KEYS = "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and, if temporary, AWS_SESSION_TOKEN"
_REFUSED = ("credentials are refused", f"correct {_KEYS}")
_FORBIDDEN = ("forbidden to these credentials", "allow s3:ListBucket, s3:GetObject and s3:PutObject on the bucket")
_ELSEWHERE = ("the bucket is in another region", "set AWS_REGION to it")
_FULL = ("no space left for the bucket", "free space there, or choose another store")
_S3_REASONS: dict[str, tuple[str, str]] = {
    "InvalidAccessKeyId": _REFUSED,
    "SignatureDoesNotMatch": _REFUSED,
    "InvalidToken": _REFUSED,
    "ExpiredToken": _REFUSED,
    "InvalidClientTokenId": _REFUSED,
    "AuthFailure": _REFUSED,
    "AccessDenied": _FORBIDDEN,
    "403": _FORBIDDEN,  # an answer to HEAD has no body to say more
    "PermanentRedirect": _ELSEWHERE,
    "AuthorizationHeaderMalformed": _ELSEWHERE,
    "IllegalLocationConstraintException": _ELSEWHERE,
    "301": _ELSEWHERE,
    "400": _ELSEWHERE,
    "QuotaExceeded": _FULL,
    "XMinioStorageFull": _FULL,
    "507": _FULL,
}


def _s3_reason(error: Exception, bucket: str) -> str:
    """What went wrong and what to do; never more of the error than its code and S3's own sentence."""
    from botocore import exceptions as boto  # noqa: PLC0415

    if isinstance(error, boto.ClientError):
        answer = error.response["Error"]
        code = str(answer["Code"])
        if code == "NoSuchBucket":
            return f"bucket {bucket!r} does not exist; create it, or correct the s3:// URI"
        unknown = (" ".join(str(answer.get("Message", "")).split()), "check the endpoint and the URI, or try again")
        what, remedy = _S3_REASONS.get(code, unknown)
        return f"{what} ({code}); {remedy}"
    if isinstance(error, (boto.NoCredentialsError, boto.PartialCredentialsError, boto.CredentialRetrievalError)):
        return f"no credentials; set {_KEYS}"
    if isinstance(error, (boto.HTTPClientError, boto.ConnectionError)):
        return f"no answer ({type(error).__name__}); check the network and AWS_ENDPOINT_URL, then try again"
    return f"{' '.join(str(error).split())}; correct the s3:// URI or the AWS_* variables"
