"""AUTH=platform: a header is believed only where the front end was seen to turn an anonymous caller away."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import Response

from functions.cloud_run_iam import TRUSTED_SECONDS, IngressProbe, is_vouched_for, require_operator
from functions.fork_best_of_n import fork_best_of_n
from functions.poll_tick import poll_tick
from functions.requests import HttpError
from functions.state import STATE, FunctionsState
from shared.errors import SettingsError
from shared.service import Service
from shared.settings import Settings
from tests.support.http_stub import StubHandler, stub_server

TOKEN = "a-token-of-nobody"
CALLER = "hands-schedule@project-of-nobody.iam.gserviceaccount.com"
URL = "https://poll-tick-123.europe-west1.run.app"
ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
    "K_SERVICE": "poll-tick",
    "AUTH": "platform",
    "AUTH_CALLERS": f"someone@example.com, {CALLER}",
    "AUTH_OWN_URL": URL,
}


def checked(email: object = CALLER, *, signature: str = "SIGNATURE_REMOVED_BY_GOOGLE", verified: object = True) -> str:
    """A token as Cloud Run hands it on."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"Bearer {part({'alg': 'RS256'})}.{part({'email': email, 'email_verified': verified})}.{signature}"


def request(*headers: tuple[str, str]) -> Request:
    raw = [(name.encode(), value.encode()) for name, value in headers]

    async def receive() -> dict[str, object]:
        return {"type": "http.request", "body": b"", "more_body": False}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": raw, "query_string": b""}, receive)


def state(status: int | OSError, **more: str) -> FunctionsState:
    """One whose own address answers an anonymous GET so."""

    def ask(url: str) -> int:
        assert url == URL
        if isinstance(status, OSError):
            raise status
        return status

    made = FunctionsState(Service(Settings.from_environ({**ENVIRON, **more})), background=False)
    made.ingress_probe = IngressProbe(URL, ask)
    return made


def vouched(made: FunctionsState, *headers: tuple[str, str]) -> bool:
    return asyncio.run(is_vouched_for(request(*headers), made.settings, made.ingress_probe))


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("header", ["authorization", "x-serverless-authorization"])
def test_a_caller_on_the_list_gets_in_where_strangers_are_turned_away(header: str, status: int) -> None:
    assert vouched(state(status), (header, checked()))
    assert vouched(state(status), (header, checked("someone@example.com").replace("Bearer", "bearer")))


@pytest.mark.parametrize("status", [200, 301, 302, 404, 405, 500, 503, OSError("down"), TimeoutError()])
def test_the_same_header_is_worth_nothing_where_strangers_may_come_in_or_nobody_knows(status: int | OSError) -> None:
    with pytest.raises(HttpError) as caught:
        vouched(state(status), ("authorization", checked()))
    assert caught.value.status == 503


@pytest.mark.parametrize(
    "header",
    [
        checked("stranger@example.com"),
        checked(None),
        checked([CALLER]),
        checked(verified=False),
        checked(verified="true"),
        checked(signature="c2lnbmVk"),
        checked(signature=""),
        checked().replace("Bearer", "Basic"),
        "Bearer",
        "Bearer ..SIGNATURE_REMOVED_BY_GOOGLE",
        "Bearer a.b.c.SIGNATURE_REMOVED_BY_GOOGLE",
        "Bearer a.!!!.SIGNATURE_REMOVED_BY_GOOGLE",
        "Bearer a." + base64.urlsafe_b64encode(b"[" * 100_000).decode() + ".SIGNATURE_REMOVED_BY_GOOGLE",
        "Bearer a." + base64.urlsafe_b64encode(b"\xff\xfe").decode() + ".SIGNATURE_REMOVED_BY_GOOGLE",
    ],
)
def test_another_caller_and_what_is_no_checked_token_do_not(header: str) -> None:
    assert not vouched(state(403), ("authorization", header))


def test_only_the_header_that_the_front_end_checked_counts() -> None:
    other = checked("stranger@example.com")
    assert not vouched(state(403), ("authorization", checked()), ("x-serverless-authorization", other))
    assert not vouched(state(403), ("authorization", checked()), ("authorization", checked()))


def test_a_stranger_does_not_make_us_ask_anything() -> None:
    made = state(OSError("asked"))
    assert not vouched(made, ("authorization", checked("stranger@example.com")))


def test_with_auth_token_the_platforms_word_counts_for_nothing() -> None:
    assert not vouched(state(403, AUTH="token"), ("authorization", checked()))


