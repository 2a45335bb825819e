"""The daemon inside one sandbox: starts, watches, freezes and ends its processes, and touches its files.

Runs with `python -I -S`, on the standard library alone: as process 1 of the sandbox's own pid namespace, or, at
the level without isolation, as an ordinary process that adopts whatever its children leave behind.
How it is talked to: wire.py.
"""

# pathlib would be imported anew at every start of a sandbox.
# ruff: noqa: PTH108, PTH112, PTH114, PTH123

from __future__ import annotations

import _socket
import contextlib
import errno
import os
import signal
import sys
import threading
import time

from .files import file_refusal, list_entries, open_regular, write_atomically
from .processes import StartedProcess, Table
from .signals import Freezer, end_everything, kill_tree, living, port_owner
from .wire import CHUNK, Connection, DaemonRefusal, received

TYPE_CHECKING = False  # see wire.py
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .launcher import Launcher
    from .wire import Json

DRAIN_GRACE_SECONDS = 0.2
"""How long a finished process's pipes may be held open by what it left behind before the stream ends."""
KEEP_ALIVE_SECONDS = 1.0


class SandboxSupervisor:
    def __init__(self, launcher: int | None) -> None:
        self.table = Table(_launcher(launcher) if launcher is not None else None)
        self.freezer = Freezer()
        self.started = time.monotonic()

    def handle(self, connection: Connection) -> None:
        request = connection.request()
        operation = getattr(self, "op_" + request["op"])
        path = request.get("path", "")
        try:
            operation(connection, request)
        except DaemonRefusal as refusal:
            connection.frame(refusal.answer)
        except (BrokenPipeError, ConnectionResetError):
            pass  # The platform's client went away; a started process goes on.
        except OSError as error:
            connection.frame(file_refusal(error, path).answer)

    def op_hello(self, connection: Connection, _: Json) -> None:
        processes = self.table.all()
        connection.frame(
            {
                "pid": os.getpid(),
                "uid": os.getuid(),
                "uptime_secs": int(time.monotonic() - self.started),
                "running_processes": sum(process.running for process in processes),
                "total_processes": len(processes),
            }
        )

    def op_start(self, connection: Connection, request: Json) -> None:
        connection.frame(self.table.start(request).info())

    def op_run(self, connection: Connection, request: Json) -> None:
        process = self.table.start(request)
        timeout = request.get("timeout")
        if timeout is not None:
            threading.Thread(target=self._end_in_time, args=(process, timeout), daemon=True).start()
        connection.frame({"handle": process.handle, "pid": process.pid, "started_at": process.started_at})
        self._lines(connection, process, ("stdout", "stderr"))
        ending: Json = {"exit_code": process.exit_code, "reason": "exited"}
        if process.signal is not None:
            ending = {"signal": process.signal, "reason": "signaled", "oom_killed": False}
        if process.timed_out:
            ending = {"signal": signal.SIGKILL, "reason": "timed_out", "oom_killed": False}
        connection.frame(ending)

    def _end_in_time(self, process: StartedProcess, seconds: float) -> None:
        if not self.table.wait_until(lambda: not process.running, seconds):
            process.timed_out = True
            kill_tree(process)

    def op_follow(self, connection: Connection, request: Json) -> None:
        process = self.table.find(request["process"])
        connection.frame({"pid": process.pid})
        self._lines(connection, process, request["streams"])
        connection.frame({"eof": True})

    def _lines(self, connection: Connection, process: StartedProcess, streams: tuple[str, ...]) -> None:
        """Frames for every line so far and to come, until the process has ended and its pipes are read."""
        seen = 0
        deadline: float | None = None
        while True:
            with self.table.changed:
                fresh = process.lines[max(seen - process.dropped, 0) :]
                seen = process.dropped + len(process.lines)
                ended = process.over
                over = ended and not process.open_pipes
            for at, stream, line in fresh:
                if stream in streams:
                    connection.frame({"line": line, "timestamp": at, "stream": stream})
            if over or (deadline is not None and time.monotonic() >= deadline):
                return
            if ended and deadline is None:
                deadline = time.monotonic() + DRAIN_GRACE_SECONDS

            def news(seen: int = seen, ended: bool = ended) -> bool:
                more = process.dropped + len(process.lines) > seen
                return more or (not process.open_pipes if ended else process.over)

            if not self.table.wait_until(news, DRAIN_GRACE_SECONDS if ended else KEEP_ALIVE_SECONDS):
                if connection.gone():
                    raise BrokenPipeError
                connection.frame({"keep_alive": True})

    def op_list(self, connection: Connection, _: Json) -> None:
        connection.frame({"processes": [process.info() for process in self.table.all()]})

    def op_get(self, connection: Connection, request: Json) -> None:
        connection.frame(self.table.find(request["process"]).info())

    def op_output(self, connection: Connection, request: Json) -> None:
        process = self.table.find(request["process"])
        with self.table.changed:
            lines = [line for _, stream, line in process.lines if stream in request["streams"]]
        connection.frame({"pid": process.pid, "lines": lines, "line_count": len(lines)})

    def op_signal(self, connection: Connection, request: Json) -> None:
        process = self.table.find(request["process"])
        try:
            if not process.running:
                raise ProcessLookupError  # what it left in its group is not asked: it may be gone in a moment
            os.killpg(process.pid, request["signal"])
        except ProcessLookupError:
            raise DaemonRefusal(400, "PROCESS_NOT_RUNNING", f"process {process.pid} is not running") from None
        except (OSError, OverflowError) as error:
            raise DaemonRefusal(400, "INVALID_SIGNAL", f"signal {request['signal']}: {error}") from None
        connection.frame({"success": True})

    def op_kill(self, connection: Connection, request: Json) -> None:
        process = self.table.find(request["process"])
        if process.managed is not None:
            self.table.stop(process, process.managed)
            connection.frame({})
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        self.table.wait_until(lambda: not process.running, 2.0)
        connection.frame({})

    def op_restart(self, connection: Connection, request: Json) -> None:
        process = self.table.find(request["process"])
        self.table.restart(process)
        connection.frame(process.info())

    def op_stdin(self, connection: Connection, request: Json) -> None:
        process = self.table.find(request["process"])
        pipe = process.popen.stdin
        if not process.running or pipe is None or pipe.closed:
            raise DaemonRefusal(400, "STDIN_NOT_WRITABLE", f"process {process.pid} takes no input")
        for chunk in connection.body():
            rest = memoryview(chunk)
            while rest:
                try:
                    rest = rest[pipe.write(rest) :]
                except (BrokenPipeError, ValueError):
                    text = f"process {process.pid} has closed its input"
                    raise DaemonRefusal(400, "STDIN_NOT_WRITABLE", text) from None
        connection.frame({})

    def op_stdin_close(self, connection: Connection, request: Json) -> None:
        pipe = self.table.find(request["process"]).popen.stdin
        if pipe is None:
            raise DaemonRefusal(400, "STDIN_NOT_WRITABLE", f"process {request['process']} takes no input")
        with contextlib.suppress(OSError):
            pipe.close()
        connection.frame({})

    def op_read(self, connection: Connection, request: Json) -> None:
        fd, facts = open_regular(request["path"])
        with open(fd, "rb", buffering=0) as file:
            connection.frame({"size": facts.st_size})
            while chunk := file.read(CHUNK):
                connection.sock.sendall(chunk)

    def op_write(self, connection: Connection, request: Json) -> None:
        def whole() -> Iterator[bytes]:
            # The last byte says that the platform sent all of it: a cut upload must not replace a file.
            held = b""
            for chunk in connection.body():
                data = held + chunk
                held = data[-1:]
                if len(data) > 1:
                    yield data[:-1]
            if held != b"\x00":
                raise DaemonRefusal(400, "INCOMPLETE_BODY", f"the upload of '{request['path']}' was cut short")

        connection.frame({"written": write_atomically(request["path"], whole())})

    def op_delete(self, connection: Connection, request: Json) -> None:
        path = request["path"]
        if os.path.isdir(path) and not os.path.islink(path):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        os.unlink(path)
        connection.frame({})

    def op_entries(self, connection: Connection, request: Json) -> None:
        connection.frame({"entries": list_entries(request["path"])})

    def op_freeze(self, connection: Connection, _: Json) -> None:
        self.table.hold(True)
        connection.frame({"frozen": self.freezer.freeze()})

    def op_thaw(self, connection: Connection, _: Json) -> None:
        thawed = self.freezer.thaw()
        self.table.hold(False)
        connection.frame({"thawed": thawed})

    def op_living(self, connection: Connection, _: Json) -> None:
        connection.frame({"living": living()})

    def op_terminal(self, connection: Connection, request: Json) -> None:
        from . import terminal  # rarely asked for, and every start of a sandbox would pay for it

        terminal.attach(self.table, connection, request)

    def op_listening(self, connection: Connection, request: Json) -> None:
        connection.frame({"owner": port_owner(request["port"])})

    def op_end(self, connection: Connection, _: Json) -> None:
        self.table.hold(True)  # what is ended now must not be restarted
        end_everything()
        connection.frame({})
        os._exit(0)


