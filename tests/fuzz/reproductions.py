"""The shortest request for every fault that fuzzing has found, kept so that none comes back.

`open` is for a fault that is found and not mended yet: a campaign counts it and looks for others. Whoever mends it
sets `open` to False, which the tests ask for. uvicorn itself refuses a query that is not ASCII; other ASGI servers and
adapters may pass it on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tests.fuzz.case import Door, FuzzCase, FuzzPart, Profile, Signature
from tests.fuzz.properties import BODY_CANARY
from tests.fuzz.requests import BEARER


@dataclass(frozen=True, slots=True)
class Reproduction:
    """`kind` is what properties.check calls it."""

    title: str
    kind: str
    case: FuzzCase
    open: bool


def _event(data: str, door: Door = Door.APP) -> FuzzCase:
    return FuzzCase("/", parts=(FuzzPart(b'{"data":' + data.encode() + b"}"),), signature=Signature.RIGHT, door=door)


def _race(body: str) -> FuzzCase:
    return FuzzCase("/fork_best_of_n", headers=(BEARER,), parts=(FuzzPart(body.encode()),))


_GOOD_RACE: Final = '{"source":{"image":"i"},"n":1,"command":["true"],"judge":{"type":"%s"}}'
REPRODUCTIONS: Final = (
    Reproduction(
        "half a character in the type of a signed event that is ignored",
        "UnicodeEncodeError in functions/on_run_started.py:on_run_started leaves the application",
        _event('{"type":"\\ud800"}'),
        open=False,
    ),
    Reproduction(
        "the same, under functions-framework",
        "UnicodeEncodeError in functions/on_run_started.py:on_run_started is logged as a bug",
        _event('{"type":"\\ud800"}', Door.FRAMEWORK),
        open=False,
    ),
    Reproduction(
        "half a character in the id of a session that is over",
        "UnicodeEncodeError in shared/names.py:_hash is logged as a bug",
        _event('{"type":"session.deleted","id":"sesn_\\ud800"}'),
        open=False,
    ),
    Reproduction(
        "a query that is not UTF-8, under functions-framework",
        "UnicodeDecodeError in functions/main.py:bundle is logged as a bug",
        FuzzCase("/poll_tick", query=b"\xff", door=Door.FRAMEWORK),
        open=False,
    ),
    Reproduction(
        "a query that is not UTF-8 on a path with one slash too many",
        "UnicodeDecodeError in a library leaves the application",
        FuzzCase("/poll_tick/", query=b"\xff"),
        open=False,
    ),
    Reproduction(
        "a path with one slash too many is redirected, to wherever the Host header says",
        "307 at another path",
        FuzzCase("/poll_tick/", headers=((b"host", b"elsewhere.invalid"),)),
        open=False,
    ),
    Reproduction("a path that is not there", "404 is not JSON", FuzzCase("/nothing"), open=False),
    Reproduction("another method", "405 is not JSON", FuzzCase("/poll_tick", method="GET"), open=False),
    Reproduction(
        "where the token should be, told to a stranger",
        "503 shows its insides",
        FuzzCase("/poll_tick", profile=Profile.LOST_FILES),
        open=False,
    ),
    Reproduction(
        "a type of judge that does not exist",
        "400 at /fork_best_of_n repeats a value of the body",
        _race(_GOOD_RACE % BODY_CANARY),
        open=False,
    ),
    Reproduction(
        "a very long type of judge that does not exist",
        "400 at /fork_best_of_n is too long",
        _race(_GOOD_RACE % ("a" * 9_000)),
        open=False,
    ),
)
OPEN: Final = frozenset(each.kind for each in REPRODUCTIONS if each.open)
