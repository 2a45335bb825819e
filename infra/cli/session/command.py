"""`session`: send a prompt to a session, new or not, and show its work live until the turn ends.

Exit codes: 0 the turn ended well, 1 it did not, 2 something is missing or wrong, 130 ctrl-C (the session goes on).
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import sys
from typing import TYPE_CHECKING, Final

from rich.console import Console
from rich.text import Text

from infra.cli.environ import Loaded
from infra.cli.session.feed import ANSWER_SECONDS, CONNECT_SECONDS, SdkFeed, translated
from infra.cli.session.follow import Finish, Follower, Quiet
from infra.cli.session.render import Event, Line, Look, Renderer
from shared.errors import SettingsError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic

INTERRUPTED: Final = 130
_SESSION_ID: Final = re.compile(r"(?:sesn|session)_[A-Za-z0-9]+")
_QUIET_SECONDS: Final = {"offline": 8.0, "real": 30.0}
_CONSOLE_PAGE: Final = "https://platform.claude.com/workspaces/{}/managed-agents/sessions/{}"
_AGENT_ADVICE: Final = 'create one with make agent NAME="..." and put its id into .env.local'


class Screen:
    """Two consoles: the stream on standard output, remarks on standard error. Plain in a pipe and with NO_COLOR."""

    def __init__(self, out: Console | None = None, err: Console | None = None) -> None:
        for stream in (sys.stdout, sys.stderr):
            # A terminal that cannot show an arrow shows a question mark, and the command goes on.
            with contextlib.suppress(AttributeError, ValueError):
                stream.reconfigure(errors="replace")  # type: ignore[union-attr]  # the suppress covers other streams
        self._out = out or Console(highlight=False, soft_wrap=True)
        self._err = err or Console(stderr=True, highlight=False, soft_wrap=True)
        self._renderer = Renderer()

    def show(self, event: Event) -> None:
        for line in self._renderer.lines(event):
            self.say(line)

    def say(self, line: Line) -> None:
        self._out.print(Text(line.text, style=line.look.value))

    def remark(self, text: str, look: Look = Look.QUIET) -> None:
        self._err.print(Text(text, style=look.value))


async def run(loaded: Loaded, prompt: str, session_id: str, screen: Screen) -> int:
    """Send `prompt` (empty: only watch) to `session_id` (empty: a new session). Raises SettingsError, FeedRefused."""
    if session_id and not _SESSION_ID.fullmatch(session_id):
        raise SettingsError("SESSION must be a session's id, such as sesn_01H2...")
    if not prompt and not session_id:
        raise SettingsError('a new session needs a prompt: make session PROMPT="list /workspace"')
    async with open_client(loaded) as client:
        if not session_id:
            session_id = await _create(client, loaded)
            screen.say(Line(f"session {session_id}  ({loaded.where})", Look.STRONG))
        else:
            screen.say(Line(f"session {session_id}, again  ({loaded.where})", Look.STRONG))
        workspace = loaded.environ.get("ANTHROPIC_WORKSPACE_ID", "")
        if workspace:
            screen.say(Line(_CONSOLE_PAGE.format(workspace, session_id), Look.QUIET))
        if prompt:
            screen.say(Line(f"> {prompt}", Look.QUIET))
        try:
            finish = await watch(client, session_id, prompt, screen, offline=loaded.offline is not None)
        except asyncio.CancelledError:
            screen.remark(f"\nThe session goes on without you. Watch it:  make session SESSION={session_id}")
            raise
    return _conclude(finish, session_id, screen)


async def watch(client: AsyncAnthropic, session_id: str, prompt: str, screen: Screen, *, offline: bool) -> Finish:
    """Show one turn to its end."""
    feed = SdkFeed(client, session_id)
    follower = Follower(
        feed,
        prompt=(lambda: feed.send(prompt)) if prompt else None,
        quiet_after=_QUIET_SECONDS["offline" if offline else "real"],
    )
    told = False
    async with contextlib.aclosing(follower.events()) as events:
        async for event in events:
            if not isinstance(event, Quiet):
                told = False
                screen.show(event)
            elif not told:
                told = True
                screen.remark(_quiet_remark(event))
    return follower.finish or Finish.LOST


def open_client(loaded: Loaded) -> AsyncAnthropic:
    import httpx2
    from anthropic import AsyncAnthropic

    return AsyncAnthropic(
        api_key=loaded.need("ANTHROPIC_API_KEY", "create one in the Console and put it into .env.local"),
        base_url=loaded.environ.get("ANTHROPIC_BASE_URL") or None,
        timeout=httpx2.Timeout(ANSWER_SECONDS, connect=CONNECT_SECONDS),
    )


async def _create(client: AsyncAnthropic, loaded: Loaded) -> str:
    agent = loaded.need("ANTHROPIC_AGENT_ID", _AGENT_ADVICE)
    environment = loaded.need("ANTHROPIC_ENVIRONMENT_ID", "the id of your self-hosted environment, from the Console")
    with translated():
        session = await client.beta.sessions.create(agent=agent, environment_id=environment)
    return session.id


def _quiet_remark(quiet: Quiet) -> str:
    if quiet.waiting:
        return (
            f"  nothing for {quiet.seconds:g} s: the session waits for its tools, and it seems that no worker serves "
            "it.\n  Start one in another terminal:  make serve   (or: make poll)"
        )
    return f"  nothing for {quiet.seconds:g} s; still watching"


def _conclude(finish: Finish, session_id: str, screen: Screen) -> int:
    if finish is Finish.LOST:
        screen.remark("✗ the connection is lost and does not come back; the session goes on", Look.WRONG)
    again = f"make session SESSION={session_id}"
    screen.remark(f'\ngo on:  {again} PROMPT="..."     watch:  {again}')
    return 0 if finish is Finish.DONE else 1
