"""Each of the agent's calls passes here between the SDK's runner and its tool."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Final

from anthropic.lib.tools import ToolError
from anthropic.lib.tools._beta_session_runner import SessionToolRunner

from image.session.worker import runner_steps
from image.session.worker.call_notes import CallNotes
from image.session.worker.spans import Spans

# The runner's own step from a call's event to its result: the only place that knows the call's id.
_STEP: Final = "_call_tool"

log = logging.getLogger(__name__)


def guarded(notes: CallNotes, spans: Spans, not_ready: Callable[[], Awaitable[str]]) -> AbstractContextManager[None]:
    """Within, each call is noted while it runs, and one that killed its workers is answered with an error. Before it
    runs it waits for `not_ready`, which tells why it must not run at all, or nothing."""

    def wrap(run: Any) -> Any:
        async def call(runner: SessionToolRunner, tool: Any, event: Any, arguments: dict[str, object]) -> Any:
            known = {"gen_ai.tool.name": event.name, "gen_ai.tool.call.id": event.id}
            with spans.span(f"execute_tool {event.name}", {"gen_ai.operation.name": "execute_tool", **known}) as told:
                refusal = notes.refusal(event.id) or await not_ready()
                if refusal:
                    log.warning("call.refused call=%s tool=%s", event.id, event.name)
                    told["error.type"] = "refused"
                    return await run(runner, _Refusing(refusal), event, arguments)
                notes.began(event.id)
                try:
                    return await run(runner, tool, event, arguments)
                finally:
                    notes.ended()

        return call

    return runner_steps.wrapped(_STEP, wrap, "calls.unguarded")


class _Refusing:
    """Stands in for a tool: answers with an error."""

    def __init__(self, reason: str) -> None:
        self._reason = reason

    async def call(self, input: object) -> str:
        raise ToolError(self._reason)
