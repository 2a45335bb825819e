"""The soak: four copies of the bundle, many sessions, faults on every route of both services, for minutes.

    python -m tests.faults.soak --seconds 600 --sessions 200

The copies are one server under uvicorn, one of functions-framework under gunicorn, and two that tick; webhooks go to
both servers, some twice and out of order. Each session has three turns of one tool call each, which appends a line of
its own to a file: the second turn comes while the worker idles, the third after it has left. In the end the faults
stop, what is unanswered is waited for, the lines are counted, the sessions are archived, and the tick loops must clean
up after them. Prints a report; exit status 1 where it has problems.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import queue
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import anthropic
import httpx2

from shared import names
from shared.adapters.open_calls import LOST_CALL
from shared.ports import Absent, SandboxRecord
from tests.faults import soak_agents
from tests.faults.soak_redeploy import redeployed
from tests.faults.soak_weather import Scene, weather
from tests.support.footprint import Growth, watching
from tests.support.preloaded import Preloaded
from tests.support.serving import FRAMEWORK, TOKEN, UVICORN, serving, webhooks_to
from tests.support.world import API_KEY, ROOT, OfflineWorld, Place, offline_world

TURNS: Final = 3
FAULTS: Final[Sequence[Mapping[str, Any]]] = (
    {"action": "status", "status": 500},
    {"action": "status", "status": 503},
    {"action": "drop_before"},
    {"action": "drop_after"},
    {"action": "delay", "seconds": 0.5},
)
SHARE: Final = 0.05
"""Of the requests to every route of both services that are spoiled."""

TIMES: Final = {
    "RECLAIM_SECONDS": "15",
    "BIND_SECONDS": "6",
    "HANDOVER_SECONDS": "8",
    "STRANDED_SECONDS": "20",
    "DRAIN_DEADLINE_SECONDS": "40",
    "IDLE_GRACE_SECONDS": "2",
    "END_GRACE_SECONDS": "1",
    "RUNNER_MAX_IDLE_SECONDS": "1.5",
}
LEASE: Final = 12.0
TICK_PAUSE: Final = 1.0
TURN_PATIENCE: Final = 150.0
"""Seconds that a user waits for one answer; what comes later must still come before the settling is over."""

MEMORY_BOUND: Final = 16.0
"""MB that a copy's memory may grow from the first third of the time after the warm-up to the last third."""
FILES_BOUND: Final = 12
"""Open files that a copy may have more of, compared in the same way: connections come and go with the load."""


@dataclass(frozen=True, slots=True)
class SoakOptions:
    """seconds: how long sessions are begun; sessions: how many at most; users: how many at once;
    settle: bound of each of the two waits after the faults; forked: as `offline_world` has it."""

    seconds: float = 600.0
    sessions: int = 200
    users: int = 10
    settle: float = 180.0
    forked: bool = False
    seed: int = 0
    weather: bool = False
    """Worse weather (tests/faults/soak_weather.py) and bad agents (tests/faults/soak_agents.py), too."""


@dataclass(frozen=True, slots=True)
class Played:
    """What a user saw of a session. `said`: the turns asked for, one more for each that was interrupted."""

    session: str
    said: int
    interrupts: int
    seconds: float


@dataclass
class Report:
    """What the soak found. `problems` empty: every rule held."""

    wanted: int
    begun: int = 0
    turns: int = 0
    seconds: float = 0.0
    cleaned_in: float = 0.0
    interrupts: int = 0
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    weather: Counter[str] = field(default_factory=Counter)
    slowest: float = 0.0
    told: int = 0
    """Calls that were answered with an error, as their worker was lost."""
    requests: int = 0
    ticks: Counter[str] = field(default_factory=Counter)
    growths: list[Growth] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        rows = [
            f"sessions {self.begun} of {self.wanted}, turns {self.turns} in {self.seconds:.0f} s"
            f" ({60 * self.turns / max(self.seconds, 1):.1f} a minute), tool calls {self.calls}",
            f"requests {self.requests}, of these spoiled {sum(self.faults.values())}: "
            + ", ".join(f"{name} {count}" for name, count in sorted(self.faults.items())),
            "tick loops: " + ", ".join(f"{name} {count}" for name, count in sorted(self.ticks.items())),
            f"interrupted turns {self.interrupts}, agents told of a lost call {self.told};"
            f" cleaned up in {self.cleaned_in:.0f} s",
            "weather: " + (", ".join(f"{name} {count}" for name, count in sorted(self.weather.items())) or "none"),
            f"the slowest session took {self.slowest:.0f} s",
            f"{'copy':<14}{'samples':>8}{'MB before':>11}{'after':>8}{'files before':>14}{'after':>7}",
        ]
        rows += [
            f"{it.name:<14}{it.samples:>8}{it.rss_before:>11.1f}{it.rss_after:>8.1f}"
            f"{it.files_before:>14.0f}{it.files_after:>7.0f}"
            for it in self.growths
        ]
        rows += [f"PROBLEM {problem}" for problem in self.problems] or ["no problem"]
        return "\n".join(rows)


