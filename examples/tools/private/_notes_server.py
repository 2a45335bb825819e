"""An MCP server on standard input and output, started by what examples/tools/mcp.json says. Its underscore keeps it
from being taken for a file of tools."""

from __future__ import annotations

import os

from mcp.server.mcpserver import MCPServer

server = MCPServer("notes")
_NOTES = {"release": "The release is on Thursday.", "lunch": "Lunch is at noon."}


@server.tool()
def search(word: str) -> str:
    """Finds the team's notes that have a word in them."""
    found = [text for text in _NOTES.values() if word.lower() in text.lower()]
    return "\n".join(found) or "nothing"


@server.tool()
def whoami() -> str:
    """Says which account the notes are read with."""
    return f"account of {len(os.environ['NOTES_TOKEN'])} characters"


if __name__ == "__main__":
    server.run("stdio")
