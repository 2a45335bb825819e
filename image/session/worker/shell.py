"""The agent's shell: the SDK's own persistent bash, mended in four places.

- A command that bash cannot parse ends the SDK's shell, and one that is not complete (an open quote, a missing `fi`, a
  trailing backslash) swallows the mark that the SDK waits for until its time-out of 120 s. Here another bash reads the
  command first without running it (`-n`), and what it cannot parse is answered with what it says.
- What the agent starts in the background writes into the shell's output. In the SDK that is a pipe which breaks with
  the worker and which nobody empties between two calls, so a server dies or stops at its first lines of log. Here
  the worker empties it all the time, and a small process of its own empties it once the worker is gone.
- The SDK breaks off no call that runs, and has no way to. Here a command ends when its turn is interrupted or its work
  is stopped; what the agent left running in the background does not. The next command has a new shell, in the same
  folder.
- When memory runs out the kernel is to end what the agent runs, and not the worker (docs/image.md#what-lives-on).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Final, cast

import anyio
import anyio.abc
from anthropic.lib.tools.agent_toolset import BASH_DEFAULT_TIMEOUT, BASH_OUTPUT_LIMIT, BashResult, BashSession

from image.session.worker.command_end import interrupt, kill_in_front

_KEPT: Final = 2 * BASH_OUTPUT_LIMIT  # bytes; the SDK shows the last BASH_OUTPUT_LIMIT and says that it cut
_KEPT_BETWEEN_CALLS: Final = 8192  # bytes of what background programs said, shown with the next command's output
_READ: Final = 65_536
_PARSE_SECONDS: Final = 10.0
_UNTIL_FORCE: Final = 3.0  # seconds that a command has to end by itself when it is broken off
_UNTIL_GONE: Final = 1.0  # seconds that a shell whose command was broken off has to end, too
_LONGEST_PROBLEM: Final = 4000  # characters
_OOM_SCORE: Final = b"700"  # of 1000; the worker has what the sandbox gave it, usually 0

# Waits for the worker's end (its standard input closes), then reads what still comes. `cat` opens the pipe anew, since
# the worker's end of it does not block; where that cannot be had it fails on an empty pipe, and is started again.
_LEGACY: Final = "read -r _; until cat /dev/fd/{pipe} >/dev/null 2>&1; do sleep 1; done"


class Shell(BashSession):
    """Takes the place of the SDK's `BashSession`; same use, same errors."""

    _output: _Output
    _env: Mapping[str, str] | None = None
    _folder: Path
    variables: ClassVar[Mapping[str, str]] = {}
    """What the session's set-up adds to the environment of each shell."""
    _at_work: ClassVar[set[Shell]] = set()
    _broken_off = ""
    _over: ClassVar[str] = ""

    @classmethod
    def end(cls, why: str) -> None:
        """As `break_off`, and no command is begun any more: a call may just be on its way to its shell."""
        cls._over = cls._over or why
        cls.break_off(why)

    @classmethod
    def break_off(cls, why: str) -> None:
        """Ends each command that runs, and its shell with it; its result says `why`. In the event loop's thread."""
        for shell in list(cls._at_work):
            if not shell._broken_off:
                shell._broken_off = why
                with contextlib.suppress(OSError):  # not on Linux: where it was begun
                    shell._folder = Path(f"/proc/{shell._proc.pid}/cwd").readlink()
                interrupt(shell._proc.pid)
                asyncio.get_running_loop().call_later(_UNTIL_FORCE, shell._end_by_force)

    def _end_by_force(self) -> None:
        if self in self._at_work and not self.closed:
            kill_in_front(self._proc.pid)

    @classmethod
    async def start(cls, workdir: str | os.PathLike[str], *, env: Mapping[str, str] | None = None) -> Shell:
        """`env` is the whole environment of the shell; the worker's own, which holds no secret, if there is none."""
        output = _Output()
        try:
            process = await anyio.open_process(
                ["/bin/bash", "--noprofile", "--norc"],
                cwd=workdir,
                env={**(os.environ if env is None else env), **cls.variables, "PS1": "", "PS2": "", "TERM": "dumb"},
                stdin=subprocess.PIPE,
                stdout=output.write_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a signal to the worker's group is not meant for what the agent runs
            )
        except BaseException:
            output.close()
            raise
        output.begin()
        _prefer_in_oom_kill(process.pid)
        shell = cls(cast("anyio.abc.Process", _Process(process, output)))
        shell._output, shell._env, shell._folder = output, env, Path(workdir)
        return shell

    async def exec(self, cmd: str, timeout: float = BASH_DEFAULT_TIMEOUT) -> BashResult:
        if self._over:
            return BashResult(f"[{self._over}]", -1)
        told = await self._begun_anew() if self._broken_off else ""
        self._broken_off = ""
        self._at_work.add(self)
        try:
            result = await self._exec(cmd, timeout)
        finally:
            self._at_work.discard(self)
        said, code = f"{told}{result[0]}", result[1]
        if not self._broken_off:
            return BashResult(said, code)
        return BashResult(f"{said}\n[{self._broken_off}]".lstrip("\n"), code or -1)

    async def _begun_anew(self) -> str:
        """A new process for a shell that ended with its command; what the agent is told of it. One that has a way of
        its own with interrupts lives on."""
        with anyio.move_on_after(_UNTIL_GONE):
            await self._proc.wait()
        if not self.closed:
            return ""
        folder = self._folder if self._folder.is_dir() else Path.cwd()
        fresh = await self.start(folder, env=self._env)
        ended, self._proc, self._output = self._proc, fresh._proc, fresh._output
        await ended.aclose()
        return f"[a new shell in {folder}: the one before ended with its command]\n"

    async def _exec(self, cmd: str, timeout: float) -> BashResult:
        problem = await _syntax_problem(cmd)
        if problem is not None:
            return BashResult(problem, 2)
        self._output.trim()
        try:
            # As one word for `eval`, so that what the check was wrong about cannot take the shell with it; with an
            # empty line after it, since a backslash at the end of an `eval` confuses bash's own parser. The SDK sends
            # both streams to the same place; `>&2` makes `exec >file` last as long as the command, since the SDK's
            # mark has to come out afterwards.
            return await super().exec("{ eval -- " + shlex.quote(f"{cmd}\n\n") + "\n} >&2", timeout)
        finally:
            self._output.cut = False  # the SDK has said so itself


