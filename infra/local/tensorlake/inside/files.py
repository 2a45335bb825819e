"""Files as the daemon serves them: whole, atomic, regular (docs/wire/tensorlake.md#8-files)."""

# pathlib would be imported anew at every start of a sandbox.
# ruff: noqa: PTH101, PTH103, PTH105, PTH108, PTH110, PTH112, PTH116, PTH118, PTH120, PTH123

from __future__ import annotations

import contextlib
import errno
import os
import stat

from .wire import DaemonRefusal

TYPE_CHECKING = False  # see wire.py
if TYPE_CHECKING:
    from collections.abc import Iterator

    from .wire import Json


def file_refusal(error: OSError, path: str) -> DaemonRefusal:
    match error.errno:
        case errno.ENOENT | errno.ELOOP:
            return DaemonRefusal(404, "NOT_FOUND", f"'{path}' does not exist")
        case errno.ENOTDIR | errno.EEXIST:
            return DaemonRefusal(400, "NOT_A_DIRECTORY", f"'{path}': a part of the path is not a directory")
        case errno.EISDIR:
            return DaemonRefusal(400, "IS_DIRECTORY", f"'{path}' is a directory")
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return DaemonRefusal(403, "PERMISSION_DENIED", f"'{path}': {error.strerror}")
    return DaemonRefusal(500, "INTERNAL_ERROR", f"'{path}': {error.strerror}")


def open_regular(path: str) -> tuple[int, os.stat_result]:
    """A read-only descriptor of a regular file; never blocks on a FIFO."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    facts = os.fstat(fd)
    if stat.S_ISDIR(facts.st_mode):
        os.close(fd)
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    if not stat.S_ISREG(facts.st_mode):
        os.close(fd)
        raise DaemonRefusal(400, "NOT_A_FILE", f"'{path}' is not a regular file")
    return fd, facts


def write_atomically(path: str, chunks: Iterator[bytes]) -> int:
    """Replace or make a file; it is seen whole or not at all. Follows symbolic links and keeps the mode."""
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, "is a directory")
    os.makedirs(os.path.dirname(target), exist_ok=True)
    partial = os.path.join(os.path.dirname(target), f".{os.urandom(6).hex()}.partial")
    written = 0
    try:
        with open(partial, "xb") as file:
            for chunk in chunks:
                written += file.write(chunk)
        mode = stat.S_IMODE(os.stat(target).st_mode) if os.path.exists(target) else 0o644
        os.chmod(partial, mode)
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(partial)
        raise
    return written


def list_entries(path: str) -> list[Json]:
    """Directories first, then by name (docs/wire/tensorlake.md#8-files)."""
    entries: list[Json] = []
    with os.scandir(path) as found:
        for entry in found:
            with contextlib.suppress(FileNotFoundError):
                is_dir = entry.is_dir()
                facts = entry.stat(follow_symlinks=False)
                entries.append(
                    {
                        "name": entry.name,
                        "is_dir": is_dir,
                        "size": None if is_dir else facts.st_size,
                        "modified_at": facts.st_mtime_ns // 1_000_000,
                    }
                )
    return sorted(entries, key=lambda entry: (not entry["is_dir"], entry["name"]))
