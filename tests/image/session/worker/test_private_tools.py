"""What the agent's shell can find of private tools, which run as another user: nothing."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from image.session.claim import USER_VARIABLE, Exit
from image.session.definition import Recipe, dockerfile
from image.session.tools import stage
from image.session.worker.tool_manifest import TOOLS_DIRECTORY, TOOLS_HOME, TOOLS_USER, ToolKind
from tests.image.session.worker.harness import OPERATOR_FILES, WorkerSandbox, make_claim, tools_in
from tests.image.session.worker.service import running
from tests.image.session.worker.test_hand_over_spy import NOBODY, PATIENCE, readable_by_all, sandbox_of_nobody
from tests.image.session.worker.test_secret_hiding import SEARCH

SECRET = "not-a-real-password-9d2e"


def image_with_private_tools(box: WorkerSandbox, files: Path = OPERATOR_FILES) -> list[str]:
    """Made by the image's own steps; each file of that user's holds the secret. Runs what follows in it, as root."""
    place = box.root.parent
    shutil.copytree(files, place / "source", ignore=shutil.ignore_patterns("__pycache__"))
    (place / "source" / "_constants.py").write_text(f"PASSWORD = {SECRET!r}\n")
    own = tools_in(place / "source", ToolKind.PRIVATE)
    stage(own, place / "tools")
    shutil.rmtree(place / "source")
    (place / "lib").mkdir()
    shutil.copytree("/etc", place / "etc", symlinks=True, ignore_dangling_symlinks=True)
    *command, end = readable_by_all(box)
    image = [
        *command,
        *("--perms", "0755", "--tmpfs", "/opt", "--perms", "0755", "--dir", "/opt/hands"),
        *("--bind", str(place / "tools"), str(TOOLS_DIRECTORY)),
        *("--bind", str(place / "lib"), "/var/lib", "--bind", str(place / "etc"), "/etc"),
        end,
    ]
    steps = dockerfile(Recipe("image", tools=own)).splitlines()
    for step in steps[steps.index(f"COPY --chown=root:root .session-image/tools {TOOLS_DIRECTORY}") - 2 :]:
        if step.startswith("RUN "):
            subprocess.run([*image, "sh", "-c", step.removeprefix("RUN ")], check=True, capture_output=True)
    (place / "lib" / "hands-tools" / "rows").write_text(SECRET)
    return image


other_users = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or shutil.which("useradd") is None,
    reason="only root on Linux has other users to be, and the image's distribution has useradd",
)


def search(box: WorkerSandbox) -> str:
    """A command of the agent's that looks for the secret wherever it can look, and prints what it found as JSON."""
    (box.root.parent / "search.py").write_text(SEARCH)
    places = f"{TOOLS_HOME} {TOOLS_DIRECTORY} {box.state} {box.workdir} /tmp/hands-none"
    return f"{shlex.quote(sys.executable)} -I {box.root.parent}/search.py {SECRET[::-1]} {SECRET[::-1]} {places}"


@other_users
def test_a_spy_in_the_agents_shell_finds_nothing_of_private_tools() -> None:
    with sandbox_of_nobody() as box:
        image = image_with_private_tools(box)
        calls: list[tuple[str, dict[str, object]]] = [
            ("where", {}),
            ("bash", {"command": f"{search(box)}; ls {TOOLS_HOME} {TOOLS_DIRECTORY}/private 2>&1; id -u {TOOLS_USER}"}),
            ("break_it", {"how": "raise"}),
        ]
        with running(tool_calls=calls, state="starting") as service:
            claim = make_claim(service.url, box.workdir, tool_secrets={"DB_PASSWORD": SECRET})
            worker = box.start(claim, env={USER_VARIABLE: str(NOBODY)}, wrapper=image)
            assert worker.exit(PATIENCE) is Exit.SERVED, worker.report()
            where, spied, failed = (result["content"][0]["text"] for result in service.results)
        owner = spied.split()[-1]
        assert where.startswith(f"{owner} {TOOLS_HOME} [secret] ")
        report = json.loads(spied.splitlines()[0])
        assert report["found"] == []
        assert SECRET not in spied and spied.count("Permission denied") == 2
        assert "DB_PASSWORD" not in report["environ"]
        assert not [target for target in report["descriptors"] if target.startswith("socket:")]
        assert failed == "LookupError: no such order; password [secret]"
        log = "".join(worker.stdout + worker.stderr)
        assert SECRET not in log
        assert "tool.says kind=private tool=break_it line=LookupError: no such order; password [secret]" in log
