"""Assumptions about what each kind of key may do (docs/wire/anthropic.md#12-credentials)."""

from __future__ import annotations

from typing import Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.item_life import item_life
from infra.cli.certify.observation import NotTried, Observed, answered_with

_REFUSALS: Final = (401, 403, 404)


async def api_key_polls(ground: Ground) -> Observed:
    await ground.session()
    status = (await ground.work("GET", "/poll", key="api")).status_code
    return Observed(status in _REFUSALS, f"HTTP {status}", {"claude.api_key_polls": status == 200})


async def api_key_lists(ground: Ground) -> Observed:
    answers = (await ground.once(item_life)).by_api_key
    statuses = {name: answers[name].status_code for name in ("list", "stats")}
    taken = set(statuses.values()) == {200}
    return Observed(taken, _told(statuses), {"claude.api_key_lists": taken})


async def api_key_serves(ground: Ground) -> Observed:
    answers = (await ground.once(item_life)).by_api_key
    statuses = {name: answers[name].status_code for name in ("ack", "heartbeat")}
    refused = set(statuses.values()) <= set(_REFUSALS)
    return Observed(refused, _told(statuses), {"claude.api_key_serves": not refused})


async def token_scope(ground: Ground) -> Observed:
    answers = (await ground.once(item_life)).by_token
    if not answers:
        return Observed(True, "no poll hands a token out")
    statuses = {name: answer.status_code for name, answer in answers.items()}
    reach = [name for name, status in statuses.items() if status not in _REFUSALS]
    return Observed(not reach, _told(statuses), {"claude.token_reach": reach})


async def refused_keys(ground: Ground) -> Observed:
    item = await ground.offered()
    administration = {
        "agents": await ground.claude("GET", "/v1/agents", limit=1),
        "the environment": await ground.claude("GET", f"/v1/environments/{ground.environment.id}"),
        "the list of sessions": await ground.claude("GET", "/v1/sessions", limit=1),
    }
    elsewhere = {
        "a work item": await ground.work("GET", f"/{item['id']}"),
        "skills": await ground.claude("GET", "/v1/skills", limit=1),
    }
    first = {name: answer.status_code for name, answer in administration.items()}
    second = {name: answer.status_code for name, answer in elsewhere.items()}
    behaviour = {
        **answered_with("claude.refused_on_administration", first["agents"], *_REFUSALS),
        **answered_with("claude.refused_elsewhere", second["a work item"], *_REFUSALS),
    }
    holds = set(first.values()) == {401} and set(second.values()) == {403}
    return Observed(holds, _told({**first, **second}), behaviour)


async def foreign_key(ground: Ground) -> Observed:
    """The key of the settings' environment, on another environment that has a session."""
    await _sweep_environments(ground)
    wanted = {"name": "certify", "config": {"type": "self_hosted"}, "metadata": ground.mark()}
    made = await ground.claude("POST", "/v1/environments", wanted, key="api")
    if made.status_code >= 300:
        raise NotTried(f"an environment could not be made: HTTP {made.status_code}")
    other = str(made.json()["id"])
    ground.owe(other, lambda: _end_environment(ground, other))
    session_id = await ground.session(environment_id=other)
    work = (await ground.claude("GET", f"/v1/environments/{other}/work/stats")).status_code
    session = (await ground.claude("GET", f"/v1/sessions/{session_id}")).status_code
    behaviour = {
        **answered_with("claude.foreign_work_status", work, *_REFUSALS),
        **answered_with("claude.foreign_session_status", session, *_REFUSALS),
    }
    return Observed((work, session) == (403, 404), _told({"its queue": work, "its session": session}), behaviour)


async def _sweep_environments(ground: Ground) -> None:
    """Ends the environments that a killed certify left, with their sessions, of the newest hundred of each."""
    left = {row["id"] for row in await _rows(ground, "environments") if ground.is_over(row.get("metadata"))}
    for row in await _rows(ground, "sessions") if left else []:
        if row.get("environment_id") in left:
            await ground.claude("DELETE", f"/v1/sessions/{row['id']}", key="api")
    for environment_id in left:
        await ground.claude("DELETE", f"/v1/environments/{environment_id}", key="api")


async def _rows(ground: Ground, what: str) -> list[dict[str, Any]]:
    answer = await ground.claude("GET", f"/v1/{what}", key="api", limit=100)
    return list(answer.json()["data"]) if answer.status_code == 200 else []


async def _end_environment(ground: Ground, environment_id: str) -> None:
    status = (await ground.claude("DELETE", f"/v1/environments/{environment_id}", key="api")).status_code
    if status >= 300 and status != 404:
        raise NotTried(environment_id)


def _told(statuses: dict[str, int]) -> str:
    return ", ".join(f"{name}: HTTP {status}" for name, status in statuses.items())


_CREDENTIALS: Final = "docs/wire/anthropic.md#12-credentials"

CHECKS: Final = (
    ServiceCheck(
        "queue.api-key-polls",
        _CREDENTIALS,
        "an API key may not poll",
        "who has the API key can take work: keep it away from what should only watch",
        api_key_polls,
    ),
    ServiceCheck(
        "queue.api-key-lists",
        _CREDENTIALS,
        "an API key may list work and read its stats",
        "nothing: this project looks at the queue with the environment's key",
        api_key_lists,
    ),
    ServiceCheck(
        "queue.api-key-serves",
        _CREDENTIALS,
        "an API key may neither ack nor beat",
        "who has the API key can take work from its worker: keep it away from what should only watch",
        api_key_serves,
    ),
    ServiceCheck(
        "queue.token-scope",
        _CREDENTIALS,
        "a sessions token may not ack, list work, read stats or skills, and sees no other session",
        "a program in a sandbox that gets hold of its token has that reach: docs/security.md must say so",
        token_scope,
    ),
    ServiceCheck(
        "queue.refused-keys",
        _CREDENTIALS,
        "an environment key meets 401 on agents, environments and the list of sessions, 403 on a work item and skills",
        "nothing: 401, 403 and 404 are refusals alike. A 401 alone has a key read anew, for it may have been rotated",
        refused_keys,
    ),
    ServiceCheck(
        "queue.foreign-key",
        _CREDENTIALS,
        "an environment's key meets 403 on another environment's queue, and 404 on its sessions",
        "where it is let in, a key leads to all environments of its workspace: give each its own workspace",
        foreign_key,
    ),
)
