"""Sends webhooks the way the live service does: signed, at least once, unordered, three attempts
(docs/wire/anthropic.md#9-webhooks)."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import uuid
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import httpx2
from standardwebhooks import Webhook

from infra.local.claude.clock import Clock, stamp
from infra.local.claude.ids import new_id
from infra.local.claude.knobs import Knobs

ATTEMPTS = 3
_LOG_LENGTH = 5000


@dataclass
class WebhookEndpoint:
    """Where events go. `types` None: all of them."""

    id: str
    url: str
    signing_key: str = field(repr=False)
    types: frozenset[str] | None = None
    disabled: str | None = None
    failing_since: datetime | None = None

    def as_json(self) -> dict[str, Any]:
        types = None if self.types is None else sorted(self.types)
        return {"id": self.id, "url": self.url, "types": types, "disabled": self.disabled}


@dataclass
class Delivery:
    """One event on its way to one endpoint, with every attempt: time, status or error."""

    event_id: str
    type: str
    session_id: str
    endpoint_id: str
    created_at: datetime
    attempts: list[dict[str, Any]] = field(default_factory=list)
    outcome: str = "pending"

    def as_json(self) -> dict[str, Any]:
        return {
            "event_id": self.event_id,
            "type": self.type,
            "session_id": self.session_id,
            "endpoint_id": self.endpoint_id,
            "created_at": stamp(self.created_at),
            "attempts": self.attempts,
            "outcome": self.outcome,
        }


class WebhookSender:
    """`emit` never waits: each delivery is a task of its own, and nothing of it reaches the API's callers."""

    def __init__(self, clock: Clock, knobs: Knobs, workspace_id: str) -> None:
        self._clock = clock
        self._knobs = knobs
        self._chance = random.Random(0)
        self._endpoints: dict[str, WebhookEndpoint] = {}
        self._numbers = itertools.count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._client: httpx2.AsyncClient | None = None
        self.organization_id = str(uuid.uuid4())
        self.workspace_id = workspace_id
        self.deliveries: deque[Delivery] = deque(maxlen=_LOG_LENGTH)

    def add_endpoint(self, url: str, signing_key: str, types: Iterable[str] | None = None) -> WebhookEndpoint:
        """Raises ValueError for a URL or key that cannot work."""
        if not url.startswith(("http://", "https://")):
            raise ValueError("url: expected http(s)://...")
        try:
            Webhook(signing_key)
        except Exception as error:
            raise ValueError("signing_key: expected whsec_ and base64") from error
        chosen = None if types is None else frozenset(types)
        endpoint = WebhookEndpoint(f"whep_{next(self._numbers)}", url, signing_key, chosen)
        self._endpoints[endpoint.id] = endpoint
        return endpoint

    def remove_endpoint(self, endpoint_id: str) -> bool:
        return self._endpoints.pop(endpoint_id, None) is not None

    def enable(self, endpoint_id: str) -> bool:
        """Events of the meantime are not replayed."""
        endpoint = self._endpoints.get(endpoint_id)
        if endpoint is not None:
            endpoint.disabled = endpoint.failing_since = None
        return endpoint is not None

    @property
    def endpoints(self) -> list[WebhookEndpoint]:
        return list(self._endpoints.values())

    def emit(self, kind: str, session_id: str, **more: str) -> None:
        """One event to every endpoint that takes its type now."""
        body = {
            "type": "event",
            "id": new_id("whe"),
            "created_at": stamp(self._clock.now()),
            "data": {
                "type": kind,
                "id": session_id,
                "organization_id": self.organization_id,
                "workspace_id": self.workspace_id,
                **more,
            },
        }
        for endpoint in self.endpoints:
            if endpoint.disabled is not None or (endpoint.types is not None and kind not in endpoint.types):
                continue
            for _ in range(self._copies()):
                self._start(endpoint, body)

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._client is not None:
            await self._client.aclose()
            self._client = None

    def _copies(self) -> int:
        if self._knobs.webhook_drop and self._chance.random() < self._knobs.webhook_drop:
            return 0
        whole, part = divmod(self._knobs.webhook_duplicates, 1)
        return 1 + int(whole) + (self._chance.random() < part)

    def _start(self, endpoint: WebhookEndpoint, body: dict[str, Any]) -> None:
        data = body["data"]
        delivery = Delivery(body["id"], data["type"], data["id"], endpoint.id, self._clock.now())
        self.deliveries.append(delivery)
        raw = json.dumps(body, separators=(",", ":"))
        task = asyncio.get_running_loop().create_task(self._deliver(endpoint, delivery, raw))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, endpoint: WebhookEndpoint, delivery: Delivery, raw: str) -> None:
        if self._knobs.webhook_reorder_window:
            await asyncio.sleep(self._chance.uniform(0, self._knobs.webhook_reorder_window))
        for attempt in range(ATTEMPTS):
            if attempt:
                await asyncio.sleep(self._backoff())
            if endpoint.disabled is not None:
                delivery.outcome = "endpoint disabled"
                return
            if await self._attempt(endpoint, delivery, raw):
                delivery.outcome = "delivered"
                return
        delivery.outcome = "endpoint disabled" if endpoint.disabled else "dropped"

    def _backoff(self) -> float:
        low, high = self._knobs.webhook_backoff_min, self._knobs.webhook_backoff_max
        return self._chance.uniform(low, max(low, high)) * self._knobs.webhook_backoff_scale

    async def _attempt(self, endpoint: WebhookEndpoint, delivery: Delivery, raw: str) -> bool:
        """One POST, stamped and signed anew; True if a 2xx came back."""
        now = self._clock.now()
        record: dict[str, Any] = {"at": stamp(now)}
        delivery.attempts.append(record)
        headers = {
            "content-type": "application/json",
            "user-agent": "offline-claude-webhooks",
            "webhook-id": delivery.event_id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": Webhook(endpoint.signing_key).sign(delivery.event_id, now, raw),
        }
        timeout = self._knobs.webhook_timeout
        try:
            answer = await self._http().post(endpoint.url, content=raw, headers=headers, timeout=timeout)
        except httpx2.HTTPError as error:
            record["error"] = f"{type(error).__name__}: {error}"
            self._note_failure(endpoint, now)
            return False
        record["status"] = answer.status_code
        if answer.is_success:
            endpoint.failing_since = None
            return True
        if 300 <= answer.status_code < 400:
            endpoint.disabled = f"answered {answer.status_code}: redirects are not followed"
        self._note_failure(endpoint, now)
        return False

    def _note_failure(self, endpoint: WebhookEndpoint, now: datetime) -> None:
        endpoint.failing_since = endpoint.failing_since or now
        limit = self._knobs.webhook_disable_after
        if limit is not None and (now - endpoint.failing_since).total_seconds() >= limit:
            endpoint.disabled = endpoint.disabled or f"no 2xx for {limit:g} s"

    def _http(self) -> httpx2.AsyncClient:
        if self._client is None:
            limits = httpx2.Limits(max_connections=200, max_keepalive_connections=50)
            self._client = httpx2.AsyncClient(follow_redirects=False, limits=limits, trust_env=False)
        return self._client
