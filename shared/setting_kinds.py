"""The kinds of settings: how the text of a variable is read, and what is said of one that cannot be.

Which variables there are is declared in settings_table.py. A cold start imports this module: plain classes,
no pydantic.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from enum import StrEnum
from typing import Final, Generic, Literal, TypeVar
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.secret import SCHEMES, Secret, is_reference

LOOPBACK: Final = ("localhost", "127.0.0.1")  # exactly these: docs/wire/tensorlake.md#21-which-host-goes-where

SetBy = Literal["operator", "deployment", "runtime"]
"""Whose business a value is: a cloud deployment hands over the operator's and chooses its own; a runtime brings its."""
T = TypeVar("T")
C = TypeVar("C", bound=str)


class KeyKind(StrEnum):
    """What a credential is. The first part of its text tells it (docs/wire/anthropic.md#12-credentials)."""

    API = "a Claude API key"
    ENVIRONMENT = "an environment key"
    ANTHROPIC = "an Anthropic key of an unknown kind"
    SIGNING = "a webhook signing key"
    TENSORLAKE = "a Tensorlake key"
    UNKNOWN = "of no known kind"


class Setting(Generic[T]):
    """One variable. It gets its name from the attribute that it is assigned to.

    unit: of its number, for people. file_key: what it is called in a table of ENVIRONMENTS_FILE, if it may be there.
    An empty text counts as not set.
    """

    __slots__ = ("default", "file_key", "meaning", "name", "set_by", "unit")
    kind = "text"

    def __init__(
        self, default: T, meaning: str, *, unit: str = "", file_key: str = "", set_by: SetBy = "operator"
    ) -> None:
        self.default = default
        self.meaning = meaning
        self.unit = unit
        self.file_key = file_key
        self.set_by: SetBy = set_by
        self.name = ""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def text(self, environ: Mapping[str, str]) -> str:
        return environ.get(self.name, "").strip()

    def read(self, environ: Mapping[str, str]) -> T:
        """The parsed value or the default. Raises SettingsError, which names the variable."""
        text = self.text(environ)
        return self.parse(text) if text else self.default

    def parse(self, text: str) -> T:
        raise NotImplementedError

    def required(self, environ: Mapping[str, str], why: str) -> T:
        if not self.text(environ):
            raise SettingsError(f"{self.name} is not set: {why}")
        return self.read(environ)


class Text(Setting[str]):
    __slots__ = ()

    def parse(self, text: str) -> str:
        return text


class Texts(Setting[tuple[str, ...]]):
    __slots__ = ()
    kind = "list of texts"

    def parse(self, text: str) -> tuple[str, ...]:
        return tuple(text.replace(",", " ").split())


class Pairs(Setting[Mapping[str, str]]):
    """`name=value` pairs, as a shell would split a line of them."""

    __slots__ = ()
    kind = "name=value pairs"

    def parse(self, text: str) -> Mapping[str, str]:
        import shlex

        try:
            pairs = [word.partition("=") for word in shlex.split(text)]
        except ValueError as error:
            raise SettingsError(f"{self.name} cannot be read: {error}") from None
        if not all(name and equals for name, equals, _ in pairs):
            raise SettingsError(f"{self.name} must be name=value pairs, such as A=1 B='two words'")
        return {name: value for name, _, value in pairs}


class Address(Setting[str]):
    """Where a key may be sent to: https, or plain http to this machine alone. No slash at its end."""

    __slots__ = ()
    kind = "address"

    def parse(self, text: str) -> str:
        parts = urlsplit(text)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
            raise SettingsError(f"{self.name} must be an address such as https://host, without user or query")
        if parts.scheme != "https" and parts.hostname not in LOOPBACK:
            raise SettingsError(f"{self.name} must use https unless its host is exactly localhost or 127.0.0.1")
        return text.rstrip("/")


class Number(Setting[float]):
    __slots__ = ()
    kind = "number"
    wanted = "a number"

    def parse(self, text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = -1
        if not 0 <= value < math.inf:
            raise SettingsError(f"{self.name} must be {self.wanted} that is not negative")
        return value


class Seconds(Number):
    __slots__ = ()
    kind = "seconds"
    wanted = "a number of seconds"


class Whole(Setting[int]):
    __slots__ = ()
    kind = "whole number"

    def parse(self, text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = -1
        if value < 0:
            raise SettingsError(f"{self.name} must be a whole number that is not negative")
        return value


class Flag(Setting[bool]):
    __slots__ = ()
    kind = "true or false"

    def parse(self, text: str) -> bool:
        if text.lower() in ("1", "true", "yes", "on"):
            return True
        if text.lower() in ("0", "false", "no", "off"):
            return False
        raise SettingsError(f"{self.name} must be true or false")


class Choice(Setting[C]):
    __slots__ = ("choices",)
    kind = "choice"

    def __init__(self, choices: tuple[C, ...], meaning: str, *, file_key: str = "", set_by: SetBy = "operator") -> None:
        """The first choice is the default."""
        super().__init__(choices[0], meaning, file_key=file_key, set_by=set_by)
        self.choices = choices

    def parse(self, text: str) -> C:
        for choice in self.choices:
            if text == choice:
                return choice
        raise SettingsError(f"{self.name} must be one of {', '.join(self.choices)}")


class Key(Setting[Secret | None]):
    """A secret, or where it lives (secret.py). No default; no printed form shows it."""

    __slots__ = ("holds",)
    kind = "secret"

    def __init__(self, holds: KeyKind, meaning: str, *, file_key: str = "") -> None:
        super().__init__(None, meaning, file_key=file_key)
        self.holds = holds

    def parse(self, text: str) -> Secret:
        return Secret(self.name, text)

    def required(self, environ: Mapping[str, str], why: str) -> Secret:
        if not (text := self.text(environ)):
            raise SettingsError(f"{self.name} is not set: {why}")
        return self.parse(text)


class Keys(Setting[tuple[Secret, ...]]):
    """Several secrets of one kind, so that one can be rotated."""

    __slots__ = ("holds",)
    kind = "list of secrets"

    def __init__(self, holds: KeyKind, meaning: str) -> None:
        super().__init__((), meaning)
        self.holds = holds

    def parse(self, text: str) -> tuple[Secret, ...]:
        return tuple(Secret(self.name, key) for key in text.replace(",", " ").split())


class References(Setting[Mapping[str, Secret]]):
    """Secrets under names of the operator's choice, each by reference: the setting itself holds none."""

    __slots__ = ()
    kind = "list of NAME=reference"

    def parse(self, text: str) -> Mapping[str, Secret]:
        found: dict[str, Secret] = {}
        for entry in text.replace(",", " ").split():
            name, equals, reference = entry.partition("=")
            if not equals or not name.isidentifier() or not name.isascii() or name in found:
                raise SettingsError(f"{self.name} must be NAME=reference, with spaces between; each NAME once")
            if name in _TAKEN or not is_reference(reference):
                why = (
                    "belongs to the system" if name in _TAKEN else f"is no reference ({', '.join(SCHEMES)}: and where)"
                )
                raise SettingsError(f"{self.name}: {name} {why}")
            found[name] = Secret(f"{self.name}: {name}", reference)
        return found


_TAKEN: Final = frozenset({"PATH", "HOME", "USER", "LOGNAME", "LANG", "HANDS_TOOLS", "HANDS_PYTHON"})
