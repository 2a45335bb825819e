"""Started programs: their table, their pipes, their output as lines."""

# pathlib would be imported anew at every start of a sandbox.
# ruff: noqa: PTH112, PTH113, PTH118

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import threading
import time

from .managed import BACKING_OFF, RUNNING, STOPPED, UNHEALTHY, Managed, probe
from .wire import CHUNK, DaemonRefusal

TYPE_CHECKING = False  # see wire.py
if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from typing import IO

    from .launcher import Launched, Launcher
    from .wire import Json

    Started = subprocess.Popen[bytes] | Launched

KEPT_OUTPUT_BYTES = 32 * 1024 * 1024
"""Captured output kept of each process; the oldest lines go first."""
LONGEST_LINE = 1024 * 1024
MANAGED_STOP_SECONDS = 10.0
"""From SIGTERM to SIGKILL."""


def now_ms() -> int:
    return time.time_ns() // 1_000_000


class StartedProcess:
    """One started program, all its restarts included, and what it has said so far. Guarded by the table's condition."""

    def __init__(self, handle: int, request: Json, popen: Started) -> None:
        self.handle = handle
        self.request = request
        self.managed = Managed(request["managed"]) if request.get("managed") else None
        self.timed_out = False
        self.lines: list[tuple[int, str, str]] = []
        self.dropped = 0
        self.kept_bytes = 0
        self.open_pipes = 0
        self.begin(popen)

    def begin(self, popen: Started) -> None:
        """A run begins."""
        self.popen = popen
        self.pid = popen.pid
        self.started_at = now_ms()
        self.ended_at: int | None = None
        self.exit_code: int | None = None
        self.signal: int | None = None

    @property
    def name(self) -> str | None:
        return self.managed.name if self.managed is not None else None

    @property
    def running(self) -> bool:
        return self.ended_at is None

    @property
    def over(self) -> bool:
        """It has ended, and no restart is to come."""
        return not self.running and (self.managed is None or self.managed.status == STOPPED)

    def ended(self, status: int) -> None:
        self.ended_at = now_ms()
        if os.WIFSIGNALED(status):
            self.signal = os.WTERMSIG(status)
        else:
            self.exit_code = os.WEXITSTATUS(status)
        if self.managed is not None:
            self.managed.ended(self.exit_code, self.signal, self.ended_at)

    def said(self, stream: str, line: str) -> None:
        self.lines.append((now_ms(), stream, line))
        self.kept_bytes += len(line) + 1
        while self.kept_bytes > KEPT_OUTPUT_BYTES and len(self.lines) > 1:
            self.kept_bytes -= len(self.lines.pop(0)[2]) + 1
            self.dropped += 1

    def info(self) -> Json:
        state = "running" if self.running else "signaled" if self.signal is not None else "exited"
        stdin = self.popen.stdin
        info: Json = {
            "handle": self.handle,
            "pid": self.pid,
            "status": state,
            "exit_code": self.exit_code,
            "signal": self.signal,
            "oom_killed": False,
            "stdin_writable": self.running and stdin is not None and not stdin.closed,
            "command": self.request["shown_command"],
            "args": self.request["shown_args"],
            "started_at": self.started_at,
            "ended_at": self.ended_at,
            "managed": None,
            "output_lines": self.dropped + len(self.lines),
        }
        if self.request.get("note"):
            info["note"] = self.request["note"]
        if self.managed is not None:
            info["managed"] = self.managed.info()
        return info


