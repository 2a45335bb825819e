"""`session`: send a prompt to a session, new or not, and show its work live until the turn ends.

Exit codes: 0 the turn ended well, 1 it did not, 2 something is missing or wrong, 130 ctrl-C (the session goes on).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from image.session.worker import fork_tool_schema
from infra.cli.environ import Loaded
from infra.cli.session import confirmations
from infra.cli.session.behind import Behind, WorkLook, behind
from infra.cli.session.feed import ANSWER_SECONDS, CONNECT_SECONDS, SdkFeed, translated
from infra.cli.session.follow import Call, Finish, Follower, Message, Quiet
from infra.cli.session.render import Line, LineStyle, clean, shorten, summarise
from infra.cli.session.screen import Shown
from shared.errors import SettingsError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.beta import BetaManagedAgentsSession

SESSION_ID: Final = re.compile(r"(?:sesn|session)_[A-Za-z0-9]+")
_LOOK_SECONDS: Final = {"offline": 3.0, "real": 10.0}
_QUIET_SECONDS: Final = {"offline": 8.0, "real": 30.0}
_SHOWN_PROMPT: Final = (2_000, 40)
_CONSOLE_PAGE: Final = "https://platform.claude.com/workspaces/{}/managed-agents/sessions/{}"
_AGENT_ADVICE: Final = 'create one with make agent NAME="..." and put its id into .env.local'


@dataclass(frozen=True, slots=True)
class Request:
    """What the user wants. `prompt` empty: only watch. `session_id` empty: a new session, with title, metadata
    and, where another one than the settings' is wanted, its agent."""

    prompt: str = ""
    session_id: str = ""
    title: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    agent_id: str = ""


async def run(loaded: Loaded, request: Request, screen: Shown) -> int:
    """Do it, and watch to the end of the turn. Raises SettingsError, FeedRefused, FeedBroken."""
    session_id = request.session_id
    if session_id:
        check_session_id(session_id)
        if request.title or request.metadata or request.agent_id:
            raise SettingsError("TITLE, META and AGENT are for a new session; this one has its own")
    elif not request.prompt:
        raise SettingsError('a new session needs a prompt: make session PROMPT="list /workspace"')
    async with open_client(loaded) as client:
        with translated():
            if not session_id:
                session = await _create(client, loaded, request)
            else:
                session = await client.beta.sessions.retrieve(session_id)
        session_id = session_id or session.id
        _begin(loaded, session_id, request, screen)
        try:
            async with behind(loaded, session_id, session.environment_id) as back:
                finish = await watch(client, session_id, request.prompt, screen, offline=loaded.offline, back=back)
        except asyncio.CancelledError:
            screen.remark(f"\nThe session goes on without you. Watch it:  make session SESSION={session_id}")
            raise
    screen.show({"type": "hands.finish", "session": session_id, "finish": finish.value})
    return _conclude(finish, session_id, screen)


def check_session_id(session_id: str) -> None:
    """Raises SettingsError."""
    if not SESSION_ID.fullmatch(session_id):
        raise SettingsError("SESSION must be a session's id, such as sesn_01H2...")


def _begin(loaded: Loaded, session_id: str, request: Request, screen: Shown) -> None:
    again = ", again" if request.session_id else ""
    screen.show({"type": "hands.session", "session": session_id, "where": loaded.where})
    screen.say(Line(f"session {session_id}{again}  ({loaded.where})", LineStyle.STRONG))
    workspace = loaded.environ.get("ANTHROPIC_WORKSPACE_ID", "")
    if workspace:
        screen.say(Line(_CONSOLE_PAGE.format(workspace, session_id), LineStyle.QUIET))
    if request.prompt:
        shown = shorten(clean(request.prompt).strip(), *_SHOWN_PROMPT).replace("\n", "\n> ")
        screen.say(Line(f"> {shown}", LineStyle.QUIET))


async def watch(
    client: AsyncAnthropic,
    session_id: str,
    prompt: str,
    screen: Shown,
    *,
    offline: bool,
    back: Behind | None = None,
) -> Finish:
    """Show one turn to its end. `back`: for looks behind the stream while it is silent. Raises FeedRefused."""
    where = "offline" if offline else "real"
    feed = SdkFeed(client, session_id)
    message = Message(prompt, lambda: feed.send(prompt)) if prompt else None
    follower = Follower(feed, prompt=message, quiet_after=_LOOK_SECONDS[where])
    remarks = _Remarks(screen, _QUIET_SECONDS[where], session_id)
    if back is not None:
        await back.begin()
    async with _asking(feed, screen) as ask, contextlib.aclosing(follower.events()) as events:
        async for event in events:
            if isinstance(event, Quiet):
                custom = any(call.custom for call in event.calls)
                seen = await back.look(own_tools=custom) if back is not None and event.waiting else WorkLook()
                remarks.quiet(event, seen)
            else:
                screen.show(event)
                if remarks.was_silent_over_a_call and back is not None:
                    remarks.news(await back.look())
                remarks.heard()
            ask(follower)
    return follower.finish or Finish.LOST


def open_client(loaded: Loaded) -> AsyncAnthropic:
    import httpx2
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(
        api_key=loaded.need("ANTHROPIC_API_KEY", "create one in the Console and put it into .env.local"),
        base_url=loaded.environ.get("ANTHROPIC_BASE_URL") or None,
        timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
    )


