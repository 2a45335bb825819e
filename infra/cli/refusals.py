"""What a person needs of a refusal of the Claude API: the status, the service's message, and what to look at."""

from __future__ import annotations

from typing import Final

from shared.texts import printable

_ADVICE: Final = {
    401: "Check ANTHROPIC_API_KEY (.env.local) and ANTHROPIC_ENVIRONMENT_KEY (.env): make doctor",
    403: "This key may not do that: is it of the right workspace? make doctor",
    404: "It may be gone, or belong to another workspace than the key.",
}
_LONGEST: Final = 500


def refusal(status: int, body: object) -> str:
    """`body`: the answer as JSON, whatever it is."""
    detail = body.get("error") if isinstance(body, dict) else None
    message = printable(str(detail.get("message", "")), _LONGEST).strip() if isinstance(detail, dict) else ""
    if message and message[-1] not in ".!?":
        message += "."
    return " ".join(part for part in (f"the Claude API answered {status}:", message, _ADVICE.get(status, "")) if part)
