"""`hands ui --act` against the offline service: an action has a token of its own and, where it loses something, a
question; a call that waits for a person is answered."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import httpx2

from infra.cli.environ import Loaded
from infra.cli.ui import app as ui
from infra.cli.ui.pages import Reader
from tests.infra.cli.fleet.test_survey import SESSION
from tests.infra.cli.ui.hostile import HOSTILE, Hostile
from tests.support.waiting import until
from tests.support.world import API_KEY, OfflineWorld, Place

TOKEN = "the-token-of-this-page"


@asynccontextmanager
async def browsing(loaded: Loaded, reader: Reader, *, act: bool = True) -> AsyncIterator[httpx2.AsyncClient]:
    app = ui.make_app(loaded, reader, token=TOKEN, hosts=frozenset(), act=act)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app=app), base_url="http://page", cookies={ui.COOKIE: ui.cookie_of(TOKEN)}
    ) as client:
        yield client


def token_in(text: str, action: str) -> str:
    found = re.search(rf'action="[^"]*{re.escape(action)}"><input type="hidden" name="token" value="([^"]+)"', text)
    assert found is not None, text
    return found[1]


async def press(client: httpx2.AsyncClient, path: str, token: str, **more: str) -> tuple[int, str]:
    answer = await client.post(path, data={"token": token, **more})
    return answer.status_code, answer.text


def asking_session(place: Place, command: str) -> tuple[str, str]:
    """A session whose call waits for a person; its id and the call's."""
    api = place.world.api
    policy: Any = [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_ask"}}]
    agent = api.beta.agents.create(
        name="asks", model="claude-sonnet-4-6", tools=[{"type": "agent_toolset_20260401", "configs": policy}]
    )
    text: Any = [{"type": "user.message", "content": [{"type": "text", "text": f"$ {command}"}]}]
    session = api.beta.sessions.create(agent=agent.id, environment_id=place.environment_id, initial_events=text).id
    (call,) = until(lambda: list(api.beta.sessions.events.list(session, types=["agent.tool_use"])), "no call waits")
    return session, call.id


def test_a_call_is_answered_with_its_own_token_and_archiving_asks_first(world: OfflineWorld) -> None:
    place = world.place(ANTHROPIC_API_KEY=API_KEY)
    session, call = asking_session(place, "echo '<img src=x>'")
    loaded, page, where = Loaded(place.environ, None), f"/sessions/{session}", f"/sessions/{session}/calls/{call}"

    async def go() -> None:
        async with browsing(loaded, Reader(loaded), act=False) as reads:
            assert f"calls/{call}" in (await reads.get(page)).text
            looked = (await reads.get(where)).text
            assert "&lt;img src=x&gt;" in looked and "<img" not in looked and "<button" not in looked
            assert (await press(reads, f"{where}/allow", "x"))[0] == 403
        async with browsing(loaded, Reader(loaded)) as client:
            shown = (await client.get(where)).text
            deny, allow = token_in(shown, "/deny"), token_in(shown, "/allow")
            for path, token in ((f"{where}/allow", deny), (f"{page}/calls/other/deny", deny), (f"{where}/deny", allow)):
                assert (await press(client, path, token))[0] == 403
            status, said = await press(client, f"{where}/deny", deny, reason="not <today>")
            assert status == 200 and "Denied: bash" in said
            assert (await press(client, f"{where}/deny", deny))[0] == 403
            assert (await client.get(where)).status_code == 404

            asked = (await client.get(page)).text
            status, question = await press(client, f"{page}/archive", token_in(asked, "/archive"))
            assert status == 200 and "the next tick ends its sandbox with the files in it" in question
            assert world.api.beta.sessions.retrieve(session).archived_at is None
            assert (await press(client, f"{page}/stop", token_in(question, "?")))[0] == 403
            again = (await press(client, f"{page}/archive", token_in(asked, "/archive")))[0]
            assert again == 403, "the first token is spent"
            await asyncio.to_thread(until, lambda: world.api.beta.sessions.retrieve(session).status == "idle")
            status, said = await press(client, f"{page}/archive", token_in(question, "?"))
            assert status == 200 and f"Archived {session}" in said

    asyncio.run(go())
    assert world.api.beta.sessions.retrieve(session).archived_at is not None
    (denied,) = world.api.beta.sessions.events.list(session, types=["user.tool_confirmation"])
    assert denied.type == "user.tool_confirmation" and denied.deny_message == "not <today>"


def test_an_action_needs_act_and_the_token_of_its_own_button() -> None:
    loaded, where = Loaded({}, None), f"/sessions/{SESSION}"

    async def go() -> None:
        async with browsing(loaded, Hostile(loaded), act=False) as reads:
            assert "<button" not in (await reads.get(where)).text
            assert (await press(reads, f"{where}/interrupt", ""))[0] == 403
        async with browsing(loaded, Hostile(loaded)) as client:
            shown = (await client.get(where)).text
            interrupt = token_in(shown, "/interrupt")
            other = f"/sessions/{SESSION[:-1]}x/interrupt"
            for path, token in (
                (f"{where}/stop", interrupt), (other, interrupt), (f"{where}/rm", interrupt), (f"{where}/stop", "x"),
                (f"{where}/interrupt", ""), (f"{where}/interrupt", "x" * 20_000),
            ):  # fmt: skip
                assert (await press(client, path, token))[0] == 403
            assert (await client.get(f"{where}/interrupt")).status_code == 405
            # It is this button's: what is missing now is a setting, so it was tried.
            status, said = await press(client, f"{where}/interrupt", interrupt)
            assert status == 409 and "ANTHROPIC_ENVIRONMENT" in said
            assert (await press(client, f"{where}/interrupt", interrupt))[0] == 403
            seen = (await client.get(f"{where}/calls/{quote(HOSTILE.replace('/', ''))}")).text
            assert "ANTHROPIC_ENVIRONMENT" in seen and "<img" not in seen

    asyncio.run(go())
