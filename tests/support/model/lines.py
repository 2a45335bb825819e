"""The line between a caller and a service: how long a call takes and what it meets on the way.

A request that was sent arrives, whether or not its caller still waits: a crash or a time-out of ours takes nothing
back. Which call meets what is told by the plan as (caller, method, how manieth), so that leaving one fault out of a
plan changes nothing about the others.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from shared.ports import Listing
from tests.support.model.loop import VirtualLoop


class Meets(StrEnum):
    """What a call meets instead of a quick answer."""

    LOST_REQUEST = "request lost"  # no effect; the caller learns nothing
    LOST_ANSWER = "answer lost"  # the effect; the caller learns nothing
    ERROR = "5xx"  # no effect, at once
    REFUSAL = "4xx"  # no effect, at once
    THROTTLED = "429"  # no effect, at once: not before so many seconds (WAIT)
    PARTIAL = "partial list"  # half of the rows, and no word on the others; any other answer is whole
    SLOW_REQUEST = "slow request"  # the effect comes late
    SLOW_ANSWER = "slow answer"  # the effect comes soon, the answer late
    CRASH_BEFORE = "crash before"  # the caller's process dies before it has sent the request
    CRASH_SENT = "crash with the request sent"
    CRASH_AFTER = "crash with the answer received"


WAIT = 7.0
CRASHES = frozenset({Meets.CRASH_BEFORE, Meets.CRASH_SENT, Meets.CRASH_AFTER})


@dataclass(frozen=True, slots=True)
class LostError(Exception):
    """The caller does not know whether the call had its effect."""

    reason: str


@dataclass(frozen=True, slots=True)
class ThrottledError(LostError):
    """Not before so many seconds."""

    seconds: float = WAIT


@dataclass(frozen=True, slots=True)
class RefusedError(Exception):
    """The service says no."""

    status: int


Faults = dict[tuple[str, str, int], Meets]
"""By caller, method (`*`: any) and how manieth call of that method on one line, from 0. Each is met once."""


@dataclass(slots=True, eq=False)
class ModelLine:
    """One caller's connection to both services. A caller that is dead makes no call any more."""

    caller: str
    loop: VirtualLoop
    faults: Faults
    chance: random.Random
    slow: float  # seconds that a slow call takes
    trace: Callable[[str, str], None]
    on_crash: Callable[[], None] = lambda: None
    dead: bool = False
    calls: int = 0
    _counts: dict[str, int] = field(default_factory=dict)

    async def call(self, method: str, effect: Callable[[], Any], *, within: float, about: str = "") -> Any:
        """The answer of `effect`, or what it raises. `effect` may answer a future, which is then waited for.

        Raises LostError and RefusedError as the plan says, and LostError after `within` seconds.
        """
        if self.dead:
            raise asyncio.CancelledError
        faults, caller, counts, number = self.faults, self.caller, self._counts, self.calls
        count = counts.get(method, 0)
        counts[method], self.calls = count + 1, number + 1
        meets: Meets | None = None
        if faults:
            meets = faults.pop((caller, method, count), None) or faults.pop((caller, "*", number), None)
        if meets is not None:
            self.trace(caller, f"{method} {about} meets: {meets}")
            if meets is Meets.CRASH_BEFORE:
                self.on_crash()
                await forever()
        loop, chance = self.loop, self.chance.random
        there, back = 0.002 + 0.05 * chance(), 0.002 + 0.05 * chance()
        match meets:
            case None:
                pass
            case Meets.SLOW_REQUEST:
                there += self.slow
            case Meets.SLOW_ANSWER:
                back += self.slow
            case Meets.ERROR:
                await asyncio.sleep(there + back)
                raise LostError("HTTP 503")
            case Meets.THROTTLED:
                await asyncio.sleep(there + back)
                raise ThrottledError("HTTP 429")
            case Meets.REFUSAL:
                await asyncio.sleep(there + back)
                raise RefusedError(403)
            case Meets.LOST_REQUEST:
                await asyncio.sleep(min(self.slow, within))
                raise LostError("dropped")
            case Meets.CRASH_SENT:
                self.on_crash()
        answer: asyncio.Future[Any] = loop.create_future()
        if there + back > within:
            loop.after(within, _settle, answer, None, LostError("timed out"))
        loop.after(there, self._arrive, effect, answer, back, within - there)
        result = await answer
        if meets is None:
            return result
        if meets is Meets.CRASH_AFTER:
            self.on_crash()
            await forever()
        if meets is Meets.LOST_ANSWER:
            raise LostError("dropped")
        if meets is Meets.PARTIAL and isinstance(result, Listing):
            return Listing(result.rows[: len(result.rows) // 2], complete=False)
        return result

    def _arrive(self, effect: Callable[[], Any], answer: asyncio.Future[Any], back: float, left: float) -> None:
        try:
            result = effect()
        except RefusedError as error:
            self.loop.after(back, _settle, answer, None, error)
            return
        if isinstance(result, asyncio.Future):
            result.add_done_callback(
                lambda done: (
                    self.loop.after(back, _settle, answer, done.result(), None) if not done.cancelled() else None
                )
            )
            self.loop.after(max(0.0, left), _settle, answer, None, LostError("timed out"))
            return
        self.loop.after(back, _settle, answer, result, None)


async def forever() -> None:
    """Until the caller is cancelled."""
    await asyncio.get_running_loop().create_future()


def _settle(answer: asyncio.Future[Any], result: object, error: Exception | None) -> None:
    if answer.done():
        return
    if error is not None:
        answer.set_exception(error)
    else:
        answer.set_result(result)
