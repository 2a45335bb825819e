"""A worker, or its whole sandbox, ends at each step of the worker's way (docs/architecture.md#rules: I1 to I4).

Nothing in the product stops at a step. A fault rule holds or spoils exactly the request that the step makes, the test
waits until that has happened, kills, takes the rule away, and lets ticks heal what is left. Each test plays three
sessions side by side, one for each way to die. A turn's two tool calls append a line each; the test reads the lines
before it kills, so that it can count calls over the death of a file system.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any, Final, TypeVar

import pytest

from image.session.claim import STATE_DIRECTORY, WORKER_PYTHON
from image.session.worker.lock import LOCK_NAME
from shared.claims.dispatcher import utc_now
from shared.claims.worker_process import WORKER_NAMES
from shared.ports import (
    Absent,
    ProcessSpec,
    ProcessState,
    SandboxHost,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
    WorkItem,
)
from shared.reports import Act, ActionReport, ItemEnd, TickReport
from shared.service import Service
from tests.faults.test_claims_under_faults import drain
from tests.faults.test_reconciler import QUICK, everything
from tests.support.admin import fault
from tests.support.waiting import PATIENCE, until
from tests.support.world import IMAGE, OfflineWorld, Place, running

PROMPT: Final = "$ echo one >> /workspace/runs\n$ echo two >> /workspace/runs"
SLOW: Final = "$ echo one >> /workspace/runs; sleep 4\n$ echo two >> /workspace/runs"
ONCE: Final = ("one", "two")
AGAIN: Final = ("one", "one", "two")
HOLD: Final = 60.0
"""Seconds that a held request waits: longer than a test needs to see that it is held and to kill."""

_T = TypeVar("_T")
Rule = Mapping[str, Any]

OFFERED_AGAIN: Final = {"RECLAIM_SECONDS": "15", "BIND_SECONDS": "6", "HANDOVER_SECONDS": "8", "STRANDED_SECONDS": "16"}
"""For the step that has to wait for R in earnest."""

LOCK_HOLDER: Final = (
    f"import fcntl, os, time; os.makedirs({STATE_DIRECTORY!r}, 0o700, exist_ok=True); "
    f"taken = open({STATE_DIRECTORY!r} + '/' + {LOCK_NAME!r}, 'w'); fcntl.flock(taken, fcntl.LOCK_EX); time.sleep(60)"
)


@dataclass(frozen=True)
class KillStep:
    """A place on the worker's way and what a death there leaves.

    claude, tensorlake: rules for the two services; `{work}` and `{session}` in a path are the session's own.
    reached: whether the worker stands there; without one, all rules of the Claude side must have fired.
    ran: the tool calls that have run by the end, in order, over all sandboxes of the session.
    lock_taken: somebody else holds the worker's lock.
    reoffered: the rules stay until the dispatcher has given up and the item is handed out again.
    idle: seconds that a worker idles before it leaves.
    released: the item was acked and never beat, so the service offers it to nobody again: its first call is answered
        with an error, and the turn goes on with the second one in a new item.
    """

    ran: Sequence[str] = ONCE
    claude: Sequence[Rule] = ()
    tensorlake: Sequence[Rule] = ()
    reached: Callable[[Place, str], bool] | None = None
    prompt: str = PROMPT
    lock_taken: bool = False
    reoffered: bool = False
    released: bool = False
    idle: str = "1"


def ask(place: Place, question: Callable[[SandboxHost], Awaitable[_T]]) -> _T:
    """One question to the sandbox service, by a client of its own."""

    async def play() -> _T:
        async with place.dispatcher() as dispatcher:
            return await question(dispatcher.host)

    return asyncio.run(play())


def lines(place: Place, sandbox_id: str) -> list[str]:
    data = ask(place, lambda host: host.read_file(sandbox_id, "/workspace/runs", 10_000))
    if isinstance(data, Absent):
        return []
    assert isinstance(data, bytes), data
    return data.decode().split()


def sandbox_of(place: Place, session: str) -> SandboxRecord | None:
    found = ask(place, lambda host: host.find(place.sandbox(session)))
    return None if isinstance(found, Absent) else running(found)


def workers(place: Place, session: str) -> list[str]:
    """The names of the session's workers that run now."""

    async def look(host: SandboxHost) -> Sequence[ProcessState]:
        sandbox = await host.find(place.sandbox(session))
        if isinstance(sandbox, Absent):
            return []
        listed = await host.process_names(running(sandbox).id)
        if isinstance(listed, Absent):  # the sandbox has failed
            return []
        assert isinstance(listed, Sequence), listed
        return listed

    return [process.name for process in ask(place, look) if process.running and process.name.startswith(WORKER_NAMES)]


