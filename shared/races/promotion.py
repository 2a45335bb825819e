"""Bringing a winner's changes of the workspace back into the source, while the source's worker lives on.

What the winner changed is what differs between `base`, a pristine child of the checkpoint, and `winner`. A path of
these that has also changed in the source since the checkpoint is a conflict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shared.errors import HandsError
from shared.ports import SandboxHost, SandboxRecord
from shared.races.commands import Shell

OnConflict = Literal["refuse", "theirs", "ours"]


class PromotionRefused(HandsError):
    """Nothing was changed in the source. `conflicts` are paths, fit for a report, where these are the reason."""

    def __init__(self, reason: str, conflicts: tuple[str, ...] = ()) -> None:
        super().__init__(reason)
        self.reason = reason
        self.conflicts = conflicts


@dataclass(frozen=True, slots=True)
class PromotionLimits:
    """`data` bounds the contents that travel, in bytes; `entries` the files and directories of one workspace;
    `changes` the winner's; `seconds` each step in a sandbox."""

    data: int = 256 * 1024 * 1024
    entries: int = 200_000
    changes: int = 20_000
    seconds: float = 60.0


@dataclass(frozen=True, slots=True)
class WorkspacePromotion:
    """What became of the winner's changes. Counts are of paths, the tuples hold paths fit for a report.

    `conflicts` are those that `on_conflict` decided. `overtaken` were changed in the source while the promotion was
    at work and were left as they are; `failed` could not be changed (each with its reason): with either the promotion
    is partial. `skipped` are of a kind that is not moved (sockets, devices, pipes) or cannot be read.
    """

    added: int = 0
    edited: int = 0
    deleted: int = 0
    already: int = 0  # changes that the source had made as well
    data: int = 0  # bytes of content that travelled
    conflicts: tuple[str, ...] = ()
    overtaken: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    skipped: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.overtaken and not self.failed


async def promote_workspace(
    *,
    host: SandboxHost,
    shell: Shell,
    base: SandboxRecord,
    winner: SandboxRecord,
    source: SandboxRecord,
    on_conflict: OnConflict,
    limits: PromotionLimits,
) -> WorkspacePromotion:
    """Raises PromotionRefused, and then nothing was changed in the source."""
    raise PromotionRefused("this version cannot promote a workspace yet")
