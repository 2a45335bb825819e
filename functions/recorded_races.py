"""Races that are kept on the service: asked for with an `Idempotency-Key`, or with `Prefer: respond-async`
(docs/races.md#races-that-nobody-waits-for). What is kept is shared/races/records.py's; here are its callers.

Where the process lives on, such a race does not hang on its caller: one that hangs up has only stopped to wait. Where
the runtime freezes after an answer the race ends with its call, as any other does. Imported for the first such call.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from functions.race_requests import errors_as_answers, say_events
from functions.race_wishes import HeaderWishes
from functions.requests import HttpError
from functions.streaming import LineStream, unless_hung_up
from shared import names
from shared.backoff import pause_before
from shared.capability import Capability
from shared.deadline import Deadline
from shared.environment_settings import Environment
from shared.races import events
from shared.races.cells import CellGone, CellUnclear
from shared.races.events import ErrorBody, OnEvent
from shared.races.left_over import end_left_over
from shared.races.limits import environment_for
from shared.races.records import OwnRecord, RaceRecords, SeenRecord
from shared.races.report import RaceReport
from shared.races.request import RaceRequest
from shared.races.status import RaceStatus
from shared.secret import Secret
from shared.service import Service
from shared.settings import RaceLimits, Settings
from shared.tasks import drop, shielded

log = logging.getLogger(__name__)

ASK_AGAIN_SECONDS: Final = 2
MOST_REMEMBERED: Final = 16 * 1024 * 1024  # bytes of ended races' states, in this process
_FIRST_LOOK, _LONGEST_PAUSE = 0.5, 3.0  # seconds between looks at a race that another copy runs
_NOT_HERE: Final = (
    "here the runtime stops what runs once it has answered, and RACES_HANDED_TO does not say who has such a race run: "
    "ask with an Idempotency-Key instead of Prefer: respond-async, or have the operator set it (docs/races.md)"
)

_STOPPED: Final = ErrorBody(
    type="stopped", message="the race was ended before its report: its caller hung up, or its server stopped"
)
_FAULT: Final = ErrorBody(type="internal", message="a fault of this function")
RunRace = Callable[[str, OnEvent, asyncio.Event], Coroutine[Any, Any, RaceReport]]
"""Runs the race under this id, until the event asks for its end. Raises HttpError."""


@dataclass(slots=True)
class Running:
    task: asyncio.Task[RaceReport]
    record: OwnRecord
    begun: asyncio.Event
    listener: OnEvent | None


@dataclass(frozen=True, slots=True)
class _Ended:
    """`status` is a RaceStatus as JSON; `until` in seconds since 1970."""

    owner: str
    digest: str
    status: bytes
    until: float


class RecordedRaces:
    """Those that this process runs or knows. `lives_on`: it goes on after an answer."""

    def __init__(self, service: Service, *, lives_on: bool) -> None:
        self.lives_on = lives_on
        self._service = service
        self._running: dict[str, Running] = {}
        self._ended: OrderedDict[str, _Ended] = OrderedDict()
        self._ended_bytes = 0
        self._tidied: deque[str] = deque(maxlen=1_000)  # lost races: a look at all sandboxes is not for each repeat

    async def status(self, race_id: str, caller: Capability | None) -> Response:
        """What a GET is answered. Raises HttpError 404 for what this caller may not know of, and 503."""
        if (known := self._known_here(race_id, caller)) is not None:
            return _told(known)
        environment, seen = await self._found(race_id, caller)
        return _told(await self.status_of(environment, seen))

    async def cancel(self, race_id: str, caller: Capability | None) -> Response:
        """What a DELETE is answered: 202 for a race that ends now, 200 for one that is over or lost, and what that has
        left is ended. Raises HttpError 404 for what this caller may not know of, and 503."""
        if (known := self._known_here(race_id, caller)) is not None:
            if known.state == "running":
                self._running[race_id].record.cancelled.set()
            return _told(known, ending=True)
        environment, seen = await self._found(race_id, caller)
        try:
            seen = await self.records(environment).cancel(seen)
            if seen.state(self.now()) == "lost" and race_id not in self._tidied:
                left = await end_left_over(self._service.host, self._service.settings.prefix, environment, race_id)
                log.info("race.left_over_ended race=%s sandboxes=%d", race_id, left)
                self._tidied.append(race_id)
        except CellGone:
            raise _not_found() from None
        except CellUnclear as error:
            raise unclear(error) from None
        return _told(await self.status_of(environment, seen), ending=True)

    def _known_here(self, race_id: str, caller: Capability | None) -> RaceStatus | None:
        """The race that this process runs or has seen the end of. Raises HttpError 404 for another caller's."""
        if (running := self._running.get(race_id)) is not None:
            owner, status = running.record.head.owner, running.record.status()
        elif (ended := self._remembered(race_id)) is not None:
            owner, status = ended.owner, RaceStatus.model_validate_json(ended.status)
        else:
            return None
        if caller is not None and caller.session_id != owner:
            raise _not_found()
        return status

    async def _found(self, race_id: str, caller: Capability | None) -> tuple[Environment, SeenRecord]:
        """The record on the service. Raises HttpError 404 and 503."""
        known = self._service.settings.environments
        if names.is_race_id(race_id):
            for environment in known.values() if caller is None else [known[caller.environment_id]]:
                found = await self.look(environment, race_id)
                if found is not None and (caller is None or caller.session_id == found.head.owner):
                    return environment, found
        raise _not_found()

    async def kept(self, race_id: str) -> None:
        """Returns when what became of a race that runs here stands in its record."""
        if (running := self._running.get(race_id)) is not None:
            await asyncio.wait({running.task})

    async def aclose(self) -> None:
        """Ends the races that run behind their answers; their records say so."""
        for each in list(self._running.values()):
            await drop(each.task)

    async def start(
        self, environment: Environment, race_id: str, owner: str, digest: str, run: RunRace, on_event: OnEvent
    ) -> Running | SeenRecord | RaceStatus:
        """The race of this id, begun here where there is none. Raises HttpError 422 for one of another body, 503."""
        stands = await self.claim(environment, race_id, owner, digest)
        return self._begin(stands, run, on_event) if isinstance(stands, OwnRecord) else stands

    async def claim(
        self, environment: Environment, race_id: str, owner: str, digest: str
    ) -> OwnRecord | Running | SeenRecord | RaceStatus:
        """The record of this id for this caller to run the race, or how the race stands. Raises HttpError 422, 503."""
        if (running := self._running.get(race_id)) is not None:
            _same(digest, running.record.head.body)
            return running
        if (ended := self._remembered(race_id)) is not None:
            _same(digest, ended.digest)
            return RaceStatus.model_validate_json(ended.status)
        await self._service.ask_the_time()
        try:
            claimed = await self.records(environment).claim(race_id, owner, digest)
        except CellUnclear as error:
            raise unclear(error) from None
        if isinstance(claimed, OwnRecord):
            return claimed
        _same(digest, claimed.head.body)
        return self._running.get(race_id) or claimed  # another call here may have been quicker

    async def take_up(self, record: OwnRecord, run: RunRace) -> None:
        """Runs a race that another process has answered for; its record has its end, whatever that is."""
        running = self._begin(record, run, _nobody)
        running.begun.set()  # its key is taken: what is refused now is this race's end
        try:
            await asyncio.wait({running.task})
        except asyncio.CancelledError:
            await drop(running.task)
            raise

    def now(self) -> float:
        """The service's time of day, in seconds since 1970."""
        return self._service.now()

    @property
    def limits(self) -> RaceLimits:
        return self._service.settings.races

    @property
    def signing_secrets(self) -> tuple[Secret | None, Secret | None]:
        """What the functions' own capabilities are signed with (shared/capability.py)."""
        return self._service.settings.capability_key, self._service.settings.functions_token

    def in_background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        return self._service.in_background(work)

    async def look_ahead(self, race: RaceRequest) -> None:
        """Raises what a race would before anything is begun."""
        await self._service.race(race.model_copy(update={"dry_run": True}))

    async def look(self, environment: Environment, race_id: str) -> SeenRecord | None:
        """Raises HttpError 503."""
        await self._service.ask_the_time()
        try:
            return await self.records(environment).look(race_id)
        except CellUnclear as error:
            raise unclear(error) from None

    async def status_of(self, environment: Environment, seen: SeenRecord) -> RaceStatus:
        """Raises HttpError 503."""
        try:
            status = await self.records(environment).status(seen)
        except CellUnclear as error:
            raise unclear(error) from None
        if status.state in ("finished", "cancelled", "failed"):
            self._remember(seen.head.owner, seen.head.body, status)
        return status

    def _begin(self, record: OwnRecord, run: RunRace, on_event: OnEvent) -> Running:
        begun = asyncio.Event()

        def tell(event: events.Event) -> None:
            begun.set()
            if running.listener is not None:
                running.listener(event)

        race_id = record.head.race_id
        running = Running(self._service.in_background(self._run(record, run, tell, begun)), record, begun, on_event)
        self._running[race_id] = running

        def over(task: asyncio.Task[RaceReport]) -> None:
            del self._running[race_id]
            begun.set()
            if not task.cancelled():
                task.exception()  # whoever waits raises it; where nobody does, the record has it

        running.task.add_done_callback(over)
        return running

    async def _run(self, record: OwnRecord, run: RunRace, tell: OnEvent, begun: asyncio.Event) -> RaceReport:
        beating = asyncio.create_task(record.keep_alive())
        try:
            report = await run(record.head.race_id, tell, record.cancelled)
        except HttpError as error:
            await drop(beating)
            said = ErrorBody(type=error.kind, message=error.message, field=error.field)
            await self._no_report(record, begun, error.status, said)
            raise
        except asyncio.CancelledError:
            await drop(beating)
            await shielded(self._no_report(record, begun, 503, _STOPPED))
            raise
        except Exception:
            await drop(beating)
            await self._no_report(record, begun, 500, _FAULT)
            raise
        await drop(beating)
        try:
            await record.finished(report)
        except (CellGone, CellUnclear) as error:
            log.error("race.report_not_kept race=%s reason=%s", report.race_id, error)
        self._remember(record.head.owner, record.head.body, record.status(report))
        return report

    async def _no_report(self, record: OwnRecord, begun: asyncio.Event, status: int, error: ErrorBody) -> None:
        """What was refused before anything was begun leaves its key free."""
        try:
            await (record.failed(status, error) if begun.is_set() else record.released())
        except (CellGone, CellUnclear) as unclear:
            log.error("race.end_not_kept race=%s reason=%s", record.head.race_id, unclear)

    def records(self, environment: Environment) -> RaceRecords:
        return RaceRecords(self._service.host, self._service.settings, environment, now=self._service.now)

    def _remembered(self, race_id: str) -> _Ended | None:
        ended = self._ended.get(race_id)
        return None if ended is None or ended.until < time.time() else ended

    def _remember(self, owner: str, digest: str, status: RaceStatus) -> None:
        until = time.time() + self._service.settings.races.record_seconds
        if status.expires_at is not None:
            until = status.expires_at.timestamp()
        if (before := self._ended.pop(status.race_id, None)) is not None:
            self._ended_bytes -= len(before.status)
        text = status.model_dump_json().encode()
        self._ended[status.race_id] = _Ended(owner, digest, text, until)
        self._ended_bytes += len(text)
        while self._ended_bytes > MOST_REMEMBERED:
            _, oldest = self._ended.popitem(last=False)
            self._ended_bytes -= len(oldest.status)


