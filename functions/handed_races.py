"""Races that nobody waits for where the runtime freezes after an answer: another invocation of the same function runs
them (RACES_HANDED_TO, docs/races.md#races-that-nobody-waits-for).

The invocation is told which record it is about and nothing else: in a message, where only our own role may send one, or
in a capability of the function's own, good for this record and for minutes. What is asked stands in the record, out of
any agent's reach, and the first invocation that takes the record runs the race: one that is delivered twice, or for a
record that is over, does nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import orjson

from functions.invocations import BadInvocation, NotEnqueued
from functions.race_invocations import invoke
from functions.race_requests import errors_as_answers
from functions.recorded_races import ASK_AGAIN_SECONDS, Asked, unclear
from functions.requests import HttpError
from shared import names
from shared.capability import RUN_RACE, Capability, issue, signing_keys
from shared.races.cells import CellGone, CellUnclear
from shared.races.records import DEAD_MAN_SECONDS, OwnRecord, SeenRecord
from shared.races.request import RaceRequest
from shared.races.status import RaceStatus

if TYPE_CHECKING:
    from functions.recorded_races import Running
    from functions.state import FunctionsState
    from shared.deadline import Deadline

log = logging.getLogger(__name__)

RACE: Final = "race"
_FIELDS: Final = ("do", "environment_id", "race_id", "by")


@dataclass(frozen=True, slots=True)
class HandedRace:
    """The message: a race, and who wrote its record (`by`), so that a later record of the same id is not meant."""

    environment_id: str
    race_id: str
    by: str

    @classmethod
    def read(cls, message: Mapping[str, Any]) -> HandedRace:
        """Raises BadInvocation."""
        if sorted(message) != sorted(_FIELDS) or not all(isinstance(message[name], str) for name in _FIELDS):
            raise BadInvocation(f"a race that is handed over has {', '.join(_FIELDS)}, each a text")
        if message["do"] != RACE or not names.is_race_id(message["race_id"]):
            raise BadInvocation("race_id: must be the id of a race")
        return cls(message["environment_id"], message["race_id"], message["by"])

    @classmethod
    def of(cls, shown: Capability) -> HandedRace:
        return cls(shown.environment_id, shown.session_id, shown.work_id)

    def token(self, key: bytes) -> str:
        """What shows that the call is our own, for as long as the record may be taken."""
        ends = int(time.time() + DEAD_MAN_SECONDS)
        return issue(Capability(RUN_RACE, self.environment_id, self.race_id, self.by, 0, 0.0, ends), key)

    def message(self) -> bytes:
        fields = {"do": RACE, "environment_id": self.environment_id, "race_id": self.race_id, "by": self.by}
        return orjson.dumps(fields)


async def handed(asked: Asked) -> Running | SeenRecord | RaceStatus:
    """Hands the race over, or says how the one of this id stands. Raises HttpError: what refuses a race before it
    begins (400, 404), 422, and 503 where it could not be handed over; its key is free then. SettingsError where there
    is nothing to sign the call with, and SecretUnavailable."""
    limits, key = asked.races.limits, b""
    if limits.handed_at:
        key = (await signing_keys(*asked.races.signing_secrets))[0]
    stands = await asked.races.claim(asked.environment, asked.race_id, asked.owner, asked.digest)
    if not isinstance(stands, OwnRecord):
        return stands
    try:
        with errors_as_answers():
            await asked.races.look_ahead(asked.race)
        await stands.hand_over(_request(asked.race, asked.caller))
    except HttpError:
        await stands.released()
        raise
    except (CellGone, CellUnclear) as error:
        await stands.released()
        raise _not_handed_over(asked, error) from None
    race, mine = HandedRace(asked.environment.id, asked.race_id, stands.head.by), stands.head.by

    async def taken() -> bool:
        seen = await asked.races.look(asked.environment, asked.race_id)
        return seen is None or seen.head.by != mine

    try:
        token = race.token(key) if key else ""
        await invoke(limits, race.message(), token, taken, asked.races.in_background)
    except NotEnqueued as error:
        # It may be invoked all the same. Whoever takes the record first has the race, so it is taken back.
        try:
            back = await asked.races.records(asked.environment).take(asked.race_id, stands.head.by)
        except CellUnclear:
            raise _not_handed_over(asked, error) from None
        if back is not None:
            await back[0].released()
            raise _not_handed_over(asked, error) from None
    seen = await asked.races.look(asked.environment, asked.race_id)
    if seen is None:
        raise unclear(CellUnclear("the record is not there any more"))
    return seen


def _not_handed_over(asked: Asked, error: Exception) -> HttpError:
    log.error("race.not_handed_over race=%s reason=%s", asked.race_id, error)
    again = {"retry-after": str(ASK_AGAIN_SECONDS)}
    return HttpError(503, "try_again", "the race could not be handed over", headers=again)


async def take_up_here(
    race: HandedRace, state: FunctionsState, deadline: Deadline | None, run: Callable[..., Any]
) -> str:
    """As `take_up`, for who was called over HTTP. Raises HttpError 403 and 503."""
    try:
        return await take_up(race, state, deadline, run)
    except BadInvocation as error:
        raise HttpError(403, "forbidden", str(error)) from None
    except CellUnclear as error:
        raise unclear(error) from None


async def take_up(race: HandedRace, state: FunctionsState, deadline: Deadline | None, run: Callable[..., Any]) -> str:
    """Runs the race (with `run_asked`) where it is this invocation's to run, to the end that its record tells; what was
    done. Raises BadInvocation, and CellUnclear where that is not known: the race is lost then."""
    environment = state.settings.environments.get(race.environment_id)
    if environment is None:
        raise BadInvocation("environment_id: this environment is not served here")
    await state.service.ask_the_time()
    taken = await state.recorded.records(environment).take(race.race_id, race.by)
    if taken is None:
        log.warning("race.not_taken_up race=%s: it is over, or another invocation runs it", race.race_id)
        return "not taken up"
    record, request = taken
    asked, caller = _read(request)
    await state.recorded.take_up(record, partial(run, asked, state, caller, deadline))
    return record.head.state


def _request(race: RaceRequest, caller: Capability | None) -> bytes:
    said = race.model_dump_json(exclude_unset=True).encode()
    return orjson.dumps({"race": orjson.Fragment(said), "caller": None if caller is None else caller._asdict()})


def _read(request: bytes) -> tuple[RaceRequest, Capability | None]:
    found = orjson.loads(request)
    race = RaceRequest.model_validate_json(orjson.dumps(found["race"]))
    return race, None if found["caller"] is None else Capability(**found["caller"])