def kill_the_worker(place: Place, session: str) -> bool:
    """Whether a kill ended it: one that waits for a lock in vain ends by itself, and the next one is killed."""
    sandbox = running(sandbox_of(place, session))
    found = workers(place, session)
    if not found:
        return False
    (name,) = found

    async def kill(host: SandboxHost) -> bool:
        refused = await host.signal(sandbox.id, name, signal.SIGKILL)
        while not isinstance(state := await host.process_state(sandbox.id, name), ProcessState) or state.running:
            await asyncio.sleep(0.05)
        assert refused is None or state.exit_code is not None, refused
        return refused is None

    return ask(place, kill)


def terminate_the_sandbox(place: Place, session: str) -> bool:
    sandbox = running(sandbox_of(place, session))
    assert ask(place, lambda host: host.terminate(sandbox.id)) is None
    return True


def fail_the_sandbox(place: Place, session: str) -> bool:
    place.world.tensorlake_admin.post(f"sandboxes/{running(sandbox_of(place, session)).id}/fail")
    return True


KILLS: Final[Mapping[str, Callable[[Place, str], bool]]] = {
    "worker killed": kill_the_worker,
    "sandbox terminated": terminate_the_sandbox,
    "sandbox failed": fail_the_sandbox,
}


def is_active(place: Place, session: str) -> bool:
    return bool(place.item(session)["state"] == "active")


def has_begun_the_first_call(place: Place, session: str) -> bool:
    sandbox = sandbox_of(place, session)
    made = sandbox is not None and sandbox.status is SandboxStatus.RUNNING
    return made and lines(place, running(sandbox).id) == ["one"]


def idles(place: Place, session: str) -> bool:
    return place.done(session) and is_active(place, session)


SESSION: Final = {"method": "GET", "path": r"/sessions/{session}$", "action": "delay", "seconds": HOLD}
RESULTS: Final = {"method": "POST", "path": r"/sessions/{session}/events$"}
STOP: Final = {"method": "POST", "path": r"/work/{work}/stop$"}


def never(rule: Rule) -> Sequence[Rule]:
    """Such a request waits and comes to nothing. If it failed at once, the worker would go on before it is killed."""
    return [{**rule, "action": "delay", "seconds": HOLD}, {**rule, "action": "status", "status": 503}]


DEAF: Final = {"method": "POST", "path": r"/work/{work}/heartbeat$", "action": "status", "status": 503, "skip": 1}
"""Once the first heartbeat, which `ready` waits for, has been answered."""

STEPS: Final[Mapping[str, KillStep]] = {
    "before its ready": KillStep(lock_taken=True, reached=lambda place, session: bool(workers(place, session))),
    "after its ready, unseen by the dispatcher": KillStep(
        claude=[DEAF],
        tensorlake=[
            {"method": "GET", "path": r"/api/v1/processes/.*/stdout(/follow)?$", "action": "status", "status": 500}
        ],
        reoffered=True,
        idle="60",
    ),
    "after its ready, with the ack on its way": KillStep(
        claude=[{"method": "POST", "path": r"/work/{work}/ack$", "action": "delay", "seconds": 3}],
        ran=("two",),
        released=True,
    ),
    "while it asks for the lease of an acked item": KillStep(
        claude=[DEAF],
        reached=lambda place, session: place.item(session)["state"] == "starting",
        ran=("two",),
        released=True,
    ),
    "with the lease, before it knows": KillStep(
        claude=[
            {"method": "POST", "path": r"/work/{work}/heartbeat$", "action": "delay_after", "seconds": 2},
            SESSION,
        ],
        reached=is_active,
    ),
    "with the lease, before it knows the session": KillStep(claude=[SESSION]),
    "before it knows the tool calls": KillStep(
        claude=[{"method": "GET", "path": r"/sessions/{session}/events$", "action": "delay", "seconds": HOLD}]
    ),
    "while a tool runs": KillStep(reached=has_begun_the_first_call, prompt=SLOW, ran=AGAIN),
    "after a tool ran, before its result is posted": KillStep(claude=never(RESULTS), ran=AGAIN),
    "after a result was posted": KillStep(claude=[RESULTS | {"action": "delay_after", "seconds": HOLD}]),
    "while it idles": KillStep(reached=idles, idle="60"),
    "at its end, before it stops the item": KillStep(claude=never(STOP)),
}


