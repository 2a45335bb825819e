"""Reads and writes `.env` files: python-dotenv's grammar, with errors in place of its warnings.

Values are never expanded: a `$` is a `$`. A `#` begins a comment only behind a space.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from dotenv.parser import Binding, parse_stream

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OPENED: Final = re.compile(r"\s*(?:export\s+)?[A-Za-z0-9_]+\s*=\s*['\"]")
_PLAIN: Final = re.compile(r"[A-Za-z0-9_./:@,=+-]*")


class DotenvError(ValueError):
    """A line that cannot be read. The text names file and line, never the content: it may hold a key."""


def read(path: Path) -> dict[str, str]:
    """The variables of a file; an absent file has none. Raises DotenvError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except UnicodeDecodeError:
        raise DotenvError(f"{path} cannot be read: it is not UTF-8") from None
    except OSError as error:
        raise DotenvError(f"{path} cannot be read ({type(error).__name__})") from None
    found: dict[str, str] = {}
    # `dotenv_values` logs a line that it cannot read and goes on without it; a key would be missing in silence.
    for binding in parse_stream(io.StringIO(text)):
        if binding.error and _OPENED.match(binding.original.string):
            raise DotenvError(f"{path}, line {_line(binding)}: the quote that its value begins with is not closed")
        if binding.error or (binding.key is not None and binding.value is None):
            raise DotenvError(f"{path}, line {_line(binding)}: expected NAME=value")
        if binding.key is None or binding.value is None:
            continue  # a comment or a blank end
        if not _NAME.fullmatch(binding.key):
            raise DotenvError(f"{path}, line {_line(binding)}: expected NAME=value, a name of letters, digits and _")
        found[binding.key] = binding.value
    return found


def _line(binding: Binding) -> int:
    """The line of the statement itself: the parser counts from the blank lines before it."""
    text = binding.original.string
    return binding.original.line + text[: len(text) - len(text.lstrip())].count("\n")


def render(variables: Mapping[str, str]) -> str:
    """Lines that `read` gives back, and that a shell can source. Raises ValueError for what no such line can hold."""
    return "".join(f"{name}={_quoted(name, value)}\n" for name, value in variables.items())


def _quoted(name: str, value: str) -> str:
    if "\n" in value or "\r" in value or "'" in value:
        raise ValueError(f"{name}: a value with a line break or a single quote cannot be written")
    if _PLAIN.fullmatch(value):
        return value
    if "\\" not in value:
        return f"'{value}'"
    # A shell takes a backslash in single quotes as it is, python-dotenv takes it for an escape: only double quotes
    # mean the same to both, and there a shell expands these two.
    if "$" in value or "`" in value:
        raise ValueError(f"{name}: a value with a backslash and a dollar sign or backtick cannot be written")
    escaped = value.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
