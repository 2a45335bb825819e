"""A program in a pseudo-terminal of the sandbox, for as long as the platform stays connected.

Frames from the platform: `{"data": base64}` and `{"size": [columns, rows]}`; to it: `{"pid"}` first, `{"data"}`, and
`{"exit_code"}` last. When the platform hangs up, the program's group gets SIGHUP, as at the end of any terminal.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import os
import signal
import socket
import struct
import termios
import threading

from .wire import DaemonRefusal

TYPE_CHECKING = False  # see wire.py
if TYPE_CHECKING:
    from .processes import StartedProcess, Table
    from .wire import Connection, Json

READ_BYTES = 16 * 1024
LINGER_SECONDS = 2.0
"""The terminal closes before its program has been collected; its exit code comes so soon after."""


def attach(table: Table, connection: Connection, request: Json) -> None:
    """Runs until the program has ended or the platform has hung up. Raises DaemonRefusal."""
    try:
        ours, theirs = os.openpty()
    except OSError as error:
        raise DaemonRefusal(500, "PTY_FAILED", f"no terminal could be opened: {error}") from None
    try:
        _resize(ours, *request["size"])
        process = table.start({**request, "terminal": theirs})
    except BaseException:
        os.close(ours)
        raise
    finally:
        os.close(theirs)
    connection.frame({"pid": process.pid})
    reader = threading.Thread(target=_pass_output, args=(table, process, connection, ours), daemon=True)
    reader.start()
    with contextlib.suppress(EOFError, OSError):
        while True:
            asked = connection.request()
            if "size" in asked:
                _resize(ours, *asked["size"])
            else:
                _write(ours, base64.b64decode(asked["data"]))
    if process.running:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGHUP)
    reader.join()
    os.close(ours)


def _pass_output(table: Table, process: StartedProcess, connection: Connection, terminal: int) -> None:
    with contextlib.suppress(OSError):  # a terminal that everybody has left says EIO
        while data := os.read(terminal, READ_BYTES):
            connection.frame({"data": base64.b64encode(data).decode()})
    table.wait_until(lambda: not process.running, LINGER_SECONDS)
    with contextlib.suppress(OSError):
        code = process.exit_code if process.exit_code is not None else -(process.signal or signal.SIGHUP)
        connection.frame({"exit_code": code})
        connection.sock.shutdown(socket.SHUT_RD)  # whoever waits for input is let go


def _resize(terminal: int, columns: int, rows: int) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))


def _write(terminal: int, data: bytes) -> None:
    while data:
        data = data[os.write(terminal, data) :]
