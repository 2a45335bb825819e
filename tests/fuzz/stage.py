"""Both applications in this process, on an empty queue and sandboxes in memory, at the speed of virtual time.

What a request meets is real down to the ports: the routes, the handlers, the core. Every record that is logged
meanwhile is kept, and what the request left behind is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import io
import logging
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from datetime import datetime
from functools import cache
from typing import Any, Final

from starlette.types import ASGIApp

from functions.asgi import app as our_app
from functions.server.lifecycle import ServerLifecycle
from functions.state import STATE, FunctionsState
from shared import names
from shared.ports import (
    Absent,
    CommandOutput,
    Empty,
    ListedItem,
    Listing,
    OpenCalls,
    PollOutcome,
    SandboxStatus,
    SessionRecord,
    WorkQueue,
)
from shared.service import Service
from shared.settings import Settings
from tests.fuzz.case import Door, Ending, FuzzAnswer, FuzzCase, Profile
from tests.support.checkout import ROOT
from tests.support.fake_host import FakeCall, FakeHost
from tests.support.signing import KEY
from tests.support.virtual_time import NothingLeftToDoError, run_virtual

TOKEN: Final = "an-operators-token-of-nobody-at-all"
LOST_FILE: Final = "/nowhere/in/particular"
ENVIRONMENT: Final = "env_1"
SESSIONS: Final[Mapping[str, SandboxStatus]] = {
    "sesn_running": SandboxStatus.RUNNING,
    "sesn_asleep": SandboxStatus.SUSPENDED,
    "sesn_failed": SandboxStatus.FAILED,
}
SNAPSHOT: Final = "snap-of-nobody"
_ENVIRON: Final = {
    "ANTHROPIC_ENVIRONMENT_ID": ENVIRONMENT,
    "ANTHROPIC_ENVIRONMENT_KEY": "an-environment-key-of-nobody",
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:9",
    "TENSORLAKE_API_KEY": "a-tensorlake-key-of-nobody",
    "TENSORLAKE_API_URL": "http://127.0.0.1:9",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
    "FUNCTIONS_TOKEN": TOKEN,
    "RACE_CALLS_PER_MINUTE": "0",
    "RACE_MAX_BRANCHES": "16",
}
_LACKS: Final[Mapping[Profile, Mapping[str, str]]] = {
    Profile.WHOLE: {},
    Profile.NO_TOKEN: {"FUNCTIONS_TOKEN": ""},
    Profile.NO_KEY: {"ANTHROPIC_WEBHOOK_SIGNING_KEY": ""},
    Profile.BAD_KEY: {"ANTHROPIC_WEBHOOK_SIGNING_KEY": "whsec_no+base64!"},
    Profile.LOST_FILES: {
        "FUNCTIONS_TOKEN": f"file:{LOST_FILE}/token",
        "ANTHROPIC_WEBHOOK_SIGNING_KEY": f"file:{LOST_FILE}/key",
    },
}
SECRETS: Final = (
    TOKEN,
    KEY,
    KEY.removeprefix("whsec_"),
    _ENVIRON["ANTHROPIC_ENVIRONMENT_KEY"],
    _ENVIRON["TENSORLAKE_API_KEY"],
    "whsec_no+base64!",
)
_LOGGERS: Final = ("functions", "shared", "uvicorn", "uvicorn.error", "uvicorn.access", "asyncio", "")


class NothingQueued:
    """ports.WorkQueue of an environment in which nothing happens and that knows no session."""

    async def poll(self) -> PollOutcome:
        await asyncio.sleep(0)
        return Empty()

    async def ack(self, work_id: str) -> Absent:
        return Absent()

    async def force_stop(self, work_id: str) -> Absent:
        return Absent()

    async def list_items(self, pages: int, back_to: datetime | None = None) -> Listing[ListedItem]:
        return Listing((), complete=True)

    async def session(self, session_id: str) -> SessionRecord | Absent:
        await asyncio.sleep(0)
        return Absent()

    async def open_calls(self, session_id: str) -> OpenCalls:
        return OpenCalls()

    async def give_up_calls(self, session_id: str, calls: OpenCalls) -> Absent:
        return Absent()

    async def interrupt(self, session_id: str) -> Absent:
        return Absent()

    async def aclose(self) -> None:
        return None


class LogRecords(logging.Handler):
    """Everything that is logged, as text, exceptions included."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextlib.contextmanager
def recorded() -> Iterator[LogRecords]:
    """What the project's, the server's and any other logger say inside the block; all are as before after it."""
    records = LogRecords()
    before = []
    for name in _LOGGERS:
        logger = logging.getLogger(name)
        before.append((logger, logger.handlers, logger.propagate, logger.level))
        level = logging.DEBUG if name in ("functions", "shared") else logging.INFO
        logger.handlers, logger.propagate, logger.level = [records], False, level
    _forget_levels()
    try:
        yield records
    finally:
        for logger, handlers, propagate, level in before:
            logger.handlers, logger.propagate, logger.level = handlers, propagate, level
        _forget_levels()


