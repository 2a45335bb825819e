"""Memory stores and the memories in them (docs/wire/anthropic.md#43-requests-in-order, last paragraphs; sizes and paths
as the SDK documents them).

A memory is a text at a path. Who changes or deletes one may say which content it must have; a difference is a 409.
"""

from __future__ import annotations

import hashlib
import itertools
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from infra.local.claude.clock import Clock, stamp, stamp_or_none
from infra.local.claude.errors import ClaudeApiError, invalid, not_found
from infra.local.claude.ids import new_id
from infra.local.claude.records import merged_metadata, text_field

LARGEST_CONTENT = 102_400
MOST_MEMORIES = 2000
_LONGEST_PATH = 1024
_DEEPEST_PATH = 20
_LONGEST_NAME = 255
_LONGEST_DESCRIPTION = 1024
_UNWANTED = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode categories that a path has none of: controls, formats, surrogates, line and paragraph separators."""


@dataclass
class Memory:
    id: str
    sequence: int
    store_id: str
    path: str
    content: str
    version_id: str
    created_at: datetime
    updated_at: datetime

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    def as_json(self, *, full: bool) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "memory",
            "memory_store_id": self.store_id,
            "memory_version_id": self.version_id,
            "path": self.path,
            "content": self.content if full else None,
            "content_sha256": self.sha256,
            "content_size_bytes": len(self.content.encode()),
            "created_at": stamp(self.created_at),
            "updated_at": stamp(self.updated_at),
        }


@dataclass
class MemoryVersion:
    """What a memory was after one operation; redacted, only that there was one."""

    id: str
    sequence: int
    memory_id: str
    store_id: str
    operation: Literal["created", "modified", "deleted"]
    path: str | None
    content: str | None
    created_at: datetime
    redacted_at: datetime | None = None

    def as_json(self, *, full: bool) -> dict[str, Any]:
        data = None if self.content is None else self.content.encode()
        return {
            "id": self.id,
            "type": "memory_version",
            "memory_id": self.memory_id,
            "memory_store_id": self.store_id,
            "operation": self.operation,
            "path": self.path,
            "content": self.content if full else None,
            "content_sha256": None if data is None else hashlib.sha256(data).hexdigest(),
            "content_size_bytes": None if data is None else len(data),
            "created_at": stamp(self.created_at),
            "redacted_at": stamp_or_none(self.redacted_at),
        }


@dataclass
class MemoryStore:
    id: str
    sequence: int
    name: str
    description: str
    metadata: dict[str, str]
    created_at: datetime
    updated_at: datetime
    archived_at: datetime | None = None
    memories: dict[str, Memory] = field(default_factory=dict)
    """By id, in the order of their creation."""
    versions: dict[str, MemoryVersion] = field(default_factory=dict)

    def version(self, version_id: str) -> MemoryVersion:
        if version_id not in self.versions:
            raise not_found(f"memory version {version_id}")
        return self.versions[version_id]

    def as_json(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "memory_store",
            "name": self.name,
            "description": self.description,
            "metadata": dict(self.metadata),
            "created_at": stamp(self.created_at),
            "updated_at": stamp(self.updated_at),
            "archived_at": stamp_or_none(self.archived_at),
        }

    def get(self, memory_id: str) -> Memory:
        if memory_id not in self.memories:
            raise not_found(f"memory {memory_id}")
        return self.memories[memory_id]

    def under(self, prefix: str | None) -> list[Memory]:
        """Those whose path begins with the prefix, which ends with a slash."""
        if prefix and not (prefix.startswith("/") and prefix.endswith("/")):
            raise invalid("path_prefix: must begin and end with /")
        return [memory for memory in self.memories.values() if memory.path.startswith(prefix or "/")]


class MemoryStores:
    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._stores: dict[str, MemoryStore] = {}
        self._sequence = itertools.count(1)

    # Stores

    def create(self, body: Mapping[str, Any]) -> MemoryStore:
        now = self._clock.now()
        store = MemoryStore(
            new_id("memstore"),
            next(self._sequence),
            _name(body),
            _description(body),
            merged_metadata({}, body.get("metadata")),
            now,
            now,
        )
        self._stores[store.id] = store
        return store

    def update(self, store: MemoryStore, body: Mapping[str, Any]) -> None:
        _refuse_archived(store)
        metadata = merged_metadata(store.metadata, body.get("metadata"))
        name = _name(body) if body.get("name") is not None else store.name
        store.description = _description(body) if "description" in body else store.description
        store.name, store.metadata, store.updated_at = name, metadata, self._clock.now()

    def archive(self, store: MemoryStore) -> None:
        if store.archived_at is None:
            store.archived_at = store.updated_at = self._clock.now()

    def delete(self, store: MemoryStore) -> None:
        del self._stores[store.id]

    def get(self, store_id: str) -> MemoryStore:
        if store_id not in self._stores:
            raise not_found(f"memory store {store_id}")
        return self._stores[store_id]

    def all(self, *, include_archived: bool) -> list[MemoryStore]:
        return [store for store in self._stores.values() if include_archived or store.archived_at is None]

    # Memories

    def write(self, store: MemoryStore, body: Mapping[str, Any]) -> Memory:
        """A new memory; a path that is taken is a 409."""
        _refuse_archived(store)
        path, content = _path(body.get("path")), _content(body.get("content"))
        _refuse_taken(store, path)
        if len(store.memories) >= MOST_MEMORIES:
            raise invalid(f"a memory store holds at most {MOST_MEMORIES} memories")
        now = self._clock.now()
        memory = Memory(new_id("mem"), next(self._sequence), store.id, path, content, new_id("memver"), now, now)
        store.memories[memory.id] = memory
        self._note(store, memory, "created")
        return memory

    def rewrite(self, store: MemoryStore, memory: Memory, body: Mapping[str, Any]) -> None:
        """New content, new path or both, if the precondition holds."""
        _refuse_archived(store)
        _require(memory, _expected(body.get("precondition")))
        path = memory.path if body.get("path") is None else _path(body["path"])
        content = memory.content if body.get("content") is None else _content(body["content"])
        if path != memory.path:
            _refuse_taken(store, path)
        if (path, content) != (memory.path, memory.content):
            memory.path, memory.content = path, content
            memory.version_id, memory.updated_at = new_id("memver"), self._clock.now()
            self._note(store, memory, "modified")

    def forget(self, store: MemoryStore, memory: Memory, expected_sha256: str | None) -> None:
        _require(memory, expected_sha256)
        del store.memories[memory.id]
        memory.version_id = new_id("memver")
        self._note(store, memory, "deleted")

    # Versions

    def _note(self, store: MemoryStore, memory: Memory, operation: Literal["created", "modified", "deleted"]) -> None:
        content = None if operation == "deleted" else memory.content
        sequence, now = next(self._sequence), self._clock.now()
        version = MemoryVersion(memory.version_id, sequence, memory.id, store.id, operation, memory.path, content, now)
        store.versions[version.id] = version

    def redact(self, store: MemoryStore, version: MemoryVersion) -> None:
        """Its content and path are gone; that of the memory as it is now is refused."""
        if any(memory.version_id == version.id for memory in store.memories.values()):
            raise invalid("the current version of a memory cannot be redacted: change or delete the memory first")
        version.path = version.content = None
        version.redacted_at = version.redacted_at or self._clock.now()


def _refuse_archived(store: MemoryStore) -> None:
    if store.archived_at is not None:
        raise invalid("the memory store is archived")


def _refuse_taken(store: MemoryStore, path: str) -> None:
    if any(memory.path == path for memory in store.memories.values()):
        raise ClaudeApiError(409, f"there is a memory at {path}", error_code="memory_path_conflict")


def _require(memory: Memory, expected_sha256: str | None) -> None:
    if expected_sha256 is not None and expected_sha256 != memory.sha256:
        raise ClaudeApiError(409, "the memory's content is another one", error_code="memory_precondition_failed")


def _expected(precondition: object) -> str | None:
    match precondition:
        case None:
            return None
        case {"type": "content_sha256", "content_sha256": str(sha)}:
            return sha
        case _:
            raise invalid("precondition: expected type content_sha256 and its value")


def _name(body: Mapping[str, Any]) -> str:
    name = text_field(body, "name", required=True) or ""
    if len(name) > _LONGEST_NAME or any(unicodedata.category(character) == "Cc" for character in name):
        raise invalid(f"name: expected 1 to {_LONGEST_NAME} characters without control characters")
    return name


def _description(body: Mapping[str, Any]) -> str:
    description = text_field(body, "description") or ""
    if len(description) > _LONGEST_DESCRIPTION:
        raise invalid(f"description: at most {_LONGEST_DESCRIPTION} characters")
    return description


def _content(given: object) -> str:
    if not isinstance(given, str):
        raise invalid("content: expected a string")
    try:
        size = len(given.encode())
    except UnicodeEncodeError:
        raise invalid("content: not valid UTF-8") from None
    if size > LARGEST_CONTENT:
        raise ClaudeApiError(413, f"content: at most {LARGEST_CONTENT} bytes")
    return given


def _path(given: object) -> str:
    if not isinstance(given, str) or not given.startswith("/"):
        raise invalid("path: expected a string that begins with /")
    segments = given[1:].split("/")
    if len(segments) > _DEEPEST_PATH or any(segment in ("", ".", "..") for segment in segments):
        raise invalid(f"path: expected 1 to {_DEEPEST_PATH} segments, none of them empty, . or ..")
    if any(unicodedata.category(character) in _UNWANTED for character in given):
        raise invalid("path: no control or format characters")
    if not unicodedata.is_normalized("NFC", given) or len(given.encode()) > _LONGEST_PATH:
        raise invalid(f"path: expected Unicode form C and at most {_LONGEST_PATH} bytes")
    return given
