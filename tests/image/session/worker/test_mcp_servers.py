"""Tools of real MCP servers, over standard streams and over HTTP, while the servers die, hang and come back."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from anthropic.lib.tools import ToolError

from image.session.worker.mcp_config import McpConfigError, servers_in
from image.session.worker.mcp_servers import McpServer, McpServerFailed
from tests.support.ports import free_port
from tests.support.waiting import until

pytest.importorskip("mcp")
SERVER = str(Path(__file__).with_name("mcp_test_server.py"))


def server(definition: dict[str, Any], **environ: str) -> McpServer:
    (found,) = servers_in({"mcpServers": {"test": definition}})
    return McpServer(found, environ)


async def text(connection: McpServer, name: str) -> str:
    (block,) = await connection.call(name, {})
    return str(block["text"])


async def refused(connection: McpServer, name: str) -> str:
    with pytest.raises(ToolError) as caught:
        await connection.call(name, {})
    return str(caught.value)


def test_a_server_on_standard_streams_is_started_again_when_it_has_ended() -> None:
    async def scenario() -> None:
        definition = {"command": sys.executable, "args": ["-I", SERVER], "env": {"TOKEN": "${SECRET}"}}
        connection = server(definition, SECRET="of-nobody", OTHER="not-asked-for")
        assert {tool.name for tool in await connection.tools()} == {"pid", "key", "die", "slow", "refuse"}
        first, token = (await text(connection, "pid")).split()
        assert token == "of-nobody"
        assert "no such page" in await refused(connection, "refuse")
        assert "has no tool 'other'" in await refused(connection, "other")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.5):
                await connection.call("slow", {})
        assert (await text(connection, "pid")).split()[0] == first
        os.kill(int(first), signal.SIGKILL)
        second = (await text(connection, "pid")).split()[0]
        assert second != first
        assert "ended during this call" in await refused(connection, "die")
        assert (await text(connection, "pid")).split()[0] not in (first, second)
        await connection.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("kind", "path"), [("http", "mcp"), ("sse", "sse")])
def test_a_server_over_http_is_reached_again_when_it_is_back(kind: str, path: str) -> None:
    port = free_port()

    async def scenario() -> None:
        url = f"http://127.0.0.1:{port}/{path}"
        connection = server({"type": kind, "url": url, "headers": {"X-Key": "${KEY}"}}, KEY="of-nobody")
        with served(port, kind) as process:
            assert (await text(connection, "pid")).split()[0] == str(process.pid)
            assert await text(connection, "key") == "of-nobody"
            assert "no such page" in await refused(connection, "refuse")
            assert "ended during this call" in await refused(connection, "die")
        assert "cannot be used" in await refused(connection, "pid")
        with served(port, kind) as process:
            assert (await text(connection, "pid")).split()[0] == str(process.pid)
            await connection.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("way", ["stdio", "http"])
def test_a_server_that_somebody_else_wrote_is_used_as_it_is(way: str) -> None:
    pytest.importorskip("mcp_server_time")
    program = [sys.executable, "-I", "-m", "mcp_server_time"]

    async def scenario(definition: dict[str, Any]) -> str:
        connection = server(definition)
        assert {tool.name for tool in await connection.tools()} == {"get_current_time", "convert_time"}
        asked = {"source_timezone": "Asia/Tokyo", "time": "09:30", "target_timezone": "Asia/Kolkata"}
        (block,) = await connection.call("convert_time", asked)
        with pytest.raises(ToolError, match="timezone"):
            await connection.call("convert_time", {**asked, "source_timezone": "Nowhere/Town"})
        await connection.close()
        return str(block["text"])

    with contextlib.ExitStack() as stack:
        definition: dict[str, Any] = {"command": program[0], "args": program[1:]}
        if way == "http":
            pytest.importorskip("mcp_streamablehttp_proxy")
            port = free_port()
            proxy = [str(Path(sys.executable).with_name("mcp-streamablehttp-proxy")), "--port", str(port), *program]
            stack.enter_context(running(proxy, port))
            definition = {"type": "http", "url": f"http://127.0.0.1:{port}/mcp"}
        assert json.loads(asyncio.run(scenario(definition)))["time_difference"] == "-3.5h"


def served(port: int, kind: str) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    return running([sys.executable, "-I", SERVER, str(port), kind], port)


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until(lambda: answers(port), "the server does not come up")
        yield process
    finally:
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    try:
        httpx2.get(f"http://127.0.0.1:{port}/", timeout=5, trust_env=False)
    except httpx2.HTTPError:
        return False
    return True


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"command": "no-such-program-here"}, "cannot be used"),
        ({"command": "x", "env": {"A": "${NOT_SET}"}}, "needs NOT_SET, which is not set"),
        ({"command": sys.executable, "args": ["-c", "print('hello')"]}, "cannot be used"),
    ],
)
def test_a_server_that_cannot_be_started_says_why(given: dict[str, Any], reason: str) -> None:
    with pytest.raises(McpServerFailed, match=reason):
        asyncio.run(server(given).tools())


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([], "mcpServers"),
        ({"mcpServers": {"a b": {"command": "x"}}}, "a name has"),
        ({"mcpServers": {"a": {"command": "x", "url": "https://x"}}}, "either a command or a url"),
        ({"mcpServers": {"a": {}}}, "either a command or a url"),
        ({"mcpServers": {"a": {"url": "http://example.com"}}}, "must use https"),
        ({"mcpServers": {"a": {"command": "x", "type": "http"}}}, "does not go with its command"),
        ({"mcpServers": {"a": {"command": "x", "envs": {}}}}, "unknown key 'envs'"),
        ({"mcpServers": {"a": {"command": "x", "env": {"A": 1}}}}, "env is not an object of texts"),
        ({"mcpServers": {"a": {"command": "x", "private": "no"}}}, "private is not true or false"),
    ],
)
def test_a_file_of_servers_that_is_wrong_says_what_and_quotes_no_value(content: object, reason: str) -> None:
    with pytest.raises(McpConfigError, match=reason):
        servers_in(content)
