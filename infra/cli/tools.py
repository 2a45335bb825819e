"""The operator's own tools, as commands know them: `tools` lists them, `tool-test` calls one."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from image.session.archive import build_archive
from image.session.tools import OwnTools, ToolsError, ToolSources, collect, described, stage
from image.session.worker.tool_manifest import ToolKind
from image.session.worker.tool_processes import OperatorTools, ToolSettings
from shared.errors import SecretUnavailable, SettingsError
from shared.settings_table import Workers

_LOOK_SECONDS: Final = 0.5


def own_tools(environ: Mapping[str, str]) -> OwnTools:
    """What SANDBOX_TOOLS, SANDBOX_PRIVATE_TOOLS and SANDBOX_MCP name. Blocks for seconds: files are loaded and servers
    are asked. Raises SettingsError with all that is wrong."""
    sources = ToolSources.from_environ(environ)
    if not sources:
        return OwnTools()
    try:
        return collect(sources, secrets(environ) if sources.mcp is not None else {})
    except ToolsError as error:
        raise SettingsError(str(error)) from None


def secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """The values of TOOL_SECRETS, as the functions hand them over. Raises SettingsError."""
    try:
        return {name: secret.reveal() for name, secret in Workers.TOOL_SECRETS.read(environ).items()}
    except SecretUnavailable as error:
        raise SettingsError(f"{error}: private tools can be neither tried nor listed without it") from None


def say_tools(environ: Mapping[str, str]) -> int:
    """Prints one line a tool."""
    found = own_tools(environ)
    print(described(found) if found.entries else "No tools of your own: set SANDBOX_TOOLS (docs/tools.md).")
    return 0


def try_tool(environ: Mapping[str, str], name: str, given: str, *, watch: bool) -> int:
    """Calls one tool on this machine as a worker does, its files as they are now. 0, or 1 where it answers with an
    error. `watch`: again after each change of a file, until ctrl-C."""
    sources = ToolSources.from_environ(environ)
    if not sources:
        raise SettingsError("SANDBOX_TOOLS is not set: it names the folder of your tools (docs/tools.md)")
    arguments = _arguments(given)
    while True:
        seen = _stamps(sources)
        try:
            status = _call(environ, name, arguments)
        except SettingsError as error:
            if not watch:
                raise
            print(f"✗ {error}", file=sys.stderr)
        if not watch:
            return status
        print("… waiting for a change; ctrl-C ends", file=sys.stderr)
        while _stamps(sources) == seen:
            time.sleep(_LOOK_SECONDS)


def _call(environ: Mapping[str, str], name: str, arguments: dict[str, Any]) -> int:
    tools = own_tools(environ)
    entry = next((entry for entry in tools.entries if entry.name == name), None)
    if entry is None:
        known = ", ".join(entry.name for entry in tools.entries)
        raise SettingsError(f"there is no tool {name!r}; there are {known}")
    private = entry.kind is ToolKind.PRIVATE
    if private:
        print("A private tool: here it runs as you; in a sandbox it has a user of its own.", file=sys.stderr)
    settings = ToolSettings(
        workdir=str(Path.cwd()),
        seconds=Workers.TOOL_SECONDS.read(environ),
        longest=Workers.TOOL_OUTPUT_BYTES.read(environ),
        secrets=secrets(environ) if private else {},
        one_user=True,
    )
    with tempfile.TemporaryDirectory(prefix="tool-test-") as place:
        stage(tools, Path(place, "tools"))
        archive = Path(place, "worker.pyz")
        archive.write_bytes(build_archive())
        began = time.monotonic()
        content, status = asyncio.run(
            _answer(name, arguments, settings, OperatorTools(str(archive), directory=Path(place, "tools")))
        )
    print(_shown(content), flush=True)  # with --watch and a pipe, too
    how = "an error" if status else "a result"
    print(f"{'✗' if status else '✓'} {name}: {how} after {time.monotonic() - began:.1f} s", file=sys.stderr)
    return status


async def _answer(name: str, arguments: dict[str, Any], settings: ToolSettings, own: OperatorTools) -> tuple[Any, int]:
    """Its content, and 1 where that is an error."""
    from anthropic.lib.tools import ToolError

    from image.session.worker.operator_tools import with_operator_tools

    serve: Any = with_operator_tools(lambda _: [], settings, own)
    tool = next(each for each in serve(None) if each.name == name)
    try:
        return await tool.call(arguments), 0
    except ToolError as error:
        return error.content, 1
    finally:
        await tool.close()


def _arguments(given: str) -> dict[str, Any]:
    try:
        arguments = json.loads(given.strip() or "{}")
    except ValueError as error:
        raise SettingsError(f'the input is not JSON ({error}): INPUT=\'{{"name": "value"}}\'') from None
    if not isinstance(arguments, dict):
        raise SettingsError('the input is not a JSON object: INPUT=\'{"name": "value"}\'')
    return arguments


def _shown(content: Any) -> str:
    if isinstance(content, str):
        return content
    texts = (block["text"] if block.get("type") == "text" else f"[{block.get('type')}]" for block in content)
    return "\n".join(map(str, texts))


def _stamps(sources: ToolSources) -> dict[Path, int]:
    """When each file was changed last."""
    files = [
        path for folder in sources.folders.values() for path in folder.rglob("*") if "__pycache__" not in path.parts
    ]
    found: dict[Path, int] = {}
    for path in (*files, *((sources.mcp,) if sources.mcp else ())):
        with contextlib.suppress(OSError):
            found[path] = path.stat().st_mtime_ns
    return found
