"""Lambda's side of the runtime API, on loopback: hands events to the real runtime client and takes its answers.

`LambdaRuntime` starts `python -m awslambdaric HANDLER` on an unpacked bundle, as Lambda would: nothing of this checkout
is on its path, and it sees no variable that it was not given.

`Invoke` is the API by which one function invokes another without waiting for it.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import unquote, urlsplit

from tests.support.checkout import ROOT
from tests.support.preloaded import Preloaded

SITE_PACKAGES: Final = next(path for path in sys.path if path.endswith("site-packages"))


class InvocationFailed(Exception):
    """The function raised. `kind` is the type of the error, as Lambda would count it."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"{kind}: {message}")
        self.kind = kind


_INTERPRETER: Final = f"import sys; sys.path.append({SITE_PACKAGES!r})"
_FORK: Final = f"import sys; sys.path[:] = ['', *(each for each in sys.path[1:] if each != {str(ROOT)!r})]"
"""The bundle comes first on the path; behind it are the runtime's own packages, as Lambda's boto3 is."""


class LambdaRuntime:
    """One Lambda process with one handler. `fresh`: in an interpreter that has imported nothing; else it is forked from
    a process that has the SDK (tests/support/preloaded.py)."""

    def __init__(
        self, code: Path, handler: str, environ: Mapping[str, str], timeout: float = 150.0, *, fresh: bool = False
    ) -> None:
        self._code = code
        self._handler = handler
        self._environ = environ
        self._timeout = timeout
        self._fresh = fresh
        self._events: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._answers: queue.Queue[tuple[str, bytes]] = queue.Queue()
        self._held = contextlib.ExitStack()

    def __enter__(self) -> Self:
        self._output = self._held.enter_context(tempfile.TemporaryFile())
        self._server = _RuntimeServer(("127.0.0.1", 0), _handler(self))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        host, port = self._server.server_address[:2]
        environ = {
            "AWS_LAMBDA_RUNTIME_API": f"{host!s}:{port}",
            "AWS_REGION": "eu-west-1",
            "AWS_DEFAULT_REGION": "eu-west-1",
            "AWS_LAMBDA_FUNCTION_NAME": "under-test",
            "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1024",
            "LAMBDA_TASK_ROOT": str(self._code),
            "PYTHONPATH": str(self._code),
            "PATH": "/usr/bin:/bin",
            **self._environ,
        }
        serve = f"from awslambdaric.__main__ import main; main(['bootstrap', {self._handler!r}])"
        options: dict[str, Any] = {
            "cwd": self._code,
            "env": environ,
            "stdout": self._output,
            "stderr": subprocess.STDOUT,
        }
        self._process: subprocess.Popen[bytes] = (
            subprocess.Popen([sys.executable, "-S", "-s", "-c", f"{_INTERPRETER}; {serve}"], **options)
            if self._fresh
            else Preloaded(["-c", f"{_FORK}; {serve}"], **options)
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._server.shutdown()
        self._server.server_close()
        self._held.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def output(self) -> str:
        """What the function has written so far."""
        self._output.seek(0)
        return self._output.read().decode(errors="replace")

    def invoke(self, event: object) -> Any:
        """The answer, or raises InvocationFailed."""
        self._events.put((str(uuid.uuid4()), json.dumps(event).encode()))
        try:
            kind, body = self._answers.get(timeout=self._timeout + 30)
        except queue.Empty:
            raise AssertionError(f"no answer; the process wrote:\n{self.output()}") from None
        answer = json.loads(body)
        if kind != "response":
            raise InvocationFailed(answer.get("errorType", kind), f"{answer.get('errorMessage')}\n{self.output()}")
        return answer

    def next(self) -> tuple[str, bytes, int]:
        request_id, event = self._events.get()
        return request_id, event, int((time.time() + self._timeout) * 1000)

    def answered(self, kind: str, body: bytes) -> None:
        self._answers.put((kind, body))


class Invoke:
    """Takes invocations of type Event, as Lambda does: 202 at once. `next()` is the oldest that nobody took yet."""

    def __init__(self) -> None:
        self._taken: queue.Queue[tuple[str, Any]] = queue.Queue()

    def __enter__(self) -> Self:
        self._server = _RuntimeServer(("127.0.0.1", 0), _invoke_handler(self._taken))
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def environ(self) -> Mapping[str, str]:
        """What a function needs to call this one as AWS."""
        host, port = self._server.server_address[:2]
        credentials = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "testing")
        return {"AWS_ENDPOINT_URL_LAMBDA": f"http://{host!s}:{port}", **credentials}

    def next(self) -> tuple[str, Any]:
        """Name or ARN of the function, as it was asked for, and the event."""
        return self._taken.get(timeout=90)

    def none_left(self) -> bool:
        return self._taken.empty()


class _RuntimeServer(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A runtime client that is killed resets its connection."""


def _handler(runtime: LambdaRuntime) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            request_id, event, deadline = runtime.next()
            self.send_response(200)
            self.send_header("Lambda-Runtime-Aws-Request-Id", request_id)
            self.send_header("Lambda-Runtime-Deadline-Ms", str(deadline))
            self.send_header("Lambda-Runtime-Invoked-Function-Arn", "arn:aws:lambda:eu-west-1:1:function:under-test")
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(event)))
            self.end_headers()
            self.wfile.write(event)

        def do_POST(self) -> None:
            body = self._body()
            runtime.answered(self.path.rpartition("/")[2], body)
            self.send_response(202)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _body(self) -> bytes:
            if "chunked" not in self.headers.get("Transfer-Encoding", ""):
                return self.rfile.read(int(self.headers.get("Content-Length", "0")))
            parts = []
            while size := int(self.rfile.readline().strip(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


def _invoke_handler(taken: queue.Queue[tuple[str, Any]]) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
            *_, name, last = urlsplit(self.path).path.split("/")
            known = last == "invocations" and self.headers.get("X-Amz-Invocation-Type") == "Event"
            if known:
                taken.put((unquote(name), json.loads(body)))
            self.send_response(202 if known else 400)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler
