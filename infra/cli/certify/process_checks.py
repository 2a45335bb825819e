"""Assumptions about programs and files in a sandbox (docs/wire/tensorlake.md#7-processes)."""

from __future__ import annotations

import asyncio
import inspect
import re
import time
from contextlib import aclosing
from typing import Final

from image.session import claim as wire
from image.session.worker import secret_hiding
from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotHere, NotTried, Observed
from infra.cli.certify.sandbox_looks import reason, run, started
from shared.ports import Absent, CommandOutput, ProcessSpec, ProcessState, Refused, SandboxRecord

_BECOME: Final = """
began = os.getuid()
if began == 0:
    become(sys.argv[1])
print(f"began as user {began}" + (f", is {os.getuid()} for good" if began == 0 else ""))
"""
_BEGAN: Final = re.compile(r"began as user (\d+)(, is \d+ for good)?")
_HELD: Final = 8.0
"""Seconds after which a program ends that waits to be let go."""
_MISSING: Final = "/certify/no-such-program"


async def root_start(ground: Ground) -> Observed:
    """And what begins as root becomes the agent's user for good, by the worker's own code."""
    sandbox = await ground.shared()
    script = f"{inspect.getsource(secret_hiding)}\n{_BECOME}"
    ran = await ground.host.run(
        sandbox.id,
        wire.WORKER_PYTHON,
        ["-I", "-c", script, ground.context.settings.sandbox_user],
        env={},
        user="root",
        working_dir="/",
        timeout=60.0,
    )
    match ran:
        case CommandOutput(exit_code=0):
            return await _began(ground, sandbox, ran.stdout)
        case CommandOutput():
            return Observed(False, f"taken, and it could not become the agent's user ({reason(ran)})")
        case Refused(status=status):
            return Observed(False, reason(ran), {"tensorlake.root_status": status})
        case _:
            return Observed(False, reason(ran))


async def _began(ground: Ground, sandbox: SandboxRecord, said: str) -> Observed:
    began = _BEGAN.match(said.strip())
    if began is None:
        raise NotTried("the program does not say which user it is")
    if began[1] == "0":
        return Observed(True, f"taken; {began[0]}", {"tensorlake.root_status": None, "tensorlake.root_ignored": False})
    if ground.context.offline and await _is_told(ground, sandbox):
        raise NotHere("an offline sandbox has one user, and none starts as root")
    return Observed(False, f"taken, and ignored: {began[0]}", {"tensorlake.root_ignored": True})


async def _is_told(ground: Ground, sandbox: SandboxRecord) -> bool:
    """Whether the offline platform notes with a process that root was asked for."""
    answer = await ground.daemon(sandbox, "GET", "/api/v1/processes")
    return answer.status_code == 200 and any("note" in row for row in answer.json()["processes"])


async def missing_program(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    name = f"certify-{time.monotonic_ns()}"
    match await ground.host.start(sandbox.id, ProcessSpec(name, _MISSING, [])):
        case Refused(status=status):
            return Observed(status == 400, f"HTTP {status}", {"tensorlake.missing_program_status": status})
        case Absent():
            return Observed(False, "HTTP 404", {"tensorlake.missing_program_status": 404})
        case None:
            return Observed(False, f"taken; {await _end_of(ground, sandbox, name)}", _TAKEN)
        case other:
            return Observed(False, reason(other))


_TAKEN: Final = {"tensorlake.missing_program_status": None}


async def _end_of(ground: Ground, sandbox: SandboxRecord, name: str) -> str:
    end = time.monotonic() + _HELD
    while time.monotonic() < end:
        state = await ground.host.process_state(sandbox.id, name)
        if isinstance(state, ProcessState) and not state.running:
            return f"it ended with {state.exit_code}"
        await asyncio.sleep(0.1)
    return "it does not end"


async def relative_path(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    name = f"certify-{time.monotonic_ns()}"
    status = (await ground.daemon(sandbox, "PUT", "/api/v1/files", path=name)).status_code
    if status < 300:
        await ground.daemon(sandbox, "DELETE", "/api/v1/files", path=name)
    return Observed(400 <= status < 500, f"HTTP {status}", {"tensorlake.relative_paths": status < 300})


async def follow(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    name = f"certify-{time.monotonic_ns()}"
    loops = int(_HELD * 5)
    script = f"echo first; for i in $(seq {loops}); do [ -e /tmp/{name} ] && break; sleep 0.2; done; echo last"
    await started(ground, sandbox, name, script)
    began = time.monotonic()
    first, runs = "", False
    async with aclosing(ground.host.follow_output(sandbox.id, name, silence=4 * _HELD)) as lines:
        async for line in lines:
            if not isinstance(line, str):
                break
            if not first:
                first = line
                state = await ground.host.process_state(sandbox.id, name)
                runs = isinstance(state, ProcessState) and state.running
                await ground.host.write_file(sandbox.id, f"/tmp/{name}", b"")
    seen = f"the first line came after {time.monotonic() - began:.1f} s, " if first else "no line came, "
    seen = seen + ("while the program ran" if runs else "when the program had ended")
    return Observed(runs, seen if first else "no line came", {"tensorlake.follow_waits": not runs})


async def name_of_a_process(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    name = f"certify-{time.monotonic_ns()}"
    over = f"/tmp/{name}"
    spec = ProcessSpec(name, "sh", ["-c", f"for _ in $(seq 100); do test -e {over} && exit; sleep 0.2; done"])
    first = await ground.host.start(sandbox.id, spec)
    again = await ground.host.start(sandbox.id, spec)
    listed = await ground.host.process_names(sandbox.id)
    running = (
        0
        if isinstance(listed, Absent) or not isinstance(listed, list | tuple)
        else sum(state.name == name and state.running for state in listed)
    )
    await run(ground, sandbox, f"touch {over}")  # both end: a kill by name would end one
    if first is not None:
        raise NotTried(f"a program could not be started: {reason(first)}")
    said = "taken" if again is None else reason(again)
    behaviour = {"tensorlake.process_names_unique": running == 1} if running else {}
    return Observed(running == 1, f"the second start: {said}; {running} run", behaviour)


_PROCESSES: Final = "docs/wire/tensorlake.md#71-start_process"

CHECKS: Final = (
    ServiceCheck(
        "sandbox.root-start",
        "docs/wire/tensorlake.md#16-unknowns",
        "a process may start as root where the image's user is another, and become that one for good",
        "workers start as the agent's user, and the interpreter's mode alone hides their claim (HANDS705)",
        root_start,
    ),
    ServiceCheck(
        "sandbox.follow",
        "docs/wire/tensorlake.md#72-other-process-calls",
        "lines of a followed output come as they are written",
        "`ready` is seen when the silence bound is over and the output is read again: hand-overs are slow",
        follow,
    ),
    ServiceCheck(
        "sandbox.process-name",
        _PROCESSES,
        "a second start under a name that is taken runs nothing twice",
        "a start that is sent again runs two workers: the lock in the sandbox still lets one serve",
        name_of_a_process,
    ),
    ServiceCheck(
        "sandbox.missing-program",
        _PROCESSES,
        "a start of a program that is not there is refused with 400",
        "nothing: a refused start and a program that ends at once are one failure here",
        missing_program,
    ),
    ServiceCheck(
        "sandbox.relative-path",
        "docs/wire/tensorlake.md#8-files",
        "the files' calls refuse a relative path",
        "nothing: every path here is absolute",
        relative_path,
    ),
)
