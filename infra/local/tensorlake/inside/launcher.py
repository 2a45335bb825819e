"""Workers and servers that somebody outside starts in this sandbox, who has imported already what each would import.

The platform passes a connection to it (the knob `launcher`). One message asks for one start: it carries the standard
streams, a descriptor of this process, whose namespaces are the sandbox's, and a file with what is asked for as JSON
(a program, its arguments, environment and folder). The answer is the pid in this sandbox of a process that has become
our child. `tests/support/forker.py` is the other end.
"""

# ruff: noqa: PTH123

from __future__ import annotations

import contextlib
import json
import os
import socket

from .wire import DaemonRefusal

TYPE_CHECKING = False  # see wire.py
if TYPE_CHECKING:
    from typing import IO

    from .wire import Json

_SERVER = ["-P", "-m", "uvicorn"]  # its arguments begin so


class Launched:
    """As much of a Popen as the table looks at."""

    def __init__(self) -> None:
        self.pid = 0
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = None
        self.stdout: IO[bytes] | None = None
        self.stderr: IO[bytes] | None = None


class Launcher:
    """The connection `descriptor`. Not for two threads at once: the table's condition guards it, too."""

    def __init__(self, descriptor: int) -> None:
        self._socket = socket.socket(fileno=descriptor)
        os.set_inheritable(descriptor, False)

    def takes(self, request: Json) -> bool:
        """Whether a start is a worker's, which is an archive, or a server's."""
        args: list[str] = request["args"]
        worker = len(args) == 2 and args[0] == "-I" and args[1].endswith(".pyz")
        return bool(request["command"].endswith("/python")) and (worker or args[: len(_SERVER)] == _SERVER)

    def start(self, request: Json) -> Launched:
        """Raises DaemonRefusal."""
        started = Launched()
        asked = {
            "executable": request["command"],
            "command": request["args"],
            "environ": request["env"],
            "cwd": request["working_dir"],
            "session": True,
            "terminal": False,
        }
        with contextlib.ExitStack() as theirs:

            def stream(name: str, ours: int) -> int:
                """The process's end of a stream; `ours` is which end of its pipe we keep."""
                wanted = {"stdin_mode": "pipe"}.get(f"{name}_mode", "capture")
                if request.get(f"{name}_mode") != wanted:
                    end = os.open(os.devnull, os.O_RDWR)
                else:
                    ends = os.pipe()
                    setattr(started, name, open(ends[ours], "wb" if ours else "rb", 0))  # noqa: SIM115
                    end = ends[1 - ours]
                theirs.callback(os.close, end)
                return end

            streams = [stream("stdin", 1), stream("stdout", 0), stream("stderr", 0)]
            here = os.pidfd_open(os.getpid())
            theirs.callback(os.close, here)
            file = theirs.enter_context(open(os.memfd_create("request"), "w+b", 0))
            file.write(json.dumps(asked).encode())
            try:
                socket.send_fds(self._socket, [b"."], [*streams, here, file.fileno()])
                started.pid = int(self._socket.recv(20) or 0)
            except OSError:
                started.pid = 0
        if not started.pid:
            raise DaemonRefusal(
                500, "SPAWN_FAILED", f"'{request['shown_command']}' could not be started by the launcher"
            )
        return started
