"""Workers as real processes, started the way a dispatcher starts them."""

from __future__ import annotations

import base64
import contextlib
import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from image.session.archive import build_archive, digest
from image.session.claim import CLAIM_VARIABLE, STATE_VARIABLE, Claim, Exit, Notice, Word
from image.session.tools import OwnTools, ToolSources
from image.session.worker.tool_files import describe
from image.session.worker.tool_manifest import ToolEntry, ToolKind
from tests.image.session.worker.service import ENVIRONMENT, SESSION, WORK
from tests.support.preloaded import Preloaded

PATIENCE = 90.0
OPERATOR_FILES = Path(__file__).with_name("operator_files")


def secret_for(token: str) -> str:
    """A work item's secret, without padding as the service may send it."""
    payload = json.dumps({"sessions_token": token, "ingress": "unused"}).encode()
    return base64.urlsafe_b64encode(payload).decode().rstrip("=")


def make_claim(url: str, workdir: Path, *, token: str = "token-of-a-test", **changes: Any) -> Claim:
    usual: dict[str, Any] = {
        "work_id": WORK,
        "environment_id": ENVIRONMENT,
        "session_id": SESSION,
        "secret": secret_for(token),
        "base_url": url,
        "worker_digest": digest(build_archive()),
        "workdir": str(workdir),
        "max_idle": 0.1,
        "gate": 20.0,
        "session_key": "key-of-a-session",
        "lock_wait": 5.0,
    }
    return Claim(**{**usual, **changes})


def tools_in(folder: Path, kind: ToolKind) -> OwnTools:
    """As `collect`, without a process of their own: these are ours."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", sys.path[:])
        found = describe(folder)
    entries = tuple(
        ToolEntry(each["name"], each["description"], each["input_schema"], kind, each["file"]) for each in found
    )
    return OwnTools(ToolSources({kind: folder}), entries)


class Worker:
    """One worker process."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.notices: list[Notice] = []
        self.stdout: list[str] = []
        self.stderr: list[str] = []
        self._arrived: queue.SimpleQueue[Notice | None] = queue.SimpleQueue()
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    def wait_for(self, word: Word, within: float = PATIENCE) -> Notice:
        """The next notice with this word; others that come before it are passed over."""
        deadline = time.monotonic() + within
        while True:
            try:
                notice = self._arrived.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"no {word} within {within} s: {self.report()}") from None
            assert notice is not None, f"the worker ended without {word}: {self.report()}"
            if notice.word is word:
                return notice

    def exit(self, within: float = PATIENCE) -> Exit:
        self.process.wait(within)
        for reader in self._readers:
            reader.join(within)
        return Exit(self.process.returncode)

    def close(self) -> None:
        """A stream that a grandchild still holds is left to its reader: closing it under a read would break that."""
        self.process.wait()
        for reader, stream in zip(self._readers, (self.process.stdout, self.process.stderr), strict=True):
            reader.join(0.5)
            if not reader.is_alive() and stream is not None:
                stream.close()

    def words(self) -> list[Word]:
        return [notice.word for notice in self.notices]

    def ending(self) -> str:
        """The detail of the last word."""
        assert self.notices[-1].word is Word.ENDED
        return self.notices[-1].detail

    def report(self) -> str:
        return f"stdout={self.stdout} stderr={self.stderr[-20:]} status={self.process.poll()}"

    def _read_stdout(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.stdout.append(line.decode())
            notice = Notice.from_line(line.decode())
            if notice is not None:
                self.notices.append(notice)
                self._arrived.put(notice)
        self._arrived.put(None)

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.stderr.append(line.decode())


class WorkerSandbox:
    """A directory that stands for a sandbox; its processes end with it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.state = root / "state"
        self.workdir = root / "workspace"
        self.workdir.mkdir(parents=True)
        self.archive = root / "worker.pyz"
        self.archive.write_bytes(build_archive())
        self.workers: list[Worker] = []

    def start(self, claim: Claim | str, *, env: Mapping[str, str] | None = None, wrapper: Sequence[str] = ()) -> Worker:
        """`wrapper` starts an interpreter; without one the worker is forked (tests/support/preloaded.py)."""
        text = claim if isinstance(claim, str) else claim.to_json()
        options: dict[str, Any] = {
            "env": {CLAIM_VARIABLE: text, STATE_VARIABLE: str(self.state), **(env or {})},
            "cwd": "/",
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
        }
        command = ["-I", str(self.archive)]
        process: subprocess.Popen[bytes] = (
            subprocess.Popen([*wrapper, sys.executable, *command], **options)
            if wrapper
            else Preloaded(command, **options)
        )
        worker = Worker(process)
        self.workers.append(worker)
        return worker


@contextlib.contextmanager
def sandbox(root: Path) -> Iterator[WorkerSandbox]:
    made = WorkerSandbox(root / "sandbox")
    try:
        yield made
    finally:
        for worker in made.workers:
            if worker.process.poll() is None:
                worker.process.send_signal(signal.SIGKILL)
            worker.close()
