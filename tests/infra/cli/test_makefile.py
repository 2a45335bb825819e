"""The Makefile and the set-up behind it, in a folder whose name has spaces, with a Python that only tells its tale."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.checkout import ROOT

TALE = """#!/bin/sh
[ "$1" = -c ] && exit 0
printf 'args=%s\\n' "$*"
printf 'prompt=%s\\nsession=%s\\nname=%s\\n' "$HANDS_PROMPT" "$HANDS_SESSION" "$HANDS_AGENT_NAME"
printf 'bytecode=%s\\n' "${PYTHONDONTWRITEBYTECODE-unset}"
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkout whose virtual environment counts as made."""
    folder = tmp_path / "a folder with spaces"
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", folder)
    shutil.copytree(ROOT / "requirements", folder / "requirements")
    shutil.copy(folder / "requirements" / "dev.lock", folder / ".venv" / "made-from.lock")
    python = folder / ".venv" / "bin" / "python"
    python.write_text(TALE, encoding="utf-8")
    python.chmod(0o755)
    return folder


def make(folder: Path, *args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "PROMPT", "SESSION"))}
    return subprocess.run(
        ["make", *args], cwd=folder, env={**clean, **environ}, capture_output=True, text=True, timeout=60
    )


def told(folder: Path, *args: str, **environ: str) -> dict[str, str]:
    done = make(folder, *args, **environ)
    assert done.returncode == 0, done.stderr
    return dict(line.split("=", 1) for line in done.stdout.splitlines())


def test_help_is_the_default_and_has_a_line_for_every_target(folder: Path) -> None:
    shown = make(folder).stdout
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)
    assert targets is not None
    for target in targets[1].split():
        assert len(re.findall(rf"^  make {target} ", shown, re.MULTILINE)) == 1, target


def test_a_prompt_reaches_the_command_as_it_was_written(folder: Path) -> None:
    hostile = """$ echo "$HOME" 'x' `id` \\ $(touch oops) $$; # done"""
    assert told(folder, "session", f"PROMPT={hostile}")["prompt"] == hostile
    assert told(folder, "session", PROMPT=hostile)["prompt"] == hostile
    assert not (folder / "oops").exists()


def test_without_a_prompt_a_new_session_gets_the_quickstarts_and_an_old_one_is_watched(folder: Path) -> None:
    assert told(folder, "session")["prompt"].startswith("create hello.txt with")
    watched = told(folder, "session", "SESSION=sesn_1")
    assert (watched["prompt"], watched["session"]) == ("", "sesn_1")


@pytest.mark.parametrize("target", ["session", "fork", "show", "run", "rm"])
def test_an_empty_session_is_an_error_that_says_what_to_do_and_starts_none(folder: Path, target: str) -> None:
    for empty in ("SESSION=", "SESSION= "):
        done = make(folder, target, empty)
        assert done.returncode == 2 and done.stdout == ""
        assert "SESSION= is empty" in done.stderr and "make ps" in done.stderr
        assert ("leave it out" in done.stderr) == (target == "session")
    assert make(folder, "ps", "SESSION=").returncode == 0


def test_an_agents_name_may_have_spaces_and_quotes(folder: Path) -> None:
    assert told(folder, "agent", 'NAME=It\'s "mine"')["name"] == 'It\'s "mine"'
    assert told(folder, "agent")["name"] == "Managed Agent"


def test_webhook_is_serve_and_the_port_can_be_set(folder: Path) -> None:
    assert told(folder, "webhook", "PORT=8080")["args"] == "-m infra.cli serve --port 8080"
    assert told(folder, "serve")["args"] == "-m infra.cli serve --port 5051"


def test_byte_code_is_written_whatever_the_shell_says(folder: Path) -> None:
    assert told(folder, "poll", PYTHONDONTWRITEBYTECODE="1")["bytecode"] == "unset"


def test_a_changed_lock_makes_the_environment_anew_and_an_unchanged_one_does_not(folder: Path) -> None:
    calls = folder / "calls"
    python = folder / "fake python"
    python.write_text(f'#!/bin/sh\necho "$*" >> "{calls}"\n', encoding="utf-8")
    python.chmod(0o755)
    assert "args" in told(folder, "poll", f"PYTHON={python}")
    assert not calls.exists()
    for name, target in (("dev", "faults"), ("user", "poll")):
        with (folder / "requirements" / "dev.lock").open("a", encoding="utf-8") as lock:
            lock.write("# changed\n")
        done = make(folder, target, f"PYTHON={python}")
        assert done.returncode == 0, done.stderr
        assert "Setting up .venv" in done.stderr
        assert f"args=-m pip install -qq --require-hashes --requirement requirements/{name}.lock" in done.stderr
        assert "Setting up" not in make(folder, target).stderr
    assert "requirements/dev.lock" in make(folder, "faults", f"PYTHON={python}").stderr


def test_a_python_that_is_too_old_or_missing_is_named_with_the_remedy(folder: Path) -> None:
    (folder / ".venv" / "made-from.lock").unlink()
    old = folder / "old"
    old.write_text("#!/bin/sh\nexit 1\n", encoding="utf-8")
    old.chmod(0o755)
    done = make(folder, "poll", f"PYTHON={old}")
    assert done.returncode != 0
    assert f"PYTHON={old} is not a Python 3.11 or newer" in done.stderr
    tools = folder / "tools"
    tools.mkdir()
    for tool in ("sh", "dirname", "cmp", "cat"):
        (tools / tool).symlink_to(str(shutil.which(tool)))
    done = subprocess.run(
        ["sh", "requirements/install.sh"], cwd=folder, env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "apt-get install python3 python3-venv" in done.stderr


def test_a_python_without_venv_is_named_with_the_package_to_install(folder: Path) -> None:
    (folder / ".venv" / "made-from.lock").unlink()
    bare = folder / "bare"
    bare.write_text(
        f'#!/bin/sh\ncase "$*" in *ensurepip*) exit 1;; esac\nexec "{sys.executable}" "$@"\n', encoding="utf-8"
    )
    bare.chmod(0o755)
    done = make(folder, "poll", f"PYTHON={bare}")
    assert done.returncode != 0
    assert f"apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr
