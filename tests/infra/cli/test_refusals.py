"""A refusal is one line of whole sentences."""

from __future__ import annotations

import pytest

from infra.cli.refusals import refusal


@pytest.mark.parametrize(
    ("status", "message", "said"),
    [
        (
            404,
            "session sesn_nope was not found",
            "the Claude API answered 404: session sesn_nope was not found. It may be gone, or belong to another "
            "workspace than the key.",
        ),
        (
            404,
            "Gone!",
            "the Claude API answered 404: Gone! It may be gone, or belong to another workspace than the key.",
        ),
        (400, "it is busy", "the Claude API answered 400: it is busy."),
        (418, "", "the Claude API answered 418:"),
    ],
)
def test_message_and_advice_are_sentences(status: int, message: str, said: str) -> None:
    assert refusal(status, {"error": {"message": message}}) == said


@pytest.mark.parametrize("body", [None, "<html>", {"error": "x"}, {"error": {}}])
def test_a_body_that_is_no_error_leaves_the_status_and_the_advice(body: object) -> None:
    assert refusal(401, body).startswith("the Claude API answered 401: Check ANTHROPIC_API_KEY")
