"""The command line as a user has it: a checkout with an offline platform, a shell without keys, a terminal."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import anthropic

from infra.local import discovery
from infra.local.platform import Options, Platform
from tests.support.checkout import copy_checkout
from tests.support.preloaded import Preloaded, forked_service, launcher
from tests.support.waiting import PATIENCE


class CommandLine:
    """A checkout in which `make up` runs, so to speak, and a shell without any key."""

    def __init__(self, checkout: Path, platform: Platform) -> None:
        self.checkout = checkout
        self.platform = platform
        foreign = ("ANTHROPIC_", "TENSORLAKE_", "SANDBOX_", "HANDS_", "NO_COLOR", "OFFLINE", "COLUMNS", "LINES")
        self.environ = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}

    def start(self, *args: str | bytes, given: bool = False, **environ: str) -> subprocess.Popen[str]:
        """`given`: standard input is a pipe; else it is empty."""
        return Preloaded(
            ["-m", "infra.cli", *args],
            cwd=self.checkout,
            env={**self.environ, **environ},
            stdin=subprocess.PIPE if given else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *args: str | bytes, given: str | None = None, **environ: str) -> subprocess.CompletedProcess[str]:
        with self.start(*args, given=given is not None, **environ) as process:
            out, err = process.communicate(given, timeout=PATIENCE)
        return subprocess.CompletedProcess(args, process.returncode, out, err)

    @contextlib.contextmanager
    def terminal(self, *args: str, columns: int = 100, rows: int = 30, **environ: str) -> Iterator[PseudoTerminal]:
        """The command in a pseudo-terminal of its own."""
        ours, theirs = pty.openpty()
        termios.tcsetwinsize(theirs, (rows, columns))
        process = Preloaded(
            ["-m", "infra.cli", *args],
            cwd=self.checkout,
            env={**self.environ, "TERM": "xterm-256color", **environ},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            # A new session whose controlling terminal is this one: ctrl-C reaches the command as it would a user's.
            terminal=True,
        )
        os.close(theirs)
        terminal = PseudoTerminal(ours, process)
        try:
            yield terminal
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            os.close(ours)

    def api(self) -> anthropic.Anthropic:
        return anthropic.Anthropic(api_key=self.platform.keys.api, base_url=self.platform.urls[0])

    def sessions(self) -> list[Mapping[str, object]]:
        """Newest last."""
        return list(self.platform.claude.get("state")["sessions"])


@contextlib.contextmanager
def command_line(
    checkout: Path, options: Options | None = None, *, served: bool = True, environ: Mapping[str, str] | None = None
) -> Iterator[CommandLine]:
    """A checkout of its own in `checkout` with a platform of its own, that serves with `environ` or not at all."""
    copy_checkout(checkout)
    options = options or Options()
    options = replace(options, tensorlake={"launcher": launcher(), **options.tensorlake})
    with Platform(options, forked_service) as platform, discovery.announced(checkout, platform.environ):
        if served:
            platform.serve_functions(environ=environ or {})
        yield CommandLine(checkout, platform)


@dataclass
class PseudoTerminal:
    """What a user types and sees."""

    descriptor: int
    process: subprocess.Popen[bytes]
    seen: str = ""
    _at: int = 0
    _raw: bytes = field(default=b"")

    def expect(self, words: str, seconds: float = PATIENCE) -> str:
        """Wait until these words are shown, after what was expected before; answers all up to them."""
        end = time.monotonic() + seconds
        while words not in self.seen[self._at :]:
            if time.monotonic() > end or not self._read(end):
                raise AssertionError(f"{words!r} was not shown: {self.seen[self._at :]!r}")
        stop = self.seen.index(words, self._at) + len(words)
        shown, self._at = self.seen[self._at : stop], stop
        return shown

    def type(self, text: str) -> None:
        os.write(self.descriptor, text.encode())

    def resize(self, columns: int, rows: int) -> None:
        termios.tcsetwinsize(self.descriptor, (rows, columns))
        os.killpg(self.process.pid, signal.SIGWINCH)

    def end(self, seconds: float = PATIENCE) -> int:
        """Wait for the command's end; its exit code."""
        end = time.monotonic() + seconds
        while self._read(end):
            pass
        return self.process.wait(max(0.1, end - time.monotonic()))

    def _read(self, end: float) -> bool:
        """Some more output; False at its end."""
        ready, _, _ = select.select([self.descriptor], [], [], max(0.0, end - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self.descriptor, 65536)
        except OSError:  # Linux says so when the last program has left the terminal
            return False
        self._raw += data
        self.seen = plain(self._raw.decode(errors="replace"))
        return bool(data)


def plain(text: str) -> str:
    """Without colours and cursor movements."""
    return re.sub(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[()][A-Z0-9]|[=>78])", "", text).replace("\r\n", "\n")
