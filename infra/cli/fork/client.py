"""Where a race of `fork` runs: in this process with the bundle's own core, or at an address where the functions are
served. Either way its events are told as they happen, the report among them as the last.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Final
from urllib.parse import quote

import httpx2
from pydantic import ValidationError

from functions.streaming import MEDIA_TYPE
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.errors import HandsError
from shared.ports import (
    Absent,
    Created,
    CreateOutcome,
    Doubtful,
    FindOutcome,
    Refused,
    SandboxRecord,
    SandboxSpec,
    Snapshot,
    SnapshotKind,
)
from shared.races import events
from shared.races.ends import RaceTimeouts
from shared.races.errors import BadRace
from shared.races.fields import Model
from shared.races.report import RaceReport
from shared.races.request import RaceRequest
from shared.races.status import RaceStatus
from shared.secret import Secret
from shared.service import Service
from shared.settings import Settings

# A served stream says something every few seconds; a runtime that answers all at once is silent until its race ends.
_LONGEST_SILENCE: Final = 1_200.0
_LINGER: Final = 2.0  # seconds that a report waits for ends: this process sees them through anyway
_CONNECT_SECONDS: Final = 10.0
_LOOK_SECONDS: Final = 60.0
_LOOKS_LOST: Final = 5  # one after the other
_PAUSE: Final = 2.0  # seconds between two looks
_LONGEST_LINE: Final = 64 * 1024 * 1024
_NOT_THE_ASKERS_FAULT: Final = (
    "source_not_found", "source_not_ready", "setup_failed", "service_unclear", "try_again", "internal", "hung_up",
    "timeout", "stopped", "race_lost", "race_running", "race_not_found",
)  # fmt: skip


class NotServed(HandsError):
    """No race's answer came from the address. `asked_wrongly`: it would not come another time either."""

    def __init__(self, text: str, *, asked_wrongly: bool = False) -> None:
        super().__init__(text)
        self.asked_wrongly = asked_wrongly


class RecordingHost(TensorlakeSandboxes):
    """The sandboxes, with a list of what was made here and what of it has ended: a race that is cancelled reports
    nothing, and its caller wants to know."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(
            api_url=settings.tensorlake_url, api_key=settings.tensorlake_key, bind_seconds=settings.times.bind
        )
        self.ended: list[str] = []
        self._living: dict[str, str] = {}
        self._doubted: dict[str, None] = {}

    @property
    def living(self) -> list[str]:
        """Names of sandboxes and ids of snapshots that are not known to have ended."""
        return [*self._living.values(), *self._doubted]

    async def create(self, spec: SandboxSpec) -> CreateOutcome:
        made = await super().create(spec)
        if isinstance(made, Created):
            self._doubted.pop(spec.name, None)
            self._living[made.sandbox.id] = spec.name
        elif isinstance(made, Doubtful):
            self._doubted[spec.name] = None
        return made

    async def find(self, name_or_id: str) -> FindOutcome:
        found = await super().find(name_or_id)
        if name_or_id in self._doubted and not isinstance(found, Doubtful):
            del self._doubted[name_or_id]
            if isinstance(found, SandboxRecord):
                self._living[found.id] = name_or_id
        return found

    async def terminate(self, sandbox_id: str) -> Absent | Refused | Doubtful | None:
        return self._ending(sandbox_id, await super().terminate(sandbox_id))

    async def snapshot(
        self, sandbox_id: str, kind: SnapshotKind = SnapshotKind.FILESYSTEM
    ) -> Snapshot | Absent | Refused | Doubtful:
        made = await super().snapshot(sandbox_id, kind)
        if isinstance(made, Snapshot):
            self._living[made.id] = made.id
        return made

    async def delete_snapshot(self, snapshot_id: str) -> Absent | Refused | Doubtful | None:
        return self._ending(snapshot_id, await super().delete_snapshot(snapshot_id))

    def _ending(self, identity: str, outcome: Absent | Refused | Doubtful | None) -> Absent | Refused | Doubtful | None:
        if outcome in (None, Absent()) and identity in self._living:
            self.ended.append(self._living.pop(identity))
        return outcome


async def race_here(request: RaceRequest, settings: Settings, host: RecordingHost, tell: events.OnEvent) -> None:
    """Raises RaceError, SettingsError, SecretUnavailable. Cancelled, it ends what it made first."""
    if request.on_finish is not None:
        raise BadRace("on_finish", "is called by the functions where they are served: set FUNCTIONS_URL")
    service = Service(settings)
    service.host = host
    try:
        timeouts = RaceTimeouts(boot=settings.times.bind, linger=_LINGER)
        await service.race(request, on_event=tell, timeouts=timeouts)
    finally:
        await service.aclose()


async def race_there(
    request: RaceRequest, url: str, token: Secret, tell: events.OnEvent, *, key: str = "", begin: bool = False
) -> str | None:
    """Raises NotServed. Cancelled, it hangs up, and the functions end what they made unless the race has a `key`.
    `begin`: the race's id where it runs on behind the answer."""
    headers = {"authorization": f"Bearer {token.reveal()}", "accept": f"{MEDIA_TYPE}, application/json;q=0.5"}
    headers |= {"idempotency-key": key} if key else {}
    headers |= {"prefer": "respond-async"} if begin else {}
    body = request.model_dump_json(exclude_unset=True).encode()
    timeout = httpx2.Timeout(_LONGEST_SILENCE, connect=_CONNECT_SECONDS)
    headers["content-type"] = "application/json"
    last: events.Event | None = None
    try:
        async with (
            httpx2.AsyncClient(timeout=timeout) as client,
            client.stream("POST", f"{url.rstrip('/')}/fork_best_of_n", content=body, headers=headers) as answer,
        ):
            if begin and answer.status_code == 202:
                return RaceStatus.model_validate_json(await answer.aread()).race_id
            async for last in _events(answer):
                tell(last)
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        if last is None:
            raise NotServed(
                f"no fork_best_of_n answers at FUNCTIONS_URL ({type(error).__name__})", asked_wrongly=True
            ) from None
    except ValidationError:
        raise NotServed("what answers at FUNCTIONS_URL tells of no race: is it of another version?") from None
    if not isinstance(last, events.Reported | events.RaceFailed):
        raise NotServed("the connection was lost before the race ended; the functions end what it made")
    return None