def test_the_operators_token_still_counts_and_without_either_it_is_a_401() -> None:
    made = state(405, FUNCTIONS_TOKEN=TOKEN)
    asyncio.run(require_operator(request(("authorization", f"Bearer {TOKEN}")), made.settings, made.ingress_probe))
    for each in (made, state(405)):
        with pytest.raises(HttpError) as caught:
            asyncio.run(require_operator(request(), each.settings, each.ingress_probe))
        assert caught.value.status == 401


@pytest.mark.parametrize("handler", [poll_tick, fork_best_of_n])
def test_both_functions_answer_503_while_the_service_is_public(
    handler: Callable[[Request], Awaitable[Response]],
) -> None:
    asked = request(("authorization", checked()))
    asked.scope["state"] = {STATE: state(405)}

    async def main() -> Response:
        return await handler(asked)

    answer = asyncio.run(main())
    assert answer.status_code == 503
    assert b"AUTH=platform" in bytes(answer.body)


def test_a_closed_door_is_looked_at_again_after_minutes_and_an_open_one_after_seconds() -> None:
    now = 0.0
    answers: list[int] = []

    def ask(_: str) -> int:
        return answers.pop(0)

    door = IngressProbe(URL, ask, lambda: now)

    async def main() -> None:
        nonlocal now
        answers.append(403)
        assert await asyncio.gather(*(door.is_closed() for _ in range(20))) == [True] * 20
        now = TRUSTED_SECONDS - 1
        assert await door.is_closed()
        now = TRUSTED_SECONDS + 1
        answers.append(405)
        assert not await door.is_closed()
        assert not await door.is_closed()
        now += 11
        answers.append(403)
        assert await door.is_closed()

    asyncio.run(main())
    assert answers == []


@contextlib.contextmanager
def answering(status: int) -> Iterator[str]:
    """A server whose root has this answer, with a redirect to a place that is closed."""

    class Handler(StubHandler):
        def do_GET(self) -> None:
            self.answer(status if self.path == "/" else 403, headers={"location": "/closed"})

    with stub_server(Handler) as url:
        yield url


@pytest.mark.parametrize(("status", "closed"), [(403, True), (401, True), (302, False), (405, False)])
def test_over_a_real_socket_only_the_answer_of_the_root_counts(status: int, closed: bool) -> None:
    with answering(status) as url:
        assert asyncio.run(IngressProbe(url).is_closed()) is closed


def test_silence_is_no_proof() -> None:
    assert not asyncio.run(IngressProbe("http://127.0.0.1:1").is_closed())


def test_no_function_of_ours_turns_a_nameless_get_of_the_root_away() -> None:
    get = {"type": "http", "method": "GET", "path": "/", "raw_path": b"/", "headers": [], "query_string": b""}

    async def main() -> list[int]:
        from functions import main as targets
        from functions.asgi import app

        answers: list[int] = []

        async def receive() -> dict[str, object]:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                answers.append(message["status"])

        await app({**get, "state": {}}, receive, send)
        handlers: tuple[Any, ...] = (
            targets.on_run_started,
            targets.poll_tick,
            targets.fork_best_of_n,
            targets.bundle,
        )
        for target in handlers:
            answers.append((await target(Request(dict(get), receive))).status_code)
        return answers

    assert asyncio.run(main()) == [405] * 5


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"K_SERVICE": ""}, "K_SERVICE"),
        ({"AUTH_CALLERS": ""}, "AUTH_CALLERS"),
        ({"AUTH_OWN_URL": ""}, "AUTH_OWN_URL"),
        ({"AUTH_OWN_URL": "http://poll-tick-123.europe-west1.run.app"}, "AUTH_OWN_URL"),
        ({"AUTH_OWN_URL": "https://another-123.europe-west1.run.app"}, "AUTH_OWN_URL"),
        ({"AUTH_OWN_URL": "https://poll-tick.example.com"}, "AUTH_OWN_URL"),
        ({"AUTH_OWN_URL": "https://poll-tick-123.run.app.example.com"}, "AUTH_OWN_URL"),
        ({"AUTH_OWN_URL": f"{URL}/status"}, "AUTH_OWN_URL"),
        ({"AUTH": "iam"}, "AUTH"),
    ],
)
def test_a_platform_that_cannot_be_tried_is_refused_at_the_start(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        Settings.from_environ({**ENVIRON, **change})
