"""A client of the offline services' admin routes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import httpx2

from infra.local.process import RunningService


class AdminAccess:
    """Blocking on purpose: tests arrange the world with it between two steps."""

    def __init__(self, service: RunningService) -> None:
        self._client = httpx2.Client(
            base_url=service.url, headers={"X-Admin-Token": service.admin_token}, timeout=30.0, trust_env=False
        )

    def call(self, method: str, path: str, body: object | None = None) -> Any:
        answer = self._client.request(method, f"/_admin/{path}", json=body)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    @contextlib.contextmanager
    def fault(self, rule: Mapping[str, object]) -> Iterator[str]:
        """This fault rule, for as long as the block lasts."""
        rule_id = self.call("POST", "faults", rule)["data"][0]["id"]
        try:
            yield rule_id
        finally:
            self.call("DELETE", f"faults/{rule_id}")
