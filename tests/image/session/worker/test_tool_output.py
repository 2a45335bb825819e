"""Lines of what tools print: whole, cut, and without secrets wherever a piece ends."""

from __future__ import annotations

import pytest

from image.session.worker.tool_output import LONGEST_LINE, MaskedLines

SECRET = "hunter2-and-more"


def lines_of(data: bytes, secrets: list[str], size: int) -> list[str]:
    lines = MaskedLines(secrets)
    found = [line for at in range(0, len(data), size) for line in lines.take(data[at : at + size])]
    return [*found, *lines.rest()]


@pytest.mark.parametrize("size", [1, 3, 1_000])
def test_lines_are_put_together_and_secrets_masked_however_the_pieces_come(size: int) -> None:
    data = f"one\r\n\n\u00fc {SECRET}{SECRET} two\nno end".encode()
    assert lines_of(data, [SECRET], size) == ["one", "\u00fc [secret][secret] two", "no end"]


@pytest.mark.parametrize("size", [1, 777, 100_000])
@pytest.mark.parametrize("before", [*range(LONGEST_LINE - 40, LONGEST_LINE + 40, 7), 8_000, 8_020, 8_030, 8_040])
def test_a_line_that_is_too_long_is_cut_and_shows_no_part_of_a_secret(before: int, size: int) -> None:
    if size == 1 and before > LONGEST_LINE:
        before = LONGEST_LINE - 10
    data = b"." * before + SECRET.encode() * 600 + b"\nnext"
    first, after = lines_of(data, [SECRET], size)
    assert len(first) <= LONGEST_LINE and after == "next"
    assert "hunt" not in first and "more" not in first


def test_a_secret_of_many_lines_is_masked_line_by_line() -> None:
    key = "-----BEGIN KEY-----\nabcdefghij\nklmnopqrst\n}"
    assert lines_of(f"the key: {key}\n".encode(), [key], 5) == ["the key: [secret]", "[secret]", "[secret]", "}"]
