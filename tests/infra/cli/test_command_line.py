"""The one command line: quick help, an example for every command, each flag written once, shell completion."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

import pytest
import typer

from infra.cli.__main__ import PARTS, app, keep_only
from infra.cli.options import PROGRAM
from tests.support.checkout import ROOT

HEAVY = ("anthropic", "tensorlake", "pydantic", "httpx2", "uvicorn", "starlette", "boto3", "jinja2", "yaml")


def all_commands() -> dict[tuple[str, ...], Any]:
    """Each command by its words. Typer's classes are its own private copy of click's."""
    return dict(_commands(typer.main.get_command(app), ()))


def _commands(command: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
    for name, each in (inner or {}).items():
        yield from _commands(each, (*path, name))


def hands(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "infra.cli", *args],
        cwd=ROOT,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_loads_no_sdk_and_no_web_framework() -> None:
    program = (
        "import sys\nfrom infra.cli.__main__ import app\n"
        "try:\n    app(['--help'], prog_name='hands')\nexcept SystemExit as end:\n    assert not end.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    for path in all_commands():
        assert path[0] in done.stdout


def test_the_version_is_said() -> None:
    done = hands("--version")
    assert (done.returncode, done.stdout) == (0, f"hands {version('serverless-hands')}\n")


def test_every_command_says_what_it_does_with_an_example_that_the_parser_takes() -> None:
    for path, command in all_commands().items():
        assert command.help, path
        examples = re.findall(r"^\$ hands (.*)$", (command.epilog or "").replace("\\[", "["), re.MULTILINE)
        assert examples, path
        assert all(example.split()[: len(path)] == list(path) for example in examples), examples


def test_a_flag_of_several_commands_means_the_same_in_each() -> None:
    """A race has flags of its own, and the doctor an address."""
    of_its_own = {
        ("fork", "--dry-run"),
        ("fork", "--json"),
        ("fork", "--session"),
        ("fork", "--timeout"),
        ("doctor", "--url"),
    }
    meanings: defaultdict[str, set[str | None]] = defaultdict(set)
    for path, command in all_commands().items():
        for parameter in command.params:
            for flag in parameter.opts:
                if flag.startswith("--") and (path[-1], flag) not in of_its_own and flag != "--report":
                    meanings[flag].add(getattr(parameter, "help", None))
    assert {flag: texts for flag, texts in meanings.items() if len(texts) > 1} == {}


def test_a_command_is_made_alone_and_an_unknown_one_is_looked_for_among_all(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = all_commands()
    for part in PARTS:
        for each in ("registered_commands", "registered_groups"):
            monkeypatch.setattr(part.app, each, getattr(part.app, each))
    for other in ("sesion", "--help", ""):
        keep_only(other)
        assert all_commands().keys() == everything.keys()
    keep_only("demo")
    assert all_commands().keys() == {path for path in everything if path[0] == "demo"}


def test_every_make_target_calls_a_command_that_there_is() -> None:
    known = all_commands()
    called = re.findall(r"^\t@\$\(HANDS\) (.*)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert called
    for line in called:
        words = tuple(line.split())
        assert words[:1] in known or words[:2] in known, line


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands(shell: str) -> None:
    words = {"COMP_WORDS": f"{PROGRAM} webhook-sandbox-s", "COMP_CWORD": "1", "_TYPER_COMPLETE_ARGS": f"{PROGRAM} web"}
    more = {"_TYPER_COMPLETE_FISH_ACTION": "get-args"} if shell == "fish" else {}
    done = hands(**words, **more, _HANDS_COMPLETE=f"complete_{shell}")
    assert "webhook-sandbox-status" in done.stdout, done.stderr


def test_help_in_a_pipe_has_no_colour_and_names_the_exit_codes() -> None:
    done = hands("--help", FORCE_COLOR="", NO_COLOR="", GITHUB_ACTIONS="")
    assert "\x1b" not in done.stdout
    assert "Exit codes: 0 done" in done.stdout


def test_an_unknown_command_and_a_port_that_is_no_number_are_refused_by_name() -> None:
    unknown = hands("sesion")
    assert unknown.returncode == 2 and "sesion" in unknown.stderr
    refused = hands("serve", "--port", "http")
    assert refused.returncode == 2 and "--port" in refused.stderr
