"""One running sandbox body: its directory, its supervisor, and what can be done to both at each level."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.tensorlake import bubblewrap, trees
from infra.local.tensorlake.host import Host
from infra.local.tensorlake.layers import DEFAULT_PATH, BaseRoot, Layer
from infra.local.tensorlake.link import SupervisorGone, SupervisorLink
from infra.local.tensorlake.plain import FolderMapping

START_SECONDS = 15.0
END_SECONDS = 5.0
DEEPEST_STACK = 8


class Level(enum.StrEnum):
    """How far apart sandboxes are, best first."""

    OVERLAY = "overlay"
    COPY = "copy"
    PLAIN = "plain"

    @property
    def isolated(self) -> bool:
        return self is not Level.PLAIN


class BoxError(Exception):
    """A sandbox body could not be started; the text says why."""


@dataclass
class Box:
    level: Level
    directory: Path
    base: BaseRoot
    host: Host
    bwrap: str | None
    link: SupervisorLink
    _process: asyncio.subprocess.Process
    _mapping: FolderMapping | None
    _watch: asyncio.Task[None] | None = field(default=None, repr=False)

    @classmethod
    async def start(
        cls,
        level: Level,
        host: Host,
        base: BaseRoot,
        directory: Path,
        hostname: str,
        bwrap: str | None,
        launcher: str | None = None,
    ) -> Box:
        """Lay out the directory and start the supervisor in it. Raises BoxError and leaves nothing behind."""
        try:
            await asyncio.to_thread(_lay_out, level, base, directory)
            with contextlib.ExitStack() as stack:
                descriptor = stack.enter_context(_connected(launcher)).fileno() if launcher else None
                return await cls._spawn(level, host, base, directory, hostname, bwrap, descriptor)
        except (OSError, trees.CopyError, BoxError) as error:
            await asyncio.to_thread(trees.remove, directory)
            raise BoxError(str(error)) from error

    @classmethod
    async def _spawn(
        cls,
        level: Level,
        host: Host,
        base: BaseRoot,
        directory: Path,
        hostname: str,
        bwrap: str | None,
        launcher: int | None,
    ) -> Box:
        mapping = None
        if level is Level.PLAIN:
            argv = host.supervise(str(host.program))
            mapping = FolderMapping(directory / "root", base.runtime.agent_paths, host.prefix)
        elif bwrap is None:
            raise BoxError("bubblewrap was not found")
        else:
            overlay = level is Level.OVERLAY
            argv = bubblewrap.command(bwrap, host, base, directory, hostname, overlay=overlay, launcher=launcher)
        ours, theirs = socket.socketpair()
        log = directory / "supervisor.log"
        with theirs, log.open("wb") as errors:
            process = await asyncio.create_subprocess_exec(
                *argv,
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                stderr=errors,
                env={},
                cwd="/",
                pass_fds=() if launcher is None else (launcher,),
            )
        box = cls(level, directory, base, host, bwrap, SupervisorLink(ours), process, mapping)
        try:
            async with asyncio.timeout(START_SECONDS):
                await box.link.call({"op": "hello"})
        except (SupervisorGone, TimeoutError):
            box.link.close()
            await box._kill()
            said = log.read_text(errors="replace").strip()[-500:]
            raise BoxError(said or f"its supervisor did not answer within {START_SECONDS:g} s") from None
        return box

    def watch(self, died: Callable[[], object]) -> None:
        """Call `died` if the supervisor ends before `end` is called."""

        async def wait() -> None:
            await self._process.wait()
            died()

        self._watch = asyncio.create_task(wait())

    @property
    def root(self) -> Path:
        """Where the root's own (not the agent's) files lie on this machine."""
        return self.directory / ("system" if self.level.isolated else "root")

    def file_path(self, path: str) -> str:
        """What the supervisor has to open for a path of the sandbox."""
        return str(trees.within(self.root, path)) if self._mapping else path

    def shown_path(self, path: str) -> str:
        """For a start request: as `file_path`, but paths outside the sandbox's folder stay."""
        return self._mapping.path(path) if self._mapping else path

    def shown_text(self, text: str) -> str:
        return self._mapping.text(text) if self._mapping else text

    def environment(self, env: Mapping[str, str]) -> dict[str, str]:
        """A clean environment: the image's, PATH, HOME, LANG, and the process's own. Nothing of the platform's."""
        runtime = self.base.runtime
        whole = {"PATH": DEFAULT_PATH, "HOME": runtime.home, "LANG": "C.UTF-8", **runtime.env}
        if self._mapping:
            # The project's environment is writable at this level: an agent's `pip install` must not get into it.
            return self._mapping.env({**whole, **env}, runtime.workdir)
        return {**whole, "PATH": self.host.path(runtime), **env}

    async def freeze(self) -> None:
        await self.link.call({"op": "freeze"})

    async def thaw(self) -> None:
        await self.link.call({"op": "thaw"})

    async def living(self) -> int:
        """How many processes run or sleep in it."""
        return int((await self.link.call({"op": "living"}))["living"])

    async def capture(self, layer: Layer, system: Path) -> tuple[Layer, ...]:
        """Copy what a child needs into `layer` and `system`; returns the child's stack. Freeze first.

        With overlays the copy is of the changes only, and the child's stack goes on with the layers below.
        """
        source = "upper" if self.level.isolated else "root"
        await asyncio.to_thread(trees.copy_into, self.directory / source, layer.directory)
        if self.level.isolated:
            await asyncio.to_thread(trees.link_into, self.directory / "system", system)
        else:
            await asyncio.to_thread(system.mkdir, parents=True)
        if self.level is not Level.OVERLAY:
            return (layer,)
        stack = (*self.base.layers, layer)
        if len(stack) <= DEEPEST_STACK:
            return stack
        await self._flatten(stack, layer)
        return (layer,)

    async def _flatten(self, stack: tuple[Layer, ...], into: Layer) -> None:
        """Make one layer of a whole stack: mount options have one page, so a stack cannot grow indefinitely."""
        whole = into.directory.with_name(f"{into.directory.name}-whole")
        await asyncio.to_thread(whole.mkdir)
        base = BaseRoot(self.base.runtime, self.base.system, stack)
        argv = bubblewrap.flatten_command(self.bwrap or "", self.host, base, whole)
        process = await asyncio.create_subprocess_exec(
            *argv, stderr=asyncio.subprocess.PIPE, env={"PATH": DEFAULT_PATH}
        )
        _, said = await process.communicate()
        if process.returncode != 0:
            await asyncio.to_thread(trees.remove, whole)
            raise trees.CopyError(said.decode(errors="replace").strip()[-500:])
        await asyncio.to_thread(trees.remove, into.directory)
        await asyncio.to_thread(whole.rename, into.directory)

    async def end(self) -> None:
        """Kill everything in the sandbox and remove its directory."""
        if self._watch is not None:
            self._watch.cancel()
        with contextlib.suppress(SupervisorGone, TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self.link.call({"op": "end"})
        self.link.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(END_SECONDS):
                await self._process.wait()
        await self._kill()
        await asyncio.to_thread(trees.remove, self.directory)

    async def _kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()

    def facts(self) -> dict[str, Any]:
        return {"directory": str(self.directory), "pid": self._process.pid}


def _connected(launcher: str) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(launcher)
    except OSError as error:
        connection.close()
        raise BoxError(f"nobody who starts workers listens at {launcher}: {error.strerror}") from error
    return connection


def _lay_out(level: Level, base: BaseRoot, directory: Path) -> None:
    directory.mkdir(parents=True)
    if level is Level.PLAIN:
        root = directory / "root"
        trees.copy_into(base.system, root)
        _fill(root, base)
        return
    trees.link_into(base.system, directory / "system")
    upper = directory / "upper"
    upper.mkdir()
    if level is Level.COPY:
        _fill(upper, base)
        return
    for path in base.runtime.agent_paths:
        trees.within(upper, path).mkdir(parents=True)
        # An overlay's upper directory stands for its mount point, so it carries the mode seen inside.
        for layer in base.layers:
            lower = trees.within(layer.directory, path)
            if lower.is_dir():
                trees.within(upper, path).chmod(lower.stat().st_mode & 0o7777)


def _fill(root: Path, base: BaseRoot) -> None:
    for layer in base.layers:
        trees.copy_into(layer.directory, root)
    for path in base.runtime.agent_paths:
        trees.within(root, path).mkdir(parents=True, exist_ok=True)
