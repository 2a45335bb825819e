"""The SDK's own image build against the platform; Dockerfiles read without running anything."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorlake.image import Image
from tensorlake.image.sandbox_builder import (
    SandboxImageError,
    build_sandbox_image,
    delete_sandbox_image,
    find_sandbox_image_by_name,
    list_sandbox_images,
)
from tensorlake.sandbox import Sandbox
from tensorlake.sandbox.exceptions import RemoteAPIError

from infra.local.tensorlake import dockerfile
from infra.local.tensorlake.dockerfile import DockerfileError
from tests.infra.local.tensorlake.conftest import KEY, TensorlakeStage, out

DOCKERFILE = """
ARG BASE=python:3.14-trixie
FROM ${BASE}
# a comment
ENV GREETING="hello there" \\
    PATH=/opt/hands/bin:$PATH
RUN useradd agent && \\
    touch /never
RUN <<EOF
USER nobody
EOF
COPY --chmod=755 program /opt/hands/bin/
COPY ["notes.txt", "data/*.csv", "/srv/given/"]
COPY --chown=agent:agent seed /data
WORKDIR /workspace
COPY notes.txt .
USER agent
EXPOSE 80
CMD ["true"]
"""


@contextlib.contextmanager
def addressed(stage: TensorlakeStage) -> Iterator[None]:
    """What builds images takes its address from the environment."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TENSORLAKE_API_URL", stage.service.url)
        patch.setenv("TENSORLAKE_API_KEY", KEY)
        yield


def build(stage: TensorlakeStage, context: Path, name: str) -> dict[str, Any]:
    with addressed(stage):
        built: dict[str, Any] = build_sandbox_image(str(context / "Dockerfile"), registered_name=name)
    return built


