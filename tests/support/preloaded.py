"""Python programs for tests, forked from a process that has the SDK already.

The import of the `anthropic` SDK takes a second of a core, and most commands need it. What is forked is a real process
with arguments, environment, folder, streams, terminal, signals and exit code of its own; our own code is imported anew,
from the folder it is started in. Where the start itself or /proc is tested an interpreter is started
(tests/infra/cli/test_command_line.py, tests/image/session/worker/test_secret_hiding.py).

This file is also the program of the process that forks. One process that runs tests has one of them.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import gc
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

SDK: Final = (
    *("anthropic", "anthropic.resources.beta", "anthropic.lib.environments", "anthropic.lib.tools.agent_toolset"),
    *("anyio._backends._asyncio", "httpx", "websockets.asyncio.client"),
)
"""What is imported before the fork: none of ours, and nothing that starts a thread, as `tensorlake` does; what that one
needs itself is here."""


class Preloaded(subprocess.Popen[Any]):
    """As `Popen([sys.executable, *command], ...)` for a command `-m MODULE ...` or `-I ARCHIVE ...`.

    terminal: its standard input is its controlling terminal.
    """

    def __init__(self, command: Sequence[str | bytes], *, terminal: bool = False, **options: Any) -> None:
        self._terminal = terminal
        self._status: int | None = None
        super().__init__([os.fsdecode(each) for each in command], **options)

    def _execute_child(self, args: Sequence[str], *rest: Any) -> None:
        """subprocess's own hook; its arguments are the same in Python 3.9 to 3.13."""
        cwd, env, p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite = *rest[4:6], *rest[9:15]
        start_new_session = rest[20]
        request = {
            "command": list(args),
            "environ": dict(os.environ if env is None else env),
            "cwd": os.fspath(cwd or Path.cwd()),
            "session": start_new_session or self._terminal,
            "terminal": self._terminal,
        }
        streams = [own if given == -1 else given for own, given in enumerate((p2cread, c2pwrite, errwrite))]
        self._watch, theirs = socket.socketpair()
        with theirs, os.fdopen(os.memfd_create("request"), "w+") as file:
            json.dump(request, file)
            file.flush()
            socket.send_fds(_forker(), [b"."], [*streams, theirs.fileno(), file.fileno()])
        self.pid = int(self._watch.recv(20))
        self._child_created = True
        self._close_pipe_fds(p2cread, p2cwrite, c2pread, c2pwrite, errread, errwrite)  # type: ignore[attr-defined]

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


@functools.cache
def _forker() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        process = subprocess.Popen([sys.executable, __file__], stdin=theirs.fileno(), start_new_session=True)
    atexit.register(process.wait)
    atexit.register(ours.close)  # first: the process ends with its requests
    return ours


def _fork_on() -> str:
    """Fork for each request; returns in a fork, the module to run."""
    requests = socket.socket(fileno=os.dup(0))
    running: dict[int, tuple[int, socket.socket]] = {}
    with selectors.DefaultSelector() as selector:
        selector.register(requests, selectors.EVENT_READ)
        while True:
            for key, _ in selector.select():
                if key.fd == requests.fileno():
                    data, descriptors, _, _ = socket.recv_fds(requests, 1, 5)
                    if not data:
                        os._exit(0)
                    pid = os.fork()
                    if pid == 0:
                        selector.close()
                        requests.close()
                        for descriptor, (_, watch) in running.items():
                            os.close(descriptor)
                            watch.close()
                        return _become(descriptors)
                    watch = socket.socket(fileno=descriptors.pop(3))
                    for descriptor in descriptors:
                        os.close(descriptor)
                    watch.send(b"%d" % pid)
                    descriptor = os.pidfd_open(pid)
                    running[descriptor] = (pid, watch)
                    selector.register(descriptor, selectors.EVENT_READ)
                else:
                    pid, watch = running.pop(key.fd)
                    selector.unregister(key.fd)
                    os.close(key.fd)
                    _, status = os.waitpid(pid, 0)
                    with contextlib.suppress(OSError):  # nobody waits for it any more
                        watch.send(b"%d" % status)
                    watch.close()


def _become(descriptors: Sequence[int]) -> str:
    """This process becomes what was asked for, up to its first instruction."""
    *streams, watch, file = descriptors
    with os.fdopen(file) as text:
        text.seek(0)
        request = json.load(text)
    if request["session"]:
        os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for descriptor in (*streams, watch):
        os.close(descriptor)
    if request["terminal"]:
        import fcntl
        import termios

        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    return _set_out(request["command"], request["environ"])


def _set_out(command: Sequence[str], environ: Mapping[str, str]) -> str:
    """What the interpreter does before a program's first line; the module to run."""
    os.environ.clear()
    os.environ.update(environ)
    form, program, *arguments = command
    if form == "-m":
        sys.argv = ["-m", *arguments]
        sys.path[0] = str(Path.cwd())
        return program
    sys.argv = [program, *arguments]
    sys.path[0] = program
    os.execve = _execute  # type: ignore[assignment]
    return "__main__"


def _execute(path: str, command: Sequence[str], environ: Mapping[str, str], execve: Any = os.execve) -> None:
    """An archive that executes itself again goes on in this process."""
    if path != sys.executable:
        execve(path, command, environ)
    for name in [each for each in sys.modules if each.partition(".")[0] == "image"]:
        del sys.modules[name]
    _run(_set_out(command[1:], environ))


def _run(module: str) -> None:
    runpy._run_module_as_main(module, alter_argv=module != "__main__")  # type: ignore[attr-defined]


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in SDK:
        __import__(name)
    gc.collect()
    gc.freeze()
    _run(_fork_on())  # what ends it ends this interpreter, in the way of interpreters
