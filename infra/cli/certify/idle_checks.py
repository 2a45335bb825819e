"""Assumptions about what keeps a sandbox awake and what wakes it (docs/wire/tensorlake.md#57-timeout_secs,
docs/wire/tensorlake.md#56-suspend-and-resume)."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

from image.session import claim as wire
from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.certify.sandbox_looks import listed, reason, record, run, started
from shared.ports import Absent, Doubtful, ProcessSpec, ProcessState, Refused, SandboxRecord, SandboxStatus

_TOUCHED: Final = 0.8
"""Of the idle time-out: when the daemon's health is looked at."""
_LOOKED: Final = 1.3
"""Of it: when it must be awake for that alone."""
_LATE: Final = 20.0
"""Seconds: how late a suspend may be."""
_STEP: Final = 3.0
_MORE: Final = 5.0
"""Seconds beyond the idle time-out."""
_PATIENCE: Final = 20.0
_ANSWERED: Final = 204
_SERVER: Final = f"""
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response({_ANSWERED})
        self.end_headers()
server = http.server.HTTPServer(("", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""
_PAUSES: Final = 10
"""Lines of the followed output during the time-out."""


async def traffic_wakes(ground: Ground) -> Observed:
    sandbox = await ground.suspended()
    ran = await run(ground, sandbox, "true")
    found = await ground.host.find(sandbox.id)
    woke = isinstance(found, SandboxRecord) and found.status is SandboxStatus.RUNNING
    seen = "it runs after a command" if woke else f"it sleeps on, and a command says: {reason(ran)}"
    return Observed(woke, seen, {"tensorlake.traffic_wakes": woke})


async def port_wakes(ground: Ground) -> Observed:
    """A request to a server on a port of the sandbox wakes it."""
    sandbox = await ground.shared()
    one = f"/sandboxes/{sandbox.id}"
    name = f"certify-{time.monotonic_ns()}"
    spec = ProcessSpec(name, wire.WORKER_PYTHON, ["-I", "-c", _SERVER])
    refusal = await ground.host.start(sandbox.id, spec)
    if refusal is not None:
        raise NotTried(f"a program could not be started: {reason(refusal)}")
    try:
        port = await _port_of(ground, sandbox, name)
        opened = {"exposed_ports": [port], "allow_unauthenticated_access": True}
        if (await ground.lifecycle("PATCH", one, opened)).status_code >= 300:
            raise NotTried("no port can be exposed")
        end = time.monotonic() + _PATIENCE
        while (status := (await ground.port(sandbox, port)).status_code) != _ANSWERED:
            if time.monotonic() > end:
                raise NotTried(f"a server in it cannot be reached: HTTP {status}")
            await asyncio.sleep(0.5)
        await ground.suspended()
        answered = (await ground.port(sandbox, port)).status_code
        status_now = str((await record(ground, sandbox))["status"])
        woke = status_now == "running"  # whether the server outlives a sleep is `sandbox.idle-suspends`
        return Observed(woke, f"HTTP {answered}; it is {status_now}", {"tensorlake.port_traffic_wakes": woke})
    finally:
        await ground.lifecycle("PATCH", one, {"exposed_ports": [], "allow_unauthenticated_access": False})
        if await ground.host.resume(sandbox.id) is None:
            await ground.host.kill(sandbox.id, name)


async def _port_of(ground: Ground, sandbox: SandboxRecord, name: str) -> int:
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        lines = await ground.host.process_output(sandbox.id, name)
        if not isinstance(lines, Absent | Doubtful):
            for line in lines:
                if line.isascii() and line.isdigit():
                    return int(line)
        await asyncio.sleep(0.2)
    raise NotTried("a server in it does not say which port it has")


async def unwoken(ground: Ground) -> Observed:
    """Of a sandbox with `auto_resume` false."""
    sandbox = await ground.shared()
    try:
        if (await _wakes_by_itself(ground, sandbox, False)) >= 300:
            raise NotTried("`auto_resume` could not be set")
        await ground.suspended()
        ran = await run(ground, sandbox, "true")
        asleep = (await record(ground, sandbox))["status"] == "suspended"
    finally:
        await _wakes_by_itself(ground, sandbox, True)
    if not asleep:
        return Observed(False, "it woke", {"tensorlake.unwoken_status": None})
    behaviour = {"tensorlake.unwoken_status": ran.status} if isinstance(ran, Refused) else {}
    return Observed(isinstance(ran, Refused) and ran.status == 409, f"it sleeps on, and says: {reason(ran)}", behaviour)


async def _wakes_by_itself(ground: Ground, sandbox: SandboxRecord, wakes: bool) -> int:
    return (await ground.lifecycle("PATCH", f"/sandboxes/{sandbox.id}", {"auto_resume": wakes})).status_code


async def look_leaves_asleep(ground: Ground) -> Observed:
    sandbox = await ground.suspended()
    await record(ground, sandbox)
    await listed(ground)
    asleep = (await record(ground, sandbox))["status"] == "suspended"
    seen = "asleep after a GET and a list" if asleep else "a GET or a list woke it"
    return Observed(asleep, seen, {"tensorlake.looks_wake": not asleep})


async def quiet_command(ground: Ground) -> Observed:
    """A command without output, open for longer than the idle time-out."""
    sandbox = await ground.sandbox(timeout_seconds=ground.idle_seconds)
    begun = f"/tmp/{ground.new_name()}"
    quiet = asyncio.ensure_future(run(ground, sandbox, f"touch {begun} && sleep {ground.idle_seconds + 30}"))
    try:
        end = time.monotonic() + _PATIENCE
        while not isinstance(await ground.host.read_file(sandbox.id, begun, 1), bytes):
            if quiet.done() or time.monotonic() > end:
                raise NotTried("a command that takes long does not run")
            await asyncio.sleep(0.1)
        await ground.leave_alone(sandbox, ground.idle_seconds + _MORE)
        status = str((await record(ground, sandbox))["status"])
    finally:
        quiet.cancel()
        await asyncio.gather(quiet, return_exceptions=True)
    awake = status == "running"
    seen = (
        f"{status} {ground.idle_seconds + _MORE:g} s into a quiet command, with a time-out of {ground.idle_seconds} s"
    )
    return Observed(awake, seen, {"tensorlake.open_requests_are_activity": awake})


async def followed_output(ground: Ground) -> Observed:
    """A stream on which lines come for longer than the idle time-out, without another request."""
    idle = ground.idle_seconds
    sandbox = await ground.sandbox(timeout_seconds=idle)
    name = f"certify-{time.monotonic_ns()}"
    pause = 0.1 if ground.hurries else idle / _PAUSES
    await started(ground, sandbox, name, f"while echo on; do sleep {pause:g}; done")
    came = asyncio.Queue[str]()
    follower = asyncio.ensure_future(_follow(ground, sandbox, name, came))
    try:
        for _ in range(_PAUSES + 2):
            try:
                async with asyncio.timeout(pause + _PATIENCE):
                    await came.get()
            except TimeoutError:
                break
            if ground.hurries:
                await ground.leave_alone(sandbox, idle / _PAUSES)
        if follower.done():
            raise NotTried("the stream ended before its program")
        status = str((await record(ground, sandbox))["status"])
    finally:
        follower.cancel()
        await asyncio.gather(follower, return_exceptions=True)
    awake = status == "running"
    seen = f"{status} after a stream of lines of {idle * (1 + 1 / _PAUSES):g} s, with a time-out of {idle} s"
    return Observed(awake, seen, {"tensorlake.follows_are_activity": awake})


async def _follow(ground: Ground, sandbox: SandboxRecord, name: str, came: asyncio.Queue[str]) -> None:
    silence = ground.idle_seconds + 60.0
    async with aclosing(ground.host.follow_output(sandbox.id, name, silence=silence)) as lines:
        async for line in lines:
            if isinstance(line, str):
                came.put_nowait(line)


@dataclass(frozen=True, slots=True)
class _Alone:
    """What became of a sandbox with a process that nobody asks anything but once for its health. seconds: from that
    to the end of its being awake. kept: whether the process goes on after the resume."""

    when_touched: str
    in_the_end: str
    seconds: float
    kept: bool = False


async def _leave_alone(ground: Ground) -> _Alone:
    idle = ground.idle_seconds
    sandbox = await ground.sandbox(timeout_seconds=idle)
    name = f"certify-{time.monotonic_ns()}"
    await started(ground, sandbox, name, "while :; do sleep 1; done")
    before = await ground.host.process_state(sandbox.id, name)
    await ground.leave_alone(sandbox, _TOUCHED * idle)
    refusal = await ground.host.touch(sandbox.id)
    if refusal is not None:
        raise NotTried(f"its daemon's health could not be looked at: {reason(refusal)}")
    seconds = (_LOOKED - _TOUCHED) * idle
    await ground.leave_alone(sandbox, seconds)
    when_touched = status = str((await record(ground, sandbox))["status"])
    while status in ("running", "suspending") and seconds < idle + _LATE:
        await ground.leave_alone(sandbox, _STEP)
        seconds += _STEP
        status = str((await record(ground, sandbox))["status"])
    if status != "suspended":
        return _Alone(when_touched, status, seconds)
    if (woken := await ground.host.resume(sandbox.id)) is not None:
        raise NotTried(f"it could not be resumed: {reason(woken)}")
    after = await ground.host.process_state(sandbox.id, name)
    if not isinstance(before, ProcessState) or not isinstance(after, ProcessState):
        raise NotTried(f"its process could not be looked at: {reason(before)}, {reason(after)}")
    return _Alone(when_touched, status, seconds, kept=after.running and after.pid == before.pid)


async def touch(ground: Ground) -> Observed:
    alone = await ground.once(_leave_alone)
    awake = alone.when_touched == "running"
    seen = (
        f"{alone.when_touched} {_LOOKED * ground.idle_seconds:g} s after the last other request, with a time-out of "
        f"{ground.idle_seconds} s"
    )
    return Observed(awake, seen, {"tensorlake.touches_are_activity": awake})


async def idle_suspends(ground: Ground) -> Observed:
    alone = await ground.once(_leave_alone)
    if alone.in_the_end == "running":
        seen = f"running {alone.seconds:.0f} s after the last request, with a time-out of {ground.idle_seconds} s"
        return Observed(False, seen, {"tensorlake.processes_are_activity": True})
    if alone.in_the_end != "suspended":
        return Observed(False, f"{alone.in_the_end} at its time-out", {"tensorlake.idle_ends": True})
    seen = "suspended at its time-out, and its process " + ("goes on" if alone.kept else "is gone")
    behaviour = {"sleep_ends_processes": not alone.kept, "processes_are_activity": False, "idle_ends": False}
    return Observed(alone.kept, seen, {f"tensorlake.{knob}": value for knob, value in behaviour.items()})


_RESUME: Final = "docs/wire/tensorlake.md#56-suspend-and-resume"
_IDLE: Final = "docs/wire/tensorlake.md#57-timeout_secs"

CHECKS: Final = (
    ServiceCheck(
        "sandbox.quiet-command",
        _IDLE,
        "an open request is traffic, though nothing is said on it",
        "`SANDBOX_TIMEOUT_SECONDS` must be longer than the longest quiet tool",
        quiet_command,
        240.0,
    ),
    ServiceCheck(
        "sandbox.followed-output",
        _IDLE,
        "lines of a followed output are traffic",
        "who follows a session's output loses it when the time-out is over, though its program runs",
        followed_output,
        240.0,
    ),
    ServiceCheck(
        "sandbox.touch",
        _IDLE,
        "a look at the daemon's health is traffic",
        "a tick keeps no worker awake: `SANDBOX_TIMEOUT_SECONDS` must be longer than the longest turn",
        touch,
        300.0,
    ),
    ServiceCheck(
        "sandbox.idle-suspends",
        _IDLE,
        "a named sandbox is suspended at its time-out, though a process runs in it, and keeps the process",
        "a sandbox that a process keeps awake costs until a tick suspends it; where it ends, its session begins anew",
        idle_suspends,
        300.0,
    ),
    ServiceCheck(
        "sandbox.traffic-wakes",
        _RESUME,
        "a request to a suspended sandbox wakes it",
        "a claim that meets a sandbox as it falls asleep fails, and is handed out again",
        traffic_wakes,
    ),
    ServiceCheck(
        "sandbox.port-wakes",
        _RESUME,
        "a request to a port of a suspended sandbox wakes it, and its server answers",
        "a server in a sandbox sleeps through its webhooks: use another place for the functions",
        port_wakes,
    ),
    ServiceCheck(
        "sandbox.unwoken",
        _RESUME,
        "a sleeper that may not wake by itself refuses a request with 409",
        "nothing: every sandbox here may wake by itself",
        unwoken,
    ),
    ServiceCheck(
        "sandbox.look-leaves-asleep",
        _RESUME,
        "a GET and a list wake no sleeper",
        "every tick wakes every session's sandbox: fewer ticks, and a shorter `RETENTION_SECONDS`",
        look_leaves_asleep,
    ),
)
