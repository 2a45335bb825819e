"""The schedule: once a minute or so, drain the queue whether or not a webhook came.

Webhooks are dropped after three attempts, and what is queued again is announced by none (contract claude T7), so this
is what makes the claim protocol complete. Called with POST, or by a CloudEvent in either form.
"""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import Response

from functions.auth import require_token
from functions.bundle import bundle_of
from functions.http import HttpError, not_configured, read_body, require_method
from shared.errors import SecretUnavailable, SettingsError


async def poll_tick(request: Request) -> Response:
    """POST with the operator's token. 200 report; 401; 405; 413; 503 not configured."""
    try:
        require_method(request, "POST")
        await read_body(request)
        bundle = bundle_of(request)
        require_token(request, bundle.settings)
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)
    from shared.models import to_json  # not needed to refuse a stranger

    return Response(to_json(await bundle.tick()), media_type="application/json")
