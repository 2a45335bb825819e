"""`on_finish`: the call that tells of a race's end, signed with Standard Webhooks and the operator's own key.

Only the operator may ask for one, and only at a host that RACE_WEBHOOK_HOSTS lists: the functions reach more than their
callers do. No redirect is followed and no answer is read. A delivery that fails is tried again a few times, with the
same `webhook-id`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import orjson

from functions.requests import HttpError
from shared.backoff import pause_before
from shared.errors import HandsError, SettingsError
from shared.secret import Secret
from shared.setting_kinds import LOOPBACK
from shared.settings_table import Races

if TYPE_CHECKING:
    from shared.races.events import Event, OnEvent
    from shared.races.report import RaceReport
    from shared.races.request import RaceRequest
    from shared.service import Service
    from shared.settings import RaceLimits

log = logging.getLogger(__name__)

ATTEMPTS: Final = 4
FIRST_PAUSE: Final = 1.0  # seconds, five times as long before each further attempt
ATTEMPT_SECONDS: Final = 10.0
BEFORE_A_FREEZE: Final = 15.0  # seconds for all attempts where the runtime freezes after the answer
_PORTS: Final = {"https": 443, "http": 80}
_COME_AGAIN: Final = (408, 409, 425, 429)


async def require_allowed(race: RaceRequest, limits: RaceLimits) -> None:
    """Raises HttpError 400 for an `on_finish` that may not be called from here, SettingsError for a key that is none,
    SecretUnavailable."""
    if race.on_finish is None:
        return
    if limits.webhook_key is None or not limits.webhook_hosts:
        names = f"{Races.RACE_WEBHOOK_HOSTS.name} and {Races.RACE_WEBHOOK_SIGNING_KEY.name}"
        raise _refused(f"no webhooks are sent from here: set {names}")
    parts = urlsplit(race.on_finish)
    host, port = parts.hostname or "", parts.port or _PORTS[parts.scheme]
    if parts.scheme != "https" and host not in LOOPBACK:
        raise _refused("use https")
    allowed = {entry.lower() for entry in limits.webhook_hosts}
    if f"{host}:{port}" not in allowed and not (host in allowed and port == _PORTS[parts.scheme]):
        raise _refused(f"this host is not among those of {Races.RACE_WEBHOOK_HOSTS.name}")
    _signed("", datetime.now(UTC), "", await limits.webhook_key.areveal())


async def announced(
    run: Callable[[OnEvent], Awaitable[RaceReport]],
    url: str,
    service: Service,
    on_event: OnEvent | None,
    *,
    lives_on: bool,
    kept: Callable[[], Awaitable[None]],
) -> RaceReport:
    """Runs the race and tells of its end, behind the answer where there is something behind it and when `kept` says
    that it can be read back. A race that was refused
    before it began, or that its caller ended, is not told."""
    begun: list[str] = []

    def look_on(event: Event) -> None:
        if event.event == "race":
            begun.append(event.race_id)
        if on_event is not None:
            on_event(event)

    async def say(told: Mapping[str, Any]) -> None:
        key = service.settings.races.webhook_key
        if key is None or not begun:
            return

        async def deliver() -> None:
            if lives_on:
                await kept()
            try:
                await tell(url, begun[0], {"race_id": begun[0], **told}, key)
            except HandsError as error:
                log.error("race.not_told race=%s reason=%s", begun[0], error)

        telling = service.in_background(deliver())
        if not lives_on:
            await asyncio.wait({telling}, timeout=BEFORE_A_FREEZE)

    try:
        report = await run(look_on)
    except HttpError as error:
        await say({"state": "failed", "error": {"type": error.kind, "message": error.message}})
        raise
    score = next((branch.score for branch in report.branches if branch.name == report.winner), None)
    state = "cancelled" if report.cancelled else "finished"
    await say({"state": state, "winner": report.winner, "score": score, "seconds": report.seconds})
    return report


async def tell(url: str, race_id: str, told: Mapping[str, Any], key: Secret) -> bool:
    """Delivers it; whether somebody has taken it. Never raises for what the receiver does. `told`: the event's data."""
    import httpx2

    now = datetime.now(UTC)
    body = orjson.dumps({"type": f"race.{told['state']}", "timestamp": now.isoformat(), "data": told}).decode()
    host, said = urlsplit(url).hostname, ""
    for attempt in range(ATTEMPTS):
        await asyncio.sleep(pause_before(attempt, FIRST_PAUSE, factor=5.0))
        headers = {"content-type": "application/json"} | _signed(
            f"race_{race_id}", datetime.now(UTC), body, await key.areveal()
        )
        try:
            async with (
                asyncio.timeout(ATTEMPT_SECONDS),
                httpx2.AsyncClient(follow_redirects=False, timeout=ATTEMPT_SECONDS) as client,
                client.stream("POST", url, content=body, headers=headers) as answer,
            ):
                status = answer.status_code
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError) as error:
            said = type(error).__name__
            continue
        if 200 <= status < 300:
            log.info("race.told race=%s host=%s attempts=%d", race_id, host, attempt + 1)
            return True
        said = f"HTTP {status}"
        if status < 500 and status not in _COME_AGAIN:
            break
    log.error("race.not_told race=%s host=%s reason=%s", race_id, host, said)
    return False


def _signed(message_id: str, at: datetime, body: str, key: str) -> dict[str, str]:
    """Raises SettingsError."""
    from standardwebhooks import Webhook

    try:
        signature = Webhook(key).sign(message_id, at, body)
    except ValueError:  # binascii's is one
        raise SettingsError(f"{Races.RACE_WEBHOOK_SIGNING_KEY.name} must be whsec_ and base64") from None
    stamp = str(int(at.timestamp()))
    return {"webhook-id": message_id, "webhook-timestamp": stamp, "webhook-signature": signature}


def _refused(message: str) -> HttpError:
    return HttpError(400, "invalid_request", f"on_finish: {message}", field="on_finish")
