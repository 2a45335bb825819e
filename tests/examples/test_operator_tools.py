"""examples/tools from the image to the agent's answer: built, declared, served in a session's own sandbox."""

from __future__ import annotations

import asyncio
import secrets
from typing import Any, Final

import pytest

from image.session.definition import build, recipe_from
from infra.cli import agents
from infra.cli.tools import own_tools, try_tool
from tests.support.checkout import ROOT
from tests.support.world import Place

pytestmark = pytest.mark.usefixtures("forked_here")

TOOLS: Final = ROOT / "examples" / "tools"
SOURCES: Final = {
    "SANDBOX_TOOLS": str(TOOLS / "public"),
    "SANDBOX_PRIVATE_TOOLS": str(TOOLS / "private"),
    "SANDBOX_MCP": str(TOOLS / "mcp.json"),
    "TOOL_SECRETS": "ORDERS_DATABASE=env:ORDERS_DATABASE NOTES_TOKEN=env:NOTES_TOKEN",
}
PROMPT: Final = """\
write text.txt: to be or not to be
call count_words {"path": "text.txt", "most": 1}
call order_status {"order_id": "A-1001"}
call order_status {"order_id": "A-9"}
call notes__search {"word": "thursday"}
"""


def test_a_session_uses_files_private_files_and_an_mcp_server(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mcp")
    monkeypatch.setenv("ORDERS_DATABASE", f"/tmp/orders-{secrets.token_hex(4)}.sqlite")
    monkeypatch.setenv("NOTES_TOKEN", "token-of-nobody")
    mine = place.adjusted(**SOURCES, SANDBOX_IMAGE_NAME="image-with-tools")
    own = own_tools(mine.environ)
    build(recipe_from(mine.environ, own), api_key="tl-key-of-no-real-account", api_url=mine.settings.tensorlake_url)
    api = mine.world.api
    tools: Any = agents.tools(fork=False, own=own.entries)
    agent = api.beta.agents.create(name="with tools", model="claude-opus-5", tools=tools)
    message: Any = {"type": "user.message", "content": [{"type": "text", "text": PROMPT}]}
    session = api.beta.sessions.create(agent=agent.id, environment_id=mine.environment_id, initial_events=[message])
    asyncio.run(_drained(mine))
    mine.wait_done(session.id)
    results = [
        (event.is_error, event.content[0].text)  # type: ignore[index,union-attr] # text blocks here
        for event in api.beta.sessions.events.list(session.id, limit=1000)
        if event.type == "user.custom_tool_result"
    ]
    assert results == [
        (False, "6 words. Most frequent: to (2)"),
        (False, "A-1001: shipped"),
        (True, "there is no order 'A-9'"),
        (False, "The release is on Thursday."),
    ]


async def _drained(place: Place) -> None:
    async with place.dispatcher() as dispatcher:
        await dispatcher.drain()


def test_a_tool_is_tried_on_this_machine(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("ORDERS_DATABASE", str(tmp_path / "orders.sqlite"))
    environ = {name: SOURCES[name] for name in ("SANDBOX_PRIVATE_TOOLS", "TOOL_SECRETS")}
    environ["TOOL_SECRETS"] = environ["TOOL_SECRETS"].split()[0]
    assert try_tool(environ, "mark_delivered", '{"order_id": "A-1002"}', watch=False) == 0
    assert capsys.readouterr().out == "A-1002: delivered\n"
    assert (tmp_path / "orders.sqlite").exists()
