"""Secrets: held or referred to, read on first use, cached for minutes, shown nowhere.

A setting may hold a secret or say where it lives: `env:NAME`, `file:/path`, or a cloud's own store (`aws-sm:`,
`aws-ssm:`, `gcp-sm:`; see secret_stores.py). Trailing white space is dropped. What is read by reference is read again
after `CACHE_SECONDS`, so that a rotated key works without a restart.

A store that fails for a while stops nobody who has read the value before: the old value stays good for `KEPT_SECONDS`
after it was last read, whatever the reason that it cannot be read again (so a secret whose source was deleted still
works that long: revoke a key where it was made). The log says so once for each such while, and the source is asked
again every `RETRY_SECONDS`, since each question may take seconds.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shared.errors import SecretUnavailable

log = logging.getLogger(__name__)

CACHE_SECONDS: Final = 300.0
KEPT_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 30.0
SCHEMES: Final = ("env", "file", "aws-sm", "aws-ssm", "gcp-sm")


class Secret:
    """One secret. `reveal()` returns it; printing, formatting and comparing never do."""

    __slots__ = ("_cached", "_clock", "_failing", "_name", "_reference", "_retry_at")

    def __init__(self, name: str, reference: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._reference = reference
        self._clock = clock
        self._cached: tuple[float, str] | None = None  # when it was read, and what
        self._failing = False
        self._retry_at = -math.inf

    def reveal(self) -> str:
        """Raises SecretUnavailable, which names the setting and the source and never the value."""
        scheme, separator, rest = self._reference.partition(":")
        if not separator or scheme not in SCHEMES:
            return self._reference
        now = self._clock()
        age = now - self._cached[0] if self._cached is not None else math.inf
        if self._cached is not None and (age <= CACHE_SECONDS or (age <= KEPT_SECONDS and now < self._retry_at)):
            return self._cached[1]
        try:
            value = self._read(scheme, rest)
        except SecretUnavailable as error:
            if self._cached is None or age > KEPT_SECONDS:
                raise
            self._retry_at = self._clock() + RETRY_SECONDS
            if not self._failing:
                self._failing = True
                log.warning("secret.kept_old reason=%s kept_seconds=%d", error, KEPT_SECONDS - age)
            return self._cached[1]
        self._failing = False
        self._cached = (now, value)
        return value

    def _read(self, scheme: str, rest: str) -> str:
        if scheme == "env":
            value = os.environ.get(rest, "")
        elif scheme != "file":
            value = self._from_store(scheme, rest)
        else:
            try:
                value = Path(rest).read_text(encoding="utf-8").rstrip()
            except (OSError, UnicodeDecodeError) as error:
                raise SecretUnavailable(
                    f"{self._name}: the file {rest} cannot be read ({type(error).__name__})"
                ) from None
        if not value:
            raise SecretUnavailable(f"{self._name}: {scheme}:{rest} is empty or not set")
        return value

    def _from_store(self, scheme: str, place: str) -> str:
        from shared import secret_stores

        try:
            return secret_stores.read(scheme, place).rstrip()
        except secret_stores.NotReadable as error:
            raise SecretUnavailable(f"{self._name}: {scheme}:{place} cannot be read ({error})") from None

    def __repr__(self) -> str:
        return f"Secret({self._name})"
