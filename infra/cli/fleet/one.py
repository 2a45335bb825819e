"""Looking at one session (`show`)."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from rich.text import Text

from image.session.claim import Notice, Word
from infra.cli.environ import Loaded
from infra.cli.fleet import alarms
from infra.cli.fleet.changes import changes
from infra.cli.fleet.survey import deaths_among, in_words, open_calls
from infra.cli.fleet.table import console, table
from infra.cli.fleet.target import AWAKE, NotCarriedOut, Target, target
from infra.cli.session.render import summarise
from shared import names
from shared.capability import FORK
from shared.claims.worker_process import WORKER_NAMES
from shared.ports import Absent, Doubtful, ProcessState, SandboxRecord
from shared.texts import printable

_CONSOLE_PAGE: Final = "https://platform.claude.com/workspaces/{}/managed-agents/sessions/{}"
_EVENTS: Final = 100
_LONGEST_DETAIL: Final = 500
_FILES_SHOWN: Final = 20


async def show(loaded: Loaded, session_id: str, *, as_json: bool) -> int:
    """All that is known of a session. Wakes nothing. Raises SettingsError, FeedRefused, FeedBroken."""
    try:
        async with target(loaded, session_id) as aim:
            raised = asyncio.create_task(_alarms(aim))
            try:
                facts = await facts_of(aim, loaded)
                if not as_json:
                    _draw(facts)  # nobody waits for the alarms with an empty screen
                if as_json:
                    print(json.dumps({**facts, "alarms": await raised}, indent=2))
                else:
                    _draw_alarms(await raised, aim.session.id)
            finally:
                raised.cancel()
                await asyncio.wait([raised])
    except NotCarriedOut as error:
        print(error, file=sys.stderr)
        return 1
    return 0


async def _alarms(aim: Target) -> list[str] | None:
    """None where they could not be known."""
    suffix = names.canonical_session_id(aim.session.id).removeprefix("sesn_")
    marks = {f"sesn_{suffix}", f"session_{suffix}", aim.sandbox_name}
    return await alarms.of_session(aim.service, aim.session.environment_id, marks)


async def facts_of(aim: Target, loaded: Loaded) -> dict[str, Any]:
    """What `show --json` prints, without the alarms."""
    now = time.time()
    items, box, events = await asyncio.gather(
        aim.items(), aim.sandbox(), aim.people.last_events(aim.session.id, _EVENTS)
    )
    workspace = loaded.environ.get("ANTHROPIC_WORKSPACE_ID", "").strip()
    (processes, first, notices), changed = await asyncio.gather(_workers(aim, box), changes(aim, box))
    return {
        "session": asdict(aim.session),
        "console": _CONSOLE_PAGE.format(workspace, aim.session.id) if workspace else None,
        "calls": [
            {
                "id": call.id,
                "name": call.name,
                "input": summarise(call.input),
                "seconds": now - call.began if call.began is not None else None,
                "waits_for": "a person" if call.asks else "a custom tool" if call.custom else "a worker",
            }
            for call in open_calls(events)
        ],
        "last_error": next((_error(event) for event in reversed(events) if event.get("type") == "session.error"), None),
        "items": [asdict(item) for item in items],
        "sandbox": {
            "name": aim.sandbox_name,
            "id": box.id if box is not None else None,
            "state": box.status.value if box is not None else None,
            "created_at": box.created_at.timestamp() if box is not None and box.created_at is not None else None,
            "timeout_seconds": box.timeout_seconds if box is not None else None,
        },
        "workers": [
            {
                "name": each.name,
                "running": each.running,
                "exit_code": each.exit_code,
                "pid": each.pid,
                "died": deaths_among([each]) > 0,
            }
            for each in processes
        ],
        "deaths": deaths_among(processes),
        "worker_says": _said(notices),
        "setup": _setup_steps([*first, *notices]),
        "files": asdict(changed) if changed is not None else None,
        "races": races_of(events),
    }


def races_of(events: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The races that the agent asked for, as far back as these events: `said` is what it was told first."""
    told = {
        str(event.get("custom_tool_use_id")): _first_line(event)
        for event in events
        if event.get("type") == "user.custom_tool_result"
    }
    return [
        {"call": str(event.get("id")), "over": str(event.get("id")) in told, "said": told.get(str(event.get("id")), "")}
        for event in events
        if event.get("type") == "agent.custom_tool_use" and event.get("name") == FORK
    ]


def _first_line(result: Mapping[str, Any]) -> str:
    content = result.get("content")
    first = content[0] if isinstance(content, list) and content else None
    text = first.get("text") if isinstance(first, Mapping) else None
    return printable(text.strip().partition("\n")[0], _LONGEST_DETAIL) if isinstance(text, str) else ""


async def _workers(
    aim: Target, box: SandboxRecord | None
) -> tuple[Sequence[ProcessState], Sequence[Notice], Sequence[Notice]]:
    """And what the first one, which makes the set-up, and the newest one have said; nothing of a first that is both."""
    processes = await _processes(aim, box)
    if box is None or not processes:
        return processes, (), ()
    newest = max(processes, key=lambda each: (each.running, started(each.name)))
    first = min(processes, key=lambda each: started(each.name))
    told = await asyncio.gather(
        *(_notices(aim, box, each) for each in {first.name: first, newest.name: newest}.values())
    )
    return processes, told[0] if len(told) > 1 else (), told[-1]


async def _processes(aim: Target, box: SandboxRecord | None) -> Sequence[ProcessState]:
    """The workers that the sandbox remembers; none of a sleeper, which a look would wake."""
    if box is None or box.status not in AWAKE:
        return ()
    found = await aim.host.process_names(box.id)
    if isinstance(found, Absent | Doubtful):
        return ()
    return [each for each in found if each.name.startswith(WORKER_NAMES)]


