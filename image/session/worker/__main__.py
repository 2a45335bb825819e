"""First instructions of the worker: take the claim out of sight, then run.

The agent's tools run as the same user as the worker, and a user reads the environment and the memory of its own
processes, unless the kernel has closed this one from its start (secret_hiding.py). Where it has not, the program starts
twice: the first start only moves the claim from the environment into an anonymous file and executes itself again with
a clean environment; the second closes itself to its own user and reads the claim.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from image.session.claim import CLAIM_VARIABLE, Exit
from image.session.worker import secret_hiding

_SECOND_START = "--claim"


def main() -> NoReturn:
    """Runs as `python -I worker-XXXX.pyz`; never returns."""
    if sys.argv[1:2] == [_SECOND_START]:
        _second_start(int(sys.argv[2]))
    text = os.environ.pop(CLAIM_VARIABLE, "")
    if secret_hiding.sealed():
        clean = secret_hiding.clean_environment(os.environ)
        os.environ.clear()
        os.environ.update(clean)
        _run(text, ())
    descriptor = secret_hiding.stash(text)
    os.execve(  # noqa: S606 - no shell wanted
        sys.executable,
        [sys.executable, "-I", sys.argv[0], _SECOND_START, str(descriptor)],
        secret_hiding.clean_environment(os.environ),
    )


def _second_start(descriptor: int) -> NoReturn:
    open_points = secret_hiding.harden()
    _run(secret_hiding.unstash(descriptor), ("the claim stood in the environment for a moment", *open_points))


def _run(text: str, open_points: Sequence[str]) -> NoReturn:
    from image.session.worker import program

    program.run(text, archive=sys.argv[0], open_points=open_points)
    os._exit(Exit.FAILED)
