"""The schedule: once a minute or so, drain the queue whether or not a webhook came.

Webhooks are dropped after three attempts, and what is queued again is announced by none (docs/wire/anthropic.md#t7), so
this is what makes the claim protocol complete. Called with POST, or by a CloudEvent in either form; what the body says
does not matter. The sender of a CloudEvent gets an empty answer: Knative's broker takes any other for a failed
delivery, and delivers again. The report is in the log anyway.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from functions.cloud_run_iam import require_operator
from functions.requests import HttpError, not_configured, require_method
from functions.state import deadline_of, state_of
from shared.errors import SecretUnavailable, SettingsError


async def poll_tick(request: Request) -> Response:
    """POST by the operator. 200 report, or 204 to a CloudEvent; 401; 403 an agent's token; 405; 413; 429; 503 not
    configured."""
    try:
        require_method(request, "POST")
        state = state_of(request)
        await require_operator(request, state.settings, state.ingress_probe)
        state.count_call(None)
        await state.bodies.read(request, proven=True)
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)
    from functions.tick_remarks import log_remarks  # not needed to refuse a caller
    from shared.reports import to_json

    report = await state.service.tick(deadline_of(request))
    log_remarks(report)
    return Response(status_code=204) if is_event(request) else Response(to_json(report), media_type="application/json")


def is_event(request: Request) -> bool:
    """Binary: the attributes are headers. Structured or batched: the media type says so (CloudEvents 1.0, HTTP)."""
    return "ce-specversion" in request.headers or request.headers.get("content-type", "").lower().startswith(
        "application/cloudevents"
    )
