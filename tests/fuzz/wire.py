"""JSON as an unauthenticated caller may write it: with what Python's own encoder would not write, and in other
encodings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from hypothesis import strategies as st

from tests.fuzz.properties import BODY_CANARY

Json = Any
"""What json.dumps takes, with Raw and Twice anywhere in it."""


@dataclass(frozen=True, slots=True, repr=False)
class Raw:
    """A value that is written as it stands, so many times, before `end`."""

    text: str
    times: int = 1
    end: str = ""

    def __repr__(self) -> str:
        return f"Raw({self.text[:30]!r}, {self.times})"


@dataclass(frozen=True, slots=True)
class Twice:
    """A member of an object whose key comes twice."""

    first: Json
    second: Json


HALF_CHARACTER: Final = Raw('"\\ud800"')
ODD_VALUES: Final[Sequence[Json]] = (
    None,
    True,
    False,
    0,
    -1,
    1,
    65,
    1.5,
    -0.0,
    1e308,
    5e-324,
    2**63,
    Raw("NaN"),
    Raw("-Infinity"),
    Raw("1e999"),
    Raw("9", 5_000),
    Raw("9", 400, ".5"),
    Raw("0x10"),
    Raw("01"),
    Raw(""),
    "",
    " ",
    BODY_CANARY,
    "sesn_" + BODY_CANARY,
    "\0",
    "../../etc/passwd",
    Raw('"' + "é" * 99, 1, '"'),
    "\U0001f9ea",
    Raw('"a', 1, "a" * 9_000 + '"'),
    HALF_CHARACTER,
    Raw('"\\udfff\\ud83d"'),
    Raw('"sesn_\\ud800"'),
    Raw('"\\x00"'),
    Raw("'single'"),
    [],
    {},
    [[]],
    [BODY_CANARY],
    {"": ""},
    {"some key": BODY_CANARY},
    {"type": "command"},
    {"text": 7},
    Raw("[", 200, "]" * 200),
    Raw("[", 60_000),
    Raw('{"a":', 300, "1" + "}" * 300),
    Raw('{"a":', 30_000),
    Raw("[0", 1, ",0" * 300 + "]"),
    Raw("{" + ",".join(f'"k{index}":{index}' for index in range(300)), 1, "}"),
)
ENCODINGS: Final = ("utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-32", "latin-1", "utf-7")


def written(value: Json) -> str:
    match value:
        case Raw(text=text, times=times, end=end):
            return text * times + end
        case Twice():
            return written(value.second)
        case str():
            return json.dumps(value, ensure_ascii=False)
        case Mapping():
            return "{" + ",".join(_member(key, held) for key, held in value.items()) + "}"
        case list() | tuple():
            return "[" + ",".join(written(item) for item in value) + "]"
        case _:
            return json.dumps(value)


def _member(key: str, value: Json) -> str:
    name = json.dumps(key)
    if isinstance(value, Twice):
        return f"{name}:{written(value.first)},{name}:{written(value.second)}"
    return f"{name}:{written(value)}"


_SCALARS: Final = st.one_of(
    st.sampled_from(ODD_VALUES),
    st.integers(),
    st.floats(),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
)
ANYTHING: Final = st.recursive(
    _SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def spelled(draw: st.DrawFn, document: st.SearchStrategy[Json]) -> bytes:
    """The bytes of a document, now and then in another encoding, cut, doubled or with a byte changed."""
    text = written(draw(document))
    match draw(st.integers(0, 11)):
        case 0:
            return text.encode(draw(st.sampled_from(ENCODINGS)), "replace")
        case 1:
            body = text.encode(errors="replace")
            return body[: draw(st.integers(0, len(body)))]
        case 2:
            changed = bytearray(text.encode(errors="replace") or b"?")
            changed[draw(st.integers(0, len(changed) - 1))] = draw(st.integers(0, 255))
            return bytes(changed)
        case 3:
            return (text + draw(st.sampled_from([text, " ", "\0", "}", "\n", "//x", "\x1a"]))).encode(errors="replace")
        case _:
            return text.encode(errors="replace")
