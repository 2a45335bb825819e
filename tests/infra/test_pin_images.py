"""Base images by digest: a registry on this machine, and what is built from the digests that it gives."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from image.server import definition as server
from image.session import base_images
from image.session.definition import Recipe, dockerfile
from infra.pin_images import NotPinned, pin
from tests.support.http_stub import StubHandler, stub_server


class Registry:
    """The manifests by path; whoever has no token is sent to fetch one. `lies`: its digests are others."""

    def __init__(self) -> None:
        self.manifests: dict[str, bytes] = {}
        self.lies = False
        self.url = ""

    @property
    def host(self) -> str:
        return urlsplit(self.url).netloc

    def digest(self, path: str) -> str:
        return f"sha256:{hashlib.sha256(self.manifests[path]).hexdigest()}"


@pytest.fixture
def registry() -> Iterator[Registry]:
    made = Registry()

    class Handler(StubHandler):
        def do_GET(self) -> None:
            where = urlsplit(self.path)
            if where.path == "/token":
                scope = parse_qs(where.query)["scope"][0]
                return self.answer(200, f'{{"token": "for {scope}"}}'.encode())
            name, _, tag = where.path.removeprefix("/v2/").partition("/manifests/")
            scope = f"repository:{name}:pull"
            if self.headers["authorization"] != f"Bearer for {scope}":
                asked = f'Bearer realm="{made.url}/token",service="here",scope="{scope}"'
                return self.answer(401, headers={"www-authenticate": asked})
            manifest = made.manifests.get(f"{name}:{tag}")
            if manifest is None or "image.index" not in self.headers["accept"]:
                return self.answer(404)
            digest = "sha256:" + "0" * 64 if made.lies else made.digest(f"{name}:{tag}")
            return self.answer(200, manifest, {"docker-content-digest": digest})

    with contextlib.ExitStack() as stack:
        made.url = stack.enter_context(stub_server(Handler))
        made.manifests = {"library/python:3.13": b'{"one": 1}', "base:trixie": b'{"two": 2}'}
        yield made


@pytest.fixture
def root(tmp_path: Path, registry: Registry) -> Path:
    (tmp_path / "requirements").mkdir()
    (tmp_path / "Dockerfile").write_text(f"ARG BASE={registry.host}/library/python:3.13\nFROM ${{BASE}}\n")
    return tmp_path


def pinned_by(registry: Registry, root: Path) -> list[str]:
    return pin({"SANDBOX_IMAGE_BASE": f"{registry.host}/base:trixie"}, root)


def test_both_bases_are_written_by_digest_and_moved_when_the_tag_has_moved(registry: Registry, root: Path) -> None:
    host = registry.host
    one, two = registry.digest("library/python:3.13"), registry.digest("base:trixie")
    expected = [f"{host}/library/python:3.13@{one}", f"{host}/base:trixie@{two}"]
    for _ in range(2):
        assert pinned_by(registry, root) == expected
        assert (root / "Dockerfile").read_text() == f"ARG BASE={expected[0]}\nFROM ${{BASE}}\n"
        assert (root / "requirements" / "base-images.lock").read_text() == f"{expected[1]}\n"
    registry.manifests["library/python:3.13"] = b'{"one": 2}'
    assert pinned_by(registry, root)[0] == f"{host}/library/python:3.13@{registry.digest('library/python:3.13')}"


def test_the_images_of_the_sandboxes_are_built_on_what_the_lock_says(
    registry: Registry, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, by_digest = pinned_by(registry, root)
    monkeypatch.setattr(base_images, "LOCK", root / "requirements" / "base-images.lock")
    recipe = Recipe("a", base_image=f"{registry.host}/base:trixie")
    for text in (dockerfile(recipe), server.dockerfile(recipe, "0" * 64)):
        assert text.startswith(f"FROM {by_digest}\n")
    other = Recipe("a", base_image="debian:trixie")
    assert dockerfile(other).startswith("FROM debian:trixie\n"), "a tag that nobody has pinned stays one"


@pytest.mark.parametrize("base", ["debian", "debian@sha256:0", "/x:y", "HOST:1"])
def test_a_base_without_a_tag_is_refused(registry: Registry, root: Path, base: str) -> None:
    with pytest.raises(NotPinned, match="tag"):
        pin({"SANDBOX_IMAGE_BASE": base}, root)


def test_what_is_not_there_or_not_what_it_says_changes_nothing(registry: Registry, root: Path) -> None:
    before = (root / "Dockerfile").read_text()
    with pytest.raises(NotPinned, match="404"):
        pin({"SANDBOX_IMAGE_BASE": f"{registry.host}/nobody:1"}, root)
    registry.lies = True
    with pytest.raises(NotPinned, match="no clear answer"):
        pinned_by(registry, root)
    assert (root / "Dockerfile").read_text() == before and not list((root / "requirements").iterdir())
