"""Agents, environments and sessions over the wire (docs/wire/anthropic.md#2-environments,
docs/wire/anthropic.md#7-agents-api, docs/wire/anthropic.md#8-sessions-api)."""

from __future__ import annotations

import re
from typing import Any

import anthropic
import pytest

from tests.infra.local.claude.conftest import ClaudeStage, message


def test_a_session_carries_what_a_worker_needs_and_its_id_is_mixed_case(stage: ClaudeStage) -> None:
    session_id = stage.session(title="demo", metadata={"repo": "a@1"})
    assert re.fullmatch(r"sesn_[A-Za-z0-9]{24}", session_id)
    session = stage.api.beta.sessions.retrieve(session_id)
    assert (session.title, session.metadata, session.status) == ("demo", {"repo": "a@1"}, "idle")
    assert (session.agent.skills, session.resources, session.vault_ids) == ([], [], [])
    assert session.outcome_evaluations == []


def test_the_other_prefix_names_the_same_session_and_case_matters(stage: ClaudeStage) -> None:
    session_id = stage.session()
    suffix = session_id.removeprefix("sesn_")
    assert stage.api.beta.sessions.retrieve(f"session_{suffix}").id == session_id
    assert stage.worker.beta.sessions.retrieve(f"session_{suffix}").id == session_id
    with pytest.raises(anthropic.NotFoundError):
        stage.api.beta.sessions.retrieve(f"sesn_{suffix.swapcase()}")


def test_metadata_merges_null_deletes_and_the_limits_hold(stage: ClaudeStage) -> None:
    session_id = stage.session(metadata={"a": "1", "b": "2"})
    sessions = stage.api.beta.sessions
    assert sessions.update(session_id, metadata={"a": None, "c": "3"}).metadata == {"b": "2", "c": "3"}
    assert "session.updated" in stage.types(session_id)
    bad_ones: list[dict[str, str | None]] = [{"k" * 65: "v"}, {"k": "v" * 513}, {str(i): "v" for i in range(17)}]
    for bad in bad_ones:
        with pytest.raises(anthropic.BadRequestError):
            sessions.update(session_id, metadata=bad)


def test_other_resources_than_memory_stores_are_refused_with_the_reason(stage: ClaudeStage) -> None:
    with pytest.raises(anthropic.BadRequestError, match="not supported in self-hosted"):
        stage.session(resources=[{"type": "file", "file_id": "file_1", "mount_path": "/x"}])


def test_a_running_session_is_neither_archived_nor_deleted(stage: ClaudeStage) -> None:
    stage.settings(think_seconds=5)
    session_id = stage.session("$ ls")
    sessions = stage.api.beta.sessions
    assert stage.status(session_id) == "running"
    for refuse in (sessions.archive, sessions.delete):
        with pytest.raises(anthropic.BadRequestError, match="interrupt"):
            refuse(session_id)
    stage.send(session_id, {"type": "user.interrupt"})
    assert sessions.archive(session_id).status == "terminated"


def test_an_archived_session_is_terminated_takes_no_events_and_leaves_the_list(stage: ClaudeStage) -> None:
    session_id = stage.session()
    archived = stage.api.beta.sessions.archive(session_id)
    assert archived.status == "terminated" and archived.archived_at is not None
    assert stage.types(session_id)[-1] == "session.status_terminated"
    assert stage.api.beta.sessions.archive(session_id).archived_at == archived.archived_at
    with pytest.raises(anthropic.BadRequestError):
        stage.send(session_id, message("hello"))
    listed = stage.api.beta.sessions.list(agent_id=stage.agent_id)
    assert [session.id for session in listed] == []
    listed = stage.api.beta.sessions.list(agent_id=stage.agent_id, include_archived=True, statuses=["terminated"])
    assert [session.id for session in listed] == [session_id]
    assert stage.poll().data.id == session_id, "an archived session's item is still handed out"


def test_a_deleted_session_is_gone(stage: ClaudeStage) -> None:
    session_id = stage.session()
    assert stage.api.beta.sessions.delete(session_id).type == "session_deleted"
    with pytest.raises(anthropic.NotFoundError):
        stage.api.beta.sessions.retrieve(session_id)


def test_the_list_is_newest_first_filtered_and_paged(stage: ClaudeStage) -> None:
    ids = [stage.session() for _ in range(5)]
    sessions = stage.api.beta.sessions
    assert [s.id for s in sessions.list(agent_id=stage.agent_id, limit=2)] == ids[::-1]
    assert [s.id for s in sessions.list(agent_id=stage.agent_id, limit=2, order="asc")] == ids
    assert [s.id for s in sessions.list(agent_id=stage.agent_id, statuses=["running", "terminated"])] == []
    middle = sessions.retrieve(ids[2]).created_at
    assert [s.id for s in sessions.list(agent_id=stage.agent_id, created_at_gt=middle)] == [ids[4], ids[3]]