def rules(host: str | None) -> list[dict[str, Any]]:
    """`host`: only requests to this name, for a test's own calls must be exact: a create that is sent again after a
    lost answer would make a second session."""
    each = SHARE / len(FAULTS)
    return [{**fault, "probability": each, **({"host": host} if host else {})} for fault in FAULTS]


@contextlib.contextmanager
def faulty(world: OfflineWorld, report: Report) -> Iterator[None]:
    """Faults on every route for as long as the block lasts; then what they did is in the report."""
    claude, tensorlake = world.claude_admin, world.tensorlake_admin
    claude.post("faults", rules(r"^127\.0\.0\.1"))
    tensorlake.post("faults", rules(None))
    try:
        yield
    finally:
        for name, admin in (("claude", claude), ("tensorlake", tensorlake)):
            for rule in admin.get("faults")["data"]:
                report.faults[f"{name} {rule['action']} {rule['status'] or ''}".strip()] += rule["fired"]
            admin.delete("faults")
        report.requests += sum(claude.get("requests")["counts"].values())
        report.requests += tensorlake.get("counts")["total"]


@contextlib.contextmanager
def ticking(place: Place, report: Report) -> Iterator[int]:
    """A tick loop in a process of its own; its process id. What its ticks did goes into the report."""
    with tempfile.TemporaryFile() as errors:
        process = Preloaded(
            ["-m", "tests.support.scheduling", str(TICK_PAUSE)],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **place.environ},
            stdout=subprocess.PIPE,
            stderr=errors,
            start_new_session=True,
        )
        try:
            yield process.pid
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                said, _ = process.communicate(timeout=100)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
            if process.returncode != 0:
                errors.seek(0)
                tail = errors.read().decode(errors="replace")[-2000:]
                report.problems.append(f"a tick loop ended with {process.returncode}: {tail}")
            else:
                report.ticks.update(json.loads(said))


@contextlib.contextmanager
def copies(place: Place, report: Report) -> Iterator[Mapping[str, int]]:
    """The four copies, with webhooks to the two servers: their process ids by name."""
    with contextlib.ExitStack() as stack:
        pids = {}
        for name, command in (("uvicorn", UVICORN), ("gunicorn", FRAMEWORK)):
            begun: list[int] = []
            url = stack.enter_context(serving(place, command, pids=begun))
            pids[name] = begun[0]
            _warm(url)
            stack.enter_context(webhooks_to(place, f"{url}/"))
        for number in (1, 2):
            pids[f"tick loop {number}"] = stack.enter_context(ticking(place, report))
        yield pids


def _warm(url: str) -> None:
    """A first tick imports the SDKs; what it takes for good is no growth."""
    answer = httpx2.post(
        f"{url}/poll_tick", headers={"authorization": f"Bearer {TOKEN}"}, timeout=60.0, trust_env=False
    )
    answer.raise_for_status()


@contextlib.contextmanager
def bad_times(scene: Scene, place: Place, report: Report) -> Iterator[None]:
    """Worse weather, and a fifth copy that is redeployed each minute with a new key."""

    def told() -> None:
        report.weather["redeploys with a new key"] += 1

    with (
        weather(scene, report.weather, report.problems),
        redeployed(place, lambda there: ticking(there, report), told, report.problems),
    ):
        yield


