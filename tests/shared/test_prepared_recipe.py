"""Which sandboxes sessions start from, which are due to go, and what is asked for it."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from shared import names
from shared.claims.binding import Binding, Bound
from shared.claims.capacity import Capacity
from shared.deadline import Deadline
from shared.environment_settings import Environment
from shared.ports import SandboxRecord, SandboxSpec, SandboxStatus, SnapshotRecord
from shared.prepared.recipe import making_seconds, prepared_names
from shared.prepared.starts import PreparedStarts, newest_ready
from shared.reconcile.prepared import prepared_due
from shared.reconcile.repairs import DeleteSnapshot, EndPrepared
from shared.reconcile.world import World
from shared.settings import Settings
from tests.support.fake_host import FakeHost

ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "sk-ant-oat01-of-nobody",
    "TENSORLAKE_API_KEY": "tl-of-nobody",
    "SETUP_SCRIPT": "make deps",
}
NOW = datetime(2026, 6, 1, tzinfo=UTC)
WEEK = timedelta(days=7)


def settings(**extra: str) -> tuple[Settings, Environment]:
    made = Settings.from_environ({**ENVIRON, **extra})
    return made, made.environments["env_1"]


def named(at: datetime = NOW, /, **extra: str) -> tuple[str, ...]:
    return prepared_names(*settings(**extra), at.timestamp())


def test_a_recipe_and_a_time_have_one_name_and_the_one_before_still_counts() -> None:
    now, before = named()
    assert now != before and named(NOW + timedelta(seconds=5)) == (now, before)
    assert named(NOW + WEEK)[1] == now and now not in named(NOW + 2 * WEEK)
    for changed in ({"SETUP_SCRIPT": "make more"}, {"SANDBOX_IMAGE_NAME": "other"}, {"SETUP_ENV": "A=1"}):
        assert not {now, before} & set(named(NOW, **changed)), changed
    assert named(SANDBOX_CPUS="4", SANDBOX_ALLOW_OUT="api.example") == (now, before), "each session's own"
    assert named(SETUP_PREPARED_SECONDS="0") == () and named(SETUP_SCRIPT="") == ()
    prefix = settings()[0].prefix
    kind = names.parse(prefix, now)
    assert isinstance(kind, names.PreparedSandbox) and names.belongs_to(kind, "env_1") and len(now) <= 57
    assert not names.belongs_to(kind, "env_2")


def box(name: str, age: timedelta, status: SandboxStatus = SandboxStatus.SUSPENDED) -> SandboxRecord:
    return SandboxRecord(f"id-{name[-12:]}", name, status, NOW - age)


def due(*boxes: SandboxRecord, snapshots: tuple[SnapshotRecord, ...] = ()) -> list[EndPrepared | DeleteSnapshot]:
    made, environment = settings()
    world = World.of(NOW, made.prefix, environment.id, boxes)
    return list(prepared_due(snapshots, world, made, environment))


def of(record: SandboxRecord, **changes: object) -> SnapshotRecord:
    return replace(SnapshotRecord("snap", record.id, True, NOW), **changes)  # type: ignore[arg-type]


def test_what_is_due_is_what_nobody_makes_or_uses_any_more() -> None:
    name = named()[0]
    hour = timedelta(hours=2)
    used, other = box(name, hour), box(named(SETUP_SCRIPT="x")[0], hour)
    assert due(used, snapshots=(of(used),)) == []
    (end,) = due(other, snapshots=(of(other), of(used), of(other, id="suspend-1")))
    assert isinstance(end, EndPrepared) and end.snapshots == ("snap",)
    young = box(name, timedelta(seconds=making_seconds(*settings()) - 1), SandboxStatus.RUNNING)
    assert due(young) == []
    for left in ((), (of(used, ready=False),), (of(used, id="suspend-2"),)):
        (end,) = due(used, snapshots=left)
        assert "cut off" in end.why
    assert due(box(name, hour, SandboxStatus.FAILED))[0].why == "it is failed"
    gone = box(name, hour, SandboxStatus.TERMINATED)
    assert [each.target for each in due(gone, snapshots=(of(gone),))] == ["snap"]
    session = SandboxRecord("s", names.sandbox_name(settings()[0].prefix, "env_1", "sesn_1"), SandboxStatus.TERMINATED)
    assert due(session, snapshots=(of(session),)) == [], "a person's"


def test_the_newest_that_can_be_restored_is_taken() -> None:
    old, new = SnapshotRecord("old", "box", True, NOW - WEEK), SnapshotRecord("new", "box", True, NOW)
    assert newest_ready([new, old, replace(new, id="suspend-x"), replace(new, id="m", filesystem=False)]) == "new"
    assert newest_ready([replace(new, ready=False), old]) == "old" and newest_ready([]) is None


@pytest.mark.parametrize("there", [True, False])
def test_a_session_is_made_of_it_and_goes_without_where_it_is_gone(there: bool) -> None:
    made, environment = settings()

    async def play() -> tuple[FakeHost, Bound]:
        host = FakeHost(latency=0.0)
        carrier = host.add(named(datetime.now(UTC))[0])
        taken = await host.snapshot(carrier.record.id)
        starts = PreparedStarts(made, environment, host, lambda: datetime.now(UTC))
        assert await starts.snapshot() is not None
        if not there:
            host.snapshots.clear()
        name = names.sandbox_name(made.prefix, "env_1", "sesn_1")
        binding = Binding(
            host,
            SandboxSpec(name=name, image="agent-cli"),
            prefix=made.prefix,
            resume_suspended=True,
            capacity=Capacity("env_1"),
            now=lambda: datetime.now(UTC),
            prepared=starts,
        )
        bound = await binding.bind(Deadline.after(5.0))
        assert isinstance(bound, Bound) and bound.made
        assert (await starts.snapshot() is not None) is there, "nobody tries it again for a while"
        spec = host.specs[-1]
        expected = (taken.id, None) if there else (None, "agent-cli")  # type: ignore[union-attr]
        assert (spec.snapshot_id, spec.image) == expected
        return host, bound

    _, bound = asyncio.run(play())
    assert ("could not be restored" in bound.remark) is not there
