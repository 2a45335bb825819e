"""Looks behind a session's stream: who serves it, whether it was stopped, whether its sandbox is still the same."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import cast

import pytest

from infra.cli.session.behind import Behind, WorkLook
from shared.ports import (
    Absent,
    Doubtful,
    FindOutcome,
    ItemState,
    ListedItem,
    Listing,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
    WorkQueue,
)

SESSION = "sesn_1"
BEGAN = datetime(2026, 10, 20, 9, tzinfo=UTC)


def item(state: ItemState, number: int = 1, session: str = SESSION) -> ListedItem:
    return ListedItem(f"work_{number}", "session", session, state, BEGAN + timedelta(minutes=number))


def box(identity: str, status: SandboxStatus = SandboxStatus.RUNNING) -> SandboxRecord:
    return SandboxRecord(identity, "name", status)


@dataclass
class BehindWorld:
    """What the two services answer next."""

    items: Listing[ListedItem] | Refused | Doubtful = field(default_factory=lambda: Listing((), complete=True))
    sandbox: FindOutcome = field(default_factory=Absent)

    async def list_items(self, pages: int) -> Listing[ListedItem] | Refused | Doubtful:
        assert pages == 1
        return self.items

    async def find(self, name: str) -> FindOutcome:
        assert name == "name"
        return self.sandbox


def looks(*worlds: BehindWorld) -> list[WorkLook]:
    """The first world is how things were; each further one is looked at in turn."""
    current = BehindWorld()

    async def run() -> list[WorkLook]:
        behind = Behind(SESSION, "name", cast("WorkQueue", current), cast("SandboxHost", current))
        found = []
        for number, world in enumerate(worlds):
            current.items, current.sandbox = world.items, world.sandbox
            if number:
                found.append(await behind.look())
            else:
                await behind.begin()
        return found

    return asyncio.run(run())


def queue(*items: ListedItem, complete: bool = True) -> Listing[ListedItem]:
    return Listing(items, complete=complete)


@pytest.mark.parametrize(
    ("items", "nobody"),
    [
        (queue(), True),
        (queue(item(ItemState.QUEUED)), True),
        (queue(item(ItemState.ACTIVE, session="session_1")), False),
        (queue(item(ItemState.STARTING)), False),
        (queue(item(ItemState.STOPPED, 1), item(ItemState.ACTIVE, 2)), False),
        (queue(item(ItemState.ACTIVE, session="sesn_other")), True),
        (queue(complete=False), False),
        (Doubtful("timeout"), False),
        (Refused(403, "no"), False),
    ],
)
def test_nobody_serves_only_where_the_queue_says_so(
    items: Listing[ListedItem] | Refused | Doubtful, nobody: bool
) -> None:
    (look,) = looks(BehindWorld(), BehindWorld(items))
    assert look.nobody_serves is nobody


@pytest.mark.parametrize("state", [ItemState.STOPPING, ItemState.STOPPED])
def test_a_stop_is_news_once_and_an_old_one_is_none(state: ItemState) -> None:
    old, running = item(ItemState.STOPPED, 1), item(ItemState.ACTIVE, 2)
    stopped = BehindWorld(queue(old, item(state, 2)))
    first, second = looks(BehindWorld(queue(old, running)), stopped, stopped)
    assert len(first.news) == 1 and "stopped from outside" in first.news[0]
    assert second.news == ()


def test_a_lost_sandbox_is_told_and_so_is_the_new_one() -> None:
    lost, same, new = looks(
        BehindWorld(sandbox=box("a")),
        BehindWorld(sandbox=Absent()),
        BehindWorld(sandbox=Absent()),
        BehindWorld(sandbox=box("b")),
    )
    assert "was lost, with the files in it" in lost.news[0]
    assert same.news == ()
    assert "has a new sandbox: the files in the old one are gone" in new.news[0]


def test_a_sandbox_that_was_replaced_between_two_looks_is_told() -> None:
    (look,) = looks(BehindWorld(sandbox=box("a")), BehindWorld(sandbox=box("b")))
    assert len(look.news) == 1 and "new sandbox" in look.news[0]


def test_an_ended_sandbox_counts_as_lost_and_a_sleeping_or_unseen_one_does_not() -> None:
    (ended,) = looks(BehindWorld(sandbox=box("a")), BehindWorld(sandbox=box("a", SandboxStatus.TERMINATED)))
    assert "was lost" in ended.news[0]
    quiet = looks(
        BehindWorld(sandbox=box("a")),
        BehindWorld(sandbox=box("a", SandboxStatus.SUSPENDED)),
        BehindWorld(sandbox=Doubtful("timeout")),
    )
    assert [look.news for look in quiet] == [(), ()]


def test_a_service_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    class Silent(BehindWorld):
        async def find(self, name: str) -> FindOutcome:
            await asyncio.sleep(3600)
            raise AssertionError

    monkeypatch.setattr("infra.cli.session.behind._LOOK_SECONDS", 0.01)
    silent = Silent(queue(item(ItemState.QUEUED)))

    async def run() -> WorkLook:
        return await Behind(SESSION, "name", cast("WorkQueue", silent), cast("SandboxHost", silent)).look()

    assert asyncio.run(run()) == WorkLook()


def test_a_new_sessions_first_sandbox_is_no_news() -> None:
    (look,) = looks(BehindWorld(), BehindWorld(sandbox=box("a")))
    assert look.news == ()
