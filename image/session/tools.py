"""The operator's own tools on their way into the image and onto the agent: found, checked, written down.

Three settings name them: a folder of Python files (SANDBOX_TOOLS), another one whose tools are private
(SANDBOX_PRIVATE_TOOLS), and the usual JSON of MCP servers (SANDBOX_MCP). To learn what there is, the files are loaded
in a process of their own on the building machine, and each server is started there, or asked, for its list.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from image.session.worker import fork_tool_schema, tool_manifest
from image.session.worker.mcp_config import McpConfigError, ServerDefinition, servers_in
from image.session.worker.tool_files import tool_files
from image.session.worker.tool_manifest import MANIFEST, SERVERS, ToolEntry, ToolKind

STANDARD_TOOLS: Final = ("bash", "read", "write", "edit", "glob", "grep", "web_fetch", "web_search")
REQUIREMENTS: Final = "requirements.txt"

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,128}")  # docs/wire/anthropic.md#7-agents-api
_MOST: Final = 126  # of the API's 128 entries, beside the toolset and fork_best_of_n
_LOAD_SECONDS: Final = 60.0
_LIST_SECONDS: Final = 60.0


class ToolsError(ValueError):
    """What is wrong with the operator's tools, one line each. Quotes no secret."""


@dataclass(frozen=True, slots=True)
class ToolSources:
    """Where they are; empty by default."""

    folders: Mapping[ToolKind, Path] = field(default_factory=dict)
    mcp: Path | None = None

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> ToolSources:
        def path(variable: str) -> Path | None:
            text = environ.get(variable, "").strip()
            return Path(text).expanduser().absolute() if text else None

        named = {ToolKind.PUBLIC: path("SANDBOX_TOOLS"), ToolKind.PRIVATE: path("SANDBOX_PRIVATE_TOOLS")}
        return cls({kind: folder for kind, folder in named.items() if folder is not None}, path("SANDBOX_MCP"))

    def __bool__(self) -> bool:
        return bool(self.folders) or self.mcp is not None


