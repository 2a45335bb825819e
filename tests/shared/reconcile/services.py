"""Both services in memory, for one pass of the reconciler, and what it is made of."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from types import MappingProxyType
from typing import Any, Final

from shared import names
from shared.ports import (
    Absent,
    CommandOutput,
    Doubtful,
    ItemState,
    ListedItem,
    Listing,
    OpenCalls,
    ProcessState,
    Refused,
    SandboxRecord,
    SandboxStatus,
    SessionRecord,
    SessionStatus,
    SnapshotRecord,
)
from shared.reconcile.reconciler import Reconciler
from shared.reports import Act, ReconcileReport
from shared.settings import Settings

NOW: Final = datetime(2026, 10, 20, 9, 0, tzinfo=UTC)
ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "RECONCILE_SECONDS": "0.6",
    "END_GRACE_SECONDS": "10",
}
TAG: Final = names.environment_tag("env_1")
ROWS: Final = 100  # a page of either list


class FakeServices:
    """Both services: what they hold, which of their calls never answer (`hangs`: a method, or a method and a target) or
    answer something else (`answers`). What was done is in `done`; `calls` counts requests, each page of a list as one.

    sessions: idle since five minutes where nothing else is said.  meanwhile: called before each call, as the world
    that moves on while a pass is at work.
    """

    def __init__(
        self,
        boxes: Sequence[SandboxRecord],
        items: Sequence[ListedItem] = (),
        hangs: Sequence[str] = (),
        *,
        sessions: Mapping[str, SessionRecord | Absent] | None = None,
        waiting: Mapping[str, OpenCalls] | None = None,
        processes: Mapping[str, Sequence[ProcessState] | Doubtful] | None = None,
        snapshots: Sequence[SnapshotRecord] = (),
        answers: Mapping[str, Refused | Doubtful] | None = None,
        meanwhile: Callable[[str], None] = lambda call: None,
    ) -> None:
        self.boxes = {box.id: box for box in boxes}
        self.items = list(items)
        self.sessions = dict(sessions or {})
        self.waiting = dict(waiting or {})
        self.processes = dict(processes or {})
        self.snapshots = list(snapshots)
        self.done: list[tuple[str, str]] = []
        self.calls: Counter[str] = Counter()
        self._hangs = hangs
        self._answers = answers or {}
        self._meanwhile = meanwhile

    async def _reach(self, method: str, target: str = "") -> Refused | Doubtful | None:
        call = f"{method} {target}".strip()
        self.calls[method] += 1
        self._meanwhile(call)
        await asyncio.sleep(3600 if {method, call} & set(self._hangs) else 0)
        return self._answers.get(call) or self._answers.get(method)

    async def list_sandboxes(self) -> Any:
        self.calls["list_sandboxes"] += (len(self.boxes) - 1) // ROWS
        return await self._reach("list_sandboxes") or Listing(list(self.boxes.values()), complete=True)

    async def list_snapshots(self, sandbox_id: str | None = None) -> Any:
        return await self._reach("list_snapshots") or Listing(self.snapshots, complete=True)

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Any:
        refused = await self._reach("list_items")
        rows = sorted(self.items, key=lambda item: item.created_at, reverse=True)
        newer = len(rows) if back_to is None else sum(item.created_at >= back_to for item in rows)
        seen = min(pages, newer // ROWS + 1)
        self.calls["list_items"] += seen - 1
        return refused or Listing(rows[: seen * ROWS], complete=len(rows) <= seen * ROWS)

    async def session(self, session_id: str) -> Any:
        refused = await self._reach("session", session_id)
        return refused or self.sessions.get(session_id, idle(session_id))

    async def open_calls(self, session_id: str) -> Any:
        return await self._reach("open_calls", session_id) or self.waiting.get(session_id, OpenCalls())

    async def find(self, name_or_id: str) -> Any:
        refused = await self._reach("find", name_or_id)
        found = [box for box in self.boxes.values() if name_or_id in (box.id, box.name)]
        return refused or (found[0] if found else Absent())

    async def process_names(self, sandbox_id: str) -> Any:
        return await self._reach("process_names", sandbox_id) or self.processes.get(sandbox_id, ())

    async def run(self, sandbox_id: str, command: str, args: Sequence[str], **_: object) -> CommandOutput:
        await self._reach("run", sandbox_id)
        self.done.append(("run", " ".join((command, *args))))
        return CommandOutput(0, "", "", timed_out=False)

    def __getattr__(self, method: str) -> Any:
        async def act(target: str, *_: object) -> Refused | Doubtful | None:
            refused = await self._reach(method, target)
            if refused is None:
                self.done.append((method, target))
            return refused

        return act


def idle(session_id: str, since: timedelta = timedelta(minutes=5), **fields: Any) -> SessionRecord:
    return SessionRecord(session_id, SessionStatus.IDLE, fields.get("archived", False), NOW - since)


def proper(number: int) -> str:
    return names.sandbox_name("hands", "env_1", f"sesn_{number}")


def box(number: int, status: SandboxStatus = SandboxStatus.RUNNING, name: str = "") -> SandboxRecord:
    return SandboxRecord(f"box{number}", name or proper(number), status, NOW - timedelta(hours=1), timeout_seconds=3600)


def asleep(number: int) -> SandboxRecord:
    return box(number, SandboxStatus.SUSPENDED)


def active(number: int) -> ListedItem:
    beat = NOW - timedelta(seconds=10)
    return ListedItem(f"work{number}", "session", f"sesn_{number}", ItemState.ACTIVE, beat, beat, beat)


def item(number: int, state: ItemState, **ago: float) -> ListedItem:
    """Times in seconds ago: created, acked, beat, stopped, asked (to stop)."""
    times = {key: NOW - timedelta(seconds=seconds) for key, seconds in ago.items()}
    return ListedItem(
        f"work{number}",
        "session",
        f"sesn_{number}",
        state,
        times.get("created", NOW - timedelta(hours=1)),
        times.get("acked"),
        times.get("beat"),
        times.get("stopped"),
        times.get("asked"),
    )


def marked(number: int) -> SandboxRecord:
    return box(number, name=f"gone-{names.to_base36(int(NOW.timestamp()) - 99).rjust(7, '0')}-{TAG}-s{number}zz")


def worker(number: int = 1) -> ProcessState:
    return ProcessState(f"hands-{number}", running=True, pid=40 + number)


def settings(environ: Mapping[str, str]) -> Settings:
    return Settings.from_environ({**ENVIRON, **environ})


def reconciled(
    services: FakeServices,
    environ: Mapping[str, str] = MappingProxyType({}),
    *,
    after: float = 0.0,
    place: float = 0.0,
    collector: Any = None,
) -> ReconcileReport:
    """One pass, so many seconds after NOW."""
    used = settings(environ)
    now = NOW + timedelta(seconds=after)
    both: Any = services
    return asyncio.run(
        Reconciler(
            used, used.environments["env_1"], both, both, now=lambda: now, place=place, collector=collector
        ).reconcile()
    )


def over(services: FakeServices, session_id: str, environ: Mapping[str, str] = MappingProxyType({})) -> ReconcileReport:
    """What a webhook about the end of a session leads to."""
    used = settings(environ)
    both: Any = services
    work = Reconciler(used, used.environments["env_1"], both, both, now=lambda: NOW)
    return asyncio.run(work.session_over(session_id))


def acts(report: ReconcileReport) -> list[tuple[Act, str]]:
    return [(action.act, action.target) for action in report.actions if action.done]
