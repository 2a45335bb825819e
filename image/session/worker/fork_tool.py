"""Answers the agent's calls of `fork_best_of_n`: one HTTP call to the functions with this session's capability.

Anthropic's runner gives a tool call 150 seconds and interrupts it by nothing else, and the lease is kept meanwhile
(docs/wire/anthropic.md#5-session-tool-runner, docs/wire/anthropic.md#44-when-it-ends). Hanging up ends the race on the
other side, so what is not answered in time leaves no sandbox behind.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final, cast

import httpx2
from anthropic.lib.tools import BetaAsyncBuiltinFunctionTool, ToolError

from image.session.worker import fork_tool_schema
from image.session.worker.backoff import pauses
from image.session.worker.http_client import proxy_for

if TYPE_CHECKING:
    from anthropic.lib.environments import EnvironmentWorkerTools
    from anthropic.lib.tools.agent_toolset import AgentToolContext
    from anthropic.types.beta import BetaToolUnionParam

TOOL_SECONDS: Final = 145.0  # of the runner's 150: the answer must be posted as ours
_CONNECT_SECONDS: Final = 10.0
_REPEATS: Final = 3  # where no race can have begun
_FIRST_PAUSE: Final = 1.0  # seconds
_LONGEST_ANSWER: Final = 8 << 20  # bytes

_NOT_ON: Final = (
    "races are not switched on for this session: its operator sets AGENT_FORK=true, FUNCTIONS_TOKEN and "
    "FUNCTIONS_PUBLIC_URL for the functions that serve it"
)

log = logging.getLogger(__name__)


class ForkTool(BetaAsyncBuiltinFunctionTool):
    """The tool as the SDK's runner knows one. `token` is the capability; it appears in no text.

    Without them the tool answers all the same, with an error: a call without an answer holds its session
    (docs/wire/anthropic.md#5-session-tool-runner).
    """

    def __init__(self, url: str | None, token: str | None, seconds: float = TOOL_SECONDS) -> None:
        self._url = url
        self._token = token
        self._seconds = seconds

    def to_dict(self) -> BetaToolUnionParam:
        made = {key: value for key, value in fork_tool_schema.definition().items() if key != "type"}
        return cast("BetaToolUnionParam", made)

    async def call(self, input: object) -> str:
        """The report as text. Raises ToolError, which the agent sees as the call's error."""
        if not self._url or not self._token:
            raise ToolError(_NOT_ON)
        try:
            body = json.dumps(fork_tool_schema.request_of(input)).encode()
        except fork_tool_schema.Unusable as error:
            raise ToolError(str(error)) from None
        began = time.monotonic()
        try:
            async with asyncio.timeout(self._seconds):
                status, answer = await _post(self._url, self._token, body, self._seconds)
        except TimeoutError:
            raise ToolError(
                f"no answer within {self._seconds:g} seconds; the race was given up, look before you repeat it"
            ) from None
        log.info("fork.answered status=%d seconds=%.1f", status, time.monotonic() - began)
        if status != 200:
            raise ToolError(fork_tool_schema.text_of_refusal(status, answer))
        try:
            return fork_tool_schema.text_of(json.loads(answer))
        except (ValueError, KeyError, TypeError):
            raise ToolError("the race ran, but its report could not be read; look before you repeat it") from None


def with_fork(url: str | None, token: str | None) -> EnvironmentWorkerTools:
    """The SDK's own tools, and this one."""

    def tools(context: AgentToolContext) -> Sequence[Any]:
        from anthropic.lib.tools.agent_toolset import beta_agent_toolset_20260401

        return [*beta_agent_toolset_20260401(context), ForkTool(url, token)]

    return tools


async def _exchange(client: httpx2.AsyncClient, url: str, body: bytes, headers: dict[str, str]) -> tuple[int, bytes]:
    async with client.stream("POST", url, content=body, headers=headers) as response:
        answer = bytearray()
        async for part in response.aiter_bytes():
            answer += part
            if len(answer) > _LONGEST_ANSWER:
                raise ToolError("the report is too long to be read here; the race has run")
        return response.status_code, bytes(answer)


async def _post(url: str, token: str, body: bytes, seconds: float) -> tuple[int, bytes]:
    """Status and body of the answer. Repeats what cannot have begun a race: no connection, or a 503 (all of ours
    come before one). Raises ToolError where the answer got lost."""
    headers = {
        "authorization": f"Bearer {token}",
        "content-type": "application/json",
        "accept": "application/json",
    }
    transport = httpx2.AsyncHTTPTransport(proxy=proxy_for(url))
    timeout = httpx2.Timeout(seconds, connect=_CONNECT_SECONDS)
    async with httpx2.AsyncClient(transport=transport, timeout=timeout, trust_env=False) as client:
        for pause in (*itertools.islice(pauses(_FIRST_PAUSE), _REPEATS), None):
            try:
                status, answer = await _exchange(client, url, body, headers)
                if status != 503 or pause is None:
                    return status, answer
            except (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError) as error:
                if pause is None:
                    raise ToolError(f"the functions cannot be reached ({type(error).__name__})") from None
            except httpx2.HTTPError as error:
                raise ToolError(
                    f"the answer got lost ({type(error).__name__}); the race may have run: look before you repeat it"
                ) from None
            await asyncio.sleep(pause)
    raise AssertionError("the last attempt returns or raises")
