"""The whole service as one object: its stores, and the operations that touch more than one of them."""

from __future__ import annotations

import base64
import json
import secrets
from collections.abc import Mapping
from typing import Any

from infra.local.claude.agents import DEFAULT_AGENT, Agent, Agents
from infra.local.claude.brain import Brain
from infra.local.claude.clock import Clock, SystemClock, stamp
from infra.local.claude.credentials import Keyring, SessionsToken
from infra.local.claude.environments import Environments, OfflineEnvironment
from infra.local.claude.errors import ClaudeApiError, invalid
from infra.local.claude.files import Files
from infra.local.claude.inputs import checked_events
from infra.local.claude.knobs import Knobs
from infra.local.claude.memories import MemoryStores
from infra.local.claude.scripted import ScriptedBrain
from infra.local.claude.sessions import MAX_INITIAL_EVENTS, OfflineSession, Sessions
from infra.local.claude.shelf import Kept, Shelf
from infra.local.claude.skills import Skills
from infra.local.claude.turns import Turns
from infra.local.claude.webhooks import WebhookSender
from infra.local.claude.work import OfflineWorkItem, OfflineWorkQueue
from infra.local.faults import FaultRegistry

_THREAD_EVENTS = ("session.thread_idled",)


class ClaudePlatform:
    def __init__(
        self,
        *,
        clock: Clock | None = None,
        knobs: Knobs | None = None,
        brain: Brain | None = None,
        workspace_id: str = "wrkspc_offline",
    ) -> None:
        self.clock = clock or SystemClock()
        self.knobs = knobs or Knobs()
        self.faults = FaultRegistry()
        self.keyring = Keyring(self.clock)
        self.environments = Environments(self.clock)
        self.skills = Skills(self.clock)
        self.memory_stores = MemoryStores(self.clock)
        self.agents = Agents(self.clock, self.skills)
        self.vaults = Shelf(self.clock, "vlt", "vault")
        self.sessions = Sessions(self.clock, self.agents, self.memory_stores, self.vaults)
        self.queue = OfflineWorkQueue(self.clock, self.knobs)
        self.webhooks = WebhookSender(self.clock, self.knobs, workspace_id)
        self.files = Files(self.clock)
        self.user_profiles = Shelf(self.clock, "uprof", "user_profile")
        self.deployments = Shelf(self.clock, "depl", "deployment")
        self.deployment_runs = Shelf(self.clock, "drun", "deployment_run")
        self._credentials: dict[str, Shelf] = {}
        self.turns = Turns(self.clock, self.knobs, self.queue, brain or ScriptedBrain(), self._announce)
        self.queue.on_end = self._item_ended

    # Sessions

    def create_session(self, body: Mapping[str, Any]) -> OfflineSession:
        if not isinstance(body.get("environment_id"), str):
            raise invalid("environment_id: required")
        initial = checked_events(body, "initial_events", None) if body.get("initial_events") else []
        if len(initial) > MAX_INITIAL_EVENTS:
            raise invalid(f"initial_events: at most {MAX_INITIAL_EVENTS}")
        session = self.sessions.create(body, self.environments.get(body["environment_id"]))
        self.turns.open(session, initial)
        return session

    def update_session(self, session: OfflineSession, body: Mapping[str, Any]) -> None:
        changed = self.sessions.update(session, body)
        session.log.add("session.updated", **changed)
        self._announce("session.updated", session)

    def archive_session(self, session: OfflineSession) -> None:
        """Idempotent; a running session is refused."""
        if session.archived_at is not None:
            return
        _refuse_running(session, "archived")
        session.archived_at = self.clock.now()
        if not session.terminated:
            self.turns.terminate(session)
        item = self.queue.live_item_of(session.id)
        if item is not None and self.knobs.archive_stops_item:
            self.queue.stop(item, force=True)

    def delete_session(self, session: OfflineSession) -> None:
        """Its streams end; its item becomes a stale entry that a poll answers with 404 once."""
        _refuse_running(session, "deleted")
        self.turns.abandon(session)
        self.sessions.remove(session)
        self.queue.forsake(session.id)
        session.log.add("session.deleted")
        session.log.hang_up()
        self._announce("session.deleted", session)

    def credentials_of(self, vault: Kept) -> Shelf:
        return self._credentials.setdefault(vault.id, Shelf(self.clock, "vcred", "vault_credential"))

    # Work

    def secret_for(self, item: OfflineWorkItem) -> str | None:
        """A fresh secret for one hand-out: URL-safe base64 of a JSON object (docs/wire/anthropic.md#31-work-item)."""
        if self.knobs.null_secret or item.kind != "session":
            return None
        principal = SessionsToken(item.environment_id, item.id, item.subject_id)
        token = self.keyring.mint_token(principal, self.knobs.token_lifetime)
        payload = {"sessions_token": token, "ingress_token": secrets.token_urlsafe(16), "sources": []}
        return base64.urlsafe_b64encode(json.dumps(payload).encode()).decode().rstrip("=")

    def queue_of(self, environment_id: str, *, cloud: int | None) -> OfflineEnvironment:
        """The environment, if it has a queue; `cloud` is the status that a cloud environment's queue answers."""
        environment = self.environments.get(environment_id)
        if not environment.self_hosted and cloud is not None:
            raise ClaudeApiError(cloud, "a cloud environment has no work queue")
        return environment

    # Ready-made things for a demo

    def furnish(
        self, *, environment_key: str | None, environment_id: str | None, agent_id: str | None
    ) -> tuple[OfflineEnvironment, Agent]:
        """One self-hosted environment with a key, and one agent with the full toolset."""
        environment = self.environments.create({"name": "offline", "config": {"type": "self_hosted"}}, environment_id)
        self.keyring.add_environment_key(environment.id, environment_key)
        return environment, self.agents.create(DEFAULT_AGENT, agent_id)

    def hang_up(self) -> int:
        return sum(session.log.hang_up() for session in self.sessions.all())

    async def close(self) -> None:
        for session in self.sessions.all():
            self.turns.abandon(session)
        await self.webhooks.close()

    def dump(self, session_id: str | None = None) -> dict[str, Any]:
        """Everything, for the admin's eyes, or what is about one session; no credential is in it."""
        return {
            "now": stamp(self.clock.now()),
            "environments": [e.as_json() for e in self.environments.all(include_archived=True)],
            "agents": [a.as_json() for a in self.agents.all(include_archived=True)],
            "sessions": [
                {**session.as_json(self.clock.now()), "phase": session.phase.name.lower()}
                | {"open_calls": [call.id for call in session.open_calls]}
                | {"listeners": session.log.listeners, "events": len(session.log)}
                for session in self.sessions.all()
                if session_id in (None, session.id)
            ],
            "items": [
                {**item.as_json(), "stale": item.stale, "handouts": item.handouts, "acks": item.acks}
                | {"heartbeats": item.heartbeats, "history": item.history}
                for item in self.queue.all_items()
                if session_id in (None, item.subject_id)
            ],
            "webhooks": [endpoint.as_json() for endpoint in self.webhooks.endpoints],
            "deliveries": [delivery.as_json() for delivery in self.webhooks.deliveries],
        }

    def _announce(self, kind: str, session: OfflineSession) -> None:
        thread = {"session_thread_id": session.thread_id} if kind in _THREAD_EVENTS else {}
        self.webhooks.emit(kind, session.id, **thread)

    def _item_ended(self, item: OfflineWorkItem) -> None:
        self.keyring.retire_tokens(item.id, self.knobs.token_grace)
        session = self.sessions.find(item.subject_id)
        if session is not None and item.kind == "session":
            self.turns.item_ended(session, item)


def _refuse_running(session: OfflineSession, what: str) -> None:
    if session.status in ("running", "rescheduling"):
        raise invalid(f"a running session cannot be {what}: send user.interrupt and wait until it is idle")
