"""A fork becomes a Python program: streams, folder, environment, arguments, first line and end as an interpreter would
have them. The process that forks (forker.py) and the programs that it forks share this file.

An archive or a module of ours that such a program starts with `[sys.executable, "-I", ...]` is a fork, too, of the
program itself: a child that has imported the SDK. It keeps nothing of its parent but what is loaded: neither
descriptors nor handlers nor threads nor our own modules.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread
import contextlib
import contextvars
import ctypes
import fcntl
import functools
import gc
import itertools
import logging
import os
import runpy
import signal
import subprocess
import sys
import termios
import threading
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

Program: TypeAlias = Callable[[], object]

OURS: Final = frozenset({"functions", "image", "infra", "shared"})
_UNREADABLE: Final = 2  # an interpreter's status
_ABOVE: Final = 100  # above every descriptor that somebody asks for by its number
_PR_SET_DUMPABLE: Final = 4  # sys/prctl.h
_execve: Final = os.execve
_execute_child: Final = subprocess.Popen._execute_child  # type: ignore[attr-defined]
_kept: Final[list[object]] = []
"""What nobody uses any more and whose end would do something: write what its parent has buffered, close a number."""


def asked_of(
    command: Sequence[str], rest: Sequence[Any], terminal: bool = False
) -> tuple[dict[str, Any], list[int], list[int]]:
    """What `Popen._execute_child` was asked for, whose arguments are the same in Python 3.9 to 3.13: a request, the
    program's streams, and our ends of them all that Popen closes."""
    pass_fds, cwd, env = rest[3:6]
    pipes = list(rest[9:15])
    streams = [own if given == -1 else given for own, given in enumerate((pipes[0], pipes[3], pipes[5]))]
    request = {
        "command": list(command),
        "environ": dict(os.environ if env is None else env),
        "cwd": os.fspath(cwd or Path.cwd()),
        "session": rest[20] or terminal,
        "terminal": terminal,
        "executable": sys.executable,
        "kept": list(pass_fds),
    }
    return request, streams, pipes


def is_ours(args: object) -> bool:
    """Whether this is an archive or a module of ours that an interpreter like this one is to run."""
    match args:
        case [program, "-I", "-m", str(module), *_]:
            return program == sys.executable and module.partition(".")[0] in OURS
        case [program, "-I", str(archive), *_]:
            return program == sys.executable and archive.endswith(".pyz")
    return False


def become(streams: Sequence[int], request: Mapping[str, Any], kept: Mapping[int, int]) -> Program:
    """This process becomes what was asked for, up to its first instruction, which the result runs. `kept`: further
    descriptors by the numbers that they go on as."""
    if request["session"]:
        os.setsid()
    _arrange({**dict(enumerate(streams)), **kept})
    if request["terminal"]:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    os.chdir(request["cwd"])
    _kept.extend((sys.stdin, sys.stdout, sys.stderr))
    sys.stdin = os.fdopen(0, closefd=False)
    sys.stdout = os.fdopen(1, "w", buffering=1 if os.isatty(1) else -1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    inherited = len(sys.modules)
    os.execve = functools.partial(_execute, inherited)  # type: ignore[assignment]
    subprocess.Popen._execute_child = functools.partialmethod(_start, inherited)  # type: ignore[attr-defined]
    return _set_out(request["command"], request["environ"])


def run(program: Program) -> NoReturn:
    """To its end, which is this process's."""
    status: object = None
    interrupted = False
    try:
        program()
    except SystemExit as end:
        status = end.code
    except BaseException as error:
        status, interrupted = 1, isinstance(error, KeyboardInterrupt)
        sys.excepthook(type(error), error, error.__traceback__)
    _leave(status, interrupted)


def _arrange(wanted: Mapping[int, int]) -> None:
    """Each number is that descriptor, whichever numbers the descriptors had."""
    held = {number: fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE) for number, descriptor in wanted.items()}
    for descriptor in set(wanted.values()):
        os.close(descriptor)
    for number, descriptor in held.items():
        os.dup2(descriptor, number)
        os.close(descriptor)


