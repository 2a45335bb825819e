"""Start the bundle as its users do, each server in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from functions.server import UVICORN_OPTIONS
from tests.support.ports import free_port
from tests.support.preloaded import Preloaded
from tests.support.signing import KEY
from tests.support.waiting import PATIENCE, until
from tests.support.world import ROOT, Place

TOKEN: Final = "an-operators-token-of-nobody-at-all"

UVICORN: Final = (
    *("-m", "uvicorn", "functions.asgi:app", "--host", "127.0.0.1", "--port", "{port}"),
    *UVICORN_OPTIONS,
)
FRAMEWORK: Final = (
    *("-m", "functions_framework", "--source", str(ROOT / "functions" / "main.py")),
    *("--target", "bundle", "--host", "127.0.0.1", "--port", "{port}"),
)
SERVERS: Final[Mapping[str, Sequence[str]]] = {
    "uvicorn": UVICORN,
    "functions-framework under gunicorn": FRAMEWORK,
    "functions-framework --debug": (*FRAMEWORK, "--debug"),
}


@contextlib.contextmanager
def serving(
    place: Place,
    command: Sequence[str],
    *,
    exactly: Mapping[str, str] | None = None,
    pids: list[int] | None = None,
    fresh: bool = False,
    **extra: str,
) -> Iterator[str]:
    """The address of a server that answers. Its output goes to a file, and is shown if it does not come up.

    `exactly`: its variables, and nothing else but PATH; `{port}` in one becomes the port. Its process id is put into
    `pids`. `fresh`: in an interpreter that has imported nothing.
    """
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    environ = {
        "PATH": os.environ["PATH"],
        "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
        "FUNCTIONS_TOKEN": TOKEN,
        **place.environ,
        **extra,
    }
    if exactly is not None:
        environ = {"PATH": os.environ["PATH"]}
        environ |= {name: value.replace("{port}", str(port)) for name, value in exactly.items()}
    inside = ROOT if command[:2] == UVICORN[:2] else Path(tempfile.gettempdir())
    with tempfile.TemporaryFile() as output:
        started = [part.format(port=port) for part in command]
        options: dict[str, Any] = {"cwd": inside, "env": environ, "stdout": output, "stderr": output}
        process: subprocess.Popen[bytes] = (
            subprocess.Popen([sys.executable, *started], start_new_session=True, **options)
            if fresh or "--debug" in started  # the latter starts an interpreter anyway
            else Preloaded(started, start_new_session=True, **options)
        )
        if pids is not None:
            pids.append(process.pid)
        try:
            if not _answers(url, process):
                output.seek(0)
                raise AssertionError(f"the server did not come up:\n{output.read().decode()}")
            yield url
        except BaseException:
            output.seek(0)
            print(output.read().decode())  # shown by pytest beside the failure
            raise
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise AssertionError("the server did not end on SIGTERM") from None


def kill_server(pid: int) -> None:
    """As its platform would; returns when nobody of its group is left."""
    os.killpg(pid, signal.SIGKILL)

    def gone() -> bool:
        try:
            os.killpg(pid, 0)
        except ProcessLookupError:
            return True
        return False

    until(gone)


def _answers(url: str, process: subprocess.Popen[bytes]) -> bool:
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and process.poll() is None:
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{url}/healthz", timeout=5, trust_env=False).status_code < 500
        time.sleep(0.05)
    return False


@contextlib.contextmanager
def webhooks_to(place: Place, url: str) -> Iterator[None]:
    """The platform's webhooks go to this address for as long as the block lasts."""
    admin = place.world.claude_admin
    endpoint = admin.post("webhooks", {"url": url, "signing_key": KEY})
    try:
        yield
    finally:
        admin.delete(f"webhooks/{endpoint['id']}")
