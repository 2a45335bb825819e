"""What a workspace keeps beside sessions, through the real SDK: models, files, vaults, profiles, deployments."""

from __future__ import annotations

from functools import partial
from typing import Any

import anthropic
import pytest

from tests.infra.local.claude.conftest import ClaudeStage, message
from tests.infra.local.claude.test_skills import make_skill, skill_md
from tests.support.waiting import until

BINARY = bytes(range(256)) + b"\r\n--boundary\r\n\r\n"


def test_the_models_are_the_scripted_brain_and_what_the_agents_name(stage: ClaudeStage) -> None:
    models = [model.id for model in stage.api.models.list()]
    assert "offline-scripted-brain" in models
    agent = stage.api.beta.agents.create(name="a", model="claude-opus-5", tools=[])
    assert agent.model.id in [model.id for model in stage.api.beta.models.list()]
    assert stage.api.models.retrieve("claude-opus-5").lifecycle == "active"
    with pytest.raises(anthropic.NotFoundError):
        stage.api.models.retrieve("claude-unheard-of")


def test_a_file_is_uploaded_listed_downloaded_and_deleted(stage: ClaudeStage) -> None:
    made = stage.api.files.upload(file=("all bytes.bin", BINARY, "application/x-own"))
    assert (made.filename, made.mime_type, made.size_bytes) == ("all bytes.bin", "application/x-own", len(BINARY))
    assert made.id in [row.id for row in stage.api.beta.files.list()]
    assert stage.api.files.retrieve_metadata(made.id).filename == "all bytes.bin"
    assert stage.api.files.download(made.id).read() == BINARY
    assert stage.api.files.delete(made.id).type == "file_deleted"
    with pytest.raises(anthropic.NotFoundError):
        stage.api.files.download(made.id)
    with pytest.raises(anthropic.BadRequestError, match="the name"):
        stage.api.files.upload(file=("a/b", b"", "text/plain"))


def test_a_vault_keeps_credentials_and_shows_no_secret(stage: ClaudeStage) -> None:
    vaults = stage.api.beta.vaults
    vault = vaults.create(display_name="Tools", metadata={"team": "a"})
    assert vault.id in [row.id for row in vaults.list()]
    auth: Any = {"type": "static_bearer", "mcp_server_url": "https://mcp.example.com", "token": "hunter2"}
    made = vaults.credentials.create(vault.id, auth=auth, display_name="search")
    assert (made.vault_id, made.auth.type, made.display_name) == (vault.id, "static_bearer", "search")
    variable: Any = {"type": "environment_variable", "secret_name": "TOKEN", "secret_value": "hunter2"}
    other = vaults.credentials.create(vault.id, auth=variable)
    assert [row.id for row in vaults.credentials.list(vault.id)] == [other.id, made.id]
    raw = stage.raw.get(f"/v1/vaults/{vault.id}/credentials", headers=_headers(stage))
    assert raw.status_code == 200 and "hunter2" not in raw.text
    assert vaults.credentials.archive(made.id, vault_id=vault.id).archived_at is not None
    assert vaults.credentials.delete(other.id, vault_id=vault.id).id == other.id
    assert vaults.update(vault.id, display_name="Others").display_name == "Others"
    create = partial(stage.api.beta.sessions.create, agent=stage.agent_id, environment_id=stage.environment_id)
    assert create(vault_ids=[vault.id]).vault_ids == [vault.id]
    with pytest.raises(anthropic.NotFoundError):
        create(vault_ids=["vlt_none"])
    assert vaults.archive(vault.id).archived_at is not None
    assert vaults.delete(vault.id).type == "vault_deleted"
    with pytest.raises(anthropic.NotFoundError):
        vaults.retrieve(vault.id)


def _headers(stage: ClaudeStage) -> dict[str, str]:
    return {"x-api-key": stage.api.api_key or "", "anthropic-beta": "managed-agents-2026-04-01"}


def test_a_user_profile_is_made_changed_and_deleted(stage: ClaudeStage) -> None:
    profiles = stage.api.user_profiles
    strict = anthropic.Anthropic(
        base_url=stage.api.base_url, api_key=stage.api.api_key, _strict_response_validation=True
    )
    assert strict.beta.user_profiles.create(name="Bob").trust_grants == {}
    made = profiles.create(name="Ada", external_user_details={"country": "GB"})
    assert (made.enforcement_status, made.external_user_details.country) == ("unrestricted", "GB")
    assert profiles.update(made.id, metadata={"k": "v"}).metadata == {"k": "v"}
    assert made.id in [row.id for row in profiles.list()]
    assert profiles.delete(made.id).type == "user_profile_deleted"


def test_a_deployment_begins_a_session_on_request_and_not_while_it_is_paused(stage: ClaudeStage) -> None:
    deployments = stage.api.beta.deployments
    events: Any = [message("hello")]
    made = deployments.create(
        name="nightly", agent=stage.agent_id, environment_id=stage.environment_id, initial_events=events
    )
    assert (made.status, made.agent.id, made.schedule) == ("active", stage.agent_id, None)
    run = deployments.run(made.id)
    assert run.session_id is not None and run.error is None
    assert stage.api.beta.sessions.retrieve(run.session_id).environment_id == stage.environment_id
    assert [row.id for row in stage.api.beta.deployment_runs.list(deployment_id=made.id)] == [run.id]
    assert deployments.pause(made.id).status == "paused"
    with pytest.raises(anthropic.BadRequestError):
        deployments.run(made.id)
    assert deployments.unpause(made.id).status == "active"
    assert deployments.update(made.id, description="each night").description == "each night"
    assert deployments.archive(made.id).archived_at is not None
    assert made.id not in [row.id for row in deployments.list()]


