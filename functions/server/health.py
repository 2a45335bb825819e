"""Whether a server lives, is ready and fares well: `/healthz`, `/readyz`, `/status` and `/metrics`.

In a sandbox (SERVER_SANDBOX) only the webhook is open without a token: whatever the public address shows to
unauthenticated callers is shown to everybody, so `/healthz` and `/readyz` are closed there too. `/status` and
`/metrics` are closed everywhere.
"""

from __future__ import annotations

import hmac

from starlette.requests import Request
from starlette.responses import Response

from functions.auth import require_token
from functions.requests import HttpError, json_response, not_configured
from functions.server.lifecycle import ServerLifecycle
from shared import otel
from shared.errors import SecretUnavailable, SettingsError
from shared.owner_keys import HEADER, PARAMETER, owner_key


def lifecycle_of(request: Request) -> ServerLifecycle:
    lifecycle = request.scope["state"]["lifecycle"]
    if not isinstance(lifecycle, ServerLifecycle):
        raise TypeError("the lifespan state's serving is not a Serving")
    return lifecycle


async def healthz(request: Request) -> Response:
    """Alive: answers while the SDKs are still being imported."""
    return await _refusal(request, health=True) or json_response({"ok": True})


async def readyz(request: Request) -> Response:
    """Ready: the SDKs are imported. 503 until then."""
    refusal = await _refusal(request)
    if refusal is not None:
        return refusal
    ready = lifecycle_of(request).preload.done()
    return json_response({"ready": ready}, status=200 if ready else 503)


async def status(request: Request) -> Response:
    """How this server fares, for its owner: counters since its start. 401 without the token or the owner's key."""
    return await _refusal(request, always=True) or json_response(lifecycle_of(request).report())


async def metrics(request: Request) -> Response:
    """In Prometheus' text format, for whoever has the token (OTEL_METRICS_EXPORTER=prometheus). 401; 404 where it is
    off."""
    refusal = await _refusal(request, always=True)
    if refusal is not None:
        return refusal
    told = otel.prometheus_text()
    if told is None:
        message = "set OTEL_METRICS_EXPORTER=prometheus, and install the extra: serverless-hands[otel]"
        return HttpError(404, "not_configured", message).response()
    text, media_type = told
    return Response(text, headers={"content-type": media_type, "cache-control": "no-store"})


async def _refusal(request: Request, *, health: bool = False, always: bool = False) -> Response | None:
    """None for whoever may look: everybody on a host, the owner and the supervisor in a sandbox."""
    settings = lifecycle_of(request).service.settings
    if not settings.server_sandbox and not always:
        return None
    try:
        tensorlake_key = await settings.tensorlake_key.areveal()
        if _equal(request.headers.get(HEADER, ""), owner_key(tensorlake_key, "status")):
            return None
        if health and _equal(request.query_params.get(PARAMETER, ""), owner_key(tensorlake_key, "health")):
            return None
        await require_token(request, settings)
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)
    return None


def _equal(shown: str, key: str) -> bool:
    return hmac.compare_digest(shown.encode(errors="surrogateescape"), key.encode())
