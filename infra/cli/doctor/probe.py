"""One probe sandbox: made, looked at from inside, given a worker, and ended, each with its time.

It bears the name of a race's sandbox with a dead-man time (shared/names.py), so that a tick ends it should
doctor die. The worker gets a claim that nobody queued, with a credential that nobody issued: it comes up as for a
session, asks for the lease, is refused by the API, and ends with the documented status. The queue
is never touched.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
import secrets
import time
from dataclasses import dataclass, replace
from typing import Final

from image.session import claim as wire
from image.session.archive import build_archive, digest
from infra.cli.doctor.context import NO_TENSORLAKE, DoctorContext
from infra.cli.doctor.findings import Say, error, info, ok, warning
from infra.cli.doctor.isolation import RUN_SECONDS, check_inside
from shared.claims.dispatcher import spec_of
from shared.claims.worker_process import not_as_root, worker_process
from shared.environment_settings import Environment
from shared.names import new_race_id, race_sandbox_name
from shared.ports import (
    Absent,
    Created,
    Doubtful,
    NameTaken,
    NoAnswer,
    ProcessSpec,
    ProcessState,
    Refused,
    SandboxHost,
    SandboxStatus,
)

_DEAD_MAN: Final = 300.0  # seconds beyond all that a probe may take
_GATE: Final = 4.0  # seconds for which the worker asks for a lease that it cannot get
_END_SECONDS: Final = 30.0
_END_TRIES: Final = 3
_QUOTA: Final = re.compile(r"HTTP (?:402|403|429)\b|max_capacity|quota", re.IGNORECASE)
_LOCKED: Final = re.compile(r"^anthropic==([0-9][^ \\;]*)", re.MULTILINE)
_UNANSWERED: Final = (wire.Exit.UNREACHABLE, wire.Exit.NEVER_ACKED)


def seconds(context: DoctorContext) -> float:
    """What a probe may take: the bind, the look inside, two starts of a worker."""
    times = context.settings.times
    return times.bind + RUN_SECONDS + 2 * times.handover + _GATE + 20.0


async def check_probe(context: DoctorContext, environment: Environment, say: Say) -> None:
    host, about = context.service.host, context.about(environment)
    bound = seconds(context) + _END_SECONDS
    dead_man = int(context.now() + bound + _DEAD_MAN)
    name = race_sandbox_name(context.settings.prefix, environment.id, new_race_id(), None, dead_man)
    spec = spec_of(environment, name)
    began = time.monotonic()
    sandbox_id: str | None = None
    none_made = False
    try:
        made = await host.create(spec)
        create_seconds = time.monotonic() - began
        match made:
            case Created(sandbox):
                sandbox_id = sandbox.id
                say(ok("HANDS601", f"{about}a probe sandbox was made in {create_seconds:.1f} s"))
                say(ok("HANDS602", f"{about}there was room for one more sandbox"))
                await check_inside(context, environment, sandbox.id, say)
                ready_seconds = await _check_hand_over(context, environment, sandbox.id, say)
                _say_times(context, about, create_seconds, ready_seconds, say)
            case NameTaken():
                none_made = True
                say(warning("HANDS001", f"{about}the probe's random name is taken"))
            case Refused(reason=reason) | Doubtful(reason=reason):
                none_made = isinstance(made, Refused)
                code = "HANDS602" if _QUOTA.search(reason) else "HANDS601"
                fix = NO_TENSORLAKE if isinstance(made, NoAnswer) else None
                say(error(code, f"{about}create failed: {reason}", fix))
    finally:
        if not none_made:
            await _end(host, name, sandbox_id, about, say)


async def _end(host: SandboxHost, name: str, sandbox_id: str | None, about: str, say: Say) -> None:
    """Tried again, since a sandbox costs money. Without an id it is looked for, more than once: a create whose answer
    was lost may have made one, or be about to."""
    began = time.monotonic()
    problem = "time ran out"
    for attempt in range(_END_TRIES):
        if attempt:
            await asyncio.sleep(1.0)
        if sandbox_id is None:
            found = await host.find(name)
            if isinstance(found, Doubtful):
                problem = found.reason
                continue
            if isinstance(found, Absent) or found.status is SandboxStatus.TERMINATED:
                problem = ""
                continue
            sandbox_id = found.id
        ended = await host.terminate(sandbox_id)
        if ended is None or isinstance(ended, Absent):
            say(ok("HANDS605", f"{about}the probe sandbox was ended in {time.monotonic() - began:.1f} s"))
            return
        problem = ended.reason
    if problem:
        say(warning("HANDS605", f"{about}{name} {'is' if sandbox_id else 'may be'} left: {problem}"))


@dataclass(frozen=True, slots=True)
class _WorkerHeard:
    """What a worker said and how it ended; `first_seconds` from its start to the first of both notices."""

    ready: wire.Notice | None
    first_seconds: float
    ended: wire.Notice | None
    state: ProcessState | None
    not_as_root: str = ""  # why it had to be started as the agent's user


async def _check_hand_over(context: DoctorContext, environment: Environment, sandbox_id: str, say: Say) -> float | None:
    """Seconds from the start of the worker to its `ready`; None where there was none."""
    host, about = context.service.host, context.about(environment)
    archive = build_archive()
    claim = _claim(context, environment, digest(archive))
    heard = await _start_worker(context, sandbox_id, claim)
    if isinstance(heard, str):
        say(error("HANDS603", f"{about}the worker could not be started: {heard}"))
        return None
    in_image = heard.state is None or heard.state.exit_code != wire.Exit.UNREADABLE
    if in_image:
        say(ok("HANDS403", f"{about}the image has this version's worker"))
    else:
        say(warning("HANDS403", f"{about}the image lacks {wire.worker_path(claim.worker_digest)}"))
        if await host.write_file(sandbox_id, wire.worker_path(claim.worker_digest), archive) is not None:
            say(error("HANDS603", f"{about}the worker's file could not be written into the sandbox"))
            return None
        heard = await _start_worker(context, sandbox_id, claim)
        if isinstance(heard, str):
            say(error("HANDS603", f"{about}the worker could not be started: {heard}"))
            return None
    return _say_worker(heard, context, about, say)


def _say_worker(heard: _WorkerHeard, context: DoctorContext, about: str, say: Say) -> float | None:
    status = heard.state.exit_code if heard.state is not None and not heard.state.running else None
    name = wire.Exit(status).name.lower() if status in set(wire.Exit) else f"status {status}"
    detail = f": {heard.ended.detail}" if heard.ended is not None and heard.ended.detail else ""
    # A worker is ready once a heartbeat was answered; the made-up credential's is refused before that.
    first = heard.ready or (heard.ended if status in (wire.Exit.REFUSED, *_UNANSWERED) else None)
    if first is None:
        end = f"it ended as {name}{detail}" if status is not None else "it said nothing in time"
        say(error("HANDS603", f"{about}the worker was never ready: {end}"))
        return None
    _say_sdk(first.sdk, context, about, say)
    if heard.not_as_root:
        say(warning("HANDS705", f"{about}the worker had to start as the tools' user: {heard.not_as_root}"))
    elif context.settings.sandbox_user:
        say(ok("HANDS705", f"{about}the service took the start as root"))
    took = f"{about}the worker had started in {heard.first_seconds:.1f} s"
    if status == wire.Exit.REFUSED:
        say(ok("HANDS603", f"{took}, and the API refused its made-up credential as it should"))
    elif status in _UNANSWERED:
        say(warning("HANDS603", f"{took}, but the API did not answer it as it answers a caller without a key{detail}"))
    elif status is None:
        say(warning("HANDS603", f"{took}, but it did not end in time"))
    else:
        say(warning("HANDS603", f"{took}, and ended as {name} where a refusal was due{detail}"))
    return None if status in _UNANSWERED else heard.first_seconds  # it waited for the API: no time of its own


def _say_sdk(sdk: str, context: DoctorContext, about: str, say: Say) -> None:
    locked = _LOCKED.search((context.locks / "worker.lock").read_text(encoding="utf-8"))
    if locked is None:
        say(info("HANDS402", f"{about}the worker has anthropic {sdk}; the lock names none"))
    elif sdk != locked[1]:
        say(warning("HANDS402", f"{about}the worker has anthropic {sdk}, and {locked[1]} is locked"))
    else:
        say(ok("HANDS402", f"{about}the worker has anthropic {sdk}, as locked"))


def _say_times(context: DoctorContext, about: str, create: float, ready: float | None, say: Say) -> None:
    times = context.settings.times
    seen = f"{about}sandbox in {create:.1f} s of {times.bind:g}"
    if ready is not None:
        seen += f", worker in {ready:.1f} s of {times.handover:g}"
    slow = create > times.bind / 2 or (ready is not None and ready > times.handover / 2)
    say(warning("HANDS604", seen) if slow else ok("HANDS604", seen))


def _claim(context: DoctorContext, environment: Environment, worker_digest: str) -> wire.Claim:
    mark = secrets.token_hex(8)
    token = json.dumps({"sessions_token": f"doctor-{secrets.token_hex(16)}"})
    return wire.Claim(
        work_id=f"work_doctor{mark}",
        environment_id=environment.id,
        session_id=f"sesn_doctor{mark}",
        secret=base64.urlsafe_b64encode(token.encode()).decode(),
        base_url=context.settings.anthropic_url,
        worker_digest=worker_digest,
        workdir=context.settings.workdir,
        max_idle=1.0,
        gate=_GATE,
        lock_wait=1.0,
        lifetime=60.0,
    )


async def _start_worker(context: DoctorContext, sandbox_id: str, claim: wire.Claim) -> _WorkerHeard | str:
    """Started as the dispatcher starts one (shared/claims/handover.py) and followed to its end; a text says why not."""
    process = worker_process(f"doctor-{secrets.token_hex(6)}", claim, context.settings.sandbox_user or None)
    plain = not_as_root(process)
    heard = await _follow_worker(context, sandbox_id, process)
    if plain is None:
        return heard
    if isinstance(heard, str):
        reason = heard
    elif heard.state is not None and heard.state.exit_code == wire.Exit.NO_USER:
        reason = f"it cannot become {context.settings.sandbox_user!r}"
    else:
        return heard
    again = await _follow_worker(context, sandbox_id, replace(plain, name=f"{process.name}-plain"))
    return again if isinstance(again, str) else replace(again, not_as_root=reason)


async def _follow_worker(context: DoctorContext, sandbox_id: str, process: ProcessSpec) -> _WorkerHeard | str:
    host = context.service.host
    began = time.monotonic()
    match await host.start(sandbox_id, process):
        case Absent():
            return "the sandbox is gone"
        case Refused(reason=reason) | Doubtful(reason=reason):
            return reason
    end = began + context.settings.times.handover + _GATE
    ready: wire.Notice | None = None
    first_seconds: float | None = None
    while True:
        state = await host.process_state(sandbox_id, process.name)
        over = isinstance(state, ProcessState) and not state.running
        lines = await host.process_output(sandbox_id, process.name)
        notices = [] if isinstance(lines, Absent | Doubtful) else [wire.Notice.from_line(line) for line in lines]
        said = {notice.word: notice for notice in notices if notice is not None}
        ready = ready or said.get(wire.Word.READY)
        if first_seconds is None and (ready or wire.Word.ENDED in said):
            first_seconds = time.monotonic() - began
        if over or time.monotonic() > end:
            known = state if isinstance(state, ProcessState) else None
            return _WorkerHeard(ready, first_seconds or 0.0, said.get(wire.Word.ENDED), known)
        await asyncio.sleep(0.15)
