"""One request as it reaches an ASGI application, in a form that can be drawn, shrunk, printed and sent again."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from tests.support.signing import KEY, OTHER_KEY, signed

ROUTES: Final = ("/", "/on_run_started", "/poll_tick", "/fork_best_of_n")
WEBHOOKS: Final = ("/", "/on_run_started")
OPERATORS: Final = ("/poll_tick", "/fork_best_of_n")
_LONG: Final = 120  # bytes of a part from which `describe` shows its size and its ends only


class Door(StrEnum):
    """By which application the request comes in."""

    APP = "functions.asgi"
    FRAMEWORK = "functions.main:bundle under functions-framework"


class Profile(StrEnum):
    """What the process was told."""

    WHOLE = "everything is configured"
    NO_TOKEN = "FUNCTIONS_TOKEN is not set"
    NO_KEY = "the signing key is not set"
    BAD_KEY = "the signing key is no key"
    LOST_FILES = "token and signing key are in files that are not there"

    def serves(self, path: str) -> bool:
        """Whether this function has what it needs; else it answers 503."""
        if path in WEBHOOKS:
            return self in (Profile.WHOLE, Profile.NO_TOKEN)
        return self in (Profile.WHOLE, Profile.NO_KEY, Profile.BAD_KEY)


class Signature(StrEnum):
    """How a webhook is signed, over the whole body that is sent unless said otherwise."""

    NONE = "none"
    RIGHT = "right"
    RIGHT_AND_GARBAGE = "garbage, then the right one"
    OTHER_KEY = "of another key"
    OTHER_BODY = "of the body and one more byte"
    STALE = "six minutes old"
    EARLY = "from six minutes ahead"
    OTHER_ID = "of another delivery id"

    @property
    def good(self) -> bool:
        return self in (Signature.RIGHT, Signature.RIGHT_AND_GARBAGE)


class Ending(StrEnum):
    """What comes after the last part of the body."""

    COMPLETE = "complete"
    CUT = "the connection ends before the body"
    STALLED = "nothing more comes, and the connection stays"
    HUNG_UP = "complete, and the caller goes away after a moment"


@dataclass(frozen=True, slots=True, repr=False)
class FuzzPart:
    """Bytes of a body that come `after` so many seconds."""

    data: bytes
    after: float = 0.0

    def __repr__(self) -> str:
        return f"Part({_shown(self.data)}, {self.after})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(repr(self))  # hypothesis would write out a mebibyte


@dataclass(frozen=True, slots=True)
class FuzzCase:
    """`headers` without the ones of the signature, which are made when the request is sent."""

    path: str
    method: str = "POST"
    query: bytes = b""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    parts: tuple[FuzzPart, ...] = ()
    ending: Ending = Ending.COMPLETE
    signature: Signature = Signature.NONE
    profile: Profile = Profile.WHOLE
    door: Door = Door.APP

    @property
    def body(self) -> bytes:
        return b"".join(part.data for part in self.parts)

    def all_headers(self) -> list[tuple[bytes, bytes]]:
        return [*self.headers, *_signature(self.body, self.signature)]

    def describe(self) -> str:
        """The case as a person would send it again."""
        lines = [f"{self.method!r} {self.path!r} {self.query!r} ({self.door}; {self.profile})"]
        lines += [f"{name!r}: {_shown(value)}" for name, value in self.headers]
        if self.signature is not Signature.NONE:
            lines.append(f"webhook signature: {self.signature}")
        lines += [f"after {part.after:g} s: {_shown(part.data)}" for part in self.parts]
        lines.append(f"then: {self.ending}")
        return "\n".join(lines)


@dataclass(slots=True)
class FuzzAnswer:
    """What came back. `raised` is what left the application itself. `seconds` are those of the virtual clock."""

    status: int | None = None
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    body: bytes = b""
    raised: BaseException | None = None
    log: list[str] = field(default_factory=list)
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    left: tuple[str, ...] = ()

    def header(self, name: bytes) -> bytes:
        return b", ".join(value for key, value in self.headers if key.lower() == name)

    def json(self) -> object:
        """Raises ValueError where the body is not JSON."""
        return json.loads(self.body)


def _shown(data: bytes) -> str:
    if len(data) <= _LONG:
        return repr(data)
    return f"{data[:40]!r} … {data[-40:]!r} ({len(data)} bytes)"


def _signature(body: bytes, how: Signature) -> list[tuple[bytes, bytes]]:
    text = body.decode("latin-1").encode()  # something that can be signed, for a body that no sender could have signed
    signable = body if _is_text(body) else text
    match how:
        case Signature.NONE:
            return []
        case Signature.RIGHT:
            made = signed(signable)
        case Signature.RIGHT_AND_GARBAGE:
            made = signed(signable)
            made["webhook-signature"] = "garbage v1, v1,! v9,AAAA " + made["webhook-signature"]
        case Signature.OTHER_KEY:
            made = signed(signable, OTHER_KEY)
        case Signature.OTHER_BODY:
            made = signed(signable + b" ")
        case Signature.STALE:
            made = signed(signable, age=360.0)
        case Signature.EARLY:
            made = signed(signable, age=-360.0)
        case Signature.OTHER_ID:
            made = signed(signable, KEY, delivery_id="whe_2") | {"webhook-id": "whe_1"}
    return [(name.encode(), value.encode()) for name, value in made.items()]


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True
