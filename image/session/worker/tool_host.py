"""The process in which the operator's own tools run: Python files, and connections to MCP servers.

A supervisor (tool_supervisor.py) starts it, hands each call to it, and ends it where a call hangs, prints without end
or takes the process with it. So nothing that a tool does harms the worker.
"""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from image.session.worker.tool_files import load, uncollected
from image.session.worker.tool_frames import FrameError, FrameReader, pack
from image.session.worker.tool_manifest import SERVERS, TOOLS_PACKAGES, ToolEntry, ToolKind, read

if TYPE_CHECKING:
    from image.session.worker.mcp_servers import McpServer

_LONGEST_REASON: Final = 4_000  # characters
_READ: Final = 1 << 16


log = logging.getLogger(__name__)


class ToolHost:
    """`configuration` is the supervisor's first message: directory, kind, env, seconds, cwd."""

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self._folder = Path(configuration["directory"]) / configuration["kind"]
        self._seconds = float(configuration["seconds"])
        self._entries: dict[str, ToolEntry] = {
            entry.name: entry
            for entry in read(Path(configuration["directory"]))
            if entry.kind is ToolKind(configuration["kind"])
        }
        self._files: dict[str, dict[str, Any]] = {}
        self._servers: dict[str, McpServer] | None = None

    async def answer(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """`content`, `is_error`, and `restart` where something of the call may still be running here."""
        from anthropic.lib.tools import ToolError

        entry = self._entries.get(name)
        if entry is None:
            return _failed(f"there is no tool {name!r} here")
        try:
            async with asyncio.timeout(self._seconds):
                content = await (self._ask_server(entry, given) if entry.server else self._run(entry, given))
        except TimeoutError:
            reason = f"no result within {self._seconds:g} seconds, so the call was given up; look before you repeat it"
            return {**_failed(reason), "restart": not entry.server}
        except ToolError as error:
            return {"content": _content(error.content), "is_error": True}
        except BaseException as error:  # whatever an operator's code raises, SystemExit too
            log.warning("%s failed", name, exc_info=error)
            return _failed(_reason(error))
        return {"content": _content(content), "is_error": False}

    async def _run(self, entry: ToolEntry, given: dict[str, Any]) -> Any:
        tool = self._tool(entry)
        result = await asyncio.to_thread(tool.call, given)
        return await result if asyncio.iscoroutine(result) or isinstance(result, asyncio.Future) else result

    def _tool(self, entry: ToolEntry) -> Any:
        if entry.source not in self._files:
            try:
                self._files[entry.source] = load(self._folder / entry.source)
            except BaseException as error:
                raise RuntimeError(f"{entry.source} cannot be loaded: {type(error).__name__}: {error}") from None
        tool = self._files[entry.source].get(entry.name)
        if tool is None:
            raise RuntimeError(f"{entry.source} has no tool {entry.name!r} here; the image was built from another one")
        return tool

    async def _ask_server(self, entry: ToolEntry, given: dict[str, Any]) -> Any:
        from image.session.worker.mcp_config import servers_in
        from image.session.worker.mcp_servers import McpServer

        if self._servers is None:
            content = json.loads((self._folder / SERVERS).read_bytes())
            known = {**os.environ, "HANDS_TOOLS": str(self._folder), "HANDS_PYTHON": sys.executable}
            self._servers = {each.name: McpServer(each, known) for each in servers_in(content)}
        return await self._servers[entry.server].call(entry.source, given)


def main(descriptor: int) -> None:
    """Serves calls from the supervisor's socket until that is closed."""
    connection = socket.socket(fileno=descriptor)
    connection.setblocking(False)
    # A line is to be seen when it is printed: this process is ended without ado.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True, encoding="utf-8", errors="backslashreplace")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    asyncio.run(_serve(connection))


async def _serve(connection: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    reader = FrameReader()
    host: ToolHost | None = None
    while True:
        message = reader.next()
        if message is None:
            data = await loop.sock_recv(connection, _READ)
            if not data:
                os._exit(0)
            reader.feed(data)
        elif host is None:
            host = _configured(message)
        else:
            answer = await host.answer(message["tool"], message["input"])
            try:
                frame = pack(answer)
            except FrameError as error:
                frame = pack(_failed(f"the result is too long: {error}"))
            await loop.sock_sendall(connection, frame)


def _configured(configuration: Mapping[str, Any]) -> ToolHost:
    os.environ.update(configuration["env"])
    os.chdir(configuration["cwd"])
    if Path(TOOLS_PACKAGES).is_dir():
        sys.path.append(TOOLS_PACKAGES)
    with uncollected():
        import anthropic.lib.tools  # noqa: F401 - most of what the first call takes
    return ToolHost(configuration)


def _content(result: Any) -> str | list[Any]:
    """What a tool returned, as a text or as blocks; anything else as JSON."""
    if isinstance(result, str):
        return result
    if result is None:
        return ""
    if isinstance(result, Iterator):
        result = list(result)
    if isinstance(result, list | tuple) and all(isinstance(each, Mapping) and "type" in each for each in result):
        return [dict(each) for each in result]
    return json.dumps(result, default=str)


def _failed(reason: str) -> dict[str, Any]:
    return {"content": reason[:_LONGEST_REASON], "is_error": True}


def _reason(error: BaseException) -> str:
    cause = error.__cause__
    text = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    # The SDK says only that the arguments are invalid; what it chains says which.
    return f"{text}: {cause}" if type(error) is ValueError and cause is not None else text
