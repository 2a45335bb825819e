"""What is asked once the soak's faults are over: was anything lost, doubled, mixed up, ended, told, left or let grow
(docs/soak.md#what-is-judged)?"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import anthropic

from shared import names
from shared.adapters.open_calls import LOST_CALL
from shared.claims.dispatcher import Dispatcher
from shared.ports import Absent, SandboxRecord
from tests.faults.soak_report import Played, Report
from tests.faults.soak_users import TURNS, User
from tests.support.footprint import tree
from tests.support.serving import TOKEN
from tests.support.signing import KEY
from tests.support.world import API_KEY, Place

MEMORY_BOUND: Final = 16.0
"""MB that a copy's memory may grow from the first third of the time after the warm-up to the last third."""
FILES_BOUND: Final = 12
"""Open files that a copy may have more of, compared in the same way: connections come and go with the load."""
MEMORY_PEAK: Final = 400.0
"""MB that a copy may have at any moment."""
FILES_PEAK: Final = 256
"""Open files at any moment."""
REQUESTS_OF_A_USER: Final = 600
"""A minute: a user looks every 0.4 s, and a worker beats and posts."""
REQUESTS_OF_A_COPY: Final = 1200
"""A minute: a tick each second of at most twenty calls (docs/architecture.md#i9)."""
_LARGEST: Final = 1_000_000
_SECRETS: Final = ("ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY")


def settle(place: Place, played: Sequence[Played], seconds: float) -> list[Played]:
    """Wait without faults; the sessions that were not answered in full for all that."""
    user = User(place)
    waiting = list(played)
    end = time.monotonic() + seconds
    try:
        while waiting and time.monotonic() < end:
            waiting = [each for each in waiting if not user.through(each.session)]
            time.sleep(0.5 if waiting else 0)
        while time.monotonic() < end and any(place.item(each.session)["state"] != "stopped" for each in played):
            time.sleep(0.5)
    finally:
        user.close()
    return waiting


def count_calls(place: Place, played: Sequence[Played], report: Report, *, weather: bool = False) -> None:
    """Each turn's call has left exactly one line in its session's own sandbox, or one more for each time that its turn
    was interrupted. In worse weather one may be missing where the agent was told that its call's worker was lost
    (shared/adapters/open_calls.py)."""

    async def count() -> None:
        async with place.dispatcher() as dispatcher:
            for each in played:
                data = await _lines(dispatcher, place.sandbox(each.session))
                if isinstance(data, str):
                    report.problems.append(f"{each.session}: {data}")
                else:
                    _judge_lines(place, each, data, report, weather=weather)

    asyncio.run(count())


def count_in_weather(
    place: Place, played: Played, report: Report, given_up: Callable[[], bool], *, weather: bool = False
) -> bool:
    """The same for one session while the faults last, with a new try for each answer that fails; False where it is
    `given_up` before."""

    async def count() -> bytes | None:
        async with place.dispatcher() as dispatcher:
            while not given_up():
                data = await _lines(dispatcher, place.sandbox(played.session))
                if isinstance(data, bytes):
                    return data
                await asyncio.sleep(1.0)
        return None

    data = asyncio.run(count())
    if data is None:
        return False
    _judge_lines(place, played, data, report, weather=weather)
    return True


async def _lines(dispatcher: Dispatcher, name: str) -> bytes | str:
    """What the session's calls have left; none where the file is not there. Or why it cannot be told."""
    found = await dispatcher.host.find(name)
    if not isinstance(found, SandboxRecord):
        return f"no sandbox to count in: {found}"
    data = await dispatcher.host.read_file(found.id, "/workspace/runs", 100_000)
    return b"" if isinstance(data, Absent) else data if isinstance(data, bytes) else f"its lines are not known: {data}"


def _judge_lines(place: Place, played: Played, data: bytes, report: Report, *, weather: bool) -> None:
    lines = Counter(data.decode().split())
    doubled = sum(count - 1 for count in lines.values())
    told = lost_calls(place, played.session)
    turns = {f"{played.mark}-{turn}" for turn in range(1, TURNS + 1)}
    with report.lock:
        report.calls += lines.total()
        report.told += len(told)
        wrong = not set(lines) <= turns or len(turns - set(lines)) > (len(told) if weather else 0)
        if wrong or doubled > played.interrupts:
            why = "".join(f"; told: {text[:300]!r}" for text in told)
            report.problems.append(f"{played.session}: calls {dict(lines)}, interrupts {played.interrupts}{why}")


def lost_calls(place: Place, session: str) -> list[str]:
    """What the agent of a session was told in place of results, as a worker was lost."""
    with contextlib.closing(User(place)) as user:
        return [text for text in user.error_results(session) if text == LOST_CALL]


