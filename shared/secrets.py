"""Secrets: held or referred to, read on first use, cached for minutes, shown nowhere.

A setting may hold a secret or say where it lives: `env:NAME`, `file:/path`, or a cloud's own store (`aws-sm:`,
`aws-ssm:`, `gcp-sm:`; see secret_stores.py). Trailing white space is dropped. What is read by reference is read again
after `CACHE_SECONDS`, so that a rotated key works without a restart.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from shared.errors import SecretUnavailable

CACHE_SECONDS: Final = 300.0
SCHEMES: Final = ("env", "file", "aws-sm", "aws-ssm", "gcp-sm")


class Secret:
    """One secret. `reveal()` returns it; printing, formatting and comparing never do."""

    __slots__ = ("_cached", "_clock", "_name", "_reference")

    def __init__(self, name: str, reference: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._reference = reference
        self._clock = clock
        self._cached: tuple[float, str] | None = None

    def reveal(self) -> str:
        """Raises SecretUnavailable, which names the setting and the source and never the value."""
        scheme, separator, rest = self._reference.partition(":")
        if not separator or scheme not in SCHEMES:
            return self._reference
        now = self._clock()
        if self._cached is None or now - self._cached[0] > CACHE_SECONDS:
            self._cached = (now, self._read(scheme, rest))
        return self._cached[1]

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
