"""Each call on a session's way, made by itself, one after the other, with nothing waited for in between.

The calls are the product's own: its two adapters, its worker program in a sandbox, its worker's heartbeat.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, TypeVar

import httpx2

from image.session import claim as wire
from image.session.archive import build_archive, digest
from image.session.worker.credentials import token_of
from image.session.worker.http_client import WorkItemClient
from shared.claims.dispatcher import spec_of
from shared.ports import Created, ProcessSpec, SandboxHost, SandboxRecord, WorkItem, WorkQueue
from shared.service import Service
from tests.benchmarks.stage import PROMPT, end_sandboxes
from tests.benchmarks.timeline import boot
from tests.support.signing import delivery, signed
from tests.support.world import Place

WEBHOOK: Final = "webhook POST"
POLL: Final = "poll"
CREATE: Final = "create"
START: Final = "start_process"
BOOT: Final = "worker boot to ready"
LOOK: Final = "output look"
ACK: Final = "ack"
BEAT: Final = "heartbeat"
STEPS: Final = (WEBHOOK, POLL, CREATE, START, BOOT, LOOK, ACK, BEAT)

_IGNORED_EVENT: Final = "session.status_idled"
_T = TypeVar("_T")


def calls_alone(place: Place, server: str) -> Mapping[str, float]:
    """Seconds of each step, once. `place` must not be the server's, which would drain what is queued here."""
    return asyncio.run(_calls_alone(place, server))


async def _calls_alone(place: Place, server: str) -> Mapping[str, float]:
    seconds: dict[str, float] = {}

    async def timed(step: str, call: Callable[[], Awaitable[_T]]) -> _T:
        began = time.perf_counter()
        outcome = await call()
        seconds[step] = time.perf_counter() - began
        return outcome

    # A type that the function ignores: the signature is checked, no drain is started.
    body = delivery(_IGNORED_EVENT)
    async with httpx2.AsyncClient(trust_env=False) as client:
        # The sender keeps its connection, so the first request opens it.
        for _ in range(2):
            answer = await timed(WEBHOOK, lambda: client.post(server, content=body, headers=signed(body)))
            answer.raise_for_status()
    session = await asyncio.to_thread(place.session, PROMPT)
    service = Service(place.settings)
    queue, host = service.dispatcher(place.environment).queue, service.host
    try:
        await _warm(queue, host)
        item = expect(WorkItem, await timed(POLL, queue.poll))
        name = place.sandbox(session)
        created = expect(Created, await timed(CREATE, lambda: host.create(spec_of(place.environment, name))))
        process = worker(place, item)
        started = await timed(START, lambda: host.start(created.sandbox.id, process))
        assert started is None, started
        ready = await asyncio.to_thread(boot, place, session)
        seconds[BOOT] = ready.seconds
        await timed(LOOK, lambda: host.process_output(created.sandbox.id, process.name))
        await asyncio.to_thread(end_sandboxes, place)  # the item's first heartbeat is made here, below
        assert await timed(ACK, lambda: queue.ack(item.id)) is None
        beats = WorkItemClient(place.environ["ANTHROPIC_BASE_URL"], item.environment_id, item.id)
        token = token_of(item.secret or "")
        await asyncio.to_thread(beats.heartbeat, "not-the-value", token)  # opens the connection, as the gate does
        beat = await timed(BEAT, lambda: asyncio.to_thread(beats.heartbeat, "NO_HEARTBEAT", token))
        assert beat.status == 200, beat.status
        beats.close()
        await queue.force_stop(item.id)
    finally:
        await service.aclose()
    return seconds


async def _warm(queue: WorkQueue, host: SandboxHost) -> None:
    """Connections, as a server has them from its last drain. The queue's is opened by a call that changes nothing."""
    await queue.ack("work_of_nobody")
    await host.find("nobody")


def worker(place: Place, item: WorkItem, *, workdir: str = wire.DEFAULT_WORKDIR) -> ProcessSpec:
    """The worker program with a claim for this item."""
    claim = wire.Claim(
        work_id=item.id,
        environment_id=item.environment_id,
        session_id=item.session_id,
        secret=item.secret or "",
        base_url=place.environ["ANTHROPIC_BASE_URL"],
        worker_digest=digest(build_archive()),
        workdir=workdir,
        max_idle=0.5,
    )
    return ProcessSpec(
        name=f"benchmark-{secrets.token_hex(4)}",
        command=wire.WORKER_PYTHON,
        args=("-I", wire.worker_path(claim.worker_digest)),
        env={wire.CLAIM_VARIABLE: claim.to_json(), wire.STATE_VARIABLE: wire.STATE_DIRECTORY},
        user=place.settings.sandbox_user or None,
    )


def expect(kind: type[_T], outcome: object) -> _T:
    """The outcome, which must be of this kind."""
    assert isinstance(outcome, kind), outcome
    return outcome


def running(outcome: object) -> SandboxRecord:
    return expect(Created, outcome).sandbox
