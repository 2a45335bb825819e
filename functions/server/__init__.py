"""A long-lived server's own parts, and the options without which uvicorn must not face unauthenticated callers."""

from typing import Final

HTTP_PROTOCOL: Final = "functions.server.http_protocol:BoundedHttpProtocol"
BACKLOG: Final = 128
"""Connections that asyncio accepts before it turns to those that it has. Three rounds pass before a connection that was
evicted is closed, so four of them fit into the descriptors to spare (functions/server/descriptors.py, RESERVED)."""
UVICORN_OPTIONS: Final = ("--http", HTTP_PROTOCOL, "--ws", "none", "--backlog", str(BACKLOG))
