"""An answer that grows while its work goes on: one JSON object a line, an empty line now and then to keep it alive.

The status waits for the first line, so that what is refused before it is refused with its own status. A caller that
hangs up cancels the work, which is awaited to its end.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from functions.requests import HttpError
from shared.tasks import to_its_end

MEDIA_TYPE: Final = "application/x-ndjson"
KEEP_ALIVE_SECONDS: Final = 15.0
_HEADERS: Final = {"cache-control": "no-store", "x-accel-buffering": "no"}

MOST_WAITING: Final = 1_000
_T = TypeVar("_T")


class Lines:
    """What was said and is not sent yet. None ends it."""

    def __init__(self) -> None:
        self._waiting: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.said = 0

    def say(self, line: bytes, *, spare: bool = False) -> None:
        """A line with its end. A `spare` one is dropped when the reader is MOST_WAITING lines behind."""
        if spare and self._waiting.qsize() >= MOST_WAITING:
            return
        self.said += 1
        self._waiting.put_nowait(line)

    def end(self) -> None:
        self._waiting.put_nowait(None)

    async def next(self) -> bytes | None:
        return await self._waiting.get()


class LineStream(Response):
    """`work(lines)` does the work and says its lines. It may raise HttpError before its first line; after that what
    goes wrong is a line."""

    media_type = MEDIA_TYPE

    def __init__(self, work: Callable[[Lines], Awaitable[None]], keep_alive: float = KEEP_ALIVE_SECONDS) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._work = work
        self._keep_alive = keep_alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        lines = Lines()

        async def work() -> None:
            await self._work(lines)

        task = asyncio.create_task(work())
        task.add_done_callback(lambda _: lines.end())
        watcher = asyncio.create_task(_cancel_on_hang_up(receive, task))
        try:
            first = await lines.next()
            if first is None:
                await _answer_of(task)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            await self._send_all(first, lines, send)
            if not task.cancelled():
                task.result()
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watcher.cancel()
            task.cancel()
            await to_its_end(task)

    async def _send_all(self, first: bytes, lines: Lines, send: Send) -> None:
        line: bytes | None = first
        while line is not None:
            await send({"type": "http.response.body", "body": line, "more_body": True})
            try:
                async with asyncio.timeout(self._keep_alive):
                    line = await lines.next()
            except TimeoutError:
                line = b"\n"


def _answer_of(task: asyncio.Task[None]) -> Response:
    """Work that ended without a line."""
    if task.cancelled():
        return HttpError(499, "hung_up", "the caller went away; the work was ended").response()
    try:
        task.result()
    except HttpError as error:
        return error.response()
    return Response(status_code=204)


async def _cancel_on_hang_up(receive: Receive, task: asyncio.Task[Any]) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    task.cancel()


def wants_stream(request: Request) -> bool:
    """Whether the caller would rather have the events than the report alone. Raises HttpError 406 where neither will
    do."""
    qualities: dict[str, float] = {}
    for part in request.headers.get("accept", "*/*").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            qualities[kind] = float(quality)
        except ValueError:
            qualities[kind] = 0.0
    json = max((qualities.get(kind, 0.0) for kind in ("application/json", "application/*", "*/*")), default=0.0)
    stream = qualities.get(MEDIA_TYPE, 0.0)
    if json <= 0 and stream <= 0:
        raise HttpError(406, "not_available", f"the answer is application/json or {MEDIA_TYPE}")
    return stream > 0 and stream >= json


async def unless_hung_up(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled, and has ended what it began, when nobody waits for it any more."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_cancel_on_hang_up(request.receive, task))
    try:
        return await task  # a cancellation of this handler reaches the task, which ends before it goes on from here
    except asyncio.CancelledError:
        if task.cancelled() and watcher.done():
            raise HttpError(499, "hung_up", "the caller went away; the race was ended") from None
        raise
    finally:
        watcher.cancel()
        await asyncio.wait({watcher})
