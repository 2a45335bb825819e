"""Release 0.1.0 and this version serve one environment side by side, both ways round (`make upgrade-check`).

For each way to run them (`poll`, and `serve` with webhooks and ticks), each order and each image the first version's
copy serves, the second one's joins it while sessions are in flight, the first is ended, and every session gets one more
message. Nothing may be lost, doubled or ended: each tool call is answered once, each session keeps its one sandbox and
its file, no item is stranded. Exit codes: 0 so it is, 1 it is not, 2 there is no history at hand.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anthropic
import httpx2

from infra.local import Options, Platform
from tests.support.ports import free_port
from tests.support.signing import KEY

ROOT: Final = Path(__file__).resolve().parents[2]
RELEASE: Final = "b66f2ec"
"""The commit of 0.1.0."""
WAYS: Final = ("poll", "serve")
_PATIENCE: Final = 240.0
_TICK: Final = 5.0
_TOKEN: Final = "an-operators-token-of-nobody-at-all"


@dataclass(frozen=True, slots=True)
class ReleaseTree:
    """A tree of this project, and the module of its command line."""

    name: str
    folder: Path
    module: str

    def command(self, *args: str) -> list[str]:
        return [sys.executable, "-m", self.module, *args]


@contextmanager
def copy_of(
    version: ReleaseTree, way: str, platform: Platform, environ: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """`poll` or `serve` of that version, ended with SIGTERM. A server gets webhooks, and a tick every few seconds."""
    port = free_port()
    command = ["poll"] if way == "poll" else ["serve", "--host", "127.0.0.1", "--port", str(port)]
    own = {"FUNCTIONS_TOKEN": _TOKEN, "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY}
    with log.open("ab") as out:
        process = subprocess.Popen(
            version.command(*command), cwd=version.folder, env={**os.environ, **environ, **own}, stdout=out, stderr=out
        )
        try:
            with contextlib.ExitStack() as stack:
                if way == "serve":
                    stack.enter_context(_called(platform, f"http://127.0.0.1:{port}"))
                yield process
        finally:
            process.terminate()
            try:
                process.wait(120)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def _called(platform: Platform, url: str) -> Iterator[None]:
    """Webhooks and ticks go to that server while the block lasts. It is up when the block begins."""
    end = time.monotonic() + _PATIENCE
    while not _sent("GET", f"{url}/healthz"):
        if time.monotonic() > end:
            raise TimeoutError(f"no server answers at {url}")
        time.sleep(0.2)
    endpoint = platform.claude.post("webhooks", {"url": f"{url}/", "signing_key": KEY})
    over = threading.Event()

    def tick() -> None:
        while not over.wait(_TICK):
            _sent("POST", f"{url}/poll_tick")

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        yield
    finally:
        over.set()
        platform.claude.delete(f"webhooks/{endpoint['id']}")
        thread.join()


def _sent(method: str, url: str) -> bool:
    """Whether an answer came that is no error of the server's."""
    try:
        answer = httpx2.request(
            method, url, headers={"authorization": f"Bearer {_TOKEN}"}, timeout=120.0, trust_env=False
        )
    except httpx2.TransportError:
        return False
    return answer.status_code < 500


