"""A service that did not answer, in words for people: which host, through which proxy, why, and what to do.

The one place of these words: adapters put them into the reason of an `NoAnswer` outcome, commands and doctor show
them. A refusal is another thing: it has a status, and the service's own message. A proxy is told by the name of its
variable, since its address may hold a password. tests/shared/test_unanswered.py
"""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Iterator
from urllib.parse import SplitResult, urlsplit


def unanswered(error: BaseException, url: str = "") -> str:
    """`url`: what was called, where the error does not know it."""
    untrusted = certificate_advice(error)
    if untrusted is not None:
        return untrusted
    where = _parts(_called(error) or url)
    host = where.hostname or "the service"
    proxy = _proxy_variable(where)
    told = f"no answer from {_shown(where) or host}"
    if proxy:
        return f"{told} through the proxy in {proxy} ({_why(error)}): check that proxy, or unset {proxy}"
    if host in ("127.0.0.1", "localhost", "::1"):
        return f"{told} ({_why(error)}): does it run, and is that its address?"
    return f"{told} ({_why(error)}): check the network; where it needs a proxy, set HTTPS_PROXY"


def was_not_sent(error: Exception) -> bool:
    """Where Tensorlake's SDK raises one class for all, and only its HTTP library's words tell that nothing answered."""
    return "error sending request" in str(error)


def certificate_advice(error: BaseException | None) -> str | None:
    """A line for an error whose cause is a certificate that is not trusted; None for any other."""
    if any(isinstance(each, ssl.SSLCertVerificationError) for each in _causes(error)):
        return (
            "the certificate of the service is not trusted here. Behind a company's proxy that reads TLS, "
            "set SSL_CERT_FILE to its certificates; make doctor checks both services"
        )
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, and what it was raised from, the outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        grouped = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else None  # one of several addresses
        error = error.__cause__ or error.__context__ or grouped


def _called(error: BaseException) -> str:
    """The URL of the request that failed; "" where no error in the chain has one. Both HTTP libraries raise
    RuntimeError for an error that was made without a request."""
    for each in _causes(error):
        try:
            found = getattr(each, "request", None)
        except RuntimeError:
            continue
        if found is not None and hasattr(found, "url"):
            return str(found.url)
    return ""


def _why(error: BaseException) -> str:
    causes = list(_causes(error))
    if any(isinstance(each, socket.gaierror) for each in causes):
        return "its name is not found"
    if any(isinstance(each, ConnectionRefusedError) for each in causes):
        return "connection refused"
    # The SDK's word for all of them tells less than the HTTP library's beneath it.
    told = [each for each in causes if type(each).__name__ != "APIConnectionError"]
    return type((told or causes)[0]).__name__


def _parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port, parts.hostname
    except ValueError:
        return urlsplit("")
    return parts


def _shown(where: SplitResult) -> str:
    """Host and port alone: an address may hold a password."""
    host = where.hostname or ""
    host = f"[{host}]" if ":" in host else host
    return f"{host}:{where.port}" if host and where.port is not None else host


def _proxy_variable(where: SplitResult) -> str:
    """The variable whose proxy a call to there takes; "" for none. Lower case wins, as in the standard library."""
    from urllib.request import proxy_bypass

    if not where.hostname or any(proxy_bypass(each) for each in (where.hostname, _shown(where))):
        return ""
    names = (f"{where.scheme}_proxy", "all_proxy")
    return next((name for low in names for name in (low, low.upper()) if os.environ.get(name, "").strip()), "")
