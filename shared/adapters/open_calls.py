"""The calls that an idle session waits for a worker to answer, read from its newest events
(docs/wire/anthropic.md#5-session-tool-runner, docs/wire/anthropic.md#81-a-self-hosted-turn).

One small question tells of most sessions that they wait for nothing. Only of one that does wait are events read, newest
first and as far back as the calls that it waits for, however many events came in between.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from shared.capability import FORK
from shared.ports import OpenCalls

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.beta.sessions import BetaManagedAgentsEventParams, BetaManagedAgentsTextBlockParam
    from anthropic.types.beta.sessions.beta_managed_agents_session_event_type import BetaManagedAgentsSessionEventType

LOST_CALL: Final = (
    "The worker of this call was lost before it answered. The call may have run or not: look before you repeat it."
)
_PAGE: Final = 100
_MOST_PAGES: Final = 20
_RESTS: Final[list[BetaManagedAgentsSessionEventType]] = ["session.status_idle", "session.status_running"]
_OF_CALLS: Final[list[BetaManagedAgentsSessionEventType]] = [
    *_RESTS,
    "agent.tool_use",
    "agent.custom_tool_use",
    "agent.mcp_tool_use",
    "user.tool_result",
    "user.custom_tool_result",
    "user.tool_confirmation",
    "user.message",
]


EventsPage = tuple[Sequence[Mapping[str, Any]], str | None]
"""Events, newest first, and where the next page begins; None where there is none."""


async def read_open_calls(client: AsyncAnthropic, session_id: str) -> OpenCalls:
    """Raises what the SDK raises, and ValueError where the calls are further back than 2,000 events of their kind."""

    async def read(limit: int, types: Sequence[BetaManagedAgentsSessionEventType], begin: str | None) -> EventsPage:
        events, wanted = client.beta.sessions.events, list(types)
        if begin is None:
            page = await events.list(session_id, order="desc", limit=limit, types=wanted)
        else:
            page = await events.list(session_id, order="desc", limit=limit, types=wanted, page=begin)
        return [event.to_dict() for event in page.data], page.next_page

    return await open_calls_of(read)


async def open_calls_of(
    read: Callable[[int, Sequence[BetaManagedAgentsSessionEventType], str | None], Awaitable[EventsPage]],
) -> OpenCalls:
    """`read` answers a limit, types and a beginning with a page. Raises what it raises, and ValueError as above."""
    newest, _ = await read(1, _RESTS, None)
    if newest and not _requires_action(newest[0]):
        return OpenCalls()
    scan = _Scan()
    begin: str | None = None
    for _ in range(_MOST_PAGES):
        events, begin = await read(_PAGE, _OF_CALLS, begin)
        for event in events:
            scan.see(event)
        if scan.settled or begin is None:
            return scan.calls()
    raise ValueError(f"the calls that the session waits for are not among its newest {_MOST_PAGES * _PAGE} events")


def lost_calls(calls: OpenCalls) -> list[BetaManagedAgentsEventParams]:
    """The answers to calls whose worker is lost. To the SDK's next worker nothing else answers a call: after an
    interrupt alone it would run the call again and never come to rest
    (docs/wire/anthropic.md#5-session-tool-runner)."""
    content: list[BetaManagedAgentsTextBlockParam] = [{"type": "text", "text": LOST_CALL}]
    return [
        {"type": "user.custom_tool_result", "custom_tool_use_id": call, "is_error": True, "content": content}
        if call in calls.custom
        else {"type": "user.tool_result", "tool_use_id": call, "is_error": True, "content": content}
        for call in calls.ids
    ]


@dataclass(slots=True)
class _Scan:
    """Events of one session, seen newest first."""

    waited_for: Sequence[str] | None = None
    over: bool = False  # the newest state is not one of waiting
    answered: set[str] = field(default_factory=set)
    confirmed: dict[str, str] = field(default_factory=dict)
    permissions: dict[str, str] = field(default_factory=dict)
    custom: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)
    turn_seen: bool = False
    given_up: bool = False

    def see(self, event: Mapping[str, Any]) -> None:
        match event.get("type"):
            case "user.tool_result":
                self._result(str(event.get("tool_use_id")), event)
            case "user.custom_tool_result":
                self._result(str(event.get("custom_tool_use_id")), event)
            case "user.message" if event.get("processed_at"):
                self.turn_seen = True
            case "user.tool_confirmation":
                self.confirmed.setdefault(str(event.get("tool_use_id")), str(event.get("result")))
            case "agent.tool_use":
                self.permissions[str(event.get("id"))] = str(event.get("evaluated_permission") or "allow")
            case "agent.custom_tool_use" if event.get("name") == FORK:
                self.custom.add(str(event.get("id")))
                self.permissions[str(event.get("id"))] = "allow"
            case "agent.custom_tool_use" | "agent.mcp_tool_use":
                self.foreign.add(str(event.get("id")))
            case "session.status_running" if self.waited_for is None:
                self.over = True
            case "session.status_idle" if self.waited_for is None:
                self.over = not _requires_action(event)
                self.waited_for = [str(call) for call in (event.get("stop_reason") or {}).get("event_ids") or ()]

    def _result(self, call: str, event: Mapping[str, Any]) -> None:
        self.answered.add(call)
        self.given_up |= not self.turn_seen and _is_lost_call(event)

    @property
    def settled(self) -> bool:
        """Whether older events can change nothing: every call was seen, and whether this turn has lost one before."""
        if self.over:
            return True
        if self.waited_for is None:
            return False
        unseen = set(self.waited_for) - self.answered - self.foreign - set(self.permissions)
        return not unseen and (self.turn_seen or self.given_up or not self.calls().ids)

    def calls(self) -> OpenCalls:
        if self.over:
            return OpenCalls()
        ids = tuple(
            call
            for call in self.waited_for or ()
            if call not in self.answered
            and call in self.permissions
            and (self.permissions[call] == "allow" or self.confirmed.get(call) == "allow")
        )
        return OpenCalls(ids, frozenset(self.custom & set(ids)), self.given_up and bool(ids))


def _requires_action(event: Mapping[str, Any]) -> bool:
    reason = event.get("stop_reason") or {}
    return event.get("type") == "session.status_idle" and reason.get("type") == "requires_action"


def _is_lost_call(result: Mapping[str, Any]) -> bool:
    content = result.get("content")
    first = content[0] if isinstance(content, list) and content else None
    return isinstance(first, Mapping) and first.get("text") == LOST_CALL
