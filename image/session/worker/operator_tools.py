"""The operator's own tools, beside the standard ones: each call goes to a process that runs them (docs/tools.md).

Public tools run as the agent's user, in a process that is started at their first call. Private ones run as a user of
their own, in a process that was started before the worker gave root up (tool_processes.py); where that was not
possible they are not served, except on the offline platform, whose sandboxes have one user.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import socket
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, cast

from anthropic.lib.tools import BetaAsyncBuiltinFunctionTool, ToolError

from image.session.worker import tool_manifest
from image.session.worker.tool_frames import FrameError, FrameReader, pack
from image.session.worker.tool_manifest import Entry, Kind
from image.session.worker.tool_processes import NotPrivate, OperatorTools, ToolSettings

if TYPE_CHECKING:
    from anthropic.lib.environments import EnvironmentWorkerTools
    from anthropic.lib.tools.agent_toolset import AgentToolContext
    from anthropic.types.beta import BetaToolUnionParam

_CALL_SECONDS: Final = 146.0  # of the runner's 150; the supervisor answers before
_READ: Final = 1 << 16

log = logging.getLogger(__name__)


class OperatorTool(BetaAsyncBuiltinFunctionTool):
    """One of them, as the SDK's runner knows a tool."""

    def __init__(self, entry: Entry, server: ToolServer) -> None:
        self._entry = entry
        self._server = server

    def to_dict(self) -> BetaToolUnionParam:
        made = {key: value for key, value in self._entry.definition().items() if key != "type"}
        return cast("BetaToolUnionParam", made)

    async def call(self, input: object) -> Any:
        """The tool's content. Raises ToolError, which the agent sees as the call's error."""
        if not isinstance(input, dict):
            raise ToolError("the input must be an object")
        return await self._server.call(self._entry.name, input)

    async def close(self) -> None:
        """Ends what runs it, with all other tools of its kind."""
        self._server.close()


class ToolServer:
    """The worker's end of one supervisor's socket. `start` makes the socket, at the first call."""

    def __init__(self, start: Callable[[], socket.socket], *, again: bool) -> None:
        """again: whether a supervisor that has ended can be started anew."""
        self._start = start
        self._again = again
        self._connection: socket.socket | None = None
        self._reader = FrameReader()
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._over = False

    async def call(self, name: str, given: Mapping[str, Any]) -> Any:
        async with self._turn:
            number = next(self._numbers)
            try:
                async with asyncio.timeout(_CALL_SECONDS):
                    answer = await self._ask({"call": number, "tool": name, "input": given})
            except (OSError, FrameError) as error:
                self.close()
                raise ToolError(
                    f"the process that runs this sandbox's own tools has ended ({type(error).__name__}); the call may "
                    "have had its effect: look before you repeat it"
                ) from None
            except NotPrivate as error:
                raise ToolError(str(error)) from None
            except TimeoutError:
                raise ToolError(
                    "no result in time; the call may have had its effect: look before you repeat it"
                ) from None
        if answer["is_error"]:
            log.info("tool.failed tool=%s", name)
            raise ToolError(answer["content"])
        return answer["content"]

    async def _ask(self, call: Mapping[str, Any]) -> dict[str, Any]:
        loop = asyncio.get_running_loop()
        connection = self._connected()
        await loop.sock_sendall(connection, pack(call))
        while True:
            message: dict[str, Any] | None = self._reader.next()
            if message is None:
                data = await loop.sock_recv(connection, _READ)
                if not data:
                    raise ConnectionResetError
                self._reader.feed(data)
            elif message.get("call") == call["call"]:  # else the late answer to a call that was given up
                return message

    def _connected(self) -> socket.socket:
        if self._connection is None:
            if self._over and not self._again:
                raise ConnectionResetError
            self._connection = self._start()
            self._connection.setblocking(False)
            self._reader = FrameReader()
        return self._connection

    def close(self) -> None:
        self._over = True
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def with_operator_tools(
    tools: EnvironmentWorkerTools,
    settings: ToolSettings,
    own: OperatorTools,
    variables: Callable[[], Mapping[str, str]] = dict,
) -> EnvironmentWorkerTools:
    """`tools` and what the image's manifest names. `variables`: the shell's, beside this process's own."""
    entries = manifest(own.directory)
    if not entries:
        return tools
    servers = {
        Kind.PUBLIC: ToolServer(lambda: own.start_public(settings, variables()), again=True),
        Kind.PRIVATE: ToolServer(lambda: own.start_private(settings), again=own.private is None),
    }
    served = [OperatorTool(entry, servers[entry.kind]) for entry in entries]

    def all_tools(context: AgentToolContext) -> Sequence[Any]:
        given = tools(context) if callable(tools) else tools
        return [*given, *served]

    return all_tools


def manifest(directory: Path) -> tuple[Entry, ...]:
    """What the image has; nothing, and a log line, where that cannot be read: the standard tools work all the same."""
    try:
        return tool_manifest.read(directory)
    except ValueError as error:
        log.error("tools.unreadable reason=%s", error)
        return ()
