"""Requests of all kinds: the right ones, nearly right ones and bare noise."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Final

from hypothesis import strategies as st

from functions.requests import BODY_LIMIT
from tests.fuzz.case import OPERATORS, ROUTES, WEBHOOKS, Door, Ending, FuzzCase, FuzzPart, Profile, Signature
from tests.fuzz.properties import HEADER_CANARY
from tests.fuzz.races import races, spoiled_races
from tests.fuzz.stage import SESSIONS, TOKEN
from tests.fuzz.wire import ANYTHING, HALF_CHARACTER, Raw, Twice, spelled

Header = tuple[bytes, bytes]

_CANARY: Final = HEADER_CANARY.encode()
BEARER: Final[Header] = (b"authorization", b"Bearer " + TOKEN.encode())
_VALUES: Final = st.one_of(
    st.sampled_from([b"", _CANARY, b"\xff\xfe", b"\xc3\xa9", b"a" * 9_000, b"\t", b"0", b"nan", b"*/*", b"text/html"]),
    st.binary(max_size=30).map(lambda value: value.replace(b"\r", b"").replace(b"\n", b"").replace(b"\0", b"")),
)
_NAMES: Final = st.sampled_from(
    [
        b"host",
        b"accept",
        b"cookie",
        b"content-type",
        b"content-encoding",
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"origin",
        b"referer",
        b"authorization",
        b"x-forwarded-host",
        b"x-forwarded-proto",
        b"webhook-id",
        b"webhook-timestamp",
        b"webhook-signature",
        b"traceparent",
        b"function-execution-id",
        b"x-cloud-trace-context",
        b"ce-id",
        b"x-" + b"n" * 300,
        b"\xff",
    ]
)
_TOKENS: Final = st.sampled_from(
    [
        (),
        (BEARER,),
        (BEARER, BEARER),
        ((b"authorization", b"bearer\x20\x20" + TOKEN.encode() + b"\t"),),
        ((b"authorization", b"Bearer " + _CANARY),),
        ((b"authorization", b"Basic " + TOKEN.encode()),),
        ((b"authorization", b"Bearer " + TOKEN.encode()[:-1]),),
        ((b"authorization", b"Bearer " + TOKEN.encode() + b"x"),),
        ((b"authorization", b"Bearer " + TOKEN.upper().encode()),),
        ((b"authorization", b"Bearer \xff\xfe\xc3\xa9"),),
        ((b"authorization", b""), BEARER),
        ((b"x-authorization", b"Bearer " + TOKEN.encode()),),
        ((b"authorization", TOKEN.encode()),),
    ]
)
_CLOUD_EVENT: Final = (
    (b"ce-id", b"1"),
    (b"ce-source", b"//scheduler/" + _CANARY),
    (b"ce-type", b"tick"),
    (b"ce-specversion", b"1.0"),
)
_LENGTHS: Final = st.sampled_from([b"0", b"1", b"-1", b"+5", b"1048577", b"9" * 30, b"5, 5", b"0x5", b"", b"\xb2"])
_METHODS: Final = ("POST", "GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "post", "", "P\x7fST")
_SHARES: Final = (*ROUTES, "/fork_best_of_n", "/fork_best_of_n")
_WRONG: Final = tuple(how for how in Signature if not how.good)
_PATHS: Final = (
    "/poll_tick/",
    "/fork_best_of_n/",
    "/on_run_started/",
    "//",
    "//poll_tick",
    "/poll_tick//",
    "/POLL_TICK",
    "/healthz",
    "/readyz",
    "/healthz/",
    "/docs",
    "/../shared/settings.py",
    "/poll_tick\0",
    "/poll_tick\n",
    "/\ufffd",
    "/robots.txt",
    "*",
)
_QUERIES: Final = st.sampled_from([b"", b"", b"", b"token=" + _CANARY, b"\xff\xfe", b"a=b&a=c", b"%00", b"?" * 300])
_MOMENTS: Final = st.sampled_from([0.0, 0.0, 0.0, 1.0, 29.0, 31.0])

_SESSION_IDS: Final = st.sampled_from(
    [*SESSIONS, "sesn_nobodys", "session_x", "sesn_", "sesn_é\n{}", "sesn_a/../b", "", Raw('"sesn_\\ud800"')]
)
_KINDS: Final = st.sampled_from(
    [
        "session.status_run_started",
        "session.status_terminated",
        "session.archived",
        "session.deleted",
        "session.updated",
        "",
        "x" * 300,
        "\x1b[31m\n",
        HALF_CHARACTER,
    ]
)
_EVENTS: Final = st.one_of(
    st.fixed_dictionaries(
        {"type": st.just("event"), "data": st.fixed_dictionaries({"type": _KINDS, "id": _SESSION_IDS | ANYTHING})}
    ),
    st.fixed_dictionaries({"data": st.fixed_dictionaries({"type": _KINDS | ANYTHING, "id": ANYTHING}) | ANYTHING}),
    st.builds(lambda first, second: {"data": Twice(first, {"type": second})}, ANYTHING, _KINDS),
)
_STRUCTURED_EVENTS: Final = st.fixed_dictionaries(
    {"specversion": st.just("1.0") | ANYTHING, "id": ANYTHING, "type": ANYTHING, "source": ANYTHING, "data": ANYTHING}
)
_NOISE: Final = st.binary(max_size=64) | st.sampled_from([b"", b"\xef\xbb\xbf", b"\0" * 40, b"%"])
_DOCUMENTS: Final = {
    "/fork_best_of_n": races() | spoiled_races() | spoiled_races(),
    "/poll_tick": _STRUCTURED_EVENTS,
}


def _parts(draw: st.DrawFn, body: bytes) -> tuple[FuzzPart, ...]:
    """The body in pieces, or around the largest size that is taken."""
    how = draw(st.integers(0, 15))
    if how == 0:
        body = body[:BODY_LIMIT].ljust(BODY_LIMIT + draw(st.sampled_from([-1, 0, 1, 70_000])))
    if how > 4 or len(body) < 2:
        return (FuzzPart(body),) if body or how % 2 else ()
    if how == 1:
        return (FuzzPart(b"", draw(_MOMENTS)), FuzzPart(body, draw(_MOMENTS)), FuzzPart(b""))
    cut = draw(st.integers(1, len(body) - 1))
    return (FuzzPart(body[:cut], draw(_MOMENTS)), FuzzPart(body[cut:], draw(_MOMENTS)))


@st.composite
def cases(draw: st.DrawFn) -> FuzzCase:
    """One request. Half of them differ from a good one in one thing alone, so that all that lies behind is reached."""
    path = draw(st.sampled_from(_SHARES))
    body = draw(spelled(_DOCUMENTS.get(path, _EVENTS) | ANYTHING) | _NOISE if draw(st.integers(0, 3)) == 0 else
                spelled(_DOCUMENTS.get(path, _EVENTS)))  # fmt: skip
    case = FuzzCase(
        path,
        parts=_parts(draw, body),
        headers=(BEARER,) if path in OPERATORS else (),
        signature=Signature.RIGHT if path in WEBHOOKS else Signature.NONE,
    )
    changes = draw(st.integers(0, 7))
    if changes == 0:
        return _stranger(draw, case)
    if changes <= 3:
        return _changed(draw, case)
    return case


def _changed(draw: st.DrawFn, case: FuzzCase) -> FuzzCase:
    match draw(st.integers(0, 8)):
        case 0:
            return replace(case, method=draw(st.sampled_from(_METHODS)))
        case 1:
            return replace(case, path=draw(st.sampled_from(_PATHS)), query=draw(_QUERIES))
        case 2:
            return replace(case, query=draw(_QUERIES))
        case 3:
            return replace(case, headers=(*case.headers, (b"content-length", draw(_LENGTHS))))
        case 4:
            return replace(case, ending=draw(st.sampled_from(Ending)))
        case 5:
            return replace(case, profile=draw(st.sampled_from(Profile)))
        case 6:
            return replace(case, headers=draw(_TOKENS), signature=draw(st.sampled_from(Signature)))
        case 7:
            return replace(case, door=Door.FRAMEWORK, query=draw(_QUERIES))
        case _:
            more = draw(st.lists(st.tuples(_NAMES, _VALUES), min_size=1, max_size=3))
            return replace(case, headers=(*case.headers, *more, *draw(st.sampled_from([(), _CLOUD_EVENT]))))


def _stranger(draw: st.DrawFn, case: FuzzCase) -> FuzzCase:
    """Everything at once."""
    return FuzzCase(
        path=draw(
            st.sampled_from((*_PATHS, *ROUTES))
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=12).map("/{}".format)
        ),
        method=draw(st.sampled_from(_METHODS)),
        query=draw(_QUERIES),
        headers=(*draw(_TOKENS), *draw(st.lists(st.tuples(_NAMES, _VALUES), max_size=4))),
        parts=case.parts,
        ending=draw(st.sampled_from(Ending)),
        signature=draw(st.sampled_from(Signature)),
        profile=draw(st.sampled_from(Profile)),
        door=draw(st.sampled_from(Door)),
    )


def siblings(case: FuzzCase) -> Iterator[FuzzCase]:
    """The case; from somebody who may not send it; by the other door; and in pieces, announced as something else."""
    yield case
    yield replace(case, door=Door.FRAMEWORK if case.door is Door.APP else Door.APP)
    body, size = case.body, len(case.body)
    if case.path in WEBHOOKS and case.signature.good:
        yield replace(case, signature=_WRONG[size % len(_WRONG)])
    elif BEARER in case.headers:
        yield replace(case, headers=tuple(header for header in case.headers if header != BEARER))
    else:
        yield replace(case, headers=(BEARER,), signature=Signature.RIGHT)
    if size > 2:
        pieces = (
            FuzzPart(body[:1], 1.0),
            FuzzPart(body[1 : size // 2]),
            FuzzPart(b"", 2.0),
            FuzzPart(body[size // 2 :], 3.0),
        )
        yield replace(case, parts=pieces, headers=(*case.headers, (b"content-length", str(size // 2).encode())))