def unpack(folder: Path) -> None:
    """The release's tree. Raises CalledProcessError where the commit is not at hand."""
    archive = subprocess.run(["git", "archive", RELEASE], cwd=ROOT, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(folder, filter="data")


def round_of(
    first: ReleaseTree, second: ReleaseTree, image: ReleaseTree, way: str, sessions: int, folder: Path
) -> list[str]:
    """One order with one image; what is wrong."""
    with Platform(Options(build_image=False)) as platform:
        environ = {**platform.environ, "RUNNER_MAX_IDLE_SECONDS": "1"}  # so that a second message is a new item
        subprocess.run(
            image.command("build"), cwd=image.folder, env={**os.environ, **environ}, check=True, capture_output=True
        )
        api = anthropic.Anthropic(api_key=environ["ANTHROPIC_API_KEY"], base_url=environ["ANTHROPIC_BASE_URL"])
        ids = []
        with copy_of(first, way, platform, environ, folder / "first.log") as one:
            for number in range(sessions):
                ids.append(_session(api, environ, f"$ sleep {1 + number % 3}; echo {number} >> kept.txt"))
            time.sleep(2.0)
            with copy_of(second, way, platform, environ, folder / "second.log") as two:
                for number in range(sessions):
                    ids.append(_session(api, environ, f"$ sleep {1 + number % 3}; echo {number} >> kept.txt"))
                time.sleep(1.0)
                one.terminate()
                problems = _until_quiet(api, ids, 1)
                problems += _until_stopped(platform)
                for session_id in ids:
                    _say(api, session_id, "$ wc -l < kept.txt")
                problems += _until_quiet(api, ids, 2)
                if two.poll() is not None:
                    problems.append(f"the copy of {second.name} ended by itself")
        return problems + _judged(platform, api, ids)


def _session(api: anthropic.Anthropic, environ: Mapping[str, str], prompt: str) -> str:
    session = api.beta.sessions.create(
        agent=environ["ANTHROPIC_AGENT_ID"], environment_id=environ["ANTHROPIC_ENVIRONMENT_ID"]
    )
    _say(api, session.id, prompt)
    return session.id


def _say(api: anthropic.Anthropic, session_id: str, text: str) -> None:
    message: Any = {"type": "user.message", "content": [{"type": "text", "text": text}]}
    api.beta.sessions.events.send(session_id, events=[message])


def _events(api: anthropic.Anthropic, session_id: str) -> list[Any]:
    return list(api.beta.sessions.events.list(session_id, limit=1000))


def _until_quiet(api: anthropic.Anthropic, ids: list[str], turns: int) -> list[str]:
    """Every session has answered so many calls."""
    end = time.monotonic() + _PATIENCE
    open_ids = list(ids)
    while open_ids and time.monotonic() < end:
        time.sleep(1.0)
        open_ids = [
            each for each in open_ids if sum(event.type == "user.tool_result" for event in _events(api, each)) < turns
        ]
    return [f"{each}: turn {turns} is not served after {_PATIENCE:.0f} s" for each in open_ids]


def _until_stopped(platform: Platform) -> list[str]:
    """No worker is left that a message could reach without an item."""
    end = time.monotonic() + _PATIENCE
    while any(item["state"] != "stopped" for item in platform.claude.get("state")["items"]):
        if time.monotonic() > end:
            return ["items do not stop when their sessions are idle"]
        time.sleep(0.5)
    return []


def _judged(platform: Platform, api: anthropic.Anthropic, ids: list[str]) -> list[str]:
    problems = []
    for session_id in ids:
        events = _events(api, session_id)
        calls = [event.id for event in events if event.type == "agent.tool_use"]
        answers = Counter(event.tool_use_id for event in events if event.type == "user.tool_result")
        doubled = [call for call in calls if answers[call] != 1]
        if doubled or len(calls) != 2:
            problems.append(f"{session_id}: {len(calls)} calls, answers {sorted(answers.values())}")
        texts = [
            event.content[0].text.strip() for event in events if event.type == "user.tool_result" and event.content
        ]
        if texts and texts[-1] != "1":
            problems.append(f"{session_id}: its file has {texts[-1]!r} lines")
    names = Counter(
        row["name"] for row in platform.tensorlake.get("state")["sandboxes"] if row["status"] != "terminated"
    )
    if len(names) != len(ids) or max(names.values(), default=0) > 1:
        problems.append(f"{len(names)} sandboxes for {len(ids)} sessions")
    ended = [row for row in platform.tensorlake.get("state")["sandboxes"] if row["status"] in ("terminated", "failed")]
    if ended:
        problems.append(f"{len(ended)} sandboxes were ended")
    if len(platform.claude.get("state")["items"]) != 2 * len(ids):
        problems.append(f"{len(platform.claude.get('state')['items'])} items for {2 * len(ids)} turns")
    stranded = [item["id"] for item in platform.claude.get("state")["items"] if item["state"] == "starting"]
    if stranded:
        problems.append(f"stranded: {', '.join(stranded)}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.upgrade", description=__doc__)
    parser.add_argument("--sessions", type=int, default=4, help="before and after the second version joins, each")
    parser.add_argument("--way", choices=WAYS, help="how both versions are run; default: each in turn")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="upgrade-") as scratch:
        old = ReleaseTree("0.1.0", Path(scratch) / "release", "infra.operator")
        new = ReleaseTree("this version", ROOT, "infra.cli")
        try:
            unpack(old.folder)
        except (OSError, subprocess.CalledProcessError):
            told = f"No history is at hand: {RELEASE}, the release, is not in this clone. Try git fetch --unshallow."
            print(told, file=sys.stderr)
            return 2
        worst = 0
        trials = itertools.product(WAYS if given.way is None else (given.way,), ((old, new), (new, old)), (old, new))
        for way, (first, second), image in trials:
            began = time.monotonic()
            problems = round_of(first, second, image, way, given.sessions, Path(scratch))
            seconds = time.monotonic() - began
            told = "nothing lost, doubled or ended" if not problems else "; ".join(problems)
            print(f"{way}: {first.name} -> {second.name}, image of {image.name}: {told} ({seconds:.0f} s)", flush=True)
            if problems:
                worst = 1
                for log in sorted(Path(scratch).glob("*.log")):
                    print(f"--- {log.name}\n{log.read_text()[-1500:]}")
        return worst


if __name__ == "__main__":
    sys.exit(main())