def _forget_levels() -> None:
    """Once for all levels that were set: `setLevel` walks each logger of the process every time."""
    logging.root.manager._clear_cache()  # type: ignore[attr-defined]


@cache
def settings_of(profile: Profile) -> Settings:
    return Settings.from_environ({**_ENVIRON, **_LACKS[profile]})


def service_for(profile: Profile) -> Service:
    """A service whose queue is empty and whose host has a sandbox in each state that a race may find."""
    service = Service(settings_of(profile))
    host = FakeHost(program=_program, latency=0.0)
    for session, status in SESSIONS.items():
        host.add(names.sandbox_name(service.settings.prefix, ENVIRONMENT, session), status)
    host.snapshots[SNAPSHOT] = {}
    host._taken_of[SNAPSHOT] = "gone"
    queue: WorkQueue = NothingQueued()
    service.host = host
    service._queues = {ENVIRONMENT: queue}
    return service


async def _program(call: FakeCall) -> CommandOutput:
    """What a program does is chosen by its first word, so that a request can ask for it."""
    words = call.argv[-1].split() if call.argv[:2] == ("sh", "-c") else call.argv
    match words:
        case ["fail", *_]:
            return CommandOutput(3, "", "no luck", timed_out=False)
        case ["score", *_, said]:
            return CommandOutput(0, f"{said}\n", "", timed_out=False)
        case ["sleep", *_]:
            await asyncio.sleep(20)
    return CommandOutput(0, "1\n", "", timed_out=False)


@cache
def application(door: Door) -> ASGIApp:
    if door is Door.APP:
        return our_app
    framework: Any = importlib.import_module("functions_framework.aio")
    with recorded():  # the module configures logging when it is loaded
        made: ASGIApp = framework.create_asgi_app("bundle", str(ROOT / "functions" / "main.py"))
    return made


def ask(case: FuzzCase) -> FuzzAnswer:
    """Sends one request and waits for everything that it set off."""
    application(case.door)
    answer = FuzzAnswer()
    began = time.thread_time()
    with recorded() as records, contextlib.redirect_stderr(io.StringIO()) as shouted:
        try:
            run_virtual(lambda clock: _ask(case, answer, clock))
        except (Exception, NothingLeftToDoError) as error:
            answer.raised = error
    answer.cpu_seconds = time.thread_time() - began
    answer.log = records.lines + ([shouted.getvalue()] if shouted.getvalue() else [])
    return answer


def state_of(service: Service) -> dict[str, Any]:
    """The lifespan state of a server that is ready and does nothing by itself."""
    ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    ready.set_result(None)
    return {STATE: FunctionsState(service, background=False), "lifecycle": ServerLifecycle(service, ready)}


async def _ask(case: FuzzCase, answer: FuzzAnswer, clock: Callable[[], float]) -> None:
    service = service_for(case.profile)
    host = service.host
    assert isinstance(host, FakeHost)
    before = _existing(host)
    scope: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": case.method,
        "scheme": "http",
        "path": case.path,
        "raw_path": case.path.encode("ascii", "replace"),
        "root_path": "",
        "query_string": case.query,
        "headers": [(name.lower(), value) for name, value in case.all_headers()],
        "client": ("192.0.2.1", 50_000),
        "server": ("192.0.2.2", 5051),
        "state": state_of(service),
    }
    sender = _Sender(case, answer)
    try:
        await application(case.door)(scope, sender.receive, sender.send)
    finally:
        answer.seconds = clock()
        await service.aclose()
    answer.left = tuple(sorted(_existing(host) - before))


def _existing(host: FakeHost) -> set[str]:
    """Ids, since a sandbox may rightly be renamed."""
    alive = {box.record.id for box in host.boxes.values() if box.record.status is not SandboxStatus.TERMINATED}
    return alive | set(host.snapshots)


class _Sender:
    """The server's side of one ASGI exchange."""

    def __init__(self, case: FuzzCase, answer: FuzzAnswer) -> None:
        self._case = case
        self._parts = list(case.parts)
        self._answer = answer
        self._ended = False

    async def receive(self) -> MutableMapping[str, Any]:
        if self._parts:
            part = self._parts.pop(0)
            await asyncio.sleep(part.after)
            more = bool(self._parts) or self._case.ending in (Ending.CUT, Ending.STALLED)
            self._ended = not more
            return {"type": "http.request", "body": part.data, "more_body": more}
        match self._case.ending:
            case Ending.CUT:
                return {"type": "http.disconnect"}
            case Ending.COMPLETE | Ending.HUNG_UP if not self._ended:
                self._ended = True
                return {"type": "http.request", "body": b"", "more_body": False}
            case Ending.HUNG_UP:
                await asyncio.sleep(1)
                return {"type": "http.disconnect"}
        await asyncio.get_running_loop().create_future()
        raise AssertionError("nobody sets this future")

    async def send(self, message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert self._answer.status is None, "two answers to one request"
            self._answer.status = message["status"]
            self._answer.headers = list(message.get("headers", []))
        elif message["type"] == "http.response.body":
            self._answer.body += message.get("body", b"")
