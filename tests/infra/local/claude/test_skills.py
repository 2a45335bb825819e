"""Skills: made and versioned through the SDK, and unpacked by the SDK's own worker
(docs/wire/anthropic.md#43-requests-in-order)."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import anthropic
import pytest

from infra.local.claude.errors import ClaudeApiError
from infra.local.claude.multipart import parse_form
from tests.infra.local.claude.conftest import ClaudeStage
from tests.infra.local.claude.test_sdk_worker import run_worker
from tests.infra.local.claude.test_work_api import token_of

BINARY = bytes(range(256)) + b"\r\n--boundary\r\n\r\n"


def skill_md(text: str = "Do as told.", name: str = "report") -> tuple[str, bytes]:
    return (f"{name}/SKILL.md", f"---\nname: {name}\ndescription: Writes reports\n---\n{text}\n".encode())


def make_skill(stage: ClaudeStage, *files: tuple[str, bytes]) -> Any:
    return stage.api.skills.create(files=list(files or [skill_md()]))


def agent_with(stage: ClaudeStage, *skills: dict[str, Any]) -> str:
    tools: Any = [{"type": "agent_toolset_20260401"}]
    given: Any = list(skills)
    return stage.api.beta.agents.create(name="skilled", model="claude-opus-5", tools=tools, skills=given).id


def test_a_skill_has_the_name_and_description_of_its_front_matter(stage: ClaudeStage) -> None:
    skill = make_skill(stage)
    assert (skill.display_name, skill.source.type) == ("report", "custom")
    latest = stage.api.skills.versions.retrieve("latest", skill_id=skill.id)
    assert (latest.id, latest.skill_id) == (skill.latest_version_id, skill.id)
    assert (latest.name, latest.description) == ("report", "Writes reports")
    assert skill.id in [row.id for row in stage.api.skills.list(source="custom")]


def test_the_content_is_a_zip_of_exactly_the_files_in_the_skills_directory(stage: ClaudeStage) -> None:
    skill = make_skill(stage, skill_md(), ("report/data/all.bin", BINARY))
    content = stage.api.beta.skills.versions.download(skill.latest_version_id, skill_id=skill.id).read()
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        assert sorted(archive.namelist()) == ["report/SKILL.md", "report/data/all.bin"]
        assert archive.read("report/data/all.bin") == BINARY


def test_latest_is_the_newest_version_and_an_older_one_stays(stage: ClaudeStage) -> None:
    skill = make_skill(stage)
    newer = stage.api.skills.versions.create(skill.id, files=[skill_md("Better.")])
    versions = stage.api.skills.versions
    assert versions.retrieve("latest", skill_id=skill.id).id == newer.id
    assert versions.retrieve(skill.latest_version_id, skill_id=skill.id).id == skill.latest_version_id
    assert [row.id for row in versions.list(skill.id)] == [newer.id, skill.latest_version_id]
    with pytest.raises(anthropic.BadRequestError, match="called 'report'"):
        stage.api.skills.versions.create(skill.id, files=[skill_md(name="other")])


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([("report/readme.md", b"")], "SKILL.md"),
        ([skill_md(), ("elsewhere/a.txt", b"")], "same top-level directory"),
        ([skill_md(), ("report/../../etc/passwd", b"")], "not a path below"),
        ([("Report!/SKILL.md", b"no front matter")], "name"),
        ([("report/SKILL.md", b"---\n[\n---\n")], "unreadable"),
    ],
)
def test_files_that_are_no_skill_are_refused_with_the_reason(stage: ClaudeStage, files: Any, words: str) -> None:
    with pytest.raises(anthropic.BadRequestError, match=words):
        stage.api.skills.create(files=files)


def test_an_agents_skill_defaults_to_latest_and_must_exist(stage: ClaudeStage) -> None:
    skill = make_skill(stage)
    agent_id = agent_with(stage, {"type": "custom", "skill_id": skill.id})
    (reference,) = stage.api.beta.sessions.create(agent=agent_id, environment_id=stage.environment_id).agent.skills
    assert (reference.type, reference.skill_id, reference.version) == ("custom", skill.id, "latest")
    with pytest.raises(anthropic.NotFoundError):
        agent_with(stage, {"type": "custom", "skill_id": skill.id, "version": "skillver_none"})
    with pytest.raises(anthropic.NotFoundError):
        agent_with(stage, {"type": "custom", "skill_id": "skill_none"})


def test_a_session_may_replace_its_agents_skills(stage: ClaudeStage) -> None:
    skill = make_skill(stage)
    agent: Any = {
        "type": "agent_with_overrides",
        "id": stage.agent_id,
        "skills": [{"type": "custom", "skill_id": skill.id, "version": skill.latest_version_id}],
    }
    session = stage.api.beta.sessions.create(agent=agent, environment_id=stage.environment_id)
    assert [row.version for row in session.agent.skills] == [skill.latest_version_id]


def test_workers_read_versions_but_not_the_collection(stage: ClaudeStage) -> None:
    skill = make_skill(stage)
    stage.session()
    for credential in (stage.environment_key, token_of(stage.claim())):
        client = stage.client(credential)
        assert client.skills.versions.retrieve("latest", skill_id=skill.id).skill_id == skill.id
        assert client.beta.skills.versions.download(skill.latest_version_id, skill_id=skill.id).read()
        for refused in (client.skills.list, lambda c=client: c.skills.retrieve(skill.id)):
            with pytest.raises(anthropic.PermissionDeniedError):
                refused()


def test_the_sdks_worker_unpacks_the_agents_skills_and_clears_them_away(stage: ClaudeStage, tmp_path: Path) -> None:
    skill = make_skill(stage, skill_md("Say hello."), ("report/scripts/run.sh", b"echo ran the script\n"))
    stage.agent_id = agent_with(stage, {"type": "custom", "skill_id": skill.id})
    session_id = stage.session("read skills/report/SKILL.md\n$ bash skills/report/scripts/run.sh")
    run_worker(stage, tmp_path)
    account = stage.said(session_id)[-1]
    assert "Say hello." in account
    assert "returned: ran the script" in account
    assert not (tmp_path / "skills" / "report").exists()


def test_a_form_that_is_cut_short_or_none_at_all_is_refused() -> None:
    whole = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a/b"\r\n\r\nx\r\n--b--\r\n'
    (part,) = parse_form("multipart/form-data; boundary=b", whole)
    assert (part.name, part.filename, part.content) == ("files", "a/b", b"x")
    for content_type, body in (
        ("multipart/form-data; boundary=b", whole[:-8]),
        ("multipart/form-data", whole),
        ("application/json", b"{}"),
        ("multipart/form-data; boundary=b", whole.replace(b' name="files";', b"")),
    ):
        with pytest.raises(ClaudeApiError):
            parse_form(content_type, body)
