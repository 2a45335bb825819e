"""Files of NAME=value lines."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.local import dotenv

NAMES = st.from_regex(r"[A-Z_][A-Z0-9_]{0,20}", fullmatch=True)
VALUES = st.text(st.characters(exclude_characters="\n\r'", exclude_categories=["Cs"])).filter(
    lambda value: "\\" not in value or not {"$", "`"} & set(value)
)


def read(tmp_path: Path, text: str) -> dict[str, str]:
    path = tmp_path / ".env"
    path.write_text(text, encoding="utf-8")
    return dotenv.read(path)


def test_common_forms_are_understood(tmp_path: Path) -> None:
    text = """\
# a comment
A=1
export B = two words   # with a comment
C='single $X # kept'   # dropped
D="double \\"quoted\\" \\n line"
E=
F=#nothing
G=a#b

H="whsec_ab+/=="
"""
    assert read(tmp_path, text) == {
        "A": "1",
        "B": "two words",
        "C": "single $X # kept",
        "D": 'double "quoted" \n line',
        "E": "",
        "F": "#nothing",
        "G": "a#b",
        "H": "whsec_ab+/==",
    }


def test_an_absent_file_has_no_variables(tmp_path: Path) -> None:
    assert dotenv.read(tmp_path / "nothing") == {}


@pytest.mark.parametrize("line", ["sk-secret", "A='open sk-secret", 'A="open sk-secret', "1A=sk-secret"])
def test_a_line_that_cannot_be_read_is_named_by_number_and_never_quoted(tmp_path: Path, line: str) -> None:
    for before, number in (("OK=1\n", 2), ("OK=1\n\n\n# a comment\n\n", 6), ("", 1)):
        with pytest.raises(dotenv.DotenvError, match=f"line {number}:") as caught:
            read(tmp_path, f"{before}{line}\n")
        assert "sk-secret" not in str(caught.value)


@pytest.mark.parametrize("line", ["A='open sk-secret", 'export A = "open sk-secret\nB=2'])
def test_a_quote_that_is_not_closed_is_what_the_error_is_about(tmp_path: Path, line: str) -> None:
    with pytest.raises(dotenv.DotenvError, match=r"line 2: .* quote .* not closed"):
        read(tmp_path, f"OK=1\n{line}\n")
    with pytest.raises(dotenv.DotenvError, match="expected NAME=value"):
        read(tmp_path, "sk-secret 'open\n")


def test_a_file_that_is_not_utf8_is_named_without_its_content(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_bytes(b"KEY=sk-secret\xe9\n")
    with pytest.raises(dotenv.DotenvError, match="not UTF-8") as caught:
        dotenv.read(path)
    assert "sk-secret" not in str(caught.value) and str(path) in str(caught.value)


def test_nothing_is_interpolated(tmp_path: Path) -> None:
    assert read(tmp_path, 'A=1\nB=${A}\nC="${A} $A"\n') == {"A": "1", "B": "${A}", "C": "${A} $A"}


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffA=1\r\nB=2\r\n") == {"A": "1", "B": "2"}


@given(st.dictionaries(NAMES, VALUES, max_size=5))
def test_what_is_rendered_is_read_back(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str]) -> None:
    path = tmp_path_factory.getbasetemp() / "rendered.env"
    path.write_text(dotenv.render(variables), encoding="utf-8")
    assert dotenv.read(path) == variables


def test_what_no_line_can_hold_is_refused() -> None:
    for value in ("x\ny", "x\ry", "it's", "\\$x", "\\`x`"):
        with pytest.raises(ValueError, match="A:"):
            dotenv.render({"A": value})


@pytest.mark.parametrize("value", ["a b", 'C:\\x "y" \\', "$HOME `id`", "a#b c #d", "x=1"])
def test_a_shell_reads_what_is_rendered_as_we_do(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rendered.env"
    path.write_text(dotenv.render({"A": value}), encoding="utf-8")
    shell = subprocess.run(["sh", "-c", '. "$0"; printf %s "$A"', path], capture_output=True, text=True, check=True)
    assert shell.stdout == value == dotenv.read(path)["A"]
