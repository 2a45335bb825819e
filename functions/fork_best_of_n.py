"""Best of N: run N candidates from one known-good state, each in a sandbox of its own, and say which is best.

JSON in, one report out; the models are in shared/races/request.py. With `Accept: application/x-ndjson` the answer is a
line for each thing that happens (shared/races/events.py), the report last. Models and core are imported on the first
call: pydantic would otherwise cost every cold start of the other functions a tenth of a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from functions import agent_auth
from functions.auth import caller_of
from functions.cloud_run_iam import is_vouched_for
from functions.requests import HttpError, configuration_error, not_configured, require_method
from functions.state import FunctionsState, deadline_of, state_of
from functions.streaming import MEDIA_TYPE, Lines, LineStream
from shared.capability import FORK, Capability
from shared.deadline import Deadline
from shared.errors import SecretUnavailable, SettingsError

if TYPE_CHECKING:
    from shared.races.errors import RaceError
    from shared.races.events import Event, OnEvent
    from shared.races.report import RaceReport
    from shared.races.request import RaceRequest
    from shared.races.resources import RaceTimeouts

log = logging.getLogger(__name__)

# An agent's race must be over, its promotion and its ends included, while the worker still waits for the answer: 145 s
# (image/session/worker/fork_tool.py), less what the way takes. Seconds.
_AGENT_WAITS: Final = 140.0
_AGENT_REAPS: Final = 6.0
_AGENT_ENDS: Final = 12.0
_AGENT_LATE_ENDS: Final = 3.0  # each that comes later still is given a second
_AGENT_PROMOTES: Final = 12.0
_AGENT_APPLIES: Final = 8.0  # a promotion whose time is up while it changes files goes on to its end

_T = TypeVar("_T")


async def fork_best_of_n(request: Request) -> Response:
    """POST with the operator's token, or an agent's. 200 report, also when no branch won; 400 names the field; 401;
    403 what an agent may not ask for; 404 no such source; 405; 406; 409 source cannot be checkpointed; 413; 422
    set-up failed; 429 an agent's race while another of its work item runs here; 502; 503. A stream that has begun (200)
    ends with the report or with one of these as its error."""
    began = time.monotonic()
    try:
        require_method(request, "POST")
        state = state_of(request)
        caller = (
            None
            if await is_vouched_for(request, state.settings, state.ingress_probe)
            else await caller_of(request, state.settings, FORK)
        )
        streams = _wants_stream(request)
        deadline = deadline_of(request)
        body = await state.bodies.read(request, proven=True)
        if caller is not None:
            body = await agent_auth.admitted(body, caller, state)
        race = _read(body, caller)
        if caller is not None:
            race = in_time(race, time.monotonic() - began)
        if streams:
            return LineStream(lambda lines: _stream(race, state, caller, deadline, lines))
        return await _unless_hung_up(request, _answer(race, state, caller, deadline))
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)


def _read(body: bytes, caller: Capability | None) -> RaceRequest:
    from functions.requests import read_model
    from shared.races.request import RaceRequest

    race = read_model(RaceRequest, body)
    return race if caller is None else agent_auth.narrowed(race, caller)


def in_time(race: RaceRequest, spent: float) -> RaceRequest:
    """An agent's race with a deadline that leaves time for what comes after it, `spent` seconds after its call."""
    longest = _AGENT_WAITS - spent - _AGENT_ENDS - _AGENT_LATE_ENDS
    if race.promote != "none":
        longest -= _AGENT_PROMOTES + _AGENT_APPLIES
    return race.model_copy(update={"deadline": max(1.0, min(race.deadline or longest, longest))})


def agent_timeouts(boot: float) -> RaceTimeouts:
    """How patient an agent's race is: what ends late is a leftover in its report, and the reconciler's."""
    from shared.races.resources import RaceTimeouts

    return RaceTimeouts(boot=boot, promote=_AGENT_PROMOTES, reap=_AGENT_REAPS, ends=_AGENT_ENDS)


