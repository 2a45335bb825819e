"""What a worker says on its output: believed where the nonce of its item proves it
(docs/security.md#keys-of-the-workers).
"""

from __future__ import annotations

import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from image.session import claim as wire
from shared.claims.worker_process import secrets_of
from shared.ports import Absent, Doubtful, WorkItem
from shared.texts import printable

_LONGEST_TEXT: Final = 200


@dataclass(frozen=True, slots=True)
class Ready:
    """A worker holds the sandbox's lock for this item, or passed the claim to the one that does."""

    sdk: str
    remark: str = ""  # what the worker has to say about its session all the same

    @property
    def died(self) -> bool:
        """Whether the worker before this one died in a call."""
        return self.remark.startswith(wire.LAST_DEATH)


@dataclass(frozen=True, slots=True)
class NotReady:
    """`sandbox_gone`: the service no longer knows the sandbox, so another may be bound."""

    reason: str
    sandbox_gone: bool = False
    died: bool = False  # the worker, and nobody had asked it to end


def shown(text: str, claim: wire.Claim, longest: int = _LONGEST_TEXT) -> str:
    """A text of a sandbox that is fit for a report: short, printable, without the claim's secrets."""
    for secret in secrets_of(claim):
        text = text.replace(secret, "[secret]")
    return "".join(letter if letter.isprintable() else " " for letter in text[:longest])


def setup_failure(lines: Sequence[str], nonce: str) -> str:
    """What the worker said last of its session's set-up, where that failed; empty where it is not the worker's word."""
    said = [notice.detail for line in lines if (notice := proven_notice(line, nonce)) is not None]
    told = [detail.partition(": ")[2] for detail in said if detail.startswith(f"{wire.Exit.SETUP_FAILED.name}: ")]
    return printable(told[-1], wire.LONGEST_DETAIL) if told else ""


def proven_notice(line: str, nonce: str) -> wire.Notice | None:
    """One with the item's nonce: nobody but its workers knows it, whoever else may write into their output."""
    notice = wire.Notice.from_line(line)
    if notice is None or not hmac.compare_digest(notice.nonce.encode(errors="replace"), nonce.encode()):
        return None
    return notice


def notices_in(lines: Sequence[str] | Absent | Doubtful, nonce: str) -> list[wire.Notice]:
    """Those that are proven; none where the output could not be read."""
    if isinstance(lines, Absent | Doubtful):
        return []
    return [notice for line in lines if (notice := proven_notice(line, nonce)) is not None]


def waits_for_an_ack(lines: Sequence[str] | Absent | Doubtful, item: WorkItem, claim: wire.Claim) -> Ready | None:
    """The worker with this output, if it said `ready` for this item and has not got the lease yet."""
    notices = notices_in(lines, claim.nonce)
    # After `ready` it may have said that it has the lease: then nobody waits for this claim's ack.
    if notices and _is_ready(notices[-1], item.id, claim.worker_digest):
        return Ready(notices[-1].sdk, shown(notices[-1].detail, claim))
    return None


def _is_ready(notice: wire.Notice, work_id: str, digest: str) -> bool:
    return (
        notice.word is wire.Word.READY and notice.work_id == work_id and (notice.on_behalf or notice.worker == digest)
    )
