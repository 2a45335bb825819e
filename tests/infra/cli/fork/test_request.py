"""What `fork` makes of a file and of flags, and what it says to a wrong one."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from infra.cli.fork.request import BadInput, Flags, read_request

SESSION = "sesn_0a1B2c3D"
TRIES = ("a=make fast", "b=x=1 make")


def file_of(folder: Path, text: str) -> str:
    (folder / "race.yaml").write_text(text, encoding="utf-8")
    return str(folder / "race.yaml")


def asked(file: str, flags: Flags) -> dict[str, Any]:
    return read_request(file, flags).model_dump(exclude_unset=True, exclude_none=True, mode="json")


def refusal(file: str, flags: Flags | None = None) -> str:
    with pytest.raises(BadInput) as caught:
        read_request(file, flags or Flags())
    return str(caught.value)


def test_flags_alone_make_a_race() -> None:
    flags = Flags(
        session=SESSION,
        tries=TRIES,
        score="cat score",
        lower=True,
        accept=1.5,
        min_score=9.0,
        setup="make deps",
        timeout=30.0,
        deadline=60.0,
        parallel=2,
        promote="workspace",
        on_conflict="theirs",
        artifacts=("out/*", "log"),
        diff=True,
        environment="env_1",
        dry_run=True,
    )
    assert asked("", flags) == {
        "source": {"session_id": SESSION},
        "branches": [{"name": "a", "script": "make fast"}, {"name": "b", "script": "x=1 make"}],
        "judge": {"type": "command", "script": "cat score"},
        "higher_is_better": False,
        "accept": 1.5,
        "min_score": 9.0,
        "setup": "make deps",
        "branch_timeout": 30.0,
        "deadline": 60.0,
        "max_parallel": 2,
        "promote": "workspace",
        "on_conflict": "theirs",
        "artifacts": ["out/*", "log"],
        "diff": True,
        "environment_id": "env_1",
        "dry_run": True,
    }


@pytest.mark.parametrize(
    ("flags", "source"),
    [
        (Flags(session=SESSION), {"session_id": SESSION}),
        (Flags(sandbox="box"), {"sandbox_id": "box"}),
        (Flags(snapshot="snap"), {"snapshot_id": "snap"}),
        (Flags(image="agent-cli"), {"image": "agent-cli"}),
    ],
)
def test_a_source_of_the_command_line_takes_the_place_of_the_files(
    tmp_path: Path, flags: Flags, source: dict[str, str]
) -> None:
    file = file_of(tmp_path, "source: {image: other}\nn: 2\nscript: 'true'\n")
    assert asked(file, flags) == {"source": source, "n": 2, "script": "true"}


def test_branches_of_the_command_line_take_the_place_of_the_files_copies(tmp_path: Path) -> None:
    file = file_of(tmp_path, "source: {image: i}\nn: 3\nscript: echo {i}\naccept: 1\n")
    got = asked(file, Flags(tries=TRIES, accept=2.0))
    assert [branch["name"] for branch in got["branches"]] == ["a", "b"]
    assert "n" not in got
    assert got["accept"] == 2.0


def test_another_promotion_than_the_files_drops_what_belonged_to_that_one(tmp_path: Path) -> None:
    kept = file_of(
        tmp_path, "source: {session_id: s1}\nn: 1\nscript: x\npromote: keep\nkeep: {name: it, timeout: 90}\n"
    )
    assert "keep" not in asked(kept, Flags(promote="none"))
    assert asked(kept, Flags(keep="other"))["keep"] == {"name": "other", "timeout": 90}
    written = file_of(tmp_path, "source: {session_id: s1}\nn: 1\nscript: x\npromote: workspace\non_conflict: ours\n")
    assert "on_conflict" not in asked(written, Flags(promote="snapshot"))
    assert asked(written, Flags())["on_conflict"] == "ours"
    assert asked(written, Flags(keep="it"))["promote"] == "keep"


def test_json_is_read_as_well_and_so_is_standard_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = json.dumps(
        {"source": {"image": "i"}, "branches": [{"name": "tab\t".strip(), "script": "a\tb\n\"c\" 'd' # e"}]}
    )
    from_file = asked(file_of(tmp_path, text), Flags())
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(text.encode())))
    assert asked("-", Flags()) == from_file
    assert from_file["branches"][0]["script"] == "a\tb\n\"c\" 'd' # e"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("source: {image: i}\nn: 1\nscript: x\ncolour: red\n", ["colour"]),
        ("source: {image: i}\nbranches: [{name: a, script: x, retries: 3}]\n", ["branches.0.retries"]),
        ("source: {image: i}\nbranches: [{name: a b, script: x}]\n", ["branches.0.name"]),
        ("source: {image: i}\nn: 1\nscript: x\naccept: high\n", ["accept"]),
        ("source: {image: i}\nn: 1\nscript: x\naccept: .nan\n", ["accept"]),
        ("source: {image: i, session_id: s}\nn: 1\nscript: x\n", ["source", "exactly one"]),
        ("source: {image: i}\nn: 1\nn: 2\nscript: x\n", ["line 3", "twice"]),
        ("source: {image: i\nn: 1\n", ["race.yaml", "line 2"]),
        ("source: {image: i}\nn: 1\nscript: 2026-01-01\n", ["race.yaml", "date"]),
        ("source: !!python/object/apply:os.system [id]\n", ["race.yaml", "line 1"]),
        ("[1, 2]\n", ["race.yaml", "fields"]),
        ("", ["race.yaml", "fields"]),
        ("a: &a [*a]\n", ["race.yaml"]),
        ("a: \x00\n", ["race.yaml"]),
    ],
)
def test_what_is_wrong_with_a_file_is_said_by_its_name(tmp_path: Path, text: str, words: list[str]) -> None:
    said = refusal(file_of(tmp_path, text))
    assert [word for word in words if word not in said] == []


def test_no_value_of_a_file_is_quoted_back(tmp_path: Path) -> None:
    hidden = "value-that-nobody-repeats"
    for text in (
        f"source: {{image: i}}\nn: {hidden}\nscript: x\n",
        f"source: {{image: i}}\njudge: {{type: {hidden}}}\nn: 1\nscript: x\n",
    ):
        assert hidden not in refusal(file_of(tmp_path, text))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert "not-there.yaml cannot be read" in refusal(str(tmp_path / "not-there.yaml"))
    assert "cannot be read" in refusal(str(tmp_path))
    (tmp_path / "latin").write_bytes(b"source: \xe9\n")
    assert "not UTF-8" in refusal(str(tmp_path / "latin"))
    (tmp_path / "large").write_bytes(b"#" * (1024 * 1024 + 1))
    assert "more than 1048576 bytes" in refusal(str(tmp_path / "large"))


@pytest.mark.parametrize("wrong", ["no equals sign", "=no name", "no command= "])
def test_a_branch_that_is_written_wrong_names_its_flag(wrong: str) -> None:
    assert refusal("", Flags(image="i", tries=(wrong,))).startswith("--try:")


def test_without_anything_asked_for_it_says_what_to_ask_for() -> None:
    assert "--try" in refusal("")
    assert "source" in refusal("", Flags(tries=TRIES))
