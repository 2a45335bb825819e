"""Runs of certify: each has a name, which is in what it makes, and a lock that says that it lives.

The name is the race id in its sandboxes' names, and stands in its sessions' metadata. While a run lives, it keeps a
file of that name locked in its checkout; the kernel lets go of it, however the run ends. So whoever comes later knows:

- the file is locked: the run lives, and nobody touches what it made;
- the file is there, and nobody holds it: the run was killed, and what it made is ended at once;
- there is no such file, since it began in another checkout or on another machine: it may live until its dead-man time.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from infra.cli.environ import CHECKOUT
from infra.local import discovery
from shared import names

FOLDER: Final = discovery.default_file(CHECKOUT).with_name("certify")
DEAD_MAN: Final = 1800.0
"""Seconds after it was made from which on no run uses a thing."""
_MARK: Final = "certify"
_DIGITS: Final = names.RACE_ID_LENGTH - len(_MARK)
_RUN: Final = re.compile(rf"{_MARK}[0-9a-z]{{{_DIGITS}}}")


def new_run() -> str:
    """A race id (shared/names.py) that no race has: theirs are random, or a hash."""
    return _MARK + names.to_base36(secrets.randbelow(36**_DIGITS)).rjust(_DIGITS, "0")


def is_run(text: str) -> bool:
    return _RUN.fullmatch(text) is not None


@contextlib.contextmanager
def living(run: str, folder: Path = FOLDER) -> Iterator[None]:
    """Runs of the same checkout see that this one lives, for as long as the block lasts. Where the folder cannot be
    written, the dead-man times alone tell."""
    descriptor = None
    path = folder / run
    with contextlib.suppress(OSError):
        folder.parent.mkdir(mode=0o700, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        _forget_old_ones(folder)
        descriptor = discovery.hold(path)
    try:
        yield
    finally:
        if descriptor is not None:
            path.unlink(missing_ok=True)  # while it is locked still: nobody takes it for a killed run's
            os.close(descriptor)


def is_dead(run: str, until: float, now: float, folder: Path = FOLDER) -> bool:
    """Whether what this run made can be ended. `until`: its dead-man time, `now`: both in seconds since the epoch."""
    path = folder / run
    if is_run(run) and os.access(path, os.R_OK):
        return not discovery.is_held(path)
    return until <= now


def _forget_old_ones(folder: Path) -> None:
    """Files of killed runs whose dead-man times say the same by now."""
    for path in folder.iterdir():
        old = path.stat().st_mtime < time.time() - 2 * DEAD_MAN
        if is_run(path.name) and old and not discovery.is_held(path):
            path.unlink()
