"""What a session still does in a sandbox that was started from a prepared one: only what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from image.session.claim import Exit, Word
from image.session.setup import CALLER_KEYS, FileSource, SetupPolicy, Wishes
from image.session.worker.setup_mark import DONE, PREPARED, RUNNING, SetupMark
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.setup_box import SetupBox
from tests.support.web import Web, git, make_repository, web

SCRIPT = "echo ran >> ../runs"


@pytest.fixture
def box(tmp_path: Path) -> SetupBox:
    return SetupBox(tmp_path / "box")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Web]:
    folder = tmp_path / "repositories"
    make_repository(folder, "app")
    make_repository(folder, "other")
    with web(folder) as served:
        served.files["/fixed"] = b"fixed"
        served.files["/moving"] = b"one"
        yield served


def policy(server: Web, **more: object) -> SetupPolicy:
    fixed = FileSource(f"{server.url}/fixed", "fixed", hashlib.sha256(b"fixed").hexdigest())
    base = Wishes(repo=server.repository("app"), files=(fixed,), scripts=(SCRIPT,))
    return SetupPolicy(replace(base, **more), callers=(*CALLER_KEYS, "env.*"))  # type: ignore[arg-type]


def runs(box: SetupBox) -> int:
    return (box.workdir / "runs").read_text().count("ran")


def push(server: Web, name: str, text: str) -> str:
    work = server.repositories / "app-work"
    (work / name).write_text(text)
    git("add", ".", cwd=work)
    git("commit", "--quiet", "--message=more", cwd=work)
    git("push", "--quiet", str(server.repositories / "app.git"), "main", cwd=work)
    return git("rev-parse", "HEAD", cwd=work)


def test_a_session_that_asks_for_no_more_fetches_nothing(box: SetupBox, server: Web) -> None:
    assert box.run({}, policy(server), prepares=True).failure == ""
    assert SetupMark.read(box.state).state == PREPARED
    asked = len(server.asked)
    assert box.run({}, policy(server)).failure == ""
    assert box.said[0] == "goes on from a prepared start" and "is at its revision already" in box.said[1]
    assert all("info/refs" in line or "git-upload-pack" in line for line in server.asked[asked:])
    assert len(server.asked) - asked <= 2, "what the branch is at now, and no more"
    assert runs(box) == 1 and SetupMark.read(box.state).state == DONE
    assert box.run({}, policy(server)).failure == "" and box.said == []


def test_a_branch_that_has_moved_is_brought_up_and_the_scripts_run_again(box: SetupBox, server: Web) -> None:
    box.run({}, policy(server), prepares=True)
    (box.workdir / "app" / "built").write_text("by the script, ignored by git")
    commit = push(server, "version", "3\n")
    assert box.run({}, policy(server)).failure == ""
    place = box.workdir / "app"
    assert git("rev-parse", "HEAD", cwd=place) == commit and (place / "version").read_text() == "3\n"
    assert (place / "built").exists() and runs(box) == 2


def test_a_sessions_own_revision_file_and_script_come_on_top(box: SetupBox, server: Web) -> None:
    box.run({}, policy(server), prepares=True)
    wanted = {"ref": "v1", "files": f"{server.url}/moving", "setup.inline": "cat ../moving version > ../seen"}
    assert box.run(wanted, policy(server)).failure == ""
    assert (box.workdir / "seen").read_text() == "one1\n" and runs(box) == 2
    assert not any("/fixed" in line for line in server.asked[len(server.asked) - 3 :])


def test_a_file_without_a_hash_is_asked_for_again_and_counts_only_where_it_differs(box: SetupBox, server: Web) -> None:
    moving = policy(
        server, repo="", files=(FileSource(f"{server.url}/moving", "moving"),), scripts=("echo ran >> runs",)
    )
    box.run({}, moving, prepares=True)
    assert box.run({}, moving).failure == "" and runs(box) == 1
    SetupMark.read(box.state)._replace(state=PREPARED).write(box.state)
    server.files["/moving"] = b"two"
    assert box.run({}, moving).failure == "" and runs(box) == 2
    assert (box.workdir / "moving").read_bytes() == b"two"


@pytest.mark.parametrize("why", ["another repository", "changed files", "a file in the way"])
def test_what_does_not_fit_is_made_anew(box: SetupBox, server: Web, why: str) -> None:
    script = SCRIPT if why != "changed files" else f"{SCRIPT}; echo patched >> version"
    box.run({}, policy(server, scripts=(script,)), prepares=True)
    if why == "a file in the way":
        (box.workdir / "app" / "fresh").write_text("made by the set-up")
    wanted = {"repo": server.repository("other")} if why == "another repository" else {}
    push(server, "fresh", "4\n")
    assert box.run(wanted, policy(server, scripts=(script,))).failure == ""
    assert any("does not fit" in line for line in box.said), box.said
    if wanted:
        assert box.files() == {"other", "fixed", "runs"}
    else:
        assert (box.workdir / "app" / "fresh").read_text() == "4\n"
    assert not list(box.workdir.glob("*.left-*")), "nobody's work lay there"


def test_a_changed_recipe_and_an_interrupted_start_are_done_in_full(box: SetupBox, server: Web) -> None:
    box.run({}, policy(server), prepares=True)
    assert box.run({}, policy(server, scripts=("touch ../newer",))).failure == ""
    assert box.said[0] == "begins" and (box.workdir / "newer").exists()
    SetupMark.read(box.state)._replace(state=RUNNING).write(box.state)
    assert box.run({}, policy(server)).failure == "" and box.said[0] == "begins anew"


def test_a_preparing_process_needs_no_service_and_leaves_no_session(tmp_path: Path, server: Web) -> None:
    with sandbox(tmp_path / "box") as box:
        claim = make_claim("http://127.0.0.1:9", box.workdir, setup=policy(server).to_wire(), prepares=True)
        worker = box.start(claim)
        assert worker.exit() is Exit.SERVED, worker.report()
        assert Word.READY not in worker.words() and Word.SETUP in worker.words()
        assert not list(box.workdir.parent.rglob("session")), "no session is written down"
        broken = policy(server, scripts=("echo no such package; exit 3",))
        failed = box.start(claim._replace(setup=broken.to_wire()))
        assert failed.exit() is Exit.FAILED
        assert "exit status 3" in failed.ending() and failed.ending().endswith("no such package")