def look_into_sandboxes(place: Place, played: Sequence[Played], report: Report) -> None:
    """Before the sessions are archived none of their sandboxes was ended (docs/architecture.md#i5), and none has a
    standing credential, rotated ones too, in a file or in what a process shows (docs/architecture.md#i6)."""
    known = {place.sandbox(each.session): each.session for each in played}
    keys = [place.environ[name] for name in _SECRETS] + [API_KEY, KEY, TOKEN, *report.rotated]
    wanted = [key.encode() for key in keys]
    named = f"?named={next(iter(known))}" if len(known) == 1 else ""
    for box in place.world.tensorlake_admin.get(f"state{named}")["sandboxes"]:
        session = known.get(box["name"] or "")
        if session is None:
            continue
        if box["status"] == "terminated":
            why = box.get("termination_reason")
            report.problems.append(f"{session}: its sandbox was ended before it was over: {why}")
        elif "box" in box:
            found = list(_readable(box["box"]))
            with report.lock:
                report.looked += len(found)
            for where, data in found:
                if any(secret in data for secret in wanted):
                    report.problems.append(f"{session}: a credential is in {where}")


def _readable(box: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    """What this process can read of a sandbox: files that are its own, arguments and environments."""
    for top in ("upper", "root"):
        for folder, _, files in os.walk(Path(box["directory"], top)):
            for name in files:
                path = Path(folder, name)
                with contextlib.suppress(OSError):
                    if path.is_file() and not path.is_symlink() and path.stat().st_size <= _LARGEST:
                        yield str(path), path.read_bytes()
    for pid in tree(box["pid"]):
        for part in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                yield f"{part} of process {pid}", Path(f"/proc/{pid}/{part}").read_bytes()


def overdue(place: Place, ended: Mapping[str, float], report: Report, seconds: float) -> None:
    """While the faults last, too: what belongs to a session that was archived or deleted more than so long ago is
    gone. `ended`: by session, when (`time.monotonic`)."""
    now = time.monotonic()
    due = {place.sandbox(session): now - when for session, when in ended.items() if now - when > seconds}
    for box in place.world.tensorlake_admin.get("state")["sandboxes"]:
        if box["status"] != "terminated" and (ago := due.get(box["name"] or "")) is not None:
            report.problems.append(f"left: {box['name']} {box['status']}, {ago:.0f} s after its session's end")


def clean_up(place: Place, played: Sequence[Played], report: Report, seconds: float) -> None:
    """Archive all sessions that are not, and wait for the tick loops to end their sandboxes."""
    user = User(place)
    began = time.monotonic()
    try:
        for each in played:
            user.archive(each.session)
    except anthropic.APIError as error:
        report.problems.append(f"a session could not be archived: {error}")
    finally:
        user.close()
    while (left := _left(place)) and time.monotonic() - began < seconds:
        time.sleep(1)
    report.cleaned_in = time.monotonic() - began
    report.problems += [f"left: {what}" for what in left]


def _left(place: Place) -> list[str]:
    """Every sandbox that is not ended, whatever its name is by now, and the snapshots of this environment."""
    tag = f"-{names.environment_tag(place.environment_id)}-"
    state = place.world.tensorlake_admin.get("state")
    boxes = [f"{box['name']} {box['status']}" for box in state["sandboxes"] if box["status"] != "terminated"]
    known = {box["id"] for box in state["sandboxes"] if tag in (box["name"] or "")}
    return boxes + [f"snapshot {each['id']}" for each in state["snapshots"] if each["sandbox_id"] in known]


def judge(
    report: Report, played: Sequence[Played], unanswered: Sequence[Played], place: Place, *, users: int, copies: int
) -> None:
    """`users`, `copies`: how many at once; their requests have a budget in each minute."""
    for each in unanswered:
        report.problems.append(f"lost: {each.session}, its items {json.dumps(place.items(each.session))[-600:]}")
    for grown in report.growths:
        if grown.rss > MEMORY_BOUND:
            report.problems.append(f"{grown.name}: memory grew by {grown.rss:.1f} MB")
        if grown.files > FILES_BOUND:
            report.problems.append(f"{grown.name}: open files grew by {grown.files:.0f}")
    for name, (memory, files) in report.peaks.items():
        if memory > MEMORY_PEAK:
            report.problems.append(f"{name}: it once had {memory:.1f} MB")
        if files > FILES_PEAK:
            report.problems.append(f"{name}: it once had {files} open files")
    budget = REQUESTS_OF_A_USER * users + REQUESTS_OF_A_COPY * copies
    if report.busiest > budget:
        report.problems.append(f"{report.busiest} requests in one minute, where {budget} are the most")
    report.begun = len(played)
    report.slowest = max((each.seconds for each in played), default=0.0)
    report.turns = TURNS * (len(played) - len(unanswered))
    report.interrupts = sum(each.interrupts for each in played)
