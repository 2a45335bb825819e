"""An agent owns the directory with the worker's files: whatever it leaves there, the next worker starts."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from image.session.claim import SESSION_FILE, Exit, Word
from image.session.worker.claim_socket import SOCKET_NAME
from image.session.worker.lock import LOCK_NAME
from image.session.worker.state_directory import StateDirectory
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import SESSION, running


def _bind(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)
    try:
        socket.socket(socket.AF_UNIX).bind(path.name)
    finally:
        os.chdir(before)


def _folder(path: Path) -> None:
    path.mkdir()
    (path / "kept").write_text("somebody's")


REPLACEMENTS: dict[str, Callable[[Path], None]] = {
    "pipe": os.mkfifo,
    "link to nothing": lambda path: path.symlink_to("/nowhere/at/all"),
    "link to a device": lambda path: path.symlink_to("/dev/zero"),
    "link to itself": lambda path: path.symlink_to(path),
    "socket": _bind,
    "folder": _folder,
    "unreadable": lambda path: path.touch(0o000),
}


@pytest.mark.parametrize("name", [LOCK_NAME, SESSION_FILE, SOCKET_NAME])
@pytest.mark.parametrize("replaced", REPLACEMENTS.values(), ids=REPLACEMENTS.keys())
def test_a_worker_starts_whatever_an_agent_put_in_a_state_files_place(
    name: str, replaced: Callable[[Path], None], tmp_path: Path
) -> None:
    with running(tool_calls=[("glob", {"pattern": "*"})]) as service, sandbox(tmp_path) as box:
        box.state.mkdir()
        replaced(box.state / name)
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        assert (box.state / SESSION_FILE).read_text().strip() == SESSION
        kept = [path.read_text() for path in box.state.glob(f"{name}.left-*/kept")]
        assert kept == (["somebody's"] if replaced is _folder else [])


def test_a_file_that_a_link_points_to_is_never_written(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("as it was")
    with running() as service, sandbox(tmp_path) as box:
        box.state.mkdir()
        for name in (LOCK_NAME, SESSION_FILE, SOCKET_NAME):
            (box.state / name).symlink_to(outside)
        box.start(make_claim(service.url, box.workdir)).wait_for(Word.READY)
        assert outside.read_text() == "as it was"
        assert outside.stat().st_mode & 0o777 == 0o644


def test_a_state_directory_without_permissions_is_opened_again(tmp_path: Path) -> None:
    with running() as service, sandbox(tmp_path) as box:
        box.state.mkdir(mode=0o000)
        box.start(make_claim(service.url, box.workdir)).wait_for(Word.READY)


def test_an_endless_file_is_read_to_its_limit(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path)
    with (tmp_path / "big").open("wb") as file:
        file.truncate(1 << 40)
    assert state.read("big", 100) == bytes(100)
