"""A session's files from outside: listed, read and written in parts, as the agent's user.

The other end is image/session/programs/files.py. Nothing that a sandbox says of its files is believed further than it
can be checked: paths are plain and stay below their root, sizes are bounds, and what was sent has the hash that was
told for it.
"""

from __future__ import annotations

import base64
import binascii
import json
import posixpath
import re
import secrets
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Final, Literal

from image.session import programs
from image.session.claim import WORKER_PYTHON
from shared.errors import HandsError
from shared.ports import Absent, CommandOutput, Doubtful, Refused, SandboxHost
from shared.texts import printable

PART: Final = 1 << 20  # bytes in one call (docs/wire/tensorlake.md#8-files)
MOST_ENTRIES: Final = 100_000
_MOST_PIECES: Final = 400  # in one call: they travel as an argument
_LONGEST_ARGUMENT: Final = 60_000
_ROW: Final = 400  # bytes of one row of a list, on average
_LIST_SECONDS: Final = 600.0
_CALL_SECONDS: Final = 60.0
_STAGES: Final = "/tmp/hands-cp-"
_SHA256: Final = re.compile(r"[0-9a-f]{64}")


Listing = Literal["hashed", "plain", "flat"]


class FilesError(HandsError):
    """The files could not be read or written. The text says why, and is fit for a terminal."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    """A regular file. `path` is below the root, "" where the root itself is the file; `modified` in nanoseconds."""

    path: str
    size: int
    mode: int
    modified: int
    sha256: str


@dataclass(frozen=True, slots=True)
class FileTree:
    """What is below a root. `left_out`: paths with reasons. `complete`: all of it was listed."""

    files: Sequence[FileEntry]
    folders: Sequence[tuple[str, int]]
    links: Sequence[tuple[str, str]]
    left_out: Sequence[tuple[str, str]]
    complete: bool

    @property
    def is_file(self) -> bool:
        return len(self.files) == 1 and self.files[0].path == ""

    @property
    def size(self) -> int:
        return sum(file.size for file in self.files)


@dataclass(frozen=True, slots=True)
class Piece:
    """`length` bytes of a file from `offset` on."""

    file: FileEntry
    offset: int
    length: int

    @property
    def is_last(self) -> bool:
        return self.offset + self.length == self.file.size


def pieces(files: Iterable[tuple[FileEntry, int]], part: int = PART) -> Iterator[list[Piece]]:
    """What is left of files, from an offset on each, in calls of at most `part` bytes."""
    call: list[Piece] = []
    room, words = part, 0
    for file, done in files:
        at = done
        while True:
            length = min(room, file.size - at)
            full = len(call) == _MOST_PIECES or words > _LONGEST_ARGUMENT or (length == 0 and at < file.size)
            if call and full:
                yield call
                call, room, words = [], part, 0
                continue
            call.append(Piece(file, at, length))
            at, room, words = at + length, room - length, words + len(file.path.encode()) + 32
            if at == file.size:
                break
    if call:
        yield call


class SandboxFiles:
    """The files of one running sandbox."""

    def __init__(self, host: SandboxHost, sandbox_id: str, *, user: str | None) -> None:
        self._host = host
        self._id = sandbox_id
        self._user = user

    async def kind(self, path: str) -> str:
        """`file`, `folder`, `other` or `none`. Raises FilesError."""
        said = _json(await self._run("kind", path, limit=4096))
        if said not in ("file", "folder", "other", "none"):
            raise FilesError("the sandbox gave no clear answer")
        return str(said)

    async def tree(self, root: str, *, how: Listing = "hashed", most: int = MOST_ENTRIES) -> FileTree:
        """What is below an absolute path; `flat`: its own entries alone, and no hashes. Raises FilesError."""
        said = await self._run("list", root, str(most), how, limit=most * _ROW, seconds=_LIST_SECONDS)
        return tree_of([_json(line) for line in said.splitlines() if line], root)

    async def read(self, root: str, call: Sequence[Piece]) -> list[bytes]:
        """The bytes of each piece. Raises FilesError."""
        wanted = json.dumps([[each.file.path, each.offset, each.length] for each in call])
        size = sum(each.length for each in call)
        said = await self._run("send", root, wanted, limit=size * 3 // 2 + 4096)
        try:
            data = b"".join(base64.b64decode(line, validate=True) for line in said.splitlines())
        except (binascii.Error, ValueError):
            raise FilesError("the sandbox sent something else than the file") from None
        if len(data) != size:
            raise FilesError("the sandbox sent more or less than the file")
        found, at = [], 0
        for each in call:
            found.append(data[at : at + each.length])
            at += each.length
        return found

    async def present(self, root: str, files: Sequence[FileEntry]) -> list[int]:
        """How many bytes of each are there from an earlier copy; all of them where the whole file is. Raises
        FilesError."""
        wanted = json.dumps([[file.path, file.size, file.sha256] for file in files])
        said = await self._staged("have", root, wanted.encode(), seconds=_LIST_SECONDS, limit=len(files) * 24 + 4096)
        found = _json(said)
        if not isinstance(found, list) or len(found) != len(files) or not all(isinstance(each, int) for each in found):
            raise FilesError("the sandbox gave no clear answer")
        return [max(0, min(each, file.size)) for each, file in zip(found, files, strict=True)]

    async def write(self, root: str, call: Sequence[tuple[Piece, bytes]]) -> None:
        """Adds pieces to their files; one that is complete takes its file's place. Raises FilesError."""
        head = json.dumps(
            [
                [each.file.path, each.offset, each.length, each.file.size, each.file.sha256, each.file.mode]
                for each, _ in call
            ]
        )
        await self._staged("take", root, b"\n".join((head.encode(), b"".join(data for _, data in call))))

    async def finish(self, root: str, folders: Sequence[tuple[str, int]], links: Sequence[tuple[str, str]]) -> None:
        """Makes folders and links. Raises FilesError."""
        await self._staged("finish", root, json.dumps({"folders": folders, "links": links}).encode())

    async def _staged(
        self, operation: str, root: str, data: bytes, *, seconds: float = _CALL_SECONDS, limit: int = 65_536
    ) -> str:
        """With the data in a file of the sandbox whose name nobody can guess."""
        stage = _STAGES + secrets.token_hex(16)
        written = await self._host.write_file(self._id, stage, data)
        if written is not None:
            raise FilesError(f"a file could not be written into the sandbox ({_why(written)})")
        try:
            return await self._run(operation, root, stage, seconds=seconds, limit=limit)
        finally:
            await self._host.delete_file(self._id, stage)

    async def _run(self, *args: str, limit: int, seconds: float = _CALL_SECONDS) -> str:
        ran = await self._host.run(
            self._id,
            "sh",
            ("-c", programs.text("run_python.sh"), "files", WORKER_PYTHON, _program(), *args),
            env={},
            user=self._user,
            working_dir=None,
            timeout=seconds,
            limit=limit,
        )
        match ran:
            case CommandOutput(exit_code=0, timed_out=False):
                return ran.stdout
            case CommandOutput(timed_out=True):
                raise FilesError(f"the sandbox took longer than {seconds:g} s to {args[0]} {args[1]}")
            case CommandOutput():
                raise FilesError(_told(ran))
            case Absent() | Refused() | Doubtful():
                raise FilesError(f"the sandbox did not {args[0]} {args[1]} ({_why(ran)})")


