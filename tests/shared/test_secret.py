"""A secret that is read by reference: cached, read again, and kept for a while when it cannot be."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from shared.errors import SecretUnavailable
from shared.secret import CACHE_SECONDS, FILE_RETRY_SECONDS, KEPT_SECONDS, RETRY_SECONDS, Secret


class SecretClock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> SecretClock:
    return SecretClock()


@pytest.fixture
def place(tmp_path: Path) -> Path:
    path = tmp_path / "key"
    path.write_text("the-first-value", encoding="utf-8")
    return path


@pytest.fixture
def secret(place: Path, clock: SecretClock) -> Secret:
    """Read once, at 0 s; its place has failed since then."""
    made = Secret("SOME_KEY", f"file:{place}", clock=clock)
    assert made.reveal() == "the-first-value"
    place.unlink()
    return made


def test_a_value_that_was_read_outlives_a_store_that_fails_for_a_while_and_the_log_says_so_once(
    secret: Secret, clock: SecretClock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="shared.secret"):
        for clock.now in (CACHE_SECONDS, CACHE_SECONDS + 1, CACHE_SECONDS + 200, KEPT_SECONDS):
            assert secret.reveal() == "the-first-value"
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("secret.kept_old reason=SOME_KEY: ")
    assert "the-first-value" not in caplog.text


def test_the_old_value_is_not_kept_for_ever(secret: Secret, clock: SecretClock) -> None:
    clock.now = KEPT_SECONDS - 1
    assert secret.reveal() == "the-first-value"
    clock.now = KEPT_SECONDS + 1  # within RETRY_SECONDS of the look before: the bound counts all the same
    with pytest.raises(SecretUnavailable, match="SOME_KEY"):
        secret.reveal()


def test_a_failing_store_is_not_asked_again_at_once(secret: Secret, clock: SecretClock, place: Path) -> None:
    clock.now = CACHE_SECONDS + 1
    assert secret.reveal() == "the-first-value"
    place.write_text("the-second-value", encoding="utf-8")
    clock.now += RETRY_SECONDS - 1
    assert secret.reveal() == "the-first-value"
    clock.now += 2
    assert secret.reveal() == "the-second-value"


def test_a_new_while_of_failing_is_logged_again(
    secret: Secret, clock: SecretClock, place: Path, caplog: pytest.LogCaptureFixture
) -> None:
    clock.now = CACHE_SECONDS + 1
    secret.reveal()
    place.write_text("the-second-value", encoding="utf-8")
    clock.now += RETRY_SECONDS + 1
    assert secret.reveal() == "the-second-value"
    place.unlink()
    clock.now += CACHE_SECONDS + 1
    assert secret.reveal() == "the-second-value"
    assert caplog.text.count("secret.kept_old") == 2


def test_what_could_never_be_read_is_unavailable_each_time(clock: SecretClock) -> None:
    secret = Secret("SOME_KEY", "file:/nowhere/at/all", clock=clock)
    for _ in range(2):
        with pytest.raises(SecretUnavailable, match="SOME_KEY"):
            secret.reveal()


def test_a_new_key_in_a_file_is_used_soon_after_the_old_one_was_refused(place: Path, clock: SecretClock) -> None:
    secret = Secret("SOME_KEY", f"file:{place}", clock=clock)

    async def refused() -> bool:
        return await secret.refused("the-first-value")

    assert secret.reveal() == "the-first-value"
    assert asyncio.run(refused()) is False
    place.write_text("the-second-value", encoding="utf-8")
    assert asyncio.run(refused()) is False  # it was read a moment ago
    clock.now += FILE_RETRY_SECONDS
    assert asyncio.run(refused()) is True
    assert secret.reveal() == "the-second-value"