class User:
    """One session's user, by a client of its own that no fault hits."""

    def __init__(self, place: Place) -> None:
        self._place = place
        url = place.world.claude.url.replace("127.0.0.1", "localhost")
        self._api = anthropic.Anthropic(api_key=API_KEY, base_url=url, max_retries=0, timeout=30.0)

    def play(self) -> Played:
        began = time.monotonic()
        session = self._api.beta.sessions.create(
            agent=self._place.world.agent_id,
            environment_id=self._place.environment_id,
            initial_events=[_message(_prompt(1))],
        ).id
        said, interrupts = 1, 0
        for turn in range(1, TURNS + 1):
            if turn > 1:
                self._api.beta.sessions.events.send(session, events=[_message(_prompt(turn))])
                said += 1
            end = time.monotonic() + TURN_PATIENCE
            while self.answers(session) < turn and time.monotonic() < end:
                time.sleep(0.4)
                if (now := self.interrupts(session)) > interrupts:
                    # The repair of a stranded item ends its turn; a user asks again.
                    interrupts = now
                    self._api.beta.sessions.events.send(session, events=[_message(_prompt(turn))])
                    said += 1
            if turn == TURNS - 1:
                self._wait_for_the_worker_to_leave(session)
        return Played(session, said, interrupts, time.monotonic() - began)

    def close(self) -> None:
        self._api.close()

    def answers(self, session: str) -> int:
        return self._count(session, "agent.message")

    def interrupts(self, session: str) -> int:
        return self._count(session, "user.interrupt")

    def archive(self, session: str) -> None:
        self._api.beta.sessions.archive(session)

    def _count(self, session: str, kind: Literal["agent.message", "user.interrupt"]) -> int:
        return len(list(self._api.beta.sessions.events.list(session, types=[kind])))

    def _wait_for_the_worker_to_leave(self, session: str) -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            if self._place.item(session)["state"] == "stopped":
                time.sleep(TICK_PAUSE + float(TIMES["IDLE_GRACE_SECONDS"]))  # time for a tick to suspend the sandbox
                return
            time.sleep(0.5)


def _prompt(turn: int) -> str:
    return f"$ echo turn-{turn} >> /workspace/runs"


def _message(text: str) -> Any:
    return {"type": "user.message", "content": [{"type": "text", "text": text}]}


def play_all(place: Place, options: SoakOptions, say: Callable[[str], None]) -> list[Played]:
    """So many users at once, each with one session after the other, until count or time is reached."""
    numbers: queue.SimpleQueue[int] = queue.SimpleQueue()
    for number in range(options.sessions):
        numbers.put(number)
    began = time.monotonic()
    played: list[Played] = []
    over = threading.Event()

    def play(delay: float) -> None:
        user = User(place)
        try:
            if over.wait(delay):
                return
            while time.monotonic() - began < options.seconds and not over.is_set():
                try:
                    numbers.get_nowait()
                except queue.Empty:
                    return
                played.append(user.play())
        finally:
            user.close()

    def progress() -> None:
        while not over.wait(15):
            say(f"{time.monotonic() - began:.0f} s: {len(played)} sessions are through")

    with ThreadPoolExecutor(options.users + 1) as pool:
        pool.submit(progress)
        users = [pool.submit(play, 0.3 * number) for number in range(options.users)]
        try:
            for each in users:
                each.result()
        finally:
            over.set()
    return played


def settle(place: Place, played: Sequence[Played], seconds: float) -> list[Played]:
    """Wait without faults; the sessions that were not answered in full for all that."""
    user = User(place)
    waiting = list(played)
    end = time.monotonic() + seconds
    try:
        while waiting and time.monotonic() < end:
            waiting = [each for each in waiting if user.answers(each.session) < TURNS]
            time.sleep(0.5 if waiting else 0)
        while time.monotonic() < end and any(place.item(each.session)["state"] != "stopped" for each in played):
            time.sleep(0.5)
    finally:
        user.close()
    return waiting


