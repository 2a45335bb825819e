"""`cost`: tokens, running time and list price as the sessions tell them, by session, environment and day."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Final

from infra.cli.environ import Loaded
from infra.cli.fleet.lists import Session, lists
from infra.cli.fleet.survey import in_words
from infra.cli.fleet.table import console, table
from shared.settings import Settings

_PAGES: Final = 20
BY: Final = ("session", "environment", "day")


@dataclass(frozen=True, slots=True)
class Sum:
    """Of some sessions. `active_seconds` and tokens count what the service told; `untold` sessions told nothing.

    cost: list price by currency, as decimal text; empty where no session tells one.
    """

    key: str
    sessions: int
    tokens_in: int
    tokens_out: int
    active_seconds: float
    cost: str
    untold: int


async def run(loaded: Loaded, *, by: str, as_json: bool) -> int:
    """0; 1 where there are more sessions than were read. Raises SettingsError, FeedRefused, FeedBroken."""
    settings = Settings.from_environ(loaded.environ)
    key = loaded.need("ANTHROPIC_API_KEY", "sessions are listed with it; create one in the Console")
    async with lists(settings.anthropic_url, key) as people:
        listing = await people.sessions(_PAGES, archived=True)
    own = [row for row in listing.rows if row.environment_id in settings.environments]
    sums = summed(own, by)
    if as_json:
        print(json.dumps({"by": by, "complete": listing.complete, "rows": [asdict(each) for each in sums]}, indent=2))
    else:
        cells = [
            (each.key, str(each.sessions), str(each.tokens_in), str(each.tokens_out), in_words(each.active_seconds),
             each.cost or "not told")
            for each in (*sums, _sum("all", own))
        ]  # fmt: skip
        console().print(table((by, "sessions", "tokens in", "tokens out", "ran", "list price"), cells))
        console(stderr=True).print(
            "Sandboxes are billed by Tensorlake: their time and price are in its console, not in a session's record.",
            style="dim",
        )
    return 0 if listing.complete else 1


def summed(rows: Iterable[Session], by: str) -> list[Sum]:
    """The dearest first, days the newest first."""
    groups: dict[str, list[Session]] = {}
    key = _KEYS[by]
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    sums = [_sum(name, group) for name, group in groups.items()]
    if by == "day":
        return sorted(sums, key=lambda each: each.key, reverse=True)
    return sorted(sums, key=lambda each: (-(each.tokens_in + each.tokens_out), -each.active_seconds, each.key))


def _day(row: Session) -> str:
    return datetime.fromtimestamp(row.created_at, UTC).date().isoformat()


_KEYS: Final[dict[str, Callable[[Session], str]]] = {
    "session": lambda row: row.id,
    "environment": lambda row: row.environment_id,
    "day": _day,
}


def _sum(key: str, rows: Sequence[Session]) -> Sum:
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
    )
