"""Text from elsewhere, made fit to be shown: printable and bounded.

Whatever a sandbox, a service or a caller wrote may hold terminal sequences, line breaks that forge a line, or marks
that turn a line's direction round. `printable` is what stands between such a text and a log, a terminal, a page or an
error; nothing else in the project decides what may be shown. tests/shared/test_texts.py
"""

from __future__ import annotations

from typing import Final

LONGEST: Final = 2_000
"""Characters of a foreign text that are shown where nobody asked for another bound."""

_JOINERS: Final = "\u200c\u200d"  # Persian words and composed emoji need them, and they move nothing


def printable(text: str, longest: int = LONGEST, *, keep: str = "") -> str:
    """At most `longest` characters of the text, each one that cannot be shown as it is written as its escape.

    Escaped are control characters (C0, DEL and C1), line and paragraph separators, marks of direction and other
    invisible format characters, halves of surrogate pairs, and code points without a meaning. `keep` names characters
    to leave alone: `keep="\\n\\t"` for a text that may fill several lines. What is cut off is counted at the end.
    """
    shown = text if len(text) <= longest else text[:longest]
    if not shown.isprintable():
        kept = keep + _JOINERS
        shown = "".join(
            each if each.isprintable() or each in kept or _is_space(each) else _escaped(each) for each in shown
        )
    return shown if len(text) <= longest else f"{shown}... ({len(text) - longest} more characters)"


def _is_space(character: str) -> bool:
    """Spaces of other widths: Python calls them unprintable, and they do no harm."""
    return character.isspace() and character not in "\t\n\v\f\r\x1c\x1d\x1e\x1f\x85\u2028\u2029"


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