def count_calls(place: Place, played: Sequence[Played], report: Report, *, weather: bool = False) -> None:
    """Each turn's call has left exactly one line, or one more for each time that its turn was interrupted. In worse
    weather one may be missing where the agent was told that its call's worker was lost
    (shared/adapters/open_calls.py)."""

    async def count() -> None:
        async with place.dispatcher() as dispatcher:
            for each in played:
                found = await dispatcher.host.find(place.sandbox(each.session))
                if not isinstance(found, SandboxRecord):
                    report.problems.append(f"{each.session}: no sandbox to count in: {found}")
                    continue
                data = await dispatcher.host.read_file(found.id, "/workspace/runs", 100_000)
                lines = Counter(data.decode().split() if isinstance(data, bytes) else [])
                report.calls += lines.total()
                extra = lines.total() - TURNS
                told = lost_calls(place, each.session)
                report.told += len(told)
                turns = {f"turn-{turn}" for turn in range(1, TURNS + 1)}
                wrong = not set(lines) <= turns or len(turns - set(lines)) > (len(told) if weather else 0)
                if wrong or extra > each.interrupts:
                    why = "" if isinstance(data, bytes | Absent) else f" ({data})"
                    why += "".join(f"; told: {text[:300]!r}" for text in told)
                    report.problems.append(f"{each.session}: calls {dict(lines)}, interrupts {each.interrupts}{why}")

    asyncio.run(count())


def lost_calls(place: Place, session: str) -> list[str]:
    """What the agent of a session was told in place of results, as a worker was lost."""
    found = []
    for event in place.world.api.beta.sessions.events.list(session, types=["user.tool_result"]):
        if event.type == "user.tool_result" and event.is_error:
            found.append("".join(block.text for block in event.content or () if block.type == "text"))
    return [text for text in found if text == LOST_CALL]


def clean_up(place: Place, played: Sequence[Played], report: Report, seconds: float) -> None:
    """Archive all sessions and wait for the tick loops to end their sandboxes."""
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


def judge(report: Report, played: Sequence[Played], unanswered: Sequence[Played], place: Place) -> None:
    for each in unanswered:
        report.problems.append(f"lost: {each.session}, its items {json.dumps(place.items(each.session))[-600:]}")
    for grown in report.growths:
        if grown.rss > MEMORY_BOUND:
            report.problems.append(f"{grown.name}: memory grew by {grown.rss:.1f} MB")
        if grown.files > FILES_BOUND:
            report.problems.append(f"{grown.name}: open files grew by {grown.files:.0f}")
    report.begun = len(played)
    report.slowest = max((each.seconds for each in played), default=0.0)
    report.turns = TURNS * (len(played) - len(unanswered))
    report.interrupts = sum(each.interrupts for each in played)


def soak(options: SoakOptions, say: Callable[[str], None] = lambda line: None) -> Report:
    """Everything, from the two services on. Leaves nothing behind, however it ends."""
    report = Report(options.sessions)
    with offline_world(forked=options.forked) as world:
        knobs = {
            "lease_ttl": LEASE,
            "webhook_duplicates": 0.5,
            "webhook_reorder_window": 2.0,
            "webhook_drop": 0.1,
            "webhook_backoff_scale": 0.05,
        }
        world.claude_admin.patch("settings", knobs)
        place = world.place(**TIMES)
        with copies(place, report) as pids:
            say(f"four copies run: {', '.join(pids)}")
            began = time.monotonic()
            scene = Scene(world, pids, random.Random(options.seed))
            with watching(pids, max(0.5, options.seconds / 120)) as watch, faulty(world, report):
                bad = soak_agents.begin(place) if options.weather else {}
                with bad_times(scene, place, report) if options.weather else contextlib.nullcontext():
                    played = play_all(place, options, say)
            report.seconds = time.monotonic() - began
            report.growths = watch.growths(warm_up=0.25 * report.seconds)
            say("the faults are over; what is unanswered is waited for")
            soak_agents.end(place, bad)
            unanswered = settle(place, played, options.settle)
            count_calls(place, played, report, weather=options.weather)
            say("the sessions are archived")
            clean_up(place, played, report, options.settle)
        judge(report, played, unanswered, place)
    return report


def main() -> int:
    defaults = SoakOptions()
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="minutes under faults")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="sessions are begun for so long")
    parser.add_argument("--sessions", type=int, default=defaults.sessions, help="sessions at most, of three turns each")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the weather's order")
    parser.add_argument("--weather", action="store_true", help="copies and services that stand still, bad agents, ...")
    parser.add_argument("--users", type=int, default=defaults.users, help="sessions at once")
    args = parser.parse_args()
    wanted = SoakOptions(args.seconds, args.sessions, args.users, seed=args.seed, weather=args.weather)
    report = soak(wanted, lambda line: print(line, flush=True))
    if report.begun < report.wanted:
        report.problems.append(f"the time was enough for {report.begun} of {report.wanted} sessions")
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
