"""The operator's own tools: what the agent gets whatever they do, and that the worker lives on."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from anthropic.lib.tools import ToolError

from image.session.archive import build_archive
from image.session.tools import ToolSources, collect, stage
from image.session.worker.operator_tools import with_operator_tools
from image.session.worker.tool_manifest import Kind
from image.session.worker.tool_processes import OperatorTools, ToolSettings
from tests.support.waiting import until

FILES = Path(__file__).with_name("operator_files")
PASSWORD = "hunter2-of-nobody"


class Served:
    """The tools as the SDK's runner gets them."""

    def __init__(self, root: Path, kind: Kind, *, seconds: float = 60.0, secrets: dict[str, str] | None = None) -> None:
        stage(collect(ToolSources({kind: FILES})), root / "tools")
        archive = root / "worker.pyz"
        archive.write_bytes(build_archive())
        settings = ToolSettings(str(root), seconds, 102_400, secrets or {})
        made: Any = with_operator_tools(lambda _: [], settings, OperatorTools(str(archive), None, root / "tools"))
        self.tools = {tool.name: tool for tool in made(None)}

    async def call(self, name: str, **given: Any) -> Any:
        return await self.tools[name].call(given)

    async def refused(self, name: str, **given: Any) -> str:
        with pytest.raises(ToolError) as caught:
            await self.call(name, **given)
        return str(caught.value)


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def test_a_tool_answers_and_one_that_misbehaves_is_an_error_with_its_reason(root: Path) -> None:
    async def scenario() -> None:
        served = Served(root, Kind.PUBLIC)
        assert await served.call("add", a=2, b=3) == "5"
        assert await served.call("where") == f"{os.getuid()} {root} "
        assert [block["type"] for block in await served.call("picture")] == ["text", "image"]
        assert "a\n" in await served.refused("add", a="two", b=3)
        assert await served.refused("break_it", how="raise") == "LookupError: no such order; password none"
        assert await served.refused("break_it", how="tool-error") == "told so"
        assert "SystemExit" in await served.refused("break_it", how="leave")
        long = await served.refused("break_it", how="long")
        assert "200000 bytes" in long and len(long) < 3_000
        died = await served.refused("break_it", how="die")
        assert "ended with status 3" in died and "last words" in died
        assert "printed more than" in await served.refused("break_it", how="print")
        assert await served.call("add", a=1, b=1) == "2"

    asyncio.run(scenario())


def test_a_tool_that_hangs_is_ended_with_all_that_it_started(root: Path) -> None:
    async def scenario() -> None:
        served = Served(root, Kind.PUBLIC, seconds=0.5)
        assert "no result within 0.5 seconds" in await served.refused("break_it", how=str(root / "pid"))

    asyncio.run(scenario())
    if (root / "pid").exists() and (started := (root / "pid").read_text().strip()):
        until(lambda: not Path(f"/proc/{started}").exists())


def test_no_result_quotes_a_secret_of_private_tools(root: Path) -> None:
    async def scenario() -> None:
        served = Served(root, Kind.PRIVATE, secrets={"DB_PASSWORD": PASSWORD})
        assert PASSWORD not in await served.call("where")
        assert await served.refused("break_it", how="raise") == "LookupError: no such order; password [secret]"

    asyncio.run(scenario())
