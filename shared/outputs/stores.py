"""Where outputs go: a folder, S3 and Google Cloud Storage through fsspec, or an https address that takes PUT.

A write is atomic: whoever reads finds the whole object or the one before it. The libraries are imported by the first
call, and never by a function that has no outputs to collect.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import secrets
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from shared.errors import HandsError
from shared.secret import Secret

_LARGEST_MANIFEST: Final = 64 * 1024 * 1024
_PART: Final = 8 * 1024 * 1024
"""Bytes of a file that are in memory at once, or twice as many."""
_SECONDS: Final = 60.0  # of silence


class StoreFailed(HandsError):
    """The target did not take it, or did not answer. The text is fit for a report: no key, no signature."""


class Store(Protocol):
    """Blocking; names are relative, with slashes, and plain."""

    def read(self, name: str) -> bytes | None:
        """None where there is none. Raises StoreFailed."""

    def write(self, name: str, file: Path) -> None:
        """Raises StoreFailed."""


def open_store(target: str, signature: Secret | None = None) -> Store:
    """`target` has been checked; `signature` is the query of an https address."""
    parts = urlsplit(target)
    match parts.scheme:
        case "file":
            return FolderStore(Path(unquote(parts.path)))
        case "s3":
            return BucketStore("S3", _s3, posixpath.join(parts.netloc, parts.path.strip("/")))
        case "gs":
            return BucketStore("Cloud Storage", _cloud_storage, posixpath.join(parts.netloc, parts.path.strip("/")))
        case _:
            return HttpStore(target, signature)


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        try:
            return bytes(_local().cat_file(str(self._folder / name)))
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreFailed(f"{name}: {error.strerror}") from None

    def write(self, name: str, file: Path) -> None:
        """By a draft beside its place: fsspec's own copy is not atomic, and its own draft may be on another disk."""
        disk, place = _local(), self._folder / name
        draft = place.with_name(f".{secrets.token_hex(8)}.part")
        try:
            disk.makedirs(str(place.parent), exist_ok=True)
            with disk.open(str(draft), "wb") as made, file.open("rb") as source:
                shutil.copyfileobj(source, made, 1 << 20)
                made.flush()
                os.fsync(made.fileno())
            disk.mv(str(draft), str(place))
        except OSError as error:
            with contextlib.suppress(OSError):
                disk.rm_file(str(draft))
            raise StoreFailed(f"{name}: {error.strerror}") from None


class BucketStore:
    """A prefix of a bucket. `opened` makes the filesystem and names its errors; it may raise StoreFailed."""

    def __init__(self, service: str, opened: Callable[[], _Bucket], root: str) -> None:
        self._service, self._opened, self._root = service, opened, root
        self._made: _Bucket | None = None
        self._lock = threading.Lock()

    def read(self, name: str) -> bytes | None:
        bucket = self._bucket()
        try:
            return bytes(bucket.files.cat_file(self._path(name), start=0, end=_LARGEST_MANIFEST))
        except bucket.errors as error:
            match _code(error):
                case "NoSuchKey" | "404" | "FileNotFoundError":
                    return None
                case "InvalidRange" | "416":  # it is empty
                    return b""
            raise self._failed(error) from None

    def write(self, name: str, file: Path) -> None:
        bucket = self._bucket()
        try:
            bucket.files.put_file(str(file), self._path(name), chunksize=_PART)
        except bucket.errors as error:
            raise self._failed(error) from None

    def _path(self, name: str) -> str:
        """A name in which s3fs sees a version (and cuts it off) is changed by one character."""
        return posixpath.join(self._root, name.replace("?versionId=", "%3FversionId="))

    def _bucket(self) -> _Bucket:
        with self._lock:
            if self._made is None:
                self._made = self._opened()
            return self._made

    def _failed(self, error: Exception) -> StoreFailed:
        return StoreFailed(f"{self._service}: {_code(error)[:60]}")


@dataclass(frozen=True, slots=True)
class _Bucket:
    """files: fsspec's filesystem. errors: what its calls raise."""

    files: Any
    errors: tuple[type[Exception], ...]


