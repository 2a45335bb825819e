"""How a race that was handed over gets an invocation that runs it (RACES_HANDED_TO, functions/handed_races.py).

- `aws-lambda:NAME`: an invocation that Lambda itself keeps until there is room for it.
- `gcp-tasks:QUEUE`: a task of Cloud Tasks, which calls the function and waits for it.
- an address of the function's own: a call that nobody answers for. It counts once the record shows that it was taken,
  and is held open for as long as this process lives, since a runtime keeps what it has requests for.

The calls over HTTP show a capability that is good for this one record and for minutes.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from functions.invocations import NotEnqueued, send

if TYPE_CHECKING:
    from shared.settings import RaceLimits

TAKEN_SECONDS: Final = 20.0
"""The longest that an own address is given to take a race: a cold start, and the record read."""
_LOOK_SECONDS: Final = 1.0
_CALL_SECONDS: Final = 5.0
_TASKS: Final = "https://cloudtasks.googleapis.com/v2"
_SHORTEST_TASK, _LONGEST_TASK = 15.0, 1800.0  # seconds: what Cloud Tasks waits for an answer
_BEYOND: Final = 60.0  # seconds after a race's deadline: promotion and ends

InBackground = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]


async def invoke(
    limits: RaceLimits, message: bytes, token: str, taken: Callable[[], Awaitable[bool]], in_background: InBackground
) -> None:
    """Has the race run by another invocation, or raises NotEnqueued: then it may be run all the same. `message` is for
    who is invoked by name, `token` for who is called. `taken`: whether somebody runs it by now; may raise HttpError."""
    if not limits.handed_at:
        await send(limits.handed_to, message)
    elif limits.handed_to.startswith("gcp-tasks:"):
        await asyncio.to_thread(_task, limits, token)
    else:
        await _called(limits, token, taken, in_background)


async def _called(
    limits: RaceLimits, token: str, taken: Callable[[], Awaitable[bool]], in_background: InBackground
) -> None:
    call = in_background(_held(limits.handed_at, token, limits.deadline + _BEYOND))
    try:
        async with asyncio.timeout(TAKEN_SECONDS):
            while not call.done():
                await asyncio.wait({call}, timeout=_LOOK_SECONDS)
                if not call.done() and await taken():
                    return
    except TimeoutError:
        call.cancel()
        raise NotEnqueued("not taken in time") from None
    except BaseException:
        call.cancel()
        raise
    if (said := call.result()) != "200":
        raise NotEnqueued(said)


async def _held(url: str, token: str, seconds: float) -> str:
    """The status of the answer, or the kind of error."""
    import httpx2

    times = httpx2.Timeout(_CALL_SECONDS, read=seconds)
    try:
        async with (
            httpx2.AsyncClient(follow_redirects=False, timeout=times) as client,
            client.stream("POST", url, headers={"authorization": f"Bearer {token}"}) as answer,
        ):
            return str(answer.status_code)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        return type(error).__name__


def _task(limits: RaceLimits, token: str) -> None:
    """One task for this race. Blocking, at most about ten seconds. Raises NotEnqueued."""
    import orjson

    from shared.secret_stores import google_call

    queue = limits.handed_to.removeprefix("gcp-tasks:")
    longest = min(max(limits.deadline + _BEYOND, _SHORTEST_TASK), _LONGEST_TASK)
    asked = {
        "url": limits.handed_at,
        "httpMethod": "POST",
        "headers": {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        "body": base64.b64encode(b"{}").decode(),
    }
    body = orjson.dumps({"task": {"httpRequest": asked, "dispatchDeadline": f"{longest:.0f}s"}})
    try:
        google_call(f"{_TASKS}/{queue}/tasks", body)
    except Exception as error:  # of urllib and of JSON; all mean the same here
        raise NotEnqueued(type(error).__name__) from None
