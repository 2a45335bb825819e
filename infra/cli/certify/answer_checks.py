"""Assumptions about what all answers of the Claude API have in common, and what a request needs."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.item_life import item_life
from infra.cli.certify.observation import NotTried, Observed

_APART: Final = 5.0
"""Seconds: an answer's date has whole seconds, and takes its way."""
_OLD_VERSION: Final = "2023-06-01"
_PAGES: Final = {"work": 100, "sessions": 100, "events": 1000}
_MANY: Final = 1000
"""A page that is taken though it should be too long is taken up to this, as far as the offline platform goes."""


async def date(ground: Ground) -> Observed:
    """An ack's date against the moment that its item tells, and against this machine's clock."""
    life = await ground.once(item_life)
    answers = (life.ack, life.first_beat, life.stale_beat, life.stop)
    dates = [_date(answer) for answer in answers]
    if any(moment is None for moment in dates):
        return Observed(False, "not every answer has a `date`", {"claude.date_offset": None})
    told, acked = dates[0], life.ack.json().get("acknowledged_at")
    if told is None or not acked:
        raise NotTried("the ack tells no `acknowledged_at`")
    behind = (datetime.fromisoformat(acked) - told).total_seconds()
    here = (datetime.now(UTC) - (_date(await ground.work("GET", "/stats")) or told)).total_seconds()
    seen = (
        f"each has one, {behind:.1f} s behind the time that an ack tells and {here:.1f} s behind this machine's clock"
    )
    holds = abs(behind) <= _APART
    return Observed(holds, seen, {"claude.date_offset": 0.0 if holds else -round(behind, 1)})


def _date(answer: Any) -> datetime | None:
    try:
        return parsedate_to_datetime(answer.headers.get("date", "")).replace(tzinfo=UTC)
    except ValueError:
        return None


async def beta_header(ground: Ground) -> Observed:
    status = (await ground.work("GET", "/stats", beta=False)).status_code
    return Observed(status == 404, f"HTTP {status}", {"claude.require_beta_header": status == 404})


async def oldest_version(ground: Ground) -> Observed:
    status = (await ground.work("GET", "/stats", version=_OLD_VERSION)).status_code
    taken = status == 200
    behaviour = {"claude.oldest_version": "" if taken else "2026-10-21"}
    return Observed(taken, f"`{_OLD_VERSION}` is answered HTTP {status}", behaviour)


async def page_limits(ground: Ground) -> Observed:
    """Each list with one row more than a page may have."""
    session_id = await ground.session()
    answers = {
        "work": await ground.work("GET", "", limit=_PAGES["work"] + 1),
        "sessions": await ground.claude("GET", "/v1/sessions", key="api", limit=_PAGES["sessions"] + 1),
        "events": await ground.claude("GET", f"/v1/sessions/{session_id}/events", limit=_PAGES["events"] + 1),
    }
    statuses = {name: answer.status_code for name, answer in answers.items()}
    seen = ", ".join(f"{_PAGES[name] + 1} of {name}: HTTP {status}" for name, status in statuses.items())
    behaviour = {
        f"claude.longest_{name}_page": most + (_MANY if statuses[name] == 200 else 0) for name, most in _PAGES.items()
    }
    return Observed(set(statuses.values()) == {400}, seen, behaviour)


CHECKS: Final = (
    ServiceCheck(
        "queue.date",
        "docs/wire/anthropic.md#14-sdk-transport",
        "each answer has a `date`, by the clock that tells the times of items",
        "without it ages of items are told by this machine's clock (`HANDS204`); where it is off they are wrong",
        date,
    ),
    ServiceCheck(
        "queue.beta-header",
        "docs/wire/anthropic.md#13-unknowns",
        "work routes answer 404 without the beta header",
        "nothing: the SDK sends it always",
        beta_header,
    ),
    ServiceCheck(
        "queue.oldest-version",
        "docs/wire/anthropic.md#11-what-the-sdk-sends",
        f"a request with `anthropic-version: {_OLD_VERSION}`, as the documentation shows it, is answered",
        "nothing: the SDK names its own version",
        oldest_version,
    ),
    ServiceCheck(
        "queue.page-limits",
        "docs/wire/anthropic.md#12-for-an-emulator",
        "pages have at most 100 rows of work or sessions and 1000 events: a larger `limit` is refused with 400",
        "a tick and the commands may read larger pages, with fewer calls",
        page_limits,
    ),
)
