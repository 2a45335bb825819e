"""The process that forks (preloaded.py): it has imported the SDK, and each request is a fork that becomes a program."""

from __future__ import annotations

import _imp
import contextlib
import ctypes
import gc
import importlib.util
import json
import os
import runpy
import select
import selectors
import signal
import socket
import sys
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from tests.support.forked_program import Program, become, run
from tests.support.preloaded import MOST_DESCRIPTORS, share_authorities

SDK: Final = (
    *("anthropic", "anthropic.resources.beta", "anthropic.lib.environments", "anthropic.lib.tools.agent_toolset"),
    *("anyio._backends._asyncio", "httpx", "httpcore2", "websockets.asyncio.client"),
    *("dotenv", "jinja2", "multiprocessing", "orjson", "python_multipart", "rich.console", "typer", "typer.rich_utils"),
    *("websocket", "yaml"),
    *("starlette.applications", "uvicorn", "uvicorn.lifespan.on", "uvicorn.protocols.http.httptools_impl"),
)
"""What is imported before the fork: none of ours, and nothing that starts a thread, as `tensorlake` does; what that one
needs itself is here."""

_NAMESPACES: Final = 0x10000000 | 0x20000 | 0x20000000 | 0x08000000 | 0x04000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWIPC, NEWUTS (sched.h): what bubblewrap gives a sandbox of its own."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38  # sys/prctl.h
_CAPABILITY_VERSION: Final = 0x20080522  # linux/capability.h


def _import_sandbox_models() -> None:
    """Most of what the import of `tensorlake` takes, and none of its threads: this module without its packages. A fork
    that imports those finds it there."""
    (folder,) = map(Path, importlib.util.find_spec("tensorlake").submodule_search_locations)  # type: ignore[union-attr, arg-type]
    packages = {"tensorlake": folder, "tensorlake.sandbox": folder / "sandbox"}
    for name, path in packages.items():
        sys.modules[name] = types.ModuleType(name)
        sys.modules[name].__path__ = [str(path)]
    importlib.import_module("tensorlake.sandbox.models")
    for name in packages:
        del sys.modules[name]


def _compile_worker() -> None:
    """An archive has no byte code: what this checkout's worker consists of is compiled before the forks."""
    import zipimport

    anew: Any = zipimport._compile_source  # type: ignore[attr-defined]
    session = Path(__file__).resolve().parents[2] / "image" / "session"
    sources = [path.read_bytes() for path in (*session.glob("*.py"), *session.glob("worker/*.py"))]
    compiled = {source: anew("worker", source) for source in sources}

    def known(path: str, source: bytes) -> Any:
        code = compiled.get(source)
        if code is None:
            return anew(path, source)
        _imp._fix_co_filename(code, path)  # type: ignore[attr-defined]
        return code

    zipimport._compile_source = known  # type: ignore[attr-defined]


class _Forks:
    """What the process that forks holds, and what it does for each request."""

    def __init__(self, requests: socket.socket | None = None, listener: socket.socket | None = None) -> None:
        """`requests`: for programs. `listener`: for workers of sandboxes."""
        self._requests = requests
        self._listener = listener
        self._sandboxes: set[socket.socket] = set()
        self._running: dict[int, tuple[int, socket.socket | None]] = {}
        self._selector = selectors.DefaultSelector()
        for each in filter(None, (requests, listener)):
            self._selector.register(each, selectors.EVENT_READ)

    def serve(self) -> Program:
        """Returns in a fork, what it is to run."""
        while True:
            for key, _ in self._selector.select():
                program: Program | None = None
                if key.fileobj is self._requests:
                    program = self._program(self._requests)
                elif key.fileobj is self._listener:
                    self._sandbox(self._listener)
                elif isinstance(key.fileobj, socket.socket):
                    program = self._worker(key.fileobj)
                else:
                    self._end(key.fd)
                if program is not None:
                    return program

    def _program(self, requests: socket.socket) -> Program | None:
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionError):  # who asked has ended, and perhaps with words of ours unread
            _, descriptors, _, _ = socket.recv_fds(requests, 1, MOST_DESCRIPTORS)
        if not descriptors:
            os._exit(0)
        pid = self._fork()
        watch = descriptors.pop(3)
        if not pid:
            os.close(watch)
            request = _read(descriptors[3])
            return become(descriptors[:3], request, dict(zip(request["kept"], descriptors[4:], strict=True)))
        watcher = socket.socket(fileno=watch)
        watcher.send(b"%d" % pid)
        self._watch(pid, descriptors, watcher)
        return None

    def _sandbox(self, listener: socket.socket) -> None:
        connection, _ = listener.accept()
        self._sandboxes.add(connection)
        self._selector.register(connection, selectors.EVENT_READ)

    def _worker(self, sandbox: socket.socket) -> Program | None:
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionError):
            _, descriptors, _, _ = socket.recv_fds(sandbox, 1, 5)
        if not descriptors:
            self._selector.unregister(sandbox)
            self._sandboxes.discard(sandbox)
            sandbox.close()
            return None
        *streams, there, file = descriptors
        request = _read(file)
        _move(request["executable"])
        pid = self._fork(sandbox)
        if not pid:
            _enter(sandbox, there)
            _look_round()
            return become(streams, request, {})
        self._watch(pid, descriptors[:-1], None)
        return None

    def _fork(self, kept: socket.socket | None = None) -> int:
        """As os.fork; the fork has nothing of this process's own but what is `kept`."""
        pid = os.fork()
        if not pid:
            self._selector.close()
            watchers = [each for _, each in self._running.values() if each is not None]
            for each in filter(None, (self._requests, self._listener, *(self._sandboxes - {kept}), *watchers)):
                each.close()
            for descriptor in self._running:
                os.close(descriptor)
        return pid

    def _watch(self, pid: int, descriptors: Sequence[int], watcher: socket.socket | None) -> None:
        for descriptor in descriptors:
            os.close(descriptor)
        ended = os.pidfd_open(pid)
        self._running[ended] = (pid, watcher)
        self._selector.register(ended, selectors.EVENT_READ)

    def _end(self, descriptor: int) -> None:
        pid, watcher = self._running.pop(descriptor)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        if watcher is not None:
            with contextlib.suppress(OSError):  # nobody waits for it any more
                watcher.send(b"%d" % status)
            watcher.close()


