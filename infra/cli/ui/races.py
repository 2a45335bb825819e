"""Races as the pages show them: those that run, by the names of their sandboxes, and the records that are kept.

A list of sandboxes tells both and wakes nothing. What stands in a record is read when somebody opens it: that wakes the
sandbox in which it is kept, for the time that shared/races/cells.py gives it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict
from dataclasses import dataclass
from typing import Any, Final

from infra.cli.environ import Loaded
from infra.cli.fleet.survey import Seen
from infra.cli.fleet.target import NotCarriedOut
from infra.cli.fork import page
from infra.cli.ui.answers import SharedEach
from shared import names
from shared.errors import HandsError
from shared.ports import ENDED, SandboxRecord, SandboxStatus
from shared.races.records import RaceRecords
from shared.races.report import RaceReport
from shared.service import Service
from shared.settings import Settings

_REMEMBERED: Final = 8
_ELSEWHERE: Final = "another one"


@dataclass(frozen=True, slots=True)
class Race:
    """What the list tells of one race. Seconds, back or ahead from the look; None where nothing tells. `sandboxes`: how
    many of which state. `over_in`: until nobody wants them any more. `kept_for`: until its record is deleted."""

    id: str
    environment: str
    sandboxes: str
    age: float | None
    over_in: float | None = None
    kept_for: float | None = None
    awake: bool = False


def running(seen: Seen) -> list[Race]:
    """The newest first."""
    found: dict[tuple[str, str], list[tuple[names.RaceSandbox, SandboxRecord]]] = {}
    for name, box in _named(seen):
        if isinstance(name, names.RaceSandbox):
            found.setdefault((name.environment_tag, name.race_id), []).append((name, box))
    known = _environments(seen.settings)
    made = [
        Race(
            race_id,
            known.get(tag, _ELSEWHERE),
            ", ".join(f"{n} {state}" for state, n in sorted(Counter(box.status.value for _, box in boxes).items())),
            max((age for _, box in boxes if (age := _age(seen, box)) is not None), default=None),
            over_in=max(name.dead_man for name, _ in boxes) - seen.now,
        )
        for (tag, race_id), boxes in found.items()
    ]
    return sorted(made, key=lambda race: race.age or 0.0)


def kept(seen: Seen) -> list[Race]:
    """The records of this deployment's environments that are not past their time, the newest first."""
    known = _environments(seen.settings)
    lasts = seen.settings.races.record_seconds
    made = []
    for name, box in _named(seen):
        if isinstance(name, names.RaceRecordSandbox) and name.environment_tag in known:
            age = _age(seen, box)
            left = None if age is None else lasts - age
            if left is None or left > 0:
                awake = box.status is SandboxStatus.RUNNING
                made.append(Race(name.race_id, known[name.environment_tag], "", age, kept_for=left, awake=awake))
    return sorted(made, key=lambda race: race.age or 0.0)


def _named(seen: Seen) -> list[tuple[names.SandboxName, SandboxRecord]]:
    boxes = seen.sandboxes.rows if seen.sandboxes is not None else ()
    return [(names.parse(seen.settings.prefix, box.name), box) for box in boxes if box.status not in ENDED]


def _age(seen: Seen, box: SandboxRecord) -> float | None:
    return None if box.created_at is None else seen.now - box.created_at.timestamp()


def _environments(settings: Settings) -> dict[str, str]:
    return {names.environment_tag(identity): identity for identity in settings.environments}


@dataclass(frozen=True, slots=True)
class Opened:
    """One race's record as it was read. `report` is its page, where there is one; else `facts` say how it fares."""

    facts: dict[str, Any]
    report: str = ""

    @property
    def over(self) -> bool:
        return bool(self.facts["state"] != "running")


class Records:
    """The records of races. What is over does not change, so it is remembered and not read again, which would wake its
    sandbox."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._each = SharedEach(self._read)
        self._over: OrderedDict[str, Opened] = OrderedDict()

    async def open(self, race_id: str) -> Opened:
        """Raises SettingsError; NotCarriedOut where there is no record, or it cannot be read."""
        if not names.is_race_id(race_id):
            raise NotCarriedOut("That is no race's id.")
        if (known := self._over.get(race_id)) is not None:
            return known
        found = await self._each.get(race_id)
        if found.over:
            self._over[race_id] = found
            if len(self._over) > _REMEMBERED:
                self._over.popitem(last=False)
        return found

    async def _read(self, race_id: str) -> Opened:
        service = Service(Settings.from_environ(self._loaded.environ))
        try:
            for environment in service.settings.environments.values():
                records = RaceRecords(service.host, service.settings, environment)
                if (seen := await records.look(race_id)) is None:
                    continue
                status = await records.status(seen)
                facts = {**status.model_dump(exclude={"report"}), "environment": environment.id}
                facts["owner"] = seen.head.owner
                if status.report is None:
                    return Opened(facts)
                return Opened(facts, await asyncio.to_thread(drawn, status.report))
        except HandsError as error:
            raise NotCarriedOut(f"The record of this race could not be read: {error}") from None
        finally:
            await service.aclose()
        raise NotCarriedOut("No record of this race is kept here, or not any longer.")


def drawn(report: RaceReport) -> str:
    """The report's page, below the list of races. The longest texts are cut."""
    return page.render(report, back="../races")
