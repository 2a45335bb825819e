"""Cloud Run's front end, as far as IAM goes: who shows no valid identity is turned away, what passes is handed on.

The signature is taken off what was checked (functions/cloud_run_iam.py). A stand-in: it was written after what is
documented, not measured against Google.
"""

from __future__ import annotations

import base64
import contextlib
import json
from collections.abc import Iterator

import httpx2

from tests.support.http_stub import StubHandler, stub_server


def identity(email: str, signature: str) -> str:
    """An ID token in the form of Google's."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    return f"{part({'alg': 'RS256'})}.{part({'email': email, 'email_verified': True})}.{signature}"


class FrontEnd:
    """`behind` is set once the service runs: its address is known only then, and ours must be known before."""

    behind = ""
    url = ""


@contextlib.contextmanager
def front_end(invoker: str) -> Iterator[FrontEnd]:
    """Lets this one account in, which shows `identity(invoker, "signed")`."""
    front = FrontEnd()
    valid = f"Bearer {identity(invoker, 'signed')}"

    class Handler(StubHandler):
        def do_GET(self) -> None:
            self._pass()

        def do_POST(self) -> None:
            self._pass()

        def _pass(self) -> None:
            body = self.body()
            if self.headers.get("authorization") != valid:
                self.answer(403)
                return
            headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "host"}
            headers["authorization"] = valid.replace(".signed", ".SIGNATURE_REMOVED_BY_GOOGLE")
            answer = httpx2.request(
                self.command, front.behind + self.path, content=body, headers=headers, timeout=90, trust_env=False
            )
            self.answer(answer.status_code, answer.content)

    with stub_server(Handler) as front.url:
        yield front
