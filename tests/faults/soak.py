"""The soak: four copies of the bundle, many sessions, faults on every route of both services, for minutes.

    python -m tests.faults.soak --seconds 600 --sessions 200

The copies are one server under uvicorn, one of functions-framework under gunicorn, and two that tick; webhooks go to
both servers, some twice and out of order. Each session has three turns of one tool call each, which appends a line of
its own to a file: the second turn comes while the worker idles, the third after it has left. In the end the faults
stop, what is unanswered is waited for, the lines are counted, the sandboxes are looked into, the sessions are archived,
and the tick loops must clean up after them. Three in four sessions are judged and ended so while the faults last.
Prints a report; exit status 1 where it has problems.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import anthropic
import httpx2

from tests.faults import soak_agents, soak_requests
from tests.faults.soak_ailing import ailing
from tests.faults.soak_judge import clean_up, count_calls, count_in_weather, judge, look_into_sandboxes, overdue, settle
from tests.faults.soak_redeploy import redeployed
from tests.faults.soak_report import Played, Report
from tests.faults.soak_users import User, play_all
from tests.faults.soak_weather import Scene, weather
from tests.support.footprint import watching
from tests.support.preloaded import Preloaded
from tests.support.serving import FRAMEWORK, TOKEN, UVICORN, serving, webhooks_to
from tests.support.world import ROOT, OfflineWorld, Place, offline_world

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
SLOWER_IN_WEATHER: Final = 3.0
"""Twenty sessions at once have two processors, where each has a machine of its own in the world: with a lease of 12 s
some twenty workers that start at the same moment all lose theirs, are started again, and never catch up."""
PATIENCE: Final = 150.0
"""Seconds that a user waits for one answer."""
TICK_PAUSE: Final = 1.0
ENDED: Final = 0.75
"""Of the sessions, how many their users archive or delete when they are through."""
AT_REST: Final = 60.0
"""Seconds in which a session's work ends after its last answer."""
COPIES_IN_WEATHER: Final = 7
"""Four, the one that is redeployed beside its successor, and the one that ails."""


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
    think: float = 0.0
    """Seconds that a user thinks before a further turn, on average; then its sandbox sleeps."""

    @property
    def slower(self) -> float:
        """By how much all that waits for a lost worker waits longer."""
        return SLOWER_IN_WEATHER if self.weather else 1.0

    @property
    def lease(self) -> float:
        """Seconds that an item's lease lasts."""
        return LEASE * self.slower

    @property
    def times(self) -> Mapping[str, str]:
        """The bundle's settings; what bounds a worker's idling stays."""
        idling = {"IDLE_GRACE_SECONDS", "END_GRACE_SECONDS", "RUNNER_MAX_IDLE_SECONDS"}
        return {name: each if name in idling else f"{self.slower * float(each):g}" for name, each in TIMES.items()}


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
        report.requests = soak_requests.so_far(world)


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
                told = json.loads(said.splitlines()[-1])
                report.ticks.update(told["counts"])
                report.failures.update(told["failures"])


@contextlib.contextmanager
def answering(place: Place, command: Sequence[str], pids: list[int] | None = None) -> Iterator[str]:
    """A server that webhooks go to; its address. `pids` gets its process id."""
    with serving(place, command, pids=pids) as url, webhooks_to(place, f"{url}/"):
        yield url


@contextlib.contextmanager
def copies(place: Place, report: Report) -> Iterator[Mapping[str, int]]:
    """The four copies, with webhooks to the two servers: their process ids by name."""
    with contextlib.ExitStack() as stack:
        pids = {}
        for name, command in (("uvicorn", UVICORN), ("gunicorn", FRAMEWORK)):
            begun: list[int] = []
            _warm(stack.enter_context(answering(place, command, begun)))
            pids[name] = begun[0]
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
def bad_times(scene: Scene, place: Place, report: Report, seconds: float) -> Iterator[None]:
    """Worse weather, a fifth copy that is redeployed each minute with a new key as another kind, and a sixth that is
    never well."""

    def told(key: str) -> None:
        report.weather["redeploys with a new key"] += 1
        report.rotated.append(key)

    kinds = (
        lambda there: answering(there, UVICORN),
        lambda there: ticking(there, report),
        lambda there: answering(there, FRAMEWORK),
    )
    with (
        weather(scene, report.weather, report.problems),
        redeployed(place, kinds, told, report.problems),
        ailing(place, seconds, TICK_PAUSE, report.weather, report.problems),
    ):
        yield


