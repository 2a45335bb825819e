"""A directory and all below it is removed, following nothing."""

# A tree is walked by directory descriptors, which pathlib does not know.

from __future__ import annotations

import errno
import os
import stat

from image.session.programs.workspace.tree import DIRECTORY, identity


def remove_tree(name: bytes, parent: int | None) -> None:
    """A directory and all below it, following nothing. Raises OSError.

    However deep it is, one descriptor is open: on the way up each parent must be the folder that it was on the way
    down, so that a folder which is moved meanwhile leads nowhere else.
    """
    flags = DIRECTORY | os.O_NOFOLLOW
    fd = os.open(name, flags, dir_fd=parent)
    try:
        above: list[tuple[tuple[int, int], list[bytes], bytes]] = []
        pending = _without_files(fd)
        while pending or above:
            if pending:
                below = pending.pop()
                above.append((identity(fd), pending, below))
                deeper = os.open(below, flags, dir_fd=fd)
                os.close(fd)
                fd = deeper
                pending = _without_files(fd)
            else:
                left, pending, done = above.pop()
                higher = os.open("..", flags, dir_fd=fd)
                os.close(fd)
                fd = higher
                if identity(fd) != left:
                    raise OSError(errno.ESTALE, "a folder was moved")
                os.rmdir(done, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent)


def _without_files(fd: int) -> list[bytes]:
    """Removes all but the folders, and returns these."""
    folders = []
    for name in (os.fsencode(each) for each in os.listdir(fd)):
        if stat.S_ISDIR(os.lstat(name, dir_fd=fd).st_mode):
            folders.append(name)
        else:
            os.unlink(name, dir_fd=fd)
    return folders
