"""The functions on a real server, asked over bare sockets by somebody who does not keep to HTTP.

What the server itself refuses (400, text/plain) never reaches the functions; all else has their one shape. After every
storm the server still answers, and neither a task nor a secret is left where it should not be.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import re
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

import pytest
import uvicorn
from starlette.types import Receive, Scope, Send

from functions import asgi as app_module
from functions import requests
from functions.server import HTTP_PROTOCOL
from tests.fuzz.case import FuzzAnswer, FuzzCase, Profile
from tests.fuzz.properties import HEADER_CANARY, check
from tests.fuzz.reproductions import OPEN
from tests.fuzz.stage import SECRETS, TOKEN, LogRecords, recorded, service_for, state_of
from tests.support.signing import delivery, signed
from tests.support.waiting import until

PATIENCE: Final = 10.0  # seconds for the rest of an answer
SILENT: Final = 0.4  # seconds without an answer after which none is expected
BODY_SECONDS: Final = 0.4  # instead of thirty
BEARER: Final = f"Authorization: Bearer {TOKEN}\r\n".encode()
UNPROVEN: Final = b"webhook-id: w\r\nwebhook-signature: v1,eA==\r\nwebhook-timestamp: %d"
_HEAD: Final = re.compile(rb"HTTP/1\.1 .*?\r\n\r\n", re.DOTALL)
_LENGTH: Final = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)
CANARY: Final = HEADER_CANARY.encode()
TICK: Final = b"POST /poll_tick HTTP/1.1\r\nHost: h\r\n" + BEARER + b"Content-Length: 2\r\n\r\n{}"
RACE_BODY: Final = b'{"source":{"image":"i"},"n":1,"command":["true"]}'
RACE: Final = (
    b"POST /fork_best_of_n HTTP/1.1\r\nHost: h\r\n%bContent-Length: %d\r\n\r\n" % (BEARER, len(RACE_BODY)) + RACE_BODY
)


@dataclass(frozen=True, slots=True)
class RawServer:
    """A server in this process. `tasks` counts what its event loop has to do."""

    port: int
    records: LogRecords
    loop: asyncio.AbstractEventLoop

    def tasks(self) -> int:
        async def count() -> int:
            return len(asyncio.all_tasks())

        return asyncio.run_coroutine_threadsafe(count(), self.loop).result(10)


@contextlib.contextmanager
def served(http: str) -> Iterator[RawServer]:
    """`functions.asgi` under uvicorn with this parser, on an empty queue and sandboxes in memory."""
    loops: list[asyncio.AbstractEventLoop] = []
    services: list[Any] = []
    states: list[Any] = []

    async def with_service(scope: Scope, receive: Receive, send: Send) -> None:
        if not services:
            loops.append(asyncio.get_running_loop())
            services.append(service_for(Profile.WHOLE))
            states.append(state_of(services[0]))
        scope["state"] = states[0]
        await app_module.app(scope, receive, send)

    with recorded() as records:
        config = uvicorn.Config(with_service, lifespan="off", http=http, log_config=None, timeout_graceful_shutdown=2)
        server = uvicorn.Server(config)
        listener = socket.create_server(("127.0.0.1", 0))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        try:
            assert status(talk(port, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n", until=5.0)) == 200
            yield RawServer(port, records, loops[0])
        finally:
            server.should_exit = True
            thread.join(20)
            listener.close()
            assert not thread.is_alive(), "the server did not end"


@pytest.fixture(scope="module", params=["httptools", "h11", HTTP_PROTOCOL])
def server(request: pytest.FixtureRequest) -> Iterator[RawServer]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(requests, "BODY_SECONDS", BODY_SECONDS)
        patched.setattr(requests, "UNPROVEN_SECONDS", BODY_SECONDS)
        with served(request.param) as running:
            yield running


def talk(port: int, *sent: bytes, pause: float = 0.0, until: float = 10.0, answers: int = 1) -> bytes:
    """What comes back for these bytes, sent with pauses between them: up to so many whole answers, the end of the
    connection, or `until` seconds of silence. Of an answer that a reset cut off nothing is returned."""
    heard = bytearray()
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            for number, part in enumerate(sent):
                if number:
                    time.sleep(pause)
                connection.sendall(part)
            while _whole(heard)[0] < answers:
                # What has begun to come is waited for: on a busy machine its parts may lie far apart.
                connection.settimeout(max(until, PATIENCE) if heard[_whole(heard)[1] :] else until)
                received = connection.recv(65_536)
                if not received:
                    break
                heard += received
    except TimeoutError:
        pass
    except ConnectionError:  # a server that closes while bytes are on their way to it
        del heard[_whole(heard)[1] :]
    return bytes(heard)


def _whole(heard: bytearray) -> tuple[int, int]:
    """How many answers are in these bytes from beginning to end, and where the last of them ends."""
    count = at = 0
    while match := _HEAD.match(heard, at):
        length = _LENGTH.search(match[0])
        end = match.end() + (int(length[1]) if length else 0)
        if len(heard) < end:
            break
        count, at = count + 1, end
    return count, at


def status(answer: bytes) -> int | None:
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else None


def parsed(answer: bytes) -> FuzzAnswer:
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = [line.partition(b":") for line in head.split(b"\r\n")[1:]]
    return FuzzAnswer(status(answer), [(name.strip().lower(), value.strip()) for name, _, value in lines], body)


def assert_decent(answer: bytes, sent: bytes) -> None:
    """No answer at all, the server's own refusal, or one of ours as it should be."""
    shown = (sent[:300], answer[:300])
    for secret in (*SECRETS, HEADER_CANARY):
        assert secret.encode() not in answer, shown
    got = parsed(answer)
    if got.status is None or _servers_own(got):
        return
    assert got.status < 500, shown
    if OPEN & {f"{got.status} is not JSON", f"{got.status} at another path"}:
        return
    assert got.header(b"content-type") == b"application/json", shown
    body = json.loads(got.body[: int(got.header(b"content-length"))] or b"null")
    assert got.status == 200 or sent.startswith(b"HEAD") or set(body) == {"error"}, shown


