"""Prompts, titles and metadata: what the service would refuse is refused before a session is made."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from infra.cli.session.prompt import read_metadata, read_prompt, read_title
from shared.errors import SettingsError

LETTER = 'line\n\n  it\'s "quoted" $HOME `id` %s ünïcode \\ \\\n'


def test_a_file_is_taken_to_the_letter_whatever_its_size(tmp_path: Path) -> None:
    file = tmp_path / "a prompt.txt"
    file.write_text(LETTER * 20_000, encoding="utf-8")
    assert read_prompt("", str(file)) == LETTER * 20_000
    file.write_bytes(b"\xef\xbb\xbfwith a mark")
    assert read_prompt(" ", str(file)) == "with a mark"


def test_standard_input_is_a_file_named_by_a_dash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(LETTER.encode())))
    assert read_prompt("", "-") == LETTER


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (None, r"file .*p\.txt cannot be read: No such file"),
        (b"caf\xe9", r"p\.txt is not UTF-8: byte 4 is 0xe9"),
        (b" \n\t", r"there is no prompt in .*p\.txt: it is empty"),
    ],
)
def test_a_file_that_holds_no_prompt_is_named_with_the_reason(tmp_path: Path, content: bytes | None, says: str) -> None:
    file = tmp_path / "p.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(SettingsError, match=says):
        read_prompt("", str(file))


def test_a_folder_and_two_prompts_at_once_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="Is a directory"):
        read_prompt("", str(tmp_path))
    with pytest.raises(SettingsError, match="not both"):
        read_prompt("x", str(tmp_path))


def test_an_argument_that_is_not_utf8_is_told_with_the_byte() -> None:
    argument = b"ok \xc3\xbc caf\xe9 more".decode("utf-8", "surrogateescape")
    with pytest.raises(SettingsError, match="byte 10 is 0xe9"):
        read_prompt(argument, "")
    with pytest.raises(SettingsError, match="TITLE is not UTF-8"):
        read_title(argument)
    with pytest.raises(SettingsError, match="META is not UTF-8"):
        read_metadata([f"a={argument}"])


def test_metadata_is_read_as_a_shell_would_read_it() -> None:
    assert read_metadata(["a=1=2"], "b='two words' c=") == {"a": "1=2", "b": "two words", "c": ""}
    assert read_metadata(()) == {}


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("a", "'a', which is no name=value"),
        ("=b", "'=b', which is no name=value"),
        ("a='b", "META cannot be read"),
        ("repo=a@1", "META: repo must be a URL with https://"),
        ("repo=https://git.example/a ref=--x", "META: ref is no branch, tag or commit"),
        (f"{'n' * 65}=1", "is too long"),
        (f"n={'v' * 513}", "is too long"),
        (" ".join(f"n{number}=1" for number in range(17)), "17 pairs; a session takes 16"),
    ],
)
def test_metadata_that_the_service_would_refuse_is_refused_here(line: str, says: str) -> None:
    with pytest.raises(SettingsError, match=says):
        read_metadata((), line)
