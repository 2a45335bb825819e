"""What the pages show, from the readers that `hands ps`, `top`, `show` and `alarms` use."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from infra.cli.environ import Loaded
from infra.cli.fleet import alarms, one, survey, top
from infra.cli.fleet.call_use import CallsOf, of_the_functions_at
from infra.cli.fleet.lists import Item, lists
from infra.cli.fleet.pace import pause_after
from infra.cli.fleet.survey import SessionRow, in_words
from infra.cli.fleet.target import target
from infra.cli.session.follow import unix_time
from infra.cli.session.render import Renderer
from infra.cli.ui import races
from infra.cli.ui.answers import Shared, SharedEach
from infra.cli.ui.races import Opened
from shared.ports import ItemState, SandboxStatus

_HOURS: Final = 6
_BINS: Final = 36
_EVENTS: Final = 100


@dataclass(frozen=True, slots=True)
class Bar:
    """Some minutes: what came and was served in them, and how many waited at their end. `x`: in its drawing's units."""

    x: int
    came: int
    served: int
    waiting: int


@dataclass(frozen=True, slots=True)
class Graph:
    """`most`: of one bar. `hours`: back from now."""

    bars: tuple[Bar, ...]
    most: int
    hours: int


def graph_of(items: Sequence[Item], now: float) -> Graph:
    """As far as the queue still lists what came."""
    width = _HOURS * 3600 / _BINS
    came, served = [0] * _BINS, [0] * _BINS
    for item in items:
        for counts, moment in ((came, item.created_at), (served, item.started_at)):
            if moment is not None and 0 <= (place := int((now - moment) / width)) < _BINS:
                counts[_BINS - 1 - place] += 1
    ends = [now - width * (_BINS - 1 - number) for number in range(_BINS)]
    waiting = [sum(item.created_at <= end < _waits_until(item) for item in items) for end in ends]
    bars = tuple(Bar(number * 10, came[number], served[number], waiting[number]) for number in range(_BINS))
    return Graph(bars, max(1, *came, *served, *waiting), _HOURS)


def _waits_until(item: Item) -> float:
    """Unix seconds: until somebody takes the item, or ends it."""
    known = [at for at in (item.acknowledged_at, item.started_at, item.stopped_at) if at is not None]
    return min(known, default=math.inf if item.state is ItemState.QUEUED else item.created_at)


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of a session's timeline. `at`: Unix seconds."""

    at: float
    text: str
    look: str


def timeline_of(
    events: Sequence[Mapping[str, Any]],
    items: Sequence[Mapping[str, Any]],
    workers: Sequence[Mapping[str, Any]] = (),
    setup: Sequence[Mapping[str, Any]] = (),
) -> list[Moment]:
    """The session's turns and calls, its set-up, and the lives of its work items and workers, oldest first."""
    found: list[Moment] = []
    renderer, last = Renderer(), 0.0
    for event in events:
        last = unix_time(event.get("processed_at") or event.get("created_at")) or last
        found += [Moment(last, line.text.strip("\n"), line.look.name.lower()) for line in renderer.lines(event)]
    words = {
        "created_at": "was queued",
        "acknowledged_at": "was handed over and acked",
        "started_at": "its worker took the lease",
        "stopped_at": "ended",
    }
    for item in items:
        found += [
            Moment(item[name], f"work item {item['id']} {said}", "work")
            for name, said in words.items()
            if item.get(name) is not None
        ]
    for worker in workers:
        # Its name says when it was started, and a sandbox may have given any name.
        if 0 < (at := one.started(worker["name"])) <= time.time():
            became = "it runs" if worker["running"] else "it died" if worker["died"] else "it has ended"
            look = "wrong" if worker["died"] else "work"
            found.append(Moment(at, f"worker {worker['name']} was started: {became}", look))
    now = time.time()
    found += [Moment(step["at"], f"set-up: {step['text']}", "work") for step in setup if 0 < (step["at"] or 0) <= now]
    return sorted(found, key=lambda moment: moment.at)


def sleeps_of(items: Sequence[Mapping[str, Any]], sandbox: Mapping[str, Any], now: float) -> list[Moment]:
    """When the sandbox fell asleep, at the latest: no service tells, but a sandbox that nobody is in sleeps once it has
    been idle for its time-out (docs/wire/tensorlake.md#5-lifecycle-endpoints)."""
    born, idle = sandbox["created_at"], sandbox["timeout_seconds"]
    if born is None or not idle:
        return []
    ends = [item["stopped_at"] for item in items if item["stopped_at"] is not None and item["stopped_at"] > born]
    begins = sorted(item["created_at"] for item in items)
    found = []
    for end in ends:
        asleep, later = end + idle, next((at for at in begins if at > end), None)
        if later is not None and asleep < later:
            until = f"until {in_words(later - asleep)} later, when work came; unless somebody was in it"
            found.append(Moment(asleep, f"the sandbox was asleep, {until}", "work"))
        elif later is None and sandbox["state"] == SandboxStatus.SUSPENDED.value:
            found.append(Moment(min(asleep, now), "the sandbox sleeps, at the latest from here on", "work"))
    return found


class Reader:
    """Reads both services for the pages. Raises SettingsError, FeedRefused, FeedBroken, NotCarriedOut."""

    def __init__(self, loaded: Loaded, calls_of: CallsOf | None = None) -> None:
        self._loaded = loaded
        self._calls_of = calls_of or of_the_functions_at(loaded.environ.get("FUNCTIONS_URL", ""))
        self.seen = Shared(self._look, lambda found: pause_after(found[1].own_calls))
        self.alarms = Shared(self._alarms)
        self.records = races.Records(loaded)
        self._sessions = SharedEach(self._session)

    async def home(self) -> dict[str, Any]:
        seen, overview = await self.seen.get()
        rows: list[SessionRow] = survey.rows(seen)
        items = [item for listing in seen.items.values() for item in listing.rows]
        return {
            "rows": [row for row in rows if row.state not in ("archived", "terminated")],
            "others": survey.others(seen),
            "overview": overview,
            "graph": graph_of(items, seen.now),
            "environments": list(seen.settings.environments),
            "missing": overview.not_seen,
        }

    async def races(self) -> dict[str, Any]:
        seen, _ = await self.seen.get()
        return {"running": races.running(seen), "kept": races.kept(seen), "missing": seen.missing}

    async def race(self, race_id: str) -> Opened:
        return await self.records.open(race_id)

    async def session(self, session_id: str) -> dict[str, Any]:
        return await self._sessions.get(session_id)

    async def _session(self, session_id: str) -> dict[str, Any]:
        key = self._loaded.need("ANTHROPIC_API_KEY", "sessions are looked up with it; create one in the Console")
        async with target(self._loaded, session_id) as aim:
            facts = await one.facts_of(aim, self._loaded)
            async with lists(aim.settings.anthropic_url, key) as people:
                events = await people.last_events(aim.session.id, _EVENTS)
        now = time.time()
        moments = timeline_of(events, facts["items"], facts["workers"], facts["setup"])
        moments = sorted([*moments, *sleeps_of(facts["items"], facts["sandbox"], now)], key=lambda moment: moment.at)
        return {"facts": facts, "moments": moments, "now": now}

    async def _look(self) -> tuple[survey.Seen, top.Overview]:
        seen = await survey.look(self._loaded, time.time())
        return seen, await top.overview_of(seen, self._calls_of)

    async def _alarms(self) -> Sequence[str]:
        return alarms.in_lines(await alarms.read(self._loaded))
