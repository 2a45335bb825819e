"""Python programs for tests, forked from a process that has the SDK already.

The import of the `anthropic` SDK takes a second of a core, and most commands need it. What is forked is a real process
with arguments, environment, folder, streams, terminal, signals and exit code of its own; our own code is imported anew,
from the folder it is started in. Where the start itself or /proc is tested an interpreter is started
(tests/infra/cli/test_command_line.py, tests/image/session/worker/test_secret_hiding.py).

Workers and servers in offline sandboxes are forked from it, too, where the sandbox service was given the knob
`launcher`: the fork enters the sandbox's namespaces and goes on as a child of its first process. A test that needs
interpreters there takes the knob away (the fixture `interpreters`).

A process that runs tests has one process that forks (forker.py), all of them forks of one; what a fork does is told in
forked_program.py.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final
from unittest import mock

from tests.support.forked_program import asked_of, is_ours

_ROOT: Final = Path(__file__).resolve().parents[2]
MOST_DESCRIPTORS: Final = 32
"""Of one request."""
_BACKLOG: Final = 4096
_FORKER: Final = threading.Lock()
_LOADED: Final = "TESTS_LOADED"
"""The variable with the socket of the process that has imported the SDK, for the processes that run tests."""
_POPEN: Final = subprocess.Popen


class Preloaded(subprocess.Popen[Any]):
    """As `Popen([sys.executable, *command], ...)` for `-m MODULE ...`, `-c CODE ...`, `-I -m MODULE ...`,
    `-I ARCHIVE ...` or `-I FILE.py ...`.

    terminal: its standard input is its controlling terminal.
    """

    def __init__(self, command: Sequence[str | bytes], *, terminal: bool = False, **options: Any) -> None:
        self._terminal = terminal
        self._status: int | None = None
        super().__init__([os.fsdecode(each) for each in command], **options)

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        """subprocess's own hook."""
        request, streams, pipes = asked_of(args, rest, self._terminal)
        self._watch, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # its pid, then its status
        with theirs, os.fdopen(os.memfd_create("request"), "w+") as file:
            json.dump(request, file)
            file.flush()
            socket.send_fds(_forker(), [b"."], [*streams, theirs.fileno(), file.fileno(), *request["kept"]])
        self.pid = int(self._watch.recv(20))
        self._child_created = True
        self._close_pipe_fds(*pipes)  # type: ignore[attr-defined]

    def _internal_poll(self, *_: object, **__: object) -> int | None:
        lock = self._waitpid_lock  # type: ignore[attr-defined]
        if self.returncode is None and lock.acquire(blocking=False):
            try:
                pid, status = self._try_wait(os.WNOHANG)
                if pid and self.returncode is None:
                    self._handle_exitstatus(status)  # type: ignore[attr-defined]
            finally:
                lock.release()
        return self.returncode

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        """As `waitpid`, which only a parent may call: the process that forked says the status."""
        if self._status is None:
            try:
                said = self._watch.recv(20, socket.MSG_DONTWAIT if wait_flags & os.WNOHANG else 0)
            except BlockingIOError:
                return 0, 0
            self._status = int(said or signal.SIGKILL)
            self._watch.close()
        return self.pid, self._status


def forked_run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *command], capture_output=True, text=True, ...)`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with Preloaded(command, text=True, **{**pipes, **options}) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def forked_service(*arguments: Any, **options: Any) -> Any:
    """As `start_service` (infra/local/process.py), which costs a third of the time of a core."""
    from infra.local.process import start_service

    return start_service(*arguments, **options, start=functools.partial(Preloaded, cwd=_ROOT))


class _Interpreters(Preloaded):
    """As Popen, but archives and modules of ours that `[sys.executable, "-I", ...]` would run are forked."""

    def __init__(self, args: Any, *rest: Any, **options: Any) -> None:
        self._forked = is_ours(args) and options.get("user") is None
        if self._forked:
            super().__init__(args[1:], *rest, **options)
        else:
            _POPEN.__init__(self, args, *rest, **options)

    def _execute_child(self, args: Any, *rest: Any) -> None:
        start: Any = Preloaded if self._forked else _POPEN
        start._execute_child(self, args, *rest)

    def _internal_poll(self, *rest: Any, **options: Any) -> int | None:
        look: Any = Preloaded if self._forked else _POPEN
        status: int | None = look._internal_poll(self, *rest, **options)
        return status

    def _try_wait(self, wait_flags: int) -> tuple[int, int]:
        look: Any = Preloaded if self._forked else _POPEN
        found: tuple[int, int] = look._try_wait(self, wait_flags)
        return found


@contextlib.contextmanager
def forked_interpreters() -> Iterator[None]:
    """Archives and modules of ours that this process starts with `[sys.executable, "-I", ...]` are forked."""
    with mock.patch.object(subprocess, "Popen", _Interpreters):
        yield


def _forker() -> socket.socket:
    """The one of this process, though two threads ask at once."""
    with _FORKER:
        return _forker_of_this_process()


@functools.cache
def _forker_of_this_process() -> socket.socket:
    if _LOADED not in os.environ:
        whole_process = contextlib.ExitStack()
        whole_process.enter_context(loaded_once())
        atexit.register(whole_process.close)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with (
        theirs,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asked,
    ):
        listener.bind(_place())
        listener.listen(_BACKLOG)
        asked.connect(os.environ[_LOADED])
        socket.send_fds(asked, [b"."], [theirs.fileno(), listener.fileno()])
    atexit.register(_end, ours)
    return ours


def _end(forker: socket.socket) -> None:
    """It ends with its requests, and is waited for."""
    forker.shutdown(socket.SHUT_WR)
    while forker.recv(1):
        pass
    forker.close()


@contextlib.contextmanager
def loaded_once() -> Iterator[None]:
    """This process and those that it starts have forks of one process to fork from: it has imported the SDK for all."""
    with (
        tempfile.TemporaryDirectory(prefix="loaded-") as directory,
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener,
    ):
        os.environ[_LOADED] = f"{directory}/socket"
        listener.bind(os.environ[_LOADED])
        listener.listen(_BACKLOG)
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.forker", str(listener.fileno())],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            pass_fds=[listener.fileno()],
            start_new_session=True,
        )
        try:
            yield
        finally:
            del os.environ[_LOADED]
            process.communicate()


@functools.cache
def _ready() -> None:
    _forker().recv(1)


@functools.cache
def _place() -> str:
    directory = tempfile.mkdtemp(prefix="launcher-")
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    return f"{directory}/socket"


def share_authorities() -> None:
    """HTTP clients of this process and its forks trust one object by default: to read the system's authorities
    takes 15 ms of a core, and a test makes dozens of clients."""
    import httpcore2

    read = httpcore2.default_ssl_context

    @functools.cache
    def made(file: str | None, directory: str | None, trust: bool) -> ssl.SSLContext:
        return read(_trust_env=trust)

    def shared(*, _trust_env: bool = True) -> ssl.SSLContext:
        return made(os.environ.get("SSL_CERT_FILE"), os.environ.get("SSL_CERT_DIR"), _trust_env)

    httpcore2.default_ssl_context = shared


def launcher() -> str:
    """The knob `launcher` of offline sandbox services that end with this process or before
    (infra/local/tensorlake/settings.py). It forks from now on: who asks a sandbox for a worker waits for no import."""
    _ready()
    return _place()
