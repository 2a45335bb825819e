"""Session id <-> sandbox name: the name is the whole record of which sandbox belongs to which session.

A name is unique per Tensorlake project, so creating one is an atomic claim (contract tensorlake 5.2). It is made of
a prefix, a tag of the environment and the session id in base 36. Session ids are case-significant and come with two
prefixes, `sesn_` and `session_`, that mean the same (contract claude 2); names know lower case only. The encoding is
injective: two ids never share a name, and the id can be read back from the name (tests/shared/test_names.py).
"""

from __future__ import annotations

import hashlib
import re
import string
from dataclasses import dataclass
from typing import Final

LONGEST_NAME: Final = 57  # "65535-" + name must still be one DNS label of 63 characters
KEEP: Final = "keep-"  # a sandbox that a person renamed so is not touched
LONGEST_PREFIX: Final = 8

_DIGITS62: Final = string.digits + string.ascii_uppercase + string.ascii_lowercase
_DIGITS36: Final = string.digits + string.ascii_lowercase
_SESSION_ID: Final = re.compile(r"(?:sesn|session)_(?P<suffix>.+)", re.DOTALL)
_PREFIX: Final = re.compile(r"[a-z][a-z0-9]{0,7}")
_TAG_LENGTH: Final = 8
_MOMENT_LENGTH: Final = 7
_LONGEST_CODE: Final = 34  # so that a mark (gone_name) stays within LONGEST_NAME, whatever the prefix
_HASH_LENGTH: Final = 25  # digits of base 36 that hold 128 bits


class BadName(ValueError):
    """An id or prefix that no name can be made of."""


@dataclass(frozen=True, slots=True)
class SessionName:
    """A sandbox name taken apart. `session_id` is None where the name holds only a hash of it."""

    prefix: str
    environment_tag: str
    session_id: str | None


@dataclass(frozen=True, slots=True)
class GoneName:
    """A session's sandbox that was marked for its end. `marked_at` is in whole seconds since the epoch."""

    environment_tag: str
    code: str
    marked_at: int


def gone_name(name: str, prefix: str, marked_at: int) -> str:
    """The mark of a session's sandbox: it frees the session's name and shows in a list since when it is marked.

    Raises BadName for a name that is no session's.
    """
    if parse_sandbox_name(prefix, name) is None:
        raise BadName("only a session's sandbox is marked")
    return f"gone-{to_base36(marked_at).rjust(_MOMENT_LENGTH, '0')}-{name.removeprefix(prefix + '-')}"


def parse_gone_name(name: str) -> GoneName | None:
    """None for a name that no mark gave."""
    match = re.fullmatch(rf"gone-([0-9a-z]{{{_MOMENT_LENGTH}}})-([0-9a-z]{{{_TAG_LENGTH}}})-([sx][0-9a-z]+)", name)
    if match is None:
        return None
    moment, tag, code = match.groups()
    return GoneName(tag, code, int(moment, 36))


def check_prefix(prefix: str) -> str:
    """Returns the prefix; raises BadName where it is not 1 to 8 lower-case letters and digits, a letter first."""
    if not _PREFIX.fullmatch(prefix):
        raise BadName(f"a sandbox prefix has 1 to {LONGEST_PREFIX} lower-case letters or digits, a letter first")
    return prefix


def environment_tag(environment_id: str) -> str:
    """Eight base-36 digits that stand for an environment in sandbox names."""
    return _hash(environment_id, _TAG_LENGTH)


def is_session_id(text: str) -> bool:
    return len(text) <= 200 and text.isprintable() and _SESSION_ID.fullmatch(text) is not None


def canonical_session_id(session_id: str) -> str:
    """The id with the prefix `sesn_`, whichever of its two prefixes it came with."""
    match = _SESSION_ID.fullmatch(session_id)
    if match is None:
        raise BadName("a session id begins with sesn_ or session_ and has something after it")
    return f"sesn_{match['suffix']}"


def sandbox_name(prefix: str, environment_id: str, session_id: str) -> str:
    """The name of the one sandbox of this session. At most 57 characters, `^[a-z][a-z0-9-]*[a-z0-9]$`."""
    suffix = canonical_session_id(session_id).removeprefix("sesn_")
    head = f"{check_prefix(prefix)}-{environment_tag(environment_id)}-"
    encoded = _encode(suffix)
    if encoded is not None and len(encoded) <= _LONGEST_CODE:
        return f"{head}s{encoded}"
    return f"{head}x{_hash(suffix, _HASH_LENGTH)}"


def parse_sandbox_name(prefix: str, name: str) -> SessionName | None:
    """None for a name that is not one of ours, the branches of a race included."""
    match = re.fullmatch(rf"{re.escape(prefix)}-([0-9a-z]{{{_TAG_LENGTH}}})-([sx])([0-9a-z]+)", name)
    if match is None:
        return None
    tag, kind, code = match.groups()
    if kind == "x":
        return SessionName(prefix, tag, None)
    suffix = _decode(code)
    return None if suffix is None else SessionName(prefix, tag, f"sesn_{suffix}")


def to_base36(number: int) -> str:
    """Digits 0-9a-z of a whole number that is not negative."""
    digits = ""
    while True:
        number, rest = divmod(number, 36)
        digits = _DIGITS36[rest] + digits
        if not number:
            return digits


def _encode(suffix: str) -> str | None:
    """Base 62 read as one number with a leading 1, so that leading zeros and the length survive."""
    number = 1
    for character in suffix:
        digit = _DIGITS62.find(character)
        if digit < 0:
            return None
        number = number * 62 + digit
    return to_base36(number)


def _decode(code: str) -> str | None:
    number = int(code, 36)
    if to_base36(number) != code or number < 1:
        return None
    suffix = ""
    while number >= 62:
        number, digit = divmod(number, 62)
        suffix = _DIGITS62[digit] + suffix
    return suffix if number == 1 and suffix else None


def _hash(text: str, digits: int) -> str:
    number = int.from_bytes(hashlib.sha256(text.encode()).digest(), "big") % 36**digits
    return to_base36(number).rjust(digits, "0")
