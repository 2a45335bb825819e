"""Best of N: run N candidates from one known-good state, each in a sandbox of its own, and say which is best.

JSON in, one report out; the models are in shared/races/request.py. With `Accept: application/x-ndjson` the answer is a
line for each thing that happens (shared/races/events.py), the report last. Here is who may call what. What a body may
hold and how errors are answered is in functions/race_requests.py, how a race runs in functions/race_runs.py, what an
agent may ask in shared/races/agent_policy.py. Models and core are imported on the first call: pydantic would cost every
cold start of the other functions a tenth of a second.
"""

from __future__ import annotations

import asyncio
import time

from starlette.requests import Request
from starlette.responses import Response

from functions import agent_auth
from functions.auth import caller_of
from functions.cloud_run_iam import is_vouched_for
from functions.requests import HttpError, json_response, not_configured, require_method, require_object
from functions.state import FunctionsState, deadline_of, state_of
from functions.streaming import wants_stream
from shared.capability import FORK, RUN_RACE, Capability
from shared.deadline import Deadline
from shared.errors import SecretUnavailable, SettingsError


async def fork_best_of_n(request: Request) -> Response:
    """POST with the operator's token, an agent's, or that of a race that was handed over (200 what was done).

    200 report, also when no branch won; 202 the race runs on; 400 names the field; 401; 403 what an agent may not
    ask for; 404 no such source; 405; 406; 409 source cannot be checkpointed, or the race of this key is lost; 413;
    422 set-up failed, or the key was used for another request; 429 too many calls or races, or a day's budget is
    spent, with a retry-after; 501 no race can go on behind an answer here; 502; 503. A stream that has begun (200)
    ends with the report or with one of these as its error.

    GET at a race's location: 200 how it fares, 401, 403, 404, 429, 503. DELETE there ends it: 202 it ends now, 200 it
    is over, the rest as for GET."""
    began = time.monotonic()
    try:
        race_id = _race_id(request)
        if not race_id:
            require_method(request, "POST")
        state, deadline = state_of(request), deadline_of(request)
        vouched = await is_vouched_for(request, state.settings, state.ingress_probe)
        caller = None if vouched else await caller_of(request, state.settings, FORK, RUN_RACE)
        state.count_call(caller)
        if caller is not None and caller.function == RUN_RACE:
            require_method(request, "POST")
            return await _run_handed(caller, state, deadline)
        if race_id:
            if caller is not None:
                await agent_auth.require_admitted(caller, state)
            if request.method == "DELETE":
                return await state.recorded.cancel(race_id, caller)
            return await state.recorded.status(race_id, caller)
        streams = wants_stream(request)
        body = await state.bodies.read(request, proven=True)
        if caller is not None:
            await agent_auth.require_admitted(caller, state)
        require_object(body)
        from functions.race_requests import read_race

        race = await asyncio.to_thread(read_race, body, caller, time.monotonic() - began, deadline)
        from functions.race_runs import answered

        return await answered(request, body, race, state, caller, deadline, streams=streams)
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)


async def _run_handed(caller: Capability, state: FunctionsState, deadline: Deadline | None) -> Response:
    """A race that another invocation has answered for. That one may have hung up by now: it changes nothing."""
    from functions.handed_races import HandedRace, take_up_here
    from functions.race_runs import run_asked

    return json_response({"race": await take_up_here(HandedRace.of(caller), state, deadline, run_asked)})


def _race_id(request: Request) -> str:
    """The last part of what is got or deleted, where that is not the function's own name: a race's location."""
    if request.method not in ("GET", "DELETE"):
        return ""
    last: str = request.scope["path"].rstrip("/").rpartition("/")[2]
    return "" if last in ("", FORK) else last
