"""Every command on one session, among a thousand sandboxes and a thousand other work items at 50 ms a round trip: a
whole process each, on sessions that a server really serves. What a session must first be brought to is not timed."""

from __future__ import annotations

import contextlib
import os
import pty
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import httpx2

from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median
from tests.benchmarks.stage import ROUND_TRIP, SETTING, crowd, delays, production_place, stage, wait_ready
from tests.support.command_line import PseudoTerminal
from tests.support.serving import UVICORN, serving, webhooks_to
from tests.support.waiting import PATIENCE, until
from tests.support.world import API_KEY, ROOT, Place

RUNS: Final = 3
OTHERS: Final = 1_000
AIM_SECONDS: Final = 2.0
SLEEP: Final = 0.5  # seconds that the service takes to put a sandbox to sleep, and to wake it
_REST: Final = "write kept.txt: it was kept"
_WORK: Final = "$ sleep 600"


@dataclass
class _Times:
    """Of one command: seconds of the clock, seconds of a processor, and calls where nobody else makes any."""

    clock: list[float] = field(default_factory=list)
    processor: list[float] = field(default_factory=list)
    calls: int | None = None
    service: float = 0.0


class _Bench:
    def __init__(self, place: Place) -> None:
        self.place = place
        self.environ = {
            **os.environ,
            **place.environ,
            "ANTHROPIC_API_KEY": API_KEY,
            "ANTHROPIC_AGENT_ID": place.world.agent_id,
            "TERM": "dumb",
        }
        self.times: dict[str, _Times] = {}

    def run(self, what: str, *command: str, service: float = 0.0, counted: bool = True) -> None:
        """`service`: seconds that are the service's own. `counted`: nothing else makes calls meanwhile."""
        self._counts(reset=True)
        with self._timed(what):
            done = subprocess.run(_started(command), cwd=ROOT, env=self.environ, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"hands {what} ended with {done.returncode}: {done.stderr}")
        self.times[what].service = service
        self.times[what].calls = self._counts() if counted else None

    def until_shown(self, what: str, words: str, *command: str, service: float = 0.0) -> None:
        """Seconds until these words are on a terminal. The command is then ended as a person would."""
        ours, theirs = pty.openpty()
        began = time.monotonic()
        process = subprocess.Popen(
            _started(command),
            cwd=ROOT,
            env=self.environ,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            PseudoTerminal(ours, process).expect(words)
            seen = self.times.setdefault(what, _Times())
            seen.clock.append(time.monotonic() - began)
            seen.service = service
        finally:
            os.close(ours)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()

    @contextlib.contextmanager
    def _timed(self, what: str) -> Iterator[None]:
        began, used = time.monotonic(), _used()
        yield
        seen = self.times.setdefault(what, _Times())
        seen.clock.append(time.monotonic() - began)
        seen.processor.append(_used() - used)

    def _counts(self, *, reset: bool = False) -> int:
        world = self.place.world
        if reset:
            world.claude_admin.delete("requests")
            world.tensorlake_admin.delete("counts")
            return 0
        claude: Mapping[str, int] = world.claude_admin.get("requests")["counts"]
        tensorlake: Mapping[str, int] = world.tensorlake_admin.get("counts")["routes"]
        return sum(claude.values()) + sum(tensorlake.values())

    def resting(self) -> str:
        """A session at rest, with a sandbox that is awake and nobody's."""
        session = self.place.session(_REST)
        self.place.wait_done(session)
        until(lambda: self.place.item(session)["state"] == "stopped", "the worker did not leave")
        return session

    def working(self) -> str:
        session = self.place.session(_WORK)
        until(lambda: self._calls(session) == ["sleep 600"], "the command did not start")
        return session

    def _calls(self, session: str) -> list[Any]:
        """The commands that a worker has begun."""
        if self.place.item(session)["state"] != "active":
            return []
        events = self.place.world.api.beta.sessions.events.list(session, types=["agent.tool_use"])
        return [event.input.get("command") for event in events if event.type == "agent.tool_use"]

    def asking(self) -> str:
        """A session whose call waits for a person."""
        api = self.place.world.api
        policy: Any = [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_ask"}}]
        tools: Any = [{"type": "agent_toolset_20260401", "configs": policy}]
        agent = api.beta.agents.create(name=f"asks-{os.urandom(4).hex()}", model="claude-opus-5", tools=tools)
        events: Any = [{"type": "user.message", "content": [{"type": "text", "text": "$ true"}]}]
        session = api.beta.sessions.create(
            agent=agent.id, environment_id=self.place.environment_id, initial_events=events
        )
        until(lambda: self._calls(session.id) == ["true"], "the call does not wait")
        return session.id


def run() -> BenchmarkResult:
    with stage() as world:
        place = production_place(world)
        crowd(place, OTHERS)
        delays(world, on=False)
        _other_items(place)
        delays(world, on=True)
        world.tensorlake_admin.patch("settings", {"resume_seconds": SLEEP, "suspend_seconds": SLEEP})
        with serving(place, UVICORN) as server, webhooks_to(place, server):
            wait_ready(server)
            bench = _Bench(place)
            _measure(bench)
        delays(world, on=False)
    return _result(bench.times)


def _measure(bench: _Bench) -> None:
    for _ in range(RUNS):
        bench.run("--help", "--help")
        bench.until_shown("session, to its first sign", "session sesn_", "session", "$ true")
        _at_rest(bench, bench.resting())
        _of_running(bench)
        bench.run("confirm", "confirm", bench.asking(), "--allow", counted=False)


def _at_rest(bench: _Bench, session: str) -> None:
    bench.run("logs", "logs", session)
    bench.run("run", "run", session, "--", "true")
    bench.run("ls", "ls", f"{session}:")
    bench.run("cat", "cat", f"{session}:kept.txt")
    bench.until_shown("shell, to its prompt", "$ ", "shell", session)
    bench.run("suspend", "suspend", session, service=SLEEP)
    bench.run("resume", "resume", session, service=SLEEP)
    bench.run("suspend", "suspend", session, service=SLEEP)
    bench.until_shown("shell of a sleeper", "$ ", "shell", session, service=SLEEP)
    bench.run("keep", "keep", session, "--yes")
    bench.run("archive", "archive", session, "--yes")
    bench.run("rm", "rm", bench.resting(), "--yes")


def _of_running(bench: _Bench) -> None:
    bench.run("stop", "stop", bench.working(), "--yes", counted=False)
    session = bench.working()
    bench.run("interrupt", "interrupt", session, counted=False)
    bench.run("rm, which ends its command", "rm", session, "--yes", counted=False)


def _other_items(place: Place) -> None:
    """A thousand sessions whose items are over, as they stand in the queue's list."""
    key = place.environ["ANTHROPIC_ENVIRONMENT_KEY"]
    headers = {"authorization": f"Bearer {key}", "anthropic-beta": "managed-agents-2026-04-01"}
    world = place.world
    url = f"{world.claude.url}/v1/environments/{place.environment_id}/work"
    with (
        httpx2.Client(headers=headers, trust_env=False, timeout=PATIENCE) as client,
        ThreadPoolExecutor(8) as pool,
    ):
        sessions = set(pool.map(lambda _: place.session("$ true"), range(OTHERS)))
        items = world.claude_admin.get("state")["items"]
        waiting = [item["id"] for item in items if item["data"]["id"] in sessions]
        for answer in pool.map(lambda item: client.post(f"{url}/{item}/stop", json={}), waiting):
            answer.raise_for_status()


def _started(command: Sequence[str]) -> list[str]:
    return [sys.executable, "-m", "infra.cli", *command]


def _used() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def _result(times: Mapping[str, _Times]) -> BenchmarkResult:
    rows = [
        (
            what,
            f"{median(each.clock):.2f} s",
            f"{median(each.processor):.2f} s" if each.processor else "",
            str(each.calls) if each.calls is not None else "",
            f"{each.service:.1f} s" if each.service else "",
        )
        for what, each in times.items()
    ]
    aims = [
        Aim(f"hands {what}" + (", without the service's own time" if each.service else ""), seconds, AIM_SECONDS, "s")
        for what, each in times.items()
        for seconds in [median(each.clock) - each.service]
    ]
    head = ("command", "whole process", "of a processor", "calls", "the service's own")
    return BenchmarkResult(
        [FigureTable(f"One session among {OTHERS} sandboxes and work items, median of {RUNS}; {SETTING}", head, rows)],
        f"what a person waits until a command is done, with the start of Python in it; a call is {ROUND_TRIP:g} s",
        aims,
    )
