"""Identifiers: a prefix that names the kind, and 24 case-significant letters and digits
(docs/wire/anthropic.md#2-environments)."""

from __future__ import annotations

import secrets
import string

_ALPHABET = string.ascii_letters + string.digits
_SUFFIX_LENGTH = 24
_SESSION_PREFIXES = ("sesn_", "session_")


def new_id(prefix: str) -> str:
    """`new_id("work")` -> `work_` and 24 mixed-case letters and digits."""
    return f"{prefix}_{''.join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX_LENGTH))}"


def canonical_session_id(given: str) -> str:
    """`sesn_` and `session_` name the same session; the suffix is compared exactly."""
    for prefix in _SESSION_PREFIXES:
        if given.startswith(prefix):
            return "sesn_" + given[len(prefix) :]
    return given
