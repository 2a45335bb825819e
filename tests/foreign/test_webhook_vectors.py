"""The vectors that every Standard Webhooks library is tested with, against our check (functions/signatures.py).

The secret, id, time, payload and signature are the specification's public example.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime

import pytest
from standardwebhooks import webhooks

from functions.signatures import is_signed
from shared.secret import Secret

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
PAYLOAD = b'{"test": 2432232314}'
HEADERS = {
    "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
    "webhook-timestamp": "1614265330",
    "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
OTHER = "v1,Ceo5qEr07ixe2NLpvHk3FH9bwy/WavXrAFQ/9tdO6mc="


@pytest.fixture(autouse=True)
def at_that_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The library looks at the clock of the day the example was signed."""

    class Then(datetime):
        @classmethod
        def now(cls, tz: object = None) -> datetime:  # type: ignore[override]  # the one call that it makes
            return datetime.fromtimestamp(1614265330, UTC)

    monkeypatch.setattr(webhooks, "datetime", Then)


def signed(headers: Mapping[str, str] = HEADERS, body: bytes = PAYLOAD, secret: str = SECRET) -> bool:
    return asyncio.run(is_signed(body, headers, [Secret("ANTHROPIC_WEBHOOK_SIGNING_KEY", secret)]))


@pytest.mark.parametrize(
    "signature",
    [
        HEADERS["webhook-signature"],
        f"{OTHER} {HEADERS['webhook-signature']}",
        f"v2,anything {OTHER} {HEADERS['webhook-signature']} v1a,else",
    ],
)
def test_a_signature_of_the_example_is_taken(signature: str) -> None:
    assert signed({**HEADERS, "webhook-signature": signature})


@pytest.mark.parametrize(
    "change",
    [
        {"webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJel"},
        {"webhook-timestamp": "1614265331"},
        {"webhook-timestamp": "1614265029"},
        {"webhook-timestamp": "1614265631"},
        {"webhook-timestamp": "hello"},
        {"webhook-signature": OTHER},
        {"webhook-signature": HEADERS["webhook-signature"].replace("v1,", "v2,")},
        {"webhook-signature": HEADERS["webhook-signature"].removeprefix("v1,")},
        {"webhook-signature": "v1,"},
    ],
)
def test_whatever_is_changed_is_refused(change: dict[str, str]) -> None:
    assert not signed({**HEADERS, **change})


def test_another_payload_or_secret_is_refused() -> None:
    assert not signed(body=b'{"test": 2432232315}')
    assert not signed(secret="whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD")
