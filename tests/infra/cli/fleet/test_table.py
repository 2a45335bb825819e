"""Tables of many lines, and of lines that do not fit."""

from __future__ import annotations

import io

from rich.console import Console

from infra.cli.fleet.table import table


def drawn(width: int, *lines: tuple[str, str], styles: tuple[str, ...] = (), colours: bool = False) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=colours, color_system="standard" if colours else None)
    console.print(table(("session", "title"), lines, styles))
    return out.getvalue()


def test_columns_stand_below_each_other_also_with_wide_letters() -> None:
    assert drawn(40, ("會議", "x"), ("sesn_1", "y")) == "session  title\n會議     x\nsesn_1   y\n"


def test_what_does_not_fit_is_wrapped_and_nothing_is_lost() -> None:
    shown = drawn(20, ("sesn_1", "a title that is far too long"))
    assert all(len(line) <= 20 for line in shown.splitlines())
    assert shown.split() == ["session", "title", "sesn_1", "a", "title", "that", "is", "far", "too", "long"]


def test_an_id_that_does_not_fit_is_folded_and_not_cut() -> None:
    shown = drawn(20, ("sesn_1", "sesn_0123456789abcdefghij"))
    assert "".join(line[8:] for line in shown.splitlines()[1:]).replace(" ", "") == "sesn_0123456789abcdefghij"


def test_a_line_has_its_style_and_nothing_of_the_service_is_a_terminal_sequence() -> None:
    shown = drawn(80, ("\x1b[31mred[/]", "two\nlines"), ("plain", ""), styles=("dim",), colours=True)
    header, first, second = shown.splitlines()
    assert header.startswith("\x1b[1m") and first.startswith("\x1b[2m") and second == "plain"
    assert "\x1b[31m" not in shown and "[/]" in first
