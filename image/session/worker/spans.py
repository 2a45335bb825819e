"""What the worker did, as spans of the trace that its claim belongs to, sent by OTLP over HTTP as JSON.

Where the claim names no collector nothing is kept and nothing is sent. No credential goes with the spans, and an
attribute is an id, a tool's name or the kind of an error: never an input, an output or a text. The agent's programs
can reach the same collector, so what arrives there from a sandbox is a hint, and no proof.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
import secrets
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import httpx2

from image.session.claim import Claim

_TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-01")
_MOST: Final = 512  # spans that wait to be sent; further ones are dropped
_EVERY: Final = 5.0  # seconds
_SECONDS: Final = 3.0  # for one sending
_LONGEST: Final = 200
_INTERNAL: Final = 1
_ERROR: Final = 2

log = logging.getLogger(__name__)


class Spans:
    """One worker's. Made on any thread; `close` sends what is left."""

    def __init__(self, claim: Claim) -> None:
        found = _TRACEPARENT.fullmatch(claim.traceparent or "")
        self._url = f"{claim.otlp_url.rstrip('/')}/v1/traces" if found and claim.otlp_url else ""
        self._trace, self._cause = (found[1], found[2]) if found else ("", "")
        self._known = {
            "hands.environment.id": claim.environment_id,
            "hands.work.id": claim.work_id,
            "gen_ai.conversation.id": claim.session_id,
        }
        self._own = secrets.token_hex(8)
        self._began = time.time_ns()
        self._waiting: list[dict[str, Any]] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None

    @contextlib.contextmanager
    def span(self, name: str, attributes: dict[str, str]) -> Iterator[dict[str, str]]:
        """What is put into the mapping until its end is told, too; `error.type` makes it a failure."""
        if not self._url:
            yield {}
            return
        told, began = dict(attributes), time.time_ns()
        try:
            yield told
        except BaseException as error:
            told["error.type"] = type(error).__name__
            raise
        finally:
            self._add(name, secrets.token_hex(8), self._own, began, told)

    def close(self, end: str) -> None:
        """`end`: the name of the worker's exit status."""
        if not self._url:
            return
        self._add("worker", self._own, self._cause, self._began, {"hands.outcome": end})
        self._over.set()
        if self._thread is not None:
            self._thread.join(_SECONDS + 1)

    def _add(self, name: str, span: str, parent: str, began: int, attributes: dict[str, str]) -> None:
        made: dict[str, Any] = {
            "traceId": self._trace,
            "spanId": span,
            "parentSpanId": parent,
            "name": name[:_LONGEST],
            "kind": _INTERNAL,
            "startTimeUnixNano": str(began),
            "endTimeUnixNano": str(time.time_ns()),
            "attributes": _attributes(self._known | attributes),
        }
        if "error.type" in attributes:
            made["status"] = {"code": _ERROR}
        with self._lock:
            if len(self._waiting) < _MOST:
                self._waiting.append(made)
            if self._thread is None:
                self._thread = threading.Thread(target=self._send_all, daemon=True)
                self._thread.start()

    def _send_all(self) -> None:
        over = False
        while not over:
            over = self._over.wait(_EVERY)
            with self._lock:
                sending, self._waiting = self._waiting, []
            if sending:
                self._send(sending)

    def _send(self, spans: list[dict[str, Any]]) -> None:
        scope = {"scope": {"name": "serverless-hands"}, "spans": spans}
        resource = {"attributes": _attributes({"service.name": "serverless-hands-worker"})}
        body = json.dumps({"resourceSpans": [{"resource": resource, "scopeSpans": [scope]}]}).encode()
        try:
            httpx2.post(self._url, content=body, headers={"content-type": "application/json"}, timeout=_SECONDS)
        except (httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:  # a lost span costs no work
            log.warning("spans.not_sent count=%d error=%s", len(spans), type(error).__name__)


def _attributes(told: dict[str, str]) -> list[dict[str, Any]]:
    return [{"key": name, "value": {"stringValue": value[:_LONGEST]}} for name, value in told.items()]
