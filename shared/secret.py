"""Secrets: held or referred to, read on first use, cached for minutes, shown nowhere.

A setting may hold a secret or say where it lives: `env:NAME`, `file:/path`, or a cloud's own store (`aws-sm:`,
`aws-ssm:`, `gcp-sm:`; see secret_stores.py). Trailing white space is dropped. What is read by reference is read again
after `CACHE_SECONDS`, so that a rotated key works without a restart, and at once when a service refuses it
(`refused`).

A store that fails for a while stops nobody who has read the value before: the old value stays good for `KEPT_SECONDS`
after it was last read, whatever the reason that it cannot be read again (so a secret whose source was deleted still
works that long: revoke a key where it was made). The log says so once for each such while, and the source is asked
again every `RETRY_SECONDS`, since each question may take seconds.

A file or a store may also take long to answer. On an event loop only `areveal` is called: it reads in a thread, one for
each secret at a time, and waits for a newer value no longer than `PATIENCE_SECONDS` while an older one is good.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import math
import os
import threading
import time
from collections.abc import Callable
from typing import Final

from shared.errors import SecretUnavailable, SettingsError

log = logging.getLogger(__name__)

CACHE_SECONDS: Final = 300.0
KEPT_SECONDS: Final = 3600.0
RETRY_SECONDS: Final = 30.0
FILE_RETRY_SECONDS: Final = 2.0
"""A file costs nobody a call: who writes a new key into it should not wait half a minute."""
PATIENCE_SECONDS: Final = 1.0
LONGEST_READ_SECONDS: Final = 30.0
"""How long a caller waits for a value that was never read: secret_stores.read gives up sooner, a file may not."""
SHORTEST_SECRET: Final = 32
"""Characters: as many as `python -c 'import secrets; print(secrets.token_urlsafe(24))'` gives, 192 bits."""
SCHEMES: Final = ("env", "file", "aws-sm", "aws-ssm", "gcp-sm")


def is_reference(text: str) -> bool:
    """Whether this says where a secret lives, rather than being one."""
    scheme, separator, _ = text.partition(":")
    return bool(separator) and scheme in SCHEMES


def strong(setting: str, secret: str) -> str:
    """The secret. Raises SettingsError where it is so short that whoever holds a token could guess it."""
    if len(secret) < SHORTEST_SECRET:
        raise SettingsError(
            f"{setting} has fewer than {SHORTEST_SECRET} characters, and an agent could guess it from its own token: "
            "set it to a long random text (python3 -c 'import secrets; print(secrets.token_urlsafe(32))')"
        )
    return secret


class Secret:
    """One secret. `reveal` and `areveal` return it; printing, formatting and comparing never do."""

    __slots__ = ("_cached", "_clock", "_failing", "_lock", "_name", "_reading", "_reference", "_reread_at", "_retry_at")

    def __init__(self, name: str, reference: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._reference = reference
        self._clock = clock
        self._cached: tuple[float, str] | None = None  # when it was read, and what
        self._failing = False
        self._retry_at = -math.inf
        self._reread_at = -math.inf  # when a refusal had it read again last
        self._reading: concurrent.futures.Future[str] | None = None
        self._lock = threading.Lock()  # of `_reading`

    def reveal(self) -> str:
        """For commands and threads: blocks while the source is read, about twenty seconds at most for a store.

        Raises SecretUnavailable, which names the setting and the source and never the value.
        """
        held = self._held()
        return self._fetched() if held is None else held

    async def areveal(self) -> str:
        """For the event loop. Raises SecretUnavailable, also where nothing was read before and the source gives no
        answer within LONGEST_READ_SECONDS."""
        held = self._held()
        if held is not None:
            return held
        if self._reference.startswith("env:"):
            return self._fetched()
        old = self._kept()
        reading = asyncio.wrap_future(self._begun())
        reading.add_done_callback(_looked_at)  # it goes on for whoever asks next, although nobody may wait any more
        await asyncio.wait({reading}, timeout=LONGEST_READ_SECONDS if old is None else PATIENCE_SECONDS)
        if reading.done():
            return reading.result()
        if old is not None:
            return old
        raise SecretUnavailable(f"{self._name}: {self._reference} gave no answer within {LONGEST_READ_SECONDS:g} s")

    async def refused(self, value: str) -> bool:
        """A service does not take this value. Reads the source again at once; whether it holds another value by now.

        For refusals it is read at most every RETRY_SECONDS, a file every FILE_RETRY_SECONDS: a key that is wrong at its
        source is refused each time.
        """
        now = self._clock()
        pause = FILE_RETRY_SECONDS if self._reference.startswith("file:") else RETRY_SECONDS
        if self._cached is not None and self._cached[1] == value and now >= self._reread_at + pause:
            self._reread_at = now
            self._retry_at = -math.inf
            self._cached = (min(self._cached[0], now - CACHE_SECONDS - 1), value)
        try:
            return await self.areveal() != value
        except SecretUnavailable:
            return False

    def _held(self) -> str | None:
        """What needs no reading now."""
        if not is_reference(self._reference):
            return self._reference
        now = self._clock()
        if self._cached is None:
            return None
        age = now - self._cached[0]
        fresh = age <= CACHE_SECONDS or (age <= KEPT_SECONDS and now < self._retry_at)
        return self._cached[1] if fresh else None

    def _kept(self) -> str | None:
        """What was read before, while it is good."""
        if self._cached is None or self._clock() - self._cached[0] > KEPT_SECONDS:
            return None
        return self._cached[1]

    def _begun(self) -> concurrent.futures.Future[str]:
        """The read that runs. A thread of its own that ends with the process: one of the loop's executor would hold up
        the end of a server whose store hangs."""
        with self._lock:
            if self._reading is None:
                self._reading = concurrent.futures.Future()
                threading.Thread(target=self._read_into, args=(self._reading,), daemon=True).start()
            return self._reading

    def _read_into(self, reading: concurrent.futures.Future[str]) -> None:
        try:
            value = self._fetched()
        except BaseException as error:
            self._ended()
            reading.set_exception(error)
        else:
            self._ended()
            reading.set_result(value)

    def _ended(self) -> None:
        with self._lock:
            self._reading = None

    def _fetched(self) -> str:
        """Read from its source; the old value where that fails and the old one is good."""
        now = self._clock()
        scheme, _, rest = self._reference.partition(":")
        try:
            value = self._read(scheme, rest)
        except SecretUnavailable as error:
            old = self._kept()
            if old is None or self._cached is None:
                raise
            self._retry_at = self._clock() + RETRY_SECONDS
            if not self._failing:
                self._failing = True
                log.warning("secret.kept_old reason=%s kept_seconds=%d", error, KEPT_SECONDS - (now - self._cached[0]))
            return old
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
                with open(rest, encoding="utf-8") as file:  # noqa: PTH123 - pathlib costs a cold start two milliseconds
                    value = file.read().rstrip()
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


def _looked_at(reading: asyncio.Future[str]) -> None:
    """Else asyncio logs an error that nobody waited for."""
    if not reading.cancelled():
        reading.exception()