async def _notices(aim: Target, box: SandboxRecord, worker: ProcessState) -> Sequence[Notice]:
    """What it has said, as far as its sandbox tells: the agent could have said it as well."""
    lines = await aim.host.process_output(box.id, worker.name)
    if isinstance(lines, Absent | Doubtful):
        return ()
    return [notice for line in lines if (notice := Notice.from_line(line)) is not None]


def _setup_steps(notices: Sequence[Notice]) -> list[dict[str, Any]]:
    """`at` in Unix seconds, None where the worker did not tell."""
    steps = [notice for notice in notices if notice.word is Word.SETUP]
    return [{"at": step.at or None, "text": printable(step.detail, _LONGEST_DETAIL)} for step in steps]


def _said(notices: Sequence[Notice]) -> dict[str, Any] | None:
    """Its version, whether it has the lease, and how far its set-up is; None where it has said nothing."""
    if not notices:
        return None
    last = notices[-1]
    setup = [notice.detail for notice in notices if notice.word is Word.SETUP]
    return {
        "state": last.word.value,
        "detail": printable(last.detail, _LONGEST_DETAIL),
        "leased": any(notice.word is Word.LEASED for notice in notices) and last.word is not Word.ENDED,
        "sdk": printable(last.sdk, 40),
        "archive": printable(last.worker, 64),
        "setup": printable(setup[-1], _LONGEST_DETAIL) if setup else None,
    }


def started(name: str) -> int:
    """A worker's start in Unix seconds, as its name says (shared/claims/worker_process.py); 0 where it does not."""
    try:
        return int(name.split("-")[-2], 16)
    except (IndexError, ValueError):
        return 0


def _error(event: Any) -> str:
    error = event.get("error")
    return printable(f"{error.get('type')}: {error.get('message')}", 500) if isinstance(error, dict) else "unknown"


def _draw(facts: dict[str, Any]) -> None:
    out, now = console(), time.time()
    session, box = facts["session"], facts["sandbox"]
    pairs = [
        ("session", session["id"]),
        ("title", session["title"]),
        ("state", session["status"] + (", archived" if session["archived"] else "")),
        ("environment", session["environment_id"]),
        ("age", in_words(now - session["created_at"])),
        ("tokens", f"{session['tokens_in']} in, {session['tokens_out']} out" if session["tokens_in"] else ""),
        ("console", facts["console"] or ""),
        ("sandbox", f"{box['id']}  {box['state']}" if box["id"] else "none now"),
        ("", f"named {box['name']}" if box["id"] else ""),
        ("last error", facts["last_error"] or ""),
    ]
    out.print(table(("", ""), [pair for pair in pairs if pair[1]]))
    for call in facts["calls"]:
        since = f" for {in_words(call['seconds'])}" if call["seconds"] is not None else ""
        out.print(table(("call", ""), [(f"{call['name']}  {call['input']}", f"waits for {call['waits_for']}{since}")]))
    if facts["items"]:
        out.print("")
        out.print(
            table(("item", "state", "age", "acked", "last beat", "stopped"), [_item(each) for each in facts["items"]])
        )
    if facts["workers"]:
        out.print("")
        cells = [
            (each["name"], "runs" if each["running"] else f"ended with {each['exit_code']}")
            for each in facts["workers"]
        ]
        out.print(table(("worker", "state"), cells))
        said = facts["worker_says"]
        if said is not None:
            lease = "has the lease" if said["leased"] else said["state"]
            told = f"{lease}, anthropic {said['sdk'] or 'unknown'}, worker {said['archive'][:12]}"
            out.print(
                table(("says", ""), [(told, said["detail"]), *([("set-up", said["setup"])] if said["setup"] else [])])
            )
        if facts["deaths"]:
            out.print(f"{facts['deaths']} of them died", style="red")

    _draw_races(facts["races"])
    _draw_files(facts["files"])


def _draw_races(races: Sequence[Mapping[str, Any]]) -> None:
    if races:
        rows = [(race["call"], "over" if race["over"] else "runs", race["said"]) for race in races]
        console().print("")
        console().print(table(("race", "state", "told"), rows))


def _draw_files(files: Mapping[str, Any] | None) -> None:
    if files is None or not files["files"]:
        return
    rows = [(each["how"], each["path"]) for each in files["files"][:_FILES_SHOWN]]
    more = len(files["files"]) - len(rows)
    console().print("")
    console().print(table(("file", "as git tells" if files["source"] == "git" else "since it began"), rows))
    if more:
        least = "" if files["complete"] else "at least "
        console().print(f"and {least}{more} more: --json", style="dim", highlight=False)


def _draw_alarms(lines: Sequence[str] | None, session_id: str) -> None:
    out = console()
    if lines is None:
        out.print("\nIts alarms could not be read: hands alarms", style="yellow")
    elif lines:
        out.print(Text("\n" + "\n".join(lines)), style="red")
    out.print(f"\nnext:  hands logs {session_id}   hands run {session_id} -- ls", style="dim", highlight=False)


def _item(item: dict[str, Any]) -> tuple[str, ...]:
    now = time.time()

    def ago(stamp: float | None) -> str:
        return f"{in_words(now - stamp)} ago" if stamp is not None else ""

    times = ("acknowledged_at", "latest_heartbeat_at", "stopped_at")
    return (item["id"], str(item["state"]), in_words(now - item["created_at"]), *(ago(item[name]) for name in times))
