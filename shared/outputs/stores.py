"""Where outputs go: a folder, S3, Google Cloud Storage, or an https address that takes PUT.

A write is atomic: whoever reads finds the whole object or the one before it. The libraries are imported by the first
call, and never by a function that has no outputs to collect.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import secrets
import shutil
from pathlib import Path
from typing import Any, Final, Protocol
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from shared.errors import HandsError
from shared.secret import Secret

_LARGEST_MANIFEST: Final = 64 * 1024 * 1024
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
            return S3Store(parts.netloc, parts.path.strip("/"))
        case "gs":
            return GcsStore(parts.netloc, parts.path.strip("/"))
        case _:
            return HttpStore(target, signature)


class FolderStore:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def read(self, name: str) -> bytes | None:
        try:
            return (self._folder / name).read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreFailed(f"{name}: {error.strerror}") from None

    def write(self, name: str, file: Path) -> None:
        place = self._folder / name
        draft = place.with_name(f".{secrets.token_hex(8)}.part")
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with draft.open("wb") as made, file.open("rb") as source:
                shutil.copyfileobj(source, made, 1 << 20)
                made.flush()
                os.fsync(made.fileno())
            draft.replace(place)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise StoreFailed(f"{name}: {error.strerror}") from None


class S3Store:
    """With the credentials that boto3 finds by itself."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._made: Any = None

    def read(self, name: str) -> bytes | None:
        client = self._client()  # first: it says what is missing
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer = client.get_object(Bucket=self._bucket, Key=self._key(name))
            return bytes(answer["Body"].read(_LARGEST_MANIFEST))
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise _s3_failed(error) from None
        except BotoCoreError as error:
            raise StoreFailed(type(error).__name__) from None

    def write(self, name: str, file: Path) -> None:
        client = self._client()
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            client.upload_file(str(file), self._bucket, self._key(name))
        except ClientError as error:
            raise _s3_failed(error) from None
        except (BotoCoreError, Boto3Error) as error:
            code = re.search(r"\((\w+)\)", str(error))  # an upload's error holds the service's as text
            raise StoreFailed(f"S3 answered {code[1]}" if code else type(error).__name__) from None

    def _key(self, name: str) -> str:
        return posixpath.join(self._prefix, name)

    def _client(self) -> Any:
        if self._made is None:
            try:
                import boto3
                from botocore.config import Config
            except ImportError:
                raise StoreFailed("OUTPUTS_TO=s3:// needs boto3: pip install 'serverless-hands[aws]'") from None
            config = Config(connect_timeout=10, read_timeout=_SECONDS, retries={"max_attempts": 3, "mode": "standard"})
            self._made = boto3.client("s3", config=config)
        return self._made


def _s3_failed(error: Any) -> StoreFailed:
    told = error.response.get("Error", {})
    return StoreFailed(f"S3 answered {str(told.get('Code'))[:60]}")


class GcsStore:
    """With the application default credentials."""

    def __init__(self, bucket: str, prefix: str) -> None:
        self._bucket, self._prefix = bucket, prefix
        self._made: Any = None

    def read(self, name: str) -> bytes | None:
        blob = self._blob(name)  # first: it says what is missing
        from google.api_core.exceptions import NotFound

        try:
            return bytes(blob.download_as_bytes(timeout=_SECONDS))
        except NotFound:
            return None
        except _gcs_errors() as error:
            raise _gcs_failed(error) from None

    def write(self, name: str, file: Path) -> None:
        blob = self._blob(name)
        try:
            blob.upload_from_filename(str(file), timeout=_SECONDS)
        except _gcs_errors() as error:
            raise _gcs_failed(error) from None

    def _blob(self, name: str) -> Any:
        if self._made is None:
            try:
                from google.cloud import storage
            except ImportError:
                raise StoreFailed(
                    "OUTPUTS_TO=gs:// needs google-cloud-storage: pip install 'serverless-hands[gcp]'"
                ) from None
            try:
                self._made = storage.Client().bucket(self._bucket)
            except _gcs_errors() as error:
                raise _gcs_failed(error) from None
        return self._made.blob(posixpath.join(self._prefix, name))


def _gcs_errors() -> tuple[type[Exception], ...]:
    """The service's, its credentials', and OSError: the network's (requests) and what a missing project raises."""
    from google.api_core.exceptions import GoogleAPIError
    from google.auth.exceptions import GoogleAuthError

    return GoogleAPIError, GoogleAuthError, OSError


def _gcs_failed(error: Exception) -> StoreFailed:
    return StoreFailed(f"Cloud Storage: {type(error).__name__}")


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