@contextmanager
def _one_race(race: RaceRequest, state: FunctionsState, caller: Capability | None) -> Iterator[None]:
    """Raises HttpError 429 where a race of the same work item runs in this process: an agent that can read its token
    (docs/architecture.md#i6) must not start more than its tool would. A dry run makes nothing and does not count."""
    if caller is None or race.dry_run:
        yield
        return
    whose = (caller.session_id, caller.work_id)
    if whose in state.races:
        raise HttpError(429, "race_running", "a race of this session is running already: wait for its report")
    state.races.add(whose)
    try:
        yield
    finally:
        state.races.discard(whose)


async def _answer(
    race: RaceRequest, state: FunctionsState, caller: Capability | None, deadline: Deadline | None
) -> Response:
    return Response((await _run(race, state, caller, deadline)).model_dump_json(), media_type="application/json")


async def _stream(
    race: RaceRequest, state: FunctionsState, caller: Capability | None, deadline: Deadline | None, lines: Lines
) -> None:
    """Says the race's events. Raises HttpError as long as there was none."""
    from shared.races import events

    def tell(event: Event) -> None:
        lines.say(events.to_line(event), spare=isinstance(event, events.OutputLine))

    try:
        await _run(race, state, caller, deadline, tell)
    except HttpError as error:
        if not lines.said:
            raise
        said = events.ErrorBody(type=error.kind, message=error.message, field=error.field)
        tell(events.Failed(error=said))
    except Exception:
        if lines.said:
            tell(events.Failed(error=events.ErrorBody(type="internal", message="a fault of this function")))
        raise


async def _run(
    race: RaceRequest,
    state: FunctionsState,
    caller: Capability | None,
    deadline: Deadline | None,
    on_event: OnEvent | None = None,
) -> RaceReport:
    from shared.races.errors import RaceError

    try:
        timeouts = None if caller is None else agent_timeouts(state.settings.times.bind)
        with _one_race(race, state, caller):
            report = await state.service.race(race, deadline, on_event=on_event, timeouts=timeouts)
    except RaceError as error:
        raise _refusal(error) from None
    except (SettingsError, SecretUnavailable) as error:
        raise configuration_error(error) from None
    log.info(
        "race.ended race=%s winner=%s branches=%d leftovers=%d seconds=%s",
        report.race_id,
        report.winner,
        len(report.branches),
        len(report.leftovers),
        report.seconds,
    )
    return report


def _refusal(error: RaceError) -> HttpError:
    from shared.races import errors

    match error:
        case errors.BadRace():
            return HttpError(400, "invalid_request", str(error), field=error.field)
        case errors.SourceAbsent():
            return HttpError(404, "source_not_found", str(error))
        case errors.SourceNotReady():
            return HttpError(409, "source_not_ready", str(error))
        case errors.SetupFailed():
            return HttpError(422, "setup_failed", str(error))
        case _:
            return HttpError(502, "service_unclear", str(error))


def _wants_stream(request: Request) -> bool:
    """Whether the caller would rather have the events than the report alone. Raises HttpError 406 where neither will
    do."""
    qualities: dict[str, float] = {}
    for part in request.headers.get("accept", "*/*").split(","):
        kind, *parameters = (piece.strip().lower() for piece in part.split(";"))
        quality = next((text[2:] for text in parameters if text.startswith("q=")), "1")
        try:
            qualities[kind] = float(quality)
        except ValueError:
            qualities[kind] = 0.0
    json = max((qualities.get(kind, 0.0) for kind in ("application/json", "application/*", "*/*")), default=0.0)
    stream = qualities.get(MEDIA_TYPE, 0.0)
    if json <= 0 and stream <= 0:
        raise HttpError(406, "not_available", f"the answer is application/json or {MEDIA_TYPE}")
    return stream > 0 and stream >= json


async def _unless_hung_up(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """The result of `work`, which is cancelled, and has ended what it began, when nobody waits for it any more."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_cancel_on_hang_up(request, task))
    try:
        return await task  # a cancellation of this handler reaches the task, which ends before it goes on from here
    except asyncio.CancelledError:
        if task.cancelled() and watcher.done():
            raise HttpError(499, "hung_up", "the caller went away; the race was ended") from None
        raise
    finally:
        watcher.cancel()
        await asyncio.wait({watcher})


async def _cancel_on_hang_up(request: Request, task: asyncio.Task[_T]) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
    task.cancel()
