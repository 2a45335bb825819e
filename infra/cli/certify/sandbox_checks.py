"""Assumptions about what sandboxes are: their names, their lists, their copies, how quickly they are there
(docs/wire/tensorlake.md#5-lifecycle-endpoints)."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.certify.sandbox_looks import listed, reason, record
from shared.ports import Created, NameTaken, NoCapacity, Refused, SandboxRecord, SandboxSpec, Snapshot

if TYPE_CHECKING:
    import httpx2

_SLOW: Final = 10.0
"""Seconds: what takes longer is felt by whoever waits for a session."""
_RELEASE: Final = 5.0
_LONGEST_RELEASE: Final = 60.0
_PORT: Final = 8123
_KEPT_AS: Final = {"network": "network_policy", "ports": "exposed_ports", "timeout": "timeout_secs"}
"""How a record names what a copy may have of its source."""
_KEPT: Final = {"network", "timeout"}


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
        return Observed(False, f"it could not be resumed: {reason(refusal)}")
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
            raise NotTried(f"a sandbox could not be made: {reason(made)}")
        if seconds > _LONGEST_RELEASE:
            return Observed(False, f"still held {_LONGEST_RELEASE:.0f} s after the end")
        await asyncio.sleep(0.25)
    behaviour = {"tensorlake.name_release_seconds": round(seconds, 1)}
    return Observed(seconds <= _RELEASE, f"free about {seconds:.1f} s after the end", behaviour)


async def name_taken(ground: Ground) -> Observed:
    """And how the service words a refusal."""
    holder = await ground.shared()
    wanted = {
        **{"name": holder.name, "image": ground.environment.image, "timeout_secs": 60},
        "resources": {"cpus": 1.0, "memory_mb": 1024},
    }
    answer = await ground.lifecycle("POST", "/sandboxes", wanted)
    if answer.status_code < 300:
        second = f"/sandboxes/{answer.json()['sandbox_id']}"

        async def end() -> None:
            await ground.lifecycle("DELETE", second)

        ground.owe(second, end)
        return Observed(False, f"HTTP {answer.status_code}: a second sandbox has the name")
    try:
        body = answer.json()
    except ValueError:
        body = None
    fields = ", ".join(sorted(str(field)[:20] for field in list(body)[:5])) if isinstance(body, dict) else "plain text"
    status = answer.status_code
    behaviour = {"tensorlake.name_taken_status": status} if 400 <= status < 500 else {}
    return Observed(status == 409, f"HTTP {status}, a body with: {fields}", behaviour)


async def list_order(ground: Ground) -> Observed:
    older = await ground.shared()
    newer = await ground.sandbox()
    ids = [row.id for row in await listed(ground)]
    if older.id not in ids or newer.id not in ids:
        raise NotTried("the list has not both sandboxes")
    order = "oldest_first" if ids.index(older.id) < ids.index(newer.id) else "newest_first"
    return Observed(order == "oldest_first", order.replace("_", " "), {"tensorlake.list_order": order})


async def list_ended(ground: Ground) -> Observed:
    sandbox = await ground.sandbox()
    await ground.host.terminate(sandbox.id)
    await asyncio.sleep(0 if ground.context.offline else 2.0)
    stays = any(row.id == sandbox.id for row in await listed(ground))
    seen = "an ended one is listed" if stays else "an ended one is not listed"
    return Observed(stays, seen, {"tensorlake.list_has_ended": stays})


async def list_pages(ground: Ground) -> Observed:
    await ground.shared()
    first = await _page(ground)
    if len(first["sandboxes"]) == 1 and not _cursors(first):
        await ground.sandbox()  # the account has no other, and ended ones are not listed
        first = await _page(ground)
    if len(first["sandboxes"]) > 1:
        raise NotTried(f"a page of one was asked for, and {len(first['sandboxes'])} sandboxes came")
    keys = _cursors(first)
    if not keys:
        return Observed(False, "one sandbox of several, and no cursor")
    behaviour = {"tensorlake.page_key": keys[0]} if keys[0] in ("cursor", "next_cursor") else {}
    return Observed("cursor" in keys, f"the next page is named by `{', '.join(keys)}`", behaviour)


async def _page(ground: Ground) -> dict[str, Any]:
    answer = await ground.lifecycle("GET", "/sandboxes", limit=1)
    if answer.status_code != 200:
        raise NotTried(f"a page of one cannot be had: HTTP {answer.status_code}")
    return dict(answer.json())


def _cursors(page: dict[str, Any]) -> list[str]:
    return sorted(name[:20] for name, value in page.items() if name != "sandboxes" and isinstance(value, str) and value)


async def sleeper_url(ground: Ground) -> Observed:
    has = "sandbox_url" in await record(ground, await ground.suspended())
    seen = "its record has `sandbox_url`" if has else "its record has no `sandbox_url`"
    return Observed(has, seen, {"tensorlake.sleepers_have_url": has})


async def resume_moves(ground: Ground) -> Observed:
    before = (await record(ground, await ground.shared())).get("sandbox_url")
    sandbox = await ground.suspended()
    refusal = await ground.host.resume(sandbox.id)
    if refusal is not None:
        raise NotTried(f"it could not be resumed: {reason(refusal)}")
    moved = (await record(ground, sandbox)).get("sandbox_url") != before
    seen = "the address is another one" if moved else "the address is the same"
    return Observed(not moved, seen, {"tensorlake.resume_moves": moved})


async def snapshot_of(ground: Ground, sandbox: SandboxRecord) -> Snapshot:
    taken = await ground.host.snapshot(sandbox.id)
    if not isinstance(taken, Snapshot):
        raise NotTried(f"no snapshot could be taken: {reason(taken)}")

    async def drop() -> None:
        await ground.host.delete_snapshot(taken.id)

    ground.owe(f"snapshot {taken.id}", drop)
    return taken


async def snapshot_listing(ground: Ground) -> Observed:
    sandbox = await ground.shared()
    taken = await snapshot_of(ground, sandbox)
    listing = await ground.host.list_snapshots()
    rows = [row for row in getattr(listing, "rows", ()) if row.id == taken.id]
    if not rows:
        return Observed(False, "it is not listed")
    typed = rows[0].filesystem is True and rows[0].sandbox_id == sandbox.id
    seen = "listed with its sandbox and its type" if typed else "listed without its sandbox or its type"
    return Observed(typed, seen, {"tensorlake.snapshots_have_type": rows[0].filesystem is not None})


async def from_snapshot(ground: Ground) -> Observed:
    source = await ground.shared()
    name = ground.new_name()
    path = f"{ground.context.settings.workdir}/{name}"
    refusal = await ground.host.write_file(source.id, path, name.encode())
    if refusal is not None:
        raise NotTried(f"a file could not be written: {reason(refusal)}")
    taken = await snapshot_of(ground, source)
    ground.owe(name, lambda: ground.end_sandbox(name))
    made = await ground.host.create(
        SandboxSpec(name, snapshot_id=taken.id, timeout_seconds=60, egress=ground.environment.egress)
    )
    if isinstance(made, NoCapacity):
        raise NotTried(f"there is no room for it: {reason(made)}")
    if not isinstance(made, Created):
        return Observed(False, f"a create from a snapshot: {reason(made)}")
    has = await ground.host.read_file(made.sandbox.id, path, 1024) == name.encode()
    await ground.host.delete_file(source.id, path)
    seen = "its file is there" if has else "it runs, and the file is not there"
    return Observed(has, seen, {"tensorlake.snapshots_keep_files": has})


async def live_copy(ground: Ground) -> Observed:
    """Of a source that has a port for it, and a time-out that is not the service's own."""
    source = await ground.shared()
    name = ground.new_name()
    ground.owe(name, lambda: ground.end_sandbox(name))
    try:
        if (await _expose(ground, source, [_PORT])).status_code >= 300:
            raise NotTried("the source could not be given a port")
        rows = await ground.host.copy(source.id, [name])
        match rows:
            case Refused(status=status):
                return Observed(False, f"refused: HTTP {status}", {"tensorlake.copy_status": status})
            case [SandboxRecord() as copy]:
                before, after = await record(ground, source), await record(ground, copy)
            case [failed]:
                return Observed(False, reason(failed))
            case _:
                return Observed(False, reason(rows))
    finally:
        await _expose(ground, source, [])
    told = {what for what, key in _KEPT_AS.items() if before.get(key)}  # a source without a policy shows nothing of it
    kept = {what for what in told if after.get(_KEPT_AS[what]) == before[_KEPT_AS[what]]}
    seen = f"a copy runs under its new name; it has its source's {_words(kept)}, not its {_words(told - kept)}"
    behaviour = {"copy_status": None, "copies_keep": sorted(kept | (_KEPT - told))}
    return Observed(kept == _KEPT & told, seen, {f"tensorlake.{knob}": value for knob, value in behaviour.items()})


