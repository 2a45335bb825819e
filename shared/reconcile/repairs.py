"""The repairs, one small class each, and how one ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from shared.ports import ListedItem, OpenCalls, SnapshotRecord
from shared.reconcile.world import OurSandbox
from shared.reports import Act


@dataclass(frozen=True, slots=True)
class Done:
    """`note`: what of several possible steps it was."""

    note: str = ""


@dataclass(frozen=True, slots=True)
class Skipped:
    """The last look showed that there is nothing to do."""

    why: str


@dataclass(frozen=True, slots=True)
class Failed:
    """It is due still; a later tick tries again."""

    why: str


Outcome = Done | Skipped | Failed


@dataclass(frozen=True, slots=True)
class _OfSandbox:
    sandbox: OurSandbox
    why: str

    @property
    def target(self) -> str:
        return self.sandbox.name


@dataclass(frozen=True, slots=True)
class _OfItem:
    """`name` is the proper name of its session's sandbox."""

    item: ListedItem
    name: str
    why: str

    @property
    def target(self) -> str:
        return self.item.id


@dataclass(frozen=True, slots=True)
class Resume(_OfSandbox):
    act: ClassVar[Act] = Act.RESUME


@dataclass(frozen=True, slots=True)
class Release(_OfItem):
    """So late that a sandbox which does not answer has no worker (`silence_tells`), or that no process in it counts as
    one (`whatever_it_says`)."""

    act: ClassVar[Act] = Act.RELEASE
    silence_tells: bool = False
    whatever_it_says: bool = False


@dataclass(frozen=True, slots=True)
class AnswerCalls:
    """`calls` are the ones that were seen to wait; no others are answered."""

    act: ClassVar[Act] = Act.FINISH
    session_id: str
    calls: OpenCalls
    why: str

    @property
    def target(self) -> str:
        return self.session_id


@dataclass(frozen=True, slots=True)
class StopItem:
    """Of no session."""

    act: ClassVar[Act] = Act.STOP_ITEM
    item: ListedItem
    why: str

    @property
    def target(self) -> str:
        return self.item.id


@dataclass(frozen=True, slots=True)
class Unmark(_OfSandbox):
    """`proper` is the name that it gets back."""

    act: ClassVar[Act] = Act.UNMARK
    proper: str


@dataclass(frozen=True, slots=True)
class Touch(_OfSandbox):
    act: ClassVar[Act] = Act.TOUCH


@dataclass(frozen=True, slots=True)
class EndLifetime(_OfItem):
    """An item past WORKER_LIFETIME_SECONDS, `overdue` seconds ago."""

    act: ClassVar[Act] = Act.STOP_WORKER
    overdue: float

    @property
    def target(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True)
class LetSleep(_OfSandbox):
    """First step: its worker is asked to end. The second is a Suspend."""

    act: ClassVar[Act] = Act.STOP_WORKER
    session_id: str


@dataclass(frozen=True, slots=True)
class EndFailed(_OfSandbox):
    act: ClassVar[Act] = Act.END_FAILED


@dataclass(frozen=True, slots=True)
class Suspend(_OfSandbox):
    """`ask`: whether a worker in it may still be on its way out, so that the sandbox must be asked. `proven`: whether
    the session certainly has no item; where not, its idle state and the absence of a worker must do."""

    act: ClassVar[Act] = Act.SUSPEND
    session_id: str
    ask: bool
    proven: bool


@dataclass(frozen=True, slots=True)
class Mark(_OfSandbox):
    """First step of an end: rename it."""

    act: ClassVar[Act] = Act.MARK
    session_id: str


@dataclass(frozen=True, slots=True)
class EndMarked(_OfSandbox):
    """Second step of an end. `proper` is the name that its session's sandbox has."""

    act: ClassVar[Act] = Act.END_MARKED
    proper: str


@dataclass(frozen=True, slots=True)
class EndRace(_OfSandbox):
    act: ClassVar[Act] = Act.END_RACE


@dataclass(frozen=True, slots=True)
class EndUndated(_OfSandbox):
    """A record or a ledger of races, where what stands in it says that it is past its time (races/undated.py)."""

    act: ClassVar[Act] = Act.END_RACE


@dataclass(frozen=True, slots=True)
class EndPrepared(_OfSandbox):
    """`snapshots`: those that were taken of it. They go first, since its name is all that leads to them."""

    act: ClassVar[Act] = Act.END_PREPARED
    snapshots: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Prepare:
    """`target`: the name of the sandbox that carries it, whether it is there yet or not."""

    act: ClassVar[Act] = Act.PREPARE
    target: str
    why: str


@dataclass(frozen=True, slots=True)
class EndNameless(_OfSandbox):
    act: ClassVar[Act] = Act.END_NAMELESS

    @property
    def target(self) -> str:
        return self.sandbox.id


@dataclass(frozen=True, slots=True)
class DeleteSnapshot:
    act: ClassVar[Act] = Act.DELETE_SNAPSHOT
    snapshot: SnapshotRecord
    why: str

    @property
    def target(self) -> str:
        return self.snapshot.id


Repair = (
    Resume
    | Release
    | AnswerCalls
    | StopItem
    | Unmark
    | Touch
    | EndLifetime
    | LetSleep
    | EndFailed
    | Suspend
    | Mark
    | EndMarked
    | EndNameless
    | EndRace
    | EndUndated
    | EndPrepared
    | Prepare
    | DeleteSnapshot
)
