"""Reads and writes files of `NAME=value` lines, as `.env` files are commonly written.

Understood: blank lines and `#` comments, `export ` in front, spaces around `=`, single quotes (as they stand), double
quotes (with \\n, \\t, \\" and \\\\), and a comment after an unquoted value when a space precedes its `#`. Values are
never expanded: a `$` is a `$`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Final

_NAME: Final = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.DOTALL)
_DOUBLE: Final = re.compile(r'"((?:[^"\\]|\\.)*)"\s*(?:#.*)?')
_SINGLE: Final = re.compile(r"'([^']*)'\s*(?:#.*)?")
_ESCAPES: Final = {"n": "\n", "t": "\t", '"': '"', "\\": "\\"}


class DotenvError(ValueError):
    """A line that cannot be read. The text names file and line, never the content: it may hold a key."""


def read(path: Path) -> dict[str, str]:
    """The variables of a file; an absent file has none. Raises DotenvError."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return {}
    except (OSError, UnicodeDecodeError) as error:
        raise DotenvError(f"{path} cannot be read ({type(error).__name__})") from None
    found: dict[str, str] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _NAME.fullmatch(line.strip())
        value = _value(match[2]) if match else None
        if match is None or value is None:
            raise DotenvError(f"{path}, line {number}: expected NAME=value")
        found[match[1]] = value
    return found


def _value(text: str) -> str | None:
    if text.startswith('"'):
        match = _DOUBLE.fullmatch(text)
        return re.sub(r"\\(.)", lambda m: _ESCAPES.get(m[1], m[0]), match[1]) if match else None
    if text.startswith("'"):
        match = _SINGLE.fullmatch(text)
        return match[1] if match else None
    return re.split(r"(?:^|\s)#", text, maxsplit=1)[0].strip()


def render(variables: Mapping[str, str]) -> str:
    """Lines that `read` gives back, and that a shell can source."""
    lines = []
    for name, value in variables.items():
        if "\n" in value or "'" in value:
            raise ValueError(f"{name}: a value with a line break or a single quote cannot be written")
        plain = re.fullmatch(r"[A-Za-z0-9_./:@,=+-]*", value)
        lines.append(f"{name}={value}" if plain else f"{name}='{value}'")
    return "".join(f"{line}\n" for line in lines)