async def _expose(ground: Ground, sandbox: SandboxRecord, ports: list[int]) -> httpx2.Response:
    return await ground.lifecycle("PATCH", f"/sandboxes/{sandbox.id}", {"exposed_ports": ports})


def _words(whats: set[str]) -> str:
    return ", ".join(sorted(whats)) or "other settings"


_RESUME: Final = "docs/wire/tensorlake.md#56-suspend-and-resume"
_NAMES: Final = "docs/wire/tensorlake.md#52-names"
_LIST: Final = "docs/wire/tensorlake.md#53-get-and-list"
_SNAPSHOTS: Final = "docs/wire/tensorlake.md#6-snapshots"
_COPY: Final = "docs/wire/tensorlake.md#58-copy"

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
        "sandbox.name-taken",
        _NAMES,
        "a create under a name that is held is refused with 409",
        "two claims at once make two sandboxes of one session, or a claim that lost the race counts as a failure",
        name_taken,
    ),
    ServiceCheck(
        "sandbox.sleeper-url",
        _RESUME,
        "the record of a suspended sandbox has `sandbox_url`",
        "commands that look into a sleeper must resume it first",
        sleeper_url,
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
        "sandbox.list-pages",
        _LIST,
        "a list names its next page by `cursor`",
        "the SDK reads one page: a tick never sees the other sandboxes",
        list_pages,
    ),
    ServiceCheck(
        "sandbox.snapshot-listing",
        _SNAPSHOTS,
        "a snapshot is listed with its sandbox and its type",
        "a tick deletes no leftover snapshot of a race, as it cannot tell it from a person's",
        snapshot_listing,
    ),
    ServiceCheck(
        "sandbox.from-snapshot",
        _SNAPSHOTS,
        "a sandbox that is made from a snapshot has its files",
        "races and forks begin with an empty workspace: leave `AGENT_FORK` off",
        from_snapshot,
    ),
    ServiceCheck(
        "sandbox.copy",
        _COPY,
        "a running sandbox can be copied live; the copy can be named, and has its time-out and network policy alone",
        "races with `checkpoint: live` cannot be run, or their branches reach more or live longer than the source",
        live_copy,
    ),
)
