"""What must hold for every answer to every request (docs/architecture.md#rules, docs/security.md), whoever sends it."""

from __future__ import annotations

import re
import traceback
from dataclasses import dataclass
from typing import Final

from functions.requests import BODY_LIMIT, BODY_SECONDS
from infra.cli.reference.http_api import ENDPOINTS
from tests.fuzz.case import OPERATORS, WEBHOOKS, Door, Ending, FuzzAnswer, FuzzCase
from tests.fuzz.stage import LOST_FILE, SECRETS, TOKEN
from tests.support.checkout import ROOT

# Neither is a name or an id that anything accepts, so nothing has a reason to repeat them.
HEADER_CANARY: Final = "canary in a header!"
BODY_CANARY: Final = "canary in a body!"

CPU_SECONDS: Final = 3.0  # a request's own computing; a mebibyte of the worst JSON takes a tenth of it
RACE_SECONDS: Final = 900.0
LONGEST_ERROR: Final = 2_000  # bytes; the set-up's last words are a thousand
_UNCLEAR: Final = {502}  # the services in memory always answer
_BY_PATH: Final = {each.path: {*each.answers, *each.errors} - _UNCLEAR for each in ENDPOINTS if each.method == "post"}
_DOCUMENTED: Final = {**_BY_PATH, "/": _BY_PATH["/on_run_started"]}
_TO_NOBODY: Final = {400, 499}  # the caller has gone
_OTHER_PATHS: Final = {200, 404, 405}
_INSIDES: Final = (
    re.compile(r"Traceback \(most recent call last\)"),
    re.compile(r"\b[A-Z]\w*(?:Error|Exception)\b"),
    re.compile(r'File "|\.py\b|site-packages'),
    re.compile(re.escape(str(ROOT))),
    re.compile(re.escape(LOST_FILE)),
    re.compile(r"<[\w. ]+ object at 0x"),
    re.compile(r"errors\.pydantic\.dev|input_value|input_type"),
)
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f\x85\u2028\u2029]")
_FRAMEWORKS_METHODS: Final = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")
_FRAMEWORKS_OWN: Final = ("/robots.txt", "/favicon.ico")


@dataclass(frozen=True, slots=True)
class FuzzFinding:
    """One property that did not hold. `kind` is the same for every request that shows the same fault."""

    kind: str
    detail: str


def check(case: FuzzCase, answer: FuzzAnswer) -> list[FuzzFinding]:
    """All that is wrong with this answer. What follows from a fault is not named beside it."""
    if answer.raised is not None:
        text = "".join(traceback.format_exception(answer.raised))
        return [FuzzFinding(f"{_origin(text)} leaves the application", repr(answer.raised)[:300])]
    bugs = [line for line in answer.log if "Traceback" in line]
    if bugs:
        return [FuzzFinding(f"{_origin(bugs[0])} is logged as a bug", f"{answer.status} {_beginning(answer)}")]
    if answer.status is None:
        return [FuzzFinding(f"no answer at {_where(case)}", "")]
    if found := _status(case, answer) or _shape(case, answer):
        return found
    found = [
        *_admission(case, answer),
        *_disclosure(case, answer),
        *_logging(case, answer),
        *_bounds(case, answer),
    ]
    if answer.left:
        found.append(FuzzFinding(f"sandboxes or snapshots are left by {_where(case)}", ", ".join(answer.left)))
    return found


def _origin(text: str) -> str:
    """An exception's name, and the last line of ours on its way."""
    ours = re.findall(rf'File "{re.escape(str(ROOT))}/((?:functions|shared)/[\w/]+\.py)", line \d+, in (\w+)', text)
    names = re.findall(r"^(?:[\w.]*\.)?(\w+)(?::|$)", text.strip().rsplit("\n", 1)[-1])
    return f"{names[0] if names else 'an exception'} in {':'.join(ours[-1]) if ours else 'a library'}"


def _where(case: FuzzCase) -> str:
    path = _route(case)
    return path if path in _DOCUMENTED else "another path"


def _route(case: FuzzCase) -> str:
    """The function that the path leads to: our app's router passes a line feed at the end over, functions.main all
    slashes."""
    return case.path.rstrip("/") or "/" if case.door is Door.FRAMEWORK else case.path.removesuffix("\n")


def _frameworks_own(case: FuzzCase) -> bool:
    """Answered by functions-framework, before anything of ours is asked."""
    return case.door is Door.FRAMEWORK and (
        not case.path.startswith("/")
        or "\n" in case.path.removesuffix("\n")
        or case.method not in _FRAMEWORKS_METHODS
        or (case.path in _FRAMEWORKS_OWN and case.method in ("GET", "HEAD"))
    )


def _status(case: FuzzCase, answer: FuzzAnswer) -> list[FuzzFinding]:
    route, status = _route(case), answer.status or 0
    allowed = _DOCUMENTED.get(route, _OTHER_PATHS)
    if status not in allowed and not (status in _TO_NOBODY and case.ending in (Ending.CUT, Ending.HUNG_UP)):
        return [FuzzFinding(f"{status} at {_where(case)}", _beginning(answer))]
    if status == 503 and case.profile.serves(route):
        return [FuzzFinding(f"503 at {route} although everything it needs is configured", _beginning(answer))]
    return []


