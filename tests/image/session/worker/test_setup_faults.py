"""What can go wrong while a session is made ready: it is told, nothing half is left, and the next one works."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from image.session.claim import Exit, Word
from image.session.setup import STAGING, FileSource, SetupPolicy, Wishes
from image.session.worker import setup_download
from image.session.worker.setup_mark import DONE, FAILED, SetupMark
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import running
from tests.image.session.worker.setup_box import SetupBox
from tests.support.waiting import until
from tests.support.web import Web, make_repository, web


@pytest.fixture(scope="module")
def remote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    folder = tmp_path_factory.mktemp("repositories")
    make_repository(folder, "app")
    with web(folder) as server:
        server.files["/data"] = b"x" * 100_000
        yield server


@pytest.fixture
def box(tmp_path: Path) -> SetupBox:
    return SetupBox(tmp_path)


def wanted(server: Web) -> dict[str, str]:
    return {"repo": server.repository("app"), "files": f"{server.url}/data"}


def test_a_network_that_goes_in_a_clone_or_a_download(
    box: SetupBox, remote: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_download, "_TRIES", 1)
    remote.cut = True
    try:
        failed = box.run(wanted(remote))
        assert "git fetch failed" in failed.failure, failed.failure
        assert box.files() == set() and SetupMark.read(box.state).state == FAILED
        failed = box.run({"files": f"{remote.url}/data"})
        assert "/data was not reached" in failed.failure and "SANDBOX_ALLOW_OUT" in failed.failure
    finally:
        remote.cut = False
    assert box.run(wanted(remote)).failure == "" and box.files() == {"app", "data"}


def test_a_download_that_is_cut_goes_on_from_there(
    box: SetupBox, remote: Web, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(setup_download, "_PAUSE", 0.0)
    body = remote.files["/large"] = os.urandom(100_000)
    wanted = {"files": f"{remote.url}/large#sha256={hashlib.sha256(body).hexdigest()}"}
    remote.cuts = 2
    assert box.run(wanted).failure == "" and (box.workdir / "large").read_bytes() == body
    assert re.findall(r"download_again url=\S+ bytes=(\d+)", caplog.text) == ["50000", "75000"]

    def changed(path: str, authorization: str) -> None:
        if not remote.cuts:
            remote.files["/large"] = bytes(reversed(body))

    monkeypatch.setattr(remote, "guard", changed)
    remote.cuts = 1
    failed = box.run({"files": f"{wanted['files']}&target=other"}).failure
    assert f"its sha256 is {hashlib.sha256(body[::-1]).hexdigest()}" in failed, "no half of one and half of another"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[tuple[SetupBox, Callable[[str], None]]]:
    """A box on a file system of 256 KiB, and how that gets another size."""
    disk = tmp_path / "disk"
    disk.mkdir()

    def sized(size: str, *how: str) -> None:
        command = ["mount", "-t", "tmpfs", "-o", ",".join([*how, f"size={size}"]), "none", str(disk)]
        subprocess.run(command, check=True, capture_output=True)

    try:
        sized("256k")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no file system of a size of its own can be mounted here")
    try:
        yield SetupBox(disk), lambda size: sized(size, "remount")
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)  # the state directory is open


@pytest.mark.parametrize("what", ["files", "repo"])
def test_a_disk_that_is_really_full(small_disk: tuple[SetupBox, Callable[[str], None]], remote: Web, what: str) -> None:
    box, sized = small_disk
    remote.files["/large"] = os.urandom(1 << 20)
    if what == "repo" and not (remote.repositories / "large.git").exists():
        make_repository(remote.repositories, "large", {"noise": os.urandom(1 << 20)})
    asked = {what: f"{remote.url}/large"}
    failed = box.run(asked)
    assert "No space left on device" in failed.failure, failed.failure
    assert SetupMark.read(box.state).state == FAILED and box.files() == set()
    sized("16m")
    assert box.run(asked).failure == "" and box.files() == {"large"}


def test_a_mark_that_finds_no_room_fails_the_set_up(
    box: SetupBox, remote: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(SetupMark, "write", full)
        failed = box.run(wanted(remote))
    assert "No space left on device" in failed.failure and STAGING not in box.files()
    assert box.run(wanted(remote)).failure == "" and SetupMark.read(box.state).state == DONE
    assert box.files() == {"app", "data"}, "nothing was set aside"


def test_two_workers_at_once_make_it_ready_once(tmp_path: Path, remote: Web) -> None:
    policy = SetupPolicy(Wishes(repo=remote.repository("app"), scripts=("echo ran >> ../runs; sleep 0.5",)))
    with running(tool_calls=[("bash", {"command": "cat runs"})], ttl=20) as service, sandbox(tmp_path) as place:
        service.ack()
        claim = make_claim(service.url, place.workdir, setup=policy.to_wire())
        workers = [place.start(claim) for _ in range(2)]
        assert Exit.SERVED in {worker.exit() for worker in workers}
        assert (place.workdir / "runs").read_text() == "ran\n"


@pytest.mark.parametrize("step", ["clone", "download"])
def test_a_worker_that_is_killed_at_a_step_leaves_it_to_the_next_one(tmp_path: Path, remote: Web, step: str) -> None:
    """In a script: tests/image/session/worker/test_session_setup.py."""
    wishes = Wishes(repo=remote.repository("app"), files=(FileSource(f"{remote.url}/data", "data"),))
    with running(tool_calls=[("bash", {"command": "ls"})], ttl=20) as service, sandbox(tmp_path) as place:
        claim = make_claim(service.url, place.workdir, setup=SetupPolicy(wishes).to_wire())
        service.ack()
        staged = place.workdir / STAGING
        held = threading.Event()
        remote.hold_packs, remote.hold = (held, None) if step == "clone" else (None, held)
        try:
            killed = place.start(claim)
            until((staged / ("file-0" if step == "download" else "repository/.git/objects")).exists)
            killed.process.kill()
            killed.process.wait()
        finally:
            held.set()
            remote.hold = remote.hold_packs = None
        service.requeue()
        service.ack()
        worker = place.start(claim)
        assert worker.exit() is Exit.SERVED, worker.report()
        assert service.results[0]["content"][0]["text"].split() == ["app", "data"]
        said = [notice.detail for notice in worker.notices if notice.word is Word.SETUP]
        assert said[0] == "begins anew" and not staged.exists()