async def wait_there(race_id: str, url: str, token: Secret, tell: events.OnEvent) -> None:
    """Waits for the end of a race that was begun there. Raises NotServed."""
    where = f"{url.rstrip('/')}/fork_best_of_n/{quote(race_id, safe='')}"
    headers = {"authorization": f"Bearer {token.reveal()}"}
    failures = 0
    async with httpx2.AsyncClient(timeout=httpx2.Timeout(_LOOK_SECONDS, connect=_CONNECT_SECONDS)) as client:
        while True:
            try:
                answer = await client.get(where, headers=headers)
                if answer.status_code == 200:
                    status = RaceStatus.model_validate_json(answer.content)
                    if status.state != "running":
                        return tell(_end_of(status))
                    failures = 0
                elif answer.status_code not in (429, 502, 503, 504):
                    raise _refusal(answer.status_code, answer.content)
            except httpx2.HTTPError as error:
                failures += 1
                if failures == _LOOKS_LOST:
                    raise NotServed(f"no fork_best_of_n answers at FUNCTIONS_URL ({type(error).__name__})") from None
            except (ValidationError, httpx2.InvalidURL):
                raise NotServed("what answers at FUNCTIONS_URL tells of no race: is it of another version?") from None
            await asyncio.sleep(_PAUSE)


async def cancel_there(race_id: str, url: str, token: Secret) -> RaceStatus:
    """Ends a race that was begun there; how it fares then. Raises NotServed."""
    where = f"{url.rstrip('/')}/fork_best_of_n/{quote(race_id, safe='')}"
    headers = {"authorization": f"Bearer {token.reveal()}"}
    try:
        async with httpx2.AsyncClient(timeout=httpx2.Timeout(_LOOK_SECONDS, connect=_CONNECT_SECONDS)) as client:
            answer = await client.delete(where, headers=headers)
        if answer.status_code not in (200, 202):
            raise _refusal(answer.status_code, answer.content)
        return RaceStatus.model_validate_json(answer.content)
    except (ValidationError, httpx2.InvalidURL):
        raise NotServed("what answers at FUNCTIONS_URL tells of no race: is it of another version?") from None
    except httpx2.HTTPError as error:
        raise NotServed(f"no fork_best_of_n answers at FUNCTIONS_URL ({type(error).__name__})") from None


def _end_of(status: RaceStatus) -> events.Event:
    if status.report is not None:
        return events.Reported(report=status.report)
    lost = events.ErrorBody(type="race_lost", message="the copy of the functions that ran this race has died")
    return events.RaceFailed(error=status.error or lost)


async def _events(answer: httpx2.Response) -> AsyncIterator[events.Event]:
    if answer.status_code != 200:
        raise _refusal(answer.status_code, await answer.aread())
    if not answer.headers.get("content-type", "").startswith(MEDIA_TYPE):
        yield events.Reported(report=RaceReport.model_validate_json(await answer.aread()))
        return
    async for line in _lines(answer):
        yield events.from_line(line)


async def _lines(answer: httpx2.Response) -> AsyncIterator[bytes]:
    """Lines that end with \\n alone: a text in them may hold whatever else ends a line. Empty ones keep it alive."""
    waiting = bytearray()
    async for part in answer.aiter_bytes():
        waiting += part
        if b"\n" in part:
            *lines, rest = bytes(waiting).split(b"\n")
            waiting = bytearray(rest)
            for line in filter(None, lines):
                yield line
        if len(waiting) > _LONGEST_LINE:
            raise NotServed("what answers at FUNCTIONS_URL does not end its lines")


class _Refusal(Model):
    error: events.ErrorBody


def _refusal(status: int, body: bytes) -> NotServed:
    try:
        said = _Refusal.model_validate_json(body).error
    except ValidationError:
        return NotServed(f"FUNCTIONS_URL answers {status}, and is not fork_best_of_n's", asked_wrongly=status < 500)
    return NotServed(said.message, asked_wrongly=is_askers_fault(said.type))


def is_askers_fault(kind: str) -> bool:
    """Whether an error of this type is about what was asked or configured, and not about how the race went."""
    return kind not in _NOT_THE_ASKERS_FAULT
