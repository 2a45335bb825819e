"""Entry points for AWS Lambda: `functions.aws_lambda.on_run_started`, `.poll_tick` and `.fork_best_of_n`.

What may come in, whichever entry point it is:
- HTTP from a function URL or an HTTP API (payload 2.0): the handler's own rules decide who may call.
- Anything else was sent by somebody whom IAM lets invoke this function, and needs no token: a wake-up
  (functions/invocations.py) from EventBridge Scheduler, as a direct invocation or as the `detail` of an EventBridge
  event; an SQS batch of wake-ups; and for fork_best_of_n, in place of these, a race request, or a race that an earlier
  invocation of it has answered for (functions/handed_races.py).
- Every other shape is an error with its name (functions/lambda_events.py).

One event loop and one Service live as long as the process, so a warm invocation finds its connections open. Whatever
an invocation began has ended when it answers: Lambda freezes the process then.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar

import orjson

from functions import lambda_http
from functions.invocations import BadInvocation, Invocation
from functions.lambda_events import UnknownEvent, require_known_gateway, require_race, sqs_messages, wake_up, wake_up_in
from functions.request_spans import request_span
from functions.state import DEADLINE, STATE, FunctionsState
from functions.tick_remarks import log_remarks
from shared import otel, tracing
from shared.deadline import Deadline
from shared.errors import SettingsError
from shared.service import Service
from shared.settings import Settings
from shared.telemetry import configure_logging

if TYPE_CHECKING:
    from shared.reports import DrainReport

log = logging.getLogger(__name__)

SETTINGS: Final = "HANDS_SETTINGS"
_ANSWER_SECONDS: Final = 3.0  # kept back to end what runs and to answer
SHORTEST_TIMEOUT: Final = 20.0
"""Seconds, of the function. Its first invocation has what its imports leave of them, and a drain still needs
`_SHORTEST_LEFT`."""
_SHORTEST_LEFT: Final = 16.0  # what a drain needs at least (shared/claims/claimer.py), the answer, and its margin

_STALE_SECONDS: Final = 90.0  # connections that slept longer than this are not trusted
_CLOCKS_DIFFER: Final = 2.0

_T = TypeVar("_T")


class Context(Protocol):
    """What is used of Lambda's context object."""

    def get_remaining_time_in_millis(self) -> int: ...


def on_run_started(event: Any, context: Context) -> Any:
    """The webhook, or a wake-up."""
    from functions.on_run_started import on_run_started as handler

    return _process().invoke(event, context, handler)


def poll_tick(event: Any, context: Context) -> Any:
    """The schedule's tick, or a wake-up of another kind."""
    from functions.poll_tick import poll_tick as handler

    return _process().invoke(event, context, handler)


def fork_best_of_n(event: Any, context: Context) -> Any:
    """A race. A direct event is the request itself; the answer to it is a payload 2.0 response as well. Or a race that
    was handed over: it has its answer, and its record tells its end."""
    from functions.fork_best_of_n import fork_best_of_n as handler

    process = _process()
    if isinstance(event, Mapping) and not lambda_http.is_http(event):
        if "do" in event:
            return process.take_up(event, context)
        require_race(event)
        token = process.settings().functions_token
        if token is None:
            raise SettingsError("FUNCTIONS_TOKEN is not set")
        try:
            body = orjson.dumps(event)
        except TypeError:
            raise UnknownEvent("an event with texts that are not Unicode") from None
        event = lambda_http.request_event(body, {"authorization": f"Bearer {token.reveal()}"})
    return process.invoke(event, context, handler)


def environ_of(environ: Mapping[str, str]) -> Mapping[str, str]:
    """The process's variables on top of those in HANDS_SETTINGS, a JSON object of texts: a template has a place for
    each variable that it knows, and this one for all others. Raises SettingsError."""
    try:
        more = orjson.loads(environ.get(SETTINGS) or "{}")
    except ValueError:
        more = None
    if not isinstance(more, dict) or not all(isinstance(value, str) for value in more.values()):
        raise SettingsError(f"{SETTINGS} must be a JSON object whose values are texts")
    return {**more, **{name: value for name, value in environ.items() if value}}