def leaving(
    place: Place, report: Report, ended: dict[str, float], *, weather: bool
) -> Callable[[User, Played, random.Random, threading.Event], None]:
    """How a user leaves its session: three in four are judged at once and archived or deleted, the others stay until
    the end. One that is not at rest within a minute stays, too. `ended` gets when each was (`time.monotonic`)."""

    def leave(user: User, played: Played, chance: random.Random, over: threading.Event) -> None:
        end_it = user.archive if chance.random() < 0.5 else user.delete
        if chance.random() >= ENDED:
            return
        late = time.monotonic() + AT_REST
        while not user.rested(played.session):
            if over.wait(1.0) or time.monotonic() > late:
                return

        def given_up() -> bool:
            return over.is_set() or time.monotonic() > late + AT_REST

        if not count_in_weather(place, played, report, given_up, weather=weather):
            return
        look_into_sandboxes(place, [played], report)
        with contextlib.suppress(anthropic.BadRequestError):  # it runs again: its call waited for nobody
            end_it(played.session)
            ended[played.session] = time.monotonic()

    return leave


def soak(options: SoakOptions, say: Callable[[str], None] = lambda line: None) -> Report:
    """Everything, from the two services on. Leaves nothing behind, however it ends."""
    report = Report(options.sessions)
    with offline_world(forked=options.forked) as world:
        knobs = {
            "lease_ttl": options.lease,
            "webhook_duplicates": 0.5,
            "webhook_reorder_window": 2.0,
            "webhook_drop": 0.1,
            "webhook_backoff_scale": 0.05,
        }
        world.claude_admin.patch("settings", knobs)
        place = world.place(**options.times)
        with copies(place, report) as pids:
            say(f"four copies run: {', '.join(pids)}")
            began = time.monotonic()
            ended: dict[str, float] = {}
            scene = Scene(world, pids, random.Random(options.seed), options.lease)
            with (
                watching(pids, max(0.5, options.seconds / 120)) as watch,
                soak_requests.busiest_minute(world, lambda most: setattr(report, "busiest", most)),
                faulty(world, report),
            ):
                bad = soak_agents.begin(place) if options.weather else {}
                times = bad_times(scene, place, report, options.seconds)
                with times if options.weather else contextlib.nullcontext():
                    played = play_all(
                        place,
                        options.sessions,
                        options.users,
                        options.seconds,
                        PATIENCE * options.slower,
                        say,
                        report.problems,
                        think=options.think,
                        seed=options.seed,
                        leave=leaving(place, report, ended, weather=options.weather),
                    )
                overdue(place, ended, report, options.settle * options.slower)
            report.seconds = time.monotonic() - began
            report.peaks = watch.peaks()
            report.growths = watch.growths(warm_up=0.25 * report.seconds)
            say("the faults are over; what is unanswered is waited for")
            soak_agents.end(place, bad)
            report.ended = len(ended)
            kept = [each for each in played if each.session not in ended]
            unanswered = settle(place, kept, options.settle * options.slower)
            count_calls(place, kept, report, weather=options.weather)
            look_into_sandboxes(place, kept, report)
            say("the sessions that are left are archived")
            clean_up(place, kept, report, options.settle * options.slower)
        number = COPIES_IN_WEATHER if options.weather else len(pids)
        judge(report, played, unanswered, place, users=options.users, copies=number)
    return report


def main() -> int:
    defaults = SoakOptions()
    parser = argparse.ArgumentParser(prog="python -m tests.faults.soak", description="minutes under faults")
    parser.add_argument("--seconds", type=float, default=defaults.seconds, help="sessions are begun for so long")
    parser.add_argument("--sessions", type=int, default=defaults.sessions, help="sessions at most, of three turns each")
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of the weather's order")
    parser.add_argument("--weather", action="store_true", help="copies and services that stand still, bad agents, ...")
    parser.add_argument("--users", type=int, default=defaults.users, help="sessions at once")
    parser.add_argument("--think", type=float, default=defaults.think, help="seconds before a further turn, on average")
    args = parser.parse_args()
    wanted = SoakOptions(
        args.seconds, args.sessions, args.users, seed=args.seed, weather=args.weather, think=args.think
    )
    for number in (signal.SIGINT, signal.SIGTERM):  # either ends all that runs, a soak in the background, too
        signal.signal(number, signal.default_int_handler)
    try:
        report = soak(wanted, lambda line: print(line, flush=True))
    except KeyboardInterrupt:
        return 130
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
