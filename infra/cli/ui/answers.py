"""Answers that all who look share: browsers cost the services no more for being many."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Final, Generic, TypeVar

from infra.cli.fleet.pace import LEAST
from shared.deadline import Clock

_MOST_KEYS: Final = 64

_T = TypeVar("_T")


class Shared(Generic[_T]):
    """One answer for all who ask while it is fresh; who asks meanwhile waits for the one that is under way. `fresh`:
    for how many seconds an answer is good."""

    def __init__(
        self,
        read: Callable[[], Awaitable[_T]],
        fresh: Callable[[_T], float] = lambda _: LEAST,
        clock: Clock = time.monotonic,
    ) -> None:
        self._read = read
        self._fresh = fresh
        self._clock = clock
        self._lock = asyncio.Lock()
        self._last: tuple[float, _T] | None = None

    async def get(self) -> _T:
        async with self._lock:
            if self._last is None or self._clock() > self._last[0]:
                answer = await self._read()
                self._last = (self._clock() + self._fresh(answer), answer)
            return self._last[1]


class SharedEach(Generic[_T]):
    """The same for each key; those that were asked for last are remembered."""

    def __init__(self, read: Callable[[str], Awaitable[_T]]) -> None:
        self._read = read
        self._keys: OrderedDict[str, Shared[_T]] = OrderedDict()

    async def get(self, key: str) -> _T:
        one = self._keys.pop(key, None) or Shared(lambda: self._read(key))
        self._keys[key] = one
        if len(self._keys) > _MOST_KEYS:
            self._keys.popitem(last=False)
        return await one.get()
