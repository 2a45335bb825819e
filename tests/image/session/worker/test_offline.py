"""The worker on the offline platform: its Claude side, and both sides together with the worker in a real sandbox."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anthropic
import pytest

from image.session.archive import build_archive, digest
from image.session.claim import (
    AGENT_USER,
    CLAIM_VARIABLE,
    STATE_DIRECTORY,
    STATE_VARIABLE,
    WORKER_PYTHON,
    Claim,
    Exit,
    Notice,
    Word,
    worker_path,
)
from image.session.definition import Recipe, build
from infra.local.process import RunningService
from tests.image.session.worker.harness import sandbox
from tests.support.preloaded import forked_service
from tests.support.waiting import until

API_KEY = "sk-ant-api03-fake-for-tests"
ENVIRONMENT_KEY = "sk-ant-oat01-fake-for-tests"
PROMPT = "create hello.txt with 'hi' then read it back"


@dataclass
class OfflineClaude:
    service: RunningService
    api: anthropic.Anthropic
    queue: anthropic.Anthropic
    environment_id: str
    agent_id: str

    def begin(self, text: str) -> str:
        message = {"type": "user.message", "content": [{"type": "text", "text": text}]}
        session = self.api.beta.sessions.create(
            agent=self.agent_id,
            environment_id=self.environment_id,
            initial_events=[message],  # type: ignore[list-item] # one of its typed dicts, written plainly
        )
        return session.id

    def claim(self, workdir: str) -> Claim:
        item = self.queue.beta.environments.work.poll(self.environment_id, reclaim_older_than_ms=60_000)
        assert item is not None
        assert item.secret is not None
        return Claim(
            work_id=item.id,
            environment_id=self.environment_id,
            session_id=item.data.id,
            secret=item.secret,
            base_url=self.service.url,
            worker_digest=digest(build_archive()),
            workdir=workdir,
            max_idle=0.2,
        )

    def ack(self, claim: Claim) -> None:
        self.queue.beta.environments.work.ack(claim.work_id, environment_id=self.environment_id)

    def results(self, session_id: str) -> list[str]:
        events = self.api.beta.sessions.events.list(session_id, limit=1000)
        return [event.content[0].text for event in events if event.type == "user.tool_result"]  # type: ignore[index,union-attr] # text blocks here


@pytest.fixture(scope="module")
def claude() -> Iterator[OfflineClaude]:
    keys = {"LOCAL_CLAUDE_API_KEY": API_KEY, "LOCAL_CLAUDE_ENVIRONMENT_KEY": ENVIRONMENT_KEY}
    with (
        forked_service("infra.local.claude", [], keys) as service,
        anthropic.Anthropic(api_key=API_KEY, base_url=service.url, max_retries=0) as api,
        anthropic.Anthropic(auth_token=ENVIRONMENT_KEY, base_url=service.url, max_retries=0) as queue,
    ):
        yield OfflineClaude(service, api, queue, service.ready["environment_id"], service.ready["agent_id"])


def test_a_session_of_the_offline_claude_side_is_served_end_to_end(claude: OfflineClaude, tmp_path: Path) -> None:
    session_id = claude.begin(PROMPT)
    with sandbox(tmp_path) as box:
        claim = claude.claim(str(box.workdir))
        worker = box.start(claim)
        worker.wait_for(Word.READY)
        claude.ack(claim)
        assert worker.exit() is Exit.SERVED, worker.report()
        assert (box.workdir / "hello.txt").read_text() == "hi"
    assert claude.results(session_id)[-1] == "hi"
    assert claude.api.beta.sessions.retrieve(session_id).status == "idle"


def test_a_session_is_served_in_a_sandbox_of_the_image_as_the_agents_user(
    claude: OfflineClaude, tmp_path: Path
) -> None:
    from tensorlake.sandbox import Sandbox

    with forked_service("infra.local.tensorlake", ["--data-dir", str(tmp_path / "data")]) as service:
        build(Recipe("agent-cli"), api_key="a-key", api_url=service.url)
        box = Sandbox.create(image="agent-cli", name="session-test", api_key="a-key", api_url=service.url)
        session_id = claude.begin("$ id -un; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n' | grep -c HANDS_")
        claim = claude.claim("/workspace")
        worker = box.start_process(
            WORKER_PYTHON,
            ["-I", worker_path(claim.worker_digest)],
            env={CLAIM_VARIABLE: claim.to_json(), STATE_VARIABLE: STATE_DIRECTORY},
            user=AGENT_USER,
        )

        def words() -> list[Word]:
            lines = box.get_stdout(worker.pid).lines
            return [notice.word for line in lines if (notice := Notice.from_line(line)) is not None]

        until(lambda: Word.READY in words(), "it is not ready")
        claude.ack(claim)
        until(lambda: Word.ENDED in words(), "it does not end")
        assert words() == [Word.READY, Word.LEASED, Word.ENDED], box.get_output(worker.pid).lines
        user, found = claude.results(session_id)[-1].split()
        assert (user, found) == ("agent", "0")
        box.terminate()
