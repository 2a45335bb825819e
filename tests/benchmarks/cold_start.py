"""Cold start to first byte of each function, beside a fresh interpreter that imports only what the function needs.

Each run is a new interpreter that imports a handler, answers one request and writes one byte; the time is from
starting it to that byte. Function and bare imports take turns. The request is refused (nobody signed it, or its body
is none), which is what every function must be able to do before it loads anything heavy. A body with a wrong field
takes the models to refuse: beside it stands an interpreter that imports these.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from tests.benchmarks.report import Aim, BenchmarkResult, FigureTable, median, milliseconds
from tests.support.serving import TOKEN
from tests.support.signing import KEY
from tests.support.world import ROOT

RUNS: Final = 25
AIM: Final = 1.1

# One scope and one answer for both sides: what differs is the handler and its imports.
_ANSWER: Final = """
import asyncio, os
from starlette.requests import Request
from starlette.responses import JSONResponse

headers = [(b"host", b"localhost"), {extra_header}]
scope = {{"type": "http", "method": "POST", "path": "/", "query_string": b"", "headers": headers}}
coming = [{{"type": "http.request", "body": {body}}}]

async def receive():
    if coming:
        return coming.pop()
    await asyncio.Event().wait()

async def answer():
    response = await handler(Request(scope, receive))
    assert response.status_code == {status}, response.body
    os.write(1, b"!")

asyncio.run(answer())
os._exit(0)
"""
_BARE_HANDLER: Final = """
async def handler(request):
    {imports}
    async for _ in request.stream():
        pass
    return JSONResponse({{"error": {{"type": "refused", "message": "no"}}}}, status_code={status})
"""
_AUTHORIZED: Final = f'(b"authorization", b"Bearer {TOKEN}")'


@dataclass(frozen=True, slots=True)
class ColdStart:
    """`needs` is an import statement for what the function cannot do without, besides starlette."""

    name: str
    function: str
    status: int
    needs: str = "pass"
    header: str = ""
    body: bytes = b"[]"

    @property
    def ours(self) -> str:
        return f"from functions.{self.function} import {self.function} as handler" + self._answer

    @property
    def bare(self) -> str:
        handler = _BARE_HANDLER.format(imports=self.needs, status=self.status)
        return handler + self._answer

    @property
    def _answer(self) -> str:
        return _ANSWER.format(status=self.status, extra_header=self.header, body=repr(self.body))


CASES: Final = (
    ColdStart("on_run_started, bad signature", "on_run_started", 401, "from standardwebhooks.webhooks import Webhook"),
    ColdStart("poll_tick, no token", "poll_tick", 401),
    ColdStart("fork_best_of_n, no token", "fork_best_of_n", 401),
    ColdStart("fork_best_of_n, no object", "fork_best_of_n", 400, header=_AUTHORIZED),
    ColdStart(
        "fork_best_of_n, bad field",
        "fork_best_of_n",
        400,
        "from shared.races.request import RaceRequest",
        _AUTHORIZED,
        b'{"branches": 1}',
    ),
)


def run() -> BenchmarkResult:
    rows, aims = [], []
    for case in CASES:
        ours, bare = _alternating(case)
        ratio, of_cpu = (_medians(ours)[n] / _medians(bare)[n] for n in (0, 1))
        figures = (*_medians(ours), *_medians(bare))
        rows.append((case.name, *map(milliseconds, figures), f"{ratio:.2f}", f"{of_cpu:.2f}"))
        aims.append(Aim(f"cold start of {case.name}", ratio, AIM))
    head = ("", "ms", "CPU ms", "bare ms", "bare CPU ms", "ratio", "CPU ratio")
    empty = median([_first_byte("import os; os.write(1, b'!'); os._exit(0)").seconds for _ in range(RUNS)])
    worst = max(aims, key=lambda aim: aim.measured)
    return BenchmarkResult(
        tables=(FigureTable(f"Fresh interpreter to first byte, medians of {RUNS} runs each, in turns", head, rows),),
        meaning=(
            f"a cold function answers its first request at most {worst.measured:.2f} times as late as an interpreter "
            f"that imports only starlette and what the answer needs; {milliseconds(empty)} ms of each are the "
            "interpreter itself."
        ),
        aims=aims,
    )


@dataclass(frozen=True, slots=True)
class _Start:
    """To the first byte, by the clock, and CPU time, which other programs on the machine do not lengthen as much."""

    seconds: float
    cpu: float


def _medians(starts: Sequence[_Start]) -> tuple[float, float]:
    return median([start.seconds for start in starts]), median([start.cpu for start in starts])


def _alternating(case: ColdStart) -> tuple[Sequence[_Start], Sequence[_Start]]:
    for code in (case.ours, case.bare):
        _first_byte(code)  # compiles what has no byte code yet
    pairs = [(_first_byte(case.ours), _first_byte(case.bare)) for _ in range(RUNS)]
    ours, bare = zip(*pairs, strict=True)
    return ours, bare


def _first_byte(code: str) -> _Start:
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=_environ(), stdout=subprocess.PIPE)
    assert process.stdout is not None
    with process.stdout:
        byte = process.stdout.read(1)
        seconds = time.perf_counter() - began
    # Instead of process.wait(): it would not say what the process has used.
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert byte == b"!", f"exit status {process.returncode}"
    return _Start(seconds, used.ru_utime + used.ru_stime)


def _environ() -> Mapping[str, str]:
    """As much as a function needs to be configured; no service is ever called."""
    return {
        "PATH": os.environ["PATH"],
        "ANTHROPIC_ENVIRONMENT_ID": "env_of_nobody",
        "ANTHROPIC_ENVIRONMENT_KEY": "key-of-nobody",
        "TENSORLAKE_API_KEY": "key-of-nobody",
        "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
        "FUNCTIONS_TOKEN": TOKEN,
    }