@contextlib.contextmanager
def armed(place: Place, session: str, step: KillStep) -> Iterator[Callable[[], bool]]:
    """The step's rules for this session; gives whether the worker has reached the step."""
    claude, tensorlake = place.world.claude_admin, place.world.tensorlake_admin
    ids = {"work": place.item(session)["id"], "session": session}
    with contextlib.ExitStack() as rules:
        mine = {
            rules.enter_context(fault(claude, {**rule, "path": rule["path"].format(**ids)})) for rule in step.claude
        }
        for rule in step.tensorlake:
            rules.enter_context(fault(tensorlake, rule))

        def fired() -> bool:
            return all(rule["fired"] for rule in claude.get("faults")["data"] if rule["id"] in mine)

        reached = step.reached
        yield fired if reached is None else lambda: reached(place, session)


@contextlib.contextmanager
def lock_taken(place: Place, session: str) -> Iterator[None]:
    """Somebody else holds the worker's lock in the session's sandbox, which is made for that."""
    spec = SandboxSpec(name=place.sandbox(session), image=IMAGE)
    holder = ProcessSpec("holder", WORKER_PYTHON, ("-c", LOCK_HOLDER), user=place.settings.sandbox_user)

    async def hold(host: SandboxHost) -> str:
        await host.create(spec)
        sandbox = running(await host.find(spec.name))
        assert await host.start(sandbox.id, holder) is None
        return sandbox.id

    sandbox_id = ask(place, hold)
    yield
    ask(place, lambda host: host.kill(sandbox_id, holder.name))


def tick_until(place: Place, condition: Callable[[], bool], failure: str) -> list[ActionReport]:
    """Ticks without faults; the repairs that they did."""

    async def play() -> list[ActionReport]:
        service = Service(place.settings)
        reports: list[TickReport] = []
        end = time.monotonic() + PATIENCE
        try:
            while not await asyncio.to_thread(condition):
                if time.monotonic() > end:
                    raise AssertionError(f"{failure}; the last ticks: {reports[-3:]}")
                reports.append(await service.tick())
                await asyncio.sleep(0.25)
        finally:
            await service.aclose()
        return [action for report in reports for each in report.reconciled for action in each.actions if action.done]

    return asyncio.run(play())


def item_over(place: Place, session: str) -> bool:
    return bool(place.item(session)["state"] == "stopped")


@contextlib.contextmanager
def draining(place: Place) -> Iterator[None]:
    """Drains beside the block, one after another: on a busy machine a first one may come to nothing."""
    over = threading.Event()

    def drain_on() -> None:
        while not over.is_set():
            drain(place)
            over.wait(0.3)

    with ThreadPoolExecutor(1) as pool:
        running_on = pool.submit(drain_on)
        try:
            yield
        finally:
            over.set()
    running_on.result()


def killed_at(place: Place, step: KillStep, sessions: Mapping[str, str]) -> dict[str, list[str]]:
    """Bring each session's worker to the step and kill there; the lines that were in its sandbox by then."""
    seen: dict[str, list[str]] = {}
    with contextlib.ExitStack() as held:
        if step.lock_taken:
            for session in sessions.values():
                held.enter_context(lock_taken(place, session))
        held.enter_context(draining(place))  # after the locks: a drain would put the sandbox to sleep under them
        reached = {session: held.enter_context(armed(place, session, step)) for session in sessions.values()}
        end = time.monotonic() + PATIENCE
        while len(seen) < len(sessions):
            assert time.monotonic() < end, f"{seen.keys()} of {sessions.keys()} have reached the step"
            for kill, session in sessions.items():
                if kill not in seen and reached[session]():
                    written = lines(place, running(sandbox_of(place, session)).id)
                    if KILLS[kill](place, session):
                        seen[kill] = written
            time.sleep(0.02)
        if step.reoffered:
            until(
                lambda: all(place.item(session)["handouts"] > 1 for session in sessions.values()),
                "the items are not offered again",
            )
    for session in sessions.values():
        if not workers(place, session):
            place.age(session)
    return seen


@pytest.fixture
def long_leases(world: OfflineWorld) -> Iterator[None]:
    """What was killed first is not offered again before the last was killed."""
    before = world.claude_admin.get("settings")["lease_ttl"]
    world.claude_admin.patch("settings", {"lease_ttl": PATIENCE})
    yield
    world.claude_admin.patch("settings", {"lease_ttl": before})