HandOver = Callable[["Asked"], Awaitable[Running | SeenRecord | RaceStatus]]


@dataclass(frozen=True, slots=True)
class Asked:
    """One call that wishes for a race with a record, before its answer."""

    races: RecordedRaces
    wishes: HeaderWishes
    environment: Environment
    race_id: str
    owner: str
    digest: str
    race: RaceRequest
    caller: Capability | None
    run: RunRace
    deadline: Deadline | None

    @classmethod
    def of(
        cls,
        races: RecordedRaces,
        settings: Settings,
        wishes: HeaderWishes,
        race: RaceRequest,
        caller: Capability | None,
        digest: str,
        run: RunRace,
        deadline: Deadline | None,
    ) -> Asked:
        """Raises HttpError 400 and 501."""
        if wishes.respond_async and not races.lives_on and not settings.races.handed_to:
            raise HttpError(501, "not_available_here", _NOT_HERE)
        with errors_as_answers():
            environment = environment_for(race, settings)
        owner = caller.session_id if caller else ""
        whose = f"agent {owner}" if caller else "operator"
        key = wishes.key
        race_id = names.new_race_id() if key is None else names.derived_race_id(environment.id, whose, key)
        return cls(races, wishes, environment, race_id, owner, digest, race, caller, run, deadline)

    async def answer(self, request: Request, *, streams: bool, hand_over: HandOver | None = None) -> Response:
        """`hand_over`: how a race begins that runs on behind the answer, where that is not in this process. Raises
        HttpError."""
        if self.wishes.respond_async:
            report = await self._report_at_once(hand_over)
            if report is None:
                return self._accepted(request)
        elif streams:
            return LineStream(partial(say_events, self._report))
        else:
            report = await unless_hung_up(request, self._report(_nobody))
        return Response(report.model_dump_json(), media_type="application/json")

    def _accepted(self, request: Request) -> Response:
        last = request.scope["path"].rpartition("/")[2]
        headers = {
            # Relative: whatever a gateway has put before the path is not known here.
            "location": f"{last}/{self.race_id}" if last else self.race_id,
            "preference-applied": "respond-async",
            "retry-after": str(ASK_AGAIN_SECONDS),
            "cache-control": "no-store",
        }
        status = RaceStatus(race_id=self.race_id, state="running")
        return Response(status.model_dump_json(), 202, headers, "application/json")

    async def _report(self, on_event: OnEvent) -> RaceReport:
        """The report, however long it takes. `on_event` is told all of a race that begins here, else its end."""
        while True:
            stands = await self._start(on_event)
            if isinstance(stands, Running):
                return await self._joined(stands, on_event)
            if isinstance(stands, SeenRecord):
                seen = await self._waited_for(stands, self.deadline)
                if seen is None:
                    continue  # it was refused before it began
                if seen.state(self.races.now()) == "running":
                    text = "the race of this key still runs: ask again"
                    raise HttpError(503, "race_running", text, headers={"retry-after": str(ASK_AGAIN_SECONDS)})
                stands = await self.races.status_of(self.environment, seen)
            report = _report_in(stands)
            on_event(events.Reported(report=report))
            return report

    async def _waited_for(self, seen: SeenRecord, until: Deadline | None) -> SeenRecord | None:
        """The record of a race that another process runs, once it is over or time is up; None where it is gone."""
        looks = 0
        now: SeenRecord | None = seen
        while now is not None and now.state(self.races.now()) == "running" and (until is None or not until.passed):
            looks += 1
            await asyncio.sleep(pause_before(looks, _FIRST_LOOK, _LONGEST_PAUSE))
            now = await self.races.look(self.environment, self.race_id)
        return now

    async def _report_at_once(self, hand_over: HandOver | None) -> RaceReport | None:
        """The report, or None where the race runs and its caller does not want to wait for it."""
        stands = await (self._start(_nobody) if hand_over is None else hand_over(self))
        if isinstance(stands, SeenRecord):
            seen = await self._waited_for(stands, Deadline.after(self.wishes.wait))
            if seen is None or seen.state(self.races.now()) == "running":
                return None
            stands = await self.races.status_of(self.environment, seen)
        if isinstance(stands, RaceStatus):
            return _report_in(stands)
        await stands.begun.wait()
        if not stands.task.done():
            await asyncio.wait({stands.task}, timeout=self.wishes.wait)
        return await self._joined(stands, _nobody) if stands.task.done() else None

    async def _start(self, on_event: OnEvent) -> Running | SeenRecord | RaceStatus:
        return await self.races.start(self.environment, self.race_id, self.owner, self.digest, self.run, on_event)

    async def _joined(self, running: Running, on_event: OnEvent) -> RaceReport:
        mine = running.listener is on_event
        try:
            await asyncio.wait({running.task})
        except asyncio.CancelledError:
            if mine and not self.races.lives_on:
                await drop(running.task)
            raise
        finally:
            if mine:
                running.listener = None
        if running.task.cancelled():
            raise HttpError(503, _STOPPED.type, _STOPPED.message)
        report = running.task.result()
        if not mine:
            on_event(events.Reported(report=report))
        return report


