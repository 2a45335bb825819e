"""A client for the admin routes that both offline services have (`/_admin/...`, header `X-Admin-Token`)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import httpx2


class AdminError(Exception):
    """The service refused, or it is gone."""


@dataclass(frozen=True, slots=True)
class AdminClient:
    """Each call is its own connection. Raises AdminError."""

    url: str
    token: str = field(repr=False)

    def get(self, path: str) -> Any:
        return self._call("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        return self._call("POST", path, body)

    def put(self, path: str, body: Any) -> Any:
        return self._call("PUT", path, body)

    def patch(self, path: str, body: Any) -> Any:
        return self._call("PATCH", path, body)

    def delete(self, path: str, body: Any = None) -> Any:
        return self._call("DELETE", path, body)

    def _call(self, method: str, path: str, body: Any) -> Any:
        # trust_env: a proxy in the environment would be asked for an address on this machine.
        try:
            with httpx2.Client(trust_env=False, verify=False, timeout=30.0) as client:
                answer = client.request(
                    method,
                    f"{self.url}/_admin/{path}",
                    headers={"x-admin-token": self.token},
                    json={} if body is None and method in ("POST", "PUT", "PATCH") else body,
                )
                content = answer.json() if answer.content else None
        except (httpx2.HTTPError, ValueError) as error:
            raise AdminError(f"{method} {path}: no answer ({type(error).__name__})") from None
        if answer.status_code >= 400:
            raise AdminError(f"{method} {path}: {answer.status_code} {content}")
        return content