@pytest.fixture
def context(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir()
    (tmp_path / "seed" / "inner").mkdir(parents=True)
    (tmp_path / "program").write_text("#!/bin/sh\necho ran\n")
    (tmp_path / "notes.txt").write_text("notes")
    (tmp_path / "data" / "a.csv").write_text("1")
    (tmp_path / "data" / "b.txt").write_text("not taken")
    (tmp_path / "seed" / "inner" / "file").write_text("seeded")
    (tmp_path / "Dockerfile").write_text(DOCKERFILE)
    return tmp_path


def test_a_dockerfile_becomes_the_root_of_a_sandbox(each_level: TensorlakeStage, context: Path) -> None:
    built = build(each_level, context, "Session-One")
    assert built["name"] == "session-one", built
    sandbox = each_level.named(image="session-one")
    assert out(sandbox, "tail -1 /opt/hands/bin/program; program") == "echo ran\nran"
    assert out(sandbox, "echo $GREETING; ls /srv/given; cat notes.txt") == "hello there\na.csv\nnotes.txt\nnotes"
    assert out(sandbox, "cd /data && cat inner/file && echo > inner/new && ls inner") == "seededfile\nnew"
    assert sandbox.run("test", ["-e", "/never"]).exit_code == 1
    if each_level.service.ready["isolation"]["isolated"]:
        assert out(sandbox, "whoami; echo $HOME; pwd") == "agent\n/home/agent\n/workspace"
        assert sandbox.run("sh", ["-c", "echo x >> /opt/hands/bin/program"]).exit_code != 0
    other = each_level.named(image="Session-One")
    assert out(other, "ls /data/inner") == "file"


def test_root_is_run_as_the_images_user_and_marked(stage: TensorlakeStage, context: Path) -> None:
    build(stage, context, "marked")
    sandbox = stage.named(image="marked")
    started = stage.inside(sandbox, "POST", "/api/v1/processes", json={"command": "true", "user": "root"}).json()
    assert "ran as 'agent'" in started["note"]
    assert out(sandbox, "id -u", user="root") == out(sandbox, "id -u")
    row = next(each for each in stage.admin.get("state")["sandboxes"] if each["id"] == sandbox.sandbox_id)
    assert row["notes"] == [started["note"]]


def test_a_builder_prints_each_step_that_was_not_executed(stage: TensorlakeStage, context: Path) -> None:
    stage.settings(build_log_seconds=60.0)  # until the log has been read
    events: list[Any] = []
    with addressed(stage):
        build_sandbox_image(str(context / "Dockerfile"), registered_name="told", emit=events.append)
    said = [event["message"] for event in events if event["type"] == "build_log"]
    assert [line for line in said if "not executed" in line] == [
        "not executed offline: RUN useradd agent &&  touch /never",
        "not executed offline: RUN <<EOF",
    ]
    assert said[0].startswith("FROM python:3.14-trixie: starts from the built-in default")
    assert [each.name for each in Sandbox.list(**stage.sdk)] == []
    report = next(row for row in stage.admin.get("state")["images"] if row["name"] == "told")
    assert report["from"] == "python:3.14-trixie"
    assert any("useradd agent" in command for command in report["not_executed"])
    assert any("CMD" in note for note in report["notes"])


def test_an_image_object_builds_and_is_found_listed_and_deleted(stage: TensorlakeStage, context: Path) -> None:
    image = Image(name="made").copy("program", "/opt/hands/program").env("A", "b c").workdir("/workspace").run("true")
    with addressed(stage):
        built = image.build(context_dir=str(context))
        found = find_sandbox_image_by_name("made")
        assert found is not None and found["id"] == built["id"]
        assert "made" in [row["name"] for row in list_sandbox_images()]
        delete_sandbox_image("made")
        assert find_sandbox_image_by_name("made") is None
    with pytest.raises(RemoteAPIError) as refusal:
        stage.named(image="made")
    assert refusal.value.status_code == 400 and "not registered" in refusal.value.message


def test_an_image_may_start_from_another_and_a_rebuild_replaces_it(each_level: TensorlakeStage, context: Path) -> None:
    build(each_level, context, "parent")
    before = each_level.named(image="parent")
    (context / "Dockerfile").write_text("FROM parent\nCOPY --chmod=755 program /opt/hands/bin/second\nENV MORE=1\n")
    build(each_level, context, "parent")
    after = each_level.named(image="parent")
    assert out(after, "echo $GREETING $MORE; second; ls /data/inner") == "hello there 1\nran\nfile"
    assert before.run("test", ["-e", "/opt/hands/bin/second"]).exit_code == 1
    assert out(before, "cat /data/inner/file") == "seeded"


def test_a_build_that_fails_says_where(stage: TensorlakeStage, context: Path) -> None:
    (context / "Dockerfile").write_text("FROM x\nRUN true\nCOPY nothing /x\n")
    with pytest.raises(SandboxImageError, match="line 3: 'nothing' is not in the build context"):
        build(stage, context, "bad")


def test_a_context_with_another_digest_is_refused(stage: TensorlakeStage) -> None:
    admitted = stage.post("/images/v4/builds", {"name": "x", "kind": "dockerfile"}).json()
    stage.raw.put(admitted["context_upload"]["url"], content=b"abc")
    answer = stage.post(f"/images/v4/builds/{admitted['build_id']}/context/seal", {"digest": "0" * 64})
    assert answer.status_code == 409
    assert stage.raw.put(f"/_upload/{admitted['build_id']}/guess", content=b"abc").status_code == 404


def test_a_repeated_build_request_starts_one_build(stage: TensorlakeStage) -> None:
    headers = {"idempotency-key": "same"}
    body = {"name": "x", "kind": "dockerfile"}
    builds = [stage.raw.post("/images/v4/builds", json=body, headers=headers).json()["build_id"] for _ in range(2)]
    assert builds[0] == builds[1]
    assert stage.post("/images/v4/builds", {"name": "x", "kind": "import"}).status_code == 501


def plan(text: str, **build_args: str) -> dockerfile.ImagePlan:
    return dockerfile.read(text, build_args, {})


def test_variables_come_from_arguments_and_environment() -> None:
    read = plan("ARG A=one\nFROM b\nARG C=d\nENV X=$C-${A:-none} Y='\\$C'\nWORKDIR /w/${C}\nWORKDIR sub", C="given")
    assert read.runtime.env == {"X": "given-one", "Y": "$C"}
    assert read.runtime.workdir == "/w/given/sub"


def test_paths_of_copies_follow_the_directory() -> None:
    read = plan("FROM a\nWORKDIR /w\nCOPY a b c/\nCOPY x ../y\nADD --chmod=700 z /z")
    targets = [(copy.sources, copy.target) for copy in read.copies]
    assert targets == [(("a", "b"), "/w/c/"), (("x",), "/y"), (("z",), "/z")]
    assert (read.copies[2].mode, read.copies[2].extract) == (0o700, True)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("COPY a b", "before FROM"),
        ("FROM a\nFROM b", "several stages"),
        ("FROM a\nCOPY --from=x a b", "--from"),
        ("FROM a\nADD https://example.com/x /x", "remote"),
        ("FROM a\nCOPY a", "needs a source"),
        ("FROM a\nCOPY --chmod=u+x a b", "octal"),
        ("FROM a\nUSER 1234", "USER"),
        ("FROM a\nONBUILD RUN x", "ONBUILD"),
        ("FROM a\nRUN x \\", "continued"),
        ("# nothing", "no FROM"),
    ],
)
def test_what_cannot_be_honoured_is_an_error_that_says_so(text: str, word: str) -> None:
    with pytest.raises(DockerfileError, match=word):
        plan(text)


def test_no_link_leads_a_copy_out_of_the_context_or_the_root(tmp_path: Path) -> None:
    context, root, outside = (tmp_path / name for name in ("context", "root", "outside"))
    for directory in (context, root, outside):
        directory.mkdir()
    (outside / "secret").write_text("x")
    (context / "link").symlink_to(outside / "secret")
    (root / "door").symlink_to(outside)
    (context / "plain").write_text("y")
    with pytest.raises((DockerfileError, FileNotFoundError)):
        dockerfile.carry_out(plan("FROM a\nCOPY link /got"), context, root)
    dockerfile.carry_out(plan("FROM a\nCOPY plain /door/"), context, root)
    dockerfile.carry_out(plan("FROM a\nCOPY ../../plain /up"), context, root)
    assert [file.name for file in outside.iterdir()] == ["secret"]
    assert (root / "up").read_text() == "y"