def _enter(sandbox: socket.socket, there: int) -> None:
    """Goes on in a fork that is a child of the process `there`, in its namespaces, and closed to its user as a worker's
    interpreter is from its start (infra/local/tensorlake/host.py); tells the sandbox its pid there."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    if libc.setns(there, _NAMESPACES):
        print(f"a worker was not started: setns: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        os._exit(1)
    os.close(there)
    told, tell = os.pipe()
    if parent := os.fork():
        os.waitpid(parent, 0)  # its child is an orphan now, and comes to the sandbox's first process
        with contextlib.suppress(OSError):
            sandbox.send(os.read(told, 20))
        os._exit(0)
    if pid := os.fork():
        os.write(tell, b"%d" % pid)
        os._exit(0)
    os.close(told)
    os.close(tell)
    sandbox.close()
    for capability in range(int(Path("/proc/sys/kernel/cap_last_cap").read_text()) + 1):
        libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    libc.capset((ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)())
    os.umask(0o022)


def _read(file: int) -> dict[str, Any]:
    with os.fdopen(file) as text:
        text.seek(0)
        request: dict[str, Any] = json.load(text)
    return request


def _move(executable: str) -> None:
    """This process is that program of the same environment, which lies elsewhere, and so are its forks: to tell each of
    a thousand modules costs a fork more than all that its worker does."""
    if executable == sys.executable:
        return
    before, after = sys.prefix, str(Path(executable).parents[1])

    def moved(path: Any) -> Any:
        return after + path.removeprefix(before) if isinstance(path, str) and path.startswith(before) else path

    sys.executable, sys.prefix, sys.exec_prefix = executable, after, after
    sys.path[1:] = map(moved, sys.path[1:])
    for path in [each for each in sys.path_importer_cache if each.startswith(before)]:
        del sys.path_importer_cache[path]
    for module in tuple(sys.modules.values()):
        spec = getattr(module, "__spec__", None)
        if spec is None or moved(spec.origin) is spec.origin:
            continue
        spec.origin = module.__file__ = moved(spec.origin)
        if spec.submodule_search_locations is not None:
            spec.submodule_search_locations[:] = map(moved, spec.submodule_search_locations)
            module.__path__ = spec.submodule_search_locations
        if hasattr(spec.loader, "path"):
            spec.loader.path = moved(spec.loader.path)


def _look_round() -> None:
    """Modules are looked for in what is there after a move. Own folders are; others are lines of .pth files, which
    count where they lead somewhere."""
    foreign = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    own = (sys.prefix, sys.base_prefix)
    sys.path[1:] = [
        each for each in sys.path[1:] if each not in foreign and (each.startswith(own) or Path(each).exists())
    ]


def asked_for(listener: socket.socket) -> tuple[socket.socket, socket.socket]:
    """A fork for each process that runs tests: where its requests come from, and where its sandboxes call. The process
    itself ends with its standard input."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while listener.fileno() in select.select([0, listener.fileno()], [], [])[0]:
        with listener.accept()[0] as asking:
            _, descriptors, _, _ = socket.recv_fds(asking, 1, 2)
        if descriptors and not os.fork():
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            listener.close()
            with Path(os.devnull).open() as nothing:
                os.dup2(nothing.fileno(), 0)
            requests, sandboxes = descriptors
            return socket.socket(fileno=requests), socket.socket(fileno=sandboxes)
        for each in descriptors:
            os.close(each)
    os._exit(0)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in SDK:
        __import__(name)
    _import_sandbox_models()
    kept = runpy.run_path(str(Path(__file__).with_name("sdk_schemas.py")))
    _compile_worker()
    share_authorities()
    for variables in ({}, os.environ.copy()):
        os.environ.clear()
        os.environ.update(variables)
        sys.modules["httpcore2"].default_ssl_context()
    gc.collect()
    gc.freeze()
    requests, listener = asked_for(socket.socket(fileno=int(sys.argv[1])))
    if os.fork():
        listener.close()
        requests.send(b".")
        forks = _Forks(requests=requests)
    else:  # one process for sandboxes alone, since it moves into their folders
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        requests.close()
        forks = _Forks(listener=listener)
    run(forks.serve())
