"""Memory stores: the API through the SDK, and the SDK's own download and sync of an attached store
(docs/wire/anthropic.md#43-requests-in-order)."""

from __future__ import annotations

import asyncio
import hashlib
from pathlib import Path
from typing import Any

import anthropic
import pytest
from anthropic.lib.tools._memories import SessionMemoryStores

from tests.infra.local.claude.conftest import ClaudeStage
from tests.infra.local.claude.test_work_api import token_of


def sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def make_store(stage: ClaudeStage, name: str = "Team notes", **contents: str) -> str:
    store = stage.api.beta.memory_stores.create(name=name, description="what we know")
    for key, content in contents.items():
        stage.api.beta.memory_stores.memories.create(store.id, path=f"/{key}.md", content=content)
    return store.id


def memories(stage: ClaudeStage, store_id: str) -> dict[str, Any]:
    listed = stage.api.beta.memory_stores.memories.list(store_id, view="full")
    return {row.path: row.content for row in listed if row.type == "memory"}


def attached(store_id: str, **more: str) -> dict[str, str]:
    return {"type": "memory_store", "memory_store_id": store_id, **more}


def test_a_memory_shows_its_content_only_in_the_full_view(stage: ClaudeStage) -> None:
    api = stage.api.beta.memory_stores.memories
    store_id = make_store(stage)
    made = api.create(store_id, path="/a/b.md", content="häh")
    assert (made.content, made.content_sha256, made.content_size_bytes) == (None, sha("häh"), 4)
    assert api.retrieve(made.id, memory_store_id=store_id).content == "häh"
    assert [row.content for row in api.list(store_id) if row.type == "memory"] == [None]
    assert [row.path for row in api.list(store_id, path_prefix="/a/") if row.type == "memory"] == ["/a/b.md"]
    assert list(api.list(store_id, path_prefix="/ab/")) == []


def test_a_full_page_holds_twenty_memories_and_the_pages_hold_them_all(stage: ClaudeStage) -> None:
    store_id = make_store(stage, **{f"m{number:02}": str(number) for number in range(45)})
    api = stage.api.beta.memory_stores.memories
    page = api.list(store_id, view="full", limit=100)
    assert len(page.data) == 20
    assert len(list(page)) == len(list(api.list(store_id, limit=7))) == 45


def test_an_update_happens_only_to_the_content_it_expects(stage: ClaudeStage) -> None:
    api = stage.api.beta.memory_stores.memories
    store_id = make_store(stage, a="one")
    (memory,) = api.list(store_id)
    assert memory.type == "memory"
    changed = api.update(
        memory.id,
        memory_store_id=store_id,
        content="two",
        precondition={"type": "content_sha256", "content_sha256": memory.content_sha256},
    )
    assert changed.content_sha256 == sha("two")
    assert changed.memory_version_id != memory.memory_version_id
    with pytest.raises(anthropic.ConflictError):
        api.update(
            memory.id,
            memory_store_id=store_id,
            content="three",
            precondition={"type": "content_sha256", "content_sha256": memory.content_sha256},
        )
    with pytest.raises(anthropic.ConflictError):
        api.delete(memory.id, memory_store_id=store_id, expected_content_sha256=memory.content_sha256)
    assert memories(stage, store_id) == {"/a.md": "two"}
    api.delete(memory.id, memory_store_id=store_id, expected_content_sha256=sha("two"))
    assert memories(stage, store_id) == {}
    with pytest.raises(anthropic.NotFoundError):
        api.delete(memory.id, memory_store_id=store_id)


def test_a_path_is_taken_once_and_a_rename_keeps_the_id(stage: ClaudeStage) -> None:
    api = stage.api.beta.memory_stores.memories
    store_id = make_store(stage, a="one", b="two")
    with pytest.raises(anthropic.ConflictError):
        api.create(store_id, path="/a.md", content="")
    first = next(row for row in api.list(store_id) if row.path == "/a.md")
    assert first.type == "memory"
    with pytest.raises(anthropic.ConflictError):
        api.update(first.id, memory_store_id=store_id, path="/b.md")
    assert api.update(first.id, memory_store_id=store_id, path="/c.md").id == first.id
    assert memories(stage, store_id) == {"/c.md": "one", "/b.md": "two"}


@pytest.mark.parametrize("path", ["", "a", "/", "/a//b", "/../a", "/a/./b", "/a\nb", "/" + "x" * 1024, "/x" * 21])
def test_a_path_that_is_none_is_refused(stage: ClaudeStage, path: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match="path"):
        stage.api.beta.memory_stores.memories.create(make_store(stage), path=path, content="")


def test_content_that_is_too_large_is_refused(stage: ClaudeStage) -> None:
    with pytest.raises(anthropic.RequestTooLargeError):
        stage.api.beta.memory_stores.memories.create(make_store(stage), path="/a", content="x" * 102_401)


def test_an_archived_store_is_read_but_neither_written_nor_attached(stage: ClaudeStage) -> None:
    store_id = make_store(stage, a="one")
    assert stage.api.beta.memory_stores.archive(store_id).archived_at is not None
    assert memories(stage, store_id) == {"/a.md": "one"}
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        stage.api.beta.memory_stores.memories.create(store_id, path="/b", content="")
    with pytest.raises(anthropic.BadRequestError, match="archived"):
        stage.session(resources=[attached(store_id)])
    assert store_id not in [row.id for row in stage.api.beta.memory_stores.list()]
    stage.api.beta.memory_stores.delete(store_id)
    with pytest.raises(anthropic.NotFoundError):
        stage.api.beta.memory_stores.retrieve(store_id)