def _admission(case: FuzzCase, answer: FuzzAnswer) -> list[FuzzFinding]:
    """Who is let in, judged apart from the code that decides it."""
    route, status = _route(case), answer.status or 0
    if route not in _DOCUMENTED:
        return []
    if route in WEBHOOKS:
        welcome = case.signature.good and _is_text(case.body)
    else:
        shown = [value for name, value in case.headers if name.lower() == b"authorization"]
        welcome = len(shown) == 1 and _is_token(shown[0])
    whole = case.ending in (Ending.COMPLETE, Ending.HUNG_UP) and len(case.body) <= BODY_LIMIT
    inside = {200, 204, 404, 406, 409, 422, 499} | ({400} if whole else set())
    if status in inside and not (welcome and case.profile.serves(route) and case.method == "POST"):
        return [FuzzFinding(f"a stranger gets past the door of {route}", f"{status} {_beginning(answer)}")]
    if status == 401 and welcome and route in OPERATORS:
        return [FuzzFinding(f"the operator is turned away from {route}", _beginning(answer))]
    if status == 401 and route in OPERATORS and answer.header(b"www-authenticate") != b"Bearer":
        return [FuzzFinding(f"401 of {route} without a challenge", "")]
    if status == 200 and len(case.body) > BODY_LIMIT:
        return [FuzzFinding(f"{route} takes a body over the limit", f"{len(case.body)} bytes")]
    return []


def _is_token(value: bytes) -> bool:
    scheme, _, token = value.partition(b" ")
    return scheme.lower() == b"bearer" and token.strip(b" \t") == TOKEN.encode()


def _is_text(body: bytes) -> bool:
    try:
        body.decode()
    except UnicodeDecodeError:
        return False
    return True


def _shape(case: FuzzCase, answer: FuzzAnswer) -> list[FuzzFinding]:
    if _frameworks_own(case):
        return []
    status = answer.status or 0
    if status == 204:  # to a CloudEvent: a broker would take a body for another event
        return [FuzzFinding(f"204 at {_where(case)} has a body", _beginning(answer))] if answer.body else []
    if answer.header(b"content-type").split(b";")[0] != b"application/json":
        return [FuzzFinding(f"{status} is not JSON", _beginning(answer))]
    if case.method == "HEAD" and not answer.body:
        return []
    try:
        body = answer.json()
    except ValueError:
        return [FuzzFinding(f"{status} at {_where(case)} is said to be JSON and is not", _beginning(answer))]
    if not isinstance(body, dict):
        return [FuzzFinding(f"{status} at {_where(case)} is no object", _beginning(answer))]
    if status >= 400 and not _is_error(body):
        return [FuzzFinding(f"{status} at {_where(case)} has not the one shape of errors", _beginning(answer))]
    if status >= 400 and len(answer.body) > LONGEST_ERROR:
        return [
            FuzzFinding(f"{status} at {_where(case)} is too long", f"{len(answer.body)} bytes: {_beginning(answer)}")
        ]
    return []


def _is_error(body: dict[str, object]) -> bool:
    error = body.get("error")
    return (
        set(body) == {"error"}
        and isinstance(error, dict)
        and set(error) in ({"type", "message"}, {"type", "message", "field"})
        and all(isinstance(text, str) and text for text in error.values())
    )


def _disclosure(case: FuzzCase, answer: FuzzAnswer) -> list[FuzzFinding]:
    said = answer.body.decode(errors="replace")
    heads = "\n".join(f"{name!r}: {value!r}" for name, value in answer.headers)
    found: list[FuzzFinding] = []
    for secret in SECRETS:
        if secret in said or secret in heads:
            found.append(FuzzFinding(f"a secret is in an answer of {_where(case)}", _beginning(answer)))
    if HEADER_CANARY in said or HEADER_CANARY in heads or HEADER_CANARY.replace(" ", "%20") in heads:
        found.append(
            FuzzFinding(f"{answer.status} at {_where(case)} repeats a header of the request", heads + said[:300])
        )
    if answer.status != 200 and BODY_CANARY in said:
        found.append(FuzzFinding(f"{answer.status} at {_where(case)} repeats a value of the body", _beginning(answer)))
    for pattern in _INSIDES:
        if match := pattern.search(said):
            kind = f"{answer.status} shows its insides"
            found.append(FuzzFinding(kind, f"{match[0]!r} in {_beginning(answer)}"))
            break
    return found


def _logging(case: FuzzCase, answer: FuzzAnswer) -> list[FuzzFinding]:
    found = []
    for line in answer.log:
        if any(secret in line for secret in SECRETS):
            found.append(FuzzFinding(f"a secret is logged at {_where(case)}", line[:300]))
        if HEADER_CANARY in line or BODY_CANARY in line:
            found.append(FuzzFinding(f"a value of the request is logged at {_where(case)}", line[:300]))
        if _CONTROL.search(line):
            found.append(FuzzFinding(f"a record of more than one line is logged at {_where(case)}", repr(line[:300])))
    return found


def _bounds(case: FuzzCase, answer: FuzzAnswer) -> list[FuzzFinding]:
    """Virtual seconds from the first byte to the end of all that was set off, and seconds of computing."""
    bound = BODY_SECONDS + (RACE_SECONDS if answer.status in (200, 422) else 5.0)
    if answer.seconds > bound:
        return [FuzzFinding(f"{answer.status} at {_where(case)} takes too long", f"{answer.seconds:g} s")]
    if answer.cpu_seconds > CPU_SECONDS:
        return [FuzzFinding(f"{answer.status} at {_where(case)} computes too long", f"{answer.cpu_seconds:.1f} s")]
    return []


def _beginning(answer: FuzzAnswer) -> str:
    return answer.body[:300].decode(errors="replace")
