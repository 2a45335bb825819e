"""The two requests that a worker makes before its SDK is loaded, on the standard library alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import select
import socket
import ssl
import threading
from base64 import b64encode
from collections.abc import Iterator
from typing import Final, NamedTuple
from urllib.parse import quote, unquote, urlencode, urlsplit

LIMIT: Final = 5.0  # seconds for one request and its answer
_LONGEST_ANSWER: Final = 1 << 20  # bytes
_LONGEST_REASON: Final = 160  # characters
_HEADERS: Final = {
    "anthropic-version": "2026-10-21",
    "anthropic-beta": "managed-agents-2026-04-01",
    "accept": "application/json",
    "content-type": "application/json",
    "user-agent": "serverless-hands-worker",
    "x-stainless-helper": "environments-worker",
}


class Unanswered(Exception):
    """No complete answer: the request may or may not have had its effect. The text names the host and the reason."""


class HttpAnswer(NamedTuple):
    status: int
    body: bytes


def proxy_for(url: str) -> str | None:
    """The environment's proxy for a URL, None where it is reached directly."""
    if not any(name.lower().endswith("_proxy") for name in os.environ):
        return None
    import urllib.request  # as long to import as all the rest of this module

    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return None
    proxies = urllib.request.getproxies_environment()
    proxy = proxies.get(parts.scheme) or proxies.get("all")
    if proxy and "://" not in proxy:
        proxy = f"http://{proxy}"
    return proxy


class _Proxy(NamedTuple):
    host: str
    port: int | None
    credentials: str | None  # user and password, in base64


def _proxy(url: str) -> _Proxy | None:
    address = proxy_for(url)
    if address is None:
        return None
    parts = urlsplit(address)
    if parts.scheme != "http" or not parts.hostname:
        raise ValueError("the proxy is not an http:// address")
    if parts.username is None:
        return _Proxy(parts.hostname, parts.port, None)
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return _Proxy(parts.hostname, parts.port, b64encode(pair.encode()).decode())


class WorkItemClient:
    """Calls on one work item. Used by one thread at a time; keeps its connection between calls."""

    def __init__(self, base_url: str, environment_id: str, work_id: str) -> None:
        """Raises ValueError for an address or a proxy that cannot be used."""
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("the base URL is not an http or https address")
        self._secure = parts.scheme == "https"
        self._host = parts.hostname
        self._port = parts.port
        self._context = _context_of_a_directory() if self._secure else None
        self._every_authority = False
        self._proxy = _proxy(base_url)
        item = f"/v1/environments/{quote(environment_id, safe='')}/work/{quote(work_id, safe='')}"
        self._path = parts.path.rstrip("/") + item
        if self._proxy is not None and not self._secure:
            self._path = f"http://{parts.netloc}{self._path}"
        self._connection: http.client.HTTPConnection | None = None

    def heartbeat(self, expected: str, token: str) -> HttpAnswer:
        """Raises Unanswered."""
        return self._post(f"/heartbeat?{urlencode({'expected_last_heartbeat': expected})}", b"", token)

    def force_stop(self, token: str) -> HttpAnswer:
        """Raises Unanswered."""
        return self._post("/stop", json.dumps({"force": True}).encode(), token)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _post(self, path: str, body: bytes, token: str) -> HttpAnswer:
        headers = {**_HEADERS, "authorization": f"Bearer {token}", **self._proxy_authorization(plain=True)}
        try:
            if self._connection is not None and _hung_up(self._connection):
                self.close()
            connection = self._connection = self._connection or self._connect()
            with _cut_after(LIMIT, connection):
                connection.request("POST", self._path + path, body=body, headers=headers)
                response = connection.getresponse()
                answer = HttpAnswer(response.status, response.read(_LONGEST_ANSWER))
                if response.length:  # the rest of it, which no error tells of
                    raise http.client.IncompleteRead(answer.body, response.length)
        except (OSError, http.client.HTTPException) as error:
            self.close()
            if isinstance(error, ssl.SSLCertVerificationError) and not self._every_authority:
                self._every_authority, self._context = True, ssl.create_default_context()
                return self._post(path, body, token)  # nothing of the first request was sent
            raise Unanswered(f"{self._host}: {_reason(error)}") from None
        if response.will_close or not response.isclosed():
            self.close()
        return answer

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._host, self._port
        if self._proxy is not None:
            host, port = self._proxy.host, self._proxy.port
        connection = (
            http.client.HTTPSConnection(host, port, timeout=LIMIT, context=self._context)
            if self._secure
            else http.client.HTTPConnection(host, port, timeout=LIMIT)
        )
        if self._proxy is not None and self._secure:
            connection.set_tunnel(self._host, self._port, headers=self._proxy_authorization(plain=False))
        return connection

    def _proxy_authorization(self, *, plain: bool) -> dict[str, str]:
        """A proxy's user and password: with each request over plain HTTP, with the tunnel's opening else."""
        if self._proxy is None or self._proxy.credentials is None or plain is self._secure:
            return {}
        return {"proxy-authorization": f"Basic {self._proxy.credentials}"}


def _context_of_a_directory() -> ssl.SSLContext:
    """Trusts what the system's directory of authorities holds: OpenSSL looks one up there when it meets it, while
    reading the file of all of them is a quarter of this program's start. An authority that is in the file alone costs
    a second handshake."""
    directory = ssl.get_default_verify_paths().capath
    return ssl.create_default_context(capath=directory) if directory else ssl.create_default_context()


def _reason(error: OSError | http.client.HTTPException) -> str:
    """Of one printable line; what the other end sent may be part of it."""
    said = (error.strerror if isinstance(error, OSError) else None) or str(error)
    text = "".join(letter if letter.isprintable() else " " for letter in said)[:_LONGEST_REASON].strip()
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _hung_up(connection: http.client.HTTPConnection) -> bool:
    """An idle connection with something to read has been closed by the server. Asked before each use, since a
    request on it would go out and leave in doubt whether it arrived."""
    return connection.sock is None or bool(select.select([connection.sock], [], [], 0)[0])


@contextlib.contextmanager
def _cut_after(seconds: float, connection: http.client.HTTPConnection) -> Iterator[None]:
    """A socket's own time-out starts again with each byte; this one does not."""

    def cut() -> None:
        with contextlib.suppress(OSError, AttributeError):
            # The plain socket's method: the one of a TLS socket takes its layers apart under the reader's feet.
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    timer = threading.Timer(seconds, cut)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