def test_a_session_shows_its_stores_with_their_mount_paths(stage: ClaudeStage) -> None:
    first, second = make_store(stage, "Team -- Notes!"), make_store(stage, "team notes")
    session_id = stage.session(resources=[attached(first), attached(second, access="read_only")])
    stage.api.beta.memory_stores.update(first, name="Renamed")
    resources = stage.api.beta.sessions.retrieve(session_id).resources
    shown = [(row.name, row.access, row.mount_path) for row in resources if row.type == "memory_store"]
    assert shown == [
        ("Team -- Notes!", "read_write", "/mnt/memory/team-notes"),
        ("team notes", "read_only", "/mnt/memory/team-notes-2"),
    ]


def test_at_most_eight_stores_each_known_and_attached_once(stage: ClaudeStage) -> None:
    ids = [make_store(stage, f"store {number}") for number in range(9)]
    assert stage.session(resources=[attached(store_id) for store_id in ids[:8]])
    with pytest.raises(anthropic.BadRequestError, match="at most 8"):
        stage.session(resources=[attached(store_id) for store_id in ids])
    with pytest.raises(anthropic.BadRequestError, match="twice"):
        stage.session(resources=[attached(ids[0]), attached(ids[0])])
    with pytest.raises(anthropic.NotFoundError):
        stage.session(resources=[attached("memstore_none")])


def test_a_sessions_token_reaches_its_own_stores_alone_and_the_environment_key_none(stage: ClaudeStage) -> None:
    mine, read_only, foreign = (make_store(stage, name, a="x") for name in ("mine", "fixed", "foreign"))
    stage.session(resources=[attached(mine), attached(read_only, access="read_only")])
    token = stage.client(token_of(stage.claim())).beta.memory_stores.memories
    assert token.create(mine, path="/b.md", content="from the session").path == "/b.md"
    (fixed,) = token.list(read_only)
    assert fixed.type == "memory"
    for refused in (
        lambda: token.create(read_only, path="/b.md", content=""),
        lambda: token.update(fixed.id, memory_store_id=read_only, content=""),
        lambda: token.delete(fixed.id, memory_store_id=read_only),
        lambda: stage.worker.beta.memory_stores.memories.list(mine),
        lambda: stage.worker.beta.memory_stores.retrieve(mine),
    ):
        with pytest.raises(anthropic.PermissionDeniedError):
            refused()
    for hidden in (lambda: token.list(foreign), lambda: token.create(foreign, path="/b.md", content="")):
        with pytest.raises(anthropic.NotFoundError):
            hidden()
    assert memories(stage, read_only) == {"/a.md": "x"}


def test_the_sdks_sync_brings_a_store_to_disk_and_changes_back(stage: ClaudeStage, tmp_path: Path) -> None:
    store_id = make_store(stage, kept="old", gone="to be deleted", same="same")
    session_id = stage.session(resources=[attached(store_id)])
    token = token_of(stage.claim())

    async def work() -> None:
        async with anthropic.AsyncAnthropic(auth_token=token, base_url=stage.service.url) as client:
            session = await client.beta.sessions.retrieve(session_id)
            (resource,) = session.resources
            assert resource.type == "memory_store"
            resource.mount_path = str(tmp_path / "notes")  # the real one is outside of every test's directory
            stores = SessionMemoryStores(client, workdir=tmp_path)
            await stores.download(session)
            assert (tmp_path / "notes/kept.md").read_text() == "old"
            (tmp_path / "notes/kept.md").write_text("new")
            (tmp_path / "notes/gone.md").unlink()
            (tmp_path / "notes/deep").mkdir()
            (tmp_path / "notes/deep/made.md").write_text("made")
            await stores.finish()
            await stores.dispose()

    asyncio.run(work())
    assert memories(stage, store_id) == {"/kept.md": "new", "/same.md": "same", "/deep/made.md": "made"}


def test_the_sdks_sync_lets_a_change_made_elsewhere_win(stage: ClaudeStage, tmp_path: Path) -> None:
    store_id = make_store(stage, a="one")
    session_id = stage.session(resources=[attached(store_id)])
    token = token_of(stage.claim())

    async def work() -> str:
        async with anthropic.AsyncAnthropic(auth_token=token, base_url=stage.service.url) as client:
            session = await client.beta.sessions.retrieve(session_id)
            (resource,) = session.resources
            assert resource.type == "memory_store"
            resource.mount_path = str(tmp_path / "notes")
            stores = SessionMemoryStores(client, workdir=tmp_path)
            await stores.download(session)
            (memory,) = [row async for row in client.beta.memory_stores.memories.list(store_id)]
            assert memory.type == "memory"
            await client.beta.memory_stores.memories.update(memory.id, memory_store_id=store_id, content="elsewhere")
            (tmp_path / "notes/a.md").write_text("here")
            await stores.finish()
            return (tmp_path / "notes/a.md").read_text()

    assert asyncio.run(work()) == "elsewhere"
    assert memories(stage, store_id) == {"/a.md": "elsewhere"}
