"""Tables for a terminal or a pipe: every cell is printable, and nothing is coloured where nobody sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from infra.cli.session.screen import show_what_cannot_be_encoded
from shared.texts import printable

_WIDE = 200
_LONGEST_CELL = 300


def console(*, stderr: bool = False) -> Console:
    """Plain and wide in a pipe, where nobody has said how wide it is."""
    show_what_cannot_be_encoded()
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, _WIDE)
    return made


def table(columns: Sequence[str], lines: Iterable[Sequence[str]], styles: Iterable[str] = ()) -> RenderableType:
    """`styles`: one a line."""
    made = Table(box=None, pad_edge=False, header_style="bold", show_edge=False)
    for column in columns:
        made.add_column(column, overflow="ellipsis", no_wrap=column in ("session", "age", "seen", "item", "kind"))
    each = list(styles)
    for number, line in enumerate(lines):
        style = each[number] if number < len(each) else ""
        made.add_row(*(Text(printable(cell, _LONGEST_CELL), style=style) for cell in line))
    return made
