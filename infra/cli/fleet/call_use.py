"""Calls a minute against the budget: what the functions at FUNCTIONS_URL have used of theirs, as their `/status` says.

No service tells what an organisation uses in all. Where the Claude API's answers carry `anthropic-ratelimit-requests-*`
headers, as those of its Messages API do, they are shown beside it (infra/cli/fleet/lists.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

import httpx2

from infra.cli.fleet.survey import Seen
from shared import names
from shared.errors import SecretUnavailable
from shared.ports import SandboxRecord
from shared.settings import Settings

_SECONDS: Final = 1.5
_LARGEST: Final = 256 * 1024  # bytes
_KINDS: Final = {"anthropic_reads": "Claude, reads", "anthropic_writes": "Claude, changes", "tensorlake": "Tensorlake"}
_MOST_PARTS: Final = 100
_UNSET: Final = "To see what the functions use of it: set FUNCTIONS_URL and FUNCTIONS_TOKEN."
_SANDBOX: Final = "The functions live in a sandbox, and to ask would keep it awake: hands webhook-sandbox status"
_THERE: Final = "Of the copy of the functions at FUNCTIONS_URL. "
HERE: Final = "Of this copy of the functions. "
_REST: Final = "Other copies, workers and people share the organisation's budget; no service tells how much is used."


@dataclass(frozen=True, slots=True)
class CallUse:
    """Of one process and one kind of call. `budget`: that it may make in a minute, None for any number. `busiest`: the
    most in one minute, for each part of the last hours, the oldest first (shared/adapters/call_counts.py)."""

    kind: str
    last_minute: int
    budget: int | None
    busiest: tuple[int, ...]

    @property
    def most(self) -> int:
        return max((self.last_minute, *self.busiest))


@dataclass(frozen=True, slots=True)
class Calls:
    """`meaning`: what the figures are, or why there are none, for people."""

    uses: tuple[CallUse, ...]
    meaning: str


def told(report: Mapping[str, Any], whose: str = HERE) -> Calls:
    """Of what a server's `/status` says."""
    raw = report.get("calls")
    if not isinstance(raw, dict):
        return Calls((), "The functions do not tell their calls: are they of an older version?")
    uses = tuple(use for name, kind in _KINDS.items() if (use := _use(kind, raw.get(name))) is not None)
    return Calls(uses, whose + _REST)


def _use(kind: str, raw: Any) -> CallUse | None:
    if not isinstance(raw, dict):
        return None
    last, budget, busiest = raw.get("last_minute"), raw.get("a_minute"), raw.get("busiest")
    if type(last) is not int or not (budget is None or type(budget) is int) or not isinstance(busiest, list):
        return None
    return CallUse(kind, last, budget, tuple(each for each in busiest[:_MOST_PARTS] if type(each) is int))


CallsOf = Callable[[Seen], Coroutine[Any, Any, Calls]]


def of_the_functions_at(url: str) -> CallsOf:
    """One call, of a second and a half at most. A server that lives in a sandbox is not asked."""

    async def read(seen: Seen) -> Calls:
        return await _ask(seen.settings, url.strip(), seen.sandboxes.rows if seen.sandboxes is not None else ())

    return read


async def _ask(settings: Settings, url: str, sandboxes: Sequence[SandboxRecord]) -> Calls:
    if not url or settings.functions_token is None:
        return Calls((), f"{_REST} {_UNSET}")
    if _lives_in(url, settings.prefix, sandboxes):
        return Calls((), _SANDBOX)
    try:
        headers = {"authorization": f"Bearer {await settings.functions_token.areveal()}"}
        async with (
            httpx2.AsyncClient(timeout=_SECONDS) as client,
            client.stream("GET", f"{url.rstrip('/')}/status", headers=headers) as answer,
        ):
            if answer.status_code != 200:
                return Calls((), f"FUNCTIONS_URL answers {answer.status_code} at /status, so its calls are not known.")
            body = b""
            async for part in answer.aiter_bytes():
                body += part
                if len(body) > _LARGEST:
                    break
        return told(_parsed(body), _THERE)
    except (httpx2.HTTPError, httpx2.InvalidURL, httpx2.StreamError, SecretUnavailable, ValueError) as error:
        return Calls((), f"FUNCTIONS_URL did not tell its calls ({type(error).__name__}).")


def _parsed(body: bytes) -> Mapping[str, Any]:
    """Raises ValueError."""
    found = json.loads(body)
    return found if isinstance(found, dict) else {}


def _lives_in(url: str, prefix: str, sandboxes: Sequence[SandboxRecord]) -> bool:
    host = (urlsplit(url).hostname or "").lower()
    servers = [box for box in sandboxes if isinstance(names.parse(prefix, box.name), names.ServerSandbox)]
    return any(mark.lower() in host for box in servers for mark in (box.id, box.name) if mark)
