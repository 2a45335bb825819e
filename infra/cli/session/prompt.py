"""What a user says to a session, from an argument, a file or standard input; checked before anything is made."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from image.session.setup import BadSetup, check_form
from shared.errors import SettingsError

STANDARD_INPUT: Final = "-"
_PAIRS: Final = 16
_KEY_CHARACTERS: Final = 64
_VALUE_CHARACTERS: Final = 512


def read_prompt(text: str, file: str) -> str:
    """The prompt to the letter; empty where neither was given. Raises SettingsError: both, unreadable, not UTF-8."""
    if text.strip() and file:
        raise SettingsError("give the prompt or a file with it, not both (PROMPT, PROMPT_FILE)")
    if not file:
        _check_encoding(text, "the prompt")
        return text.strip()
    where = "standard input" if file == STANDARD_INPUT else file
    try:
        data = sys.stdin.buffer.read() if file == STANDARD_INPUT else Path(file).read_bytes()
    except OSError as error:
        raise SettingsError(f"the prompt's file {where} cannot be read: {error.strerror}") from None
    try:
        prompt = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(_not_utf8(f"the prompt in {where}", error.start, data)) from None
    if not prompt.strip():
        raise SettingsError(f"there is no prompt in {where}: it is empty")
    return prompt


def read_metadata(pairs: Iterable[str], line: str = "") -> Mapping[str, str]:
    """`name=value` pairs, or a line of them as a shell would split it. Raises SettingsError for what the service
    would refuse (docs/wire/anthropic.md, section 8), and for a set-up that no worker could do (docs/setup.md)."""
    try:
        words = [*pairs, *shlex.split(line)]
    except ValueError as error:
        raise SettingsError(f"META cannot be read: {error}; write META=\"name=value other='two words'\"") from None
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not name or not equals:
            raise SettingsError(f"META has {word[:40]!r}, which is no name=value")
        _check_encoding(word, "META")
        if len(name) > _KEY_CHARACTERS or len(value) > _VALUE_CHARACTERS:
            raise SettingsError(
                f"META's {name[:_KEY_CHARACTERS]!r} is too long: a name has at most {_KEY_CHARACTERS} characters, "
                f"a value {_VALUE_CHARACTERS}"
            )
        found[name] = value
    if len(found) > _PAIRS:
        raise SettingsError(f"META has {len(found)} pairs; a session takes {_PAIRS}")
    try:
        check_form(found)
    except BadSetup as error:
        raise SettingsError(f"META: {error}") from None
    return found


def read_title(text: str) -> str:
    """Raises SettingsError where it is not UTF-8."""
    _check_encoding(text, "TITLE")
    return text.strip()


def _check_encoding(text: str, what: str) -> None:
    """Python keeps bytes of an argument that it cannot decode as halves of surrogate pairs, which no service takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        data = text.encode("utf-8", "surrogateescape")
        raise SettingsError(_not_utf8(what, len(text[: error.start].encode("utf-8")), data)) from None


def _not_utf8(what: str, place: int, data: bytes) -> str:
    return (
        f"{what} is not UTF-8: byte {place + 1} is 0x{data[place]:02x}. Convert it first, "
        "for example: iconv -f latin1 -t utf-8 FILE"
    )
