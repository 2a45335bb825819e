"""Who gets in, and that what an unauthenticated caller sends never makes more than a 401."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from functions import requests
from functions.auth import require_token
from functions.requests import BodiesInFlight, HttpError, not_configured
from shared.errors import SecretUnavailable, SettingsError
from shared.settings import Settings

TOKEN = "a-token-of-nobody"
ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "no-key",
    "TENSORLAKE_API_KEY": "no-key",
}


def settings(token: str | None = TOKEN) -> Settings:
    return Settings.from_environ(ENVIRON if token is None else {**ENVIRON, "FUNCTIONS_TOKEN": token})


def request(*authorizations: bytes, body: tuple[bytes, ...] = (b"",), length: bytes | None = None) -> Request:
    """A POST with these Authorization headers, whose body comes in these parts."""
    headers = [(b"authorization", value) for value in authorizations]
    if length is not None:
        headers.append((b"content-length", length))
    parts = list(body)

    async def receive() -> dict[str, object]:
        if not parts:
            return {"type": "http.disconnect"}
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


@pytest.mark.parametrize(
    "shown", [b"Bearer a-token-of-nobody", b"bearer a-token-of-nobody", b"BEARER  a-token-of-nobody "]
)
def test_the_operators_token_gets_in(shown: bytes) -> None:
    asyncio.run(require_token(request(shown), settings()))


@pytest.mark.parametrize(
    "shown",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer a-token-of-nobod",
        b"Bearer a-token-of-nobodyy",
        b"Bearer A-TOKEN-OF-NOBODY",
        b"Basic a-token-of-nobody",
        b"a-token-of-nobody",
        b"Bearer \xff\xfe\x00\x80",
    ],
)
def test_a_wrong_token_is_a_401_with_a_challenge(shown: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        asyncio.run(require_token(request(shown), settings()))
    answer = caught.value.response()
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert b"a-token" not in bytes(answer.body)


def test_no_token_and_two_tokens_are_both_a_401() -> None:
    for shown in ((), (b"Bearer a-token-of-nobody", b"Bearer a-token-of-nobody")):
        with pytest.raises(HttpError) as caught:
            asyncio.run(require_token(request(*shown), settings()))
        assert caught.value.status == 401


@given(st.binary(max_size=60))
def test_whatever_the_bytes_it_is_a_401(shown: bytes) -> None:
    with pytest.raises(HttpError) as caught:
        asyncio.run(require_token(request(b"Bearer " + shown), settings()))
    assert caught.value.status == 401


def test_without_the_setting_nobody_gets_in_and_the_answer_says_what_is_missing() -> None:
    for shown in (b"Bearer ", b"Bearer None", b"Bearer a-token-of-nobody"):
        with pytest.raises(SettingsError) as caught:
            asyncio.run(require_token(request(shown), settings(None)))
        answer = not_configured(caught.value)
        assert answer.status_code == 503
        assert b"FUNCTIONS_TOKEN" in bytes(answer.body)


def test_a_token_may_live_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("a-token-of-nobody\n")
    asyncio.run(require_token(request(b"Bearer a-token-of-nobody"), settings(f"file:{file}")))
    file.unlink()
    with pytest.raises(SecretUnavailable):
        asyncio.run(require_token(request(b"Bearer a-token-of-nobody"), settings(f"file:{file}")))


def test_a_token_beyond_ascii_is_compared_as_bytes() -> None:
    asyncio.run(require_token(request("Bearer schlüssel".encode()), settings("schlüssel")))


@pytest.fixture(autouse=True)
def bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_LIMIT", 10)
    monkeypatch.setattr(requests, "UNPROVEN_LIMIT", 5)
    monkeypatch.setattr(requests, "BODY_SECONDS", 5.0)


def read(asked: Request, *, proven: bool = True) -> bytes:
    return asyncio.run(BodiesInFlight().read(asked, proven=proven))


def test_a_body_up_to_the_limit_is_read() -> None:
    assert read(request(body=(b"12345", b"67890"), length=b"10")) == b"1234567890"


@pytest.mark.parametrize(
    ("body", "length"),
    [((b"",), b"11"), ((b"12345", b"678901"), None), ((b"12345678901",), b"3"), ((b"",), b"9" * 5000)],
)
def test_a_larger_body_is_refused_whether_announced_or_not(body: tuple[bytes, ...], length: bytes | None) -> None:
    with pytest.raises(HttpError) as caught:
        read(request(body=body, length=length))
    assert caught.value.status == 413


@pytest.mark.parametrize("length", [b"-1", b"x", b"", "²".encode("latin-1")])
def test_an_announcement_that_makes_no_sense_is_not_believed(length: bytes) -> None:
    assert read(request(body=(b"ok",), length=length)) == b"ok"


def test_a_caller_who_has_shown_nothing_yet_may_send_less() -> None:
    assert read(request(body=(b"12345",)), proven=False) == b"12345"
    with pytest.raises(HttpError) as caught:
        read(request(body=(b"123", b"456")), proven=False)
    assert caught.value.status == 413


def test_a_body_that_never_comes_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "BODY_SECONDS", 0.01)

    async def receive() -> dict[str, object]:
        await asyncio.sleep(60)
        raise AssertionError

    slow = Request({"type": "http", "method": "POST", "path": "/", "headers": []}, receive)
    with pytest.raises(HttpError) as caught:
        read(slow)
    assert caught.value.status == 408


def test_a_body_that_is_cut_short_is_a_400() -> None:
    with pytest.raises(HttpError) as caught:
        read(request(body=()))
    assert caught.value.status == 400


def test_a_stranger_learns_which_secret_is_missing_and_not_where_it_should_be(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(SecretUnavailable) as caught:
        asyncio.run(require_token(request(b"Bearer x"), settings("file:/nowhere/in/particular")))
    answer = not_configured(caught.value)
    assert answer.status_code == 503
    assert b"FUNCTIONS_TOKEN" in bytes(answer.body) and b"nowhere" not in bytes(answer.body)
    assert "/nowhere/in/particular" in caplog.text
