"""A warm pool saves a create, and whatever is wrong with it costs a session nothing but that."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import pytest

from infra.cli.doctor.findings import Finding, Severity
from infra.cli.doctor.pools import check_pool
from shared import names
from shared.claims.binding import Binding, Bound
from shared.claims.capacity import Capacity
from shared.claims.dispatcher import spec_of
from shared.claims.warm_pool import WarmPool, differences
from shared.deadline import Deadline
from shared.egress import EgressPolicy
from shared.environment_settings import Environment
from shared.ports import Absent, Doubtful, NoCapacity, PoolRecord, Refused, SandboxRecord, SandboxStatus
from shared.settings import Settings
from tests.support.fake_host import FakeFault, FakeHost
from tests.support.virtual_time import run_virtual

NAME: Final = names.sandbox_name("hands", "env_1", "sesn_0123456789AbCdEf")
EGRESS: Final = EgressPolicy(allow=("api.anthropic.com",))
POOL: Final = PoolRecord("pool_1", "agent-cli", 2.0, 4096, 25_600, 3600, EGRESS)


def environment(**more: str) -> Environment:
    settings = Settings.from_environ(
        {
            "ANTHROPIC_ENVIRONMENT_ID": "env_1",
            "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
            "TENSORLAKE_API_KEY": "no-key",
            "SANDBOX_ALLOW_OUT": "api.anthropic.com",
            "SANDBOX_POOL": "pool_1",
            **more,
        }
    )
    return settings.environments["env_1"]


class Pooled(FakeHost):
    """Counts what it is asked; `said` is its next answers to claims and renames, the call itself where there is none.
    `meanwhile` happens before a rename."""

    def __init__(self, pool: PoolRecord | None = POOL) -> None:
        super().__init__(latency=0.02)
        self.pools = {} if pool is None else {pool.id: pool}
        self.asked: list[str] = []
        self.said: dict[str, Any] = {}
        self.meanwhile: Callable[[], object] = lambda: None

    async def create(self, spec: Any) -> Any:
        self.asked.append("create")
        return await super().create(spec)

    async def pool(self, pool_id: str) -> Any:
        self.asked.append("pool")
        return await super().pool(pool_id)

    async def claim_from_pool(self, pool_id: str, seconds: float) -> Any:
        self.asked.append("claim")
        return self.said.pop("claim", None) or await super().claim_from_pool(pool_id, seconds)

    async def rename(self, sandbox_id: str, name: str) -> Any:
        self.asked.append("rename")
        self.meanwhile()
        return self.said.pop("rename", None) or await super().rename(sandbox_id, name)

    def running(self) -> list[SandboxRecord]:
        return [box.record for box in self.boxes.values() if box.record.status is not SandboxStatus.TERMINATED]


def bound_with(host: Pooled, clock: Callable[[], float], pool: WarmPool, name: str = NAME) -> Callable[[], Any]:
    async def bind() -> Bound:
        way = Binding(
            host,
            spec_of(environment(), name),
            prefix="hands",
            resume_suspended=True,
            capacity=Capacity("env_1", clock),
            now=lambda: datetime(2026, 1, 2, tzinfo=UTC),
            pool=pool,
        )
        bound = await way.bind(Deadline.after(45.0, clock))
        assert isinstance(bound, Bound), bound
        return bound

    return bind


def test_a_new_session_gets_a_warm_sandbox_under_its_name_and_the_next_one_finds_it() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host, pool = Pooled(), WarmPool("pool_1", "env_1", clock)
        bind = bound_with(host, clock, pool)
        first = await bind()
        assert first.made and not first.remark and first.sandbox.name == NAME
        assert (first.sandbox.egress, first.sandbox.timeout_seconds) == (EGRESS, 3600)
        assert host.asked == ["pool", "claim", "rename"]
        again = await bind()
        assert not again.made and again.sandbox.id == first.sandbox.id
        assert host.asked == ["pool", "claim", "rename"], "a session that has a sandbox costs no claim"
        await bound_with(host, clock, pool, names.sandbox_name("hands", "env_1", "sesn_other"))()
        assert host.asked[3:] == ["claim", "rename"], "the pool is compared once in a while"

    run_virtual(play)


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ({"claim": Refused(400, "HTTP 400: no")}, "HTTP 400: no"),
        ({"claim": NoCapacity(429, "HTTP 429: quota")}, "quota"),
        ({"claim": Doubtful("TimeoutError")}, "TimeoutError"),
        ({"claim": Absent()}, "no such pool"),
        ({"rename": Refused(400, "HTTP 400: pools keep no name")}, "pools keep no name"),
        ({"rename": Absent()}, "gone"),
    ],
)
def test_where_the_pool_fails_a_sandbox_is_created_it_is_said_once_and_the_pool_rests(
    said: dict[str, Any], told: str
) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host, pool = Pooled(), WarmPool("pool_1", "env_1", clock)
        host.said = dict(said)
        first = await bound_with(host, clock, pool)()
        assert first.made and told in first.remark and "create" in host.asked
        if "rename" in said and said["rename"] != Absent():
            assert [each.name for each in host.running()] == [NAME], "what took no name is ended"
        host.asked.clear()
        other = names.sandbox_name("hands", "env_1", "sesn_other")
        second = await bound_with(host, clock, pool, other)()
        assert host.asked == ["create"] and not second.remark
        await asyncio.sleep(60.0)
        host.said = dict(said)
        third = await bound_with(host, clock, pool, names.sandbox_name("hands", "env_1", "sesn_third"))()
        assert "claim" in host.asked and not third.remark, "it is tried again, and not said again"

    run_virtual(play)


def test_a_pool_whose_sandboxes_reach_more_than_the_environments_is_not_used() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = Pooled(replace(POOL, egress=EgressPolicy()))
        bound = await bound_with(host, clock, WarmPool("pool_1", "env_1", clock))()
        assert host.asked == ["pool", "create"] and "network policy" in bound.remark
        assert bound.sandbox.egress == EGRESS

    run_virtual(play)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image": "another"}, "image is another, the environment's agent-cli"),
        ({"cpus": 1.0}, "CPUs"),
        ({"memory_mb": 1}, "memory"),
        ({"disk_mb": 1}, "disk"),
        ({"timeout_seconds": 0}, "idle time-out"),
        ({"egress": EgressPolicy(internet=False)}, "SANDBOX_ALLOW_OUT"),
        ({"egress": EgressPolicy(allow=EGRESS.allow, deny=("10.0.0.0/8",))}, "SANDBOX_ALLOW_OUT"),
        ({"entrypoint": True}, "entrypoint"),
    ],
)
def test_each_difference_is_named_to_whoever_asks_doctor(change: dict[str, Any], named: str) -> None:
    found = differences(replace(POOL, **change), spec_of(environment(), NAME))
    assert len(found) == 1 and named in found[0]
    (finding,) = examined(Pooled(replace(POOL, **change)))
    assert (finding.code, finding.severity) == ("HANDS404", Severity.ERROR) and named in finding.seen


def test_doctor_finds_a_pool_that_fits_one_that_is_not_there_and_says_nothing_without() -> None:
    assert [each.severity for each in examined(Pooled())] == [Severity.OK]
    (missing,) = examined(Pooled(None))
    assert missing.severity is Severity.ERROR and "no pool pool_1" in missing.seen
    assert examined(Pooled(), SANDBOX_POOL="") == []


def examined(host: Pooled, **more: str) -> list[Finding]:
    class Context:
        class service:
            pass

    Context.service.host = host  # type: ignore[attr-defined]
    findings: list[Finding] = []
    asyncio.run(check_pool(Context, environment(**more), findings.append))  # type: ignore[arg-type]
    return findings


def test_i2_of_two_copies_that_claim_for_one_session_one_has_it_and_the_others_sandbox_is_ended() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = Pooled()
        ways = [bound_with(host, clock, WarmPool("pool_1", "env_1", clock))() for _ in range(3)]
        bounds = await asyncio.gather(*ways)
        assert len({bound.sandbox.id for bound in bounds}) == 1
        assert sum(bound.made for bound in bounds) == 1
        assert [each.name for each in host.running()] == [NAME]

    run_virtual(play)


@pytest.mark.parametrize("fault", [FakeFault.LOST_BEFORE, FakeFault.LOST_AFTER])
def test_a_rename_in_doubt_ends_with_one_sandbox_of_that_name_and_ends_none_that_may_have_it(fault: FakeFault) -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = Pooled()
        met: list[str] = []

        def meet(method: str, what: str) -> FakeFault | None:
            if method == "rename" and not met:
                met.append(what)
                return fault
            return None

        host._meet = meet
        bound = await bound_with(host, clock, WarmPool("pool_1", "env_1", clock))()
        named = [each.id for each in host.running() if each.name == NAME]
        assert named == [bound.sandbox.id]
        assert (bound.sandbox.id == met[0]) is (fault is FakeFault.LOST_AFTER)

    run_virtual(play)


def test_a_name_that_somebody_else_takes_before_the_rename_is_his() -> None:
    async def play(clock: Callable[[], float]) -> None:
        host = Pooled()
        host.meanwhile = lambda: host.add(NAME) if NAME not in host.alive() else None
        bound = await bound_with(host, clock, WarmPool("pool_1", "env_1", clock))()
        assert not bound.made
        assert [each.id for each in host.running()] == [bound.sandbox.id]

    run_virtual(play)