async def _create(client: AsyncAnthropic, loaded: Loaded, request: Request) -> BetaManagedAgentsSession:
    agent = request.agent_id or loaded.need("ANTHROPIC_AGENT_ID", _AGENT_ADVICE)
    environment = loaded.need("ANTHROPIC_ENVIRONMENT_ID", "the id of your self-hosted environment, from the Console")
    from anthropic import omit

    return await client.beta.sessions.create(
        agent=agent,
        environment_id=environment,
        title=request.title or omit,
        metadata=dict(request.metadata) or omit,
    )


@contextlib.asynccontextmanager
async def _asking(feed: SdkFeed, screen: Shown) -> AsyncIterator[Callable[[Follower], None]]:
    """Gives what is called after each event; at a terminal it asks for the calls that wait for a person."""
    if not confirmations.is_asked_at_a_terminal():
        yield lambda follower: None
        return
    asker = confirmations.Asker(feed, screen, confirmations.read_terminal_line)
    try:
        async with asker.running():
            yield lambda follower: asker.update(follower.calls)
    except ExceptionGroup as group:  # whichever failed, the other was only cancelled
        raise group.exceptions[0] from None


@dataclass
class _Remarks:
    """What is said about silence: which command runs and for how long, and that nobody serves only where that is sure.

    The first remark comes after `patience` seconds, each further one after twice the time.
    """

    screen: Shown
    patience: float
    session_id: str
    _next: float = 0.0
    was_silent_over_a_call: bool = False

    def heard(self) -> None:
        self._next = 0.0
        self.was_silent_over_a_call = False

    def quiet(self, quiet: Quiet, look: WorkLook) -> None:
        self.news(look)
        self.was_silent_over_a_call = bool(quiet.calls)
        due = self._next or self.patience
        if quiet.seconds >= due:
            self._next = due * 2
            self.screen.remark(f"  {self._in_words(quiet, look)}")

    def news(self, look: WorkLook) -> None:
        for line in look.news:
            self.screen.remark(f"· {line}", LineStyle.WRONG)

    def _in_words(self, quiet: Quiet, look: WorkLook) -> str:
        if not quiet.waiting:
            return f"nothing for {quiet.seconds:g} s; still watching"
        asking = next((call for call in quiet.calls if call.asks), None)
        if asking is not None:
            return f"it waits for a person to allow {_named(asking)}: hands confirm {self.session_id}"
        running = [call for call in quiet.calls if _is_served(call, look)]
        if not running and quiet.calls and not look.nobody_serves:
            return _unserved(quiet.calls[0], look)
        what = _named((running or quiet.calls)[0]) if quiet.calls else "its tools"
        since = _seconds(quiet, running[0]) if running else quiet.seconds
        if look.nobody_serves:
            return (
                f"nothing for {quiet.seconds:g} s: {what} waits, and no worker serves the session.\n"
                "  Start one in another terminal:  make serve   (or: make poll)"
            )
        if look.worker_starts:
            return f"a worker is starting for {what}, {since:.0f} s so far"
        return f"{what} runs, {since:.0f} s so far" if look.known else f"waiting for {what}, {since:.0f} s so far"


def _is_served(call: Call, look: WorkLook) -> bool:
    """By the session's worker, if there is one."""
    return not call.custom or call.name == fork_tool_schema.NAME or call.name in (look.own_tools or ())


def _unserved(call: Call, look: WorkLook) -> str:
    waits = f"it waits for the result of {_named(call)}, a custom tool"
    if look.own_tools is None:
        return (
            f"{waits}: the sandbox's image must have it (make build), or a program of yours sends it "
            "(user.custom_tool_result)"
        )
    has = f"has {clean(', '.join(sorted(look.own_tools)))}" if look.own_tools else "has no tools of your own"
    return (
        f"{waits} that nobody serves: the image of this sandbox {has}.\n"
        "  Build it with the tool (SANDBOX_TOOLS, make build) and begin a new session, or let a program of yours send "
        "the result (user.custom_tool_result)"
    )


def _named(call: Call) -> str:
    summary = summarise(call.input)
    return f"{clean(call.name)}  {summary}" if summary else clean(call.name)


def _seconds(quiet: Quiet, call: Call) -> float:
    """By the service's clock where it agrees with ours, and never less than what was seen here."""
    return max(quiet.seconds, time.time() - call.began) if call.began is not None else quiet.seconds


def _conclude(finish: Finish, session_id: str, screen: Shown) -> int:
    again = f"make session SESSION={session_id}"
    match finish:
        case Finish.LOST:
            screen.remark("✗ the connection is lost and does not come back; the session goes on", LineStyle.WRONG)
        case Finish.UNKNOWN_SEND:
            screen.remark(
                "✗ the answer to the message was lost, and the session does not show it. It was not sent again. "
                f"Look first:  {again}",
                LineStyle.WRONG,
            )
        case Finish.DONE | Finish.FAILED:
            pass
    screen.remark(f'\ngo on:  {again} PROMPT="..."     watch:  {again}')
    return 0 if finish is Finish.DONE else 1
