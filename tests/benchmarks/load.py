"""An open-loop HTTP/1.1 client: requests leave when they are due, whether or not earlier ones were answered.

    python -m tests.benchmarks.load < plan.json > outcome.json

A process of its own, so that what it costs is not taken from whoever measures. Latencies count from when a request was
due, so a client or a server that falls behind makes them longer instead of hiding them.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self
from urllib.parse import urlsplit

from tests.support.signing import delivery, signed

MOST_CONNECTIONS: Final = 512
_PATIENCE: Final = 10.0  # seconds for what is still unanswered at the end


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """`webhooks` and `probes` are requests a second, for so many `seconds`; `path` is what the probes GET."""

    url: str
    webhooks: float
    probes: float
    seconds: float
    path: str = "/healthz"


@dataclass(slots=True)
class Lane:
    """One kind of request. Seconds; `late` is how long after its due time the client sent each of them."""

    latencies: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    statuses: dict[str, int] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """Answers a second, over the time in which they came."""
        return len(self.latencies) / self.seconds if self.seconds else 0.0

    @classmethod
    def of(cls, raw: Mapping[str, Any]) -> Self:
        """From what `asdict` made of one."""
        return cls(**raw)


async def drive(plan: LoadPlan) -> Mapping[str, Lane]:
    """Both kinds of request at once; `webhooks` and `probes`."""
    parts = urlsplit(plan.url)
    pool = _Pool(parts.hostname or "", parts.port or 80)
    host = f"host: {parts.netloc}\r\n".encode()
    webhooks = [_webhook(host, number) for number in range(int(plan.webhooks * plan.seconds))]
    probes = [f"GET {plan.path} HTTP/1.1\r\n".encode() + host + b"\r\n"] * int(plan.probes * plan.seconds)
    lanes = {"webhooks": Lane(), "probes": Lane()}
    # What was built above is thousands of objects; a collection among them would be measured as the server's.
    gc.freeze()
    begin = time.perf_counter() + 0.1
    async with asyncio.TaskGroup() as group:
        group.create_task(_lane(lanes["webhooks"], webhooks, plan.webhooks, begin, pool))
        group.create_task(_lane(lanes["probes"], probes, plan.probes, begin, pool))
    pool.close()
    return lanes


async def _lane(lane: Lane, requests: Sequence[bytes], rate: float, begin: float, pool: _Pool) -> None:
    async with asyncio.TaskGroup() as group:
        for number, request in enumerate(requests):
            due = begin + number / rate
            if (wait := due - time.perf_counter()) > 0:
                await asyncio.sleep(wait)
            group.create_task(_one(lane, request, due, pool))
    lane.seconds = time.perf_counter() - begin


async def _one(lane: Lane, request: bytes, due: float, pool: _Pool) -> None:
    try:
        async with asyncio.timeout(_PATIENCE), pool.connection() as connection:
            lane.late.append(time.perf_counter() - due)
            status = await connection.ask(request)
            lane.latencies.append(time.perf_counter() - due)
    except (TimeoutError, OSError, ValueError) as error:
        status = type(error).__name__
    lane.statuses[status] = lane.statuses.get(status, 0) + 1


class _Pool:
    """Idle connections, the last used first; a new one where all are busy."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[_Connection] = []
        self._all: list[_Connection] = []
        self._room = asyncio.Semaphore(MOST_CONNECTIONS)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[_Connection]:
        """Raises OSError. One that met an error is not used again."""
        async with self._room:
            connection = await self._take()
            try:
                yield connection
            except BaseException:
                connection.close()
                raise
            self._idle.append(connection)

    async def _take(self) -> _Connection:
        while self._idle:
            connection = self._idle.pop()
            if not connection.closed:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(_Connection, self._host, self._port)
        self._all.append(connection)
        return connection

    def close(self) -> None:
        for connection in self._all:
            connection.close()


class _Connection(asyncio.Protocol):
    """One request at a time; answers must have a content-length, as all of ours do."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._answer: asyncio.Future[str] | None = None
        self._buffer = b""

    @property
    def closed(self) -> bool:
        return self._transport is None or self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[str]:
        """The answer's status, once its body is there as well."""
        assert self._transport is not None
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        self._settle(exc or ConnectionResetError("the server closed the connection"))

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, end, body = self._buffer.partition(b"\r\n\r\n")
        if not end:
            return
        status, *headers = head.decode("latin-1").split("\r\n")
        lengths = [int(line[15:]) for line in headers if line.lower().startswith("content-length:")]
        if not lengths:
            self._settle(ValueError("an answer without a content-length"))
        elif len(body) >= lengths[0]:
            self._buffer = b""
            self._settle(status.split(" ")[1])

    def _settle(self, outcome: str | Exception) -> None:
        if self._answer is None or self._answer.done():
            return
        if isinstance(outcome, str):
            self._answer.set_result(outcome)
        else:
            self._answer.set_exception(outcome)


def _webhook(host: bytes, number: int) -> bytes:
    """A signed delivery of its own id, ready to be written."""
    delivery_id = f"whe_{number}"
    body = delivery(delivery_id=delivery_id)
    headers = {**signed(body, delivery_id=delivery_id), "content-type": "application/json"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    return b"POST / HTTP/1.1\r\n" + host + f"{lines}content-length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    plan = LoadPlan(**json.load(sys.stdin))
    lanes = asyncio.run(drive(plan))
    json.dump({name: asdict(lane) for name, lane in lanes.items()}, sys.stdout)


if __name__ == "__main__":
    main()
