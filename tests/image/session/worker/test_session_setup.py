"""A session is made ready once: from a real web server and with real git, in the worker's own modules."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from image.session.claim import Exit, Word
from image.session.setup import CALLER_KEYS, FAILED_FILE, STAGING, SetupPolicy, Wishes
from image.session.worker.setup_mark import GIVEN_UP, RUNNING, SetupMark
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import running
from tests.image.session.worker.setup_box import SetupBox
from tests.support.waiting import until
from tests.support.web import Web, git, make_repository, web


@pytest.fixture
def box(tmp_path: Path) -> SetupBox:
    return SetupBox(tmp_path)


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Web, str, str]]:
    folder = tmp_path_factory.mktemp("repositories")
    first, second = make_repository(folder, "app")
    with web(folder) as server:
        yield server, first, second


def test_a_private_repositorys_credential_is_held_for_the_clone_alone(
    box: SetupBox, remote: tuple[Web, str, str]
) -> None:
    server = remote[0]
    password = "ghs-of-nobody-at-all"
    right = "Basic " + base64.b64encode(f"x-access-token:{password}".encode()).decode()
    script = "env; git config --list; ls -l /proc/$PPID/fd"
    policy = SetupPolicy(Wishes(repo=server.repository("app"), subdir="src", scripts=(script,)))
    server.guard = lambda path, authorization: None if authorization == right else 401
    try:
        refused = box.run({}, policy)
        assert "is private and no credential for it is at hand" in refused.failure
        box.credential = {"username": "x-access-token", "password": password}
        assert box.run({}, policy).failure == ""
    finally:
        server.guard = lambda path, authorization: None
    assert (box.workdir / "app" / "src" / "tool.sh").exists()
    for path in [*box.workdir.rglob("*"), *box.workdir.parent.glob("state/*")]:
        assert not path.is_file() or password.encode() not in path.read_bytes(), path
    assert password not in str(box.said)
    assert "remote.origin.url" in box.tail and password not in box.tail and "memfd" not in box.tail
    assert "app2 is not there, or is private" in box.run({"repo": server.repository("app2")}).failure


@pytest.mark.parametrize("depth", [1, 0])
def test_a_repository_is_there_at_its_revision(box: SetupBox, remote: tuple[Web, str, str], depth: int) -> None:
    server, first, second = remote
    policy = SetupPolicy(callers=CALLER_KEYS, depth=depth)
    place = box.workdir / "app"
    for ref, version, commit in (("", "2", second), ("v1", "1", first), (first, "1", first), (first[:9], "1", first)):
        wanted = {"repo": server.repository("app"), **({"ref": ref} if ref else {})}
        setup = box.run(wanted, policy)
        assert setup.failure == "", ref
        assert (place / "version").read_text().strip() == version
        assert git("rev-parse", "HEAD", cwd=place) == commit
        assert (place / "link").is_symlink() and os.access(place / "src" / "tool.sh", os.X_OK)
        assert git("status", "--porcelain", cwd=place) == ""
        subprocess.run(["rm", "-rf", str(place)], check=True)
    assert STAGING not in box.files()


def test_only_the_folder_that_was_asked_for_is_checked_out(box: SetupBox, remote: tuple[Web, str, str]) -> None:
    box.run({"repo": remote[0].repository("app"), "ref": "main", "subdir": "src"})
    place = box.workdir / "app"
    assert (place / "src" / "tool.sh").exists() and not (place / "docs").exists()
    assert git("branch", "--show-current", cwd=place) == "main"


def test_what_is_done_is_not_done_again_and_what_is_new_leaves_the_agents_work(
    box: SetupBox, remote: tuple[Web, str, str]
) -> None:
    wanted = {"repo": remote[0].repository("app"), "ref": "v1"}
    box.run(wanted)
    (box.workdir / "app" / "version").write_text("the agent's")
    asked = len(remote[0].asked)
    assert box.run(wanted).failure == "" and box.said == [] and len(remote[0].asked) == asked
    assert (box.workdir / "app" / "version").read_text() == "the agent's"
    box.run({**wanted, "ref": "main"})
    assert (box.workdir / "app" / "version").read_text() == "2\n"
    (aside,) = box.workdir.glob("app.left-*")
    assert (aside / "version").read_text() == "the agent's"


def test_files_come_whole_to_their_places_and_with_the_right_hash(box: SetupBox, remote: tuple[Web, str, str]) -> None:
    data = os.urandom(3_000_000)
    remote[0].files["/in.csv"] = data
    remote[0].redirects["/moved"] = f"{remote[0].url}/in.csv"
    url = f"{remote[0].url}/moved?signature=SECRET"
    digest = hashlib.sha256(data).hexdigest()
    setup = box.run({"files": f"{url}#sha256={digest}&target=data/deep/in.csv"})
    assert setup.failure == "" and (box.workdir / "data" / "deep" / "in.csv").read_bytes() == data
    assert "SECRET" not in str(box.said)
    setup = box.run({"files": f"{url}#sha256={'0' * 64}&target=other"})
    assert f"its sha256 is {digest}" in setup.failure and "SECRET" not in setup.failure
    assert box.files() == {"data"}
    assert "HTTP 404" in box.run({"files": f"{remote[0].url}/none"}).failure
    remote[0].redirects["/away"] = "http://elsewhere.example/"
    assert "no https address" in box.run({"files": f"{remote[0].url}/away#target=x"}).failure
    (box.workdir / "out").symlink_to("/tmp")
    assert "leads out of the workspace" in box.run({"files": f"{url}#target=out/in.csv"}).failure
    refused = box.run(
        {"files": "https://h.example/f"}, SetupPolicy(callers=CALLER_KEYS, hosts=("api.example",))
    ).failure
    assert "'h.example'" in refused and "SANDBOX_ALLOW_OUT" in refused


def test_a_script_runs_beside_the_repository_and_its_first_failure_ends_it(
    box: SetupBox, remote: tuple[Web, str, str]
) -> None:
    base = Wishes(
        repo=remote[0].repository("app"), scripts=("pwd > where\necho $REGION > region",), env={"REGION": "eu"}
    )
    setup = box.run({}, SetupPolicy(base))
    assert setup.failure == "" and setup.variables == {"REGION": "eu"}
    assert (box.workdir / "app" / "where").read_text().strip() == str(box.workdir / "app")
    assert (box.workdir / "app" / "region").read_text() == "eu\n"
    setup = box.run({"setup.inline": "seq 1 100000; echo 'no such package' >&2; false; touch not-reached"})
    assert "set-up script failed (exit status 1)" in setup.failure
    assert setup.failure.endswith("no such package") and len(setup.failure) < 6000
    assert not (box.workdir / "not-reached").exists()
    python = box.run({"setup.inline": "#!/usr/bin/env python3\nopen('made', 'w').write('by python')"})
    assert python.failure == "" and (box.workdir / "made").read_text() == "by python"


def test_the_time_limit_ends_the_script_with_what_it_started(box: SetupBox) -> None:
    script = "echo waiting for the mirror; sleep 300 & echo $! > pid; wait"
    setup = box.run({"setup.inline": script}, SetupPolicy(callers=CALLER_KEYS, seconds=1.5))
    assert "longer than 1.5 s (SETUP_SECONDS)" in setup.failure and "waiting for the mirror" in setup.failure
    gone = Path(f"/proc/{(box.workdir / 'pid').read_text().strip()}")
    until(lambda: not gone.exists() or "Z" in (gone / "stat").read_text().split()[2])


def test_a_failure_is_tried_again_or_told_in_a_file(box: SetupBox) -> None:
    script = "test -e " + str(box.workdir.parent / "mended")
    assert box.run({"setup.inline": script}).failure
    assert "the last set-up failed: set-up script failed" in SetupMark.read(box.state).remark
    (box.workdir.parent / "mended").touch()
    assert box.run({"setup.inline": script}).failure == "" and SetupMark.read(box.state).remark == ""
    go_on = SetupPolicy(callers=CALLER_KEYS, go_on=True)
    assert box.run({"setup.inline": "echo why; exit 3"}, go_on).failure == ""
    told = (box.workdir / FAILED_FILE).read_text()
    assert "exit status 3" in told and told.endswith("why\n")
    assert SetupMark.read(box.state).state == GIVEN_UP
    assert box.run({"setup.inline": "echo why; exit 3"}, go_on).failure == "" and box.said == []


def test_malformed_metadata_destroys_nothing(box: SetupBox, remote: tuple[Web, str, str]) -> None:
    wanted = {"repo": remote[0].repository("app")}
    box.run(wanted)
    (box.workdir / "app" / "work").write_text("the agent's")
    assert "ref is no branch" in box.run({**wanted, "ref": "--x"}).failure
    assert box.run(wanted).failure == ""
    assert (box.workdir / "app" / "work").read_text() == "the agent's"


def test_one_that_was_interrupted_is_done_anew_in_full(box: SetupBox, remote: tuple[Web, str, str]) -> None:
    """Broken off in the middle of a file, behind a repository that was whole."""
    server = remote[0]
    server.files["/big"] = b"x" * 200_000
    wanted = {"repo": server.repository("app"), "files": f"{server.url}/big"}
    server.hold = threading.Event()

    async def broken_off() -> str:
        setup = box.setup()
        setup.begin(json.dumps({"metadata": wanted}).encode())
        while not (box.workdir / STAGING / "file-0").exists():
            await asyncio.sleep(0.02)
        setup.abort("the worker was asked to end")
        await setup.over()
        return setup.failure

    try:
        assert "broken off" in asyncio.run(broken_off())
    finally:
        server.hold.set()
        server.hold = None
    assert SetupMark.read(box.state).state == RUNNING and box.files() == {"app"}
    (box.workdir / "app" / "half").write_text("what a killed script left")
    assert box.run(wanted).failure == "" and box.said[0] == "begins anew"
    assert box.files() == {"app", "big"} and not (box.workdir / "app" / "half").exists()


def test_the_first_call_waits_for_the_set_up_and_a_killed_worker_leaves_no_half_of_it(
    tmp_path: Path, remote: tuple[Web, str, str]
) -> None:
    policy = SetupPolicy(
        Wishes(
            repo=remote[0].repository("app"),
            scripts=("echo $$ > pid; touch begun; sleep 2.5; touch ended",),
            env={"A": "1"},
        )
    )
    call = ("bash", {"command": "cat app/version; ls app/ended; echo $A"})
    with running(tool_calls=[call], ttl=4) as service, sandbox(tmp_path) as box:
        claim = make_claim(service.url, box.workdir, setup=policy.to_wire())
        service.ack()
        killed = box.start(claim)
        until((box.workdir / "app" / "begun").exists)
        orphan = Path(f"/proc/{(box.workdir / 'app' / 'pid').read_text().strip()}")
        killed.process.kill()
        killed.process.wait()
        until(lambda: not orphan.exists() or "Z" in (orphan / "stat").read_text().split()[2])
        assert not service.results
        service.requeue()
        service.ack()
        worker = box.start(claim)
        assert worker.exit() is Exit.SERVED, worker.report()
        assert service.results[0]["content"][0]["text"].split() == ["2", "app/ended", "1"]
        said = [notice.detail for notice in worker.notices if notice.word is Word.SETUP]
        assert said[0] == "begins anew" and said[-1].startswith("done in")


def test_a_set_up_that_fails_is_the_error_of_the_calls_that_wait(tmp_path: Path) -> None:
    policy = SetupPolicy(Wishes(scripts=("echo out of luck; exit 7",)))
    with running(tool_calls=[("bash", {"command": "touch ran"})] * 2) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir, setup=policy.to_wire()))
        assert worker.exit() is Exit.SETUP_FAILED, worker.report()
        for result in service.results:
            assert result["is_error"] and result["content"][0]["text"].endswith("out of luck")
        assert not (box.workdir / "ran").exists() and "failed (exit status 7)" in worker.report()
        assert worker.ending().startswith("SETUP_FAILED: set-up script failed (exit status 7)")
