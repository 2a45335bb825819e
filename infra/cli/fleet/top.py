"""`top`: queues and sandboxes live: what waits, how long from queued to served, what is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Final

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from infra.cli.environ import Loaded
from infra.cli.fleet.call_use import Calls, CallsOf, of_the_functions_at
from infra.cli.fleet.lists import Item, QueueStats, lists
from infra.cli.fleet.pace import Pause, pause_after
from infra.cli.fleet.survey import Seen, in_words, look, rows
from infra.cli.fleet.table import console, table
from infra.cli.session.follow import FeedBroken, FeedRefused

_WINDOW: Final = 900.0
"""Seconds back that the percentiles look: what is older says nothing about now."""


@dataclass(frozen=True, slots=True)
class Queue:
    """One environment's. Seconds; None where nothing tells it. served: from queued to a worker's first beat."""

    environment: str
    depth: int | None
    oldest: float | None
    workers_polling: int | None
    claims_a_minute: int
    served_p50: float | None
    served_p99: float | None


@dataclass(frozen=True, slots=True)
class Overview:
    """`calls`: of the functions. `requests_left`: of the organisation's, and how many there are. `own_calls`: that this
    look took."""

    queues: tuple[Queue, ...]
    sandboxes: Mapping[str, int]
    sessions: Mapping[str, int]
    problems: tuple[str, ...]
    not_seen: tuple[str, ...]
    calls: Calls
    requests_left: tuple[int, int] | None
    own_calls: int

    @property
    def told_left(self) -> str:
        """What the Claude API says of the organisation's budget; empty where it says nothing."""
        if self.requests_left is None:
            return ""
        left, limit = self.requests_left
        return f"The Claude API says that {left} of the organisation's {limit} requests are left."


async def run(loaded: Loaded, *, as_json: bool, once: bool) -> int:
    """0; 1 where something could not be seen. Raises SettingsError, FeedRefused, FeedBroken."""
    seen = await overview(loaded)
    out = console()
    if as_json:
        print(json.dumps(asdict(seen), indent=2))
    elif once or not out.is_terminal:
        out.print(drawn(seen))
    else:
        await watched(loaded, seen, out)
    return 1 if seen.not_seen else 0


async def watched(loaded: Loaded, seen: Overview, out: Console, pause: Pause = asyncio.sleep) -> None:
    """Until ctrl-C."""
    with Live(drawn(seen), console=out, screen=True, auto_refresh=False) as live:
        while True:
            live.update(drawn(seen), refresh=True)
            await pause(pause_after(seen.own_calls))
            with contextlib.suppress(FeedBroken):  # what was seen last stays
                seen = await overview(loaded)


async def overview(loaded: Loaded) -> Overview:
    calls_of = of_the_functions_at(loaded.environ.get("FUNCTIONS_URL", ""))
    return await overview_of(await look(loaded, time.time()), calls_of)


async def overview_of(seen: Seen, calls_of: CallsOf) -> Overview:
    """Of what was looked at, each queue's statistics (one more call an environment), and the functions' calls."""
    now = seen.now
    (stats, missing), used = await asyncio.gather(_stats(seen), calls_of(seen))
    found = rows(seen)
    return Overview(
        queues=tuple(
            queue_of(identity, stats.get(identity), seen.items[identity].rows if identity in seen.items else (), now)
            for identity in seen.settings.environments
        ),
        sandboxes=dict(Counter(box.status.value for box in seen.sandboxes.rows) if seen.sandboxes is not None else {}),
        sessions=dict(Counter(row.item_state or row.state for row in found)),
        problems=tuple(f"{row.session}: {row.problem}" for row in found if row.problem),
        not_seen=(*seen.missing, *missing),
        calls=used,
        requests_left=seen.requests_left,
        own_calls=seen.requests + len(stats) + len(missing),
    )


async def _stats(seen: Seen) -> tuple[Mapping[str, QueueStats], Sequence[str]]:
    found: dict[str, QueueStats] = {}
    missing: list[str] = []
    for identity, environment in seen.settings.environments.items():
        async with lists(seen.settings.anthropic_url, environment.key.reveal()) as queue:
            try:
                found[identity] = await queue.stats(identity)
            except (FeedBroken, FeedRefused) as error:
                missing.append(f"the statistics of {identity} were not seen: {error}")
    return found, missing


def queue_of(identity: str, stats: QueueStats | None, items: Sequence[Item], now: float) -> Queue:
    served = sorted(
        item.started_at - item.created_at
        for item in items
        if item.started_at is not None and now - item.started_at < _WINDOW
    )
    claims = sum(item.acknowledged_at is not None and now - item.acknowledged_at < 60.0 for item in items)
    oldest = stats.oldest_queued_at if stats is not None else None
    return Queue(
        environment=identity,
        depth=stats.depth if stats is not None else None,
        oldest=max(0.0, now - oldest) if oldest is not None else None,
        workers_polling=stats.workers_polling if stats is not None else None,
        claims_a_minute=claims,
        served_p50=_quantile(served, 0.5),
        served_p99=_quantile(served, 0.99),
    )


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    return ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else None


def drawn(seen: Overview) -> RenderableType:
    def tell(value: float | None, unit: str = "") -> str:
        return f"{value:.1f}{unit}" if value is not None else "-"

    lines = [
        (
            queue.environment, str(queue.depth if queue.depth is not None else "-"),
            in_words(queue.oldest) if queue.oldest is not None else "-", str(queue.claims_a_minute),
            tell(queue.served_p50, " s"), tell(queue.served_p99, " s"),
            str(queue.workers_polling if queue.workers_polling is not None else "-"),
        )
        for queue in seen.queues
    ]  # fmt: skip
    columns = ("environment", "waiting", "oldest", "claims/min", "served p50", "served p99", "pollers")
    return Group(
        table(columns, lines),
        Text(f"\nsandboxes  {_counted(seen.sandboxes)}\nsessions   {_counted(seen.sessions)}\n"),
        *_calls(seen),
        *(Text(line, style="red") for line in (*seen.problems, *seen.not_seen)),
    )


def _calls(seen: Overview) -> Iterator[RenderableType]:
    if seen.calls.uses:
        cells = [
            (use.kind, str(use.last_minute), "any" if use.budget is None else str(use.budget), str(use.most))
            for use in seen.calls.uses
        ]
        yield table(("calls a minute", "the last one", "budget", "most lately"), cells)
    said = (seen.calls.meaning, seen.told_left, f"This look took {seen.own_calls} calls.")
    yield Text(" ".join(filter(None, said)), style="dim")


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items())) or "none"
