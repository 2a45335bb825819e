"""No request makes an error of ours, or an answer or a log line that says more than it should."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

import pytest

from shared.races.request import RaceRequest
from tests.fuzz import __main__ as command
from tests.fuzz.campaign import Campaign, judge, run
from tests.fuzz.case import (
    OPERATORS,
    ROUTES,
    WEBHOOKS,
    Door,
    Ending,
    FuzzAnswer,
    FuzzCase,
    FuzzPart,
    Profile,
    Signature,
)
from tests.fuzz.properties import BODY_CANARY, HEADER_CANARY, check
from tests.fuzz.races import every_wrong_value, fields
from tests.fuzz.reproductions import OPEN, REPRODUCTIONS, Reproduction
from tests.fuzz.requests import BEARER
from tests.fuzz.stage import LOST_FILE, TOKEN, ask
from tests.fuzz.wire import written
from tests.support.checkout import ROOT

CASES: Final = 1_200
ERROR: Final = b'{"error":{"type":"t","message":"%b"}}'


def told(campaign: Campaign) -> str:
    return "\n\n".join(f"{each.finding}\n{each.case.describe()}" for each in campaign.found.values())


def test_thousands_of_requests_find_nothing_new() -> None:
    campaign = run(CASES, known=OPEN)
    assert not campaign.found, told(campaign)
    assert campaign.cases >= CASES
    for path in ROUTES:
        assert campaign.statuses[(path, 200)], f"nothing got as far as an answer of {path}"
        assert campaign.statuses[(path, 401)], f"nobody was turned away from {path}"


def test_every_wrong_value_at_every_field_of_a_race_is_a_400_or_a_race() -> None:
    campaign = Campaign()
    wrong = [
        (path, finding)
        for path, document in every_wrong_value()
        for finding in judge(campaign, race(written(document)))
        if finding.kind not in OPEN
    ]
    assert not wrong, wrong[:5]
    assert {status for _, status in campaign.statuses} == {200, 400}


def test_no_field_of_the_model_is_left_out() -> None:
    reached = {path[0] for path in fields() if path}
    assert reached == set(RaceRequest.model_fields)
    assert {("branches", 0, "files", "KEY", "base64"), ("judge", "command", 0), ("source", "image")} <= set(fields())


@pytest.mark.parametrize("each", REPRODUCTIONS, ids=lambda each: each.title)
def test_what_was_found_is_mended_or_said_to_be_open(each: Reproduction) -> None:
    kinds = [finding.kind for finding in check(each.case, ask(each.case))]
    assert kinds == ([each.kind] if each.open else []), "set `open` in reproductions.py to what is true"


def race(body: str) -> FuzzCase:
    return FuzzCase("/fork_best_of_n", headers=(BEARER,), parts=(FuzzPart(body.encode(errors="replace")),))


def good(path: str) -> FuzzCase:
    if path in WEBHOOKS:
        return FuzzCase(path, parts=(FuzzPart(b'{"data":{"type":"session.updated"}}'),), signature=Signature.RIGHT)
    body = b'{"source":{"image":"i"},"n":1,"command":["true"]}' if path == "/fork_best_of_n" else b""
    return FuzzCase(path, headers=(BEARER,), parts=(FuzzPart(body),))


@pytest.mark.parametrize("door", Door)
@pytest.mark.parametrize("path", ROUTES)
def test_the_good_request_that_all_others_differ_from_is_answered_200(path: str, door: Door) -> None:
    case = replace(good(path), door=door)
    answer = ask(case)
    assert (answer.status, check(case, answer)) == (200, [])


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize(
    ("parts", "ending", "status"),
    [
        ((FuzzPart(b"x", 29.0), FuzzPart(b"y", 2.0)), Ending.COMPLETE, 408),
        ((FuzzPart(b"x"),), Ending.STALLED, 408),
        ((), Ending.STALLED, 408),
        ((FuzzPart(b"x"),), Ending.CUT, 400),
        ((FuzzPart(b" " * (1024 * 1024)), FuzzPart(b" ")), Ending.STALLED, 413),
    ],
)
def test_a_body_that_is_slow_cut_or_large_is_given_up_within_its_bound(
    path: str, parts: tuple[FuzzPart, ...], ending: Ending, status: int
) -> None:
    answer = ask(replace(good(path), parts=parts, ending=ending))
    assert answer.status == status
    assert answer.seconds <= 31


def test_a_caller_who_hangs_up_during_a_race_leaves_nothing() -> None:
    case = replace(race('{"source":{"image":"i"},"n":3,"command":["sleep","20"]}'), ending=Ending.HUNG_UP)
    answer = ask(case)
    assert (answer.status, check(case, answer)) == (499, [])
    assert answer.seconds < 5


@pytest.mark.parametrize("profile", Profile)
@pytest.mark.parametrize("path", ROUTES)
def test_503_is_for_what_is_not_configured_and_for_nothing_else(path: str, profile: Profile) -> None:
    answer = ask(replace(good(path), profile=profile))
    assert answer.status == (200 if profile.serves(path) else 503)


def answer(status: int, body: bytes, *headers: tuple[bytes, bytes], **more: object) -> FuzzAnswer:
    made = FuzzAnswer(status, [(b"content-type", b"application/json"), *headers], body)
    for name, value in more.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize(
    ("case", "bad", "kind"),
    [
        (good("/"), FuzzAnswer(raised=ValueError("x")), "ValueError in a library leaves the application"),
        (good("/"), FuzzAnswer(), "no answer at /"),
        (good("/"), answer(500, ERROR % b"x"), "500 at /"),
        (good("/fork_best_of_n"), answer(502, ERROR % b"x"), "502 at /fork_best_of_n"),
        (good("/"), answer(503, ERROR % b"x"), "503 at / although everything it needs is configured"),
        (good("/"), answer(400, b'{"detail":"x"}'), "400 at / has not the one shape of errors"),
        (good("/"), answer(400, b'{"error":{"type":"t","message":""}}'), "400 at / has not the one shape of errors"),
        (good("/"), answer(400, b"{"), "400 at / is said to be JSON and is not"),
        (good("/"), answer(400, ERROR % (b"x" * 3_000)), "400 at / is too long"),
        (good("/"), FuzzAnswer(400, [(b"content-type", b"text/plain")], b"bad"), "400 is not JSON"),
        (good("/"), answer(400, ERROR % b"ValueError('x')"), "400 shows its insides"),
        (good("/"), answer(400, ERROR % str(ROOT).encode()), "400 shows its insides"),
        (good("/"), answer(503, ERROR % LOST_FILE.encode()), "503 at / although everything it needs is configured"),
        (good("/"), answer(400, ERROR % TOKEN.encode()), "a secret is in an answer of /"),
        (good("/"), answer(200, b"{}", (b"x", TOKEN.encode())), "a secret is in an answer of /"),
        (good("/"), answer(200, b"{}", (b"x", HEADER_CANARY.encode())), "200 at / repeats a header of the request"),
        (good("/"), answer(400, ERROR % BODY_CANARY.encode()), "400 at / repeats a value of the body"),
        (good("/"), answer(200, b"{}", log=[f"token={TOKEN}"]), "a secret is logged at /"),
        (good("/"), answer(200, b"{}", log=[BODY_CANARY]), "a value of the request is logged at /"),
        (good("/"), answer(200, b"{}", log=["one\ntwo"]), "a record of more than one line is logged at /"),
        (good("/"), answer(200, b"{}", log=["Traceback\nValueError: x"]), "ValueError in a library is logged as a bug"),
        (good("/"), answer(200, b"{}", left=("id1",)), "sandboxes or snapshots are left by /"),
        (good("/"), answer(200, b"{}", seconds=1_000.0), "200 at / takes too long"),
        (good("/"), answer(408, ERROR % b"x", seconds=40.0), "408 at / takes too long"),
        (good("/"), answer(200, b"{}", cpu_seconds=4.0), "200 at / computes too long"),
        (good("/poll_tick"), answer(401, ERROR % b"x"), "the operator is turned away from /poll_tick"),
        (FuzzCase("/poll_tick"), answer(401, ERROR % b"x"), "401 of /poll_tick without a challenge"),
        (FuzzCase("/poll_tick"), answer(200, b"{}"), "a stranger gets past the door of /poll_tick"),
        (FuzzCase("/"), answer(400, ERROR % b"x"), "a stranger gets past the door of /"),
        (
            replace(good("/"), signature=Signature.OTHER_BODY),
            answer(200, b"{}"),
            "a stranger gets past the door of /",
        ),
        (
            replace(good("/poll_tick"), headers=(BEARER, BEARER)),
            answer(200, b"{}"),
            "a stranger gets past the door of /poll_tick",
        ),
        (
            replace(good("/poll_tick"), parts=(FuzzPart(b"x" * (1024 * 1024 + 1)),)),
            answer(200, b"{}"),
            "/poll_tick takes a body over the limit",
        ),
    ],
)
def test_each_property_sees_the_fault_that_it_is_for(case: FuzzCase, bad: FuzzAnswer, kind: str) -> None:
    assert kind in [finding.kind for finding in check(case, bad)]


def test_a_fault_behind_the_door_is_found_shrunk_and_told_with_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(body: bytes) -> bool:
        raise LookupError("planted")

    monkeypatch.setattr("functions.webhook_events.read_event", broken)
    campaign = run(200, known=OPEN)
    kinds = [kind for kind in campaign.found if "LookupError" in kind]
    assert kinds
    smallest = campaign.found[kinds[0]].case
    assert smallest.path in (*WEBHOOKS, *(f"{path}/" for path in WEBHOOKS))
    assert len(smallest.body) <= 200


def test_the_same_seed_gives_the_same_requests() -> None:
    first, second = run(80, first_seed=7, known=OPEN), run(80, first_seed=7, known=OPEN)
    assert first.statuses == second.statuses


def test_the_command_says_what_it_did(capsys: pytest.CaptureFixture[str]) -> None:
    code = command.main(["--cases", "60"])
    said = capsys.readouterr().out
    assert "cases/s" in said
    assert "new findings" in said
    assert code in (0, 1)


def test_operators_and_webhooks_are_all_routes() -> None:
    assert {*WEBHOOKS, *OPERATORS} == set(ROUTES)
