"""Which isolation levels work on this machine: found out by starting a sandbox at each, never assumed."""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.tensorlake import bubblewrap, trees
from infra.local.tensorlake.box import Box, BoxError, Level
from infra.local.tensorlake.errors import TensorlakeApiError
from infra.local.tensorlake.host import Host
from infra.local.tensorlake.layers import BaseRoot, LayerStore, Runtime
from infra.local.tensorlake.link import SupervisorGone
from infra.local.tensorlake.rooted import RootedHost, RootError

NOT_ENFORCED = (
    "network policy: recorded, and enforced for names that try it alone (egress.py); sandboxes share this machine's "
    "network and its ports",
    "cpus, memory_mb, disk_mb: recorded, not enforced (nproc answers cpus)",
    'user="root": every process runs as the image\'s one user, without capabilities',
    "memory: a snapshot of memory or a live copy is refused while a process runs; without one it is the files",
    "ownership and modes between root's and the agent's files: root's paths are read-only as a whole",
)
NOT_ISOLATED = "not isolated: plain processes in a folder, with this machine's root, pids and network"


STARTS_PER_CORE = 2


class IsolationError(Exception):
    """The level asked for does not work here; the text says why."""


@dataclass(frozen=True)
class Isolation:
    level: Level
    host: Host
    bwrap: str | None
    findings: dict[Level, str]
    """Of each level that was tried: "works", or why it does not."""
    _places: asyncio.Semaphore = field(
        default_factory=lambda: asyncio.Semaphore(STARTS_PER_CORE * (os.cpu_count() or 1))
    )
    """A start is work for a core: all at once would end together and late, while in turns half of them wait half as
    long."""

    @classmethod
    async def probe(cls, wanted: str, directory: Path, image_root: Path | None = None) -> Isolation:
        """`wanted` is a level or `auto` (the best that works: what is below it is not tried). Raises IsolationError."""
        try:
            host = await asyncio.to_thread(_host, directory, image_root)
        except RootError as error:
            raise IsolationError(str(error)) from None
        tool = await asyncio.to_thread(bubblewrap.find)
        bwrap = tool[0] if tool else None
        findings: dict[Level, str] = {}
        for level in Level if wanted == "auto" else [Level(wanted)]:
            findings[level] = await _try(level, host, bwrap, directory)
            if findings[level] == "works":
                return cls(level, host, bwrap, findings)
        if wanted != "auto":
            raise IsolationError(f"isolation level '{wanted}' does not work here: {findings[Level(wanted)]}")
        said = "; ".join(f"{level}: {finding}" for level, finding in findings.items())
        raise IsolationError(f"no isolation level works here: {said}")

    async def start(self, base: BaseRoot, directory: Path, hostname: str, launcher: str | None) -> Box:
        """Raises BoxError."""
        launcher = launcher if self.level.isolated and not isinstance(self.host, RootedHost) else None
        async with self._places:
            return await Box.start(self.level, self.host, base, directory, hostname, self.bwrap, launcher)

    def report(self) -> dict[str, Any]:
        return {
            "level": self.level,
            "isolated": self.level.isolated,
            "summary": f"separate root, pids and ipc ({self.level})" if self.level.isolated else NOT_ISOLATED,
            "findings": self.findings,
            "image_root": self.host.image_root,
            "not_enforced": [*NOT_ENFORCED, *([] if self.level.isolated else [NOT_ISOLATED])],
        }


def _host(directory: Path, image_root: Path | None) -> Host:
    return Host.probe(directory) if image_root is None else RootedHost.at(image_root, directory)


async def _try(level: Level, host: Host, bwrap: str | None, directory: Path) -> str:
    """Start a sandbox with a file below it, replace that file from inside, and read it back."""
    if level is Level.PLAIN and isinstance(host, RootedHost):
        return "a folder without isolation has this machine's programs, not those of IMAGE_ROOT"
    runtime = Runtime(workdir="/probe", user="probe")
    here = directory / f"probe-{level}"
    template = here / "t"
    layer = LayerStore(here / "l").new()
    host.skeleton(template)
    binds = host.furnish(template, runtime)
    (layer.directory / "probe").mkdir()
    (layer.directory / "probe" / "mark").write_text("below")
    base = BaseRoot(runtime, template, (layer,), binds)
    try:
        box = await Box.start(level, host, base, here / "b", "probe", bwrap)
    except BoxError as error:
        return str(error)
    try:
        word = secrets.token_hex(8)
        path = box.file_path("/probe/mark")
        await box.link.call({"op": "write", "path": path}, _once(word.encode() + b"\0"))
        async with await box.link.open({"op": "read", "path": path}) as exchange:
            await exchange.frame()
            seen = b"".join([chunk async for chunk in exchange.raw()]).decode()
        below = (layer.directory / "probe" / "mark").read_text()
        return "works" if (seen, below) == (word, "below") else "a file written inside was not read back"
    except (TensorlakeApiError, SupervisorGone, OSError, EOFError) as error:
        return f"{type(error).__name__}: {error}"
    finally:
        await box.end()
        await asyncio.to_thread(trees.remove, here)


async def _once(data: bytes) -> AsyncIterator[bytes]:
    yield data