def test_a_cloud_environment_shows_its_network_and_packages(stage: ClaudeStage) -> None:
    environments = stage.api.beta.environments
    plain: Any = environments.create(name="plain", config={"type": "cloud"}).config
    assert (plain.networking.type, plain.packages.pip) == ("unrestricted", [])
    limited: Any = {"type": "limited", "allowed_hosts": ["pypi.org"]}
    made: Any = environments.create(
        name="limited", config={"type": "cloud", "networking": limited, "packages": {"pip": ["numpy"]}}
    ).config
    assert (made.networking.allowed_hosts, made.networking.allow_mcp_servers) == (["pypi.org"], False)
    assert (made.packages.pip, made.packages.apt) == (["numpy"], [])
    wrong: Any = {"type": "cloud", "networking": {"type": "none"}}
    with pytest.raises(anthropic.BadRequestError, match="networking"):
        environments.create(name="x", config=wrong)


def test_an_agent_with_mcp_servers_keeps_them_and_serves_its_sessions(stage: ClaudeStage) -> None:
    servers: Any = [{"type": "url", "name": "search", "url": "https://mcp.example.com"}]
    tools: Any = [{"type": "agent_toolset_20260401"}, {"type": "mcp_toolset", "mcp_server_name": "search"}]
    agent: Any = stage.api.beta.agents.create(name="m", model="claude-opus-5", tools=tools, mcp_servers=servers)
    assert [(each.name, each.url) for each in agent.mcp_servers] == [("search", "https://mcp.example.com")]
    toolset = agent.tools[1]
    assert (toolset.mcp_server_name, toolset.default_config.permission_policy.type) == ("search", "always_ask")
    renamed: Any = stage.api.beta.agents.update(agent.id, version=agent.version, name="n")
    assert (renamed.tools, renamed.mcp_servers) == (agent.tools, agent.mcp_servers)
    session = stage.api.beta.sessions.create(agent=agent.id, environment_id=stage.environment_id)
    assert [each.name for each in session.agent.mcp_servers] == ["search"]
    wrong: Any = [{"type": "mcp_toolset", "mcp_server_name": "other"}]
    with pytest.raises(anthropic.BadRequestError, match="no server 'other'"):
        stage.api.beta.agents.create(name="m", model="claude-opus-5", tools=wrong, mcp_servers=servers)


def test_a_skill_and_its_versions_are_deleted(stage: ClaudeStage) -> None:
    skill = make_skill(stage)
    newer = stage.api.skills.versions.create(skill.id, files=[skill_md("Better.")])
    deleted = stage.api.skills.versions.delete(newer.id, skill_id=skill.id)
    assert (deleted.id, deleted.type) == (newer.id, "skill_version_deleted")
    assert stage.api.skills.retrieve(skill.id).latest_version_id == skill.latest_version_id
    with pytest.raises(anthropic.BadRequestError, match="only version"):
        stage.api.skills.versions.delete(skill.latest_version_id, skill_id=skill.id)
    assert stage.api.skills.delete(skill.id).type == "skill_deleted"
    with pytest.raises(anthropic.NotFoundError):
        stage.api.skills.retrieve(skill.id)


def test_each_operation_on_a_memory_is_a_version_that_can_be_redacted(stage: ClaudeStage) -> None:
    stores = stage.api.beta.memory_stores
    store = stores.create(name="Notes").id
    made = stores.memories.create(store, path="/a.md", content="one")
    stores.memories.update(made.id, memory_store_id=store, content="two")
    stores.memories.delete(made.id, memory_store_id=store)
    versions = list(stores.memory_versions.list(store, view="full"))
    assert [(each.operation, each.content) for each in versions] == [
        *(("deleted", None), ("modified", "two"), ("created", "one"))
    ]
    assert [each.id for each in stores.memory_versions.list(store, operation="created")] == [versions[2].id]
    redacted = stores.memory_versions.redact(versions[2].id, memory_store_id=store)
    assert (redacted.content, redacted.path) == (None, None) and redacted.redacted_at is not None
    assert stores.memory_versions.retrieve(versions[1].id, memory_store_id=store).content == "two"


def test_the_resources_of_a_session_are_listed_and_detached(stage: ClaudeStage) -> None:
    store = stage.api.beta.memory_stores.create(name="Notes").id
    attached: Any = [{"type": "memory_store", "memory_store_id": store}]
    session = stage.api.beta.sessions.create(
        agent=stage.agent_id, environment_id=stage.environment_id, resources=attached
    ).id
    resources = stage.api.beta.sessions.resources
    assert [row.memory_store_id for row in resources.list(session) if row.type == "memory_store"] == [store]
    found: Any = resources.retrieve(store, session_id=session)
    assert found.mount_path == "/mnt/memory/notes"
    with pytest.raises(anthropic.BadRequestError, match="self-hosted"):
        resources.add(session, file_id="file_1", type="file")
    assert resources.delete(store, session_id=session).type == "session_resource_deleted"
    assert list(resources.list(session)) == []


def test_a_healthcheck_that_the_sdk_answers_and_stops_is_over(stage: ClaudeStage) -> None:
    from anthropic.lib.environments import iter_work

    stage.admin.post("/_admin/healthchecks", json={"environment_id": stage.environment_id}).raise_for_status()
    work = stage.worker.beta.environments.work
    kinds = [
        item.data.type
        for item in iter_work(work, environment_id=stage.environment_id, drain=True, block_ms=None, auto_stop=True)
    ]
    assert kinds == ["healthcheck"]
    until(lambda: [row.state for row in stage.items()] == ["stopped"])