@pytest.mark.usefixtures("long_leases")
@pytest.mark.parametrize("name", STEPS)
def test_i1_a_worker_or_sandbox_that_dies_at_any_step_loses_nothing(world: OfflineWorld, name: str) -> None:
    step = STEPS[name]
    times = OFFERED_AGAIN if step.reoffered else {}
    place = world.place(**{**QUICK, "END_GRACE_SECONDS": "1"}, **times, RUNNER_MAX_IDLE_SECONDS=step.idle)
    sessions = {kill: place.session(step.prompt) for kill in KILLS}
    seen = killed_at(place, step, sessions)

    # The worker that heals a session still idles when the next message comes, and serves it.
    place = place.adjusted(RUNNER_MAX_IDLE_SECONDS=f"{PATIENCE:g}")
    acts = tick_until(place, lambda: all(map(place.done, sessions.values())), "a turn was lost")
    released = {action.target for action in acts if action.act is Act.RELEASE}
    assert released == ({place.items(session)[0]["id"] for session in sessions.values()} if step.released else set())

    for session in sessions.values():
        place.say(session, "$ echo last >> /workspace/runs")
    tick_until(
        place,
        lambda: all(place.done(session, 2) for session in sessions.values()),
        "a follow-up message is not served",
    )
    for kill, session in sessions.items():
        assert len(place.items(session)) == 1 + step.released, kill
    for kill, session in sessions.items():
        left = [box["name"] for box in place.sandboxes()].count(place.sandbox(session))
        assert left == 1, f"{kill}: {left} sandboxes"
        found = ask(place, lambda host, session=session: host.find(place.sandbox(session)))  # type: ignore[misc]
        here = lines(place, running(found).id)
        lost = [] if kill == "worker killed" else seen[kill]
        assert [*lost, *here] == [*step.ran, "last"], kill
    nothing_is_left(place, sessions.values())


def nothing_is_left(place: Place, sessions: Collection[str]) -> None:
    for session in sessions:
        place.world.api.beta.sessions.archive(session)
    tick_until(
        place,
        lambda: everything(place) == [] and all(item_over(place, session) for session in sessions),
        "a sandbox or an item is left",
    )
    state = place.sandbox_state()
    mine = {box["id"] for box in state["sandboxes"]}
    assert len(mine) >= len(sessions)
    assert [snapshot for snapshot in state["snapshots"] if snapshot["sandbox_id"] in mine] == []


def test_the_kills_are_ones(place: Place) -> None:
    """The harness's own proof: each way to die leaves no worker."""
    place = place.adjusted(RUNNER_MAX_IDLE_SECONDS="60")
    for kill in KILLS.values():
        session = place.session("$ echo one")
        drain(place)
        until(lambda session=session: idles(place, session), "no worker")  # type: ignore[misc]
        assert len(workers(place, session)) == 1
        assert kill(place, session)
        found = ask(place, lambda host, session=session: host.find(place.sandbox(session)))  # type: ignore[misc]
        if isinstance(found, SandboxRecord) and found.status.value == "running":
            assert workers(place, session) == []


def test_a_worker_that_stands_still_is_given_up_by_the_next_hand_over(place: Place) -> None:
    """It was stopped while it waited for the lock: it would neither get ready nor end."""
    session = place.session("$ echo served")

    async def play() -> None:
        service = Service(place.settings)
        try:
            dispatcher = service.dispatcher(place.environment)
            item = await dispatcher.queue.poll()
            assert isinstance(item, WorkItem)
            with contextlib.ExitStack() as held:
                await asyncio.to_thread(held.enter_context, lock_taken(place, session))
                first = asyncio.create_task(dispatcher.serve(item, time.monotonic()))
                still = await stood_still(service.host, place, session)
                first.cancel()
                await asyncio.wait([first])
                await asyncio.to_thread(held.close)
            later = replace(dispatcher, now=lambda: utc_now() + timedelta(hours=1))
            report = await later.serve(item, time.monotonic())
            assert report.end is ItemEnd.HANDED_OVER, report
            assert report.sandbox == place.sandbox(session)
            left = await service.host.process_state(running(await service.host.find(report.sandbox)).id, still)
            assert isinstance(left, ProcessState) and not left.running
        finally:
            await service.aclose()

    asyncio.run(play())
    until(lambda: place.done(session), "the turn is not finished")


async def stood_still(host: SandboxHost, place: Place, session: str) -> str:
    """The name of the session's worker, which has begun and is frozen."""
    sandbox = running(await host.find(place.sandbox(session)))
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        for process in await host.process_names(sandbox.id):  # type: ignore[union-attr]
            if process.name.startswith(WORKER_NAMES):
                assert await host.signal(sandbox.id, process.name, signal.SIGSTOP) is None
                return process.name
        await asyncio.sleep(0.05)
    raise AssertionError("no worker was started")
