"""Tables for a terminal or a pipe: every cell is printable, and nothing is coloured where nobody sees it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from infra.cli.session.screen import show_what_cannot_be_encoded
from shared.texts import printable

_WIDE = 200
_LONGEST_CELL = 300
_GAP = "  "
_HEADER = "bold"
_LEAST = 6  # letters that a column has at least, where others are not wrapped
_NEVER_WRAPPED = ("session", "age", "seen", "item", "kind")


def console(*, stderr: bool = False) -> Console:
    """Plain and wide in a pipe, where nobody has said how wide it is."""
    show_what_cannot_be_encoded()
    made = Console(stderr=stderr, highlight=False)
    if not made.is_terminal:
        made.width = max(made.width, _WIDE)
    return made


def table(columns: Sequence[str], lines: Iterable[Sequence[str]], styles: Iterable[str] = ()) -> RenderableType:
    """`styles`: one a line."""
    return _Lines(columns, [[printable(cell, _LONGEST_CELL) for cell in line] for line in lines], list(styles))


class _Lines:
    """Where all cells fit beside each other they are only padded: Rich's own table takes half a second for a thousand
    lines. It is used where something must be cut or wrapped."""

    def __init__(self, columns: Sequence[str], lines: Sequence[Sequence[str]], styles: Sequence[str]) -> None:
        self._columns = columns
        self._lines = lines
        self._styles = styles

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = [max(map(cell_len, each)) for each in zip(self._columns, *self._lines, strict=True)]
        if sum(widths) + len(_GAP) * (len(widths) - 1) > options.max_width:
            yield self._wrapped(widths, options.max_width)
            return
        for style, line in ((_HEADER, self._columns), *zip(self._line_styles(), self._lines, strict=True)):
            padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(line, widths, strict=True))
            yield Segment(_GAP.join(padded).rstrip(), console.get_style(style))
            yield Segment.line()

    def _line_styles(self) -> Sequence[str]:
        return [*self._styles, *[""] * (len(self._lines) - len(self._styles))]

    def _wrapped(self, widths: Sequence[int], room: int) -> Table:
        whole = [name in _NEVER_WRAPPED for name in self._columns]
        least = sum(width if fixed else min(width, _LEAST) for width, fixed in zip(widths, whole, strict=True))
        if least + len(_GAP) * (len(widths) - 1) > room:
            whole = [False] * len(widths)
        made = Table(box=None, pad_edge=False, header_style=_HEADER, show_edge=False)
        for column, fixed in zip(self._columns, whole, strict=True):
            made.add_column(column, overflow="fold", no_wrap=fixed)
        for style, line in zip(self._line_styles(), self._lines, strict=True):
            made.add_row(*(Text(cell, style=style) for cell in line))
        return made
