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
from image.session.worker.setup_commands import printable
from image.session.worker.tool_frames import FrameError, FrameReader, pack
from image.session.worker.tool_manifest import ToolEntry, ToolKind
from image.session.worker.tool_output import LONGEST_LINE, MOST_KEPT, cost
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

    def __init__(self, entry: ToolEntry, server: ToolServer) -> None:
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

    def __init__(self, kind: ToolKind, start: Callable[[], socket.socket], *, again: bool) -> None:
        """again: whether a supervisor that has ended can be started anew."""
        self._kind = kind
        self._start = start
        self._again = again
        self._reading: asyncio.Task[None] | None = None
        self._connection: socket.socket | None = None
        self._number = 0  # of the call that waits for its answer
        self._answer: asyncio.Future[dict[str, Any]] | None = None
        self._numbers = itertools.count(1)
        self._turn = asyncio.Lock()
        self._over = False
        self._left = MOST_KEPT

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
        self._number, self._answer = call["call"], loop.create_future()
        try:
            await loop.sock_sendall(connection, pack(call))
            return await self._answer
        finally:
            self._answer = None

    @property
    def _awaited(self) -> asyncio.Future[dict[str, Any]] | None:
        """The answer that a call still waits for."""
        return self._answer if self._answer is not None and not self._answer.done() else None

    def _connected(self) -> socket.socket:
        if self._connection is None:
            if self._over and not self._again:
                raise ConnectionResetError
            self._connection = self._start()
            self._connection.setblocking(False)
            self._reading = asyncio.create_task(self._read(self._connection))
        return self._connection

    async def _read(self, connection: socket.socket) -> None:
        """Until the supervisor ends or the socket is closed: what the tools say comes between calls, too."""
        loop, reader = asyncio.get_running_loop(), FrameReader()
        try:
            while True:
                message: dict[str, Any] | None = reader.next()
                if message is None:
                    data = await loop.sock_recv(connection, _READ)
                    if not data:
                        raise ConnectionResetError
                    reader.feed(data)
                elif "says" in message:
                    self._said(message)
                elif (answer := self._awaited) is not None and message.get("call") == self._number:
                    answer.set_result(message)  # else the late answer to a call that was given up
        except (OSError, FrameError) as error:
            if (answer := self._awaited) is not None:
                answer.set_exception(error)
            elif self._connection is connection:
                self.close()
        finally:
            connection.close()

    def _said(self, message: Mapping[str, Any]) -> None:
        """The lines that tools printed, to the log. Whoever sent them is not believed to keep to a bound."""
        lines, tool = message.get("says"), printable(str(message.get("tool")), 128)
        for line in lines if isinstance(lines, list) else ():
            if self._left <= 0:
                return
            text = printable(str(line), LONGEST_LINE)
            self._left -= cost(text)
            log.info("tool.says kind=%s tool=%s line=%s", self._kind.value, tool, text)
            if self._left <= 0:
                log.info("tool.says kind=%s: more was printed, and is not kept", self._kind.value)

    def close(self) -> None:
        self._over = True
        reading, self._reading, self._connection = self._reading, None, None
        if reading is not None:
            reading.cancel()  # it closes the socket


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
        ToolKind.PUBLIC: ToolServer(ToolKind.PUBLIC, lambda: own.start_public(settings, variables()), again=True),
        ToolKind.PRIVATE: ToolServer(ToolKind.PRIVATE, lambda: own.start_private(settings), again=own.private is None),
    }
    served = [OperatorTool(entry, servers[entry.kind]) for entry in entries]

    def all_tools(context: AgentToolContext) -> Sequence[Any]:
        given = tools(context) if callable(tools) else tools
        return [*given, *served]

    return all_tools


def manifest(directory: Path) -> tuple[ToolEntry, ...]:
    """What the image has; nothing, and a log line, where that cannot be read: the standard tools work all the same."""
    try:
        return tool_manifest.read(directory)
    except ValueError as error:
        log.error("tools.unreadable reason=%s", error)
        return ()
