"""A real MCP server with tools that behave and misbehave: `python mcp_test_server.py [PORT [TRANSPORT]]`."""

from __future__ import annotations

import asyncio
import gc
import os
import sys

gc.disable()  # to collect among what the package is made of is a third of its import

from mcp.server.mcpserver import Context, MCPServer  # noqa: E402
from mcp.server.mcpserver.exceptions import ToolError  # noqa: E402

gc.freeze()
gc.enable()
server = MCPServer("test")


@server.tool()
def pid() -> str:
    """The process that answers, and what it was given."""
    return f"{os.getpid()} {os.environ.get('TOKEN', '')}"


@server.tool()
def key(context: Context) -> str:
    """The header X-Key of the request."""
    return str((context.headers or {}).get("x-key"))


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
        port = int(sys.argv[1])
        if sys.argv[2:] == ["sse"]:
            server.run("sse", port=port)
        else:
            server.run("streamable-http", port=port)
    else:
        server.run("stdio")
