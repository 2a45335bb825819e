"""`ps`: one row a session, what works or is wrong first; below it the sandboxes that are no session's."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from dataclasses import asdict

from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from infra.cli.environ import Loaded
from infra.cli.fleet.pace import Pause, pause_after
from infra.cli.fleet.survey import Seen, SessionRow, in_words, look, others, rows
from infra.cli.fleet.table import console, table
from infra.cli.session.follow import FeedBroken

_HIDDEN = ("archived", "terminated")
_COLUMNS = ("session", "title", "environment", "state", "item", "sandbox", "age", "seen", "deaths", "tokens", "problem")
_NARROW = ("session", "state", "age", "problem")
_NARROWEST = ("session", "state")
_WIDE = 120
_SMALL = 60


async def run(loaded: Loaded, *, everything: bool, as_json: bool, watch: bool) -> int:
    """0; 1 where something could not be seen. Raises SettingsError, FeedRefused, FeedBroken."""
    seen = await look(loaded, time.time(), archived=everything)
    if as_json:
        print(as_line(seen, everything=everything))
    elif not watch:
        out = console()
        out.print(drawn(seen, out.width, everything=everything))
    else:
        await watched(loaded, seen, everything=everything)
    return 1 if seen.missing else 0


async def watched(loaded: Loaded, seen: Seen, *, everything: bool, pause: Pause = asyncio.sleep) -> None:
    """Until ctrl-C. In a pipe: one table after another."""
    out = console()
    with contextlib.ExitStack() as stack:
        live = stack.enter_context(Live(console=out, screen=True, auto_refresh=False)) if out.is_terminal else None
        while True:
            if live is not None:
                live.update(drawn(seen, out.width, everything=everything), refresh=True)
            else:
                out.print(drawn(seen, out.width, everything=everything))
            await pause(pause_after(seen.requests))
            with contextlib.suppress(FeedBroken):  # what was seen last stays
                seen = await look(loaded, time.time(), archived=everything)


def shown_rows(seen: Seen, *, everything: bool) -> list[SessionRow]:
    return [row for row in rows(seen) if everything or row.state not in _HIDDEN]


def as_line(seen: Seen, *, everything: bool) -> str:
    """Stable for programs: names as in `SessionRow` and `OtherSandbox`, times in seconds; ASCII, fit for a terminal."""
    whole = {
        "sessions": [asdict(row) for row in shown_rows(seen, everything=everything)],
        "sandboxes": [asdict(box) for box in others(seen)],
        "not_seen": list(seen.missing),
        "complete": seen.sessions is not None and seen.sessions.complete and not _cut_short(seen),
        "calls": seen.requests,
    }
    return json.dumps(whole, indent=2)


def drawn(seen: Seen, width: int, *, everything: bool) -> RenderableType:
    """On a narrow terminal the columns that a person can do without are left out: `show` and --json have them."""
    found = shown_rows(seen, everything=everything)
    parts: list[RenderableType] = []
    if found:
        hidden = {"environment"} if len(seen.settings.environments) < 2 else set()
        fitting = _COLUMNS if width >= _WIDE else _NARROW if width >= _SMALL else _NARROWEST
        columns = [name for name in _COLUMNS if name in fitting and name not in hidden]
        styles = ["red" if row.problem else "dim" if row.state in ("asleep", "idle") else "" for row in found]
        parts.append(table(columns, [[_cells(row)[name] for name in columns] for row in found], styles))
    else:
        parts.append(Text("No sessions. Start one: make session"))
    if width < _SMALL:
        parts += [Text(f"{row.session}: {row.problem}", style="red") for row in found if row.problem]
    boxes = others(seen)
    if boxes:
        cells = [(box.name, box.kind, box.state, in_words(box.age) if box.age is not None else "") for box in boxes]
        parts += [Text(""), table(("sandbox", "kind", "state", "age"), cells)]
    if seen.sessions is not None and not seen.sessions.complete:
        parts.append(Text("There are more sessions than were read.", style="yellow"))
    parts += [Text(f"Older work items of {name} were not read.", style="dim") for name in _cut_short(seen)]
    parts += [Text(line, style="red") for line in seen.missing]
    return Group(*parts)


def _cut_short(seen: Seen) -> list[str]:
    """The environments whose queue has more items than were read."""
    return [environment for environment, listing in seen.items.items() if not listing.complete]


def _cells(row: SessionRow) -> dict[str, str]:
    tokens = f"{row.tokens_in}+{row.tokens_out}" if row.tokens_in or row.tokens_out else ""
    return {
        "session": row.session,
        "title": row.title,
        "environment": row.environment,
        "state": row.state,
        "item": row.item_state,
        "sandbox": row.sandbox_state,
        "age": in_words(row.age),
        "seen": in_words(row.seen) if row.seen is not None else "",
        "deaths": str(row.deaths or ""),
        "tokens": row.cost or tokens,
        "problem": row.problem,
    }
