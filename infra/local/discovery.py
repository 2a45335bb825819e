"""The file by which a running offline platform is found: its variables, with a lock that says that it lives.

`make up` writes `.hands/offline.env` in the checkout, readable by its owner alone, and keeps it locked. A second
platform beside the first gets `offline-2.env`, and so on. Whoever reads a file first tries its lock: if nobody holds
it, the platform is gone, however it ended, and the file counts for nothing. Its variables name the file itself, so
that it is found where somebody exported them, in another checkout too.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from infra.local import dotenv

REDIRECTING: Final = (
    "ANTHROPIC_AUTH_TOKEN",
    "ANTHROPIC_CUSTOM_HEADERS",
    "ENVIRONMENTS_FILE",
    "TENSORLAKE_SANDBOX_API_URL",
    "TENSORLAKE_SANDBOX_PROXY_URL",
)
"""Variables that would lead a program elsewhere in spite of a platform's own: empty counts as not set."""
OFFLINE_FILE: Final = "HANDS_OFFLINE_ENV"
_FOLDER: Final = ".hands"
_MOST: Final = 100
_LOOKS: Final = 3


class NoRoom(Exception):
    """Too many offline platforms in one checkout."""


def default_file(checkout: Path) -> Path:
    return checkout / _FOLDER / "offline.env"


def _nth(checkout: Path, number: int) -> Path:
    first = default_file(checkout)
    return first if number == 1 else first.with_name(f"offline-{number}.env")


@contextlib.contextmanager
def announced(checkout: Path, variables: Mapping[str, str]) -> Iterator[Path]:
    """Write the first file that no living platform holds, keep it locked in the block, remove it afterwards."""
    folder = default_file(checkout).parent
    folder.mkdir(mode=0o700, exist_ok=True)
    for number in range(1, _MOST + 1):
        path = _nth(checkout, number)
        descriptor = hold(path)
        if descriptor is None:
            continue
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, dotenv.render({**variables, OFFLINE_FILE: str(path.absolute())}).encode())
            yield path
        finally:
            # Removed while still locked: nobody can take the name in between and lose its file to us.
            path.unlink(missing_ok=True)
            os.close(descriptor)
        return
    raise NoRoom(f"{_MOST} offline platforms run in {checkout} already")


def find_running(checkout: Path) -> Path | None:
    """The file of the first platform that runs here."""
    return next((path for path, _ in running(checkout)), None)


def running(checkout: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Every platform that runs here: its file and its variables."""
    for number in range(1, _MOST + 1):
        path = _nth(checkout, number)
        variables = read_if_running(path) if path.exists() else None
        if variables is not None:
            yield path, variables


def read_if_running(path: Path) -> dict[str, str] | None:
    """The variables of the platform that holds the file; None when none does."""
    return dotenv.read(path) if is_held(path) else None


def is_held(path: Path) -> bool:
    """Whether somebody has the lock of this file."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def hold(path: Path) -> int | None:
    """An exclusive lock on the file that is at this path now; None when somebody else has it.

    A reader's look takes the lock for an instant, so one refusal is not yet an answer.
    """
    refusals = 0
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.stat().st_ino == os.fstat(descriptor).st_ino:
                os.fchmod(descriptor, 0o600)
                return descriptor
        except BlockingIOError:
            refusals += 1
            if refusals == _LOOKS:
                os.close(descriptor)
                return None
            time.sleep(0.01)
        except FileNotFoundError:
            pass
        os.close(descriptor)
