"""Rule I6 (docs/architecture.md#i6): the agent's user finds no standing credential in its
sandbox, and not even its own item's secret or the capability that came with it.

A program looks for them from a tool call, as the agent could: in every file it can read, and in the environment,
the arguments, the open files and the memory of every process. It is told what to look for backwards, so that it does
not find itself.
"""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import json
from typing import Any, Final

import pytest

from shared.capability import FORK, Capability, issue
from shared.claims.dispatcher import Dispatcher
from shared.ports import PollOutcome, WorkItem
from tests.faults.test_claims_under_faults import heal
from tests.support.world import API_KEY, Place, running

PLANTED: Final = "the-one-thing-that-it-must-find"
SCAN: Final = r"""
import os, re, sys
needles = [text[::-1].encode() for text in sys.argv[1:]]
found, looked = set(), 0
def look(where, data):
    global looked
    looked += 1
    for number, needle in enumerate(needles):
        if needle in data:
            found.add(f"needle {number} in {where}")
def read(path):
    try:
        with open(path, "rb") as file:
            return file.read(20_000_000)
    except OSError:
        return b""
for root in ("/workspace", "/tmp", "/var/tmp", "/var/lib", "/opt/hands", "/home", "/run", "/mnt", "/etc", "/dev/shm"):
    for folder, folders, files in os.walk(root):
        folders[:] = [name for name in folders if name not in ("venv", "site-packages")]
        for name in files:
            look(os.path.join(folder, name), read(os.path.join(folder, name)))
processes = [pid for pid in os.listdir("/proc") if pid.isdigit() and int(pid) != os.getpid()]
memories = 0
for pid in processes:
    for part in ("environ", "cmdline"):
        look(f"{part} of {pid}", read(f"/proc/{pid}/{part}"))
    try:
        for fd in os.listdir(f"/proc/{pid}/fd"):
            target = os.readlink(f"/proc/{pid}/fd/{fd}")
            if target.startswith(("/memfd", "/tmp", "/var")):
                look(f"fd {fd} of {pid}", read(f"/proc/{pid}/fd/{fd}"))
    except OSError:
        pass
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", 0) as memory:
            memories += 1
            for line in maps:
                start, end, mode = re.match(r"([0-9a-f]+)-([0-9a-f]+) (....)", line).groups()
                if mode[0] == "r":
                    try:
                        memory.seek(int(start, 16))
                        look(f"memory of {pid}", memory.read(int(end, 16) - int(start, 16)))
                    except (OSError, ValueError, OverflowError):
                        pass
    except OSError:
        pass
print(f"looked={looked} processes={len(processes)} memories={memories} found={sorted(found)}")
"""


@dataclasses.dataclass
class Listening:
    """A queue that remembers the secrets it handed out."""

    queue: Any
    secrets: list[str]

    async def poll(self) -> PollOutcome:
        outcome: PollOutcome = await self.queue.poll()
        if isinstance(outcome, WorkItem) and outcome.secret:
            self.secrets.append(outcome.secret)
        return outcome

    def __getattr__(self, name: str) -> Any:
        return getattr(self.queue, name)


@pytest.mark.usefixtures("interpreters")
def test_i6_the_agent_finds_no_credential_in_files_environments_arguments_or_memory(place: Place) -> None:
    secrets: list[str] = []

    async def serve(dispatcher: Dispatcher) -> None:
        await dataclasses.replace(dispatcher, queue=Listening(dispatcher.queue, secrets)).drain()

    async def first_turn() -> None:
        async with place.dispatcher() as dispatcher:
            await serve(dispatcher)
            sandbox = running(await dispatcher.host.find(place.sandbox(session)))
            for path, text in (("/workspace/scan.py", SCAN), ("/workspace/planted", PLANTED)):
                assert await dispatcher.host.write_file(sandbox.id, path, text.encode()) is None

    place = place.world.place(
        RUNNER_MAX_IDLE_SECONDS="20",
        AGENT_FORK="true",
        FUNCTIONS_TOKEN="an-operators-token-of-nobody-at-all",
        FUNCTIONS_PUBLIC_URL="http://127.0.0.1:9",
    )
    session = place.session("$ true")
    asyncio.run(first_turn())
    place.wait_done(session)

    keys = ("ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY", "FUNCTIONS_TOKEN")
    standing = [API_KEY, *(place.environ[key] for key in keys)]
    tokens = [json.loads(base64.urlsafe_b64decode(secret + "=="))["sessions_token"] for secret in secrets]
    assert tokens
    work_id = place.item(session)["id"]
    # Only the time in it is not known here: what stands before that is in every capability of this session.
    issued = issue(Capability(FORK, place.environment_id, session, work_id, 8, 120.0, 0), b"")
    needles = [PLANTED, *standing, *secrets, *tokens, issued[: issued.index(".", 4) - 8]]
    place.say(session, "$ python3 scan.py " + " ".join(f"'{needle[::-1]}'" for needle in needles))
    heal(place, session, turns=2)
    (answer,) = [text for text in place.answers(session) if "looked=" in text]
    assert "found=['needle 0 in /workspace/planted']" in answer, answer
    # It looked at something: at least at the worker and the shell, and into the memory of the shell.
    facts = dict(part.split("=") for part in answer[answer.index("looked=") :].split()[:3])
    assert int(facts["looked"]) > 20
    assert int(facts["processes"]) >= 3
    assert int(facts["memories"]) >= 1
