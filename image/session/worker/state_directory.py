"""The worker's files in the sandbox: lock, socket, session record, notes of calls.

The agent's user owns the directory that they lie in, so an agent may have put anything in their place. A name is
therefore opened without following a link, without waiting, and believed only as a regular file; whatever else lies
there is set aside and the file is made anew (docs/image.md#the-workers-files).
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import time
from typing import Final

from image.session.claim import Ended, Exit

_SAFE: Final = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_TRIES: Final = 4  # an agent that swaps files in a loop costs a failed worker, never an endless one

log = logging.getLogger(__name__)


class StateDirectory:
    """Names below are plain file names in the directory."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Makes the directory (mode 0700) where there is none. Raises Ended(FAILED) where it cannot be had."""
        try:
            os.makedirs(path, mode=0o700, exist_ok=True)
            with contextlib.suppress(PermissionError):
                os.chmod(path, 0o700)
            self._descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            raise Ended(Exit.FAILED, f"no state directory at {path}: {error.strerror}") from None
        if not os.access(path, os.W_OK | os.X_OK):
            raise Ended(Exit.FAILED, f"the state directory {path} belongs to another user")

    def enter(self) -> None:
        """Makes it the working directory."""
        os.fchdir(self._descriptor)

    def open(self, name: str, flags: int) -> int:
        """A descriptor of the regular file. Raises FileNotFoundError, and Ended(FAILED) where something else comes
        back as often as it is set aside."""
        for _ in range(_TRIES):
            try:
                descriptor = os.open(name, flags | _SAFE, 0o600, dir_fd=self._descriptor)
            except FileNotFoundError:
                raise
            except OSError:  # a link, a socket, a directory, a file without permissions
                self.set_aside(name)
                continue
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return descriptor
            os.close(descriptor)
            self.set_aside(name)
        raise Ended(Exit.FAILED, f"the state file {name} is not a regular file, whatever is done about it")

    def set_aside(self, name: str) -> None:
        """Removes what lies at the name; a directory is renamed, since it may hold something of somebody's."""
        try:
            there = os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)
            if stat.S_ISDIR(there.st_mode):
                aside = f"{name}.left-{time.time_ns()}"
                os.rename(name, aside, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
            else:
                os.unlink(name, dir_fd=self._descriptor)
        except FileNotFoundError:
            return
        except OSError as error:
            raise Ended(Exit.FAILED, f"the state file {name} cannot be replaced: {error.strerror}") from None
        level = logging.INFO if stat.S_ISSOCK(there.st_mode) else logging.WARNING  # a killed worker leaves its socket
        log.log(level, "state.set_aside name=%s kind=%s", name, stat.filemode(there.st_mode)[0])

    def stat(self, name: str) -> os.stat_result:
        """Of the name itself, a link included. Raises FileNotFoundError."""
        return os.stat(name, dir_fd=self._descriptor, follow_symlinks=False)

    def read(self, name: str, limit: int) -> bytes:
        """At most `limit` bytes from the file's start; nothing where there is no file."""
        try:
            descriptor = self.open(name, os.O_RDONLY)
        except FileNotFoundError:
            return b""
        try:
            return os.read(descriptor, limit)
        finally:
            os.close(descriptor)

    def write_once(self, name: str, data: bytes) -> None:
        """Writes the file unless there is one. Linking a finished draft lets exactly one of two writers win, and
        nobody ever reads half of it."""
        draft = f"{name}.{os.getpid()}"
        descriptor = self.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        try:
            with contextlib.suppress(FileExistsError):
                os.link(draft, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
        finally:
            os.unlink(draft, dir_fd=self._descriptor)

    def replace(self, name: str, data: bytes) -> None:
        """The file with this content, whole at every moment."""
        draft = f"{name}.{os.getpid()}"
        descriptor = self.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            os.write(descriptor, data)
        finally:
            os.close(descriptor)
        os.rename(draft, name, src_dir_fd=self._descriptor, dst_dir_fd=self._descriptor)
