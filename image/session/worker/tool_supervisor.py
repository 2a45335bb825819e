"""Keeps the process in which the operator's tools run, and answers the worker whatever becomes of it.

    worker  <- socket ->  supervisor  <- socket, output ->  host (tool_host.py)

The supervisor runs none of the operator's code. It starts the host at the first call, gives it its environment by the
socket (so that neither arguments nor the environment of a process hold a secret before the host has it), bounds each
call in time, in what it prints and in what it answers, and ends the host with all that it started where a bound is
passed. What the host prints goes to the worker's log, line by line and without the tools' secrets. It ends with the
worker: its socket has no name, and nobody else has the other end.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Final

from image.session.worker.tool_frames import FrameError, FrameReader, pack, receive
from image.session.worker.tool_output import MOST_KEPT, MaskedLines, cost, redactor_of

HOST_ARGUMENT: Final = "--tool-host"
_START_SECONDS: Final = 20.0  # on top of the first call: an SDK takes seconds to import on a busy machine
_GRACE_SECONDS: Final = 3.0  # the host gives a call up by itself before
_MOST_PRINTED: Final = 1 << 20  # bytes in one call
_MOST_KEPT_OF_A_CALL: Final = MOST_KEPT // 16  # bytes: one call is not to take what is kept of all
_TAIL: Final = 2_000  # characters of what was printed, shown where the host dies
_LONGEST_ANSWER: Final = 8 << 20  # bytes of all blocks of a result; texts have a smaller bound of their own
_SHOWN: Final = 2_000  # characters of a result that is too long
_READ: Final = 1 << 16
_PR_SET_CHILD_SUBREAPER: Final = 36
_OOM_SCORE: Final = b"700"  # of 1000, as the agent's shell has: the kernel is to end a tool before the worker


class ToolSupervisor:
    """`configuration`: directory, kind, env, cwd, seconds, longest (bytes of a result's text), and `secrets`, which no
    result may quote."""

    def __init__(self, worker: socket.socket, archive: str, configuration: Mapping[str, Any]) -> None:
        self._worker = worker
        self._archive = archive
        self._configuration = configuration
        self._redactor = redactor_of(configuration["secrets"])
        self._host: _Host | None = None
        self._tool = ""  # of the last call
        self._left = MOST_KEPT
        self._left_of_call = 0

    def serve(self, reader: FrameReader) -> None:
        """Until the worker closes its end. `reader` has read the configuration."""
        try:
            while (call := self._next_call(reader)) is not None:
                answer = self._answer(call)
                if answer is None:
                    return
                content, is_error = self._masked(answer["content"]), answer["is_error"]
                self._worker.sendall(pack({"call": call["call"], "content": content, "is_error": is_error}))
        finally:
            self._end_host()

    def _next_call(self, reader: FrameReader) -> dict[str, Any] | None:
        """None where the worker has closed its end. What the host prints meanwhile is taken as long as it is kept: one
        that goes on printing has to wait."""
        while True:
            message: dict[str, Any] | None = reader.next()
            if message is not None:
                return message
            output = self._host.output if self._host is not None and self._left_of_call > 0 else None
            watched: list[Any] = [self._worker] if output is None else [self._worker, output]
            ready = select.select(watched, [], [])[0]
            if output in ready and self._host is not None:
                with contextlib.suppress(_Broken):
                    self._host.take_output()
            if self._worker in ready:
                try:
                    data = self._worker.recv(_READ)
                except ConnectionError:
                    data = b""
                if not data:
                    return None
                reader.feed(data)

    def _keep(self, lines: Iterable[str]) -> None:
        """Hands the lines on to the worker's log, as far as the bounds allow."""
        kept = []
        for line in lines:
            if self._left_of_call <= 0:
                break
            self._left_of_call -= cost(line)
            self._left -= cost(line)
            kept.append(line)
        if kept:
            if self._left_of_call <= 0:
                kept.append("(more was printed, and is not kept)")
            with contextlib.suppress(OSError):  # the worker has gone; whoever reads from it next sees that
                self._worker.sendall(pack({"says": kept, "tool": self._tool}))

    def _answer(self, call: Mapping[str, Any]) -> dict[str, Any] | None:
        """None where the worker has gone meanwhile."""
        seconds = float(self._configuration["seconds"]) + _GRACE_SECONDS
        self._tool, self._left_of_call = str(call["tool"]), min(self._left, _MOST_KEPT_OF_A_CALL)
        if self._host is None or self._host.process.poll() is not None:
            self._end_host()
            self._host = _Host(self._archive, self._configuration, self._keep)
            seconds += _START_SECONDS
        try:
            answer = self._host.ask({"tool": call["tool"], "input": call["input"]}, seconds, self._worker)
        except _Gone:
            return None
        except _Broken as broken:
            self._end_host()
            return _failed(str(broken))
        if answer.pop("restart", False):
            self._end_host()
        return self._bounded(answer)

    def _bounded(self, answer: dict[str, Any]) -> dict[str, Any]:
        content, most = answer["content"], int(self._configuration["longest"])
        texts = [content] if isinstance(content, str) else [str(each.get("text", "")) for each in content]
        size = sum(len(text.encode("utf-8", "replace")) for text in texts)
        if size > most:
            start = "".join(texts)[:_SHOWN]
            return _failed(
                f"the tool has run, and its result has {size} bytes, where {most} are the most (TOOL_OUTPUT_BYTES). "
                f"Ask for less. It begins with:\n{start}"
            )
        if not isinstance(content, str) and (whole := len(pack(content))) > _LONGEST_ANSWER:
            return _failed(f"the tool has run, and its result has {whole} bytes, where {_LONGEST_ANSWER} are the most")
        return answer

    def _masked(self, value: Any) -> Any:
        """Without the secrets that the tools were given, wherever a text quotes one."""
        if isinstance(value, str):
            return self._redactor.apply(value)
        if isinstance(value, list):
            return [self._masked(each) for each in value]
        if isinstance(value, dict):
            return {key: self._masked(each) for key, each in value.items()}
        return value

    def _end_host(self) -> None:
        host, self._host = self._host, None
        if host is not None:
            host.end()


class _Gone(Exception):
    """The worker has closed its end."""


class _Broken(Exception):
    """The host cannot be used any more. The text is for the agent."""


class _Host:
    """`keep` gets the lines that it prints."""

    def __init__(self, archive: str, configuration: Mapping[str, Any], keep: Callable[[Iterable[str]], None]) -> None:
        ours, theirs = socket.socketpair()
        read_end, write_end = os.pipe()
        # The environment that a process begins with is to be seen in /proc for a moment: it holds no secret.
        bare = {name: os.environ[name] for name in ("PATH", "LANG", "LC_ALL", "HOME", "USER") if name in os.environ}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-I", archive, HOST_ARGUMENT, str(theirs.fileno())],
                env=bare,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=write_end,
                pass_fds=(theirs.fileno(),),
                start_new_session=True,
            )
        finally:
            theirs.close()
            os.close(write_end)
        with contextlib.suppress(OSError):
            Path(f"/proc/{self.process.pid}/oom_score_adj").write_bytes(_OOM_SCORE)
        self._connection = ours
        self.output: int | None = read_end
        self._keep = keep
        self._lines = MaskedLines(configuration["secrets"])
        self._reader = FrameReader()
        self._tail = ""
        self._printed = 0
        self._send(configuration)

    def ask(self, call: Mapping[str, Any], seconds: float, worker: socket.socket) -> dict[str, Any]:
        """The host's answer. Raises _Broken, and _Gone where the worker closes meanwhile."""
        self._printed = 0
        self._send(call)
        deadline = time.monotonic() + seconds
        while True:
            try:
                answer: dict[str, Any] | None = self._reader.next()
            except FrameError as error:
                raise _Broken(f"the tools' process sent {error}") from None
            if answer is not None:
                self._drain()
                return answer
            left = deadline - time.monotonic()
            if left <= 0:
                raise _Broken(
                    f"no result within {seconds:g} seconds: the tools' process was ended. The call may have had its "
                    "effect: look before you repeat it"
                )
            watched: list[Any] = [self._connection, worker]
            if self.output is not None:
                watched.append(self.output)
            ready = select.select(watched, [], [], left)[0]
            if self.output in ready:
                self.take_output()
            if worker in ready and not worker.recv(1, socket.MSG_PEEK):
                raise _Gone
            if self._connection in ready:
                self._take_answer()

    def end(self) -> None:
        """The process and all that it started, wherever that has moved to."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        _end_orphans()
        self._drain()
        self._connection.close()
        if self.output is not None:
            os.close(self.output)
            self.output = None

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._connection.sendall(pack(message))
        except FrameError as error:
            raise _Broken(f"the call cannot be passed on: {error}") from None
        except OSError:
            raise _Broken(self._death()) from None

    def _take_answer(self) -> None:
        try:
            data = self._connection.recv(_READ)
        except ConnectionError:
            data = b""
        if not data:
            raise _Broken(self._death())
        self._reader.feed(data)

    def take_output(self) -> None:
        """One piece of what it has printed; None is `output` from its end on. Raises _Broken past the bound of a
        call."""
        data = os.read(self.output, _READ) if self.output is not None else b""
        if data:
            self._said(list(self._lines.take(data)))
        else:
            self._said(list(self._lines.rest()))
            if self.output is not None:
                os.close(self.output)
            self.output = None
        self._printed += len(data)
        if self._printed > _MOST_PRINTED:
            raise _Broken(
                f"the tool printed more than {_MOST_PRINTED} bytes, so the call was given up. It may have had its "
                f"effect: look before you repeat it. The end of its output:\n{self._last_words()}"
            )

    def _said(self, lines: list[str]) -> None:
        self._tail = "\n".join([self._tail, *lines])[-_TAIL:]
        self._keep(lines)

    def _drain(self) -> None:
        """What it had printed before it ended, within the bound of a call."""
        with contextlib.suppress(_Broken):
            while self.output is not None and select.select([self.output], [], [], 0)[0]:
                self.take_output()

    def _death(self) -> str:
        try:
            status = self.process.wait(5)
        except subprocess.TimeoutExpired:
            status = None
        self._drain()
        how = "closed its connection"
        if status is not None:
            how = f"was ended by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
        words = self._last_words()
        said = f" The end of its output:\n{words}" if words else ""
        return (
            f"the process that runs the tool {how} during the call, which may have had its effect: look before you "
            f"repeat it.{said}"
        )

    def _last_words(self) -> str:
        return self._tail.strip()


def adopt_orphans() -> None:
    """From here on what a host leaves behind becomes our child, wherever it has moved to (Linux)."""
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _end_orphans() -> None:
    """Each end makes the ended one's children ours, so look until there is none."""
    for _ in range(1_000):
        children = _children()
        if not children:
            return
        for child in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(child, signal.SIGKILL)
        for child in children:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(child, 0)


def _children() -> list[int]:
    try:
        listed = Path(f"/proc/self/task/{os.getpid()}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(pid) for pid in listed.split()]


def _failed(reason: str) -> dict[str, Any]:
    return {"content": reason, "is_error": True}


def main(descriptor: int, archive: str) -> None:
    """Serves the worker at the other end of this socket: its first message is the configuration."""
    adopt_orphans()
    worker = socket.socket(fileno=descriptor)
    reader = FrameReader()
    configuration = receive(worker, reader)
    if configuration is not None:
        ToolSupervisor(worker, archive, configuration).serve(reader)
