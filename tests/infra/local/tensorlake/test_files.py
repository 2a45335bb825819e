"""Files: the contract's calls and codes, whoever owns the path."""

from __future__ import annotations

from typing import Any

import pytest
from tensorlake.sandbox.exceptions import RemoteAPIError

from infra.local.tensorlake import files
from infra.local.tensorlake.errors import TensorlakeApiError
from tests.infra.local.tensorlake.conftest import TensorlakeStage, out

PATHS = ["/workspace/a/b.bin", "/opt/hands/program.py", "/d/a b&c.txt", "/tmp/x", "/etc/thing.conf"]


@pytest.mark.parametrize("path", PATHS)
def test_a_file_is_written_read_seen_inside_and_deleted(each_level: TensorlakeStage, path: str) -> None:
    sandbox = each_level.named()
    data = bytes(range(256)) * 9
    sandbox.write_file(path, b"before")
    sandbox.write_file(path, data)
    assert sandbox.read_file(path).value == data
    assert out(sandbox, f"wc -c < '{path}'").strip() == str(len(data))
    parent, _, name = path.rpartition("/")
    entry = next(each for each in sandbox.list_directory(parent).value.entries if each.name == name)
    assert (entry.is_dir, entry.size) == (False, len(data))
    sandbox.delete_file(path)
    with pytest.raises(RemoteAPIError) as gone:
        sandbox.read_file(path)
    assert (gone.value.status_code, gone.value.code) == (404, "NOT_FOUND")


def test_an_empty_and_a_large_file_arrive_whole(each_level: TensorlakeStage) -> None:
    sandbox = each_level.named()
    for data in (b"", b"0123456789abcdef" * 800_000):
        sandbox.write_file("/workspace/f", data)
        assert sandbox.read_file("/workspace/f").value == data


def test_directories_come_first_and_have_no_size(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    out(sandbox, "mkdir z; touch a b; ln -s nowhere broken")
    entries = sandbox.list_directory("/workspace").value.entries
    assert [(each.name, each.is_dir) for each in entries] == [
        ("z", True),
        ("a", False),
        ("b", False),
        ("broken", False),
    ]
    assert entries[0].size is None and entries[1].modified_at is not None


CODES: list[tuple[str, str, int, str]] = [
    ("GET", "/workspace/none", 404, "NOT_FOUND"),
    ("GET", "/workspace/../etc/passwd", 403, "PATH_TRAVERSAL"),
    ("GET", "/workspace/dir", 400, "IS_DIRECTORY"),
    ("GET", "/workspace/file/below", 400, "NOT_A_DIRECTORY"),
    ("GET", "/workspace/pipe", 400, "NOT_A_FILE"),
    ("GET", "relative", 400, "BAD_REQUEST"),
    ("PUT", "/workspace/dir", 400, "IS_DIRECTORY"),
    ("PUT", "/workspace/file/below", 400, "NOT_A_DIRECTORY"),
    ("PUT", "/opt/../x", 403, "PATH_TRAVERSAL"),
    ("DELETE", "/workspace/none", 404, "NOT_FOUND"),
    ("DELETE", "/workspace/dir", 400, "IS_DIRECTORY"),
]


@pytest.mark.parametrize(("method", "path", "status", "code"), CODES)
def test_what_goes_wrong_has_the_contracts_code(
    stage: TensorlakeStage, method: str, path: str, status: int, code: str
) -> None:
    sandbox = stage.named()
    out(sandbox, "mkdir dir; echo x > file; mkfifo pipe")
    content: dict[str, Any] = {"content": b"x"} if method == "PUT" else {}
    answer = stage.inside(sandbox, method, "/api/v1/files", params={"path": path}, **content)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


def test_a_list_of_a_file_or_of_nothing_is_refused(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    out(sandbox, "echo x > file")
    for path, status, code in (("/workspace/file", 400, "NOT_A_DIRECTORY"), ("/workspace/no", 404, "NOT_FOUND")):
        answer = stage.inside(sandbox, "GET", "/api/v1/files/list", params={"path": path})
        assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize("path", ["/workspace/f", "/opt/hands/f"])
def test_too_large_a_body_is_a_413_and_replaces_nothing(stage: TensorlakeStage, path: str) -> None:
    sandbox = stage.named()
    sandbox.write_file(path, b"small")
    stage.settings(max_file_bytes=1000)
    for content in (b"x" * 1001, iter([b"x" * 600, b"y" * 600])):
        answer = stage.inside(sandbox, "PUT", "/api/v1/files", params={"path": path}, content=content)
        assert answer.status_code == 413
    assert sandbox.read_file(path).value == b"small"
    assert [each.name for each in sandbox.list_directory(path.rpartition("/")[0]).value.entries if each.name == "f"]
    assert not [each for each in sandbox.list_directory("/workspace").value.entries if "partial" in each.name]


def test_a_write_keeps_the_mode_and_follows_a_link(stage: TensorlakeStage) -> None:
    sandbox = stage.named()
    out(sandbox, "echo x > run.sh; chmod 755 run.sh; ln -s run.sh link")
    sandbox.write_file("/workspace/link", b"#!/bin/sh\necho ran\n")
    assert out(sandbox, "test -L link && ./run.sh") == "ran"


def test_the_machines_own_files_cannot_be_written(stage: TensorlakeStage) -> None:
    if not stage.service.ready["isolation"]["isolated"]:
        pytest.skip("this level says that it is not isolated")
    sandbox = stage.named()
    for path in ("/usr/bin/evil", "/bin/evil", "/proc/x", "/opt/hands/venv/evil", "/.sandbox/inside/x"):
        with pytest.raises(RemoteAPIError) as refusal:
            sandbox.write_file(path, b"x")
        assert refusal.value.status_code == 403, path
    assert sandbox.run("sh", ["-c", "touch /usr/x"]).exit_code != 0


def test_no_link_from_inside_leads_a_write_out_of_the_sandbox(each_level: TensorlakeStage, tmp_path: Any) -> None:
    if not each_level.service.ready["isolation"]["isolated"]:
        pytest.skip("this level says that it is not isolated")
    sandbox = each_level.named()
    out(sandbox, f"ln -s {tmp_path} out")
    each_level.inside(sandbox, "PUT", "/api/v1/files", params={"path": "/workspace/out/f"}, content=b"x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["", "x", "/a/../b", "/..", "/a\0"])
def test_a_path_is_absolute_and_plain(path: str) -> None:
    with pytest.raises(TensorlakeApiError):
        files.checked(path)


def test_slashes_and_dots_are_dropped() -> None:
    assert files.checked("//a/./b//") == "/a/b"
