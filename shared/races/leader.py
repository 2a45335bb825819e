"""Where the best branch so far waits for the end of the race, when its work is to be kept, and how it is kept.

A branch that does better takes the place, and the sandbox of the one before is ended at once. The leader
when the race ends is the winner: it is promoted and ended in turn, unless the promotion is that it lives on. A
promotion that fails is told in its report and costs nothing else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from shared.backoff import pause_before
from shared.ports import Absent, Doubtful, Refused, SandboxRecord
from shared.races import scores
from shared.races.errors import RaceError, SourceAbsent, SourceUnknown
from shared.races.fork_point import ForkPoint, RaceContext, awake, stamp
from shared.races.report import BranchReport, PromotionReport
from shared.races.request import Keep, RaceRequest
from shared.races.resources import NotMade
from shared.races.shell import NotDone
from shared.races.workspace_promotion import PromotionLimits, PromotionRefused, promote_workspace

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Held:
    report: BranchReport
    child: SandboxRecord
    stack: AsyncExitStack


class Leader:
    """`pristine_name` gives a name to the child that a workspace promotion compares the winner with; `kept_name` what
    the winner's sandbox is called when its snapshot stays (names.kept_snapshot_name)."""

    def __init__(
        self,
        request: RaceRequest,
        context: RaceContext,
        fork_point: ForkPoint,
        *,
        pristine_name: Callable[[], str],
        kept_name: Callable[[], str],
    ) -> None:
        self._request = request
        self._context = context
        self._fork_point = fork_point
        self._pristine_name = pristine_name
        self._kept_name = kept_name
        self._held: _Held | None = None
        self._ever: set[str] = set()
        self._pristine = AsyncExitStack()
        self._booting: asyncio.Task[SandboxRecord] | None = None
        self._stands = self._cramped = False
        self._done: PromotionReport | None = None

    async def __aenter__(self) -> Self:
        self._context.resources.give_way = self._give_way
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._context.resources.give_way = None
        async with AsyncExitStack() as ends:
            ends.push_async_callback(self._pristine.aclose)
            if self._held is not None:
                ends.push_async_callback(self._end, self._held)
            if self._booting is not None:
                self._booting.cancel()
                await asyncio.wait({self._booting})
                refusal = None if self._booting.cancelled() else self._booting.exception()
                if refusal is not None and not isinstance(refusal, RaceError):
                    raise refusal  # a bug

    def _is_best(self, report: BranchReport) -> bool:
        higher = self._request.higher_is_better
        return self._held is None or (
            scores.rank(report, higher_is_better=higher) < scores.rank(self._held.report, higher_is_better=higher)
        )

    async def offer(self, report: BranchReport, child: SandboxRecord, stack: AsyncExitStack) -> None:
        """A branch that is `ok`. If it is the best so far, what `stack` holds (its sandbox) belongs to the leader."""
        if self._request.promote == "workspace" and self._booting is None and not self._cramped:
            self._booting = asyncio.create_task(self._boot())
        if not self._is_best(report):
            return
        before, self._held = self._held, _Held(report, child, stack.pop_all())
        self._ever.add(report.name)
        try:
            if before is not None:
                await self._end(before)
        finally:
            # Last: whoever waits for room must not believe that none will come before the one before has ended.
            self._context.resources.hold(child.name or "")

    def had(self, name: str) -> bool:
        """Whether the branch of this name has ever led: its sandbox is then ended from here."""
        return name in self._ever

    async def promote(self, winner: BranchReport) -> PromotionReport:
        """Keeps the winner's work, within `RaceTimeouts.promote` seconds."""
        held = self._held
        if held is None or held.report.name != winner.name:
            raise AssertionError("the winner does not lead")
        seconds = self._context.timeouts.promote
        with self._context.timeline.span("promote"):
            try:
                async with asyncio.timeout(seconds) as scope:
                    self._done = await self._promote(held)
            except RaceError as error:
                self._done = self._failed(str(error))
            except PromotionRefused as error:
                self._done = self._failed(error.reason, error.conflicts)
            except Exception as error:  # the edge: the race has its result, whatever becomes of the promotion
                if scope.expired():
                    self._done = self._failed(f"did not end within {seconds:g} s; a part of it may have been done")
                else:
                    log.exception("race.promotion_failed kind=%s", self._request.promote)
                    self._done = self._failed(f"failed ({type(error).__name__})")
        return self._done

    def undo(self) -> None:
        """The promotion will not be reported: ends the sandbox or snapshot that only its report would have named."""
        if self._done is None or not self._done.done or self._held is None:
            return
        if self._done.snapshot_id is not None:
            self._context.resources.snapshots.end_kept(self._done.snapshot_id)
        if self._done.sandbox is not None:
            self._context.resources.end_kept(self._held.child.name or "")

    async def _end(self, held: _Held) -> None:
        with self._context.timeline.span("reap", held.report.name):
            await held.stack.aclose()

    async def _promote(self, held: _Held) -> PromotionReport:
        match self._request.promote:
            case "snapshot":
                return await self._snapshot(held)
            case "keep" if self._request.keep is not None:
                return await self._keep(held.child, self._request.keep)
            case _:
                return await self._workspace(held.child)

    async def _snapshot(self, held: _Held) -> PromotionReport:
        resources = self._context.resources
        snapshot_id = await held.stack.enter_async_context(resources.snapshots.checkpoint(held.child.id, "the winner"))
        kept_name = self._kept_name()
        async with resources.naming(held.child.name or ""):
            lost = await self._rename(held.child, kept_name)
        if lost is not None:
            return self._failed(f"{lost}; the snapshot was deleted again")
        resources.renamed(held.child.name or "", kept_name)
        resources.snapshots.keep(snapshot_id)
        return PromotionReport(kind="snapshot", done=True, snapshot_id=snapshot_id)

    async def _keep(self, child: SandboxRecord, keep: Keep) -> PromotionReport:
        async with self._context.resources.naming(child.name or ""):
            lost = await self._rename(child, keep.sandbox_name)
        if lost is not None:
            return self._failed(f"{lost}; it was ended")
        self._context.resources.keep(child.name or "")
        return PromotionReport(kind="keep", done=True, sandbox=keep.sandbox_name, sandbox_id=child.id)

    async def _rename(self, child: SandboxRecord, name: str) -> str | None:
        """Why the winner's sandbox has not got this name, or None."""
        timeouts, doubt = self._context.timeouts, ""
        for attempt in range(timeouts.attempts):
            if attempt:
                await asyncio.sleep(pause_before(attempt, timeouts.pause))
                match await self._context.host.find(child.id):
                    case SandboxRecord(name=now) if now == name:
                        return None
                    case _:
                        pass
            match await self._context.host.rename(child.id, name):
                case None:
                    return None
                case Absent():
                    return "the winner's sandbox is not there any more"
                case Refused(status=409):
                    return "the name was taken during the race"
                case Refused(reason=reason):
                    return f"the winner's sandbox could not be renamed: {reason}"
                case Doubtful(reason=reason):
                    doubt = reason
        return f"it is not known whether the winner's sandbox was renamed ({doubt})"

    async def _workspace(self, child: SandboxRecord) -> PromotionReport:
        source = await self._source()
        running = await self._context.shell.clear(child.id)
        if isinstance(running, NotDone):
            return self._failed(running.reason)
        done = await promote_workspace(
            host=self._context.host,
            shell=self._context.shell,
            base=await self._base(),
            winner=child,
            source=source,
            on_conflict=self._request.on_conflict,
            limits=PromotionLimits(seconds=self._context.timeouts.promote / 2),
        )
        return PromotionReport(
            kind="workspace",
            done=done.complete,
            reason=None if done.complete else "only a part could be promoted: see overtaken and failed",
            conflicts=done.conflicts,
            overtaken=done.overtaken,
            failed=done.failed,
            skipped=done.skipped,
            added=done.added,
            changed=done.edited,
            deleted=done.deleted,
        )

    async def _source(self) -> SandboxRecord:
        """The source's sandbox, running: it may have fallen asleep during the race. Raises RaceError."""
        if self._fork_point.sandbox is None:
            raise TypeError("promote workspace has a sandbox for its source (request.py)")
        for attempt in range(1, self._context.timeouts.attempts + 1):
            match await self._context.host.find(self._fork_point.sandbox.id):
                case SandboxRecord() as record:
                    return await awake(record, self._context)
                case Absent():
                    raise SourceAbsent("the source's sandbox is not there any more")
                case Doubtful():
                    await asyncio.sleep(pause_before(attempt, self._context.timeouts.pause))
        raise SourceUnknown("the source's sandbox could not be looked up")

    async def _base(self) -> SandboxRecord:
        """The pristine child. One that found no room beside the branches is tried again, now that they are gone."""
        if self._booting is not None:
            try:
                return await self._booting
            except NotMade:
                pass
        self._booting = asyncio.create_task(self._boot())
        return await self._booting

    async def _give_way(self) -> bool:
        """Ends a pristine child that was made early, so that a branch has room; it is made again in its time."""
        if self._booting is None or not self._stands:
            return False
        booting, self._booting = self._booting, None
        self._cramped, self._stands = True, False
        booting.cancel()
        await asyncio.wait({booting})
        await self._pristine.aclose()
        return True

    async def _boot(self) -> SandboxRecord:
        name = self._pristine_name()
        spec = self._fork_point.spec(name, self._context.environment, self._context.timeouts.promote)
        base = await self._pristine.enter_async_context(self._context.resources.sandbox(spec))
        self._stands = True
        self._context.resources.hold(name)
        await stamp(base.id, self._context)
        return base

    def _failed(self, reason: str, conflicts: tuple[str, ...] = ()) -> PromotionReport:
        if self._request.promote == "none":
            raise TypeError("nothing is promoted")
        return PromotionReport(kind=self._request.promote, done=False, reason=reason, conflicts=conflicts)
