"""Who is calling, and what they may call (docs/wire/anthropic.md#12-credentials).

Every credential arrives as a bearer token, so kinds are told apart by value. `Keyring` knows the values;
`authorize` holds the table.
"""

from __future__ import annotations

import enum
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from infra.local.claude.clock import Clock
from infra.local.claude.errors import KeyRefused, unauthenticated


@dataclass(frozen=True)
class ApiKey:
    """Console key: everything but the worker's side of the queue."""


@dataclass(frozen=True)
class EnvironmentKey:
    """A worker host's standing key, for one environment."""

    environment_id: str


@dataclass(frozen=True)
class SessionsToken:
    """What a work item's secret carries: good for that item and its session."""

    environment_id: str
    work_id: str
    session_id: str


Principal = ApiKey | EnvironmentKey | SessionsToken


class RouteGroup(enum.Enum):
    """Groups of routes that share a row of the table."""

    ADMINISTRATION = "agents, environments, session create/list/delete"
    SESSION_CHANGE = "session update and archive"
    SESSION = "session retrieve, events, threads"
    CLAIM = "work poll and ack"
    HEARTBEAT = "work heartbeat"
    STOP = "work stop"
    QUEUE = "work list and stats"
    ITEM = "work retrieve and update"
    SKILLS = "skill create, list and retrieve"
    SKILL_VERSION = "skill version retrieve and content"
    MEMORY_STORES = "memory store create, list, update, archive and delete"
    MEMORIES = "memory store retrieve, memories"


_TABLE: dict[RouteGroup, tuple[type[ApiKey] | type[EnvironmentKey] | type[SessionsToken], ...]] = {
    RouteGroup.ADMINISTRATION: (ApiKey,),
    RouteGroup.SESSION_CHANGE: (ApiKey,),
    RouteGroup.SESSION: (ApiKey, EnvironmentKey, SessionsToken),
    RouteGroup.CLAIM: (EnvironmentKey,),
    RouteGroup.HEARTBEAT: (EnvironmentKey, SessionsToken),
    RouteGroup.STOP: (ApiKey, EnvironmentKey, SessionsToken),
    RouteGroup.QUEUE: (ApiKey, EnvironmentKey),
    RouteGroup.ITEM: (ApiKey,),
    RouteGroup.SKILLS: (ApiKey,),
    RouteGroup.SKILL_VERSION: (ApiKey, EnvironmentKey, SessionsToken),
    RouteGroup.MEMORY_STORES: (ApiKey,),
    RouteGroup.MEMORIES: (ApiKey, SessionsToken),
}
_OF_NO_ENVIRONMENT = (RouteGroup.SKILL_VERSION, RouteGroup.MEMORIES)
"""What belongs to the workspace; which stores a session reaches is told by its attachments."""


def authorize(
    principal: Principal,
    access: RouteGroup,
    *,
    environment_id: str | None = None,
    work_id: str | None = None,
    session_id: str | None = None,
) -> None:
    """Raise KeyRefused as the table says; `environment_id` is the owner of what is called on.

    A credential of another environment or item meets 403 on the queue and 404 on sessions: there it learns nothing
    about what exists.
    """
    if not isinstance(principal, _TABLE[access]):
        if access is RouteGroup.ADMINISTRATION:
            raise KeyRefused("refused_on_administration", "this credential is not valid for this endpoint")
        raise KeyRefused("refused_elsewhere", f"this credential may not call: {access.value}")
    if access in _OF_NO_ENVIRONMENT:
        return
    match principal:
        case EnvironmentKey(own) if environment_id != own:
            raise _foreign(access, session_id)
        case SessionsToken() if access is RouteGroup.SESSION and session_id != principal.session_id:
            raise _foreign(access, session_id)
        case SessionsToken() if access is not RouteGroup.SESSION and (environment_id, work_id) != (
            principal.environment_id,
            principal.work_id,
        ):
            raise _foreign(access, session_id)


def _foreign(access: RouteGroup, session_id: str | None) -> Exception:
    if access is RouteGroup.SESSION:
        return KeyRefused("foreign_session_status", f"session {session_id} was not found")
    return KeyRefused("foreign_work_status", "this credential belongs to another environment or work item")


@dataclass
class _Token:
    principal: SessionsToken
    expires_at: datetime | None


class Keyring:
    """Which values are credentials now. Values are kept in memory and appear in no log."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._keys: dict[str, ApiKey | EnvironmentKey] = {}
        self._revoked: set[str] = set()
        self._tokens: dict[str, _Token] = {}
        self._tokens_of: dict[str, list[str]] = {}

    def add_api_key(self, value: str | None = None) -> str:
        value = value or f"sk-ant-api03-offline-{secrets.token_urlsafe(24)}"
        self._keys[value] = ApiKey()
        return value

    def add_environment_key(self, environment_id: str, value: str | None = None) -> str:
        value = value or f"sk-ant-oat01-offline-{secrets.token_urlsafe(24)}"
        self._keys[value] = EnvironmentKey(environment_id)
        self._revoked.discard(value)
        return value

    def revoke(self, value: str) -> bool:
        """True if it was a key; seen by the next request that uses it."""
        if self._keys.pop(value, None) is None:
            return False
        self._revoked.add(value)
        return True

    def mint_token(self, principal: SessionsToken, lifetime: float | None) -> str:
        """One more token for the item; earlier ones stay valid."""
        value = f"offline-sessions-token-{secrets.token_urlsafe(32)}"
        expires = None if lifetime is None else self._clock.now() + timedelta(seconds=lifetime)
        self._tokens[value] = _Token(principal, expires)
        self._tokens_of.setdefault(principal.work_id, []).append(value)
        return value

    def retire_tokens(self, work_id: str, grace: float) -> None:
        """The item has ended: its tokens go after `grace` seconds, so that a repeated stop is still answered."""
        now = self._clock.now()
        self._tokens = {v: t for v, t in self._tokens.items() if t.expires_at is None or now < t.expires_at}
        end = now + timedelta(seconds=grace)
        for value in self._tokens_of.pop(work_id, []):
            token = self._tokens.get(value)
            if token is None:
                continue
            token.expires_at = end if token.expires_at is None else min(token.expires_at, end)

    def expire_all_tokens(self) -> int:
        count = len(self._tokens)
        self._tokens.clear()
        self._tokens_of.clear()
        return count

    def classify(self, headers: Mapping[str, str]) -> Principal:
        """The caller, from `Authorization: Bearer` or `x-api-key`; raises 401."""
        scheme, _, bearer = headers.get("authorization", "").partition(" ")
        value = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
        if not value:
            raise unauthenticated("no credential: send Authorization: Bearer or x-api-key", hide_request_id=True)
        if value in self._keys:
            return self._keys[value]
        if value in self._revoked:
            raise unauthenticated("the OAuth token has been revoked", hide_request_id=True)
        token = self._tokens.get(value)
        if token is not None and (token.expires_at is None or self._clock.now() < token.expires_at):
            return token.principal
        raise unauthenticated("invalid bearer token")
