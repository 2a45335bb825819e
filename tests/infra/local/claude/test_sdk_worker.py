"""Anthropic's own worker, unmodified, serves sessions on the offline service."""

from __future__ import annotations

import asyncio
from pathlib import Path

import anthropic

from infra.local.claude.agents import DEFAULT_AGENT
from tests.infra.local.claude.conftest import ClaudeStage, message


def run_worker(stage: ClaudeStage, workdir: Path, seconds: float = 20.0) -> None:
    """`EnvironmentWorker.run()` until the environment's newest item is stopped."""

    async def serve() -> None:
        client = anthropic.AsyncAnthropic(auth_token=stage.environment_key, base_url=stage.service.url)
        worker = client.beta.environments.work.worker(
            environment_id=stage.environment_id,
            environment_key=stage.environment_key,
            workdir=workdir,
            max_idle=0.2,
        )
        running = asyncio.create_task(worker.run())
        try:
            async with asyncio.timeout(seconds):
                while not running.done():
                    states = [item.state for item in await asyncio.to_thread(stage.items)]
                    if states and states[0] == "stopped":
                        return
                    await asyncio.sleep(0.05)
                running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await client.close()

    asyncio.run(serve())


def test_the_quickstart_is_served_from_claim_to_idle(stage: ClaudeStage, tmp_path: Path) -> None:
    session_id = stage.session("create hello.txt with 'hi' then read it back")
    run_worker(stage, tmp_path)
    assert (tmp_path / "hello.txt").read_text() == "hi"
    assert stage.idle_events(session_id)[-1].stop_reason.type == "end_turn"
    assert "read hello.txt returned: hi" in stage.said(session_id)[-1]
    assert stage.status(session_id) == "idle"


def test_all_six_tools_and_a_second_turn_go_through_it(stage: ClaudeStage, tmp_path: Path) -> None:
    lines = ["write a.txt: alpha", "edit a.txt: alpha => beta", "$ cat a.txt", "glob *.txt", "grep beta", "read a.txt"]
    session_id = stage.session("\n".join(lines))
    run_worker(stage, tmp_path)
    account = stage.said(session_id)[-1]
    assert "bash cat a.txt returned: beta" in account
    assert "glob *.txt returned: " in account and "a.txt" in account
    assert "grep beta returned: " in account
    assert "failed" not in account
    stage.send(session_id, message("$ echo second turn"))
    run_worker(stage, tmp_path)
    assert "returned: second turn" in stage.said(session_id)[-1]
    assert [item.state for item in stage.items()] == ["stopped", "stopped"]


def test_the_default_agent_has_the_whole_toolset(stage: ClaudeStage) -> None:
    agent = stage.api.beta.agents.create(**DEFAULT_AGENT)
    names = {config.name for tool in agent.tools if tool.type == "agent_toolset_20260401" for config in tool.configs}
    assert {"bash", "read", "write", "edit", "glob", "grep"} <= names
