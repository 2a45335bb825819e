"""How an offline service lives: one process, one port, one ready line; and how another program starts it.

`serve` is the inner half (called by a service's `__main__`), `start_service` the outer one.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Final, Self

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from infra.local.faults import CONNECTION_EXTENSION

BACKLOG = 4096
EXIT_PORT_IN_USE = 2
_HIGHEST_PORT: Final = 65_535
_ROOT = Path(__file__).resolve().parents[2]


class CannotListen(Exception):
    """The operating system does not let us listen there. The text says why and what to do."""


class DroppableProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol that also hands each request its connection, for faults to close."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION_EXTENSION: {"connection": _TransportConnection(self)}}


class _TransportConnection:
    def __init__(self, protocol: HttpToolsProtocol) -> None:
        self._protocol = protocol

    def drop(self) -> None:
        self._protocol.transport.abort()

    def close(self) -> None:
        self._protocol.transport.close()


class _Server(uvicorn.Server):
    """Announces itself when it listens, and lets the app end its streams before it waits for them."""

    def __init__(self, config: uvicorn.Config, on_ready: Callable[[], None], on_exit: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_ready = on_ready
        self._on_exit = on_exit

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """As uvicorn does, but a signal that was obeyed is not raised again: the exit code is 0."""
        ends = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.signal(number, self.handle_exit) for number in ends}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._on_exit()
        await super().shutdown(sockets)


def serve(
    app: ASGIApp,
    *,
    port: int,
    host: str = "127.0.0.1",
    admin_token: str,
    die_with_parent: bool = False,
    ready: Callable[[str], Mapping[str, Any]] | None = None,
    on_exit: Callable[[], object] | None = None,
    websockets: bool = False,
    date_header: bool = True,
) -> int:
    """Serve until SIGTERM, SIGINT or (`die_with_parent`) the end of standard input; returns the exit code.

    Port 0 takes a free one. When the socket listens and the app has started, one JSON line goes to standard
    output: `url`, `admin_token` and what `ready(url)` adds. `on_exit` runs in the event loop as the shutdown
    begins: streams that would not end by themselves are to be ended there. `date_header`: answers get a `Date`. A taken
    port: one line on standard error, exit code 2.
    """
    try:
        listener = listen(host, port)
    except CannotListen as error:
        print(error, file=sys.stderr)
        return EXIT_PORT_IN_USE
    url = f"http://{host}:{listener.getsockname()[1]}"

    def announce() -> None:
        line = {"url": url, "admin_token": admin_token, **(ready(url) if ready else {})}
        print(json.dumps(line), flush=True)

    config = uvicorn.Config(
        app,
        http=DroppableProtocol,
        ws="websockets-sansio" if websockets else "none",
        loop="asyncio",
        backlog=BACKLOG,
        log_level="warning",
        access_log=False,
        date_header=date_header,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
    )
    server = _Server(config, announce, on_exit or (lambda: None))
    if die_with_parent:
        threading.Thread(target=_end_with_stdin, args=(server,), daemon=True).start()
    with listener, contextlib.suppress(KeyboardInterrupt):
        server.run(sockets=[listener])
    return 0 if server.started else 1


def listen(host: str, port: int) -> socket.socket:
    """A bound and listening socket for a name or an address of either family. Raises CannotListen, which says why."""
    if not 0 <= port <= _HIGHEST_PORT:
        raise CannotListen(f"there is no port {port}: choose one from 1 to {_HIGHEST_PORT}, or 0 for a free one")
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise CannotListen(f"{host!r} is no address and no known host name: {_words(error)}") from None
    # The protocol is named because asyncio switches Nagle off only where it is: else each answer waits 40 ms.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise CannotListen(_why_not(error, host, port)) from error
    listener.setblocking(False)
    return listener


def _why_not(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return f"port {port} is in use; stop what listens there or choose another"
        case errno.EADDRNOTAVAIL | errno.EAFNOSUPPORT:
            return f"{host} is no address of this machine; ::1 and 127.0.0.1 are it alone, :: and 0.0.0.0 all of it"
        case errno.EACCES:
            return f"port {port} may not be used by you: ports below 1024 are root's; choose a higher one"
        case _:
            return f"{host}, port {port}: {_words(error)}"


def _words(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or type(error).__name__


def _end_with_stdin(server: uvicorn.Server) -> None:
    # os.read, not sys.stdin: a thread blocked in a buffered reader makes the interpreter abort at its end.
    with contextlib.suppress(OSError):
        while os.read(0, 4096):
            pass
    server.should_exit = True


class ServiceStartError(Exception):
    """A service did not come up; the text carries the end of its standard error."""


@dataclass
class RunningService:
    """A service started by this program. Leave the `with` block, or call `stop`, to end it."""

    url: str
    admin_token: str
    pid: int
    ready: Mapping[str, Any]
    _process: subprocess.Popen[bytes] = field(repr=False)
    _errors: deque[str] = field(repr=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def returncode(self) -> int | None:
        """None while it runs."""
        return self._process.poll()

    def stderr_tail(self) -> str:
        return "".join(self._errors)

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, then SIGKILL after `timeout` seconds; idempotent. Returns the exit code."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            code = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._process.stdin is not None:
            self._process.stdin.close()
        return code

    def kill(self) -> int:
        """SIGKILL: what a crash looks like from outside."""
        self._process.kill()
        return self.stop()


def _interpreter(arguments: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, *arguments], **options)


def start_service(
    module: str,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    *,
    timeout: float = 60.0,
    die_with_parent: bool = True,
    start: Callable[..., subprocess.Popen[bytes]] = _interpreter,
) -> RunningService:
    """Run `python -m module --die-with-parent args...` and wait up to `timeout` seconds for its ready line.

    `env` is added to this process's environment. The child is in a session of its own, so that ctrl-C reaches
    only the parent, which then ends its services in order. `start` makes the process from an interpreter's arguments
    and Popen's options. Raises ServiceStartError.
    """
    path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")]))
    process = start(
        ["-m", module, *(["--die-with-parent"] if die_with_parent else []), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, **(env or {}), "PYTHONPATH": path},
        start_new_session=True,
    )
    assert process.stdout is not None and process.stderr is not None  # noqa: S101  # both are pipes, for mypy
    errors: deque[str] = deque(maxlen=200)
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    readers = [
        threading.Thread(target=_keep_tail, args=(process.stderr, errors), daemon=True),
        threading.Thread(target=_first_line, args=(process.stdout, lines), daemon=True),
    ]
    for reader in readers:
        reader.start()
    try:
        ready = _ready_line(lines, timeout)
    except ServiceStartError as error:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(1.0)
        process.kill()
        code = process.wait()
        readers[0].join(2.0)
        if process.stdin is not None:
            process.stdin.close()
        raise ServiceStartError(f"{module}: {error} (exit code {code})\n{''.join(errors)}".rstrip()) from None
    return RunningService(ready["url"], ready["admin_token"], process.pid, ready, process, errors)


def _ready_line(lines: queue.SimpleQueue[bytes], timeout: float) -> dict[str, Any]:
    try:
        line = lines.get(timeout=timeout)
    except queue.Empty:
        raise ServiceStartError(f"no ready line within {timeout:g} s") from None
    if not line:
        raise ServiceStartError("ended before it was ready")
    try:
        ready = json.loads(line)
    except ValueError:
        ready = None
    if not isinstance(ready, dict) or not {"url", "admin_token"} <= ready.keys():
        raise ServiceStartError("its first line of output is not a ready line")
    return ready


def _first_line(stream: IO[bytes], lines: queue.SimpleQueue[bytes]) -> None:
    """Pass the first line on; the rest only has to be read, so that the child never blocks on a full pipe."""
    with stream:
        lines.put(stream.readline())
        for _ in stream:
            pass


def _keep_tail(stream: IO[bytes], tail: deque[str]) -> None:
    with stream:
        for line in stream:
            tail.append(line.decode(errors="replace"))
