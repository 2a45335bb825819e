"""What both services' refusals mean, over real sockets and through the real SDKs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from shared.adapters.anthropic_queue import AnthropicQueue
from shared.adapters.call_budget import Holds
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.ports import Doubtful, NoCapacity, ProcessSpec, Refused, SandboxSpec, Throttled
from shared.secret import Secret
from tests.support.http_stub import StubHandler, stub_server


@dataclass
class RefusingService:
    """Answers everything alike, but for a look-up of the sandbox `box`."""

    url: str = ""
    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[RefusingService]:
    said = RefusingService()

    class Handler(StubHandler):
        def reply(self) -> None:
            self.body()
            said.asked.append(f"{self.command} {self.path}")
            status, body = said.status, said.body
            if self.command == "GET" and self.path.endswith("/sandboxes/box"):
                row = {"id": "box", "namespace": "default", "status": "running", "created_at": 1_760_000_000_000}
                sizes = {"cpus": 1.0, "memory_mb": 1024, "disk_mb": 1024}
                status, body = 200, json.dumps({**row, "resources": sizes, "sandbox_url": said.url}).encode()
            self.answer(status, body, said.headers)

        do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = reply

    with stub_server(Handler) as said.url:
        yield said


def queue(service: RefusingService, holds: Holds, environment: str = "env_1") -> AnthropicQueue:
    key = Secret("KEY", "not-a-real-environment-key")
    return AnthropicQueue(base_url=service.url, environment_id=environment, key=key, reclaim_seconds=90.0, holds=holds)


@pytest.mark.parametrize("status", [429, 503, 529])
@pytest.mark.parametrize("headers, seconds", [({"retry-after": "20"}, 20.0), ({"retry-after-ms": "7000"}, 7.0)])
def test_retry_after_holds_every_call_with_that_credential_in_the_process(
    service: RefusingService, status: int, headers: dict[str, str], seconds: float
) -> None:
    async def play() -> None:
        now = 0.0
        holds = Holds(lambda: now)
        first, second = queue(service, holds), queue(service, holds, "env_2")
        service.status, service.headers = status, headers
        said = await first.poll()
        assert isinstance(said, Throttled) and said.seconds == seconds
        asked = len(service.asked)
        assert asked == 1
        service.status, service.headers, service.body = 200, {}, b"null"
        for call in (first.poll(), first.ack("work_1"), second.poll(), second.session("sesn_1")):
            held = await call
            assert isinstance(held, Throttled) and 0 < held.seconds <= seconds
        assert len(service.asked) == asked
        now = seconds
        assert not isinstance(await second.poll(), Throttled)
        for each in (first, second):
            await each.aclose()

    asyncio.run(play())


def test_a_429_that_does_not_say_for_how_long_is_believed_for_a_moment(service: RefusingService) -> None:
    async def play() -> None:
        one = queue(service, Holds())
        service.status = 429
        said = await one.poll()
        assert isinstance(said, Throttled) and 0.1 < said.seconds < 5.0
        await one.aclose()

    asyncio.run(play())


def sandboxes(service: RefusingService) -> TensorlakeSandboxes:
    return TensorlakeSandboxes(api_url=service.url, api_key=Secret("KEY", "not-a-real-key"), bind_seconds=5.0)


@pytest.mark.parametrize(
    "status, words",
    [
        (429, "the quota of sandboxes is used up"),
        (403, "the plan's limit of 5 running sandboxes is reached"),
        (403, "max_capacity_reached"),
        (402, "payment required"),
    ],
)
@pytest.mark.parametrize("method", ["create", "resume"])
def test_every_way_to_say_that_there_is_no_room_is_one_outcome(
    service: RefusingService, status: int, words: str, method: str
) -> None:
    async def play() -> None:
        host = sandboxes(service)
        service.status, service.body = status, json.dumps({"error": words}).encode()
        said = await (host.create(SandboxSpec("x")) if method == "create" else host.resume("box"))
        assert isinstance(said, NoCapacity) and said.status == status
        await host.aclose()

    asyncio.run(play())


@pytest.mark.parametrize(
    "status, words", [(403, "this key may not create sandboxes"), (400, "cpus: above the limit"), (401, "limit")]
)
def test_what_no_later_moment_changes_is_no_lack_of_room(service: RefusingService, status: int, words: str) -> None:
    async def play() -> None:
        host = sandboxes(service)
        service.status, service.body = status, json.dumps({"error": words}).encode()
        said = await host.create(SandboxSpec("x"))
        assert isinstance(said, Refused) and not isinstance(said, NoCapacity)
        await host.aclose()

    asyncio.run(play())


SECRET = "sk-work-0123456789abcdefghijklmnop"


@pytest.mark.parametrize(
    "words, shown",
    [
        ("user: no such user agent", True),
        (f"env HANDS_CLAIM: {SECRET} is too long", True),
        (f"env: ...{SECRET[3:20]}...", False),
    ],
)
def test_a_refused_start_says_why_in_the_services_words_and_quotes_no_secret(
    service: RefusingService, words: str, shown: bool
) -> None:
    async def play() -> None:
        host = sandboxes(service)
        service.status, service.body = 400, json.dumps({"error": words}).encode()
        process = ProcessSpec("hands-1", "python", ("-V",), {"HANDS_CLAIM": SECRET}, secrets=(SECRET,))
        said = await host.start("box", process)
        assert isinstance(said, Refused) and said.status == 400
        assert (words[:4] in said.reason) is shown
        assert SECRET not in said.reason and SECRET[3:20] not in said.reason
        await host.aclose()

    asyncio.run(play())


def test_a_resume_that_fails_with_500_is_in_doubt(service: RefusingService) -> None:
    async def play() -> None:
        host = sandboxes(service)
        service.status, service.body = 500, b'{"error": "internal"}'
        said = await host.resume("box")
        assert isinstance(said, Doubtful) and not isinstance(said, Throttled)
        await host.aclose()

    asyncio.run(play())