def _local() -> Any:
    from fsspec.implementations.local import LocalFileSystem

    return LocalFileSystem()


def _s3() -> _Bucket:
    """With the credentials that botocore finds by itself."""
    try:
        from aiohttp import ClientError as HttpClientError
        from botocore.exceptions import BotoCoreError, ClientError
        from s3fs import S3FileSystem
    except ImportError:
        raise StoreFailed("OUTPUTS_TO=s3:// needs s3fs: pip install 'serverless-hands[aws]'") from None
    config = {"connect_timeout": 10, "read_timeout": _SECONDS, "retries": {"max_attempts": 3, "mode": "standard"}}
    files = S3FileSystem(config_kwargs=config, max_concurrency=2, use_listings_cache=False, skip_instance_cache=True)
    return _Bucket(files, (OSError, BotoCoreError, ClientError, HttpClientError))


def _cloud_storage() -> _Bucket:
    """With the application default credentials; without any where there is an emulator. The plain class: gcsfs's other
    one asks a second service, by gRPC, what kind of bucket it is."""
    try:
        from aiohttp import ClientError
        from gcsfs.core import GCSFileSystem
        from gcsfs.retry import ChecksumError, HttpError, NonRetryableError
        from google.auth.exceptions import GoogleAuthError
    except ImportError:
        raise StoreFailed("OUTPUTS_TO=gs:// needs gcsfs: pip install 'serverless-hands[gcp]'") from None
    errors = (OSError, ClientError, HttpError, ChecksumError, NonRetryableError, GoogleAuthError)
    token = "anon" if os.environ.get("STORAGE_EMULATOR_HOST") else "google_default"
    try:
        files = GCSFileSystem(
            token=token,
            access="read_write",
            consistency="md5",
            requests_timeout=_SECONDS,
            use_listings_cache=False,
            skip_instance_cache=True,
        )
    except errors as error:
        raise StoreFailed(f"Cloud Storage: {_code(error)}") from None
    return _Bucket(files, errors)


def _code(error: Exception) -> str:
    """What the service called it, else its type: the texts of services may quote what was sent to them."""
    answer = getattr(error.__cause__ or error, "response", None)
    if isinstance(answer, dict):
        return str(answer.get("Error", {}).get("Code"))
    status = getattr(error, "code", None)  # gcsfs's
    return str(status) if status else type(error).__name__


class HttpStore:
    """An address whose path goes on with the object's name; its query, a signature perhaps, is the same for all."""

    def __init__(self, url: str, signature: Secret | None) -> None:
        self._parts = urlsplit(url)
        self._signature = signature

    def read(self, name: str) -> bytes | None:
        answer = self._ask("GET", name)
        if answer.status_code == 404:
            return None
        if answer.status_code != 200:
            raise StoreFailed(f"{self._parts.hostname} answered HTTP {answer.status_code} to GET")
        return bytes(answer.content[:_LARGEST_MANIFEST])

    def write(self, name: str, file: Path) -> None:
        answer = self._ask("PUT", name, file)
        if not 200 <= answer.status_code < 300:
            raise StoreFailed(f"{self._parts.hostname} answered HTTP {answer.status_code} to PUT")

    def _ask(self, method: str, name: str, file: Path | None = None) -> Any:
        import httpx2

        path = posixpath.join(self._parts.path or "/", quote(name))
        query = self._signature.reveal().lstrip("?") if self._signature is not None else ""
        url = urlunsplit((self._parts.scheme, self._parts.netloc, path, query, ""))
        headers = {"accept-encoding": "identity"}
        if file is not None:
            # Without the second one Azure's storage, where such addresses are usual, takes no object.
            headers |= {"content-length": str(file.stat().st_size), "x-ms-blob-type": "BlockBlob"}
        try:
            with contextlib.ExitStack() as stack:
                content = None if file is None else stack.enter_context(file.open("rb"))
                return httpx2.request(method, url, content=content, headers=headers, timeout=_SECONDS)
        except httpx2.HTTPError as error:
            raise StoreFailed(f"{self._parts.hostname}: {type(error).__name__}") from None
