"""Programs that make a session ready: they end with their worker, say what they do in its log, and keep the end of what
they said."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

LONGEST_TAIL: Final = 4000  # characters of output that are kept for whoever has to find out what went wrong
_LONGEST_LINE: Final = 200  # characters of a line in the log
_LINE_PAUSE: Final = 2.0  # seconds between two lines of one program in the log
_READ: Final = 65_536
_CONTROL: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|[\x00-\x08\x0b-\x1f\x7f]")

# The program in a group of its own with somebody who ends the group once the worker is gone: an orphan must not write
# into the workspace beside the next worker's set-up. What the program leaves running when it is done lives on.
_GUARD: Final = """
exec 9<&0 </dev/null
"$@" 9<&- &
program=$!
{ read -r _ <&9; kill -s KILL 0; } >/dev/null 2>&1 &
guard=$!
exec 9<&-
wait "$program"
status=$?
kill -s KILL "$guard"
exit "$status"
"""

log = logging.getLogger(__name__)


class SourceFailed(Exception):
    """The text says what could not be had and what to do; `tail` is the end of what a program said about it."""

    def __init__(self, what: str, tail: str = "") -> None:
        super().__init__(what)
        self.tail = tail


class CommandFailed(Exception):
    """The text says which program and how it ended; `tail` is the end of what it said."""

    def __init__(self, what: str, tail: str) -> None:
        super().__init__(what)
        self.tail = tail


class SetupCommands:
    """Runs one program at a time. `tail` is the end of what the last one said, also of one that was broken off."""

    def __init__(self) -> None:
        self.tail = ""

    async def run(
        self,
        what: str,
        command: Sequence[str],
        *,
        cwd: Path,
        env: Mapping[str, str],
        echo: bool = True,
        passed: int | None = None,
    ) -> str:
        """The end of what it said, both streams together. `what` names it for people; `passed` is a descriptor that it
        inherits. Raises CommandFailed; where the caller is cancelled, the program and what it has started are ended."""
        self.tail = ""
        process, output_end, life = await _start(command, cwd, env, passed)
        heard = _CommandOutput(what, output_end, echo=echo)
        try:
            status = await process.wait()
            heard.rest()
        finally:
            os.close(life)
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await asyncio.shield(process.wait())
            heard.close()
            self.tail = heard.tail
        if status != 0:
            ended = f"signal {-status}" if status < 0 else f"exit status {status}"
            raise CommandFailed(f"{what} failed ({ended})", self.tail)
        return self.tail


async def _start(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], passed: int | None
) -> tuple[asyncio.subprocess.Process, int, int]:
    """The program behind its guard, the end of its output to read from, and what to hold open as long as it may run."""
    output_end, output = os.pipe()
    life_end, life = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            "/bin/sh",
            "-c",
            _GUARD,
            "guard",
            *command,
            cwd=cwd,
            env=dict(env),
            stdin=life_end,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=() if passed is None else (passed,),
        )
    except BaseException:
        for descriptor in (output_end, life):
            os.close(descriptor)
        raise
    finally:
        os.close(output)
        os.close(life_end)
    return process, output_end, life


class _CommandOutput:
    """Reads a program's output as it comes."""

    def __init__(self, what: str, descriptor: int, *, echo: bool) -> None:
        self._what = what
        self._descriptor = descriptor
        self._echo = echo
        self._kept = bytearray()
        self._line = bytearray()
        self._said_at = 0.0
        os.set_blocking(descriptor, False)
        asyncio.get_running_loop().add_reader(descriptor, self._take)

    @property
    def tail(self) -> str:
        text = self._kept.decode("utf-8", "replace")
        # A progress bar rewrites its line; the last state of each is what counts.
        lines = [_CONTROL.sub("", line.rstrip("\r").rpartition("\r")[2]) for line in text.split("\n")]
        return "\n".join(lines).strip()[-LONGEST_TAIL:]

    def rest(self) -> None:
        """What it has said before its end; a program that it left running may write on without end."""
        for _ in range(16):
            if not self._take():
                return

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)

    def _take(self) -> bool:
        try:
            data = os.read(self._descriptor, _READ)
        except OSError:
            return False
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            return False
        self._kept += data
        del self._kept[: -4 * LONGEST_TAIL]
        self._tell(data)
        return True

    def _tell(self, data: bytes) -> None:
        self._line += data
        self._line[:] = self._line[-4096:]
        if not self._echo or time.monotonic() - self._said_at < _LINE_PAUSE:
            return
        lines = [line for line in re.split(rb"[\r\n]", bytes(self._line)) if line.strip()]
        if lines:
            self._said_at = time.monotonic()
            log.info("setup.says what=%s line=%s", self._what, printable(lines[-1].decode("utf-8", "replace")))
            self._line.clear()


def printable(text: str, longest: int = _LONGEST_LINE) -> str:
    """One line that is fit for a log."""
    return "".join(letter if letter.isprintable() else " " for letter in _CONTROL.sub("", text)).strip()[:longest]
