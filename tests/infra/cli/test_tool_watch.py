"""`tool-test --watch` at a terminal: again after each change, whatever the change is, until ctrl-C."""

from __future__ import annotations

from pathlib import Path

from tests.support.command_line import command_line

TOOL = '''\
from anthropic import beta_tool


@beta_tool
def greet(name: str) -> str:
    """Greets."""
    return f"hello {name}"
'''


def test_a_tool_is_called_again_after_each_change_until_ctrl_c(tmp_path: Path) -> None:
    folder = tmp_path / "tools"
    folder.mkdir()
    tool = folder / "greetings.py"
    tool.write_text(TOOL)
    with command_line(tmp_path / "checkout", served=False) as shell:
        watch = ("tool-test", "greet", "--input", '{"name": "you"}', "--watch")
        with shell.terminal(*watch, SANDBOX_TOOLS=str(folder)) as terminal:
            assert "hello you" in terminal.expect("waiting for a change")
            tool.write_text(TOOL + "def broken(:\n")
            told = terminal.expect("waiting for a change")
            assert "greetings.py cannot be loaded: SyntaxError" in told and "hello" not in told
            tool.write_text(TOOL.replace("hello", "good evening"))
            assert "good evening you" in terminal.expect("waiting for a change")
            terminal.type("\x03")
            assert terminal.end() == 130
            assert "Traceback" not in terminal.seen
