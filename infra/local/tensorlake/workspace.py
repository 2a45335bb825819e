"""The platform's own directory: made anew at each start, and swept up after a platform that was killed."""

from __future__ import annotations

import fcntl
import os
import tempfile
from pathlib import Path

from infra.local.tensorlake import trees

PREFIX = "tl-"
_LOCK = "lock"


class DirectoryLock:
    """Held for as long as the platform that owns the directory lives, however it ends."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def close(self) -> None:
        os.close(self._fd)


def make(parent: Path | None) -> tuple[Path, DirectoryLock]:
    """A fresh directory below `parent` (default: the machine's temporary one). Its path is short, because the
    options of an overlay mount must fit in one page."""
    top = (parent or Path(tempfile.gettempdir())).resolve()
    top.mkdir(parents=True, exist_ok=True)
    _sweep(top)
    directory = Path(tempfile.mkdtemp(prefix=PREFIX, dir=top))
    lock = _lock(directory / _LOCK, create=True)
    if lock is None:
        raise OSError(f"{directory} was taken by another program")
    return directory, lock


def _sweep(top: Path) -> None:
    """Remove what a killed platform left: its lock is free, while every process of its sandboxes died with it."""
    for directory in top.glob(f"{PREFIX}*"):
        try:
            if directory.stat().st_uid != os.getuid() or not (directory / _LOCK).is_file():
                continue
        except OSError:  # another user's, or just gone
            continue
        lock = _lock(directory / _LOCK, create=False)
        if lock is not None:
            trees.remove(directory)
            lock.close()


def _lock(path: Path, *, create: bool) -> DirectoryLock | None:
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0), 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return None
    return DirectoryLock(fd)
