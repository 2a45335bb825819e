"""The session image: its rules, its files, and a build through tensorlake's own client on the offline platform."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from image.session.archive import build_archive, digest
from image.session.claim import worker_path
from image.session.definition import BadRecipe, Recipe, build, dockerfile, session_image, stage
from infra.local.process import start_service


@pytest.mark.parametrize("name", ["agent-cli", "a", "team/agent-cli", "agent.cli:v1", "x_1"])
def test_names_that_the_registry_takes(name: str) -> None:
    assert Recipe(name).name == name


@pytest.mark.parametrize("name", ["", "Agent", "a--b", "-a", "a b", "a\nUSER root", "image_x", "0" * 64, "a" * 256])
def test_names_that_the_registry_does_not_take(name: str) -> None:
    with pytest.raises(BadRecipe, match="image name"):
        Recipe(name)


@pytest.mark.parametrize("base", ["", "python:3.13\nRUN evil", "a b", "--platform=x"])
def test_a_base_image_is_one_reference(base: str) -> None:
    with pytest.raises(BadRecipe, match="base image"):
        Recipe("a", base_image=base)


@pytest.mark.parametrize(
    "url",
    [
        *("", "--upload-pack=evil", "ext::sh -c evil", "git@host:repo", "http://host/repo", "https://host", "file://"),
        *("https://h/$(id)", "https://h/a b", "https://h/r\nRUN evil", "https:///repo"),
        *("https://user:pass@h/r", "https://token@h/r"),
    ],
)
def test_a_seed_repository_is_a_plain_url_without_a_credential(url: str) -> None:
    with pytest.raises(BadRecipe, match="seed repository"):
        Recipe("a", seed_repository=url)


def test_the_refusal_of_a_credential_does_not_repeat_it() -> None:
    with pytest.raises(BadRecipe) as refused:
        Recipe("a", seed_repository="https://user:hunter2@host/repo")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("revision", ["-x", "a..b", "a b", "$(id)", ""])
def test_a_revision_is_a_branch_or_tag(revision: str) -> None:
    with pytest.raises(BadRecipe, match="revision"):
        Recipe("a", seed_repository="https://host/repo", seed_revision=revision)


def test_the_dockerfile_ends_as_the_agents_user_with_the_worker_roots() -> None:
    text = dockerfile(Recipe("a"))
    worker = worker_path(digest(build_archive()))
    assert text.splitlines()[-2:] == ["WORKDIR /workspace", "USER agent"]
    assert f"COPY --chown=root:root {Path(worker).name} {worker}" in text
    assert "--require-hashes" in text
    assert "seed" not in text


def test_the_image_has_the_dockerfiles_steps() -> None:
    from tensorlake.image._dockerfile import image_to_dockerfile

    recipe = Recipe("a", seed_repository="https://host/repo")
    assert image_to_dockerfile(session_image(recipe)) + "\nUSER agent\n" == dockerfile(recipe)


def test_staging_clones_the_seed_and_brings_no_credential_along(tmp_path: Path) -> None:
    url = repository(tmp_path / "origin")
    context = tmp_path / "context"
    context.mkdir()
    stage(Recipe("a", seed_repository=url, seed_revision="main"), context)
    assert (context / "seed/hello.txt").read_text() == "from the seed"
    assert (context / Path(worker_path(digest(build_archive()))).name).read_bytes() == build_archive()
    assert {path.name for path in context.iterdir()} >= {"Dockerfile", "worker.lock", "seed"}


def test_a_seed_that_cannot_be_cloned_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="could not be cloned"):
        stage(Recipe("a", seed_repository=f"file://{tmp_path}/none"), tmp_path)


def test_the_definition_loads_no_sdk_by_itself() -> None:
    script = "import sys, image.session.definition; print('tensorlake' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=_root())
    assert done.stdout.strip() == "False"


def test_the_image_builds_on_the_offline_platform_and_a_sandbox_of_it_has_the_seed_and_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tensorlake.sandbox import Sandbox

    monkeypatch.setenv("TENSORLAKE_API_KEY", "somebody-elses")
    events: list[dict[str, Any]] = []
    with start_service("infra.local.tensorlake", ["--data-dir", str(tmp_path / "data")]) as service:
        recipe = Recipe("agent-cli", seed_repository=repository(tmp_path / "origin"))
        record = build(recipe, api_key="a-key", api_url=service.url, emit=events.append)
        assert record["name"] == "agent-cli"
        assert os.environ["TENSORLAKE_API_KEY"] == "somebody-elses"
        assert events
        box = Sandbox.create(image="agent-cli", name="image-test", api_key="a-key", api_url=service.url)
        try:
            script = f"cat hello.txt; id -un; test -O . && test -w /var/lib/hands && cat {worker_path('')}* | wc -c"
            done = box.run("sh", ["-c", script.replace(worker_path(""), "/opt/hands/worker-")])
            assert done.stdout.split() == ["from", "the", "seedagent", str(len(build_archive()))], done
        finally:
            box.terminate()


def repository(path: Path) -> str:
    """A repository with one file on its branch main; returns its URL."""
    path.mkdir()
    (path / "hello.txt").write_text("from the seed")
    author = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    for command in (
        ["init", "--quiet", "--initial-branch=main"],
        ["add", "."],
        [*author, "commit", "--quiet", "-m", "x"],
    ):
        subprocess.run(["git", *command], cwd=path, check=True, capture_output=True)
    return f"file://{path}"


def _root() -> Path:
    return Path(__file__).resolve().parents[3]
