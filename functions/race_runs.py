"""Runs the race of a caller who was let in, and answers as its call asked: a report, lines, or a record.

A race with an `Idempotency-Key` or `Prefer: respond-async` is kept on the service (functions/recorded_races.py). An
agent's race is booked on its session's ledger (functions/agent_races.py). `on_finish` is told of the end
(functions/race_webhook.py). Imported for the first race.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from starlette.requests import Request
from starlette.responses import Response

from functions import race_admission
from functions.race_requests import errors_as_answers, say_events
from functions.state import FunctionsState
from functions.streaming import LineStream, unless_hung_up
from shared.capability import Capability
from shared.deadline import Deadline

if TYPE_CHECKING:
    from shared.races.events import OnEvent
    from shared.races.report import RaceReport
    from shared.races.request import RaceRequest


async def answered(
    request: Request,
    body: bytes,
    race: RaceRequest,
    state: FunctionsState,
    caller: Capability | None,
    deadline: Deadline | None,
    *,
    streams: bool,
) -> Response:
    """The race that `body` asked for, run up to its answer. Raises HttpError."""
    if race.on_finish is not None:
        from functions.race_webhook import require_allowed

        await require_allowed(race, state.settings.races)
    race_admission.log_asked(race, caller)
    run = partial(run_asked, race, state, caller, deadline)
    if _has_wishes(request) and not race.dry_run:
        from functions.race_wishes import digest_of, wishes_of

        wishes = wishes_of(request)
        if wishes.key is not None or wishes.respond_async:
            from functions.recorded_races import Asked

            digest = await asyncio.to_thread(digest_of, body)
            asked = Asked.of(state.recorded, state.settings, wishes, race, caller, digest, run, deadline)
            if state.recorded.lives_on:
                return await asked.answer(request, streams=streams)
            from functions.handed_races import handed

            return await asked.answer(request, streams=streams, hand_over=handed)
    if streams:
        return LineStream(partial(say_events, run))
    report = await unless_hung_up(request, run())
    return Response(report.model_dump_json(), media_type="application/json")


def _has_wishes(request: Request) -> bool:
    return "idempotency-key" in request.headers or "prefer" in request.headers


async def run_asked(
    race: RaceRequest,
    state: FunctionsState,
    caller: Capability | None,
    deadline: Deadline | None,
    race_id: str | None = None,
    on_event: OnEvent | None = None,
    cancelled: asyncio.Event | None = None,
) -> RaceReport:
    """The race, told to `on_finish` where it has one. Raises HttpError."""
    if race.on_finish is None or race.dry_run:
        return await _raced(race, state, caller, deadline, race_id, cancelled, on_event)
    from functions.race_webhook import announced

    run = partial(_raced, race, state, caller, deadline, race_id, cancelled)

    async def kept() -> None:
        if race_id is not None:
            await state.recorded.kept(race_id)

    return await announced(run, race.on_finish, state.service, on_event, lives_on=state.background, kept=kept)


async def _raced(
    race: RaceRequest,
    state: FunctionsState,
    caller: Capability | None,
    deadline: Deadline | None,
    race_id: str | None,
    cancelled: asyncio.Event | None,
    on_event: OnEvent | None,
) -> RaceReport:
    from shared.races import agent_policy

    with errors_as_answers(), state.races.admitted(race, caller):
        race_with = partial(
            state.service.race, deadline=deadline, on_event=on_event, race_id=race_id, cancelled=cancelled
        )
        if caller is None:
            report = await race_with(race)
        else:
            from functions.agent_races import booked

            async with booked(race, caller, state.ledger, state.service) as one:
                timeouts = agent_policy.timeouts(state.settings.times.bind)
                report = one.report = await race_with(one.race, timeouts=timeouts, owner=caller.session_id)
    race_admission.log_ended(report)
    return report