def _launcher(descriptor: int) -> Launcher:
    from .launcher import Launcher

    return Launcher(descriptor)


def _prctl(option: int, value: int) -> None:
    import ctypes

    ctypes.CDLL(None).prctl(option, value, 0, 0, 0)


def harden() -> None:
    """Nobody in the sandbox may read this process's memory, and orphans come to it (Linux only)."""
    if sys.platform.startswith("linux"):
        set_dumpable, set_child_subreaper = 4, 36
        _prctl(set_dumpable, 0)
        _prctl(set_child_subreaper, 1)


def _serve_one(supervisor: SandboxSupervisor, descriptor: int) -> None:
    with contextlib.closing(Connection(descriptor)) as connection:
        with contextlib.suppress(EOFError, BrokenPipeError, ConnectionResetError):
            supervisor.handle(connection)
        # A socket closed with bytes unread takes the answer with it, so the rest of a refused body is read.
        with contextlib.suppress(OSError):
            connection.sock.shutdown(_socket.SHUT_WR)
            while connection.sock.recv(CHUNK):
                pass


def main(launcher: int | None = None) -> None:
    harden()
    os.umask(0o022)
    # Descriptor 0 must not be inherited by what is started here.
    control = _socket.socket(fileno=os.dup(0))
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (0, 1):
        os.dup2(nothing, fd)
    # Handlers, not SIG_IGN: an ignored signal would stay ignored in every program started here.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)
    supervisor = SandboxSupervisor(launcher)
    threading.Thread(target=supervisor.table.reap_for_ever, daemon=True).start()
    while True:
        descriptor = received(control)
        if descriptor is None:
            supervisor.table.hold(True)
            end_everything()
            os._exit(0)
        threading.Thread(target=_serve_one, args=(supervisor, descriptor), daemon=True).start()
