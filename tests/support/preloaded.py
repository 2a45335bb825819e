"""Python programs for tests, forked from a process that has the SDK already.

The import of the `anthropic` SDK takes a second of a core, and most commands need it. What is forked is a real process
with arguments, environment, folder, streams, terminal, signals and exit code of its own; our own code is imported anew,
from the folder it is started in. Where the start itself or /proc is tested an interpreter is started
(tests/infra/cli/test_command_line.py, tests/image/session/worker/test_secret_hiding.py).

Workers in offline sandboxes are forked from it, too, where the sandbox service was given the knob `launcher`: the fork
enters the sandbox's namespaces and goes on as a child of its first process. A test that needs interpreters there takes
the knob away (the fixture `interpreters`).

This file is also the program of the process that forks. One process that runs tests has one of them.
"""

from __future__ import annotations

import _imp
import atexit
import contextlib
import ctypes
import functools
import gc
import importlib.util
import itertools
import json
import os
import runpy
import selectors
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn

SDK: Final = (
    *("anthropic", "anthropic.resources.beta", "anthropic.lib.environments", "anthropic.lib.tools.agent_toolset"),
    *("anyio._backends._asyncio", "httpx", "httpcore2", "websockets.asyncio.client"),
    *("dotenv", "jinja2", "multiprocessing", "orjson", "python_multipart", "rich.console", "typer", "typer.rich_utils"),
    *("websocket", "yaml"),
    *("starlette.applications", "uvicorn", "uvicorn.lifespan.on", "uvicorn.protocols.http.httptools_impl"),
)
"""What is imported before the fork: none of ours, and nothing that starts a thread, as `tensorlake` does; what that one
needs itself is here."""

Program = Callable[[], object]
_BACKLOG: Final = 4096
_FORKER: Final = threading.Lock()
_execve: Final = os.execve
_UNREADABLE: Final = 2  # an interpreter's status
_NAMESPACES: Final = 0x10000000 | 0x20000 | 0x20000000 | 0x08000000 | 0x04000000
"""CLONE_NEWUSER, NEWNS, NEWPID, NEWIPC, NEWUTS (sched.h): what bubblewrap gives a sandbox of its own."""
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38  # sys/prctl.h
_CAPABILITY_VERSION: Final = 0x20080522  # linux/capability.h


