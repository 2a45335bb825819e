"""Calls of MCP servers' tools: one connection a server, made at its first call and made again when it breaks."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import httpx2
from anthropic.lib.tools import ToolError

from image.session.worker.mcp_config import McpConfigError, ServerDefinition

_PROBE_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 5.0
_MOST_PAGES: Final = 50
_HTTP_TIMEOUT: Final = httpx2.Timeout(30.0, read=150.0)

log = logging.getLogger(__name__)


class McpServerFailed(Exception):
    """A server that does not answer as one. The text names it and says why."""


class McpServer:
    """Use it from one task at a time."""

    def __init__(self, definition: ServerDefinition, environ: Mapping[str, str]) -> None:
        self.name = definition.name
        self._definition = definition
        self._environ = environ
        self._client: Any = None
        self._tools: dict[str, Any] = {}
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()

    async def tools(self) -> Sequence[Any]:
        """What the server has, as MCP describes it. Raises McpServerFailed."""
        await self._ensure()
        return tuple(self._tools.values())

    async def call(self, name: str, given: dict[str, Any]) -> Any:
        """The tool's content. Raises ToolError: the tool's own error, or what became of the server."""
        from anthropic.lib.tools.mcp import UnsupportedMCPValueError, async_mcp_tool
        from mcp import MCPError

        try:
            await self._ensure()
        except McpServerFailed as error:
            raise ToolError(str(error)) from None
        tool = self._tools.get(name)
        if tool is None:
            raise ToolError(f"the MCP server {self.name!r} has no tool {name!r} now")
        try:
            return await async_mcp_tool(tool, self._client).call(given)
        except (ToolError, asyncio.CancelledError):
            raise
        except UnsupportedMCPValueError as error:
            raise ToolError(f"{name} has run; its result cannot be shown: {error}") from None
        except MCPError as error:
            if self._task is not None and not await self._alive():
                await self.close()
                raise ToolError(_died(self.name)) from None
            raise ToolError(f"the MCP server {self.name!r} answered with an error: {error}") from None
        except Exception as error:
            await self.close()
            raise ToolError(f"{_died(self.name)} ({_causes(error)})") from None

    async def close(self) -> None:
        task, self._task, self._client = self._task, None, None
        if task is None:
            return
        self._stop.set()
        await asyncio.wait({task}, timeout=_CLOSE_SECONDS)
        task.cancel()

    async def _ensure(self) -> None:
        """A connection that answers. Raises McpServerFailed."""
        if self._task is not None and not await self._alive():
            log.warning("mcp.restarted server=%s", self.name)
            await self.close()
        if self._task is None:
            await self._connect()

    async def _alive(self) -> bool:
        """Whether the server still lists its tools; what they are now is kept."""
        if self._task is None or self._task.done():
            return False
        try:
            async with asyncio.timeout(_PROBE_SECONDS):
                self._tools = await _listed(self._client)
        except asyncio.CancelledError:
            raise
        except Exception:
            return False
        return True

    async def _connect(self) -> None:
        connected: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._stop = asyncio.Event()
        # Its scopes must be left by the task that entered them.
        self._task = asyncio.create_task(self._hold(connected, self._stop))
        try:
            self._client = await asyncio.shield(connected)
            self._tools = await _listed(self._client)
        except asyncio.CancelledError:
            await self.close()
            raise
        except Exception as error:
            await self.close()
            raise McpServerFailed(f"the MCP server {self.name!r} cannot be used: {_causes(error)}") from None

    async def _hold(self, connected: asyncio.Future[Any], stop: asyncio.Event) -> None:
        from mcp import Client

        try:
            server = self._definition.with_values(self._environ)
            async with _transport(server) as transport, Client(transport, cache=None) as client:
                connected.set_result(client)
                await stop.wait()
        except BaseException as error:
            if not connected.done():
                connected.set_exception(
                    error if isinstance(error, Exception) else ConnectionAbortedError(type(error).__name__)
                )
            if isinstance(error, asyncio.CancelledError):
                raise
            log.info("mcp.ended server=%s reason=%s", self.name, _causes(error))


@contextlib.asynccontextmanager
async def _transport(server: ServerDefinition) -> AsyncIterator[Any]:
    """What an MCP client connects by; everything of it is closed at the end."""
    if server.command:
        from mcp import StdioServerParameters

        yield StdioServerParameters(
            command=server.command, args=list(server.args), env=dict(server.env or {}), cwd=server.cwd
        )
    elif server.sse:
        from mcp.client.sse import sse_client

        yield sse_client(server.url, headers=dict(server.headers or {}))
    else:
        from mcp.client.streamable_http import streamable_http_client

        async with httpx2.AsyncClient(headers=dict(server.headers or {}), timeout=_HTTP_TIMEOUT) as http:
            yield streamable_http_client(server.url, http_client=http)


async def _listed(client: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    cursor: str | None = None
    for _ in range(_MOST_PAGES):
        page = await client.list_tools(cursor=cursor)
        found |= {tool.name: tool for tool in page.tools}
        cursor = page.next_cursor
        if cursor is None:
            break
    return found


def _died(server: str) -> str:
    return (
        f"the MCP server {server!r} ended during this call, which may have had its effect: look before you repeat it. "
        "The server is started again for the next call"
    )


def _causes(error: BaseException) -> str:
    """The failures inside an exception group, whose own text says nothing."""
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_causes(inner) for inner in error.exceptions)
    return str(error) if isinstance(error, McpConfigError) else f"{type(error).__name__}: {error}"
