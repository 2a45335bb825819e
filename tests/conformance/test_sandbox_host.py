"""What the core may rely on of ports.SandboxHost, held against the real SDK over real sockets.

The tests that take a bench hold the model of the fault explorer to the same.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest

from infra.local.admin_client import AdminClient
from infra.local.process import RunningService
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.egress import EgressPolicy
from shared.ports import (
    Absent,
    Created,
    Doubtful,
    Listing,
    NameTaken,
    ProcessSpec,
    ProcessState,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxSpec,
    SandboxStatus,
    Snapshot,
    SnapshotKind,
)
from tests.conformance.benches import (
    EXITS,
    HEEDS,
    TALKS,
    FakeHosts,
    HostBench,
    ModelHosts,
    ObservedHosts,
    OfflineHosts,
    RecordingHosts,
    connected,
    program,
)
from tests.support.admin import fault
from tests.support.memory import in_memory
from tests.support.preloaded import forked_service
from tests.support.waiting import until_async


@pytest.fixture(scope="module")
def service() -> Iterator[RunningService]:
    with forked_service("infra.local.tensorlake", ["--port", "0", *in_memory()]) as running:
        yield running


@pytest.fixture(params=["model", "offline", "recording", "fake", "observed"])
def every(request: pytest.FixtureRequest) -> Iterator[HostBench]:
    """Every implementation of the port, where no process has to live on."""
    match request.param:
        case "model":
            yield ModelHosts()
        case "fake":
            yield FakeHosts()
        case "observed":
            yield ObservedHosts()
        case over_sockets:
            service: RunningService = request.getfixturevalue("service")
            yield RecordingHosts(service) if over_sockets == "recording" else OfflineHosts(service)
            scenario(service, all_ended)


async def all_ended(host: SandboxHost) -> None:
    """The next test may want the same names."""
    listed = await host.list_sandboxes()
    assert isinstance(listed, Listing), listed
    for sandbox in listed.rows:
        assert await host.terminate(sandbox.id) in (None, Absent())


@pytest.fixture(params=["model", "offline"])
def bench(request: pytest.FixtureRequest) -> HostBench:
    return ModelHosts() if request.param == "model" else OfflineHosts(request.getfixturevalue("service"))


def scenario(service: RunningService, play: Callable[[TensorlakeSandboxes], Awaitable[None]]) -> None:
    async def run() -> None:
        async with connected(service) as host:
            await play(host)

    asyncio.run(run())


async def created(host: SandboxHost, name: str) -> SandboxRecord:
    outcome = await host.create(SandboxSpec(name=name))
    assert isinstance(outcome, Created), outcome
    return outcome.sandbox


def test_i2_of_many_creates_with_one_name_exactly_one_succeeds(every: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        outcomes = await asyncio.gather(*(host.create(SandboxSpec(name="race-one")) for _ in range(20)))
        assert sum(isinstance(outcome, Created) for outcome in outcomes) == 1
        assert sum(isinstance(outcome, NameTaken) for outcome in outcomes) == 19

    every.play(play)


def test_a_sandbox_is_found_by_name_and_by_id_until_it_is_ended(every: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        egress = EgressPolicy(allow=("api.example.com",))
        outcome = await host.create(SandboxSpec(name="found", egress=egress))
        assert isinstance(outcome, Created)
        for key in ("found", outcome.sandbox.id):
            found = await host.find(key)
            assert isinstance(found, SandboxRecord)
            assert (found.id, found.name, found.status) == (outcome.sandbox.id, "found", SandboxStatus.RUNNING)
            assert found.egress == egress
        assert await host.terminate(outcome.sandbox.id) is None
        assert isinstance(await host.find("found"), Absent)
        assert isinstance(await host.find("never-there"), Absent)

    every.play(play)


def test_a_process_is_started_by_name_watched_and_killed(bench: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "processes")
        assert await host.start(sandbox.id, program("talker", TALKS)) is None
        await until_async(lambda: said(host, sandbox.id, "talker", "hello"))
        state = await host.process_state(sandbox.id, "talker")
        assert isinstance(state, ProcessState) and state.running
        assert await host.kill(sandbox.id, "talker") is None
        await until_async(lambda: over(host, sandbox.id, "talker"))
        assert isinstance(await host.process_state(sandbox.id, "nobody"), Absent)
        assert isinstance(await host.process_output(sandbox.id, "nobody"), Absent)

    bench.play(play)


def test_a_second_start_of_one_name_is_harmless(bench: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "twice")
        process = program("once", TALKS)
        assert await host.start(sandbox.id, process) is None
        assert await host.start(sandbox.id, process) is None
        await asyncio.sleep(0.3)
        assert await host.process_output(sandbox.id, "once") == ["hello"]

    bench.play(play)


def test_exit_codes_of_named_processes_are_remembered(bench: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "exits")
        assert await host.start(sandbox.id, program("seven", EXITS)) is None
        await until_async(lambda: over(host, sandbox.id, "seven"))
        listed = await host.process_names(sandbox.id)
        assert not isinstance(listed, Absent | Doubtful)
        assert [(process.name, process.exit_code) for process in listed] == [("seven", 7)]

    bench.play(play)


def test_a_command_gives_its_status_and_both_outputs(service: RunningService) -> None:
    async def play(host: TensorlakeSandboxes) -> None:
        sandbox = await created(host, "commands")
        script = "echo out; echo err >&2; exit 3"
        done = await host.run(
            sandbox.id, "/bin/sh", ["-c", script], env={}, user=None, working_dir="/workspace", timeout=5
        )
        assert not isinstance(done, Absent | Refused | Doubtful)
        assert (done.exit_code, done.stdout, done.stderr, done.timed_out) == (3, "out", "err", False)
        slow = await host.run(sandbox.id, "sleep", ["60"], env={}, user=None, working_dir=None, timeout=0.3)
        assert not isinstance(slow, Absent | Refused | Doubtful)
        assert slow.timed_out

    scenario(service, play)


def test_files_are_written_and_read_and_a_large_one_is_refused(every: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "files")
        assert await host.write_file(sandbox.id, "/workspace/deep/file", b"\0bytes") is None
        assert await host.read_file(sandbox.id, "/workspace/deep/file", 100) == b"\0bytes"
        assert isinstance(await host.read_file(sandbox.id, "/workspace/deep/file", 3), Refused)
        assert isinstance(await host.read_file(sandbox.id, "/workspace/none", 100), Absent)
        assert await host.delete_file(sandbox.id, "/workspace/deep/file") is None
        for look in (host.read_file(sandbox.id, "/workspace/deep/file", 100), host.delete_file(sandbox.id, "/no/file")):
            assert isinstance(await look, Absent)

    every.play(play)


def test_suspend_and_resume_settle_before_they_return(every: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "sleeper")
        for act, status in ((host.suspend, SandboxStatus.SUSPENDED), (host.resume, SandboxStatus.RUNNING)):
            for _ in range(2):
                assert await act(sandbox.id) is None
                found = await host.find(sandbox.id)
                assert isinstance(found, SandboxRecord) and found.status is status

    every.play(play)


def test_a_rename_frees_the_name_and_takes_no_name_away(every: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        first, second = await created(host, "mine"), await created(host, "yours")
        assert isinstance(await host.rename(first.id, "yours"), Refused)
        assert await host.rename(first.id, "gone-mine") is None
        assert isinstance(await host.find("mine"), Absent)
        for key in (first.id, "gone-mine"):
            found = await host.find(key)
            assert isinstance(found, SandboxRecord) and (found.id, found.name) == (first.id, "gone-mine")
        fresh = await created(host, "mine")
        assert len({first.id, second.id, fresh.id}) == 3

    every.play(play)


def test_a_list_shows_what_is_there_with_its_name_and_status(every: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        awake, asleep, ended = [await created(host, f"listed-{number}") for number in range(3)]
        await host.suspend(asleep.id)
        await host.terminate(ended.id)
        listing = await host.list_sandboxes()
        assert isinstance(listing, Listing) and listing.complete
        shown = {row.id: (row.name, row.status) for row in listing.rows}
        assert shown[awake.id] == ("listed-0", SandboxStatus.RUNNING)
        assert shown[asleep.id] == ("listed-1", SandboxStatus.SUSPENDED)
        assert shown.get(ended.id, (None, SandboxStatus.TERMINATED))[1] is SandboxStatus.TERMINATED
        assert all(row.created_at is not None for row in listing.rows)

    every.play(play)


def test_a_look_at_a_sleepers_processes_wakes_it_and_they_live_on(bench: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "woken")
        await host.start(sandbox.id, program("talker", TALKS))
        assert await host.suspend(sandbox.id) is None
        listed = await host.process_names(sandbox.id)
        assert not isinstance(listed, Absent | Doubtful)
        assert [(process.name, process.running) for process in listed] == [("talker", True)]
        found = await host.find("woken")
        assert isinstance(found, SandboxRecord) and found.status is SandboxStatus.RUNNING

    bench.play(play)


def test_an_idle_sandbox_falls_asleep_unless_it_is_touched(bench: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        lonely = await host.create(SandboxSpec(name="lonely", timeout_seconds=1))
        touched = await host.create(SandboxSpec(name="touched", timeout_seconds=1))
        assert isinstance(lonely, Created) and isinstance(touched, Created)
        for _ in range(10):
            await asyncio.sleep(0.2)
            assert await host.touch(touched.sandbox.id) is None
        for sandbox, status in ((lonely, SandboxStatus.SUSPENDED), (touched, SandboxStatus.RUNNING)):
            found = await host.find(sandbox.sandbox.id)
            assert isinstance(found, SandboxRecord) and found.status is status

    bench.play(play)


def test_a_process_is_asked_to_stop(bench: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "asked")
        assert await host.start(sandbox.id, program("heeds", HEEDS)) is None
        await until_async(lambda: said(host, sandbox.id, "heeds", "hello"))
        assert await host.signal(sandbox.id, "heeds", signal.SIGTERM) is None
        await until_async(lambda: over(host, sandbox.id, "heeds"))
        state = await host.process_state(sandbox.id, "heeds")
        assert isinstance(state, ProcessState) and state.exit_code == 5

    bench.play(play)


def test_a_snapshot_can_be_restored_and_deleted(service: RunningService) -> None:
    async def play(host: TensorlakeSandboxes) -> None:
        sandbox = await created(host, "source")
        await host.write_file(sandbox.id, "/workspace/kept", b"kept")
        snapshot = await host.snapshot(sandbox.id)
        assert isinstance(snapshot, Snapshot)
        child = await host.create(SandboxSpec(name="child", snapshot_id=snapshot.id))
        assert isinstance(child, Created)
        assert await host.read_file(child.sandbox.id, "/workspace/kept", 10) == b"kept"
        assert await host.delete_snapshot(snapshot.id) is None
        assert isinstance(await host.delete_snapshot(snapshot.id), Absent)

    scenario(service, play)


def test_a_memory_snapshot_is_restored_without_naming_what_it_locks(service: RunningService) -> None:
    async def play(host: TensorlakeSandboxes) -> None:
        sandbox = await created(host, "memory-source")
        await host.write_file(sandbox.id, "/workspace/kept", b"kept")
        snapshot = await host.snapshot(sandbox.id, SnapshotKind.MEMORY)
        assert isinstance(snapshot, Snapshot)
        child = await host.create(SandboxSpec(name="memory-child", snapshot_id=snapshot.id))
        assert isinstance(child, Created)
        assert await host.read_file(child.sandbox.id, "/workspace/kept", 10) == b"kept"
        larger = await host.create(SandboxSpec(name="memory-larger", snapshot_id=snapshot.id, cpus=4))
        assert isinstance(larger, Refused)
        listing = await host.list_snapshots()
        assert isinstance(listing, Listing)
        assert [row.filesystem for row in listing.rows if row.id == snapshot.id] == [False]

    scenario(service, play)


def test_live_copies_get_their_names_in_order_and_a_taken_one_costs_that_copy_only(service: RunningService) -> None:
    async def play(host: TensorlakeSandboxes) -> None:
        sandbox = await created(host, "copied")
        await created(host, "copy-taken")
        await host.write_file(sandbox.id, "/workspace/kept", b"kept")
        before = await live(host)
        copies = await host.copy(sandbox.id, ["copy-a", "copy-taken", "copy-b"])
        assert not isinstance(copies, Absent | Refused | Doubtful)
        first, taken, last = copies
        assert isinstance(taken, Refused) and taken.status == 409
        for row, name in ((first, "copy-a"), (last, "copy-b")):
            assert isinstance(row, SandboxRecord) and (row.name, row.status) == (name, SandboxStatus.RUNNING)
            assert await host.read_file(row.id, "/workspace/kept", 10) == b"kept"
        assert await live(host) == before | {"copy-a", "copy-b"}

    scenario(service, play)


def test_i3_a_running_process_is_not_cloned_offline(service: RunningService) -> None:
    async def play(host: TensorlakeSandboxes) -> None:
        sandbox = await created(host, "busy-source")
        await host.start(sandbox.id, program("talker", TALKS))
        before = await live(host)
        for outcome in (
            await host.snapshot(sandbox.id, SnapshotKind.MEMORY),
            await host.copy(sandbox.id, ["busy-copy"]),
        ):
            assert isinstance(outcome, Refused) and "cannot be cloned" in outcome.reason
        assert await live(host) == before
        assert isinstance(await host.copy("never-there", ["nobody"]), Absent)

    scenario(service, play)


async def live(host: SandboxHost) -> set[str | None]:
    listing = await host.list_sandboxes()
    assert isinstance(listing, Listing)
    return {row.name for row in listing.rows if row.status is not SandboxStatus.TERMINATED}


def test_what_is_done_to_an_ended_sandbox_finds_it_absent(every: HostBench) -> None:
    async def play(host: SandboxHost) -> None:
        sandbox = await created(host, "ended")
        assert await host.terminate(sandbox.id) is None
        assert isinstance(await host.start(sandbox.id, ProcessSpec("late", "true", [])), Absent)
        assert isinstance(await host.write_file(sandbox.id, "/workspace/late", b""), Absent)
        assert isinstance(await host.process_names(sandbox.id), Absent)
        assert isinstance(await host.create(SandboxSpec(name="ended")), Created), "its name is free"

    every.play(play)


def test_an_unknown_image_is_refused_with_the_services_words(service: RunningService) -> None:
    async def play(host: TensorlakeSandboxes) -> None:
        outcome = await host.create(SandboxSpec(name="no-image", image="never-registered"))
        assert isinstance(outcome, Refused)
        assert "never-registered" in outcome.reason

    scenario(service, play)


@pytest.mark.parametrize(
    "rule",
    [
        {"action": "status", "status": 500},
        {"action": "status", "status": 429},
        {"action": "drop_before"},
        {"action": "drop_after"},
        {"action": "garbage"},
        {"action": "truncate"},
    ],
)
def test_i1_whatever_is_not_understood_is_doubtful_and_never_absent(
    service: RunningService, rule: dict[str, object]
) -> None:
    async def play(host: TensorlakeSandboxes) -> None:
        sandbox = await created(host, f"doubt-{rule['action']}-{rule.get('status', 0)}".replace("_", "-"))
        with fault(AdminClient(service.url, service.admin_token), {"path": f"/sandboxes/{sandbox.name}$", **rule}):
            assert isinstance(await host.find(sandbox.name or ""), Doubtful)
        assert isinstance(await host.find(sandbox.name or ""), SandboxRecord)

    scenario(service, play)


def test_i7_a_call_to_a_service_that_does_not_answer_ends(service: RunningService) -> None:
    async def play() -> None:
        async with connected(service, bind_seconds=0.5) as host:
            with fault(
                AdminClient(service.url, service.admin_token),
                {"method": "POST", "path": "/sandboxes$", "action": "delay", "seconds": 30},
            ):
                began = time.monotonic()
                outcome = await host.create(SandboxSpec(name="never-answered"))
                assert isinstance(outcome, Doubtful)
                assert time.monotonic() - began < 30

    asyncio.run(play())


async def said(host: SandboxHost, sandbox_id: str, process: str, line: str) -> bool:
    lines = await host.process_output(sandbox_id, process)
    return not isinstance(lines, Absent | Doubtful) and line in lines


async def over(host: SandboxHost, sandbox_id: str, process: str) -> bool:
    state = await host.process_state(sandbox_id, process)
    return isinstance(state, ProcessState) and not state.running
