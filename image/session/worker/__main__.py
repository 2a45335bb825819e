"""First instructions of the worker: take the claim out of the agent's sight, then run.

The agent's tools run as the same user as the worker, and a user reads the environment and the memory of its own
processes, unless the kernel has closed this one from its start (secret_hiding.py). A worker that starts as root becomes
the agent's user here, before it looks at its claim; where the image has private tools of the operator's, it first
starts what runs them, as another user (tool_processes.py). Where nothing has closed the process, the program starts
twice: the first start only moves the claim from the environment into an anonymous file and executes itself again with a
clean environment; the second closes itself to its own user and reads the claim.
"""

from __future__ import annotations

import os
import sys

from image.session.worker import secret_hiding, tool_environment

TYPE_CHECKING = False  # typing itself would be a third of the first start
if TYPE_CHECKING:
    from collections.abc import Sequence
    from socket import socket
    from typing import NoReturn

_SECOND_START = "--claim"
_SUPERVISOR = "--tool-supervisor"  # this file runs the operator's tools, too (tool_supervisor.py)
_TOOL_HOST = "--tool-host"
_PRIVATE_TOOLS = "/opt/hands/tools/private"  # tool_manifest.py, which takes too long to be loaded for nothing


def main(claim_variable: str, state_variable: str, user_variable: str) -> NoReturn:
    """Runs as `python -I worker-XXXX.pyz`; never returns. What the dispatcher says to the worker stands in these."""
    if sys.argv[1:2] == [_SECOND_START]:
        _second_start(int(sys.argv[2]))
    if sys.argv[1:2] == [_SUPERVISOR]:
        from image.session.worker import tool_supervisor

        tool_supervisor.main(int(sys.argv[2]), sys.argv[0])
        os._exit(0)
    if sys.argv[1:2] == [_TOOL_HOST]:
        from image.session.worker import tool_host

        tool_host.main(int(sys.argv[2]))
    user = os.environ.pop(user_variable, "")
    was_root = bool(user) and os.geteuid() == 0
    private = None
    if was_root and os.path.isdir(_PRIVATE_TOOLS):
        from image.session.worker import tool_processes

        os.environ[claim_variable], private = tool_processes.start_as_root(os.environ[claim_variable], sys.argv[0])
    open_points = _become(user) if was_root else ()
    text = os.environ.pop(claim_variable, "")
    clean = tool_environment.clean_environment(os.environ, keep=state_variable)
    if was_root or secret_hiding.sealed():
        os.environ.clear()
        os.environ.update(clean)
        _run(text, open_points, private)
    descriptor = secret_hiding.stash(text)
    command = [sys.executable, "-I", sys.argv[0], _SECOND_START, str(descriptor)]
    os.execve(sys.executable, command, clean)  # noqa: S606 - no shell wanted


def _become(user: str) -> tuple[str, ...]:
    try:
        return secret_hiding.become(user)
    except secret_hiding.NoSuchUser as error:
        from image.session.claim import Exit

        sys.stderr.write(f"{error}\n")
        sys.stderr.flush()
        os._exit(Exit.NO_USER)


def _second_start(descriptor: int) -> NoReturn:
    open_points = secret_hiding.harden()
    _run(secret_hiding.unstash(descriptor), ("the claim stood in the environment for a moment", *open_points))


def _run(text: str, open_points: Sequence[str], private: socket | None = None) -> NoReturn:
    from image.session.worker import program

    program.run(text, archive=sys.argv[0], open_points=open_points, private=private)
