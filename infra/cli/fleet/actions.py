"""Steering one session: an action says what it leads to, asks where it loses something, and is done when it says so."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Final

from image.session.claim import IDENTITY_FILE, STOP_SIGNAL
from infra.cli.environ import Loaded
from infra.cli.fleet.target import AWAKE, NotCarriedOut, Target, done, target
from infra.cli.session.follow import FeedBroken, FeedRefused
from shared import names
from shared.claims.known_sandboxes import LONGEST
from shared.claims.worker_process import WORKER_NAMES
from shared.ports import Absent, CommandOutput, Doubtful, ItemState, SandboxRecord, SandboxStatus, SessionStatus

_WAIT_SECONDS: Final = 90.0
_FIRST_PAUSE: Final = 0.2
_LONGEST_PAUSE: Final = 2.0
_AT_WORK: Final = (ItemState.STARTING, ItemState.ACTIVE, ItemState.STOPPING)
KEPT: Final = "keep-"
_LONGEST_NAME: Final = 57
_CLOSE_SECONDS: Final = 20.0
_CLOSE_BYTES: Final = 4096
_WRITE_IN_ONE_STEP: Final = 'printf "%s\\n" "$2" >"$1.$$" && mv -f "$1.$$" "$1"'

Confirm = Callable[[str], bool]
Act = Callable[[Target, Confirm], Awaitable[str | None]]


class Declined(NotCarriedOut):
    """The person said no, or nobody was there to ask."""


async def run(loaded: Loaded, session_id: str, act: Act, *, yes: bool) -> int:
    """Print what was done. 0 done, 1 not. Raises SettingsError, FeedRefused, FeedBroken."""

    def confirm(what: str) -> bool:
        if yes:
            return True
        if not sys.stdin.isatty():
            raise Declined(f"{what} Nobody is here to ask: say --yes (with make: YES=1) to do it")
        print(f"{what} Go on? [y/N] ", end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    try:
        async with target(loaded, session_id) as aim:
            said = await act(aim, confirm)
    except NotCarriedOut as error:
        print(error, file=sys.stderr)
        return 1
    if said is None:
        print("Nothing was changed.", file=sys.stderr)
        return 1
    print(said)
    return 0


async def stop(aim: Target, confirm: Confirm) -> str | None:
    item = next((item for item in await aim.items() if item.state is not ItemState.STOPPED), None)
    if item is None:
        return f"{aim.session.id} has no work to stop."
    if not confirm(f"This stops {item.id}: a command that runs is ended, and its result may be lost."):
        return None
    await aim.queue.stop(aim.session.environment_id, item.id)
    await _tell_worker(aim)

    async def stopped() -> bool:
        return all(each.state is ItemState.STOPPED for each in await aim.items() if each.id == item.id)

    await _until(stopped, f"{item.id} is stopping, and its worker has not ended yet")
    return f"Stopped {item.id}. The session's next message starts new work: make session SESSION={aim.session.id}"


async def interrupt(aim: Target, confirm: Confirm) -> str | None:
    """No question: the session goes on with its next message."""
    if aim.session.status is not SessionStatus.RUNNING and not await _waits(aim):
        return f"{aim.session.id} is at rest: there is no turn to interrupt."
    await aim.people.interrupt(aim.session.id)

    async def at_rest() -> bool:
        return (await aim.people.session(aim.session.id)).status is not SessionStatus.RUNNING and not await _waits(aim)

    await _until(at_rest, "the turn has not ended yet; a tool that runs may take its time")
    return f"Interrupted. {aim.session.id} keeps its sandbox and waits for a message; a command that ran was ended."


async def _tell_worker(aim: Target) -> None:
    """It hears of its stop with the next heartbeat, half a minute later at most; this is sooner. Where it cannot be
    told it is left at that."""
    try:
        box = await aim.sandbox()
    except NotCarriedOut:
        return
    found = await aim.host.process_names(box.id) if box is not None and box.status in AWAKE else Absent()
    if box is None or isinstance(found, Absent | Doubtful):
        return
    workers = [each.name for each in found if each.running and each.name.startswith(WORKER_NAMES)]
    await asyncio.gather(*(aim.host.signal(box.id, name, STOP_SIGNAL) for name in workers))


async def archive(aim: Target, confirm: Confirm) -> str | None:
    if aim.session.archived:
        return f"{aim.session.id} is archived already."
    if not confirm(
        f"This archives {aim.session.id}: it takes no message any more, and the next tick ends its sandbox with the "
        "files in it."
    ):
        return None
    await _at_rest_first(aim)
    await aim.people.archive(aim.session.id)

    async def archived() -> bool:
        record = await aim.people.session(aim.session.id)
        return record.archived or record.status is SessionStatus.TERMINATED

    await _until(archived, "the service has not archived it yet")
    return f"Archived {aim.session.id}. To keep its files: hands keep {aim.session.id}, before the next tick"


async def remove(aim: Target, confirm: Confirm) -> str | None:
    box = await aim.sandbox()
    files = f" and ends its sandbox {box.id} with the files in it" if box is not None else ""
    if not confirm(f"This deletes {aim.session.id} with its history{files}."):
        return None
    await _at_rest_first(aim)
    await _collect_first(aim, box)
    await aim.people.delete(aim.session.id)
    if box is not None:
        done(await aim.host.terminate(box.id), f"the session is deleted; ending its sandbox {box.id}")

        async def gone() -> bool:
            return await aim.sandbox() is None

        await _until(gone, f"the session is deleted, and its sandbox {box.id} has not ended yet")
    return f"Deleted {aim.session.id}{' and its sandbox' if box is not None else ''}."


async def _collect_first(aim: Target, box: SandboxRecord | None) -> None:
    """Raises NotCarriedOut where OUTPUTS_TO is set and something of the session's outputs is not there yet."""
    outputs = aim.settings.outputs
    if outputs is None or box is None:
        return
    from shared.outputs.collector import Collector, NotCollected

    try:
        await aim.awake_sandbox()
        collector = Collector(outputs, aim.host, user=aim.settings.sandbox_user or None)
        await collector.collect(names.canonical_session_id(aim.session.id), box.id)
    except NotCollected as error:
        raise NotCarriedOut(
            f"its outputs are not collected: {error}. Fetch them yourself (hands cp), or give them up: "
            f"OUTPUTS_TO= hands rm {aim.session.id}"
        ) from None


