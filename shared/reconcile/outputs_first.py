"""What a session made is collected before its sandbox sleeps, and before it ends (docs/files.md#outputs)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from shared import names
from shared.outputs.collector import Collector, NotCollected
from shared.ports import Absent, SandboxHost, SandboxStatus
from shared.reconcile.repairs import EndMarked, Failed, Suspend
from shared.reconcile.world import World
from shared.settings import Settings


@dataclass(slots=True)
class OutputsFirst:
    """For the repairs of one `World`. `collector` is None where nothing is collected; `alarms` is added to."""

    settings: Settings
    host: SandboxHost
    now: Callable[[], datetime]
    world: World
    collector: Collector | None
    alarms: list[str]

    async def at_rest(self, repair: Suspend) -> None:
        """What cannot be collected now stays in the sandbox, and is tried again before its end."""
        if self.collector is None:
            return
        try:
            await self.collector.collect(names.canonical_session_id(repair.session_id), repair.sandbox.id)
        except NotCollected as error:
            self.alarms.append(f"{repair.session_id}: its outputs were not collected: {error}")

    async def before_end(self, repair: EndMarked) -> Failed | None:
        """None where nothing stands against the end. A sleeper is woken only where it may hold something new."""
        if self.collector is None or not isinstance(repair.sandbox.kind, names.GoneSandbox):
            return None
        kind = names.parse(self.settings.prefix, repair.proper)
        session = kind.session_id if isinstance(kind, names.SessionSandbox) else None
        key = repair.proper if session is None else names.canonical_session_id(session)
        marked_at = datetime.fromtimestamp(repair.sandbox.kind.marked_at, UTC)
        try:
            await self._marked(repair, self.collector, key, marked_at)
        except NotCollected as error:
            patience = self.settings.outputs.patience if self.settings.outputs is not None else 0.0
            until = marked_at + timedelta(seconds=self.settings.reconcile.end_grace + patience)
            if self.now() > until:
                self.alarms.append(f"{key}: deleted with outputs that could not be collected: {error}")
                return None
            self.alarms.append(f"{key}: kept until {until:%F %T} UTC, its outputs are not collected: {error}")
            return Failed(f"its outputs are not collected: {error}")
        return None

    async def _marked(self, repair: EndMarked, collector: Collector, key: str, marked_at: datetime) -> None:
        """Raises NotCollected."""
        sandbox = repair.sandbox
        known = self.world.items is not None and repair.proper in self.world.items.latest
        if await collector.current(key, self.world.last_sign(repair.proper, sandbox) if known else None):
            return
        asleep = sandbox.status is SandboxStatus.SUSPENDED
        if asleep:
            woken = await self.host.resume(sandbox.id)
            if woken is not None:
                raise NotCollected(
                    f"it could not be woken: {'it is gone' if isinstance(woken, Absent) else woken.reason}"
                )
        elif sandbox.status is not SandboxStatus.RUNNING:
            raise NotCollected(f"it is {sandbox.status.value}")
        try:
            await collector.collect(key, sandbox.id, marked_at=marked_at)
        except NotCollected:
            if asleep:
                await self.host.suspend(sandbox.id)
            raise
