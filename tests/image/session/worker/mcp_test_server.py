"""A real MCP server with tools that behave and misbehave: `python mcp_test_server.py [PORT]`."""

from __future__ import annotations

import asyncio
import os
import sys

from mcp.server.mcpserver import MCPServer
from mcp.server.mcpserver.exceptions import ToolError

server = MCPServer("test")


@server.tool()
def pid() -> str:
    """The process that answers, and what it was given."""
    return f"{os.getpid()} {os.environ.get('TOKEN', '')}"


@server.tool()
def die() -> str:
    """Ends the server."""
    os._exit(7)


@server.tool()
async def slow() -> str:
    """Takes longer than anybody waits."""
    await asyncio.sleep(1000)
    return ""


@server.tool()
def refuse() -> str:
    """Fails."""
    raise ToolError("no such page")


if __name__ == "__main__":
    if sys.argv[1:]:
        server.run("streamable-http", port=int(sys.argv[1]))
    else:
        server.run("stdio")
