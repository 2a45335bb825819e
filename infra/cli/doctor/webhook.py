"""The webhook's address as Anthropic meets it: public, certified, and a judge of signatures.

The probe is an event of a type that nobody sends: the function ignores it with 200 (functions/on_run_started.py), so
nothing wakes up. A second one, signed with another key, must meet 401.
"""

from __future__ import annotations

import asyncio
import base64
import ipaddress
import json
import secrets
import socket
import ssl
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from infra.cli.doctor.context import DoctorContext, account_of, http_client, is_loopback
from infra.cli.doctor.findings import Say, error, info, ok, warning
from shared.errors import SecretUnavailable

if TYPE_CHECKING:
    import httpx2

PROBE_TYPE: Final = "hands.doctor_probe"
_LONGEST_REASON: Final = 120


async def check_webhook(context: DoctorContext, say: Say) -> None:
    """Where no address was given it is the server sandbox's, which this wakes as a webhook does."""
    url = context.url or await _server_url(context)
    if not url:
        say(info("HANDS002", "the webhook was not looked at: give its address as WEBHOOK_URL (or --url)"))
        return
    if not await _is_public(context, url, say):
        return
    try:
        keys = [key for secret in context.settings.signing_keys for key in secret.reveal().replace(",", " ").split()]
    except SecretUnavailable as problem:
        say(error("HANDS101", str(problem)))
        return
    forged = await _deliver(url, _random_key(), say)
    if forged is None:
        return
    say(ok("HANDS502", "the address answers" + (", with a valid certificate" if url.startswith("https") else "")))
    if forged.status_code == 503:
        say(error("HANDS503", "it answers 503: the server there has no usable signing key or lacks a setting"))
        return
    if forged.is_success:
        say(error("HANDS504", f"an event with another key's signature is answered {forged.status_code}"))
    elif forged.status_code == 401:
        say(ok("HANDS504", "a wrongly signed event is answered 401"))
    if not keys:
        say(info("HANDS002", "no signed probe was sent: ANTHROPIC_WEBHOOK_SIGNING_KEY is not set"))
        return
    for place, key in enumerate(keys, 1):
        answer = await _deliver(url, key, say)
        if answer is not None:
            _judge(answer, f"key {place} of {len(keys)}: " if len(keys) > 1 else "", say)


async def _server_url(context: DoctorContext) -> str:
    """ "" where there is none, or where that cannot be told, which HANDS203 and HANDS304 say."""
    from tensorlake.sandbox import SandboxError

    account = account_of(context)
    try:
        found = await asyncio.to_thread(account.find)
    except SandboxError:
        return ""
    return account.url(found) if found is not None else ""


def _judge(answer: httpx2.Response, which: str, say: Say) -> None:
    status = answer.status_code
    if status == 200 and PROBE_TYPE in answer.text:
        say(ok("HANDS503", f"{which}a signed event is answered 200"))
    elif answer.is_success:
        say(warning("HANDS503", f"{which}a signed event is answered {status}, but not as on_run_started answers"))
    elif answer.is_redirect:
        say(error("HANDS503", f"{which}a signed event meets a redirect ({status}), which disables the endpoint"))
    elif status == 401:
        say(error("HANDS503", f"{which}a signed event is answered 401: the server there has another signing key"))
    else:
        say(error("HANDS503", f"{which}a signed event is answered {status}"))


async def _is_public(context: DoctorContext, url: str, say: Say) -> bool:
    """Whether to go on: an address that a delivery would never be sent to is not probed, but for this machine's own
    beside offline services."""
    try:
        parts = urlsplit(url)
        host, port, scheme = parts.hostname or "", parts.port, parts.scheme
    except ValueError:
        host, port, scheme = "", None, ""
    if scheme not in ("http", "https") or not host or parts.username:
        say(error("HANDS501", "the address is not an http(s) URL without a user"))
        return False
    if context.offline and is_loopback(url):
        say(
            info(
                "HANDS501", f"{scheme} on this machine is right for the offline platform; Anthropic needs public https"
            )
        )
        return True
    if scheme != "https":
        say(error("HANDS501", "the address is plain http"))
        return False
    try:
        rows = await asyncio.get_running_loop().getaddrinfo(host, port or 443, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        say(error("HANDS501", f"{host} does not resolve from here"))
        return False
    private = sorted({str(row[4][0]) for row in rows if not _is_global(str(row[4][0]))})
    if private:
        say(error("HANDS501", f"{host} resolves to {', '.join(private)}, which is not public"))
        return context.offline
    say(ok("HANDS501", f"{host} is https and public"))
    return True


def _is_global(address: str) -> bool:
    return ipaddress.ip_address(address.partition("%")[0]).is_global


async def _deliver(url: str, key: str, say: Say) -> httpx2.Response | None:
    """None where nothing answered, which was said."""
    import httpx2

    try:
        body, headers = delivery(key)
    except ValueError:
        say(error("HANDS101", "ANTHROPIC_WEBHOOK_SIGNING_KEY must be whsec_ and base64, as the Console shows it"))
        return None
    try:
        async with http_client(url) as client:
            return await client.post(url, content=body, headers=headers)
    except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
        say(error("HANDS502", f"nothing answers there: {_why(problem)}"))
        return None


def delivery(key: str) -> tuple[bytes, dict[str, str]]:
    """A probe as Anthropic would sign it (docs/wire/anthropic.md#92-signature). Raises ValueError for a key that is
    none."""
    from standardwebhooks.webhooks import Webhook

    now = datetime.now(UTC)
    identity = f"whe_doctor{secrets.token_hex(8)}"
    data = {"type": PROBE_TYPE, "id": "sesn_doctor", "organization_id": "", "workspace_id": ""}
    event = {"type": "event", "id": identity, "created_at": now.isoformat(timespec="seconds"), "data": data}
    body = json.dumps(event)
    headers = {
        "content-type": "application/json",
        "webhook-id": identity,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(key).sign(identity, now, body),
    }
    return body.encode(), headers


def _random_key() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


def _why(problem: BaseException) -> str:
    """The certificate's trouble in OpenSSL's words; of anything else the kind alone."""
    cause: BaseException | None = problem
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not valid: {cause.verify_message}"[:_LONGEST_REASON]
        cause = cause.__cause__ or cause.__context__
    if "CERTIFICATE_VERIFY_FAILED" in str(problem):
        return "its certificate is not valid"
    return type(problem).__name__