class Table:
    """Every process of the sandbox; one condition guards it and tells waiters of any change."""

    def __init__(self, launcher: Launcher | None = None) -> None:
        self.changed = threading.Condition()
        self._launcher = launcher
        self._all: dict[int, StartedProcess] = {}
        self._handles = 0
        self._held = False
        self._freezes = 0
        self._pump = _Pump(self)

    def start(self, request: Json) -> StartedProcess:
        name = request["managed"]["name"] if request.get("managed") else None
        with self.changed:
            self.changed.wait_for(lambda: not self._held)
            if name is not None:
                for process in list(self._all.values()):
                    if process.name != name or (request.get("shares_name") and not process.over):
                        continue
                    if not process.over:
                        raise DaemonRefusal(409, "CONFLICT", f"a process named '{name}' is running (pid {process.pid})")
                    del self._all[process.handle]
            popen = _spawn(request, self._launcher)
            self._handles += 1
            process = StartedProcess(self._handles, request, popen)
            self._all[process.handle] = process
            self._begun(process)
        return process

    def _begun(self, process: StartedProcess) -> None:
        """A run has begun: read its pipes, watch over it if that was asked for."""
        for stream, pipe in (("stdout", process.popen.stdout), ("stderr", process.popen.stderr)):
            if pipe is not None:
                process.open_pipes += 1
                self._pump.add(process, stream, pipe)
        managed = process.managed
        if managed is not None and managed.watched and not managed.kept:
            managed.kept = True
            threading.Thread(target=self._keep, args=(process, managed), daemon=True).start()
        self.changed.notify_all()

    def _keep(self, process: StartedProcess, managed: Managed) -> None:
        """Restart it when that is due and check its health, until it is stopped for good. Pauses while frozen."""
        freezes = self._freezes
        while True:
            with self.changed:
                if managed.status == STOPPED:
                    managed.kept = False
                    return
                if self._held:
                    self.changed.wait()
                    continue
                if freezes != self._freezes:
                    # What it owed before the freeze is forgiven: it could not answer while it stood still.
                    freezes, managed.failures = self._freezes, 0
                    managed.next_probe = max(managed.next_probe, time.monotonic() + 1.0)
                if managed.status == RUNNING and managed.check is None:
                    self.changed.wait()
                    continue
                due = managed.due if managed.status == BACKING_OFF else managed.next_probe
                left = due - time.monotonic()
                if left > 0 or (managed.status == RUNNING and not process.running):
                    self.changed.wait(max(left, 0.01))
                    continue
                if managed.status == BACKING_OFF:
                    self._restart(process, managed)
                    continue
                pid, check = process.pid, managed.check
            problem = probe(check) if check else None
            with self.changed:
                if pid != process.pid or not process.running or self._held or freezes != self._freezes:
                    continue  # a check during an end or a freeze says nothing
                managed.probed(problem)
                unbearable = managed.health == UNHEALTHY and managed.restart["policy"] != "never"
                managed.ailing = unbearable
            if unbearable:
                self.end(process)

    def _restart(self, process: StartedProcess, managed: Managed) -> None:
        managed.restart_count += 1
        try:
            popen = _spawn(process.request, self._launcher)
        except DaemonRefusal as refusal:
            managed.could_not_begin(str(refusal))
            self.changed.notify_all()
            return
        managed.begin()
        process.begin(popen)
        self._begun(process)

    def restart(self, process: StartedProcess) -> None:
        """End a managed process and start it again at once, though it be stopped. Raises DaemonRefusal."""
        managed = process.managed
        if managed is None:
            raise DaemonRefusal(400, "NOT_MANAGED", f"process {process.pid} is not managed")
        self.stop(process, managed)
        with self.changed:
            self.changed.wait_for(lambda: not self._held)
            if managed.status == STOPPED:  # nobody else was quicker
                self._restart(process, managed)

    def stop(self, process: StartedProcess, managed: Managed) -> None:
        """End a managed process for good."""
        with self.changed:
            managed.stopping = True
            if not process.running:
                managed.status, managed.next_restart_at = STOPPED, None
            self.changed.notify_all()
        self.end(process)

    def end(self, process: StartedProcess) -> None:
        """SIGTERM to its group, SIGKILL after MANAGED_STOP_SECONDS."""
        pid = process.pid
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if process.running:
                os.killpg(pid, signal.SIGTERM)
                self.wait_until(lambda: not process.running or process.pid != pid, MANAGED_STOP_SECONDS)
            os.killpg(pid, signal.SIGKILL)
        self.wait_until(lambda: not process.running or process.pid != pid, 2.0)

    def hold(self, held: bool) -> None:
        """While held nothing new starts: a start that was under way would escape a freeze."""
        with self.changed:
            self._held = held
            self._freezes += 1
            self.changed.notify_all()

    def find(self, key: str) -> StartedProcess:
        """By pid or by name; of several with one pid (it wrapped around) the newest."""
        with self.changed:
            for process in sorted(self._all.values(), key=lambda each: -each.handle):
                if process.name == key or str(process.pid) == key:
                    return process
        raise DaemonRefusal(404, "NOT_FOUND", f"no process '{key}'")

    def all(self) -> list[StartedProcess]:
        with self.changed:
            return list(self._all.values())

    def reap_for_ever(self) -> None:
        """Collect every child that ends: ours, and whatever was orphaned onto us."""
        while True:
            try:
                pid, status = os.wait()
            except ChildProcessError:
                with self.changed:
                    self.changed.wait(1.0)
                continue
            # `start` holds the condition from the fork to the entry in the table, so a child that ends at
            # once is in the table by now.
            with self.changed:
                for process in self._all.values():
                    if process.pid == pid and process.running:
                        process.ended(status)
                        process.popen.returncode = 0
                self.changed.notify_all()

    def wait_until(self, condition: Callable[[], bool], seconds: float | None) -> bool:
        with self.changed:
            return self.changed.wait_for(condition, seconds)


