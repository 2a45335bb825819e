"""What agents, environments and sessions have in common: checked fields, metadata, pages."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, TypeVar

from infra.local.claude.errors import invalid

METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512


def text_field(body: Mapping[str, Any], name: str, *, required: bool = False) -> str | None:
    value = body.get(name)
    if value is None and not required:
        return None
    if not isinstance(value, str) or (required and not value):
        raise invalid(f"{name}: expected a{' non-empty' if required else ''} string")
    return value


def list_field(body: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    value = body.get(name) or []
    if not isinstance(value, list) or not all(isinstance(entry, dict) for entry in value):
        raise invalid(f"{name}: expected an array of objects")
    return list(value)


def merged_metadata(old: Mapping[str, str], patch: object) -> dict[str, str]:
    """Strings upsert, null deletes; at most 16 pairs, keys of 64 and values of 512 characters."""
    if patch is None:
        return dict(old)
    if not isinstance(patch, Mapping):
        raise invalid("metadata: expected an object")
    merged: dict[str, str] = dict(old)
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        elif not isinstance(value, str):
            raise invalid(f"metadata.{key}: expected a string or null", error_code="invalid_metadata")
        elif len(key) > METADATA_KEY or len(value) > METADATA_VALUE:
            raise invalid(f"metadata.{key[:METADATA_KEY]}: too long", error_code="invalid_metadata")
        else:
            merged[key] = value
    if len(merged) > METADATA_PAIRS:
        raise invalid(f"metadata: at most {METADATA_PAIRS} pairs", error_code="invalid_metadata")
    return merged


def encode_cursor(position: int | None) -> str | None:
    if position is None:
        return None
    return base64.urlsafe_b64encode(f"page:{position}".encode()).decode().rstrip("=")


def decode_cursor(cursor: str | None) -> int | None:
    if not cursor:
        return None
    try:
        kind, _, position = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4)).decode().partition(":")
        if kind == "page":
            return int(position)
    except (binascii.Error, ValueError):
        pass
    raise invalid("page: not a cursor of this list")


class Sequenced(Protocol):
    @property
    def sequence(self) -> int: ...


Row = TypeVar("Row", bound=Sequenced)


def page_of(
    rows: Sequence[Row], limit: int, cursor: int | None, *, newest_first: bool = True
) -> tuple[list[Row], int | None]:
    """One page of rows that are in creation order, and the cursor of the next."""
    ordered = list(reversed(rows)) if newest_first else list(rows)
    if cursor is not None:
        ordered = [row for row in ordered if (row.sequence < cursor if newest_first else row.sequence > cursor)]
    page = ordered[:limit]
    return page, page[-1].sequence if len(ordered) > limit else None