@cache
def _program() -> str:
    return programs.text("files.py")


def _why(outcome: Absent | Refused | Doubtful) -> str:
    return "it is gone" if isinstance(outcome, Absent) else printable(outcome.reason, 300)


def _told(ran: CommandOutput) -> str:
    if ran.exit_code == 127:
        return "there is no Python in the sandbox"
    try:
        error = json.loads(ran.stdout.rstrip().rpartition("\n")[2])["error"]
    except (ValueError, KeyError, TypeError):
        error = ran.stderr.strip()[-300:] or f"exit status {ran.exit_code}"
    return printable(str(error), 300)


def _json(line: str) -> Any:
    try:
        return json.loads(line)
    except ValueError:
        raise FilesError("the sandbox gave no clear answer") from None


def plain(path: object) -> bool:
    """Whether a path is one below a folder, in its plain form."""
    return (
        isinstance(path, str)
        and len(path.encode(errors="replace")) <= 4096
        and "\0" not in path
        and path.isprintable()
        and not any(part in ("", ".", "..") for part in path.split("/"))
    )


def stays_inside(path: str, target: str) -> bool:
    """Whether a link at the path leads to somewhere below the same root."""
    return not posixpath.isabs(target) and not posixpath.normpath(
        posixpath.join(posixpath.dirname(path), target)
    ).startswith("..")


def tree_of(rows: Iterable[Any], root: str) -> FileTree:
    """From the rows of a list, which may be anybody's. Raises FilesError for what is no list."""
    files: list[FileEntry] = []
    folders: list[tuple[str, int]] = []
    links: list[tuple[str, str]] = []
    left_out: list[tuple[str, str]] = []
    complete: bool | None = None
    for row in rows:
        match row:
            case ["end", bool(whole)]:
                complete = whole
            case ["f", path, int(size), int(mode), int(modified), str(sha256)] if (
                (plain(path) or path == "") and size >= 0 and (sha256 == "" or _SHA256.fullmatch(sha256))
            ):
                files.append(FileEntry(path, size, mode & 0o777, modified, sha256))
            case ["d", path, int(mode)] if plain(path):
                folders.append((path, mode & 0o777))
            case ["l", path, str(target)] if plain(path):
                links.append((path, target))
            case ["x", str(path), str(why)]:
                left_out.append((printable(path, 300), printable(why, 100)))
            case [str(), str(path), *_]:
                left_out.append((printable(path, 300), "its name cannot be used"))
            case _:
                raise FilesError("the sandbox gave no clear answer")
    if complete is None:
        raise FilesError(f"the list of {root} was not complete")
    if len({each.path for each in files}) != len(files):
        raise FilesError("the sandbox named a file twice")
    return FileTree(files, folders, links, left_out, complete)
