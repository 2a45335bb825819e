"""What the worker says: notices on standard output for the dispatcher, log records on standard error for people."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import sys
import time
from collections.abc import Collection
from typing import Final, TextIO

from image.session.claim import LONGEST_DETAIL, PROTOCOL_VERSION, Exit, Notice, Word

_FIRST_OWN: Final = 10  # below are the descriptors that a shell gives names to
_MASK: Final = "[secret]"


def digest_of(archive: str) -> str:
    """SHA-256 (hex) of the file that runs, "" where it cannot be read."""
    try:
        with open(archive, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError:
        return ""


def installed_sdk() -> str:
    """The anthropic package's version as its installation record names it, without importing anything of it."""
    for directory in sys.path:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for name in names:
            if name.startswith("anthropic-") and name.endswith(".dist-info"):
                return name.removeprefix("anthropic-").removesuffix(".dist-info")
    return ""


class WorkerOutputs:
    """The worker's two outputs, taken out of reach of the programs that it starts: those find both closed off."""

    def __init__(self) -> None:
        self.notices = fcntl.fcntl(1, fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN)
        log = fcntl.fcntl(2, fcntl.F_DUPFD_CLOEXEC, _FIRST_OWN)
        nowhere = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
        os.dup2(nowhere, 1)
        os.dup2(nowhere, 2)
        os.close(nowhere)
        self.log = os.fdopen(log, "w", encoding="utf-8", errors="backslashreplace", buffering=1)
        sys.stderr = self.log  # what Python itself complains of


class NoticeWriter:
    """Prints notices. A reader that went away is no reason to stop working."""

    def __init__(self, work_id: str, archive: str, descriptor: int, nonce: str = "") -> None:
        self._work_id = work_id
        self._descriptor = descriptor
        self._nonce = nonce
        self._worker = digest_of(archive)
        self.sdk = installed_sdk()

    def say(self, word: Word, detail: str = "", *, on_behalf: bool = False) -> None:
        notice = Notice(
            word=word,
            work_id=self._work_id,
            protocol=PROTOCOL_VERSION,
            worker=self._worker,
            sdk=self.sdk,
            pid=os.getpid(),
            detail=detail[:LONGEST_DETAIL],
            on_behalf=on_behalf,
            nonce=self._nonce,
            at=round(time.time(), 3),
        )
        # One write a line, so that lines of two threads never mix.
        try:
            os.write(self._descriptor, (notice.to_json() + "\n").encode())
        except OSError:
            logging.getLogger(__name__).warning("notice.unheard word=%s", word)

    def ended(self, exit_status: Exit, detail: str = "") -> None:
        """The detail begins with the exit's name, so that a reader needs no table of numbers."""
        self.say(Word.ENDED, f"{exit_status.name}: {detail}" if detail else exit_status.name)


class Redactor:
    """The texts that no output may hold. Grows as newer secrets arrive."""

    def __init__(self, secrets: Collection[str] = ()) -> None:
        self._secrets: list[str] = []
        for secret in secrets:
            self.add(secret)

    def add(self, secret: str | None) -> None:
        if secret and secret not in self._secrets:
            self._secrets = sorted([*self._secrets, secret], key=len, reverse=True)

    def apply(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, _MASK)
        return text


class _OneLine(logging.Formatter):
    """A record is one line, tracebacks included, with every known secret masked (the second line of defence: no
    call of ours or of the SDK puts one there)."""

    def __init__(self, redactor: Redactor) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")
        self._redactor = redactor

    def format(self, record: logging.LogRecord) -> str:
        return self._redactor.apply(super().format(record)).replace("\r", "\\r").replace("\n", "\\n")


def configure_logging(redactor: Redactor, stream: TextIO) -> None:
    """The whole process logs to `stream` at INFO; the HTTP library's line a request is left out."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(_OneLine(redactor))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for chatty in ("httpx2", "httpcore2"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