def test_no_session_in_an_archived_or_cloud_environment(stage: ClaudeStage) -> None:
    cloud = stage.api.beta.environments.create(name="cloud", config={"type": "cloud"})
    with pytest.raises(anthropic.BadRequestError, match="offline"):
        stage.api.beta.sessions.create(agent=stage.agent_id, environment_id=cloud.id)
    stage.session()
    stage.api.beta.environments.archive(stage.environment_id)
    with pytest.raises(anthropic.BadRequestError) as caught:
        stage.session()
    assert caught.value.body["error"]["details"]["error_code"] == "environment_archived"  # type: ignore[index]
    assert stage.poll() is not None, "queued work of an archived environment still drains"


def test_an_environments_kind_cannot_be_changed(stage: ClaudeStage) -> None:
    environments = stage.api.beta.environments
    with pytest.raises(anthropic.BadRequestError) as caught:
        environments.update(stage.environment_id, config={"type": "cloud"})
    assert caught.value.body["error"]["details"]["error_code"] == "invalid_config_type_change"  # type: ignore[index]
    changed = environments.update(stage.environment_id, name="new name", metadata={"team": "x"})
    assert (changed.name, changed.metadata) == ("new name", {"team": "x"})
    assert environments.retrieve(stage.environment_id).config.type == "self_hosted"


def test_an_agents_version_counts_effective_updates_and_guards_against_stale_ones(stage: ClaudeStage) -> None:
    agents = stage.api.beta.agents
    assert agents.update(stage.agent_id, system="Be terse.").version == 2
    assert agents.update(stage.agent_id, system="Be terse.").version == 2
    with pytest.raises(anthropic.ConflictError):
        agents.update(stage.agent_id, version=1, system="Be brief.")
    assert agents.update(stage.agent_id, version=2, description="d").version == 3
    assert [agent.version for agent in agents.versions.list(stage.agent_id)] == [3, 2, 1]


def test_a_session_pins_the_agent_version_it_was_created_with(stage: ClaudeStage) -> None:
    session_id = stage.session()
    stage.api.beta.agents.update(stage.agent_id, system="Be terse.")
    assert stage.api.beta.sessions.retrieve(session_id).agent.version == 1
    pinned = stage.api.beta.sessions.create(
        agent={"type": "agent", "id": stage.agent_id, "version": 1}, environment_id=stage.environment_id
    )
    assert (pinned.agent.version, pinned.agent.system) == (1, None)
    overridden = stage.api.beta.sessions.create(
        agent={"type": "agent_with_overrides", "id": stage.agent_id, "system": "Mine."},
        environment_id=stage.environment_id,
    )
    assert (overridden.agent.version, overridden.agent.system) == (2, "Mine.")


def test_tool_configs_are_echoed_resolved(stage: ClaudeStage) -> None:
    agent = stage.api.beta.agents.create(
        name="careful",
        model="claude-opus-5",
        tools=[
            {
                "type": "agent_toolset_20260401",
                "default_config": {"enabled": False},
                "configs": [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_ask"}}],
            }
        ],
    )
    toolset = agent.tools[0]
    assert toolset.type == "agent_toolset_20260401"
    configs = {config.name: (config.enabled, config.permission_policy.type) for config in toolset.configs}
    assert configs["bash"] == (True, "always_ask")
    assert configs["read"] == (False, "always_allow")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"name": ""}, "name"),
        ({"tools": [{"type": "custom", "name": "bash", "description": "", "input_schema": {}}]}, "bash"),
        ({"tools": [{"type": "unheard_of"}]}, "unheard_of"),
        ({"skills": [{"type": "anthropic", "skill_id": "pdf"}]}, "not supported offline"),
        ({"mcp_servers": [{"type": "stdio", "name": "x", "url": "https://x.example"}]}, "expected url"),
        ({"mcp_servers": [{"type": "url", "name": "x", "url": "https://x.example"}] * 2}, "a name of its own"),
        ({"multiagent": {"type": "coordinator"}}, "not supported offline"),
    ],
)
def test_a_bad_agent_is_refused_with_the_field_named(stage: ClaudeStage, changes: Any, words: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words):
        stage.api.beta.agents.create(**{"name": "a", "model": "claude-opus-5", **changes})


def test_the_primary_thread_is_there_to_be_read(stage: ClaudeStage) -> None:
    session_id = stage.session("hello")
    stage.until_idle(session_id)
    threads = list(stage.api.beta.sessions.threads.list(session_id))
    assert [thread.session_id for thread in threads] == [session_id]
    running = [e for e in stage.events(session_id) if e.type == "session.thread_status_running"]
    assert running[0].session_thread_id == threads[0].id
