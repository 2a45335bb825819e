"""A small stand-in for the service: one work item and one session, with a script of faults for the heartbeats.

It keeps the contract's rules for that item (claude 3.2 and 3.3: string-exact comparison, 412 with the current state)
and records every request in order. Faults say what becomes of a beat: its effect, its answer, or both.
"""

from __future__ import annotations

import contextlib
import enum
import json
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast
from urllib.parse import parse_qs, urlsplit

ENVIRONMENT = "env_01Test"
WORK = "work_01Test"
SESSION = "sesn_01TestAbc"


class BeatFault(enum.Enum):
    NONE = enum.auto()
    ANSWER_LOST = enum.auto()  # takes effect, then the connection closes
    REQUEST_LOST = enum.auto()  # no effect, the connection closes
    ERROR = enum.auto()  # 503 without effect
    ERROR_AFTER = enum.auto()  # takes effect, then 503
    GARBAGE_AFTER = enum.auto()  # takes effect, then 200 with something that is not JSON
    SLOW_AFTER = enum.auto()  # takes effect, then silence for longer than anybody waits
    REFUSED = enum.auto()  # 401
    STOLEN = enum.auto()  # somebody else's beat has just succeeded


@dataclass
class Beat:
    expected: str
    token: str
    status: int | None
    at: float


@dataclass
class WorkService:
    """Reads and writes under `lock`."""

    url: str = ""
    state: str = "queued"
    last_heartbeat: str | None = None
    ttl: float = 300
    faults: list[BeatFault] = field(default_factory=list)
    fault_for_ever: BeatFault | None = None
    refused_tokens: set[str] = field(default_factory=set)
    tool_calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    resources: list[dict[str, Any]] = field(default_factory=list)
    beats: list[Beat] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    results: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    history_failures: int = 0  # so many reads of the events are answered 500
    drip: float | None = None  # seconds between the bytes of an answer
    targets: list[str] = field(default_factory=list)  # request targets as sent
    proxy_credentials: str | None = None
    connections: list[socket.socket] = field(default_factory=list)
    lock: threading.Condition = field(default_factory=threading.Condition)
    _counter: int = 0

    def ack(self) -> None:
        with self.lock:
            if self.state == "queued":
                self.state = "starting"

    def requeue(self) -> None:
        """The lease has lapsed."""
        with self.lock:
            self.state, self.last_heartbeat = "queued", None

    def begin_session(self) -> None:
        with self.lock:
            for number, (name, arguments) in enumerate(self.tool_calls):
                use = {"type": "agent.tool_use", "id": f"sevt_use{number}", "name": name, "input": arguments}
                self.events.append({**use, "processed_at": _now(), "evaluated_permission": "allow"})
            self._idle_if_answered()

    def wait_for(self, what: str, count: int = 1, within: float = 90.0) -> None:
        """Waits until `count` requests whose line contains `what` have been answered."""
        deadline = time.monotonic() + within
        with self.lock:
            while sum(what in line for line in self.requests) < count:
                left = deadline - time.monotonic()
                assert left > 0, f"no {what} within {within} s; seen {self.requests}"
                self.lock.wait(left)

    def hang_up(self) -> None:
        """Closes every connection that is open, as a server does with idle ones."""
        for connection in self.connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        time.sleep(0.1)

    def stops(self) -> int:
        with self.lock:
            return sum(line.endswith("/stop") for line in self.requests)

    def beat(self, expected: str, token: str) -> tuple[int | None, Any, float]:
        """Status (None closes the connection), body, and seconds to wait before it is sent."""
        with self.lock:
            fault = self.faults.pop(0) if self.faults else self.fault_for_ever or BeatFault.NONE
            status: int | None
            status, body = self._judge(expected, token, fault)
            delay = 0.0
            if fault in (BeatFault.ANSWER_LOST, BeatFault.REQUEST_LOST):
                status = None
            elif fault in (BeatFault.ERROR, BeatFault.ERROR_AFTER):
                status, body = 503, {"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}
            elif fault is BeatFault.GARBAGE_AFTER:
                body = "<html>"
            elif fault is BeatFault.SLOW_AFTER:
                delay = 14.0
            self.beats.append(Beat(expected, token, status, time.monotonic()))
            return status, body, delay

    def _judge(self, expected: str, token: str, fault: BeatFault) -> tuple[int, Any]:
        if fault is BeatFault.REFUSED or token in self.refused_tokens:
            return 401, _error("authentication_error")
        if fault in (BeatFault.REQUEST_LOST, BeatFault.ERROR):
            return 503, None
        if fault is BeatFault.STOLEN:
            self.state, self.last_heartbeat = "active", self._stamp()
        current = {
            "state": self.state,
            "last_heartbeat": self.last_heartbeat,
            "lease_extended": False,
            "ttl_seconds": self.ttl,
        }
        if self.state in ("stopping", "stopped"):
            return 200, {"type": "work_heartbeat", **current, "last_heartbeat": self.last_heartbeat or ""}
        known = self.last_heartbeat or "NO_HEARTBEAT"
        if self.state == "queued" or expected != known:
            body = _error("invalid_request_error")
            body["error"]["details"] = {"error_code": "heartbeat_precondition_failed", "current_state": current}
            return 412, body
        self.state, self.last_heartbeat = "active", self._stamp()
        beat = {"type": "work_heartbeat", "state": "active", "lease_extended": True}
        return 200, {**beat, "last_heartbeat": self.last_heartbeat, "ttl_seconds": self.ttl}

    def post_event(self, event: dict[str, Any]) -> None:
        with self.lock:
            self.results.append(event)
            self.events.append({**event, "id": f"sevt_result{len(self.results)}", "processed_at": _now()})
            self._idle_if_answered()

    def session(self) -> dict[str, Any]:
        agent = {"id": "agent_1", "type": "agent", "version": 1, "name": "a", "model": {"id": "m"}, "skills": []}
        times = {"created_at": _now(), "updated_at": _now(), "archived_at": None}
        return {
            "id": SESSION,
            "type": "session",
            "status": "running",
            "environment_id": ENVIRONMENT,
            "metadata": {},
            "agent": {**agent, "tools": [], "mcp_servers": []},
            "resources": self.resources,
            "vault_ids": [],
            **times,
        }

    def _idle_if_answered(self) -> None:
        if len(self.results) >= len(self.tool_calls):
            reason = {"type": "end_turn"}
            self.events.append(
                {"type": "session.status_idle", "id": f"sevt_idle{len(self.events)}", "stop_reason": reason}
            )
        self.lock.notify_all()

    def _stamp(self) -> str:
        self._counter += 1
        return f"2026-10-20T09:00:{self._counter:02d}.5+00:00"  # a plus sign must survive the query


class _ServiceHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    service: WorkService

    def log_message(self, format: str, *args: object) -> None:
        return None

    def setup(self) -> None:
        super().setup()
        self.connection.settimeout(30)
        self.service.connections.append(self.connection)

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.endswith("/events/stream"):
            self._stream()
        elif parts.path.endswith("/events"):
            with self.service.lock:
                page, fails = list(self.service.events), self.service.history_failures > 0
                self.service.history_failures -= fails
            if fails:
                self._answer(500, _error("api_error"))
            else:
                self._answer(200, {"data": page, "next_page": None})
        elif parts.path == f"/v1/sessions/{SESSION}":
            self._answer(200, self.service.session())
        elif "/memories" in parts.path:
            self._answer(200, {"data": [], "next_page": None})
        else:
            self._answer(404, _error("not_found_error"))
        self._record()

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        self.service.targets.append(self.path)
        self.service.proxy_credentials = self.headers.get("proxy-authorization")
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        token = (self.headers.get("authorization") or "").removeprefix("Bearer ")
        if parts.path.endswith("/heartbeat"):
            expected = parse_qs(parts.query)["expected_last_heartbeat"][0]
            if f"/{WORK}/" not in parts.path:  # another item, which nobody ever acks
                self._answer(*_unacked())
                self._record()
                return
            status, answer, delay = self.service.beat(expected, token)
            time.sleep(delay)
            self._answer(status, answer)
        elif parts.path.endswith("/stop"):
            with self.service.lock:
                self.service.state = "stopped"
            self._answer(200, {"id": WORK, "type": "work", "state": "stopped"})
        elif parts.path.endswith("/events"):
            sent = json.loads(body)["events"]
            for event in sent:
                self.service.post_event(event)
            self._answer(200, {"data": sent})
        else:
            self._answer(404, _error("not_found_error"))
        self._record()

    def _record(self) -> None:
        with self.service.lock:
            self.service.requests.append(f"{self.command} {urlsplit(self.path).path}")
            self.service.lock.notify_all()

    def _answer(self, status: int | None, body: Any) -> None:
        if status is None:
            self.close_connection = True
            return
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        if self.service.drip is None:
            self.wfile.write(data)
            return
        with contextlib.suppress(OSError):
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(self.service.drip)

    def _stream(self) -> None:
        self._record()
        self.close_connection = True
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.end_headers()
        seen = len(self.service.events)
        with contextlib.suppress(OSError):
            while not cast(_ServiceServer, self.server).closing:
                with self.service.lock:
                    self.service.lock.wait(2)  # each ping costs a worker milliseconds of a core
                    fresh, seen = self.service.events[seen:], len(self.service.events)
                frames = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in fresh]
                self.wfile.write("".join(frames or ["event: ping\ndata: {}\n\n"]).encode())