def _nobody(event: events.Event) -> None:
    """Nobody looks on."""


def _same(digest: str, other: str) -> None:
    if digest != other:
        text = "Idempotency-Key: this key was used for another request: take a new one"
        raise HttpError(422, "idempotency_key_reused", text)


def _report_in(status: RaceStatus) -> RaceReport:
    """Raises the HttpError that a race without a report ended with."""
    if status.report is not None:
        return status.report
    if status.error is not None:
        said = status.error
        raise HttpError(status.error_status or 502, said.type, said.message, field=said.field)
    text = "the copy of the functions that ran the race of this key has died: take a new key to race again"
    raise HttpError(409, "race_lost", text)


def _told(status: RaceStatus, *, ending: bool = False) -> Response:
    """`ending`: whoever asked wants it over, so one that still runs is a 202."""
    headers = {"cache-control": "no-store"}
    if status.state == "running":
        headers["retry-after"] = str(ASK_AGAIN_SECONDS)
    code = 202 if ending and status.state == "running" else 200
    return Response(status.model_dump_json(), code, headers, "application/json")


def _not_found() -> HttpError:
    return HttpError(404, "race_not_found", "no race of this id is kept here, or not any longer")


def unclear(error: CellUnclear) -> HttpError:
    return HttpError(503, "try_again", str(error), headers={"retry-after": str(ASK_AGAIN_SECONDS)})