def _servers_own(got: FuzzAnswer) -> bool:
    """uvicorn's answers to what is not HTTP, to a web socket that nobody takes, and to more than may be held."""
    refused = got.status == 400 and got.header(b"connection") == b"close"
    refused = refused and got.header(b"content-type").startswith(b"text/plain")
    bounded = got.status in (408, 431, 503) and got.header(b"connection") == b"close" and not got.body
    return refused or bounded or (got.status == 403 and not got.body)


def stamped() -> bytes:
    """The header lines of a delivery that may be signed."""
    return UNPROVEN % int(time.time())


def post(path: bytes = b"/poll_tick", *lines: bytes, body: bytes = b"", length: bool = True) -> bytes:
    announced = [b"Content-Length: %d" % len(body)] if length else []
    return b"\r\n".join([b"POST " + path + b" HTTP/1.1", b"Host: h", *lines, *announced, b"", body])


MALFORMED: Final = {
    "nothing like HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40,
    "an empty line": b"\r\n\r\n\r\n\r\n",
    "no version": b"POST /poll_tick\r\n\r\n",
    "another version": b"POST /poll_tick HTTP/9.9\r\nHost: h\r\n\r\n",
    "HTTP/2 preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a method of its own": b"\xff\xfe /poll_tick HTTP/1.1\r\nHost: h\r\n\r\n",
    "no path": b"POST  HTTP/1.1\r\nHost: h\r\n\r\n",
    "a star": b"OPTIONS * HTTP/1.1\r\nHost: h\r\n\r\n",
    "CONNECT": b"CONNECT h:443 HTTP/1.1\r\nHost: h\r\n\r\n",
    "an absolute address": b"POST http://elsewhere.invalid/poll_tick HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    "an absolute address without a path": b"POST http://elsewhere.invalid HTTP/1.1\r\nHost: h\r\n\r\n",
    "a broken address": b"POST http://[::1/poll_tick HTTP/1.1\r\nHost: h\r\n\r\n",
    "bytes in the path": b"POST /poll\xff\xfe_tick HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n",
    "escapes that are none": post(b"/%zz%"),
    "escaped bytes that are no text": post(b"/%ff%fe%00%0a"),
    "an escaped path": post(b"/%70oll_tick"),
    "a header without a colon": post(b"/poll_tick", b"nonsense"),
    "a header with a space in its name": post(b"/poll_tick", b"a b: c"),
    "a header with NUL": post(b"/poll_tick", b"x: a\0b"),
    "a folded header": post(b"/poll_tick", b"x: a\r\n b"),
    "a bare line feed": b"POST /poll_tick HTTP/1.1\nHost: h\nContent-Length: 0\n\n",
    "a header of 100 kB": post(b"/poll_tick", b"x: " + b"y" * 100_000),
    "two thousand headers": post(b"/poll_tick", *(b"x%d: y" % number for number in range(2_000))),
    "a path of 50 kB": post(b"/" + b"p" * 50_000),
    "no Host": b"POST /poll_tick HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
    "two Hosts": post(b"/poll_tick", b"Host: other"),
    "a strange Host": post(b"/poll_tick", b"Host: [" + CANARY),
    "two lengths": post(b"/poll_tick", b"Content-Length: 5"),
    "a length below zero": post(b"/poll_tick", b"Content-Length: -1", length=False),
    "a length that is no number": post(b"/poll_tick", b"Content-Length: 1e3", length=False),
    "a length beyond every number": post(b"/poll_tick", b"Content-Length: " + b"9" * 40, length=False),
    "length and chunks": post(b"/poll_tick", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    "chunks twice": post(b"/poll_tick", b"Transfer-Encoding: chunked, chunked", length=False, body=b"0\r\n\r\n"),
    "another encoding": post(b"/poll_tick", b"Transfer-Encoding: gzip", length=False, body=b"xx"),
    "a chunk of no size": post(
        b"/poll_tick", b"Transfer-Encoding: chunked", length=False, body=b"zz\r\nx\r\n0\r\n\r\n"
    ),
    "a chunk of all sizes": post(b"/poll_tick", b"Transfer-Encoding: chunked", length=False, body=b"f" * 40 + b"\r\n"),
    "a chunk below zero": post(
        b"/poll_tick", b"Transfer-Encoding: chunked", length=False, body=b"-1\r\nx\r\n0\r\n\r\n"
    ),
    "trailers": post(
        b"/poll_tick",
        b"Transfer-Encoding: chunked",
        length=False,
        body=b"2\r\n{}\r\n0\r\nAuthorization: Bearer " + TOKEN.encode() + b"\r\n\r\n",
    ),
    "an upgrade": post(b"/poll_tick", b"Connection: Upgrade", b"Upgrade: " + CANARY),
    "an upgrade to HTTP/2": post(
        b"/poll_tick", b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"
    ),
    "a web socket": (
        b"GET /poll_tick HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    ),
    "an expectation": post(b"/poll_tick", b"Expect: the-spanish-inquisition"),
    "a query of bytes": post(b"/poll_tick?\xff\xfe", BEARER.strip()),
    "a redirect with a query of bytes": post(b"/poll_tick/?\xff"),
    "somebody's token": post(b"/poll_tick", b"Authorization: Bearer " + CANARY),
    "two tokens": post(b"/poll_tick", BEARER.strip(), BEARER.strip()),
    "a token folded": post(b"/poll_tick", b"Authorization: Bearer\r\n " + TOKEN.encode()),
}


# A right token, if in an odd place: uvicorn takes trailers (httptools) and folded lines (h11) for headers.
_WELCOME: Final = {"trailers", "a token folded"}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_hardly_http_gets_a_decent_answer_or_none(server: RawServer, name: str) -> None:
    sent = MALFORMED[name]
    answer = talk(server.port, sent, until=SILENT)
    assert_decent(answer, sent)
    assert status(answer) != 200 or name in _WELCOME


def test_a_good_request_is_answered_however_it_is_cut(server: RawServer) -> None:
    body = delivery("session.updated")
    head = post(b"/on_run_started", *(f"{name}: {value}".encode() for name, value in signed(body).items()), body=body)
    for whole in (TICK, RACE, head):
        half = len(whole) // 2
        assert status(talk(server.port, whole)) == 200
        assert status(talk(server.port, whole[:10], whole[10:half], whole[half:], pause=0.05)) == 200


def test_chunks_are_a_body_like_any_other(server: RawServer) -> None:
    chunks = b"".join(b"%x\r\n%b\r\n" % (1, RACE_BODY[at : at + 1]) for at in range(len(RACE_BODY))) + b"0\r\n\r\n"
    sent = post(b"/fork_best_of_n", BEARER.strip(), b"Transfer-Encoding: chunked", length=False, body=chunks)
    assert status(talk(server.port, sent)) == 200


def test_a_body_that_never_comes_is_given_up_with_a_408(server: RawServer) -> None:
    began = time.monotonic()
    answer = talk(server.port, post(b"/on_run_started", stamped(), b"Content-Length: 10", length=False), until=60.0)
    assert status(answer) == 408
    assert json.loads(parsed(answer).body)["error"]["type"] == "timeout"
    assert time.monotonic() - began < 60.0


@pytest.mark.parametrize("path", [b"/poll_tick", b"/fork_best_of_n"])
def test_a_body_that_drips_is_given_up_as_well(server: RawServer, path: bytes) -> None:
    head = post(path, BEARER.strip(), b"Content-Length: 100", length=False)
    assert status(talk(server.port, head, *[b"x"] * 9, pause=0.1)) == 408


@pytest.mark.parametrize("path", [b"/on_run_started", b"/poll_tick", b"/fork_best_of_n"])
def test_more_than_a_mebibyte_is_refused_before_it_has_come(server: RawServer, path: bytes) -> None:
    announced = post(path, BEARER.strip(), stamped(), b"Content-Length: 1048577", length=False)
    assert status(talk(server.port, announced)) == 413
    chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
    chunked = post(path, BEARER.strip(), stamped(), b"Transfer-Encoding: chunked", length=False)
    assert status(talk(server.port, chunked, *[chunk] * 17)) == 413


@pytest.mark.parametrize("path", [b"/", b"/on_run_started", b"/poll_tick", b"/fork_best_of_n"])
@pytest.mark.parametrize("length", [b"Content-Length: 10", b"Content-Length: 1048577", b"Transfer-Encoding: chunked"])
def test_who_shows_nothing_is_refused_although_the_body_never_comes(
    server: RawServer, path: bytes, length: bytes
) -> None:
    assert status(talk(server.port, post(path, length, length=False), until=PATIENCE)) == 401
    if path in (b"/", b"/on_run_started"):
        stale = UNPROVEN % int(time.time() - 301)
        assert status(talk(server.port, post(path, stale, length, length=False), until=PATIENCE)) == 401


def test_callers_who_go_away_leave_nothing_running(server: RawServer) -> None:
    before = server.tasks()
    for sent in (TICK[:20], TICK[:-1], RACE[:-5], RACE, post(b"/fork_best_of_n", BEARER.strip(), body=b"x" * 9)[:-3]):
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", server.port), 5) as connection:
                connection.sendall(sent)
    until(lambda: server.tasks() <= before, "tasks are left")


def test_two_requests_on_one_line_get_two_answers(server: RawServer) -> None:
    answer = talk(server.port, TICK + post(b"/poll_tick"), answers=2)
    assert answer.count(b"HTTP/1.1 200") == 1
    assert answer.count(b"HTTP/1.1 401") == 1


def test_a_second_request_hidden_in_a_body_is_not_served(server: RawServer) -> None:
    """By the length that was announced, whatever the function answers before it has read the body."""
    hidden = post(b"/fork_best_of_n", body=TICK)
    assert b"HTTP/1.1 200" not in talk(server.port, hidden, until=SILENT, answers=2)
    assert b"HTTP/1.1 200" not in talk(server.port, post(b"/nothing", body=TICK), until=SILENT, answers=2)


def test_two_ways_to_say_a_length_are_refused_by_the_parser_that_is_installed() -> None:
    both = post(b"/fork_best_of_n", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + TICK)
    with served("auto") as installed:
        assert status(talk(installed.port, both, until=SILENT, answers=2)) == 400


def test_hundreds_of_damaged_requests_leave_the_server_well(server: RawServer) -> None:
    dice = random.Random(5)
    broken = [_damaged(dice) for _ in range(200)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda sent: talk(server.port, sent, until=SILENT), broken))
    for sent, answer in zip(broken, answers, strict=True):
        assert_decent(answer, sent)
    assert len({status(answer) for answer in answers}) >= 4
    assert status(talk(server.port, TICK)) == 200


def _damaged(dice: random.Random) -> bytes:
    """A good request with some bytes changed, taken out or put in, or with its end missing."""
    whole = bytearray(dice.choice([TICK, RACE, post(b"/on_run_started", body=delivery())]))
    for _ in range(dice.choice([1, 1, 2, 5])):
        at = dice.randrange(len(whole))
        match dice.randrange(4):
            case 0:
                whole[at] = dice.randrange(256)
            case 1:
                del whole[at : at + dice.randrange(1, 9)]
            case 2:
                whole[at:at] = dice.choice([b"\r\n", b"\0", b" ", b":", b"\xff", b"%", b"0", bytes(whole[:at][-20:])])
            case _:
                del whole[max(at, 20) :]
    return bytes(whole) or b"x"


def test_the_servers_log_holds_no_secret_and_nothing_of_a_header(server: RawServer) -> None:
    talk(server.port, post(b"/poll_tick", b"Authorization: Bearer " + CANARY, b"Cookie: " + CANARY))
    talk(server.port, TICK)
    assert server.records.lines, "nothing at all was logged"
    for line in server.records.lines:
        assert not any(secret in line for secret in SECRETS)
        assert HEADER_CANARY not in line


def test_what_this_server_answers_is_what_the_application_answers(server: RawServer) -> None:
    case = FuzzCase("/poll_tick")
    assert check(case, parsed(talk(server.port, post(b"/poll_tick")))) == []