async def _syntax_problem(text: str) -> str | None:
    """What bash says of a text that it cannot parse, with extended patterns or without: the shell may have either."""
    problem = await _read_only(text, "+O")
    return problem if problem and await _read_only(text, "-O") else None


async def _read_only(text: str, option: str) -> str:
    """Nothing where bash can parse the text, or takes too long over it."""
    try:
        with anyio.fail_after(_PARSE_SECONDS):
            done = await anyio.run_process(
                ["/bin/bash", "--noprofile", "--norc", option, "extglob", "-n"],
                input=text.encode(errors="surrogateescape"),
                check=False,
                env={name: os.environ[name] for name in ("LANG", "LC_ALL", "LC_CTYPE") if name in os.environ},
                start_new_session=True,
            )
    except TimeoutError:
        return ""
    said = done.stderr.decode(errors="replace").strip()[:_LONGEST_PROBLEM]
    return (said or "bash cannot parse it") if done.returncode else ""


def _prefer_in_oom_kill(pid: int) -> None:
    with contextlib.suppress(OSError):  # not on Linux, or not ours to say
        Path(f"/proc/{pid}/oom_score_adj").write_bytes(_OOM_SCORE)


class _Process:
    """The shell's process with our stream for its output: as much of anyio's `Process` as `BashSession` uses."""

    def __init__(self, process: anyio.abc.Process, output: _Output) -> None:
        self._process = process
        self._watch = asyncio.create_task(self._wait(output))
        self.stdin = process.stdin
        self.stdout = output

    def __getattr__(self, name: str) -> Any:
        return getattr(self._process, name)

    async def _wait(self, output: _Output) -> None:
        await self._process.wait()
        output.shell_ended()

    async def aclose(self) -> None:
        self._watch.cancel()
        try:
            await self._process.aclose()
        finally:
            self.stdout.close()


class _Output:
    """The reading end of a pipe that outlives the worker; never more than `_KEPT` bytes are held."""

    def __init__(self) -> None:
        self._held = bytearray()
        self._news = asyncio.Event()
        self._over = False
        self.cut = False
        shared, self.write_end = os.pipe()
        life, self._life = os.pipe()
        try:
            subprocess.Popen(
                ["/bin/sh", "-c", _LEGACY.format(pipe=shared)],
                stdin=life,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd="/",
                pass_fds=(shared,),
                start_new_session=True,
            )
            # An open file of our own: whether reads block is a property of that, and the other one's are to block.
            opened = os.open(f"/proc/self/fd/{shared}", os.O_RDONLY | os.O_CLOEXEC) if sys.platform == "linux" else None
        finally:
            os.close(life)
        if opened is not None:
            os.close(shared)
        self._read_end = shared if opened is None else opened
        os.set_blocking(self._read_end, False)

    def begin(self) -> None:
        """The shell has its end of the pipe."""
        os.close(self.write_end)
        self.write_end = -1
        asyncio.get_running_loop().add_reader(self._read_end, self._take)

    async def receive(self, max_bytes: int = _READ) -> bytes:
        """Raises anyio.EndOfStream once the shell has ended and all that it said has been read, also where a
        background program keeps the pipe open."""
        while not self._held:
            if self._over:
                raise anyio.EndOfStream
            self._news.clear()
            await self._news.wait()
        piece = bytes(self._held[:max_bytes])
        del self._held[:max_bytes]
        return piece

    def trim(self) -> None:
        """Before a command: what background programs have said since the last one is cut to its end."""
        surplus = len(self._held) - _KEPT_BETWEEN_CALLS
        if surplus > 0 or self.cut:
            del self._held[: max(0, surplus)]
            self._held[:0] = b"[earlier output of background programs cut]\n"
            self.cut = False

    def shell_ended(self) -> None:
        for _ in range(_KEPT // _READ + 1):  # a background program may write on for as long as somebody reads
            self._take()
        self._over = True
        self._news.set()

    def close(self) -> None:
        if self.write_end >= 0:
            os.close(self.write_end)
            self.write_end = -1
        if self._read_end >= 0:
            asyncio.get_running_loop().remove_reader(self._read_end)
            os.close(self._read_end)
            os.close(self._life)
            self._read_end = -1

    def _take(self) -> None:
        if self._over:
            return
        try:
            data = os.read(self._read_end, _READ)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._over = True
            asyncio.get_running_loop().remove_reader(self._read_end)
        self._held += data
        surplus = len(self._held) - _KEPT
        if surplus > 0:
            del self._held[:surplus]
            self.cut = True
        self._news.set()
