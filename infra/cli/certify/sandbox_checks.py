"""Assumptions about sandboxes (docs/wire/tensorlake.md)."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from contextlib import aclosing
from typing import Any, Final

from image.session import claim as wire
from image.session.worker import secret_hiding
from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.doctor import inside
from shared.egress import EgressPolicy
from shared.ports import (
    Absent,
    CommandOutput,
    Created,
    NameTaken,
    ProcessSpec,
    ProcessState,
    Refused,
    SandboxRecord,
    SandboxStatus,
    Snapshot,
)

_SLOW: Final = 10.0
"""Seconds: what takes longer is felt by whoever waits for a session."""
_RELEASE: Final = 5.0
_LONGEST_RELEASE: Final = 60.0
_BECOME: Final = """
began = os.getuid()
if began == 0:
    become(sys.argv[1])
print(f"began as user {began}" + (f", is {os.getuid()} for good" if began == 0 else ""))
"""
_HELD: Final = 8.0
"""Seconds after which a program ends that waits to be let go."""


async def boot_time(ground: Ground) -> Observed:
    if not ground.create_seconds:
        await ground.shared()
    seconds = ground.create_seconds[0]
    behaviour = {"tensorlake.create_seconds": round(seconds, 1)}
    return Observed(seconds <= _SLOW, f"the first was running after {seconds:.1f} s", behaviour)


async def resume_time(ground: Ground) -> Observed:
    sandbox = await ground.suspended()
    began = time.monotonic()
    refusal = await ground.host.resume(sandbox.id)
    seconds = time.monotonic() - began
    if refusal is not None:
        return Observed(False, f"it could not be resumed: {_reason(refusal)}")
    behaviour = {"tensorlake.resume_seconds": round(seconds, 1)}
    return Observed(seconds <= _SLOW, f"running again after {seconds:.1f} s", behaviour)


async def name_release(ground: Ground) -> Observed:
    sandbox = await ground.sandbox()
    name = str(sandbox.name)
    await ground.host.terminate(sandbox.id)
    began = time.monotonic()
    while True:
        seconds = time.monotonic() - began  # when it is asked for: a create that is taken may take long by itself
        made = await ground.host.create(ground.spec(name))
        if isinstance(made, Created):
            break
        if not isinstance(made, NameTaken):
            raise NotTried(f"a sandbox could not be made: {_reason(made)}")
        if seconds > _LONGEST_RELEASE:
            return Observed(False, f"still held {_LONGEST_RELEASE:.0f} s after the end")
        await asyncio.sleep(0.25)
    behaviour = {"tensorlake.name_release_seconds": round(seconds, 1)}
    return Observed(seconds <= _RELEASE, f"free about {seconds:.1f} s after the end", behaviour)


async def list_order(ground: Ground) -> Observed:
    older = await ground.shared()
    newer = await ground.sandbox()
    ids = [row.id for row in await _listed(ground)]
    if older.id not in ids or newer.id not in ids:
        raise NotTried("the list has not both sandboxes")
    order = "oldest_first" if ids.index(older.id) < ids.index(newer.id) else "newest_first"
    return Observed(order == "oldest_first", order.replace("_", " "), {"tensorlake.list_order": order})


async def list_ended(ground: Ground) -> Observed:
    sandbox = await ground.sandbox()
    await ground.host.terminate(sandbox.id)
    await asyncio.sleep(0 if ground.context.offline else 2.0)
    stays = any(row.id == sandbox.id for row in await _listed(ground))
    seen = "an ended one is listed" if stays else "an ended one is not listed"
    return Observed(stays, seen, {"tensorlake.list_has_ended": stays})


async def sleeper_url(ground: Ground) -> Observed:
    has = "sandbox_url" in await _record(ground, await ground.suspended())
    seen = "its record has `sandbox_url`" if has else "its record has no `sandbox_url`"
    return Observed(has, seen, {"tensorlake.sleepers_have_url": has})


async def traffic_wakes(ground: Ground) -> Observed:
    sandbox = await ground.suspended()
    ran = await _run(ground, sandbox, "true")
    found = await ground.host.find(sandbox.id)
    woke = isinstance(found, SandboxRecord) and found.status is SandboxStatus.RUNNING
    seen = "it runs after a command" if woke else f"it sleeps on, and a command says: {_reason(ran)}"
    return Observed(woke, seen, {"tensorlake.traffic_wakes": woke})


async def look_leaves_asleep(ground: Ground) -> Observed:
    sandbox = await ground.suspended()
    await _record(ground, sandbox)
    await _listed(ground)
    asleep = (await _record(ground, sandbox))["status"] == "suspended"
    seen = "asleep after a GET and a list" if asleep else "a GET or a list woke it"
    return Observed(asleep, seen, {"tensorlake.looks_wake": not asleep})


async def resume_moves(ground: Ground) -> Observed:
    before = (await _record(ground, await ground.shared())).get("sandbox_url")
    sandbox = await ground.suspended()
    refusal = await ground.host.resume(sandbox.id)
    if refusal is not None:
        raise NotTried(f"it could not be resumed: {_reason(refusal)}")
    moved = (await _record(ground, sandbox)).get("sandbox_url") != before
    seen = "the address is another one" if moved else "the address is the same"
    return Observed(not moved, seen, {"tensorlake.resume_moves": moved})


async def quiet_command(ground: Ground) -> Observed:
    """A command without output, open for longer than the idle time-out."""
    sandbox = await ground.sandbox(timeout_seconds=ground.idle_seconds)
    quiet = asyncio.ensure_future(_run(ground, sandbox, f"sleep {ground.idle_seconds + 3}"))
    try:
        await asyncio.sleep(ground.idle_seconds + 1.5)
        status = str((await _record(ground, sandbox))["status"])
    finally:
        quiet.cancel()
        await asyncio.gather(quiet, return_exceptions=True)
    awake = status == "running"
    seen = f"{status} {ground.idle_seconds + 1.5:g} s into a quiet command, with a time-out of {ground.idle_seconds} s"
    return Observed(awake, seen, {"tensorlake.open_requests_are_activity": awake})


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
            return Observed(True, f"taken; {ran.stdout.strip()[:80]}", {"tensorlake.root_status": None})
        case CommandOutput():
            return Observed(False, f"taken, and it could not become the agent's user ({_reason(ran)})")
        case Refused(status=status):
            return Observed(False, _reason(ran), {"tensorlake.root_status": status})
        case _:
            return Observed(False, _reason(ran))


async def follow(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    name = f"certify-{time.monotonic_ns()}"
    loops = int(_HELD * 5)
    script = f"echo first; for i in $(seq {loops}); do [ -e /tmp/{name} ] && break; sleep 0.2; done; echo last"
    refusal = await ground.host.start(sandbox.id, ProcessSpec(name, "sh", ["-c", script]))
    if refusal is not None:
        raise NotTried(f"a program could not be started: {_reason(refusal)}")
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
    await _run(ground, sandbox, f"touch {over}")  # both end: a kill by name would end one
    if first is not None:
        raise NotTried(f"a program could not be started: {_reason(first)}")
    said = "taken" if again is None else _reason(again)
    behaviour = {"tensorlake.process_names_unique": running == 1} if running else {}
    return Observed(running == 1, f"the second start: {said}; {running} run", behaviour)


async def snapshot_listing(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    taken = await ground.host.snapshot(sandbox.id)
    if not isinstance(taken, Snapshot):
        raise NotTried(f"no snapshot could be taken: {_reason(taken)}")

    async def drop() -> None:
        await ground.host.delete_snapshot(taken.id)

    ground.owe(f"snapshot {taken.id}", drop)
    listed = await ground.host.list_snapshots()
    rows = [row for row in getattr(listed, "rows", ()) if row.id == taken.id]
    if not rows:
        return Observed(False, "it is not listed")
    typed = rows[0].filesystem is True and rows[0].sandbox_id == sandbox.id
    seen = "listed with its sandbox and its type" if typed else "listed without its sandbox or its type"
    return Observed(typed, seen, {"tensorlake.snapshots_have_type": rows[0].filesystem is not None})


async def wildcards(ground: Ground) -> Observed:
    name = ground.new_name()
    ground.owe(name, lambda: ground.end_sandbox(name))
    spec = ground.spec(name, egress=EgressPolicy(internet=True, allow=("*.anthropic.com",)))
    made = await ground.host.create(spec)
    match made:
        case Created():
            return Observed(True, "taken", {"tensorlake.wildcard_status": None})
        case Refused(status=status):
            return Observed(False, f"refused: HTTP {status}", {"tensorlake.wildcard_status": status})
        case _:
            raise NotTried(_reason(made))


async def live_copy(ground: Ground) -> Observed:
    source = await ground.shared()
    name = ground.new_name()
    ground.owe(name, lambda: ground.end_sandbox(name))
    rows = await ground.host.copy(source.id, [name])
    match rows:
        case Refused(status=status):
            return Observed(False, f"refused: HTTP {status}", {"tensorlake.copy_status": status})
        case [SandboxRecord()]:
            return Observed(True, "one copy runs under its new name", {"tensorlake.copy_status": None})
        case [failed]:
            return Observed(False, _reason(failed))
        case _:
            return Observed(False, _reason(rows))


async def daemon_inside(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    request = json.dumps({"reach": {}, "daemon": ground.daemon_port})
    ran = await ground.host.run(
        sandbox.id,
        wire.WORKER_PYTHON,
        ["-I", "-c", inspect.getsource(inside), request],
        env={},
        user=ground.context.settings.sandbox_user,
        working_dir="/",
        timeout=45.0,
    )
    try:
        answers: dict[str, dict[str, Any]] = json.loads(ran.stdout)["daemon"] if isinstance(ran, CommandOutput) else {}
    except (ValueError, KeyError):
        answers = {}
    if not isinstance(ran, CommandOutput) or ran.exit_code != 0:
        raise NotTried(f"nothing could be run in it: {_reason(ran)}")
    told = [
        f"{what} {status}"
        for daemon in answers.values()
        for what, status in daemon.items()
        if what != "root" and 200 <= status < 300
    ]
    seen = f"answers without a token: {', '.join(sorted(set(told)))}" if told else "refuses, or is not there"
    return Observed(not told, seen, {"tensorlake.daemon_open_inside": bool(told)})


async def _run(ground: Ground, sandbox: SandboxRecord, script: str, user: str | None = None) -> Any:
    return await ground.host.run(
        sandbox.id, "sh", ["-c", script], env={}, user=user, working_dir="/", timeout=ground.idle_seconds + 60.0
    )


async def _record(ground: Ground, sandbox: SandboxRecord) -> dict[str, Any]:
    answer = await ground.lifecycle("GET", f"/sandboxes/{sandbox.id}")
    if answer.status_code != 200:
        raise NotTried(f"its record could not be read: HTTP {answer.status_code}")
    return dict(answer.json())


async def _listed(ground: Ground) -> list[SandboxRecord]:
    listing = await ground.host.list_sandboxes()
    rows = getattr(listing, "rows", None)
    if rows is None:
        raise NotTried(f"sandboxes could not be listed: {_reason(listing)}")
    return list(rows)


def _reason(outcome: object) -> str:
    if isinstance(outcome, CommandOutput):
        return f"exit status {outcome.exit_code}"
    return str(getattr(outcome, "reason", "it is gone"))


_RESUME: Final = "docs/wire/tensorlake.md#56-suspend-and-resume"
_NAMES: Final = "docs/wire/tensorlake.md#52-names"
_LIST: Final = "docs/wire/tensorlake.md#53-get-and-list"
_PROCESSES: Final = "docs/wire/tensorlake.md#71-start_process"

CHECKS: Final = (
    ServiceCheck(
        "sandbox.boot-time",
        "docs/wire/tensorlake.md#11-quotas-and-prices",
        f"a sandbox of the session image runs within {_SLOW:.0f} s",
        "the first answer of a session is late: a smaller image; near `BIND_SECONDS` claims are given back",
        boot_time,
    ),
    ServiceCheck(
        "sandbox.resume-time",
        "docs/wire/tensorlake.md#11-quotas-and-prices",
        f"a suspended sandbox runs within {_SLOW:.0f} s of its resume",
        "every message after a pause waits so long: a longer `IDLE_GRACE_SECONDS` costs less patience",
        resume_time,
    ),
    ServiceCheck(
        "sandbox.name-release",
        _NAMES,
        f"a name is free within {_RELEASE:.0f} s of its sandbox's end",
        "a session whose sandbox has failed gets its new one only on a later drain",
        name_release,
    ),
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
        "sandbox.quiet-command",
        "docs/wire/tensorlake.md#57-timeout_secs",
        "an open request is traffic, though nothing is said on it",
        "`SANDBOX_TIMEOUT_SECONDS` must be longer than the longest quiet tool",
        quiet_command,
        240.0,
    ),
    ServiceCheck(
        "sandbox.sleeper-url",
        _RESUME,
        "the record of a suspended sandbox has `sandbox_url`",
        "commands that look into a sleeper must resume it first",
        sleeper_url,
    ),
    ServiceCheck(
        "sandbox.traffic-wakes",
        _RESUME,
        "a request to a suspended sandbox wakes it",
        "a server in a sandbox sleeps through its webhooks: use another place for the functions",
        traffic_wakes,
    ),
    ServiceCheck(
        "sandbox.look-leaves-asleep",
        _RESUME,
        "a GET and a list wake no sleeper",
        "every tick wakes every session's sandbox: fewer ticks, and a shorter `RETENTION_SECONDS`",
        look_leaves_asleep,
    ),
    ServiceCheck(
        "sandbox.resume-moves",
        _RESUME,
        "a sandbox has the same address after a resume",
        "a kept address misses once after each resume and is asked for anew",
        resume_moves,
    ),
    ServiceCheck(
        "sandbox.list-order",
        _LIST,
        "the oldest sandboxes are listed first",
        "nothing is lost: a tick reads all pages within its budget, and then knows the newest first",
        list_order,
    ),
    ServiceCheck(
        "sandbox.list-ended",
        _LIST,
        "ended sandboxes are listed",
        "pages are shorter; nothing depends on the ended ones",
        list_ended,
    ),
    ServiceCheck(
        "sandbox.snapshot-listing",
        "docs/wire/tensorlake.md#6-snapshots",
        "a snapshot is listed with its sandbox and its type",
        "a tick deletes no leftover snapshot of a race, as it cannot tell it from a person's",
        snapshot_listing,
    ),
    ServiceCheck(
        "sandbox.wildcards",
        "docs/wire/tensorlake.md#51-create",
        "an egress list takes names that begin with `*.`",
        "`SANDBOX_ALLOW_OUT` must name each host",
        wildcards,
    ),
    ServiceCheck(
        "sandbox.copy",
        "docs/wire/tensorlake.md#58-copy",
        "a running sandbox can be copied live, and the copy can be named",
        "races with `checkpoint: live` cannot be run: leave it at `filesystem`",
        live_copy,
    ),
    ServiceCheck(
        "sandbox.daemon-inside",
        "docs/wire/tensorlake.md#510-ports",
        "the daemon's port obeys nobody inside who has no token",
        "an agent may be root in its own sandbox (HANDS703): nothing may be in it that the agent must not have",
        daemon_inside,
    ),
)
