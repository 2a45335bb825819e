"""Workers' boots bound by this machine's cores alone: no delays, nothing to wait for, every item acked beforehand."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from image.session.archive import build_archive, unpack_modules
from image.session.claim import CLAIM_VARIABLE, STATE_VARIABLE, Notice, Word
from shared.claims.dispatcher import spec_of
from shared.ports import WorkItem
from shared.service import Service
from tests.benchmarks.alone import expect, running, worker
from tests.benchmarks.stage import PROMPT, end_sandboxes
from tests.benchmarks.timeline import first_beats, wait_beats
from tests.support.world import Place


@dataclass(frozen=True, slots=True)
class Boots:
    """Seconds until as many sandboxes ran, and from then on until every worker in them had beaten once."""

    sandboxes: float
    workers: float


def sessions(place: Place, count: int) -> Sequence[str]:
    """So many new sessions, as much at once as one machine can."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda _: place.session(PROMPT), range(count)))


def boots(place: Place, count: int, limit: float) -> Boots:
    """Start `count` workers at once in running sandboxes. The world's delays must be off, and no server may drain
    this place. `limit`: seconds after which it fails."""
    sessions(place, count)
    try:
        return asyncio.run(_boots(place, count, limit))
    finally:
        end_sandboxes(place)


async def _boots(place: Place, count: int, limit: float) -> Boots:
    service = Service(place.settings)
    host = service.host
    try:
        items = await _acked(service, place, count)
        began = time.perf_counter()
        specs = [spec_of(place.environment, place.sandbox(item.session_id)) for item in items]
        boxes = [running(outcome) for outcome in await asyncio.gather(*map(host.create, specs))]
        sandboxes = time.perf_counter() - began
        started = time.time()
        pairs = zip(boxes, items, strict=True)
        outcomes = await asyncio.gather(*(host.start(box.id, worker(place, item)) for box, item in pairs))
        assert outcomes == [None] * count, outcomes
        ids = [item.id for item in items]
        await asyncio.to_thread(wait_beats, place, ids, limit)
        return Boots(sandboxes, max(first_beats(place, ids).values()) - started)
    finally:
        await service.aclose()


def boot_cpu(place: Place, runs: int, *, compiled: bool = True) -> Sequence[float]:
    """CPU seconds of one worker from its start to its lease, each outside any sandbox and by itself. compiled: with the
    modules' byte code beside the archive, as an image has it."""
    sessions(place, runs)
    items = asyncio.run(_acked_alone(place, runs))
    with tempfile.TemporaryDirectory() as directory:
        archive = Path(directory, "worker-measured.pyz")
        archive.write_bytes(build_archive())
        if compiled:
            unpack_modules(Path(directory, "modules-measured"))
        return [_cpu_to_lease(place, item, archive, Path(directory, item.id)) for item in items]


def _cpu_to_lease(place: Place, item: WorkItem, archive: Path, room: Path) -> float:
    room.mkdir()
    environ = {"PATH": os.environ["PATH"], **worker(place, item, workdir=str(room)).env, STATE_VARIABLE: str(room)}
    assert CLAIM_VARIABLE in environ
    process = subprocess.Popen(
        [sys.executable, "-I", str(archive)], env=environ, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert process.stdout is not None
    with process.stdout:
        words = (notice.word for line in process.stdout if (notice := Notice.from_line(line.decode())))
        leased = any(word is Word.LEASED for word in words)
        process.kill()
        # Instead of process.wait(): it would not say what the process has used.
        _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert leased, "the worker ended without a lease"
    return used.ru_utime + used.ru_stime


async def _acked_alone(place: Place, count: int) -> Sequence[WorkItem]:
    service = Service(place.settings)
    try:
        return await _acked(service, place, count)
    finally:
        await service.aclose()


async def _acked(service: Service, place: Place, count: int) -> Sequence[WorkItem]:
    queue = service.dispatcher(place.environment).queue
    items = [expect(WorkItem, await queue.poll()) for _ in range(count)]
    for item in items:
        assert await queue.ack(item.id) is None
    return items
