"""`shell`: a terminal in a session's sandbox, over the service's pseudo-terminals.

Keys, sizes and signals go in as they come, the program's bytes come out as they are, as with ssh. Wire:
docs/wire/tensorlake.md#9-health-and-tunnels
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import sys
import termios
import tty
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Final

from image.session import programs
from infra.cli.environ import Loaded
from infra.cli.fleet.target import AWAKE, NotCarriedOut, Target, done, target
from infra.cli.fleet.wake import kept_awake
from shared.errors import SettingsError
from shared.texts import printable

if TYPE_CHECKING:
    from tensorlake.sandbox.async_sandbox import AsyncSandbox
    from tensorlake.sandbox.pty import AsyncPty

_READ_BYTES: Final = 4096
_KILLED: Final = 128
_CONNECT_SECONDS: Final = 20.0


async def run(loaded: Loaded, session_id: str) -> int:
    """The shell's exit code, 128 + n after signal n; 1 where there is none. Raises SettingsError, FeedRefused."""
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise SettingsError(f"a shell needs a terminal. For one command: hands run {session_id} -- COMMAND")
    try:
        async with target(loaded, session_id) as aim:
            box = await aim.need_sandbox()
            if box.status not in AWAKE:
                print(f"Waking {box.id} ...", file=sys.stderr)
                done(await aim.host.resume(box.id), f"waking {box.id}")
            print(f"{box.id} stays awake, and costs, while you are in. ctrl-D leaves.", file=sys.stderr)
            async with kept_awake(aim, box.id), _connected(aim, box.id) as sandbox:
                code = await _talk(aim, sandbox)
    except NotCarriedOut as error:
        print(error, file=sys.stderr)
        return 1
    return code if code >= 0 else _KILLED - code


@contextlib.asynccontextmanager
async def _connected(aim: Target, box_id: str) -> AsyncIterator[AsyncSandbox]:
    from tensorlake.sandbox import SandboxError
    from tensorlake.sandbox.async_sandbox import AsyncSandbox

    settings = aim.settings
    try:
        sandbox = await AsyncSandbox.connect(
            box_id, api_key=settings.tensorlake_key.reveal(), api_url=settings.tensorlake_url
        )
    except SandboxError as error:
        raise NotCarriedOut(f"the sandbox could not be reached ({printable(str(error), 300)})") from None
    try:
        yield sandbox
    finally:
        sandbox.close()


async def _talk(aim: Target, sandbox: AsyncSandbox) -> int:
    from tensorlake.sandbox import SandboxError

    size = shutil.get_terminal_size()
    environ = {name: os.environ[name] for name in ("TERM", "LANG", "COLORTERM") if os.environ.get(name)}
    try:
        pty = await sandbox.create_pty(
            "/bin/sh",
            ["-c", programs.text("login_shell.sh"), "sh", aim.settings.sandbox_user, aim.settings.workdir],
            env=environ,
            rows=size.lines,
            cols=size.columns,
            on_data=_show,
            connect_timeout=_CONNECT_SECONDS,
        )
        async with asyncio.TaskGroup() as group:
            with _raw(), _keys_and_sizes(group, pty):
                code: int = await pty.wait()
                return code
    except SandboxError as error:
        raise NotCarriedOut(
            f"\nthe shell broke off ({printable(str(error), 300)}); the sandbox may have ended"
        ) from None


@contextlib.contextmanager
def _raw() -> Iterator[None]:
    """Keys reach the sandbox as they are: ctrl-C is for the program there."""
    before = termios.tcgetattr(0)
    tty.setraw(0, termios.TCSADRAIN)  # what was typed ahead is kept
    try:
        yield
    finally:
        termios.tcsetattr(0, termios.TCSADRAIN, before)


@contextlib.contextmanager
def _keys_and_sizes(group: asyncio.TaskGroup, pty: AsyncPty) -> Iterator[None]:
    """Sends what is typed and each change of the window, in order, inside the block."""
    loop = asyncio.get_running_loop()
    waiting: asyncio.Queue[bytes | None] = asyncio.Queue()

    def typed() -> None:
        data = os.read(0, _READ_BYTES)
        if not data:
            loop.remove_reader(0)
        waiting.put_nowait(data or b"\x04")

    async def send() -> None:
        while True:
            data = await waiting.get()
            if data is None:
                size = shutil.get_terminal_size()
                await pty.resize(size.columns, size.lines)
            else:
                await pty.send_input(data)

    sender = group.create_task(send())
    loop.add_reader(0, typed)
    loop.add_signal_handler(signal.SIGWINCH, waiting.put_nowait, None)
    try:
        yield
    finally:
        loop.remove_reader(0)
        loop.remove_signal_handler(signal.SIGWINCH)
        sender.cancel()


def _show(data: bytes) -> None:
    while data:
        data = data[os.write(1, data) :]
