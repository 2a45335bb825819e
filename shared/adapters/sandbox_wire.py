"""A sandbox's own daemon over HTTP: processes and files (docs/wire/tensorlake.md#22-data-plane-base,
docs/wire/tensorlake.md#23-headers, docs/wire/tensorlake.md#7-processes, docs/wire/tensorlake.md#8-files).

Not by the SDK, which holds each answer whole before anybody can measure it: a program in the sandbox writes into a pipe
of ours what it likes. Here every answer is cut while it streams: what is held of it is at most its `limit`, and of all
answers together at most the process's budget. Redirects are not followed: they could lead to any address.

What a call raises is sorted by `outcome_of`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from shared.byte_budget import BudgetUsedUp, ByteBudget
from shared.ports import Absent, CommandOutput, Doubtful, NoAnswer, Refused
from shared.secret import Secret
from shared.unanswered import unanswered

if TYPE_CHECKING:
    import httpx2

CONNECT_SECONDS: Final = 10.0
_KEEP_SECONDS: Final = 2.0  # shorter than any server's, so that no request meets a connection that is being closed
_LONGEST_WORDS: Final = 200
_TELLING: Final = 12  # so many characters of a secret in a row are taken for a quotation
_LONGEST_FRAME: Final = 1_048_576
_OVERHEAD: Final = 100  # a line's frame on the wire, over the line itself: an empty one takes some 75 bytes


@dataclass(frozen=True, slots=True)
class Route:
    """Where a sandbox's daemon answers: `url` is its base, `hint` what the service gave to find it by."""

    sandbox_id: str
    url: str
    hint: str | None

    def headers(self) -> dict[str, str]:
        """docs/wire/tensorlake.md#22-data-plane-base, docs/wire/tensorlake.md#23-headers."""
        headers = {}
        host = self.url.partition("://")[2].partition("/")[0].rpartition("@")[2]
        if host.rsplit(":", 1)[0] in ("localhost", "127.0.0.1"):
            headers["host"] = f"{self.sandbox_id}.local"
        else:
            headers["x-tensorlake-sandbox-id"] = self.sandbox_id
        if self.hint:
            headers["x-tensorlake-route-hint"] = self.hint
        return headers


class ErrorAnswer(Exception):
    """An answer that is an error. `status` is the HTTP status, `words` the beginning of what it says."""

    def __init__(self, status: int, words: str = "") -> None:
        super().__init__(f"HTTP {status}")
        self.status = status
        self.words = words


class NotReached(Exception):
    """No connection: the sandbox has seen nothing of the call. The text is fit for a report."""


class TooLarge(Exception):
    """More bytes than the call's limit."""

    def __init__(self, limit: int) -> None:
        super().__init__(f"the answer is larger than {limit} bytes")
        self.limit = limit


class Garbled(Exception):
    """An answer that is none of the contract's. The text is fit for a report."""


def outcome_of(error: Exception, secrets: Sequence[str] | None = None) -> Absent | Refused | Doubtful:
    """Only what the sandbox said for certain is Absent or Refused. With `secrets` an error's words are told, but not
    where they quote one of these."""
    match error:
        case ErrorAnswer(status=404):
            return Absent()
        case ErrorAnswer(status=status, words=words) if 400 <= status < 500 and status not in (408, 429):
            told = quotable(words, secrets) if secrets is not None else ""
            return Refused(status, f"HTTP {status}: {told}" if told else f"HTTP {status}")
        case ErrorAnswer() | TooLarge() | Garbled():
            return Doubtful(str(error))
        case BudgetUsedUp():
            return Doubtful("too much is being read from sandboxes at once")
        case NotReached():
            return NoAnswer(str(error))
        case _:
            return Doubtful(type(error).__name__)