def _spawn(request: Json, launcher: Launcher | None) -> Started:
    command, env, cwd = request["command"], request["env"], request["working_dir"]
    if not os.path.isdir(cwd):
        raise DaemonRefusal(400, "INVALID_REQUEST", f"working directory '{cwd}' does not exist")
    executable = _which(command, env.get("PATH", ""), cwd)
    if executable is None:
        raise DaemonRefusal(400, "COMMAND_NOT_FOUND", f"executable '{request['shown_command']}' was not found")

    terminal: int | None = request.get("terminal")
    if launcher is not None and terminal is None and launcher.takes(request):
        return launcher.start(request)

    import subprocess  # not where a launcher starts whatever is started

    def mode(stream: str) -> int:
        if terminal is not None:
            return terminal
        return subprocess.DEVNULL if request.get(stream) == "discard" else subprocess.PIPE

    try:
        return subprocess.Popen(
            [command, *request["args"]],
            executable=executable,
            env=env,
            cwd=cwd,
            stdin=terminal or (subprocess.PIPE if request.get("stdin_mode") == "pipe" else subprocess.DEVNULL),
            stdout=mode("stdout_mode"),
            stderr=mode("stderr_mode"),
            bufsize=0,
            start_new_session=True,
            preexec_fn=_take_terminal if terminal is not None else None,  # noqa: PLW1509  # one call of the system
        )
    except (OSError, ValueError) as error:
        shown = request["shown_command"]
        raise DaemonRefusal(400, "SPAWN_FAILED", f"'{shown}' could not be started: {error}") from None


def _take_terminal() -> None:
    """The new process leads a session of its own: its standard input becomes its controlling terminal."""
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def _which(command: str, path: str, cwd: str) -> str | None:
    if "/" in command:
        found = os.path.join(cwd, command)
        return found if os.path.isfile(found) else None
    for directory in path.split(":"):
        found = os.path.join(directory or cwd, command)
        if os.path.isfile(found) and os.access(found, os.X_OK):
            return found
    return None


class _Pump:
    """One thread that reads every process's pipes into lines."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self._selector = selectors.DefaultSelector()
        self._new: list[tuple[StartedProcess, str, IO[bytes]]] = []
        self._wake_read, self._wake_write = os.pipe()
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        threading.Thread(target=self._run, daemon=True).start()

    def add(self, process: StartedProcess, stream: str, pipe: IO[bytes]) -> None:
        self._new.append((process, stream, pipe))
        os.write(self._wake_write, b"x")

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    os.read(self._wake_read, 1024)
                    while self._new:
                        process, stream, pipe = self._new.pop(0)
                        self._selector.register(pipe, selectors.EVENT_READ, (process, stream, pipe, bytearray()))
                else:
                    self._read(*key.data)

    def _read(self, process: StartedProcess, stream: str, pipe: IO[bytes], rest: bytearray) -> None:
        data = os.read(pipe.fileno(), CHUNK)
        rest += data
        with self._table.changed:
            while (end := rest.find(b"\n")) >= 0 or len(rest) > LONGEST_LINE or (rest and not data):
                cut = end if end >= 0 else min(len(rest), LONGEST_LINE)
                process.said(stream, rest[:cut].decode("utf-8", "replace"))
                del rest[: cut + 1 if end >= 0 else cut]
            if not data:
                self._selector.unregister(pipe)
                pipe.close()
                process.open_pipes -= 1
            self._table.changed.notify_all()