async def keep(aim: Target, confirm: Confirm) -> str | None:
    box = await aim.need_sandbox()
    await _no_worker(aim, "keep")
    name = f"{KEPT}{aim.sandbox_name}"[:_LONGEST_NAME].rstrip("-")
    if not confirm(
        f"This makes the sandbox yours, as {name}: nothing here ends it any more, and it costs until you do. The "
        "session's next message gets a fresh sandbox with an empty workspace."
    ):
        return None
    done(await aim.host.rename(box.id, name), f"renaming {box.id}")
    kept = f"{box.id} is now {name}. End it in the Tensorlake console when you are done."
    closed = await _close_to_workers(aim, box, name)
    if closed is None:
        return kept
    return (
        f"{kept} It could not be closed to the session's workers ({closed}): send the session no message for "
        f"{LONGEST / 60:.0f} minutes, or one may begin in it."
    )


async def _close_to_workers(aim: Target, box: SandboxRecord, name: str) -> str | None:
    """Workers begin in no sandbox that belongs to somebody else. A copy of the functions that has served the session
    goes back to its sandbox without a look at the name (shared/claims/known_sandboxes.py). Why not, where it fails."""
    try:
        if box.status not in AWAKE:
            done(await aim.host.resume(box.id), f"waking {box.id}")
        written = await aim.host.run(
            box.id,
            "sh",
            ["-c", _WRITE_IN_ONE_STEP, "sh", IDENTITY_FILE, name],
            env={},
            user=aim.settings.sandbox_user or None,
            working_dir=None,
            timeout=_CLOSE_SECONDS,
            limit=_CLOSE_BYTES,
        )
        if not isinstance(written, CommandOutput):
            done(written, f"writing {IDENTITY_FILE}")
        elif written.exit_code:
            raise NotCarriedOut(f"writing {IDENTITY_FILE} ended with status {written.exit_code}")
    except NotCarriedOut as error:
        return str(error)
    return None


async def suspend(aim: Target, confirm: Confirm) -> str | None:
    box = await aim.need_sandbox()
    if box.status is SandboxStatus.SUSPENDED:
        return f"{box.id} sleeps already."
    await _no_worker(aim, "suspend")
    done(await aim.host.suspend(box.id), f"suspending {box.id}")
    await _until_status(aim, SandboxStatus.SUSPENDED)
    return f"{box.id} sleeps, with its files and programs; it costs storage alone. The next message wakes it."


async def resume(aim: Target, confirm: Confirm) -> str | None:
    box = await aim.need_sandbox()
    if box.status is SandboxStatus.RUNNING:
        return f"{box.id} is awake already."
    done(await aim.host.resume(box.id), f"waking {box.id}")
    await _until_status(aim, SandboxStatus.RUNNING)
    return (
        f"{box.id} is awake, and costs, until a tick finds nobody in it, or its idle time-out is over. "
        f"Look in: hands shell {aim.session.id}"
    )


async def _waits(aim: Target) -> bool:
    from infra.cli.fleet.survey import open_calls

    return bool(open_calls(await aim.people.last_events(aim.session.id, 30)))


async def _at_rest_first(aim: Target) -> None:
    """A session that runs can be neither archived nor deleted (docs/wire/anthropic.md, section 8)."""
    if (await aim.people.session(aim.session.id)).status is SessionStatus.RUNNING:
        raise NotCarriedOut(f"{aim.session.id} runs. End its turn first: hands interrupt {aim.session.id}")


async def _no_worker(aim: Target, command: str) -> None:
    """A sandbox that somebody works in is not taken away."""
    item = next((item for item in await aim.items() if item.state in _AT_WORK), None)
    if item is not None:
        raise NotCarriedOut(
            f"a worker holds {item.id} in it. Wait until it is idle, or: hands stop {aim.session.id}, "
            f"then hands {command} {aim.session.id}"
        )


async def _until_status(aim: Target, status: SandboxStatus) -> None:
    async def there() -> bool:
        record: SandboxRecord = await aim.need_sandbox()
        return record.status is status

    await _until(there, f"the sandbox is not {status.value} yet")


async def _until(condition: Callable[[], Awaitable[bool]], otherwise: str) -> None:
    """Raises NotCarriedOut after _WAIT_SECONDS. A look that fails is no answer."""
    end, pause = time.monotonic() + _WAIT_SECONDS, _FIRST_PAUSE
    while True:
        try:
            if await condition():
                return
        except FeedBroken:
            pass
        except FeedRefused as error:
            raise NotCarriedOut(f"{otherwise}; looking again was refused: {error}") from None
        if time.monotonic() > end:
            raise NotCarriedOut(f"{otherwise} after {_WAIT_SECONDS:g} s. It may still happen: hands ps")
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, _LONGEST_PAUSE)