def quotable(words: str, secrets: Sequence[str]) -> str:
    """Foreign words that are fit for a report: cut, printable, and without any secret that they quote, even in part."""
    for secret in secrets:
        words = words.replace(secret, "[secret]")
    parts = (secret[at : at + _TELLING] for secret in secrets for at in range(max(1, len(secret) - _TELLING + 1)))
    if any(part in words for part in parts):
        return "its words quote a secret and are not shown"
    return "".join(letter if letter.isprintable() else " " for letter in words[:_LONGEST_WORDS]).strip()


class SandboxWire:
    """One connection pool for one project's sandboxes."""

    def __init__(self, api_key: Secret, budget: ByteBudget) -> None:
        self._api_key = api_key
        self._budget = budget
        self._client: tuple[asyncio.AbstractEventLoop, httpx2.AsyncClient] | None = None

    async def call(
        self,
        route: Route,
        method: str,
        path: str,
        *,
        seconds: float,
        limit: int,
        body: bytes | Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        cut: bool = False,
    ) -> bytes:
        """The answer's body. With `cut` a longer one ends at `limit` bytes; without it raises TooLarge."""
        found = bytearray()
        with self._budget.hold(limit) as held:
            async with self._open(route, method, path, "*/*", body=body, query=query, silence=seconds) as answer:
                async for chunk in answer.aiter_raw():
                    if len(found) + len(chunk) > limit and not cut:
                        raise TooLarge(limit)
                    kept = chunk[: limit - len(found)]
                    held.grow(len(kept))
                    found += kept
                    if len(kept) < len(chunk):
                        break
            return bytes(found)

    async def run(self, route: Route, asked: Mapping[str, Any], *, silence: float, limit: int) -> CommandOutput:
        """A program from its start to its end (docs/wire/tensorlake.md#73-run): both outputs together have at most
        `limit` bytes, and more raises TooLarge. `silence` is the longest pause of the stream in seconds."""
        outputs = {"stdout": bytearray(), "stderr": bytearray()}
        ended: dict[str, Any] | None = None
        with self._budget.hold(limit) as held:
            stream = self.events(route, "POST", "/api/v1/processes/run", body=asked, silence=silence, limit=limit)
            async with aclosing(stream) as frames:
                async for frame in frames:
                    match frame:
                        case {"line": str(line), "timestamp": _}:
                            output = outputs["stderr" if frame.get("stream") == "stderr" else "stdout"]
                            text = line.encode(errors="surrogatepass") + b"\n"
                            if sum(map(len, outputs.values())) + len(text) > limit + 1:
                                raise TooLarge(limit)
                            held.grow(len(text))
                            output += text
                        case {"exit_code": int()} | {"signal": int()}:
                            ended = frame
        if ended is None:
            raise Garbled("the stream ended before the program's end was told")
        code = ended["exit_code"] if isinstance(ended.get("exit_code"), int) else -ended["signal"]
        out, err = (bytes(output)[:-1].decode(errors="replace") for output in outputs.values())
        return CommandOutput(code, out, err, timed_out=ended.get("reason") == "timed_out")

    async def events(
        self,
        route: Route,
        method: str,
        path: str,
        *,
        silence: float,
        limit: int,
        body: Mapping[str, Any] | None = None,
        to_the_end: bool = False,
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The JSON objects of an event stream; what is none is passed over, as the SDK does. Ends with an `eof` event.
        `to_the_end`: one that is closed without it has broken (its sandbox fell asleep, a proxy gave it up): Garbled.

        One frame is held at a time. A stream of much more than `limit` bytes, whatever they are, raises TooLarge.
        """
        async with self._open(route, method, path, "text/event-stream", body=body, silence=silence) as answer:
            kind = answer.headers.get("content-type", "").partition(";")[0].strip().lower()
            if kind != "text/event-stream":
                raise Garbled("the answer is no event stream")
            async for name, data in _frames(answer.aiter_raw(), _LONGEST_FRAME + _OVERHEAD * limit):
                if name == "eof":
                    return
                try:
                    value = json.loads(data)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict):
                    yield value
            if to_the_end:
                raise Garbled("the stream was closed before its end")

    @asynccontextmanager
    async def _open(
        self,
        route: Route,
        method: str,
        path: str,
        accept: str,
        *,
        body: bytes | Mapping[str, Any] | None = None,
        query: Mapping[str, str] | None = None,
        silence: float,
    ) -> AsyncIterator[httpx2.Response]:
        import httpx2

        client = await self._connected()
        headers = {"accept": accept, **route.headers()}
        content: bytes | None = None
        if isinstance(body, Mapping):
            content, headers["content-type"] = json.dumps(body).encode(), "application/json"
        elif body is not None:
            content = body
        request = client.build_request(
            method,
            route.url.rstrip("/") + path,
            content=content,
            params=query,
            headers=headers,
            timeout=httpx2.Timeout(silence, connect=min(CONNECT_SECONDS, silence)),
        )
        try:
            answer, key = await self._sent(client, request)
            if answer.status_code == 401 and await self._api_key.refused(key):
                await answer.aclose()
                answer, _ = await self._sent(client, request)  # a refused call changed nothing
        except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
            raise NotReached(unanswered(error, route.url)) from error
        try:
            if not answer.is_success:
                raise ErrorAnswer(answer.status_code, await _first_words(answer))
            if answer.headers.get("content-encoding", "identity") != "identity":
                raise Garbled("the answer is compressed, which nobody asked for")
            yield answer
        finally:
            await answer.aclose()

    async def _sent(self, client: httpx2.AsyncClient, request: httpx2.Request) -> tuple[httpx2.Response, str]:
        """The answer's head, and the key that was used."""
        key = await self._api_key.areveal()
        request.headers["authorization"] = f"Bearer {key}"
        return await client.send(request, stream=True), key

    async def _connected(self) -> httpx2.AsyncClient:
        """A pool belongs to its event loop, and nothing here says that the process has one only."""
        loop = asyncio.get_running_loop()
        if self._client is None or self._client[0] is not loop:
            client = await asyncio.to_thread(_new_client)
            if self._client is None or self._client[0] is not loop:  # else another call was quicker
                self._client = (loop, client)
        return self._client[1]

    async def aclose(self) -> None:
        held, self._client = self._client, None
        if held is not None and held[0] is asyncio.get_running_loop():
            await held[1].aclose()


async def _first_words(answer: httpx2.Response) -> str:
    import httpx2

    try:
        async for chunk in answer.aiter_raw():
            return chunk[: 4 * _LONGEST_WORDS].decode(errors="replace")
    except httpx2.HTTPError:
        pass  # the status has told enough
    return ""


def _new_client() -> httpx2.AsyncClient:
    """In a thread: it loads the certificates of the machine."""
    import httpx2

    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=_KEEP_SECONDS)
    client = httpx2.AsyncClient(limits=limits, follow_redirects=False)
    del client.headers["accept-encoding"]
    client.headers["user-agent"] = "serverless-hands"
    return client


async def _frames(chunks: AsyncIterator[bytes], limit: int) -> AsyncIterator[tuple[str, bytes]]:
    """Name and data of each frame of server-sent events."""
    pending, total = b"", 0
    name, data = "", b""
    async for chunk in chunks:
        total += len(chunk)
        *lines, pending = (pending + chunk).split(b"\n")
        if total > limit or len(pending) > _LONGEST_FRAME:
            raise TooLarge(limit)
        for line in (each.rstrip(b"\r") for each in lines):
            if line.startswith(b"data:"):
                data += (b"\n" if data else b"") + line[5:].removeprefix(b" ")
                if len(data) > _LONGEST_FRAME:
                    raise TooLarge(_LONGEST_FRAME)
            elif line.startswith(b"event:"):
                name = line[6:].strip()[:100].decode("utf-8", "replace")
            elif not line:
                if data:
                    yield name, data
                name, data = "", b""
