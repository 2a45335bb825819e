"""What can go wrong while a session is made ready: it is told, nothing half is left, and the next one works."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from image.session.claim import Exit, Word
from image.session.setup import STAGING, FileSource, SetupPolicy, Wishes
from image.session.worker import setup_sources
from image.session.worker.setup_mark import DONE, FAILED, Mark
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import running
from tests.image.session.worker.setup_box import Box
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
def box(tmp_path: Path) -> Box:
    return Box(tmp_path)


def wanted(server: Web) -> dict[str, str]:
    return {"repo": server.repository("app"), "files": f"{server.url}/data"}


def test_a_network_that_goes_in_a_clone_or_a_download(box: Box, remote: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(setup_sources, "_TRIES", 1)
    remote.cut = True
    try:
        failed = box.run(wanted(remote))
        assert "git fetch failed" in failed.failure, failed.failure
        assert box.files() == set() and Mark.read(box.state).state == FAILED
        failed = box.run({"files": f"{remote.url}/data"})
        assert "/data was not reached" in failed.failure and "SANDBOX_ALLOW_OUT" in failed.failure
    finally:
        remote.cut = False
    assert box.run(wanted(remote)).failure == "" and box.files() == {"app", "data"}


@pytest.mark.parametrize("where", ["a download", "the mark"])
def test_a_disk_that_is_full(box: Box, remote: Web, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if where == "a download":
            patch.setattr("image.session.worker.setup_sources.os.fsync", full)
        else:
            patch.setattr(Mark, "write", full)
        failed = box.run(wanted(remote))
    assert "No space left on device" in failed.failure and STAGING not in box.files()
    assert box.run(wanted(remote)).failure == "" and Mark.read(box.state).state == DONE
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
