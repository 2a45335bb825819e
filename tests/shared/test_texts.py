"""What is shown of a text from elsewhere: nothing that a terminal obeys, nothing that looks like another line."""

from __future__ import annotations

import unicodedata

import pytest

from shared.texts import printable

HARMFUL = [chr(code) for code in (*range(0x20), *range(0x7F, 0xA0), 0x61C, 0x200E, 0x200F, 0x2028, 0x2029, 0xFEFF)] + [
    chr(code) for code in (*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0xD800, 0xDFFF, 0xE0041, 0x10FFFF)
]


@pytest.mark.parametrize("character", HARMFUL, ids=[f"U+{ord(each):04X}" for each in HARMFUL])
def test_what_a_terminal_or_a_reader_could_obey_is_escaped(character: str) -> None:
    shown = printable(f"a{character}b")
    assert shown.isascii() and shown.isprintable()
    assert shown[0] == "a" and shown[-1] == "b" and "\\" in shown


@pytest.mark.parametrize("text", ["plain", "żółw", "東京 12", "a\xa0b", "نمی\u200cخواهم", "👩\u200d💻", "C:\\temp"])
def test_words_of_any_language_are_shown_as_they_are(text: str) -> None:
    assert printable(text) == text


def test_no_code_point_at_all_can_move_the_cursor_or_turn_the_line_round() -> None:
    block = 0x1000  # a text at a time: a call for each code point takes seconds
    for first in range(0, 0x110000, block):
        shown = printable("".join(map(chr, range(first, first + block))), block)
        assert all(
            unicodedata.category(each) not in ("Cc", "Cs", "Zl", "Zp")
            and unicodedata.bidirectional(each) not in ("LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI")
            for each in set(shown)
        )


def test_what_may_stay_stays_and_nothing_else_does() -> None:
    assert printable("a\n\tb\rc\x1b", keep="\n\t") == "a\n\tb\\rc\\x1b"


def test_a_long_text_is_cut_and_says_by_how_much() -> None:
    assert printable("x" * 12, 10) == "xxxxxxxxxx... (2 more characters)"
    assert printable("x" * 10, 10) == "x" * 10


def test_a_text_of_many_megabytes_costs_no_more_than_what_is_shown_of_it() -> None:
    assert len(printable("\x1b" * 50_000_000, 100)) < 500
