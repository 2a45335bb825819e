"""The session image: its rules, its files, and a build through tensorlake's own client on the offline platform."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from image.session.archive import build_archive, digest
from image.session.claim import worker_path
from image.session.definition import BadRecipe, Recipe, Variant, build, dockerfile, recipe_from, stage
from infra.local.admin_client import AdminClient
from infra.local.process import RunningService
from tests.support.preloaded import forked_service


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
    assert f"COPY --chown=root:root .session-image/{Path(worker).name} {worker}" in text
    assert "--require-hashes" in text
    assert "seed" not in text


@pytest.mark.parametrize(
    ("variables", "problem"),
    [
        ({"SANDBOX_PACKAGES": "jq; id"}, "is not the name of an apt package"),
        ({"SANDBOX_PACKAGES": "--allow-unauthenticated"}, "is not the name of an apt package"),
        ({"SANDBOX_IMAGE_VARIANT": "large"}, "one of full, slim"),
        ({"SANDBOX_GIT_NAME": 'a"b'}, "git identity"),
        ({"SANDBOX_GIT_EMAIL": "<a@b>"}, "git identity"),
        ({"SANDBOX_DOCKERFILE": "Dockerfile", "SANDBOX_IMAGE_BASE": "debian"}, "both set"),
    ],
)
def test_a_variable_that_cannot_be_used_is_named(variables: dict[str, str], problem: str) -> None:
    with pytest.raises(BadRecipe, match=problem) as refused:
        recipe_from(variables)
    assert "SANDBOX_" in str(refused.value)


def test_packages_are_separated_by_commas_or_spaces_and_join_those_of_the_variant() -> None:
    full = recipe_from({"SANDBOX_PACKAGES": "golang-go, libpq-dev=17.2-1  ripgrep"})
    assert full.packages == ("golang-go", "libpq-dev=17.2-1", "ripgrep")
    assert " golang-go libpq-dev=17.2-1 ripgrep " in dockerfile(full)
    assert "build-essential" in dockerfile(full)
    assert "/usr/local/bin/npm" in dockerfile(full)
    slim = dockerfile(recipe_from({"SANDBOX_IMAGE_VARIANT": "slim"}))
    assert "build-essential" not in slim
    assert "node" not in slim
    assert recipe_from({}).variant is Variant.FULL


def test_an_operators_dockerfile_is_built_on_with_the_files_beside_it(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "tool.sh").write_text("#!/bin/sh\n")
    (own / "link").symlink_to("tool.sh")
    (own / ".dockerignore").write_text("*\n!tool.sh")
    (own / "my.Dockerfile").write_text("FROM debian:trixie\nCOPY tool.sh /usr/local/bin/\nUSER nobody\n")
    context = tmp_path / "context"
    context.mkdir()
    text = stage(Recipe("a", dockerfile=own / "my.Dockerfile"), context).read_text()
    assert text.startswith("FROM debian:trixie\nCOPY tool.sh /usr/local/bin/\nUSER nobody\nUSER root\nRUN apt-get")
    assert text.endswith("USER agent\n")
    assert (context / "tool.sh").is_file()
    assert (context / "link").is_symlink()
    *_, ours, below, last = (context / ".dockerignore").read_text().splitlines()
    assert (ours, below, last) == ("!.session-image", "!.session-image/**", "!Dockerfile")
    assert (context / ".session-image" / "gitconfig").is_file()


@pytest.mark.parametrize(("text", "problem"), [("RUN true\n", "no FROM"), ("FROM a\nRUN b \\\n", "continued")])
def test_a_dockerfile_that_cannot_be_built_on_is_refused(tmp_path: Path, text: str, problem: str) -> None:
    (tmp_path / "Dockerfile").write_text(text)
    with pytest.raises(BadRecipe, match=problem):
        dockerfile(Recipe("a", dockerfile=tmp_path / "Dockerfile"))
    with pytest.raises(BadRecipe, match="cannot be read"):
        dockerfile(Recipe("a", dockerfile=tmp_path / "none"))


def test_staging_packs_the_seed_and_brings_no_credential_along(tmp_path: Path) -> None:
    url = repository(tmp_path / "origin")
    context = tmp_path / "context"
    context.mkdir()
    stage(Recipe("a", seed_repository=url, seed_revision="main"), context)
    ours = context / ".session-image"
    assert (ours / Path(worker_path(digest(build_archive()))).name).read_bytes() == build_archive()
    assert {path.name for path in ours.iterdir()} >= {"gitconfig", "worker.lock", "seed.tar"}
    with tarfile.open(ours / "seed.tar") as seed:
        assert {(member.uid, member.uname) for member in seed} == {(0, "root")}
        text = seed.extractfile("hello.txt")
        assert text is not None
        assert text.read() == b"from the seed"


def test_a_seed_that_cannot_be_cloned_is_said(tmp_path: Path) -> None:
    with pytest.raises(BadRecipe, match="could not be cloned"):
        stage(Recipe("a", seed_repository=f"file://{tmp_path}/none"), tmp_path)


def test_the_definition_loads_no_sdk_by_itself() -> None:
    script = "import sys, image.session.definition; print('tensorlake' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=_root())
    assert done.stdout.strip() == "False"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningService]:
    directory = tmp_path_factory.mktemp("data")
    with forked_service("infra.local.tensorlake", ["--data-dir", str(directory)]) as running:
        yield running


@contextlib.contextmanager
def sandbox(service: RunningService, image: str) -> Iterator[Callable[[str], str]]:
    """Yields what runs a shell text in a new sandbox of this image and answers its output, errors included."""
    from tensorlake.sandbox import Sandbox

    box = Sandbox.create(image=image, api_key="a-key", api_url=service.url)
    try:

        def shell(text: str, *flags: str) -> str:
            done = box.run("bash", [*flags, "-c", f"exec 2>&1; {text}"], timeout=60)
            return str(done.stdout).strip()

        yield shell
    finally:
        box.terminate()


def test_the_image_builds_on_the_offline_platform_and_a_sandbox_of_it_has_the_seed_and_the_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, service: RunningService
) -> None:
    monkeypatch.setenv("TENSORLAKE_API_KEY", "somebody-elses")
    events: list[dict[str, Any]] = []
    recipe = Recipe("agent-cli", seed_repository=repository(tmp_path / "origin"))
    record = build(recipe, api_key="a-key", api_url=service.url, emit=events.append)
    assert record["name"] == "agent-cli"
    assert os.environ["TENSORLAKE_API_KEY"] == "somebody-elses"
    with sandbox(service, "agent-cli") as shell:
        script = "cat hello.txt; id -un; test -O . && test -w /var/lib/hands && cat /opt/hands/worker-* | wc -c"
        assert shell(script).split() == ["from", "the", "seedagent", str(len(build_archive()))]
        # The worker comes from the compiled modules beside its archive: nothing is compiled at its start.
        started = shell("python3 -I -v /opt/hands/worker-*.pyz < /dev/null 2>&1 | grep 'code object from'")
        ours = [line for line in started.splitlines() if "/image/session/" in line]
        assert ours and all("/opt/hands/modules-" in line and ".pyc" in line for line in ours)


def test_the_build_says_which_steps_were_not_executed(service: RunningService) -> None:
    AdminClient(service.url, service.admin_token).patch("settings", {"build_log_seconds": 60.0})
    events: list[dict[str, Any]] = []
    build(Recipe("said", packages=("golang-go",)), api_key="a-key", api_url=service.url, emit=events.append)
    said = [str(event.get("message")) for event in events]
    (apt,) = [line for line in said if "golang-go" in line]
    assert apt.startswith("not executed offline: RUN apt-get update")
    AdminClient(service.url, service.admin_token).patch("settings", {"build_log_seconds": 0.0})


def test_a_seed_is_in_the_sandbox_as_it_is_in_git(tmp_path: Path, service: RunningService) -> None:
    """Links to files, folders, nothing and outside; modes; a submodule; a name that is not ASCII."""
    inner = repository(tmp_path / "inner")
    outer = tmp_path / "outer"
    repository(outer)
    (outer / "docs").mkdir()
    (outer / "docs" / "gu\u00efde.md").write_text("guide")
    (outer / "run.sh").write_text("#!/bin/sh\necho ran\n")
    (outer / "run.sh").chmod(0o755)
    for name, target in (
        ("file", "docs/gu\u00efde.md"),
        ("folder", "docs"),
        ("dangling", "none"),
        ("away", "/etc/hosts"),
    ):
        (outer / name).symlink_to(target)
    git(outer, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", inner, "part")
    git(outer, "add", ".")
    git(outer, "commit", "--quiet", "-m", "links")
    build(Recipe("seeded", seed_repository=f"file://{outer}"), api_key="a-key", api_url=service.url)
    with sandbox(service, "seeded") as shell:
        assert shell("git status --porcelain --ignored; git submodule foreach --quiet git status --porcelain") == ""
        assert shell("find . -type l -not -path './.git/*' | sort").split() == [
            "./away",
            "./dangling",
            "./file",
            "./folder",
        ]
        assert shell("./run.sh; cat file; echo; cat folder/*; echo; cat part/hello.txt").split("\n") == [
            *("ran", "guide", "guide", "from the seed")
        ]
        assert "ok" in shell("echo more >> part/hello.txt; git commit --quiet --all -m x || echo ok")
        assert shell("git log --format=%an -1; ls -d .git/refs/tags .git/objects/info") != ""


def test_git_works_at_once_with_an_identity_that_a_repository_overrides(service: RunningService) -> None:
    recipe = Recipe("committing", git_name="Robot \u00e9", git_email="robot@example.com")
    build(recipe, api_key="a-key", api_url=service.url)
    with sandbox(service, "committing") as shell:
        new = "git init --quiet r && cd r && echo 1 > f && git add f"
        assert shell(f"{new} && git commit --quiet -m one && git log --format='%an <%ae> %D'") == (
            "Robot \u00e9 <robot@example.com> HEAD -> main"
        )
        own = "git config user.name own && git config user.email own@example.com"
        assert shell(f"cd r && {own} && git commit --quiet --allow-empty -m 2 && git log -1 --format=%ae") == (
            "own@example.com"
        )
        assert shell("echo $USER $LOGNAME; id -un").split() == ["agent"] * 3
        refused = shell("git ls-remote http://127.0.0.1:9/private < /dev/null; echo code=$?")
        assert "code=128" in refused


FOUND: Final = 'import importlib.util as i, sys; print(sys.prefix); print(i.find_spec("anthropic").origin)'


def test_the_shell_has_what_the_base_image_sets(tmp_path: Path, service: RunningService) -> None:
    (tmp_path / "Dockerfile").write_text(
        'FROM debian\nENV JAVA_HOME=/opt/java GREETING="hello there" PATH=/opt/java/bin:$PATH\n'
    )
    build(Recipe("based", dockerfile=tmp_path / "Dockerfile"), api_key="a-key", api_url=service.url)
    with sandbox(service, "based") as shell:
        for flags in ((), ("-l",)):
            said = shell(
                f"echo $JAVA_HOME; echo $GREETING; echo $PATH; python3 -c '{FOUND}'",
                *flags,
            )
            java, greeting, path, prefix, package = said.splitlines()
            assert (java, greeting, prefix) == ("/opt/java", "hello there", "/opt/hands/venv")
            assert package.startswith("/opt/hands/venv/") and package.endswith("/anthropic/__init__.py")
            assert "/opt/java/bin" in path.split(":")


def repository(path: Path) -> str:
    """A repository with one file on its branch main; returns its URL."""
    path.mkdir()
    (path / "hello.txt").write_text("from the seed")
    git(path, "init", "--quiet", "--initial-branch=main")
    git(path, "add", ".")
    git(path, "commit", "--quiet", "-m", "x")
    return f"file://{path}"


def git(folder: Path, *args: str) -> None:
    author = ["-c", "user.name=test", "-c", "user.email=test@example.invalid"]
    subprocess.run(["git", *author, *args], cwd=folder, check=True, capture_output=True)


def _root() -> Path:
    return Path(__file__).resolve().parents[3]
