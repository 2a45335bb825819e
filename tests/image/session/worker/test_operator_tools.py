"""The operator's own tools: what the agent gets whatever they do, and that the worker lives on."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from anthropic.lib.tools import ToolError

from image.session.archive import build_archive
from image.session.tools import stage
from image.session.worker.operator_tools import ToolServer, with_operator_tools
from image.session.worker.tool_frames import pack
from image.session.worker.tool_manifest import ToolKind
from image.session.worker.tool_processes import NotPrivate, OperatorTools, ToolSettings
from tests.image.session.worker.harness import OPERATOR_FILES, make_claim, tools_in
from tests.support.waiting import until

pytestmark = pytest.mark.usefixtures("forked_here")

SECONDS = 30.0
"""Of a call: more than any takes that ends, on a busy machine too. Who waits for one that hangs sleeps."""


class ServedTools:
    """The tools as the SDK's runner gets them."""

    def __init__(self, root: Path) -> None:
        stage(tools_in(OPERATOR_FILES, ToolKind.PUBLIC), root / "tools")
        archive = root / "worker.pyz"
        archive.write_bytes(build_archive())
        settings = ToolSettings(str(root), SECONDS, 102_400, {})
        serve: Any = with_operator_tools(lambda _: [], settings, OperatorTools(str(archive), None, root / "tools"))
        self.tools = {tool.name: tool for tool in serve(None)}

    async def call(self, name: str, **given: Any) -> Any:
        return await self.tools[name].call(given)

    async def refused(self, name: str, **given: Any) -> str:
        with pytest.raises(ToolError) as caught:
            await self.call(name, **given)
        return str(caught.value)


@dataclass(frozen=True)
class CallsOfAWorker:
    """What one worker's agent got for each call, and what the worker's log had of it, by what was called."""

    folder: Path
    answers: dict[str, Any]
    lines: dict[str, list[str]]


class SaidInTheLog(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(record.getMessage())


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CallsOfAWorker]:
    """One worker whose tools do all this in turn: each that takes its process along costs the next one a second."""
    folder = tmp_path_factory.mktemp("served")
    served = ServedTools(folder)
    found = CallsOfAWorker(folder, {}, {})
    logger, messages = logging.getLogger("image"), SaidInTheLog()

    def said(tool: str) -> list[str]:
        start = f"tool.says kind=public tool={tool} line="
        return [each.removeprefix(start) for each in messages.seen if each.startswith(start)]

    async def noted(step: str, tool: str, call: Callable[..., Awaitable[Any]], **given: Any) -> Any:
        before = len(said(tool))
        found.answers[step] = await call(tool, **given)
        if step == "later":
            while "printed later" not in said(tool):
                await asyncio.sleep(0.05)
        found.lines[step] = said(tool)[before:]
        return found.answers[step]

    async def scenario() -> None:
        await noted("add", "add", served.call, a=2, b=3)
        supervisor = int((await noted("where", "where", served.call)).split()[-1])
        await noted("picture", "picture", served.call)
        await noted("no number", "add", served.refused, a="two", b=3)
        for how in ("raise", "tool-error", "leave", "long"):
            await noted(how, "break_it", served.refused, how=how)
        await noted("later", "break_it", served.call, how="later")
        for how in ("print", "die"):
            await noted(how, "break_it", served.refused, how=how)
        os.kill(supervisor, signal.SIGKILL)
        await noted("nobody", "add", served.refused, a=1, b=1)
        await noted("again", "add", served.call, a=1, b=1)
        await noted("hangs", "break_it", served.refused, how=str(folder / "pid"))

    level = logger.level
    logger.addHandler(messages)
    logger.setLevel(logging.INFO)
    try:
        asyncio.run(asyncio.wait_for(scenario(), 240))
        yield found
    finally:
        logger.setLevel(level)
        logger.removeHandler(messages)


def test_a_tool_answers_and_one_that_misbehaves_is_an_error_with_its_reason(told: CallsOfAWorker) -> None:
    answers = told.answers
    assert answers["add"] == "5"
    user, folder, _ = answers["where"].split()
    assert (user, folder) == (str(os.getuid()), str(told.folder))
    assert [block["type"] for block in answers["picture"]] == ["text", "image"]
    assert "a\n" in answers["no number"]
    assert answers["raise"] == "LookupError: no such order; password none"
    assert answers["tool-error"] == "told so"
    assert "SystemExit" in answers["leave"]
    assert "200000 bytes" in answers["long"] and len(answers["long"]) < 3_000
    assert "printed more than" in answers["print"]
    assert "ended with status 3" in answers["die"] and "last words" in answers["die"]
    assert "look before you repeat it" in answers["nobody"]
    assert answers["again"] == "2"


def test_what_tools_print_and_how_they_fail_is_in_the_workers_log_line_by_line_and_bounded(
    told: CallsOfAWorker,
) -> None:
    lines = told.lines
    assert lines["add"] == ["adding"]
    assert lines["raise"][-1] == "LookupError: no such order; password none"
    assert any("some_tools.py" in line for line in lines["raise"]), "the traceback"
    assert "printed later" in lines["later"]
    flood = lines["print"]
    assert 10 < len(flood) < 50 and flood[0] == "x" * 1_996 + " ..."
    assert flood[-1] == "(more was printed, and is not kept)"
    assert lines["die"][-1] == "last words"


def test_a_worker_keeps_so_much_of_its_tools_whatever_the_other_end_sends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)

    async def scenario() -> None:
        ours, theirs = socket.socketpair()
        server = ToolServer(ToolKind.PUBLIC, lambda: ours, again=False)
        call = asyncio.create_task(server.call("add", {}))
        for _ in range(3):
            said = pack({"says": ["y\n" * 5_000] * 400, "tool": "a\nb"})
            await asyncio.to_thread(theirs.sendall, said)
        await asyncio.to_thread(theirs.sendall, pack({"call": 1, "content": "done", "is_error": False}))
        assert await call == "done"
        theirs.close()

    asyncio.run(asyncio.wait_for(scenario(), 120))
    lines = [each for each in caplog.messages if each.startswith("tool.says")]
    assert 0 < sum(map(len, lines)) < 1_200_000 and not any("\n" in line for line in lines)
    assert lines[-1] == "tool.says kind=public: more was printed, and is not kept"


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(told: CallsOfAWorker) -> None:
    assert f"no result within {SECONDS:g} seconds" in told.answers["hangs"]
    started = (told.folder / "pid").read_text()
    until(lambda: not Path(f"/proc/{started}").exists())


def test_private_tools_are_not_served_as_the_agents_user_but_offline(tmp_path: Path) -> None:
    with pytest.raises(NotPrivate):
        OperatorTools("no-archive").start_private(ToolSettings.of(make_claim("https://api.anthropic.com", tmp_path)))
    assert ToolSettings.of(make_claim("http://127.0.0.1:9", tmp_path)).one_user
