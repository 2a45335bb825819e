"""Which tool call the worker is running, noted on disk, so that a call which kills its worker is not run without end.

The note is written before a call and taken away after it. A worker that finds one at its start knows that the one
before it died in that call. The notes carry a seal where the claim brings a key: the agent's user can delete them, and
so has more of its calls repeated, but it cannot write any.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
from typing import Any, Final, NamedTuple

from image.session.claim import LAST_DEATH, Ended
from image.session.worker.state_directory import StateDirectory

NOTES_NAME: Final = "calls"
MOST_DEATHS: Final = 2
"""A call that as many workers died of is not run again."""

_LONGEST: Final = 65_536  # bytes
_MOST_CALLS: Final = 100
_LONGEST_ID: Final = 256

log = logging.getLogger(__name__)


class _Surroundings(NamedTuple):
    """What tells one kind of end from another: the machine's start, and how often its memory has run out."""

    boot: str
    out_of_memory: int

    @classmethod
    def now(cls) -> _Surroundings:
        """Memory's ends are the sandbox's own where it has a group of its own, else the machine's."""
        own = _counter("/sys/fs/cgroup/memory.events")
        ends = _counter("/proc/vmstat") if own is None else own
        return cls(_text("/proc/sys/kernel/random/boot_id"), ends or 0)


class _Notes:
    def __init__(
        self,
        running: str | None = None,
        boot: str = "",
        out_of_memory: int = 0,
        deaths: dict[str, list[str]] | None = None,
    ) -> None:
        """`deaths`: by call, how each worker ended."""
        self.running = running
        self.boot = boot
        self.out_of_memory = out_of_memory
        self.deaths = {} if deaths is None else deaths


class CallNotes:
    """Made under the worker's lock: nobody else writes meanwhile. Not thread-safe."""

    def __init__(self, state: StateDirectory, key: str | None) -> None:
        self._state = state
        self._key = (key or "").encode()
        self._notes = self._read()
        self.last_death = ""
        """What the worker before this one died of, in words for the operator; empty where it did not."""
        self._count_death()

    def refusal(self, call_id: str) -> str | None:
        """Why this call must not be run, in words for the agent."""
        deaths = self._notes.deaths.get(call_id, [])
        if len(deaths) < MOST_DEATHS:
            return None
        return (
            f"This call was not run again: {len(deaths)} times the program that serves this sandbox's tools ended "
            f"while it was running ({', '.join(deaths)}). What it does may have happened in part, up to {len(deaths)} "
            "times. Look before you repeat it, and take a smaller step, one that uses less memory, or another way."
        )

    def began(self, call_id: str) -> None:
        now = _Surroundings.now()
        self._notes.running, self._notes.boot, self._notes.out_of_memory = call_id, now.boot, now.out_of_memory
        self._write()

    def ended(self) -> None:
        """The call that began last has a result, or the worker ends in order."""
        if self._notes.running is not None:
            self._notes.running = None
            self._write()

    def _count_death(self) -> None:
        call_id = self._notes.running
        if call_id is None:
            return
        now = _Surroundings.now()
        if now.boot != self._notes.boot:
            cause = "lost sandbox"
        elif now.out_of_memory > self._notes.out_of_memory:
            cause = "out of memory"
        else:
            cause = "killed"
        deaths = self._notes.deaths.setdefault(call_id, [])
        deaths.append(cause)
        if len(self._notes.deaths) > _MOST_CALLS:
            del self._notes.deaths[next(iter(self._notes.deaths))]
        self._notes.running = None
        self._write()
        given_up = "; it gets an error instead of a further run" if len(deaths) >= MOST_DEATHS else ""
        self.last_death = f"{LAST_DEATH}{call_id} ({cause}, time {len(deaths)}){given_up}"
        log.warning("call.killed_its_worker call=%s cause=%s deaths=%d", call_id, cause, len(deaths))

    def _read(self) -> _Notes:
        data = self._state.read(NOTES_NAME, _LONGEST)
        seal, _, body = data.partition(b"\n")
        if not data:
            return _Notes()
        if not hmac.compare_digest(seal, self._seal(body)):
            log.warning("calls.not_ours")
            return _Notes()
        try:
            return _checked(json.loads(body))
        except ValueError:
            return _Notes()

    def _write(self) -> None:
        body = json.dumps(vars(self._notes)).encode()
        try:
            self._state.replace(NOTES_NAME, self._seal(body) + b"\n" + body)
        except (OSError, Ended) as error:  # a full disk must not stop the agent from making room
            log.warning("calls.not_noted error=%s", error)

    def _seal(self, body: bytes) -> bytes:
        return hmac.new(self._key, b"calls\n" + body, hashlib.sha256).hexdigest().encode()


def _checked(raw: Any) -> _Notes:
    """Raises ValueError for anything but notes of ours: without a key the agent could have written them."""
    if not isinstance(raw, dict) or not isinstance(raw.get("deaths"), dict):
        raise ValueError
    running = raw.get("running")
    deaths = {
        str(call)[:_LONGEST_ID]: [cause for cause in causes if cause in ("lost sandbox", "out of memory", "killed")]
        for call, causes in list(raw["deaths"].items())[-_MOST_CALLS:]
        if isinstance(causes, list)
    }
    count = raw.get("out_of_memory")
    return _Notes(
        running=running[:_LONGEST_ID] if isinstance(running, str) else None,
        boot=str(raw.get("boot"))[:_LONGEST_ID],
        out_of_memory=count if isinstance(count, int) else 0,
        deaths=deaths,
    )


def _text(path: str) -> str:
    with contextlib.suppress(OSError), open(path, encoding="ascii", errors="replace") as file:
        return file.read().strip()
    return ""


def _counter(path: str) -> int | None:
    """The kernel's count of ends for lack of memory; None where it tells none."""
    for line in _text(path).splitlines():
        name, _, number = line.partition(" ")
        if name == "oom_kill" and number.isdigit():
            return int(number)
    return None
