"""`make demo-sandbox`: the functions in a sandbox that sleeps, wakes for a webhook, serves a session and sleeps again.

Everything is on this machine and ends with it. Exit code 0 only when all of that was seen to happen.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from infra.cli import webhook_sandbox
from infra.cli.demos.play import DemoFailed, play
from infra.cli.demos.session import show
from infra.cli.environ import Loaded
from infra.local.platform import Isolation, Platform

IDLE_SECONDS: Final = 5
_LONGEST_SLEEPLESS: Final = 60.0


def run(isolation: Isolation) -> int:
    """The exit code."""
    threading.Thread(target=__import__, args=("anthropic",), daemon=True).start()
    return play(isolation, _play)


def _play(platform: Platform) -> str:
    server = {"WEBHOOK_SANDBOX_TIMEOUT_SECONDS": str(IDLE_SECONDS)}
    loaded = Loaded({**platform.environ, **server}, Path("offline.env"))
    print("Offline, on this machine only. The brain is a script, not a model.", flush=True)
    for command in (webhook_sandbox.build, webhook_sandbox.up):
        said = io.StringIO()
        with contextlib.redirect_stderr(said):  # notes for who runs a server for longer than a demo
            code = command(loaded)
        if code:
            raise DemoFailed(f"the server could not be brought up: {said.getvalue().strip()}")
    name, born = str(_box(platform)["name"]), _server(platform)["pid"]
    print(f"\nNobody calls. After {IDLE_SECONDS} s without a request it falls asleep ...", flush=True)
    _until_asleep(platform)
    print("It sleeps: its processes stand still. A session begins.\n", flush=True)
    began = time.monotonic()
    shown = asyncio.run(show(platform))
    print("\nThe session is done; no request comes any more ...", flush=True)
    _until_asleep(platform)
    server_process = _server(platform)
    if server_process["pid"] != born or server_process["managed"]["restart_count"]:
        raise DemoFailed("the server did not live through its sleep: it was started anew")
    print(f"It sleeps again, {time.monotonic() - began:.1f} s after the session began.")
    return f"{shown} They were served by {name}, the same process before and after its sleep."


def _until_asleep(platform: Platform) -> None:
    end = time.monotonic() + _LONGEST_SLEEPLESS
    while _box(platform)["status"] != "suspended":
        if time.monotonic() > end:
            raise DemoFailed(f"the server's sandbox is still awake after {_LONGEST_SLEEPLESS:g} s")
        time.sleep(0.1)


def _box(platform: Platform) -> Mapping[str, Any]:
    """The server's sandbox as the platform sees it: a look that wakes nothing."""
    boxes = platform.tensorlake.get("state")["sandboxes"]
    (box,) = [each for each in boxes if "-server-" in (each["name"] or "")]
    return dict(box)


def _server(platform: Platform) -> Mapping[str, Any]:
    (process,) = [each for each in _box(platform)["processes"] if each["managed"] and each["status"] == "running"]
    return dict(process)
