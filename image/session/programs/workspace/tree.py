"""A directory and what is in it, reached by directory descriptors and O_NOFOLLOW: no symbolic link leads out of it,
neither the last part of a path nor a parent.
"""

# A tree is walked by directory descriptors, which pathlib does not know.
# ruff: noqa: PTH208

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Iterator

from image.session.programs.workspace.entries import (
    PERMISSIONS,
    TEMPORARY,
    Stop,
    TreeEntry,
    name_of,
    parent_of,
    to_text,
)

MOST_DEPTH = 2_000  # folders one in the other; what their paths take grows with the square
LONGEST_PATHS = 48 * 1024 * 1024  # bytes, of all paths together
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_CHUNK = 1024 * 1024


class Tree:
    """Remembers the directory that was asked for last, and goes on from there: a walk through a tree opens each
    directory a few times, however deep it is. Whoever needs the directories that are there now calls `start_anew`
    first; until then, one that is moved is still the one that was found at its path.
    """

    def __init__(self, root: str) -> None:
        self.fd = os.open(root, DIRECTORY)
        self._here = os.dup(self.fd)
        self._parts: list[bytes] = []  # the path of `_here`
        self._above: list[tuple[int, int]] = []  # the directories on the way to it

    def close(self) -> None:
        os.close(self._here)
        os.close(self.fd)

    @contextlib.contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """A descriptor of a directory of the tree; the empty path is the tree itself. Raises OSError."""
        parts = path.split(b"/") if path else []
        self._climb_towards(parts)
        for part in parts[len(self._parts) :]:
            self._step(part, part)
        fd = os.dup(self._here)
        try:
            yield fd
        finally:
            os.close(fd)

    def start_anew(self) -> None:
        top = os.dup(self.fd)
        os.close(self._here)
        self._here = top
        self._parts.clear()
        self._above.clear()

    def _climb_towards(self, parts: list[bytes]) -> None:
        """To a directory that is on the way to `parts`: the nearest one, or the tree itself where that is nearer."""
        shared = 0
        while shared < min(len(self._parts), len(parts)) and self._parts[shared] == parts[shared]:
            shared += 1
        deleted = os.fstat(self._here).st_nlink == 0
        if deleted or len(self._parts) - shared > shared:
            self.start_anew()
            return
        try:
            while len(self._parts) > shared:
                self._step(b"..", None)
        except OSError:  # it was moved, or nobody may go up from it
            self.start_anew()

    def _step(self, name: bytes, part: bytes | None) -> None:
        """Down into `part`, or up, where the directory must be the one that it was on the way down. Raises OSError."""
        fd = os.open(name, DIRECTORY | os.O_NOFOLLOW, dir_fd=self._here)
        if part is None:
            if identity(fd) != self._above[-1]:
                os.close(fd)
                raise OSError(errno.ESTALE, "a folder was moved")
            self._above.pop()
            self._parts.pop()
        else:
            self._above.append(identity(self._here))
            self._parts.append(part)
        os.close(self._here)
        self._here = fd

    def look(self, path: bytes) -> TreeEntry | None:
        """What is there, None for nothing. Raises OSError."""
        try:
            with self.directory(parent_of(path)) as parent:
                return entry_of(name_of(path), parent)
        except OSError as error:
            if error.errno in GONE:
                return None
            raise

    def names(self, path: bytes) -> list[bytes]:
        with self.directory(path) as fd:
            return sorted(os.fsencode(name) for name in os.listdir(fd))

    def walk(self, most: int) -> Iterator[tuple[bytes, TreeEntry]]:
        """Every entry but our own temporary names. Raises Stop beyond `most`."""
        count = length = 0
        pending = [b""]
        while pending:
            here = pending.pop()
            if here.count(b"/") >= MOST_DEPTH:
                raise Stop(f"the workspace has folders more than {MOST_DEPTH} deep")
            with self.directory(here) as fd:
                for name in sorted(os.fsencode(name) for name in os.listdir(fd)):
                    if name.startswith(TEMPORARY):
                        continue
                    entry = entry_of(name, fd)
                    if entry is None:
                        continue  # it went while we looked
                    count += 1
                    if count > most:
                        raise Stop(f"the workspace has more than {most} entries")
                    path = here + b"/" + name if here else name
                    length += len(path)
                    if length > LONGEST_PATHS:
                        raise Stop(f"the workspace's paths have more than {LONGEST_PATHS} bytes in all")
                    if entry.kind == "d" and not entry.unreadable:
                        pending.append(path)
                    yield path, entry


def entry_of(name: bytes, parent: int) -> TreeEntry | None:
    """None for nothing. Raises OSError."""
    try:
        facts = os.lstat(name, dir_fd=parent)
        mode = stat.S_IMODE(facts.st_mode) & PERMISSIONS
        if stat.S_ISLNK(facts.st_mode):
            return TreeEntry("l", 0, 0, to_text(os.fsencode(os.readlink(name, dir_fd=parent))))
        if stat.S_ISDIR(facts.st_mode):
            return TreeEntry("d", mode, 0, None if _enterable(name, parent) else "?")
        if not stat.S_ISREG(facts.st_mode):
            return TreeEntry("o", 0, 0, None)
        try:
            size, digest = digest_of(name, parent)
        except PermissionError:
            return TreeEntry("f", mode, facts.st_size, f"?{facts.st_mtime_ns}")
        return TreeEntry("f", mode, size, digest)
    except FileNotFoundError:
        return None


def _enterable(name: bytes, parent: int) -> bool:
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    except PermissionError:
        return False
    try:
        return os.access(b".", os.R_OK | os.X_OK, dir_fd=fd)
    finally:
        os.close(fd)


def identity(fd: int) -> tuple[int, int]:
    facts = os.fstat(fd)
    return facts.st_dev, facts.st_ino


def open_file(name: bytes, parent: int) -> int:
    """A regular file for reading; never follows a link, never waits for a pipe. Raises OSError."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise OSError(errno.EINVAL, "not a regular file")
    return fd


def digest_of(name: bytes, parent: int) -> tuple[int, str]:
    size, digest = 0, hashlib.sha256()
    with open(open_file(name, parent), "rb", buffering=0) as file:
        while True:
            data = file.read(_CHUNK)
            if not data:
                return size, digest.hexdigest()
            size += len(data)
            digest.update(data)
