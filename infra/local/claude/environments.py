"""Environments (docs/wire/anthropic.md#2-environments)."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from infra.local.claude.clock import Clock, stamp, stamp_or_none
from infra.local.claude.errors import invalid, not_found
from infra.local.claude.ids import new_id
from infra.local.claude.records import merged_metadata, text_field

KINDS = ("self_hosted", "cloud")
MANAGERS = ("apt", "cargo", "gem", "go", "npm", "pip")


@dataclass
class OfflineEnvironment:
    id: str
    sequence: int
    name: str
    config: dict[str, Any]
    created_at: datetime
    updated_at: datetime
    description: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    archived_at: datetime | None = None

    @property
    def self_hosted(self) -> bool:
        return bool(self.config["type"] == "self_hosted")

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "environment",
            "name": self.name,
            "description": self.description,
            "config": dict(self.config),
            "metadata": dict(self.metadata),
            "created_at": stamp(self.created_at),
            "updated_at": stamp(self.updated_at),
            "archived_at": stamp_or_none(self.archived_at),
            "scope": "organization",
        }


class Environments:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._environments: dict[str, OfflineEnvironment] = {}
        self._sequence = itertools.count(1)

    def create(self, body: Mapping[str, Any], environment_id: str | None = None) -> OfflineEnvironment:
        name = text_field(body, "name", required=True) or ""
        now = self._clock.now()
        environment = OfflineEnvironment(
            environment_id or new_id("env"), next(self._sequence), name, _config(body.get("config")), now, now
        )
        environment.description = text_field(body, "description")
        environment.metadata = merged_metadata({}, body.get("metadata"))
        self._environments[environment.id] = environment
        return environment

    def update(self, environment: OfflineEnvironment, body: Mapping[str, Any]) -> None:
        config = environment.config if body.get("config") is None else _config(body["config"])
        if config["type"] != environment.config["type"]:
            raise invalid("config.type cannot be changed", error_code="invalid_config_type_change")
        patch = body.get("metadata")
        if isinstance(patch, Mapping):
            patch = {key: value if value != "" else None for key, value in patch.items()}
        metadata = merged_metadata(environment.metadata, patch)
        environment.name = text_field(body, "name") or environment.name
        if "description" in body:
            environment.description = text_field(body, "description")
        environment.config, environment.metadata = config, metadata
        environment.updated_at = self._clock.now()

    def archive(self, environment: OfflineEnvironment) -> None:
        environment.archived_at = environment.archived_at or self._clock.now()

    def delete(self, environment: OfflineEnvironment) -> None:
        del self._environments[environment.id]

    def get(self, environment_id: str) -> OfflineEnvironment:
        if environment_id not in self._environments:
            raise not_found(f"environment {environment_id}")
        return self._environments[environment_id]

    def find(self, environment_id: str) -> OfflineEnvironment | None:
        return self._environments.get(environment_id)

    def all(self, *, include_archived: bool) -> list[OfflineEnvironment]:
        return [e for e in self._environments.values() if include_archived or e.archived_at is None]


def _config(given: object) -> dict[str, Any]:
    config = {"type": "cloud"} if given is None else given
    if not isinstance(config, dict) or config.get("type") not in KINDS:
        raise invalid(f"config.type: expected one of {', '.join(KINDS)}")
    if config["type"] == "self_hosted":
        if len(config) > 1:
            raise invalid("config: a self_hosted environment takes no further settings")
        return dict(config)
    return {"type": "cloud", "networking": _networking(config.get("networking")), "packages": _packages(config)}


def _networking(given: object) -> dict[str, Any]:
    networking = {"type": "unrestricted"} if given is None else given
    if not isinstance(networking, dict) or networking.get("type") not in ("unrestricted", "limited"):
        raise invalid("config.networking.type: expected unrestricted or limited")
    if networking["type"] == "unrestricted":
        return {"type": "unrestricted"}
    return {
        "type": "limited",
        "allowed_hosts": _texts(networking, "allowed_hosts", "config.networking"),
        "allow_mcp_servers": bool(networking.get("allow_mcp_servers")),
        "allow_package_managers": bool(networking.get("allow_package_managers")),
    }


def _packages(config: Mapping[str, Any]) -> dict[str, Any]:
    given = config.get("packages") or {}
    if not isinstance(given, dict):
        raise invalid("config.packages: expected an object")
    return {"type": "packages", **{name: _texts(given, name, "config.packages") for name in MANAGERS}}


def _texts(body: Mapping[str, Any], name: str, where: str) -> list[str]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise invalid(f"{where}.{name}: expected an array of strings")
    return list(value)
