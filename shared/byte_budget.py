"""How many bytes of other people's answers this process holds at once.

Each call bounds its own answer; together they are bounded here. An answer grows as it is read, and one that finds the
budget used up is given up: a wait could be one of a hundred readers for each other. What small answers need is set
aside, so that races which are flooded take nothing from claims; and a race, and each of its branches, has a share
(`within`), so that one that is flooded leaves room for the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Final

SMALL: Final = 65_536
_SHARE_OF_SMALL: Final = 0.25


class BudgetUsedUp(Exception):
    """Too many bytes are held already."""


class Share:
    """What one asker's answers may have of the budget together: `total` in bytes."""

    def __init__(self, total: int) -> None:
        self.free = total


_SHARES: ContextVar[tuple[Share, ...]] = ContextVar("shares", default=())


@contextmanager
def within(share: Share) -> Iterator[None]:
    """What this block asks for, and what its tasks ask for, counts against this share too."""
    token = _SHARES.set((*_SHARES.get(), share))
    try:
        yield
    finally:
        _SHARES.reset(token)


class ByteBudget:
    """`total` in bytes; a quarter of it is for answers of at most SMALL bytes alone."""

    def __init__(self, total: int) -> None:
        self._free_for_all = int(total * (1 - _SHARE_OF_SMALL))
        self._free_for_small = total - self._free_for_all

    def hold(self, limit: int) -> HeldBytes:
        """For one answer of at most `limit` bytes."""
        return HeldBytes(self, small=limit <= SMALL)

    def take(self, count: int, *, small: bool) -> None:
        """Raises BudgetUsedUp."""
        free = self._free_for_small if small else self._free_for_all
        if count > free:
            raise BudgetUsedUp
        self._add(-count, small=small)

    def give_back(self, count: int, *, small: bool) -> None:
        self._add(count, small=small)

    def _add(self, count: int, *, small: bool) -> None:
        if small:
            self._free_for_small += count
        else:
            self._free_for_all += count


class HeldBytes:
    """The bytes of one answer: given back at the end of the block."""

    def __init__(self, budget: ByteBudget, *, small: bool) -> None:
        self._budget = budget
        self._small = small
        self._shares = _SHARES.get()
        self._held = 0

    def __enter__(self) -> HeldBytes:
        return self

    def __exit__(self, *_: object) -> None:
        self._budget.give_back(self._held, small=self._small)
        for share in self._shares:
            share.free += self._held
        self._held = 0

    def grow(self, count: int) -> None:
        """Raises BudgetUsedUp."""
        if any(count > share.free for share in self._shares):
            raise BudgetUsedUp
        self._budget.take(count, small=self._small)
        for share in self._shares:
            share.free -= count
        self._held += count
