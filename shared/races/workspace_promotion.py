"""Bringing a winner's changes of the workspace back into the source, while the source's worker lives on.

What the winner changed is what differs between `base`, a pristine child of the checkpoint, and `winner`. A path of
these that has also changed in the source since the checkpoint is a conflict.

A program (image/session/programs/workspace/) lists `base` and `winner`, judges the changes beside the source,
packs the contents that the source needs into parts, and applies them. It runs as the agent's user; its inputs are
written by the sandbox's own daemon to unguessable names in /tmp that the user cannot change. What it says is checked
before it is used: in the winner's sandbox somebody else's programs ran. A file's owner, times and extended attributes
do not travel.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

from image.session.programs.workspace import program
from image.session.programs.workspace.entries import Stop, TreeChange, TreeEntry, from_text, to_text
from image.session.programs.workspace.listing import NONSENSE, Nonsense, checked_entry
from image.session.programs.workspace.verdicts import APPLY, CONFLICT, SAME
from shared.backoff import pause_before
from shared.errors import HandsError
from shared.ports import Absent, Doubtful, Refused, SandboxHost, SandboxRecord
from shared.races.shell import NotRun, SandboxShell, why
from shared.races.workspace_diff import Difference, difference, shown, to_wire
from shared.tasks import shielded, together

# docs/wire/tensorlake.md#8-files: the largest write that every daemon takes is not known
PART_BYTES: Final = 1024 * 1024
_TEMPORARY: Final = "/tmp"
_AT_ONCE: Final = 4  # parts on their way
_APPLIES: Final = 4
_UNCLEAR: Final = 2  # of these that may be without an answer
_PAUSE: Final = 0.3  # seconds
_ATTEMPTS: Final = 3
_LARGEST_LISTING: Final = 16 * 1024 * 1024  # packed: it goes from one sandbox to the other, part by part
_LARGEST_ANSWER: Final = 4 * 1024 * 1024  # packed
_SMALL_ANSWER: Final = 65_536  # packed: it is read at once, another one in a thread
_LARGEST_UNPACKED: Final = 16 * 1024 * 1024
_MOST_VALUES: Final = 500_000  # 20,000 changes have two thirds of it
_VALUE_SIGNS: Final = (b",", b"[", b"{")
# A promotion is over by then, so what is older was left by one that was killed.
_LEFT_SECONDS: Final = 180.0
_PREFIX: Final = "race-promotion-"
_OURS: Final = re.compile(rf"{_PREFIX}[0-9a-f]{{24}}")
_MOST_SHOWN: Final = 100

_T = TypeVar("_T")
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
    shell: SandboxShell,
    base: SandboxRecord,
    winner: SandboxRecord,
    source: SandboxRecord,
    on_conflict: OnConflict,
    limits: PromotionLimits,
    throwaway: bool = False,
    leave_out: Callable[[TreeChange], bool] = lambda change: False,
) -> WorkspacePromotion:
    """Raises PromotionRefused, and then nothing was changed in the source.

    `throwaway`: the source, and with it everything that was written there, is ended afterwards, so nothing is cleaned
    up, and a cancellation ends it at once. Changes that `leave_out` is true of do not travel.

    It may be done again, whatever became of it. It takes a few steps of `limits.seconds` at most, and as long as the
    contents travel; cancelled while changes are being made, it ends when they are made.
    """
    promotion = _Promotion(host, shell, base, winner, source, on_conflict, limits, throwaway, leave_out)
    if throwaway:
        return await promotion.run()
    try:
        return await promotion.run()
    finally:
        await shielded(promotion.clean())


class _Promotion:
    def __init__(
        self,
        host: SandboxHost,
        shell: SandboxShell,
        base: SandboxRecord,
        winner: SandboxRecord,
        source: SandboxRecord,
        on_conflict: OnConflict,
        limits: PromotionLimits,
        throwaway: bool,
        leave_out: Callable[[TreeChange], bool],
    ) -> None:
        self._leave_out = leave_out
        self._throwaway = throwaway
        self._base = _Site(host, shell, base.id, "the checkpoint's sandbox", limits.seconds)
        self._winner = _Site(host, shell, winner.id, "the winner's sandbox", limits.seconds)
        self._source = _Site(host, shell, source.id, "the source", limits.seconds)
        self._on_conflict = on_conflict
        self._limits = limits
        self._token = secrets.token_hex(8)

    async def run(self) -> WorkspacePromotion:
        if not self._throwaway:
            await self._source.clear_leftovers()
        found = await self._compare()
        skipped = _shown(found.skipped)
        if not found.changes:
            return WorkspacePromotion(skipped=skipped)
        changes = {change.path: change for change in found.changes}
        verdicts = await self._check(changes)
        conflicts = [path for path, (word, _) in verdicts.items() if word == CONFLICT]
        if conflicts and self._on_conflict == "refuse":
            raise _conflicting(conflicts)
        wanted = self._wanted(changes, verdicts)
        data = sum(size for _, size in wanted.values())
        if data > self._limits.data:
            raise PromotionRefused(
                f"the changes have {data} bytes of content, more than the {self._limits.data} allowed"
            )
        parts = await self._carry(wanted, data)
        asked = {
            "changes": to_wire(found.changes),
            "on_conflict": self._on_conflict,
            "token": self._token,
            "parts": [Path(part).name for part in parts],
            "stream": [[digest, size] for digest, (_, size) in wanted.items()],
        }
        applying = self._apply(asked)
        promotion = await (applying if self._throwaway else shielded(applying))
        return replace(promotion, skipped=skipped, data=data)

    async def clean(self) -> None:
        await asyncio.gather(self._base.clean(), self._winner.clean(), self._source.clean())

    async def _compare(self) -> Difference:
        """The winner's listing goes to the checkpoint's sandbox, where nothing of the winner's ran: what it would take
        to compare two large workspaces is memory of that sandbox and not of this process, which holds one part."""
        await self._winner.run("scan", str(self._limits.entries), str(PART_BYTES), self._winner.scratch)
        parts: list[str] = []
        size = PART_BYTES
        while size == PART_BYTES:
            if len(parts) > _LARGEST_LISTING // PART_BYTES:
                raise PromotionRefused(f"{self._winner.label}: its listing has more than {_LARGEST_LISTING} bytes")
            part = await self._winner.read(f"listing-{len(parts)}", PART_BYTES)
            size = len(part)
            if size or not parts:
                parts.append(Path(await self._base.put(part)).name)
        names = ",".join(parts)
        most, most_changes = str(self._limits.entries), str(self._limits.changes)
        try:
            said = await self._base.ask("diff", _TEMPORARY, names, most, most_changes)
        except _Stopped as stop:
            if stop.said == NONSENSE:
                raise self._winner.nonsense() from None
            raise
        try:
            found = difference(said, self._limits.changes)
        except Nonsense:
            raise self._base.nonsense() from None
        return replace(found, changes=[change for change in found.changes if not self._leave_out(change)])

    async def _check(self, changes: Mapping[bytes, TreeChange]) -> Mapping[bytes, tuple[str, TreeEntry | None]]:
        asked = await self._source.put(_packed({"changes": to_wire(list(changes.values()))}))
        rows = await self._source.ask("check", asked)
        try:
            verdicts = {
                from_text(text): (str(word), None if seen is None else checked_entry(seen)) for text, word, seen in rows
            }
        except (Nonsense, Stop, TypeError, ValueError):
            raise self._source.nonsense() from None
        if verdicts.keys() != changes.keys() or any(
            word not in (SAME, APPLY, CONFLICT) for word, _ in verdicts.values()
        ):
            raise self._source.nonsense()
        return verdicts

    def _wanted(
        self, changes: Mapping[bytes, TreeChange], verdicts: Mapping[bytes, tuple[str, TreeEntry | None]]
    ) -> dict[str, tuple[bytes, int]]:
        """Digest -> a path of the winner that has this content, and its size."""
        wanted: dict[str, tuple[bytes, int]] = {}
        for path, (word, seen) in verdicts.items():
            now = changes[path].now
            if now is None or now.kind != "f" or now.value is None:
                continue
            has_it = seen is not None and seen.kind == "f" and seen.value == now.value
            if not has_it and (word == APPLY or (word == CONFLICT and self._on_conflict == "theirs")):
                wanted[now.value] = (path, now.size)
        return wanted

    async def _carry(self, wanted: Mapping[str, tuple[bytes, int]], data: int) -> Sequence[str]:
        """Moves the contents; returns where the parts are in the source."""
        if not data:
            return []
        rows = [[to_text(path), digest] for digest, (path, _) in wanted.items()]
        asked = await self._winner.put(_packed({"wanted": rows}))
        await self._winner.run("pack", asked, self._winner.scratch, str(PART_BYTES))
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(number: int) -> str:
            async with gate:
                part = await self._winner.read(str(number), PART_BYTES)
                if len(part) != min(PART_BYTES, data - number * PART_BYTES):
                    raise self._winner.nonsense()
                return await self._source.put(part)

        return await together(*(one(number) for number in range(-(-data // PART_BYTES))))

    async def _apply(self, asked: Mapping[str, Any]) -> WorkspacePromotion:
        path = await self._source.put(_packed(asked))
        reason, unclear = "", 0
        for attempt in range(_APPLIES):  # it is safe to repeat
            await asyncio.sleep(pause_before(attempt, _PAUSE))
            try:
                answer = await self._source.ask("apply", path, _TEMPORARY)
                return self._told(answer)
            except PromotionRefused as error:
                # A refusal is before anything was changed, and a conflict may be with an earlier attempt of ours that
                # is still at work.
                if not unclear and (error.conflicts or isinstance(error, _Stopped)):
                    raise
                reason = reason or error.reason
                unclear += not error.conflicts
                if unclear == _UNCLEAR:
                    break
        await self._source.attempt("sweep", path)
        return WorkspacePromotion(failed=(f"it is not known how much of it was done: {reason}",))

    def _told(self, answer: Any) -> WorkspacePromotion:
        try:
            conflicts = [from_text(text) for text in answer["conflicts"]]
            if answer["refused"]:
                raise _conflicting(conflicts)
            return WorkspacePromotion(
                added=int(answer["added"]),
                edited=int(answer["edited"]),
                deleted=int(answer["deleted"]),
                already=int(answer["already"]),
                conflicts=_shown(conflicts),
                overtaken=_shown([from_text(text) for text in answer["overtaken"]]),
                failed=_most([f"{shown(from_text(text))}: {str(why)[:100]}" for text, why in answer["failed"]]),
            )
        except (Stop, TypeError, ValueError, KeyError):
            raise self._source.nonsense() from None


class _Stopped(PromotionRefused):
    """The program itself said why it stopped."""

    def __init__(self, label: str, said: str) -> None:
        super().__init__(f"{label}: {shown(said.encode(errors='replace'))}")
        self.said = said


class _Site:
    """One of the three sandboxes: runs the program there, and remembers what has to go."""

    def __init__(self, host: SandboxHost, shell: SandboxShell, sandbox_id: str, label: str, seconds: float) -> None:
        self._host = host
        self._shell = shell
        self._id = sandbox_id
        self.label: Final = label
        self._seconds = seconds
        self._written: list[str] = []
        self._ran = False
        self._asked = 0
        self.scratch: Final = _unguessable()

    async def run(self, operation: str, *args: str) -> None:
        """Raises PromotionRefused."""
        self._ran = True
        said = await self._shell.python(self._id, program(), (self.scratch, operation, *args), self._seconds)
        if isinstance(said, NotRun):
            raise PromotionRefused(f"{self.label}: {said.reason}")
        try:
            stopped = json.loads(said.text).get("stopped")
        except (ValueError, AttributeError):
            raise self.nonsense() from None
        if stopped is not None:
            raise _Stopped(self.label, str(stopped))

    async def ask(self, operation: str, *args: str) -> Any:
        """What an operation leaves in a file, whose name is its last argument. Raises PromotionRefused."""
        self._asked += 1
        name = f"{operation}-{self._asked}"
        await self.run(operation, *args, f"{self.scratch}/{name}")
        packed = await self.read(name, _LARGEST_ANSWER)
        if len(packed) <= _SMALL_ANSWER:
            return self._unpacked(packed)
        return await asyncio.to_thread(self._unpacked, packed)

    async def clear_leftovers(self) -> None:
        """Removes what promotions that were killed have left here; what cannot be removed now, the next one removes."""
        try:
            names = await self.ask("leftovers", _TEMPORARY, _PREFIX, str(_LEFT_SECONDS))
        except PromotionRefused:
            return
        if isinstance(names, list):
            ours = [name for name in names if isinstance(name, str) and _OURS.fullmatch(name)]
            await self._delete([f"{_TEMPORARY}/{name}" for name in ours])

    async def attempt(self, operation: str, *args: str) -> None:
        try:
            await self.run(operation, *args)
        except PromotionRefused:
            return  # what is left is named as ours, and nothing takes it for a part of the workspace

    async def read(self, name: str, limit: int) -> bytes:
        outcome: bytes | Absent | Refused | Doubtful = Absent()
        for _ in range(_ATTEMPTS):
            outcome = await self._host.read_file(self._id, f"{self.scratch}/{name}", limit)
            if not isinstance(outcome, Doubtful):
                break
        if not isinstance(outcome, bytes):
            raise PromotionRefused(f"{self.label}: a file could not be read: {why(outcome)}")
        return outcome

    async def put(self, data: bytes) -> str:
        """The path of a new file with this content."""
        path = _unguessable()
        self._written.append(path)
        outcome: Absent | Refused | Doubtful | None = Absent()
        for _ in range(_ATTEMPTS):
            outcome = await self._host.write_file(self._id, path, data)
            if not isinstance(outcome, Doubtful):
                break
        if outcome is not None:
            raise PromotionRefused(f"{self.label}: a file could not be written: {why(outcome)}")
        return path

    async def clean(self) -> None:
        if self._ran:
            await self.attempt("clean", self.scratch)
        await self._delete(self._written)

    async def _delete(self, paths: Sequence[str]) -> None:
        gate = asyncio.Semaphore(_AT_ONCE)

        async def one(path: str) -> None:
            async with gate:
                for _ in range(_ATTEMPTS):
                    if not isinstance(await self._host.delete_file(self._id, path), Doubtful):
                        return

        await asyncio.gather(*map(one, paths))

    def nonsense(self) -> PromotionRefused:
        return PromotionRefused(f"{self.label}: its answer makes no sense")

    def _unpacked(self, data: bytes) -> Any:
        try:
            whole = zlib.decompressobj()
            text = whole.decompress(data, _LARGEST_UNPACKED)
            if whole.unconsumed_tail:
                raise PromotionRefused(f"{self.label}: its answer is too large")
            # A value takes up to forty times the memory of its text: they are counted before they are made.
            if sum(map(text.count, _VALUE_SIGNS)) > _MOST_VALUES:
                raise PromotionRefused(f"{self.label}: its answer has too many values")
            return json.loads(text)
        except (zlib.error, ValueError, RecursionError):
            raise self.nonsense() from None


def _unguessable() -> str:
    return f"{_TEMPORARY}/{_PREFIX}{secrets.token_hex(12)}"


def _packed(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, separators=(",", ":")).encode(), 1)


def _conflicting(paths: Sequence[bytes]) -> PromotionRefused:
    many = (
        f"{len(paths)} paths that the winner changed have" if len(paths) > 1 else "a path that the winner changed has"
    )
    return PromotionRefused(f"{many} changed in the source since the checkpoint", _shown(paths))


def _shown(paths: Sequence[bytes]) -> tuple[str, ...]:
    return _most([shown(path) for path in paths])


def _most(lines: Sequence[str]) -> tuple[str, ...]:
    more = len(lines) - _MOST_SHOWN
    return (*lines[:_MOST_SHOWN], f"and {more} more") if more > 0 else tuple(lines)
