"""What a session has attached: memory stores, the only resources of a self-hosted session
(docs/wire/anthropic.md#8-sessions-api)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from infra.local.claude.errors import invalid
from infra.local.claude.memories import MemoryStores
from infra.local.claude.records import list_field, text_field

MOST_STORES = 8
MOUNT_ROOT = "/mnt/memory"
_LONGEST_INSTRUCTIONS = 4096
_ACCESS = ("read_write", "read_only")


def attach(body: Mapping[str, Any], stores: MemoryStores) -> list[dict[str, Any]]:
    """The `resources` of a new session as responses show them: name and description are of this moment."""
    given = list_field(body, "resources")
    for resource in given:
        if resource.get("type") != "memory_store":
            raise invalid(
                f"resources: {resource.get('type')!r} is not supported in self-hosted environments",
                error_code="unsupported_resource",
            )
    if len(given) > MOST_STORES:
        raise invalid(f"resources: at most {MOST_STORES} memory stores")
    attached: list[dict[str, Any]] = []
    for resource in given:
        attached.append(_attached(resource, stores, attached))
    return attached


def _attached(resource: Mapping[str, Any], stores: MemoryStores, earlier: list[dict[str, Any]]) -> dict[str, Any]:
    store = stores.get(text_field(resource, "memory_store_id", required=True) or "")
    if store.archived_at is not None:
        raise invalid(f"resources: memory store {store.id} is archived")
    if any(other["memory_store_id"] == store.id for other in earlier):
        raise invalid(f"resources: memory store {store.id} is attached twice")
    access = resource.get("access") or "read_write"
    if access not in _ACCESS:
        raise invalid(f"resources: access: expected one of {', '.join(_ACCESS)}")
    instructions = text_field(resource, "instructions")
    if instructions is not None and len(instructions) > _LONGEST_INSTRUCTIONS:
        raise invalid(f"resources: instructions: at most {_LONGEST_INSTRUCTIONS} characters")
    return {
        "type": "memory_store",
        "memory_store_id": store.id,
        "access": access,
        "name": store.name,
        "description": store.description,
        "instructions": instructions,
        "mount_path": _mount_path(store.name, {other["mount_path"] for other in earlier}),
    }


def _mount_path(name: str, taken: set[str]) -> str:
    """Lower case, every run of other characters one hyphen (SDK docstring). What the live service makes of a name
    without any of them, or of two that come out alike, is unknown; here they are numbered."""
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "store"
    path = f"{MOUNT_ROOT}/{slug}"
    number = 2
    while path in taken:
        path = f"{MOUNT_ROOT}/{slug}-{number}"
        number += 1
    return path


def access_to(resources: list[dict[str, Any]], store_id: str) -> str | None:
    """How a session may use a store: read_write, read_only, or None if it is not attached."""
    for resource in resources:
        if resource["memory_store_id"] == store_id:
            return str(resource["access"])
    return None
