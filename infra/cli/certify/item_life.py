"""What one work item's answers say from its offer to its end, for the checks that read them.

Two sessions without a message are enough for all of them, so none of it costs money.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from image.session.worker.credentials import sessions_token
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried

if TYPE_CHECKING:
    import httpx2

NO_HEARTBEAT: Final = "NO_HEARTBEAT"
_POLLS: Final = 5


@dataclass(frozen=True, slots=True)
class ItemLife:
    """Answers in the order in which they came. The item is that of the older one of two sessions, which wait both."""

    oldest_first: bool
    newest_listed_first: bool | None
    has_secret: bool
    ack: httpx2.Response
    second_ack: httpx2.Response
    first_beat: httpx2.Response
    second_beat: httpx2.Response
    stale_beat: httpx2.Response
    """With the first beat's value."""
    other_first_beat: httpx2.Response
    held: str
    """The value that was held at that one."""
    by_api_key: dict[str, httpx2.Response]
    by_token: dict[str, httpx2.Response]
    """Empty without a token."""
    stop: httpx2.Response
    second_stop: httpx2.Response
    stopped_ack: httpx2.Response
    listed_stopped: bool


async def item_life(ground: Ground) -> ItemLife:
    older, younger = await ground.offered(), await ground.offered()
    first = None
    for _ in range(_POLLS):
        first = first or await ground.polled()
    if first is None:
        raise NotTried("two sessions wait, and no poll hands anything out")
    listed = [item["id"] for item in await ground.items()]
    newest_listed_first = None
    if older["id"] in listed and younger["id"] in listed:
        newest_listed_first = listed.index(younger["id"]) < listed.index(older["id"])
    polled = await ground.claim(ground.session_of(older))
    one, other = str(older["id"]), ground.session_of(younger)
    secret = polled.get("secret")

    async def send(action: str, **more: Any) -> httpx2.Response:
        return await ground.work("POST", f"/{one}/{action}", **more)

    ack, second_ack = await send("ack"), await send("ack")
    first_beat = await beat(ground, one)
    second_beat = await beat(ground, one, held_by(first_beat, NO_HEARTBEAT))
    stale_beat = await beat(ground, one, held_by(first_beat, NO_HEARTBEAT))
    held = held_by(stale_beat, held_by(second_beat, NO_HEARTBEAT))
    other_first_beat = await beat(ground, one)
    by_api_key = {
        "list": await ground.work("GET", "", key="api", limit=1),
        "stats": await ground.work("GET", "/stats", key="api"),
        "ack": await send("ack", key="api"),
        "heartbeat": await beat(ground, one, held_by(other_first_beat, held), key="api"),
    }
    token = (sessions_token(secret) if isinstance(secret, str) else None) or ""
    by_token = {} if not token else await _by_token(ground, one, other, token)
    stop = await send("stop", body={"force": True})
    second_stop = await send("stop", body={"force": True})
    return ItemLife(
        oldest_first=first["id"] == older["id"],
        newest_listed_first=newest_listed_first,
        has_secret=secret is not None,
        ack=ack,
        second_ack=second_ack,
        first_beat=first_beat,
        second_beat=second_beat,
        stale_beat=stale_beat,
        other_first_beat=other_first_beat,
        held=held,
        by_api_key=by_api_key,
        by_token=by_token,
        stop=stop,
        second_stop=second_stop,
        stopped_ack=await send("ack"),
        listed_stopped=any(item["id"] == one for item in await ground.items()),
    )


async def _by_token(ground: Ground, work_id: str, other_session: str, token: str) -> dict[str, httpx2.Response]:
    """By what a token of that item may not do, as far as is known (docs/wire/anthropic.md#12-credentials)."""
    return {
        "ack": await ground.work("POST", f"/{work_id}/ack", token=token),
        "list": await ground.work("GET", "", token=token, limit=1),
        "stats": await ground.work("GET", "/stats", token=token),
        "skills": await ground.claude("GET", "/v1/skills", token=token, limit=1),
        "sessions": await ground.claude("GET", f"/v1/sessions/{other_session}", token=token),
    }


async def beat(ground: Ground, work_id: str, expected: str = NO_HEARTBEAT, **more: Any) -> httpx2.Response:
    """A heartbeat; without `expected` an item's first one."""
    return await ground.work("POST", f"/{work_id}/heartbeat", expected_last_heartbeat=expected, **more)


def held_by(answer: httpx2.Response, otherwise: str) -> str:
    """The value that a heartbeat was given."""
    return str(answer.json().get("last_heartbeat") or otherwise) if answer.status_code == 200 else otherwise
