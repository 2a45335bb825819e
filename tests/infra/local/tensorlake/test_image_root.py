"""A root of one's own in place of the machine's programs (docs/offline.md#an-images-own-root)."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorlake.sandbox import Sandbox

from image.session.definition import Recipe, build
from infra.local.process import RunningService, ServiceStartError
from infra.local.tensorlake import inside
from infra.local.tensorlake.isolation import Isolation, IsolationError
from infra.local.tensorlake.rooted import RootedHost, RootError
from tests.infra.local.tensorlake.conftest import KEY, out
from tests.support import small_root
from tests.support.preloaded import forked_service


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("root")
    small_root.make(made, Path(inside.__path__[0]).parent)
    (made / "opt/thing/mark").write_text("of the root")
    (made / "usr/lib").mkdir(exist_ok=True)
    (made / "usr/lib/os-release").write_text("ID=small\n")
    (made / "etc/os-release").symlink_to("../usr/lib/os-release")
    (made / "home/agent/notes").write_text("from the image")
    (made / "var/lib/hands").mkdir(parents=True)
    (made / "var/lib/hands/session").write_text("another")
    (made / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nmail:x:8:8::/var/mail:/bin/sh\nagent:x:4321:4321:::\n")
    return made


@pytest.fixture(scope="module")
def rooted(root: Path) -> Iterator[RunningService]:
    try:
        given = ["--image-root", str(root), "--settings", '{"build_log_seconds": 60}']
        started = forked_service("infra.local.tensorlake", given)
    except ServiceStartError as error:
        if "no isolation level works" not in str(error):
            raise
        pytest.skip(str(error))
    with started as service:
        assert service.ready["isolation"]["image_root"] == str(root)
        yield service


@pytest.fixture(scope="module")
def sandbox(rooted: RunningService) -> Iterator[Sandbox]:
    made = Sandbox.create(api_url=rooted.url, api_key=KEY, request_timeout=60.0, name="rooted")
    yield made
    made.terminate()


def test_a_sandbox_has_the_programs_of_the_root_and_none_of_the_machine(sandbox: Sandbox) -> None:
    assert out(sandbox, "cat /opt/thing/mark") == "of the root"
    assert out(sandbox, "cat /etc/os-release").strip() == "ID=small"
    assert out(sandbox, "ls /usr/bin").split() == sorted(["cat", "cp", "id", "ls", "mkdir", "sh"])
    assert out(sandbox, "command -v git curl bash || echo none").strip() == "none"


def test_what_a_sandbox_writes_is_not_written_into_the_root(sandbox: Sandbox, root: Path) -> None:
    out(sandbox, "echo mine > /home/agent/notes && echo mine > /opt/thing/mark && echo mine > /opt/thing/new")
    assert out(sandbox, "cat /opt/thing/new /opt/thing/mark").split() == ["mine", "mine"]
    assert (root / "home/agent/notes").read_text() == "from the image"
    assert (root / "opt/thing/mark").read_text() == "of the root"
    assert not (root / "opt/thing/new").exists()
    assert out(sandbox, "(echo no > /usr/bin/cat) 2>&1 || echo refused").endswith("refused")


def test_a_root_that_was_used_does_not_say_whose_the_sandbox_is(sandbox: Sandbox) -> None:
    assert out(sandbox, "ls -A /var/lib/hands /tmp").split() == ["/tmp:", "/var/lib/hands:"]


def test_users_are_those_of_the_root_beside_the_one_that_processes_run_as(sandbox: Sandbox) -> None:
    users = [line.split(":")[0] for line in out(sandbox, "cat /etc/passwd").splitlines()]
    assert users[0] == "root" and "mail" in users
    assert out(sandbox, "id -un").strip() == "root"


@pytest.mark.parametrize(
    ("folders", "said"),
    [((), "has no usr or no etc"), (("usr", "etc"), "has no python3"), (None, "is no folder")],
)
def test_a_folder_that_cannot_be_a_root_is_refused_with_the_reason(
    folders: tuple[str, ...] | None, said: str, tmp_path: Path
) -> None:
    here = tmp_path / "given"
    for folder in ("", *folders) if folders is not None else ():
        (here / folder).mkdir(parents=True, exist_ok=True)
    with pytest.raises(RootError, match=f"IMAGE_ROOT: .*{said}"):
        RootedHost.at(here, tmp_path / "data")


def test_the_level_without_isolation_is_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(IsolationError, match="this machine's programs"):
        asyncio.run(Isolation.probe("plain", tmp_path, root))


def test_a_build_names_the_root_in_place_of_the_steps_that_were_not_executed(rooted: RunningService) -> None:
    events: list[dict[str, Any]] = []
    build(Recipe("said"), api_key=KEY, api_url=rooted.url, emit=events.append)
    (said,) = [str(event["message"]) for event in events if "not executed" in str(event.get("message"))]
    assert said.endswith(f"sandboxes have the programs of {rooted.ready['isolation']['image_root']}")
