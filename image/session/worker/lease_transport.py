"""The transport under the SDK's client: it knows the lease's true value, the SDK does not need to.

The SDK begins with NO_HEARTBEAT although the worker has a lease already, sends an outdated value after a lost answer,
and retries by itself below its own book-keeping. So every heartbeat of our item gets the value that the lease
object holds, and a 412 that shows a beat of our own, or an item that was acked for us anew, is answered by beating once
more. The SDK's last stop goes out only after one more heartbeat: a sandbox may have slept since the one before, and the
item may be somebody else's by now. All else passes untouched.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import quote

import httpx2

from image.session.worker.backoff import pauses
from image.session.worker.interrupts import watched
from image.session.worker.lease import Lease, Verdict

LOOK_UP_PATIENCE: Final = 30.0  # seconds; less than any lease
LOOK_UP_PAUSE: Final = 0.5  # seconds after the first failure; it doubles
_LONGEST_LOOK_UP_PAUSE: Final = 5.0
STREAM_SILENCE: Final = 90.0  # seconds without a byte, pings included, until an event stream counts as dead
_LONGEST_BEAT: Final = 10.0  # seconds; a third of the interval leaves the SDK time to ask again within it
_TRANSIENT: Final = frozenset({408, 409, 429})  # statuses that the SDK asks again after

log = logging.getLogger(__name__)


class LeaseTransport(httpx2.AsyncBaseTransport):
    """Wraps another transport for one work item.

    What the SDK's plain return does not tell: `verdict` is the last one passed on to it, `rejected` the status of a
    heartbeat's answer that it takes for final, `refused` that of a refusal of the session's events, `stop_sent`
    whether it has stopped the item.
    """

    def __init__(
        self,
        inner: httpx2.AsyncBaseTransport,
        lease: Lease,
        *,
        environment_id: str,
        work_id: str,
        session_id: str,
        on_session: Callable[[bytes], None],
        on_stopped: Callable[[], None],
        on_interrupt: Callable[[], None],
        on_history: Callable[[bytes], None] | None = None,
    ) -> None:
        """`on_session` gets the body of each session look-up before the SDK does, `on_history` of each page of the
        session's events. `on_stopped` is called when a heartbeat says that the item is being stopped, `on_interrupt`
        for each interrupt of the session's turn."""
        self._inner = inner
        self._lease = lease
        self._item = f"/v1/environments/{quote(environment_id, safe='')}/work/{quote(work_id, safe='')}"
        self._session = f"/v1/sessions/{quote(session_id, safe='')}"
        self._on_session = on_session
        self._on_stopped = on_stopped
        self._on_interrupt = on_interrupt
        self._on_history = on_history
        self.verdict: Verdict | None = None
        self.rejected: int | None = None
        self.refused: int | None = None
        self.stop_sent = False

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        path = request.url.raw_path.split(b"?", 1)[0].decode("ascii")
        match request.method:
            case "POST" if path.endswith(f"{self._item}/heartbeat"):
                return await self._heartbeat(request)
            case "POST" if path.endswith(f"{self._item}/stop"):
                if (instead := await self._before_stop(request)) is not None:
                    return instead
                self.stop_sent = True
            case "GET" if path.endswith(self._session):
                return await self._look_up(request)
            case "GET" if self._on_history is not None and path.endswith(f"{self._session}/events"):
                response = self._noted(await self._complete(request), path)
                if response.status_code == 200:
                    self._on_history(response.content)
                return response
            case "GET" if path.endswith(f"{self._session}/events/stream"):
                request.extensions = _with_patience(request, STREAM_SILENCE)
                return watched(await self._passed(request, path), self._on_interrupt)
        return await self._passed(request, path)

    async def _passed(self, request: httpx2.Request, path: str) -> httpx2.Response:
        return self._noted(await self._inner.handle_async_request(request), path)

    def _noted(self, response: httpx2.Response, path: str) -> httpx2.Response:
        if f"{self._session}/events" in path:
            self.refused = response.status_code if response.status_code in (401, 403) else None
        return response

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def _heartbeat(self, request: httpx2.Request) -> httpx2.Response:
        response, verdict = await self._settled(request)
        if verdict is Verdict.ACKED_ANEW:
            log.warning("lease.taken_anew")
            response, verdict = await self._beat(request)
        if verdict is Verdict.DOUBTFUL and response.status_code == 200:
            # The SDK takes a 200 that it cannot read for a bug of its own and gives the item up; this it retries.
            raise httpx2.RemoteProtocolError("the heartbeat's answer is unreadable", request=request)
        self.verdict = verdict
        if verdict is Verdict.STOPPED and self._lease.state in ("stopping", "stopped"):
            self._on_stopped()
        final = verdict is Verdict.DOUBTFUL and 400 <= response.status_code < 500
        self.rejected = response.status_code if final and response.status_code not in _TRANSIENT else None
        return response

    async def _before_stop(self, stop: httpx2.Request) -> httpx2.Response | None:
        """What the SDK is told instead, where the item is not ours any more, or nobody knows. It takes a 409 for an
        item that is stopped already. An item that is left alone lapses and is offered again, with the calls of
        its session's next message; a stop would leave those to nobody (docs/claim-protocol.md#the-end-of-an-item)."""
        path = stop.url.raw_path.split(b"?", 1)[0].removesuffix(b"/stop") + b"/heartbeat"
        own = ("content-length", "content-type", "transfer-encoding")
        headers = [(name, value) for name, value in stop.headers.multi_items() if name.lower() not in own]
        beat = httpx2.Request("POST", stop.url.copy_with(raw_path=path), headers=headers, extensions=stop.extensions)
        response, verdict = await self._settled(beat)
        if verdict in (Verdict.LOST, Verdict.NOT_ACKED, Verdict.ACKED_ANEW):
            log.warning("lease.lost_before_the_stop")
            self.verdict = Verdict.LOST
            return httpx2.Response(409, headers={"x-should-retry": "false"}, json={}, request=stop)
        passing = response.status_code >= 500 or response.status_code in _TRANSIENT
        return response if verdict is Verdict.DOUBTFUL and passing else None

    async def _settled(self, request: httpx2.Request) -> tuple[httpx2.Response, Verdict]:
        """A heartbeat, and once more where an earlier one of ours is found."""
        response, verdict = await self._beat(request)
        if verdict is Verdict.OURS:
            log.info("lease.own_beat_found")
            response, verdict = await self._beat(request)
        return response, verdict

    async def _beat(self, request: httpx2.Request) -> tuple[httpx2.Response, Verdict]:
        url = request.url.copy_set_param("expected_last_heartbeat", self._lease.sending())
        response = await self._complete(
            httpx2.Request(
                request.method,
                url,
                headers=request.headers,
                stream=request.stream,
                extensions=_with_patience(request, min(self._lease.interval / 3, _LONGEST_BEAT)),
            )
        )
        return response, self._lease.judge(response.status_code, response.content)

    async def _look_up(self, request: httpx2.Request) -> httpx2.Response:
        """The SDK gives a session up, and stops its item, after three failed look-ups within two seconds
        (docs/wire/anthropic.md#44-when-it-ends): a short trouble of the service would break off a turn. So this is
        asked for longer."""
        end = time.monotonic() + LOOK_UP_PATIENCE
        waits = pauses(LOOK_UP_PAUSE, _LONGEST_LOOK_UP_PAUSE)
        while True:
            pause = next(waits)
            patient = time.monotonic() + pause < end
            try:
                response = await self._complete(request)
            except httpx2.TransportError:
                if not patient:
                    raise
            else:
                passing = response.status_code >= 500 or response.status_code in _TRANSIENT
                if not passing or not patient:
                    break
            await asyncio.sleep(pause)
        if response.status_code == 200:
            self._on_session(response.content)
        return response

    async def _complete(self, request: httpx2.Request) -> httpx2.Response:
        """The answer with its whole body read, in the shape of one that has not been read yet."""
        answer = await self._inner.handle_async_request(request)
        answer.request = request
        try:
            body = await answer.aread()
        finally:
            await answer.aclose()
        headers = httpx2.Headers(
            [
                (name, value)
                for name, value in answer.headers.multi_items()
                if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
            ]
        )
        return httpx2.Response(
            answer.status_code, headers=headers, content=body, request=request, extensions=answer.extensions
        )


def _with_patience(request: httpx2.Request, seconds: float) -> dict[str, Any]:
    """The request's settings with another time-out for silence."""
    return {**request.extensions, "timeout": {**request.extensions.get("timeout", {}), "read": seconds}}