@dataclass(frozen=True, slots=True)
class OwnTools:
    """What was found. `servers`: the servers' JSON as it goes into each kind's folder, references and all."""

    sources: ToolSources = field(default_factory=ToolSources)
    entries: tuple[ToolEntry, ...] = ()
    servers: Mapping[ToolKind, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def kinds(self) -> tuple[ToolKind, ...]:
        return tuple(kind for kind in ToolKind if any(entry.kind is kind for entry in self.entries))

    @property
    def requirements(self) -> tuple[ToolKind, ...]:
        """The kinds whose folder names Python packages."""
        return tuple(kind for kind, folder in self.sources.folders.items() if (folder / REQUIREMENTS).is_file())


def collect(sources: ToolSources, environ: Mapping[str, str] | None = None) -> OwnTools:
    """All tools that the sources have. `environ`: values for the references of MCP servers, secrets among them.

    Raises ToolsError with everything that is wrong.
    """
    problems: list[str] = []
    entries: list[ToolEntry] = []
    for kind, folder in sources.folders.items():
        entries += _from_folder(kind, folder, problems)
    servers: dict[ToolKind, dict[str, Any]] = {}
    if sources.mcp is not None:
        listed, servers = _from_servers(sources, sources.mcp, {**_own(environ or {})}, problems)
        entries += listed
    problems += _clashes(entries)
    if len(entries) > _MOST:
        problems.append(f"there are {len(entries)} tools; an agent takes {_MOST} at most")
    if problems:
        raise ToolsError("\n".join(problems))
    return OwnTools(sources, tuple(entries), servers)


def known_names(sources: ToolSources) -> Callable[[str], bool]:
    """Whether a name is that of a tool which the sources have; of an MCP server's tools the server's name counts, which
    is not started for it. Raises ToolsError."""
    problems: list[str] = []
    names = {entry.name for kind, folder in sources.folders.items() for entry in _from_folder(kind, folder, problems)}
    servers: tuple[ServerDefinition, ...] = ()
    if sources.mcp is not None:
        _, servers = _read_servers(sources.mcp, problems)
    if problems:
        raise ToolsError("\n".join(problems))
    begins = tuple(f"{server.name}__" for server in servers)
    return lambda name: name in names or name.startswith(begins)


def stage(tools: OwnTools, target: Path) -> None:
    """Fills an empty folder with what the image gets at /opt/hands/tools."""
    target.mkdir()
    (target / MANIFEST).write_text(tool_manifest.to_json(tools.entries), encoding="utf-8")
    for kind in tools.kinds:
        folder = tools.sources.folders.get(kind)
        if folder is None:
            (target / kind).mkdir()
        else:
            shutil.copytree(folder, target / kind, ignore=shutil.ignore_patterns("__pycache__", ".*"))
        if kind in tools.servers:
            (target / kind / SERVERS).write_text(json.dumps(tools.servers[kind], indent=1), encoding="utf-8")


def _from_folder(kind: ToolKind, folder: Path, problems: list[str]) -> Iterator[ToolEntry]:
    variable = "SANDBOX_TOOLS" if kind is ToolKind.PUBLIC else "SANDBOX_PRIVATE_TOOLS"
    if not folder.is_dir():
        problems.append(f"{variable}: {folder} is no folder")
        return
    if not tool_files(folder):
        problems.append(f"{variable}: {folder} has no Python file")
        return
    for found in _described(folder, variable, problems):
        where = f"{folder.name}/{found['file']}"
        if "error" in found:
            problems.append(f"{where} cannot be loaded: {str(found['error'])[:1000]}")
            continue
        wrong = list(_wrong(found["name"], found["description"], found["input_schema"]))
        problems += [f"{where}: tool {str(found['name'])[:140]!r}: {each}" for each in wrong]
        if not wrong:
            yield ToolEntry(found["name"], found["description"].strip(), found["input_schema"], kind, found["file"])


def _described(folder: Path, variable: str, problems: list[str]) -> Sequence[dict[str, Any]]:
    """What the files declare, found out in another process: they may do anything, and take as long as they like."""
    command = [sys.executable, "-I", "-m", "image.session.worker.tool_files", str(folder)]
    try:
        done = subprocess.run(
            command, capture_output=True, stdin=subprocess.DEVNULL, timeout=_LOAD_SECONDS, check=False, cwd="/"
        )
        described: list[dict[str, Any]] = json.loads(done.stdout)
    except subprocess.TimeoutExpired:
        problems.append(f"{variable}: loading its files took longer than {_LOAD_SECONDS:g} s: do slow things in a call")
        return ()
    except ValueError:
        said = done.stderr.decode("utf-8", "replace").strip()[-1000:]
        problems.append(f"{variable}: its files cannot be loaded: {said or f'status {done.returncode}'}")
        return ()
    if not described:
        problems.append(f"{variable}: no file has a tool: give a function the decorator @beta_tool of anthropic")
    return described


def _from_servers(
    sources: ToolSources, path: Path, environ: Mapping[str, str], problems: list[str]
) -> tuple[list[ToolEntry], dict[ToolKind, dict[str, Any]]]:
    content, servers = _read_servers(path, problems)
    if not servers:
        return [], {}
    try:
        import mcp  # noqa: F401
    except ImportError:
        problems.append("SANDBOX_MCP: the package mcp is not installed here: run make setup-mcp")
        return [], {}
    entries: list[ToolEntry] = []
    kept: dict[ToolKind, dict[str, Any]] = {}
    for server in servers:
        kind = ToolKind.PRIVATE if server.private else ToolKind.PUBLIC
        kept.setdefault(kind, {"mcpServers": {}})["mcpServers"][server.name] = content["mcpServers"][server.name]
        entries += _from_server(server, kind, {**environ, **_places(sources, kind)}, problems)
    return entries, kept


def _read_servers(path: Path, problems: list[str]) -> tuple[Any, tuple[ServerDefinition, ...]]:
    try:
        content = json.loads(path.read_bytes())
        return content, servers_in(content)
    except OSError as error:
        problems.append(f"SANDBOX_MCP: {path} cannot be read: {error.strerror}")
    except McpConfigError as error:
        problems.append(f"SANDBOX_MCP: {error}")
    except ValueError:
        problems.append(f"SANDBOX_MCP: {path} is not JSON")
    return None, ()


def _from_server(
    server: ServerDefinition, kind: ToolKind, environ: Mapping[str, str], problems: list[str]
) -> Iterator[ToolEntry]:
    import asyncio

    from image.session.worker.mcp_servers import McpServer, McpServerFailed

    async def listed() -> Sequence[Any]:
        connection = McpServer(server, environ)
        try:
            async with asyncio.timeout(_LIST_SECONDS):
                return await connection.tools()
        finally:
            await connection.close()

    try:
        tools = asyncio.run(listed())
    except McpServerFailed as error:
        problems.append(f"SANDBOX_MCP: {str(error)[:1000]}")
        return
    except TimeoutError:
        problems.append(f"SANDBOX_MCP: the MCP server {server.name!r} did not list its tools in {_LIST_SECONDS:g} s")
        return
    for tool in tools:
        name = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server.name}__{tool.name}")
        description = (tool.description or f"{tool.name} of the MCP server {server.name}").strip()
        wrong = list(_wrong(name, description, tool.input_schema))
        problems += [f"SANDBOX_MCP: tool {name[:140]!r}: {each}" for each in wrong]
        if not wrong:
            yield ToolEntry(name, description, tool.input_schema, kind, tool.name, server.name)


