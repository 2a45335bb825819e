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

from image.session.programs.workspace.entries import PERMISSIONS, TEMPORARY, Entry, Stop, name_of, parent_of, to_text

MOST_DEPTH = 2_000  # folders one in the other; each step into one walks the path from the top
LONGEST_PATHS = 48 * 1024 * 1024  # bytes, of all paths together
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
_CHUNK = 1024 * 1024


class Tree:
    def __init__(self, root: str) -> None:
        self.fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self.fd)

    @contextlib.contextmanager
    def directory(self, path: bytes) -> Iterator[int]:
        """A descriptor of a directory of the tree; the empty path is the tree itself. Raises OSError."""
        fd = os.dup(self.fd)
        try:
            for part in path.split(b"/") if path else ():
                below = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
            yield fd
        finally:
            os.close(fd)

    def look(self, path: bytes) -> Entry | None:
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

    def walk(self, most: int) -> Iterator[tuple[bytes, Entry]]:
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


def entry_of(name: bytes, parent: int) -> Entry | None:
    """None for nothing. Raises OSError."""
    try:
        facts = os.lstat(name, dir_fd=parent)
        mode = stat.S_IMODE(facts.st_mode) & PERMISSIONS
        if stat.S_ISLNK(facts.st_mode):
            return Entry("l", 0, 0, to_text(os.fsencode(os.readlink(name, dir_fd=parent))))
        if stat.S_ISDIR(facts.st_mode):
            return Entry("d", mode, 0, None if _enterable(name, parent) else "?")
        if not stat.S_ISREG(facts.st_mode):
            return Entry("o", 0, 0, None)
        try:
            size, digest = digest_of(name, parent)
        except PermissionError:
            return Entry("f", mode, facts.st_size, f"?{facts.st_mtime_ns}")
        return Entry("f", mode, size, digest)
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