class Preloaded(subprocess.Popen[Any]):
    """As `Popen([sys.executable, *command], ...)` for a command `-m MODULE ...`, `-c CODE ...` or `-I ARCHIVE ...`.

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
            "executable": sys.executable,
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


def forked_run(command: Sequence[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """As `subprocess.run([sys.executable, *command], capture_output=True, text=True, ...)`."""
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL}
    with Preloaded(command, text=True, **{**pipes, **options}) as process:
        out, err = process.communicate()
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def forked_service(*arguments: Any, **options: Any) -> Any:
    """As `start_service` (infra/local/process.py), which costs a third of the time of a core."""
    from infra.local.process import start_service

    root = Path(__file__).resolve().parents[2]
    return start_service(*arguments, **options, start=functools.partial(Preloaded, cwd=root))


def _forker() -> socket.socket:
    """The one of this process, though two threads ask at once."""
    with _FORKER:
        return _forker_of_this_process()


@functools.cache
def _forker_of_this_process() -> socket.socket:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs, socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(_place())
        listener.listen(_BACKLOG)
        command = [sys.executable, __file__, str(listener.fileno())]
        process = subprocess.Popen(command, stdin=theirs.fileno(), pass_fds=[listener.fileno()], start_new_session=True)
    atexit.register(process.wait)
    atexit.register(ours.close)  # first: the process ends with its requests
    return ours


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


def launcher() -> str:
    """The knob `launcher` of offline sandbox services that end with this process or before
    (infra/local/tensorlake/settings.py). It forks from now on: who asks a sandbox for a worker waits for no import."""
    _ready()
    return _place()


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
                if key.fileobj is self._requests:
                    program = self._program(self._requests)
                elif key.fileobj is self._listener:
                    program = self._sandbox(self._listener)
                elif isinstance(key.fileobj, socket.socket):
                    program = self._worker(key.fileobj)
                else:
                    program = self._end(key.fd)
                if program:
                    return program

    def _program(self, requests: socket.socket) -> Program | None:
        descriptors: list[int] = []
        with contextlib.suppress(ConnectionError):  # who asked has ended, and perhaps with words of ours unread
            _, descriptors, _, _ = socket.recv_fds(requests, 1, 5)
        if not descriptors:
            os._exit(0)
        pid = self._fork()
        if not pid:
            *streams, watch, file = descriptors
            os.close(watch)
            return _become(streams, _read(file))
        watcher = socket.socket(fileno=descriptors.pop(3))
        watcher.send(b"%d" % pid)
        self._watch(pid, descriptors, watcher)
        return None

    def _sandbox(self, listener: socket.socket) -> Program | None:
        connection, _ = listener.accept()
        self._sandboxes.add(connection)
        self._selector.register(connection, selectors.EVENT_READ)
        return None

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
            return _become(streams, request)
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

    def _end(self, descriptor: int) -> Program | None:
        pid, watcher = self._running.pop(descriptor)
        self._selector.unregister(descriptor)
        os.close(descriptor)
        _, status = os.waitpid(pid, 0)
        if watcher is not None:
            with contextlib.suppress(OSError):  # nobody waits for it any more
                watcher.send(b"%d" % status)
            watcher.close()
        return None


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


def _become(streams: Sequence[int], request: Mapping[str, Any]) -> Program:
    """This process becomes what was asked for, up to its first instruction; what it is to run."""
    if request["session"]:
        os.setsid()
    for number, descriptor in enumerate(streams):
        os.dup2(descriptor, number)
    for descriptor in streams:
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


def _set_out(command: Sequence[str], environ: Mapping[str, str]) -> Program:
    """What the interpreter does before a program's first line; what it is to run."""
    os.environ.clear()
    os.environ.update(environ)
    form, program, *arguments = command
    if form == "-m":
        sys.argv = ["-m", *arguments]
        sys.path[0] = str(Path.cwd())
        return functools.partial(runpy._run_module_as_main, program)  # type: ignore[attr-defined]
    if form == "-c":
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        return functools.partial(exec, compile(program, "<string>", "exec"), vars(main))
    sys.argv = [program, *arguments]
    try:
        Path(program).open("rb").close()
    except OSError as error:  # in an interpreter's words
        print(f"{sys.executable}: can't open file {program!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        os._exit(_UNREADABLE)
    sys.path[0] = program
    os.execve = functools.partial(_execute, len(sys.modules))  # type: ignore[assignment]
    return functools.partial(runpy._run_module_as_main, "__main__", alter_argv=False)  # type: ignore[attr-defined]


def _execute(inherited: int, path: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
    """An archive that executes itself again goes on in this process. `inherited`: how many modules were there before
    it; whoever asks a thousand modules for their names gets a thousand pages of his own."""
    if path != sys.executable:
        _execve(path, list(command), environ)
    for name in list(itertools.islice(reversed(sys.modules), len(sys.modules) - inherited)):
        if name.partition(".")[0] == "image":
            del sys.modules[name]
    _run(_set_out(command[1:], environ))


def _run(program: Program) -> None:
    try:
        program()
    except SystemExit as end:
        _leave(end.code)
    _leave(None)


def _leave(code: object) -> NoReturn:
    """As an interpreter ends, but for the taking down of what was imported before the fork: three quarters of what a
    short program costs."""
    if not (code is None or isinstance(code, int)):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more
        code = 120
    os._exit((code or 0) & 0xFF)


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
    requests, listener = socket.socket(fileno=os.dup(0)), socket.socket(fileno=int(sys.argv[1]))
    if os.fork():
        listener.close()
        requests.send(b".")
        forks = _Forks(requests=requests)
    else:  # one process for sandboxes alone, since it moves into their folders
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        requests.close()
        with Path(os.devnull).open() as nothing:
            os.dup2(nothing.fileno(), 0)
        forks = _Forks(listener=listener)
    _run(forks.serve())
