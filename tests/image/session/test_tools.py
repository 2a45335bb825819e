"""What `make build` and `make agent` refuse of the operator's tools, and what an image with them is made of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from image.session.definition import Recipe, dockerfile, stage
from image.session.tools import OwnTools, ToolsError, ToolSources, collect
from image.session.worker.tool_manifest import ToolEntry, ToolKind

pytestmark = pytest.mark.usefixtures("forked_here")

HEAD = "from anthropic import beta_tool\nimport _shared\n"
TOOL = '@beta_tool(name="{name}"{more})\ndef {function}(a: int = 1) -> str:\n    """{text}"""\n    return ""\n'


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    def tool(name: str, function: str = "f", text: str = "Does it.", more: str = "") -> str:
        return TOOL.format(name=name, function=function, text=text, more=more)

    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "_shared.py").write_text("raise_if_loaded_as_tools = True\n")
    (folder / "a.py").write_text(HEAD + tool("twice") + tool("bash", "g") + tool("quiet", "h", text=""))
    (folder / "b.py").write_text(HEAD + tool("twice") + tool("no good", "g") + tool("mcp__x", "h"))
    (folder / "c.py").write_text(HEAD + tool("odd", more=', input_schema={"type": "array"}'))
    (folder / "d.py").write_text("import nothing_of_that_name\n")
    (folder / "e.py").write_text("raise SystemExit(3)\n")
    (tmp_path / "mcp.json").write_text('{"mcpServers": {"a": {"url": "http://example.com"}}}')
    with pytest.raises(ToolsError) as caught:
        collect(ToolSources({ToolKind.PUBLIC: folder}, tmp_path / "mcp.json"))
    said = str(caught.value)
    for wanted in (
        "b.py and a.py both have a tool 'twice'",
        "'bash' has the name of a standard tool",
        "tool 'quiet': it has no description",
        "tool 'no good': a name has 1 to 128",
        "tool 'mcp__x': a name has 1 to 128",
        "tool 'odd': its input schema is not of type object",
        "d.py cannot be loaded: ModuleNotFoundError",
        "e.py cannot be loaded: SystemExit: 3",
        "SANDBOX_MCP: MCP server 'a': its url must use https",
    ):
        assert wanted in said
    with pytest.raises(ToolsError, match="is no folder"):
        collect(ToolSources({ToolKind.PRIVATE: tmp_path / "nowhere"}))


def test_private_files_are_closed_to_the_agents_user_and_mcp_comes_only_where_it_is_wanted(tmp_path: Path) -> None:
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "orders.py").write_text("")
    (folder / "requirements.txt").write_text("psycopg==3.2.9\n")
    entry = ToolEntry("orders", "Finds orders.", {"type": "object"}, ToolKind.PRIVATE, "orders.py")
    sources = ToolSources({ToolKind.PRIVATE: folder})
    recipe = Recipe("with-tools", tools=OwnTools(sources, (entry,)))
    text = dockerfile(recipe)
    assert "useradd --system" in text and "hands-tools" in text
    assert "chown --recursive root:hands-tools /opt/hands/tools/private" in text
    assert "--target /opt/hands/tools-packages --requirement /opt/hands/tools/private/requirements.txt" in text
    assert "mcp.lock" not in text
    (tmp_path / "context").mkdir()
    stage(recipe, tmp_path / "context")
    assert (tmp_path / "context/.session-image/tools/private/orders.py").is_file()
    servers: dict[ToolKind, dict[str, Any]] = {ToolKind.PRIVATE: {"mcpServers": {}}}
    assert "mcp.lock" in dockerfile(Recipe("with-mcp", tools=OwnTools(sources, (entry,), servers)))
    assert "hands-tools" not in dockerfile(Recipe("without"))
