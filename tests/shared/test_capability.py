"""Capability tokens: what is issued is read again, and nothing else is."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared import capability
from shared.capability import Capability, NotGenuine, issue, read, signing_key, signing_keys
from shared.errors import SettingsError
from shared.secret import Secret

KEY = signing_key("an-operators-token-of-nobody-at-all")
GIVEN = Capability("fork_best_of_n", "env_1", "sesn_1", "work_1", 8, 120.0, 2_000)


def test_a_token_says_what_it_was_issued_for() -> None:
    assert read(issue(GIVEN, KEY).encode(), [KEY], now=1_999) == GIVEN


def test_a_token_fits_into_a_header_and_shows_nothing_of_the_operators_token() -> None:
    token = issue(GIVEN, KEY)
    assert token.isascii() and token.isprintable() and " " not in token and len(token) < 400
    body = token.split(".")[1]
    assert b"operators" not in base64.urlsafe_b64decode(body + "==")


def test_it_expires_to_the_second() -> None:
    with pytest.raises(NotGenuine, match="expired"):
        read(issue(GIVEN, KEY).encode(), [KEY], now=2_000)


def test_another_operators_token_makes_another_key() -> None:
    with pytest.raises(NotGenuine):
        read(issue(GIVEN, KEY).encode(), [signing_key("another-token-of-nobody")], now=0)


def test_the_key_is_hkdf_as_rfc_5869_has_it() -> None:
    # Written out by the RFC's definition, with the library's other interface.
    import hashlib
    import hmac

    extracted = hmac.new(b"serverless hands", b"token", hashlib.sha256).digest()
    assert signing_key("token") == hmac.new(extracted, b"capability tokens 1\x01", hashlib.sha256).digest()


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_single_changed_byte_makes_it_worthless(at: int, change: int) -> None:
    token = bytearray(issue(GIVEN, KEY).encode())
    token[at % len(token)] ^= change
    with pytest.raises(NotGenuine):
        read(bytes(token), [KEY], now=0)


@pytest.mark.parametrize("changes", [{"session_id": "sesn_2"}, {"branches": 64}, {"expires_at": 9_999_999_999}])
def test_claims_of_one_token_with_the_mac_of_another_are_worthless(changes: dict[str, Any]) -> None:
    wanted = issue(GIVEN._replace(**changes), signing_key("my own")).rpartition(".")[0]
    had = issue(GIVEN, KEY).rpartition(".")[2]
    with pytest.raises(NotGenuine):
        read(f"{wanted}.{had}".encode(), [KEY], now=0)


@given(st.binary(max_size=100))
def test_whatever_the_bytes_it_is_not_genuine(rest: bytes) -> None:
    for token in (rest, capability.PREFIX + rest, issue(GIVEN, KEY).encode() + rest + b"x"):
        with pytest.raises(NotGenuine):
            read(token, [KEY], now=0)


def test_a_very_long_one_is_not_even_looked_at() -> None:
    with pytest.raises(NotGenuine):
        read(capability.PREFIX + b"a" * 1_000_000 + b".a", [KEY], now=0)


def test_a_token_is_signed_with_the_first_key_and_good_with_any() -> None:
    old, new = signing_key("an-old-key-of-nobody-in-particular"), signing_key("a-new-key-of-nobody-in-particular")
    for token in (issue(GIVEN, old), issue(GIVEN, new)):
        assert read(token.encode(), [new, old], now=0) == GIVEN
    with pytest.raises(NotGenuine):
        read(issue(GIVEN, old).encode(), [new], now=0)


@pytest.mark.parametrize(
    "own, operators, signed_with",
    [
        ("k" * 32, "t" * 32, ["k" * 32]),
        (f"{'k' * 32}, {'l' * 32}", None, ["k" * 32, "l" * 32]),
        (None, "t" * 32, ["t" * 32]),
    ],
)
def test_a_key_of_their_own_signs_where_one_is_set(
    own: str | None, operators: str | None, signed_with: list[str]
) -> None:
    found = asyncio.run(signing_keys(own and Secret("K", own), operators and Secret("T", operators)))  # type: ignore[arg-type]
    assert list(found) == [signing_key(each) for each in signed_with]


@pytest.mark.parametrize("own, operators", [(None, None), ("k" * 31, "t" * 32), (None, "letmein2024"), (", ", None)])
def test_no_token_is_signed_with_what_its_holder_could_guess(own: str | None, operators: str | None) -> None:
    secrets = (own and Secret("K", own), operators and Secret("T", operators))
    with pytest.raises(SettingsError):
        asyncio.run(signing_keys(*secrets))  # type: ignore[arg-type]
