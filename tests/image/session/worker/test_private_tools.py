"""What the agent's shell can find of private tools, which run as another user: nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from image.session.claim import USER_VARIABLE, Exit
from image.session.tools import ToolSources, collect, stage
from image.session.worker.tool_manifest import TOOLS_DIRECTORY, TOOLS_HOME, TOOLS_USER, Kind
from tests.image.session.worker.harness import WorkerSandbox, make_claim
from tests.image.session.worker.service import running
from tests.image.session.worker.test_hand_over_spy import NOBODY, PATIENCE, readable_by_all, sandbox_of_nobody
from tests.image.session.worker.test_secret_hiding import SEARCH

OWNER = 65_533
SECRET = "not-a-real-password-9d2e"
FILES = Path(__file__).with_name("operator_files")


def image_with_private_tools(box: WorkerSandbox) -> list[str]:
    """As `make build` makes it, and each file of that user's holds the secret. Runs what follows in it, as root."""
    source, home, users = (box.root.parent / name for name in ("source", "home", "passwd"))
    shutil.copytree(FILES, source, ignore=shutil.ignore_patterns("__pycache__"))
    (source / "_constants.py").write_text(f"PASSWORD = {SECRET!r}\n")
    stage(collect(ToolSources({Kind.PRIVATE: source})), box.root.parent / "tools")
    shutil.rmtree(source)
    for path in sorted((box.root.parent / "tools" / "private").rglob("*")):
        os.chown(path, 0, OWNER)
        path.chmod(0o640)
    os.chown(box.root.parent / "tools" / "private", 0, OWNER)
    (box.root.parent / "tools" / "private").chmod(0o750)
    home.mkdir(mode=0o700)
    os.chown(home, OWNER, OWNER)
    (home / "rows").write_text(SECRET)
    (home / "rows").chmod(0o644)
    users.write_text(f"{Path('/etc/passwd').read_text()}{TOOLS_USER}:x:{OWNER}:{OWNER}::{TOOLS_HOME}:/bin/false\n")
    *command, end = readable_by_all(box)
    return [
        *command,
        *("--perms", "0755", "--tmpfs", "/opt", "--perms", "0755", "--dir", "/opt/hands"),
        *("--ro-bind", str(box.root.parent / "tools"), str(TOOLS_DIRECTORY)),
        *("--perms", "0755", "--tmpfs", "/var/lib", "--bind", str(home), TOOLS_HOME),
        *("--ro-bind", str(users), "/etc/passwd"),
        end,
    ]


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux has other users to be")
def test_a_spy_in_the_agents_shell_finds_nothing_of_private_tools() -> None:
    with sandbox_of_nobody() as box:
        wrapper = image_with_private_tools(box)
        (box.root.parent / "search.py").write_text(SEARCH)
        places = f"{TOOLS_HOME} {TOOLS_DIRECTORY} {box.state} {box.workdir} /tmp/hands-none"
        needles = f"{SECRET[::-1]} {SECRET[::-1]}"
        search = f"{shlex.quote(sys.executable)} -I {box.root.parent}/search.py {needles} {places}"
        calls: list[tuple[str, dict[str, object]]] = [
            ("where", {}),
            (
                "bash",
                {"command": f"{search}; ls {TOOLS_HOME} {TOOLS_DIRECTORY}/private 2>&1; grep -c ' /' /proc/net/unix"},
            ),
            ("break_it", {"how": "raise"}),
        ]
        with running(tool_calls=calls, state="starting") as service:
            claim = make_claim(service.url, box.workdir, tool_secrets={"DB_PASSWORD": SECRET})
            worker = box.start(claim, env={USER_VARIABLE: str(NOBODY)}, wrapper=wrapper)
            assert worker.exit(PATIENCE) is Exit.SERVED, worker.report()
            where, spied, failed = (result["content"][0]["text"] for result in service.results)
        assert where.startswith(f"{OWNER} {TOOLS_HOME} [secret] ")
        report = json.loads(spied.splitlines()[0])
        assert report["found"] == []
        assert SECRET not in spied and spied.count("Permission denied") == 2
        assert "DB_PASSWORD" not in report["environ"]
        assert not [target for target in report["descriptors"] if target.startswith("socket:")]
        assert failed == "LookupError: no such order; password [secret]"
        assert SECRET not in "".join(worker.stdout + worker.stderr)
