"""How absolute paths are rewritten at the level without isolation."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.tensorlake.plain import FolderMapping


@pytest.fixture
def mapping(tmp_path: Path) -> FolderMapping:
    (tmp_path / "workspace").mkdir()
    (tmp_path / "opt" / "hands").mkdir(parents=True)
    (tmp_path / "opt" / "hands" / "worker.py").touch()
    return FolderMapping(tmp_path, ("/workspace", "/tmp"), Path("/real/venv"))


@pytest.mark.parametrize(
    "text",
    [
        "cat {}/workspace/new.txt",
        "cat '{}/workspace/a b' > {}/tmp/x; ls {}/workspace/",
        "--root={}/workspace",
        "python {}/opt/hands/worker.py",
        "A={}/workspace:{}/tmp",
    ],
)
def test_a_sandboxs_own_paths_are_mapped(mapping: FolderMapping, text: str) -> None:
    assert mapping.text(text.replace("{}", "")) == text.replace("{}", str(mapping.root))


@pytest.mark.parametrize(
    "text", ["/usr/bin/env", "cat /etc/hostname", "a/workspace/b", "https://example.com/workspace", "/opt", "/", "//"]
)
def test_everything_else_stays(mapping: FolderMapping, text: str) -> None:
    assert mapping.text(text) == text


def test_a_path_that_is_mapped_already_is_left_alone(mapping: FolderMapping) -> None:
    once = mapping.text("/workspace/x")
    assert mapping.text(once) == once


def test_the_venv_is_the_real_one_and_lists_of_paths_are_mapped(mapping: FolderMapping) -> None:
    assert mapping.path("/opt/hands/venv/bin/python") == "/real/venv/bin/python"
    assert mapping.value("/workspace/bin:/usr/bin") == f"{mapping.root}/workspace/bin:/usr/bin"
