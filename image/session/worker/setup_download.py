"""A session's files over plain https, into a staging folder.

A connection that ends in the middle costs nothing of what has come: where the server says which version of the file it
sends (a strong entity tag) and takes a range, the next attempt goes on from there (RFC 9110, sections 13.1.5 and 14).
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin, urlsplit

from image.session.setup import LOOPBACK, FileSource, SetupPolicy, bare
from image.session.worker.backoff import pauses
from image.session.worker.setup_commands import SourceFailed, printable

if TYPE_CHECKING:
    import httpx2

_SILENCE: Final = 60.0  # seconds without a byte
_REDIRECTS: Final = 5
_TRIES: Final = 3  # in a row that bring less than this:
_WORTH_ANOTHER: Final = 1 << 20  # bytes
_PAUSE: Final = 1.0  # seconds after the first of them
_REPORT: Final = 5.0  # seconds between two lines about one download

log = logging.getLogger(__name__)


async def download(source: FileSource, url: str, policy: SetupPolicy, target: Path) -> int:
    """The file as `target`, and its size in bytes. `url` is where it really is: the source's own, or one that is
    signed. Raises SourceFailed, BadSetup, OSError for a disk that does not take it."""
    import httpx2

    target.parent.mkdir(parents=True, exist_ok=True)
    got = _Download(source, target)
    attempt, waits = 0, pauses(_PAUSE)
    while True:
        before = got.size
        try:
            return await got.run(url, policy)
        except (httpx2.TransportError, ssl.SSLError) as error:
            attempt += 1
            if got.size - before >= _WORTH_ANOTHER:
                attempt, waits = 1, pauses(_PAUSE)
            if attempt >= _TRIES:
                raise SourceFailed(
                    f"{got.shown} was not reached ({type(error).__name__}: {printable(str(error))}); if the sandbox "
                    "may not reach its host, SANDBOX_ALLOW_OUT lacks it"
                ) from None
            log.info("setup.download_again url=%s bytes=%d error=%s", got.shown, got.size, type(error).__name__)
            await asyncio.sleep(next(waits))


class _Download:
    """What has come of one file so far, over as many connections as it takes."""

    def __init__(self, source: FileSource, target: Path) -> None:
        self._source = source
        self._target = target
        self._version = ""
        self._digest = hashlib.sha256()
        self.shown = bare(source.url)
        self.size = 0

    async def run(self, url: str, policy: SetupPolicy) -> int:
        import httpx2

        patience = httpx2.Timeout(_SILENCE, connect=20.0)
        near = urlsplit(url).hostname in LOOPBACK  # no proxy leads there
        async with httpx2.AsyncClient(timeout=patience, follow_redirects=False, trust_env=not near) as client:
            client.headers["accept-encoding"] = "identity"
            if self.size and self._version:
                client.headers |= {"range": f"bytes={self.size}-", "if-range": self._version}
            for _ in range(_REDIRECTS + 1):
                policy.reaches(url)
                async with client.stream("GET", url) as answer:
                    if answer.is_redirect:
                        url = self._next(url, answer.headers.get("location", ""))
                        continue
                    return await self._take(answer)
        raise SourceFailed(f"{self.shown} is redirected more than {_REDIRECTS} times")

    def _next(self, url: str, location: str) -> str:
        following = urljoin(url, location)
        parts = urlsplit(following)
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in LOOPBACK):
            raise SourceFailed(f"{self.shown} is redirected to {bare(following)[:200]}, which is no https address")
        return following

    async def _take(self, answer: httpx2.Response) -> int:
        """Flushed to the disk before anybody counts on it."""
        import httpx2

        goes_on = answer.status_code == 206 and answer.headers.get("content-range", "").startswith(
            f"bytes {self.size}-"
        )
        if not goes_on:
            self._begin_anew(answer)
        if answer.status_code >= 500 or (answer.status_code in (206, 416) and not goes_on):
            raise httpx2.RemoteProtocolError(f"HTTP {answer.status_code}")
        if answer.status_code not in (200, 206):
            raise SourceFailed(f"{self.shown}: HTTP {answer.status_code}")
        with self._target.open("ab" if goes_on else "wb") as file:
            said_at = time.monotonic()
            async for chunk in answer.aiter_raw():
                file.write(chunk)
                self._digest.update(chunk)
                self.size += len(chunk)
                if time.monotonic() - said_at > _REPORT:
                    said_at = time.monotonic()
                    log.info("setup.downloads url=%s bytes=%d", self.shown, self.size)
            file.flush()
            os.fsync(file.fileno())
        found, wanted = self._digest.hexdigest(), self._source.sha256
        if wanted and found != wanted:
            raise SourceFailed(f"{self.shown} is not the file that was asked for: its sha256 is {found}, not {wanted}")
        return self.size

    def _begin_anew(self, answer: httpx2.Response) -> None:
        tag = answer.headers.get("etag", "")
        self._version = tag if tag.startswith('"') and tag.isascii() else ""  # a weak one names no bytes
        self._digest, self.size = hashlib.sha256(), 0


def same_file(one: Path, other: Path) -> bool:
    """Whether both are files with the same bytes."""
    if not other.is_file() or one.stat().st_size != other.stat().st_size:
        return False
    with one.open("rb") as first, other.open("rb") as second:
        return hashlib.file_digest(first, "sha256").digest() == hashlib.file_digest(second, "sha256").digest()