def _set_out(command: Sequence[str], environ: Mapping[str, str]) -> Program:
    """What the interpreter does before a program's first line."""
    os.environ.clear()
    os.environ.update(environ)
    isolated, (form, *arguments) = command[0] in ("-I", "-P"), command[command[0] in ("-I", "-P") :]
    if form == "-m":
        module, *arguments = arguments
        sys.argv = ["-m", *arguments]
        sys.path[:1] = [] if isolated else [str(Path.cwd())]
        return functools.partial(runpy._run_module_as_main, module)  # type: ignore[attr-defined]
    if form == "-c":
        code, *arguments = arguments
        sys.argv, sys.path[0] = ["-c", *arguments], ""
        return functools.partial(_run_code, compile(code, "<string>", "exec"))
    sys.argv = [form, *arguments]
    try:
        text = Path(form).open("rb")  # noqa: SIM115
    except OSError as error:  # in an interpreter's words
        print(f"{sys.executable}: can't open file {form!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        os._exit(_UNREADABLE)
    with text:
        if form.endswith(".py"):
            sys.path[:1] = []
            return functools.partial(_run_code, compile(text.read(), form, "exec"), __file__=form)
    sys.path[0] = form
    return functools.partial(runpy._run_module_as_main, "__main__", alter_argv=False)  # type: ignore[attr-defined]


def _run_code(code: types.CodeType, **names: str) -> None:
    sys.modules["__main__"] = main = types.ModuleType("__main__")
    vars(main).update(names)
    exec(code, vars(main))


def _execute(inherited: int, path: str, command: Sequence[str], environ: Mapping[str, str]) -> None:
    """An archive that executes itself again goes on in this process."""
    if path != sys.executable:
        _execve(path, list(command), environ)
    _forget(inherited)
    run(_set_out(command[1:], environ))


def _forget(inherited: int) -> None:
    """Our modules. `inherited`: how many modules were there before the program; whoever asks a thousand modules for
    their names gets a thousand pages of his own."""
    for name in list(itertools.islice(reversed(sys.modules), len(sys.modules) - inherited)):
        if name.partition(".")[0] in OURS:
            _kept.append(sys.modules.pop(name))
    _kept.append(sys.modules["__main__"])
    sys.modules["__main__"] = types.ModuleType("__main__")


def _start(popen: Any, inherited: int, args: Any, *rest: Any) -> None:
    """Popen's own hook, with `functools.partialmethod`."""
    if not is_ours(args) or any(each not in (None, -1) for each in rest[16:19]):  # or another user's
        _execute_child(popen, args, *rest)
        return
    request, streams, pipes = asked_of(args[1:], rest)
    pid = os.fork()
    if not pid:
        try:
            contextvars.Context().run(_begin, inherited, request, streams)
        finally:
            os._exit(1)
    popen.pid = pid
    popen._child_created = True
    popen._close_pipe_fds(*pipes)


def _begin(inherited: int, request: Mapping[str, Any], streams: Sequence[int]) -> NoReturn:
    gc.freeze()
    _be_alone()
    _forget(inherited)
    kept = {0, 1, 2, *request["kept"], *streams}
    for number in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208
        if number not in kept:
            with contextlib.suppress(OSError):  # the one that the folder was read with
                os.close(number)
    _be_as_closed_as_the_program()
    run(become(streams, request, {each: each for each in request["kept"]}))


def _be_alone() -> None:
    """Without what its parent does at signals, at its end, in its event loop and in its log."""
    atexit._clear()
    concurrent.futures.thread._threads_queues.clear()  # type: ignore[attr-defined]
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if callable(signal.getsignal(number)):
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    _kept.append(asyncio.get_event_loop_policy())
    asyncio._set_running_loop(None)
    asyncio.set_event_loop_policy(None)
    for logger in (logging.root, *logging.root.manager.loggerDict.values()):
        if isinstance(logger, logging.Logger):
            _kept.append(logger.handlers)
            logger.handlers, logger.filters, logger.propagate, logger.disabled = [], [], True, False
            logger.setLevel(logging.WARNING if logger is logging.root else logging.NOTSET)


def _be_as_closed_as_the_program() -> None:
    """The kernel closes a process to its user where the user may not read its program."""
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, int(os.access(sys.executable, os.R_OK)), 0, 0, 0)


def _leave(code: object, interrupted: bool) -> NoReturn:
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
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((code or 0) & 0xFF)
