"""`run`: a command beside the agent, as its user."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Final

from image.session import programs
from infra.cli.environ import Loaded
from infra.cli.fleet.target import NotCarriedOut, Target, target
from infra.cli.fleet.wake import kept_awake
from infra.cli.session.render import clean
from shared.ports import Absent, CommandOutput, Doubtful, Refused
from shared.texts import printable

MARK: Final = "HANDS_RUN"
"""The variable by which a command and what it started are told from all else in the sandbox."""
_KILLED: Final = 128
_MOST_OUTPUT: Final = 16_000_000  # bytes of a command
_END_SECONDS: Final = 10.0


async def run(loaded: Loaded, session_id: str, command: Sequence[str], *, timeout: float) -> int:
    """Its exit code, 128 + n after signal n. Raises SettingsError, FeedRefused, FeedBroken."""
    mark = secrets.token_hex(16)
    try:
        async with target(loaded, session_id) as aim:
            box = await aim.awake_sandbox()
            async with kept_awake(aim, box.id), _ended_with_us(aim, box.id, mark):
                found = await aim.host.run(
                    box.id,
                    command[0],
                    command[1:],
                    env={MARK: mark},
                    user=aim.settings.sandbox_user or None,
                    working_dir=aim.settings.workdir or None,
                    timeout=timeout,
                    limit=_MOST_OUTPUT,
                )
    except NotCarriedOut as error:
        print(error, file=sys.stderr)
        return 1
    match found:
        case CommandOutput():
            _pass_on(found)
            if found.timed_out:
                print(f"It ran longer than {timeout:g} s and was ended; give it more: --timeout", file=sys.stderr)
                return 1
            return found.exit_code if found.exit_code >= 0 else _KILLED - found.exit_code
        case Absent():
            print("its sandbox is not there any more: hands ps", file=sys.stderr)
        case Refused(status, reason):
            print(f"the sandbox refused the command ({status}: {printable(reason, 300)})", file=sys.stderr)
        case Doubtful(reason):
            print(
                f"it may have run or not ({printable(reason, 300)}): look before you repeat it. What writes more than "
                f"{_MOST_OUTPUT // 1_000_000} MB: let it write to a file there, and fetch that: hands cp",
                file=sys.stderr,
            )
    return 1


@contextlib.asynccontextmanager
async def _ended_with_us(aim: Target, box_id: str, mark: str) -> AsyncIterator[None]:
    """At ctrl-C the command is ended with all that it started, and a second ctrl-C does not wait for that."""
    try:
        yield
    except asyncio.CancelledError:
        print("\nEnding the command; ctrl-C again leaves at once", file=sys.stderr)
        ended = False
        try:
            ended = await _end(aim, box_id, mark)
        finally:
            if not ended:
                print(f"It may go on: hands run {aim.session.id} -- ps aux", file=sys.stderr)
        raise


async def _end(aim: Target, box_id: str, mark: str) -> bool:
    """Whether nothing of it is left."""
    ended = await aim.host.run(
        box_id,
        "sh",
        ("-c", programs.text("end_run.sh"), "end", mark),
        env={},
        user=aim.settings.sandbox_user or None,
        working_dir=None,
        timeout=_END_SECONDS,
    )
    return isinstance(ended, CommandOutput) and ended.exit_code == 0 and not ended.timed_out


def _pass_on(output: CommandOutput) -> None:
    """To a pipe as it is; to a terminal as printable text, as the sandbox is not trusted with it. The service tells
    lines, without what ended the last one."""
    for text, stream in ((output.stdout, sys.stdout), (output.stderr, sys.stderr)):
        if text:
            print(clean(text, len(text) + 1) if stream.isatty() else text, file=stream, flush=True)
