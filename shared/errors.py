"""Errors that reach a person: each says what was wrong and what to do, and holds no secret."""

from __future__ import annotations


class HandsError(Exception):
    """Base of what this project raises on purpose."""


class SettingsError(HandsError):
    """A setting is missing or cannot be used. The text names the variable, never its value."""


class SecretUnavailable(HandsError):
    """A secret that a setting refers to cannot be read now. The text is `<setting>: <where it should be, and why not>`:
    for a log. An unauthenticated caller may be told `setting` alone."""

    @property
    def setting(self) -> str:
        return str(self).partition(": ")[0]