def _wrong(name: object, description: object, schema: object) -> Iterator[str]:
    """Against what the agents API takes (docs/wire/anthropic.md#7-agents-api)."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or name.startswith("mcp__"):
        yield "a name has 1 to 128 letters, digits, dashes and underscores, and does not begin with mcp__"
    if not isinstance(description, str) or not description.strip():
        yield "it has no description: write a docstring, which is what the agent knows of it"
    if not isinstance(schema, dict) or schema.get("type") != "object":
        yield "its input schema is not of type object"
        return
    properties, required = schema.get("properties", {}), schema.get("required", [])
    if not isinstance(properties, dict) or not all(isinstance(each, dict | bool) for each in properties.values()):
        yield "its input schema's properties are not schemas"
    elif not isinstance(required, list) or not all(isinstance(each, str) and each in properties for each in required):
        yield "its input schema requires what is not among its properties"


def _clashes(entries: Iterable[ToolEntry]) -> Iterator[str]:
    seen: dict[str, ToolEntry] = {}
    for entry in entries:
        if entry.name in STANDARD_TOOLS or entry.name == fork_tool_schema.NAME:
            yield f"{_origin(entry)}: tool {entry.name!r} has the name of a standard tool: rename it"
        elif entry.name in seen:
            yield f"{_origin(entry)} and {_origin(seen[entry.name])} both have a tool {entry.name!r}: rename one"
        seen.setdefault(entry.name, entry)


def _origin(entry: ToolEntry) -> str:
    return f"MCP server {entry.server}" if entry.server else entry.source


def _own(environ: Mapping[str, str]) -> dict[str, str]:
    return {"HANDS_PYTHON": sys.executable, **environ}


def _places(sources: ToolSources, kind: ToolKind) -> dict[str, str]:
    folder = sources.folders.get(kind)
    return {"HANDS_TOOLS": str(folder)} if folder is not None else {}


def described(tools: OwnTools) -> str:
    """For people: one line a tool."""
    width = max((len(entry.name) for entry in tools.entries), default=0)
    return "\n".join(
        f"{entry.name:{width}}  {entry.kind.value:7}  {_origin(entry):24}  {entry.description.splitlines()[0][:80]}"
        for entry in tools.entries
    )