class LambdaProcess:
    """What stays from one invocation to the next. Only one runs at a time."""

    def __init__(self, environ: Mapping[str, str], make: Callable[[Settings], Service] = Service) -> None:
        self._environ = environ
        self._make = make
        self._loop = asyncio.new_event_loop()
        self._state: FunctionsState | None = None
        self._settings: Settings | None = None
        self._ended = time.time()
        self._seen_empty = 0.0
        self._warned = False
        self._left = 0.0

    def settings(self) -> Settings:
        """Raises SettingsError."""
        if self._settings is None:
            self._settings = Settings.from_environ(environ_of(self._environ))
        return self._settings

    def invoke(self, event: Any, context: Context, handler: lambda_http.Handler) -> Any:
        """One invocation, from event to answer, ended in time. Raises for what Lambda should count as an error."""
        return self._within(context, lambda until: self._handle(event, until, handler))

    def take_up(self, event: Mapping[str, Any], context: Context) -> Any:
        """One race that was handed over. Raises like `invoke`."""
        return self._within(context, lambda until: self._take_up(event, until))

    def _within(self, context: Context, work: Callable[[Deadline], Coroutine[Any, Any, _T]]) -> _T:
        left = context.get_remaining_time_in_millis() / 1000
        self._left = left
        until = Deadline.after(max(0.0, left - _ANSWER_SECONDS))
        try:
            return self._loop.run_until_complete(self._bounded(work(until), until))
        finally:
            self._ended = time.time()
            flush()

    def close(self) -> None:
        """Close the clients and the loop. Lambda never asks for it; a test does."""
        self._loop.run_until_complete(self._drop())
        self._loop.close()

    async def _bounded(self, work: Coroutine[Any, Any, _T], until: Deadline) -> _T:
        try:
            async with asyncio.timeout(until.left()):
                return await work
        except BaseException:
            await self._drop()  # tasks that others shielded may still run in it
            raise

    async def _handle(self, event: Any, until: Deadline, handler: lambda_http.Handler) -> Any:
        if not isinstance(event, Mapping):
            raise UnknownEvent("it must be a JSON object")
        if lambda_http.is_http(event):
            require_known_gateway(event)
            return await self._http(event, until, handler)
        if "Records" in event:
            return {"batchItemFailures": await self._batch(sqs_messages(event), until)}
        invocation = wake_up(event)
        with tracing.span(f"invocation {invocation.do}", kind="server"):
            return await self._serve(invocation, until)

    async def _take_up(self, event: Mapping[str, Any], until: Deadline) -> Any:
        from functions import handed_races
        from functions.race_runs import run_asked

        race = handed_races.HandedRace.read(event)
        with tracing.span("invocation race", kind="server"):
            ends = until.sooner(_ends(until))
            return {"race": await handed_races.take_up(race, await self._ready(), ends, run_asked)}

    async def _http(self, event: Mapping[str, Any], until: Deadline, handler: lambda_http.Handler) -> dict[str, Any]:
        try:
            state = await self._ready()
        except SettingsError as error:
            return _refusal(503, "not_configured", str(error))
        if state.service.settings.drain_mode != "enqueue":
            self._tell_of_too_short_a_time()
        try:
            # The handler's own work ends before ours does, so that its answer can say so.
            async with asyncio.timeout(until.left() - _ANSWER_SECONDS / 2) as scope:
                ends = until.sooner(_ends(until))
                with request_span(*lambda_http.method_and_path(event)) as answered:
                    answer = await lambda_http.respond(handler, event, {STATE: state, DEADLINE: ends})
                    answered.status = answer["statusCode"]
                return answer
        except lambda_http.BadHttpEvent as error:
            return _refusal(400, "invalid_request", str(error))
        except TimeoutError:
            if not scope.expired():
                raise
            await self._drop()
            log.error("invocation.out_of_time")
            return _refusal(504, "timeout", "the function's time was over")

    async def _batch(self, records: Sequence[Mapping[str, Any]], until: Deadline) -> Sequence[Mapping[str, str]]:
        """SQS: wake-ups of one kind become one, and each message says for itself whether it is done."""
        failed: list[str] = []
        due: dict[Invocation, list[str]] = {}
        for record in records:
            try:
                invocation = wake_up_in(record["body"])
            except (UnknownEvent, BadInvocation) as error:
                log.error("message.unreadable message=%s reason=%s", record["messageId"], error)
                failed.append(record["messageId"])
            else:
                due.setdefault(Invocation(invocation.do, invocation.session_id), []).append(record["messageId"])
        for invocation, messages in due.items():
            try:
                await self._serve(invocation, until)
            except Exception:  # the edge: the queue offers these messages again
                log.exception("message.bug do=%s", invocation.do)
                failed += messages
        return [{"itemIdentifier": message} for message in failed]

    async def _serve(self, invocation: Invocation, until: Deadline) -> object:
        from shared.reports import to_json

        service = (await self._ready()).service
        self._tell_of_too_short_a_time()
        began = time.time()
        match invocation.do:
            case "tick":
                report = await service.tick(until)
                log_remarks(report)
                self._saw(report.drains, began)
                return orjson.loads(to_json(report))
            case "session_over":
                return orjson.loads(to_json({"reconciled": await service.end_session(invocation.session_id, until)}))
        if invocation.at is not None and invocation.at + _CLOCKS_DIFFER < self._seen_empty:
            return {"skipped": "a later drain found the queue empty"}
        drains = await service.drain(until)
        for each in drains:
            log_remarks(each)
        self._saw(drains, began)
        return orjson.loads(to_json({"drains": drains}))

    def _tell_of_too_short_a_time(self) -> None:
        """Once, and only where this function drains: one that hands wake-ups on needs no more than seconds."""
        if self._left >= _SHORTEST_LEFT or self._warned:
            return
        self._warned = True
        log.error(
            "lambda.timeout_too_short seconds=%.0f needed=%.0f: no work item can ever be claimed in this time; "
            "raise the function's time-out",
            self._left,
            SHORTEST_TIMEOUT,
        )

    def _saw(self, drains: Sequence[DrainReport], began: float) -> None:
        """Remember that drains which began then found every queue empty in the end."""
        from shared.reports import DrainEnd

        if drains and all(drain.end is DrainEnd.EMPTY for drain in drains):
            self._seen_empty = began

    async def _ready(self) -> FunctionsState:
        """Raises SettingsError."""
        if self._state is not None and time.time() - self._ended > _STALE_SECONDS:
            await self._drop()
        if self._state is None:
            self._state = FunctionsState(self._make(self.settings()), background=False)
        return self._state

    async def _drop(self) -> None:
        """End the service and every task of this loop, at once; the next invocation begins with new clients."""
        state, self._state = self._state, None
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.wait(others, timeout=_ANSWER_SECONDS / 2) if others else None
        if state is not None:
            try:
                async with asyncio.timeout(_ANSWER_SECONDS / 2):
                    await state.service.aclose()
            except Exception:
                log.exception("service.not_closed")


def _ends(until: Deadline) -> float:
    """When what an invocation began is over, so that it can still say so."""
    return until.at - _ANSWER_SECONDS


def flush() -> None:
    """Let nothing that was said wait for the next invocation: the process is frozen until then, or indefinitely."""
    for name in ("functions", "shared"):
        for handler in logging.getLogger(name).handlers:
            handler.flush()
    sys.stdout.flush()
    sys.stderr.flush()
    otel.flush()


def _refusal(status: int, kind: str, message: str) -> dict[str, Any]:
    return {
        "statusCode": status,
        "headers": {"content-type": "application/json"},
        "body": orjson.dumps({"error": {"type": kind, "message": message}}).decode(),
    }


_of_this_process: LambdaProcess | None = None


def _process() -> LambdaProcess:
    global _of_this_process
    if _of_this_process is None:
        configure_logging(os.environ)
        _start_telemetry(os.environ)
        _of_this_process = LambdaProcess(os.environ)
    return _of_this_process


def _start_telemetry(environ: Mapping[str, str]) -> None:
    with contextlib.suppress(SettingsError):  # of HANDS_SETTINGS: each invocation says it
        otel.start(environ_of(environ))
