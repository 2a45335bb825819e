"""`cost`: tokens, running time and list price as the sessions tell them, by session, environment and day; and what
their sandboxes used, where the service's usage may be read."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final

from infra.cli.environ import Loaded
from infra.cli.fleet.lists import SessionListing, lists
from infra.cli.fleet.survey import in_words
from infra.cli.fleet.table import console, table
from infra.cli.fleet.usage import ORGANIZATION, Usage, Use, read
from shared import names
from shared.ports import Doubtful
from shared.service import Service
from shared.settings import Settings

_PAGES: Final = 20


@dataclass(frozen=True, slots=True)
class Sum:
    """Of some sessions. `active_seconds` and tokens count what the service told; `untold` sessions told nothing.

    cost: list price by currency, as decimal text; empty where no session tells one. sandbox_*: of the last thirty days
    and the sandboxes that the service still lists under the sessions' names; None and empty where it was not read.
    """

    key: str
    sessions: int
    tokens_in: int
    tokens_out: int
    active_seconds: float
    cost: str
    untold: int
    sandbox_vcpu_hours: float | None = None
    sandbox_gib_hours: float | None = None
    sandbox_cost: str = ""


async def run(loaded: Loaded, *, by: str, as_json: bool) -> int:
    """0; 1 where there are more sessions than were read. Raises SettingsError, FeedRefused, FeedBroken."""
    settings = Settings.from_environ(loaded.environ)
    key = loaded.need("ANTHROPIC_API_KEY", "sessions are listed with it; create one in the Console")
    async with lists(settings.anthropic_url, key) as people:
        listing = await people.sessions(_PAGES, archived=True)
    own = [row for row in listing.rows if row.environment_id in settings.environments]
    used = await _used(settings, loaded.environ.get(ORGANIZATION, "").strip(), own)
    sums = summed(own, by, used)
    told = used if isinstance(used, Used) else None
    if as_json:
        rest = {"other_sandboxes": asdict(told.others())} if told is not None else {}
        print(
            json.dumps(
                {"by": by, "complete": listing.complete, "rows": [asdict(each) for each in sums], **rest}, indent=2
            )
        )
    else:
        shown = [*sums, _sum("all", own, used)]
        if told is not None:
            shown.append(told.others())
        columns = (by, "sessions", "tokens in", "tokens out", "ran", "list price")
        more = ("vCPU hours", "GiB hours", "sandboxes") if told is not None else ()
        console().print(table((*columns, *more), [_cells(each)[: len(columns) + len(more)] for each in shown]))
    if isinstance(used, str):
        console(stderr=True).print(used, style="dim", highlight=False)
    return 0 if listing.complete and (told is not None or not loaded.environ.get(ORGANIZATION, "").strip()) else 1


def _cells(each: Sum) -> tuple[str, ...]:
    return (
        *(each.key, str(each.sessions), str(each.tokens_in), str(each.tokens_out), in_words(each.active_seconds)),
        *(each.cost or "not told", _hours(each.sandbox_vcpu_hours), _hours(each.sandbox_gib_hours)),
        each.sandbox_cost or "not told",
    )


def _hours(value: float | None) -> str:
    return f"{value:.2f}" if value is not None else ""


@dataclass(frozen=True, slots=True)
class Used:
    """What the service tells of all sandboxes, and which are whose."""

    usage: Usage
    ids: Mapping[str, Sequence[str]]

    def sums(self, sessions: Iterable[str]) -> dict[str, Any]:
        return self._fields(self.usage.of(box for session in sessions for box in self.ids.get(session, ())))

    def others(self) -> Sum:
        """Races, servers, prepared starts, and sandboxes that have ended and are nobody's any more."""
        known = {box for boxes in self.ids.values() for box in boxes}
        use = self.usage.of(box for box in self.usage.sandboxes if box not in known)
        return Sum("other sandboxes", 0, 0, 0, 0.0, "", 0, **self._fields(use))

    def _fields(self, use: Use) -> dict[str, Any]:
        return {
            "sandbox_vcpu_hours": float(use.vcpu_hours),
            "sandbox_gib_hours": float(use.memory_gib_hours),
            "sandbox_cost": self.usage.price(use),
        }


async def _used(settings: Settings, organization: str, rows: Sequence[SessionListing]) -> Used | str:
    """A text says why there is nothing of it."""
    if not organization:
        return f"What sandboxes used and cost is told with {ORGANIZATION}, and a key that may read it."
    service = Service(settings)
    try:
        usage, listing = await asyncio.gather(read(settings, organization), service.host.list_sandboxes())
    finally:
        await service.aclose()
    if isinstance(usage, str):
        return f"What sandboxes used was not seen: {usage}"
    if isinstance(listing, Doubtful):
        return f"The sandboxes were not seen: {listing.reason}"
    boxes: dict[str, list[str]] = {}
    for box in listing.rows:
        boxes.setdefault(box.name or "", []).append(box.id)
    return Used(
        usage,
        {
            row.id: boxes.get(names.sandbox_name(settings.prefix, row.environment_id, row.id), ())
            for row in rows
            if names.is_session_id(row.id)
        },
    )


def summed(rows: Iterable[SessionListing], by: str, used: Used | str = "") -> list[Sum]:
    """The dearest first, days the newest first."""
    groups: dict[str, list[SessionListing]] = {}
    key = _KEYS[by]
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    sums = [_sum(name, group, used) for name, group in groups.items()]
    if by == "day":
        return sorted(sums, key=lambda each: each.key, reverse=True)
    return sorted(sums, key=lambda each: (-(each.tokens_in + each.tokens_out), -each.active_seconds, each.key))


def _day(row: SessionListing) -> str:
    return datetime.fromtimestamp(row.created_at, UTC).date().isoformat()


_KEYS: Final[dict[str, Callable[[SessionListing], str]]] = {
    "session": lambda row: row.id,
    "environment": lambda row: row.environment_id,
    "day": _day,
}


def _sum(key: str, rows: Sequence[SessionListing], used: Used | str = "") -> Sum:
    prices: dict[str, float] = {}
    for row in rows:
        if row.cost is not None:
            amount, _, currency = row.cost.partition(" ")
            try:
                prices[currency] = prices.get(currency, 0.0) + float(amount)
            except ValueError:
                continue
    return Sum(
        key=key,
        sessions=len(rows),
        tokens_in=sum(row.tokens_in or 0 for row in rows),
        tokens_out=sum(row.tokens_out or 0 for row in rows),
        active_seconds=sum(row.active_seconds or 0.0 for row in rows),
        cost=" + ".join(f"{amount:.4f} {currency}" for currency, amount in sorted(prices.items())),
        untold=sum(row.tokens_in is None and row.active_seconds is None for row in rows),
        **(used.sums(row.id for row in rows) if isinstance(used, Used) else {}),
    )
