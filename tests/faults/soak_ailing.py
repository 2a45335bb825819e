"""A copy that is never well, beside the soak's other ones: it has one ailment after the other.

It ticks like the others, in an interpreter of its own, for `tests/support/ailments.py` needs a real start. What it does
must cost the sessions nothing, and when the ailment is over it must go on. It may die of one alone: of too little
memory, as its platform would have it killed.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.faults.soak_weather import JUMP
from tests.support.ailments import (
    AilingSurroundings,
    CannotAil,
    Names,
    enough_memory,
    full_disk,
    little_memory,
    wrong_clock,
)
from tests.support.beside import beside
from tests.support.footprint import tree
from tests.support.world import ROOT, Place

SPELL: Final = (10.0, 150.0)
"""Seconds that one ailment lasts, from and to: a twelfth of the soak, so that each comes twice."""
_JUMP_EVERY: Final = 3
_END: Final = 100.0
_FLUSHED: Final = 120
"""An interpreter's status where its last words could not be written."""


@dataclass(frozen=True, slots=True)
class Ailment:
    """`begin` and `end` get the process id of the copy that ticks; `statuses`: how it may end, None for any; `log`:
    where its log goes, None for a file of its own; `environ`: settings of its own."""

    surroundings: AilingSurroundings
    begin: Callable[[int], None] = lambda pid: None
    end: Callable[[int], None] = lambda pid: None
    statuses: frozenset[int] | None = frozenset({0})
    log: Path | None = None
    environ: Mapping[str, str] | None = None


def no_names(folder: Path, place: Place) -> Ailment:
    """Neither service has an address, as where DNS fails for minutes."""
    names = Names(folder)
    by_name = {
        name: value.replace("127.0.0.1", "localhost")
        for name, value in place.environ.items()
        if name in ("ANTHROPIC_BASE_URL", "TENSORLAKE_API_URL")
    }
    return Ailment(names.surroundings, lambda pid: names.fail(), lambda pid: names.mend(), environ=by_name)


def no_room(folder: Path, place: Place) -> Ailment:
    """Home and temporary files are on a full disk, and so is the log."""
    return Ailment(full_disk(folder), statuses=frozenset({0, _FLUSHED}), log=Path("/dev/full"))


def clock_jumps(folder: Path, place: Place) -> Ailment:
    """Ten minutes ahead and ten behind in turn, every three seconds."""
    return Ailment(wrong_clock(folder, round(JUMP), _JUMP_EVERY))


def no_memory(folder: Path, place: Place) -> Ailment:
    """Not a megabyte more than it has after its first tick."""
    return Ailment(AilingSurroundings(), little_memory, enough_memory, statuses=None)


AILMENTS: Final[Mapping[str, Callable[[Path, Place], Ailment]]] = {
    kind.__name__.replace("_", " "): kind for kind in (no_names, no_room, clock_jumps, no_memory)
}


@contextlib.contextmanager
def ailing(place: Place, seconds: float, pause: float, seen: Counter[str], problems: list[str]) -> Iterator[None]:
    """One more copy that pauses so long between its ticks, until the block is left. `seconds`: how long the soak lasts.
    `seen` counts each ailment once the copy has ticked and then had it, and what the machine cannot make."""
    spell = min(max(seconds / 12, SPELL[0]), SPELL[1])

    def ail(over: threading.Event) -> None:
        try:
            while not over.is_set():
                for name, kind in AILMENTS.items():
                    if over.is_set():
                        return
                    _have(name, kind, place, pause, lambda: over.wait(spell), seen, problems)
        except Exception as error:  # the thread's edge
            problems.append(f"the copy that ails broke: {error!r}")

    with beside("ailing", ail):
        yield


def _have(
    name: str,
    kind: Callable[[Path, Place], Ailment],
    place: Place,
    pause: float,
    wait: Callable[[], object],
    seen: Counter[str],
    problems: list[str],
) -> None:
    """The copy starts well, ticks, has its ailment, is well again and is ended."""
    with tempfile.TemporaryDirectory(prefix="ailing-") as folder:
        try:
            ailment = kind(Path(folder), place)
        except CannotAil as error:
            seen[f"not tried: {name} ({error})"] += 1
            wait()
            return
        with _copy(ailment, place, pause) as (process, errors):
            assert process.stdout is not None
            ticked = process.stdout.readline()
            pid = tree(process.pid)[-1]
            ailment.begin(pid)
            wait()
            ailment.end(pid)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            status = _ended(process)
            seen[f"copy with {name}"] += 1 if ticked else 0
            if ailment.statuses is None and status:
                seen[f"copy died of {name}"] += 1
            elif ailment.statuses is not None and status not in ailment.statuses:
                problems.append(f"the copy with {name} ended with {status}: {_tail(errors)}")


@contextlib.contextmanager
def _copy(ailment: Ailment, place: Place, pause: float) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    with (
        tempfile.TemporaryFile() as errors,
        contextlib.nullcontext(errors) if ailment.log is None else ailment.log.open("wb") as log,
    ):
        process = subprocess.Popen(
            [*ailment.surroundings.prefix, sys.executable, "-m", "tests.support.scheduling", str(pause)],
            cwd=ROOT,
            env={
                "PATH": os.environ["PATH"],
                **place.environ,
                **ailment.surroundings.environ,
                **(ailment.environ or {}),
            },
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
        )
        try:
            yield process, errors
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def _tail(log: Any) -> str:
    log.seek(0)
    return str(log.read().decode(errors="replace")[-2000:])


def _ended(process: subprocess.Popen[bytes]) -> int | None:
    """Its status; None where it does not end."""
    try:
        process.communicate(timeout=_END)
    except subprocess.TimeoutExpired:
        return None
    return process.returncode
