"""Anthropic's webhook: something runs, so drain the queue; or a session is over, so clean up after it.

A delivery is a wake-up hint and nothing more: it may come twice, late, out of order or never
(docs/wire/anthropic.md#93-semantics). Once the signature is right the answer is 200, whatever the drain meets: what it
could not do is still on the queue, the sender's retries would fall inside R and poll nothing, and a run of errors makes
the sender disable the endpoint.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Sequence

from starlette.requests import Request
from starlette.responses import Response

from functions.requests import HttpError, json_response, not_configured, require_method
from functions.signatures import is_signed, require_headers, wrong_signature
from functions.state import FunctionsState, deadline_of, state_of
from shared.deadline import Deadline
from shared.errors import SecretUnavailable, SettingsError

log = logging.getLogger(__name__)


async def on_run_started(request: Request) -> Response:
    """POST, Standard Webhooks. 200 report; 400 not an event; 401 bad signature; 405; 408; 413; 503 no signing key, or
    overloaded. A delivery that came before is answered 200 and does nothing."""
    try:
        require_method(request, "POST")
        state = state_of(request)
        if not state.settings.signing_keys:
            raise SettingsError("ANTHROPIC_WEBHOOK_SIGNING_KEY is not set")
        require_headers(request.headers, time.time(), state.stale_webhooks)
        body = await state.bodies.read(request, proven=False)
        if not await is_signed(body, request.headers, state.settings.signing_keys):
            raise wrong_signature()
        from functions.webhook_events import RunStarted, SessionOver, read_event  # not needed to refuse a caller

        event = read_event(body)
    except HttpError as error:
        return error.response()
    except (SettingsError, SecretUnavailable) as error:
        return not_configured(error)
    webhook_id = request.headers["webhook-id"]
    if not state.seen_webhooks.is_new(webhook_id):
        return json_response({"ignored": "repeated"})
    enqueues = state.settings.drain_mode == "enqueue"
    match event:
        case RunStarted() if enqueues:
            return await _enqueued(state, webhook_id, "drains")
        case RunStarted():
            return await _drained(state, deadline_of(request))
        case SessionOver(session_id) if enqueues:
            return await _enqueued(state, webhook_id, "reconciled", session_id)
        case SessionOver(session_id):
            return await _cleaned_up(state, session_id, deadline_of(request))
        case other:
            return json_response({"ignored": other.kind})


async def _drained(state: FunctionsState, deadline: Deadline | None) -> Response:
    if state.background:
        state.service.wake(deadline)
        return json_response({"drains": "begun"})
    return await _answered(state.service.drain(deadline, patience=_patience(state, deadline)), "drains")


async def _cleaned_up(state: FunctionsState, session_id: str, deadline: Deadline | None) -> Response:
    patience = 0.0 if state.background else _patience(state, deadline)
    if not patience:
        state.service.end_session_later(session_id)
        return json_response({"reconciled": "begun"})
    return await _answered(state.service.end_session(session_id, deadline, patience=patience), "reconciled")


def _patience(state: FunctionsState, deadline: Deadline | None) -> float | None:
    """How long the sender is kept waiting. Where the runtime ends this process's work with the answer, the whole time
    that it leaves: whatever goes on behind an answer is frozen there."""
    return state.settings.drain.inline if deadline is None else None


async def _answered(work: Awaitable[Sequence[object]], name: str) -> Response:
    try:
        reports = await work
    except Exception:  # the edge: the sender must see 200 (see above)
        log.exception("webhook.bug")
        return json_response({name: [], "error": "a bug: the log tells which"})
    from shared.reports import to_json  # not needed to refuse a caller

    return Response(to_json({name: reports}), media_type="application/json")


async def _enqueued(state: FunctionsState, webhook_id: str, name: str, over: str = "") -> Response:
    """Somebody else's work from here on: a drain, or what follows the end of the session `over`. What could not be
    handed on is found by the next tick."""
    from functions.invocations import Invocation, NotEnqueued, drain_now, enqueue  # not needed to refuse a caller

    invocation = Invocation("session_over", over) if over else drain_now()
    try:
        await enqueue(state.settings.enqueue_to, invocation)
    except NotEnqueued as error:
        log.error("webhook.not_enqueued error=%s", error)
        state.seen_webhooks.forget(webhook_id)
        return json_response({name: [], "error": "NotEnqueued"})
    return json_response({name: "enqueued"})
