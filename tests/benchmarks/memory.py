"""The most memory that each function takes in the entry of its runtime: a session served, a tick, a race whose branches
flood it, a race of 64 branches.

Each row is a fresh interpreter. What is counted is the peak (VmHWM) of all its processes together, shared pages once
for each: more than a container's own count.
"""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import httpx2

from infra.aws import package
from infra.gcp import source
from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable
from tests.benchmarks.stage import PROMPT, delays, production_place, stage
from tests.support.footprint import tree
from tests.support.lambda_events import http
from tests.support.lambda_runtime import LambdaRuntime
from tests.support.serving import TOKEN, UVICORN, serving
from tests.support.signing import KEY, delivery, signed
from tests.support.world import IMAGE, Place

OPERATOR: Final = {"authorization": f"Bearer {TOKEN}"}
FLOOD: Final[Mapping[str, Any]] = {"source": {"image": IMAGE}, "n": 4, "script": "head -c 300M /dev/zero | tr '\\0' x"}
WIDE: Final[Mapping[str, Any]] = {"source": {"image": IMAGE}, "n": 64, "script": "echo {i}"}
GIVEN: Final = 512  # MiB, by the deployments that give the least
Call = Callable[[str, bytes, Mapping[str, str]], None]


def run() -> BenchmarkResult:
    rows: list[tuple[str, list[float]]] = []
    with stage() as world, tempfile.TemporaryDirectory() as folder:
        delays(world, on=False)
        staged = source.stage(Path(folder) / "source")
        framework = ("-m", "functions_framework", "--source", str(staged / "main.py"), "--host", "127.0.0.1")
        for name, command in (
            ("uvicorn (server, Knative, systemd)", UVICORN),
            ("functions-framework (Google)", (*framework, "--target", "bundle", "--port", "{port}")),
        ):
            rows.append((name, [_served(production_place(world), command, what) for what in _WORK]))
        code = Path(folder) / "task"
        built = package.write_zip(Path(folder) / "b.zip", package.with_byte_code(package.own_files()), byte_code=True)
        with zipfile.ZipFile(built.path) as archive:
            archive.extractall(code)
        rows.append(("Lambda", [_on_lambda(production_place(world), code, what) for what in _WORK]))
    texts = [[name, *(f"{each:.0f}" for each in peaks)] for name, peaks in rows]
    table = FigureTable("Peak of memory, MiB", ("entry", *_WORK), texts)
    aims = [Aim(f"{name}: its most", max(peaks), GIVEN, "MiB") for name, peaks in rows]
    return BenchmarkResult([table], "What a deployment gives its functions is more than they take at worst.", aims)


def _webhook(place: Place, call: Call) -> None:
    session = place.session(PROMPT)
    body = delivery()
    call("on_run_started", body, signed(body))
    place.wait_done(session)


def _tick(place: Place, call: Call) -> None:
    session = place.session(PROMPT)
    call("poll_tick", b"{}", OPERATOR)
    place.wait_done(session)
    call("poll_tick", b"{}", OPERATOR)


def _race(body: Mapping[str, Any]) -> Callable[[Place, Call], None]:
    return lambda place, call: call("fork_best_of_n", json.dumps(body).encode(), OPERATOR)


_WORK: Final[Mapping[str, Callable[[Place, Call], None]]] = {
    "webhook": _webhook,
    "tick": _tick,
    "race with a flood": _race(FLOOD),
    "race of 64": _race(WIDE),
}


def _served(place: Place, command: Sequence[str], what: str) -> float:
    begun: list[int] = []
    with serving(place, command, pids=begun, fresh=True, DRAIN_MODE="inline", INLINE_SECONDS="60") as url:

        def call(function: str, body: bytes, headers: Mapping[str, str]) -> None:
            answer = httpx2.post(f"{url}/{function}", content=body, headers=dict(headers), timeout=300, trust_env=False)
            answer.raise_for_status()

        _WORK[what](place, call)
        return _peak(begun[0])


def _on_lambda(place: Place, code: Path, what: str) -> float:
    environ = {**place.environ, "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY, "FUNCTIONS_TOKEN": TOKEN}
    function = {"webhook": "on_run_started", "tick": "poll_tick"}.get(what, "fork_best_of_n")
    with LambdaRuntime(code, f"functions.aws_lambda.{function}", environ, timeout=300, fresh=True) as runtime:

        def call(function: str, body: bytes, headers: Mapping[str, str]) -> None:
            answer = runtime.invoke(http(body, dict(headers)))
            if answer["statusCode"] != 200:
                raise RuntimeError(answer["body"][:300])

        _WORK[what](place, call)
        return _peak(runtime.pid)


def _peak(pid: int) -> float:
    """MiB."""
    found = 0
    for each in tree(pid):
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{each}/status").read_text(encoding="ascii", errors="replace")
            peak = re.search(r"VmHWM:\s+(\d+) kB", status)
            found += int(peak[1]) if peak else 0
    return found / 1024
