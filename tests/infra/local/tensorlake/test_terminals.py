"""Pseudo-terminals as the SDK sees them: data, sizes, exit codes, and who may not come in."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from tensorlake.sandbox import AsyncSandbox
from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxConnectionError

from tests.infra.local.tensorlake.conftest import TensorlakeStage
from tests.support.waiting import until


@dataclass
class TerminalScreen:
    """What a terminal has shown."""

    text: str = ""
    pty: Any = None
    seen: list[bytes] = field(default_factory=list)

    def show(self, data: bytes) -> None:
        self.text += data.decode(errors="replace")

    async def expect(self, words: str) -> None:
        async with asyncio.timeout(30):
            while words not in self.text:
                await asyncio.sleep(0.02)


@contextlib.asynccontextmanager
async def terminal(stage: TensorlakeStage, name: str, script: str) -> AsyncIterator[TerminalScreen]:
    sandbox = await AsyncSandbox.connect(name, **stage.sdk)
    screen = TerminalScreen()
    screen.pty = await sandbox.create_pty("sh", ["-c", script], rows=20, cols=70, on_data=screen.show)
    try:
        yield screen
    finally:
        await screen.pty.disconnect()
        sandbox.close()


def test_a_program_has_a_terminal_of_the_size_that_was_asked_for_and_its_exit_code_comes_back(
    each_level: TensorlakeStage,
) -> None:
    sandbox = each_level.named()

    async def talk() -> int:
        async with terminal(
            each_level, sandbox.sandbox_id, "stty size; read x; stty size; echo got $x; exit 7"
        ) as seen:
            await seen.expect("20 70")
            await seen.pty.resize(cols=33, rows=11)
            await seen.pty.send_input("hello\n")
            await seen.expect("11 33")
            await seen.expect("got hello")
            code: int = await seen.pty.wait(timeout=30)
            return code

    assert asyncio.run(talk()) == 7


def test_ctrl_c_reaches_the_program_and_a_signal_is_a_negative_exit_code(stage: TensorlakeStage) -> None:
    sandbox = stage.named()

    async def talk() -> int:
        async with terminal(stage, sandbox.sandbox_id, "echo ready; exec sleep 600") as seen:
            await seen.expect("ready")
            await seen.pty.send_input(b"\x03")
            code: int = await seen.pty.wait(timeout=30)
            return code

    assert asyncio.run(talk()) == -2


def test_a_client_that_hangs_up_ends_its_program(stage: TensorlakeStage) -> None:
    sandbox = stage.named()

    async def leave() -> None:
        async with terminal(stage, sandbox.sandbox_id, "echo ready; exec sleep 6543") as seen:
            await seen.expect("ready")

    asyncio.run(leave())
    until(lambda: sandbox.run("pgrep", ["-f", "sleep 6543"]).exit_code == 1, "it outlived its terminal")


def test_a_sleeper_is_woken_by_its_terminal(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    sandbox.suspend()

    async def talk() -> None:
        async with terminal(stage, sandbox.sandbox_id, "echo awake-$((40+2)); read x") as seen:
            await seen.expect("awake-42")

    asyncio.run(talk())


def test_another_token_and_a_second_client_do_not_come_in(stage: TensorlakeStage) -> None:
    sandbox = stage.named()

    async def try_in() -> None:
        handle = await AsyncSandbox.connect(sandbox.sandbox_id, **stage.sdk)
        made = (await handle.create_pty_session("sh", ["-c", "read x"])).value
        with pytest.raises(SandboxConnectionError):
            await handle.connect_pty(made["session_id"], "another token")
        first = await handle.connect_pty(made["session_id"], made["token"])
        with pytest.raises(SandboxConnectionError):
            await handle.connect_pty(made["session_id"], made["token"])
        await first.disconnect()
        handle.close()

    asyncio.run(try_in())


def test_there_are_at_most_64_terminals_in_a_sandbox(stage: TensorlakeStage) -> None:
    sandbox = stage.named()

    async def fill() -> None:
        handle = await AsyncSandbox.connect(sandbox.sandbox_id, **stage.sdk)
        for _ in range(64):
            await handle.create_pty_session("sh")
        with pytest.raises(RemoteAPIError) as caught:
            await handle.create_pty_session("sh")
        assert caught.value.status_code == 429
        handle.close()

    asyncio.run(fill())
