"""The usual `mcpServers` JSON: what is in it, checked. Standard library only.

    {"mcpServers": {
      "orders": {"command": "npx", "args": ["-y", "orders-mcp"], "env": {"ORDERS_TOKEN": "${ORDERS_TOKEN}"}},
      "wiki":   {"type": "http", "url": "https://wiki.example.com/mcp", "headers": {"X-Key": "${WIKI_KEY}"}}
    }}

`${NAME}` and `${NAME:-text}` stand for one of the operator's TOOL_SECRETS; a server has none of them that it does not
name. `${HANDS_TOOLS}` is the folder of the operator's files, `${HANDS_PYTHON}` a Python that has the packages mcp and
anthropic. One key is ours: `"private": false` lets a server run as the agent's user.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,60}")
_REFERENCE: Final = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)(?::-([^}]*))?\}")
_LOOPBACK: Final = ("localhost", "127.0.0.1")
_KEYS: Final = frozenset({"type", "command", "args", "env", "cwd", "url", "headers", "private"})
_KINDS: Final = ("stdio", "http", "streamable-http", "sse")


class McpConfigError(ValueError):
    """The text says which server and what is wrong, and quotes no value of env or headers."""


@dataclass(frozen=True, slots=True)
class ServerDefinition:
    """`command` or `url` is set. Texts may hold references."""

    name: str
    command: str = ""
    args: tuple[str, ...] = ()
    env: Mapping[str, str] | None = None
    cwd: str | None = None
    url: str = ""
    headers: Mapping[str, str] | None = None
    sse: bool = False
    private: bool = True

    def with_values(self, environ: Mapping[str, str]) -> ServerDefinition:
        """With each reference replaced. Raises McpConfigError for one that is not set."""

        def filled(text: str) -> str:
            return _REFERENCE.sub(lambda match: self._value(match, environ), text)

        made = ServerDefinition(
            name=self.name,
            command=filled(self.command),
            args=tuple(map(filled, self.args)),
            env={name: filled(text) for name, text in (self.env or {}).items()},
            cwd=self.cwd,
            url=filled(self.url),
            headers={name: filled(text) for name, text in (self.headers or {}).items()},
            sse=self.sse,
            private=self.private,
        )
        if made.url:
            _check_url(made.name, made.url)
        return made

    def references(self) -> frozenset[str]:
        """The variables that it cannot do without."""
        texts = (self.command, *self.args, self.url, *(self.env or {}).values(), *(self.headers or {}).values())
        found = (match for text in texts for match in _REFERENCE.finditer(text))
        return frozenset(match[1] for match in found if match[2] is None)

    def _value(self, match: re.Match[str], environ: Mapping[str, str]) -> str:
        value = environ.get(match[1]) or match[2]
        if value is None:
            raise McpConfigError(f"MCP server {self.name!r} needs {match[1]}, which is not set: add it to TOOL_SECRETS")
        return value


def servers_in(content: object) -> tuple[ServerDefinition, ...]:
    """Raises McpConfigError."""
    listed = content.get("mcpServers") if isinstance(content, dict) else None
    if not isinstance(listed, dict):
        raise McpConfigError('there is no object "mcpServers" in it')
    return tuple(_server(name, given) for name, given in listed.items())


def _server(name: str, given: Any) -> ServerDefinition:
    if not _NAME.fullmatch(name):
        raise McpConfigError(f"MCP server {name[:80]!r}: a name has 1 to 60 letters, digits, dashes and underscores")
    if not isinstance(given, dict):
        raise McpConfigError(f"MCP server {name!r} is no object")
    unknown = sorted(set(given) - _KEYS)
    if unknown:
        raise McpConfigError(f"MCP server {name!r} has an unknown key {unknown[0][:80]!r}; there are {_known()}")
    kind = given.get("type", "http" if "url" in given else "stdio")
    if kind not in _KINDS:
        raise McpConfigError(f"MCP server {name!r} has a type that is none of {', '.join(_KINDS)}")
    command, url = given.get("command", ""), given.get("url", "")
    if not isinstance(command, str) or not isinstance(url, str) or bool(command) is bool(url):
        raise McpConfigError(f"MCP server {name!r} needs either a command or a url")
    if (kind == "stdio") is not bool(command):
        raise McpConfigError(f"MCP server {name!r}: type {kind} does not go with its {'command' if command else 'url'}")
    args, private = given.get("args", []), given.get("private", True)
    if not isinstance(args, list) or not all(isinstance(each, str) for each in args):
        raise McpConfigError(f"MCP server {name!r}: args is not a list of texts")
    if not isinstance(private, bool):
        raise McpConfigError(f"MCP server {name!r}: private is not true or false")
    if given.get("cwd") is not None and not isinstance(given["cwd"], str):
        raise McpConfigError(f"MCP server {name!r}: cwd is not a text")
    if url and not _REFERENCE.search(url):
        _check_url(name, url)
    return ServerDefinition(
        name=name,
        command=command,
        args=tuple(args),
        env=_texts(name, "env", given),
        cwd=given.get("cwd"),
        url=url,
        headers=_texts(name, "headers", given),
        sse=kind == "sse",
        private=private,
    )


def _texts(name: str, key: str, given: Mapping[str, Any]) -> dict[str, str]:
    texts = given.get(key) or {}
    if not isinstance(texts, dict) or not all(isinstance(text, str) for text in texts.values()):
        raise McpConfigError(f"MCP server {name!r}: {key} is not an object of texts")
    return texts


def _check_url(name: str, url: str) -> None:
    """Credentials go with each request: https, or plain http to this machine alone."""
    parts = urlsplit(url)
    if parts.scheme == "https" and parts.hostname:
        return
    if parts.scheme != "http" or parts.hostname not in _LOOPBACK:
        raise McpConfigError(f"MCP server {name!r}: its url must use https, or http to localhost or 127.0.0.1")


def _known() -> str:
    return ", ".join(sorted(_KEYS))
