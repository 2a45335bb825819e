"""Best of N: run N candidates from one known-good state, each in a sandbox of its own, and say which is best.

JSON in, one report out; the models are in shared/races/models.py. They and the core are imported on the first call:
pydantic would otherwise cost every cold start of the other functions a tenth of a second.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import Response

from functions import agent_calls
from functions.auth import caller_of
from functions.bundle import Bundle, bundle_of
from functions.http import HttpError, not_configured, read_body, require_method
from shared.capability import FORK, Capability
from shared.errors import SecretUnavailable, SettingsError

log = logging.getLogger(__name__)

_T = TypeVar("_T")


async def fork_best_of_n(request: Request) -> Response:
    """POST with the operator's token, or an agent's. 200 report, also when no branch won; 400 names the field; 401;
    403 what an agent may not ask for; 404 no such source; 405; 406 for streamed progress; 409 source cannot be
    checkpointed; 413; 422 set-up failed; 502; 503."""
    try:
        require_method(request, "POST")
        bundle = bundle_of(request)
        caller = caller_of(request, bundle.settings, FORK)
        _require_json(request)
        body = await read_body(request)
        if caller is not None:
            body = await agent_calls.admitted(body, caller, bundle)
        return await _unless_hung_up(request, _race(body, bundle, caller))
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)


async def _race(body: bytes, bundle: Bundle, caller: Capability | None) -> Response:
    from functions.bodies import read_model
    from shared.races import errors
    from shared.races.models import RaceRequest
    from shared.races.race import environment_for, run_race

    race = read_model(RaceRequest, body)
    if caller is not None:
        race = agent_calls.narrowed(race, caller)
    try:
        environment = environment_for(race, bundle.settings)
        report = await run_race(race, host=bundle.host, settings=bundle.settings, environment=environment)
    except errors.BadRace as error:
        raise HttpError(400, "invalid_request", str(error), field=error.field) from None
    except errors.SourceAbsent as error:
        raise HttpError(404, "source_not_found", str(error)) from None
    except errors.SourceNotReady as error:
        raise HttpError(409, "source_not_ready", str(error)) from None
    except errors.SetupFailed as error:
        raise HttpError(422, "setup_failed", str(error)) from None
    except errors.SourceUnknown as error:
        raise HttpError(502, "service_unclear", str(error)) from None
    log.info(
        "race.ended race=%s winner=%s branches=%d leftovers=%d seconds=%s",
        report.race_id,
        report.winner,
        len(report.branches),
        len(report.leftovers),
        report.seconds,
    )
    return Response(report.model_dump_json(), media_type="application/json")


def _require_json(request: Request) -> None:
    accepts = request.headers.get("accept", "*/*")
    if not any(kind in accepts for kind in ("*/*", "application/*", "application/json")):
        raise HttpError(406, "not_available", "the report is application/json; streamed progress is not available yet")


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