class _ServiceServer(ThreadingHTTPServer):
    daemon_threads = True
    closing = False

    def handle_error(self, request: object, client_address: object) -> None:
        return None  # a worker that is killed hangs up


@contextlib.contextmanager
def running(*, certificate: str | None = None, **settings: Any) -> Iterator[WorkService]:
    """certificate: path of a file with a key and a certificate, for https."""
    service = WorkService(**settings)
    handler = type("Handler", (_ServiceHandler,), {"service": service})
    server = _ServiceServer(("127.0.0.1", 0), handler)
    if certificate is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    service.url = f"http{'s' if certificate else ''}://127.0.0.1:{server.server_address[1]}"
    service.begin_session()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield service
    finally:
        server.closing = True
        with service.lock:
            service.lock.notify_all()
        server.shutdown()
        server.server_close()
        thread.join()


def _unacked() -> tuple[int, Any]:
    body = _error("invalid_request_error")
    state = {"state": "queued", "last_heartbeat": None, "lease_extended": False, "ttl_seconds": 300}
    body["error"]["details"] = {"error_code": "heartbeat_precondition_failed", "current_state": state}
    return 412, body


def _error(kind: str) -> dict[str, Any]:
    return {"type": "error", "error": {"type": kind, "message": "told so"}, "request_id": "req_1"}


def _now() -> str:
    return "2026-10-20T09:00:00Z"
