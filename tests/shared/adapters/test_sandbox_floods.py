"""A sandbox that answers without end: each call gives up at its limit, long before the sandbox stops."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import pytest

from shared.adapters import tensorlake_sandboxes
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.byte_budget import SMALL, BudgetUsedUp, ByteBudget, Share, within
from shared.ports import Absent, CommandOutput, Doubtful, OutputEnded, ProcessState, Refused
from shared.secret import Secret
from tests.support.http_stub import StubHandler, stub_server
from tests.support.waiting import until

_T = TypeVar("_T")
ENDLESS: Final = 400_000_000
EXIT: Final = b'data: {"exit_code":0,"reason":"exited"}\n\n'


def frame(line: str, stream: str = "stdout") -> bytes:
    return b"data: " + json.dumps({"line": line, "timestamp": 1, "stream": stream}).encode() + b"\n\n"


@dataclass
class Daemon:
    """What the sandbox says: `chunks` again and again up to ENDLESS bytes where `endless`, else once. `sent` counts."""

    chunks: list[bytes] = field(default_factory=list)
    endless: bool = False
    kind: str = "text/event-stream"
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    sent: int = 0
    moved: bool = False
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def daemon() -> Iterator[tuple[Daemon, Callable[[Callable[[TensorlakeSandboxes], Awaitable[Any]]], Any]]]:
    """A daemon, and what calls a host that knows it as the sandbox `box`."""
    said = Daemon()

    class Handler(StubHandler):
        def reply(self) -> None:
            self.body()
            said.asked.append(f"{self.command} {self.path}")
            here = f"http://{self.headers['host']}"
            if "/v1/namespaces/" in self.path:
                row = {"id": "box", "namespace": "default", "status": "running", "created_at": 1_760_000_000_000}
                url = f"{here}/new" if said.moved else f"{here}/old"
                sizes = {"cpus": 1.0, "memory_mb": 1024, "disk_mb": 1024}
                self.say(
                    200, "application/json", [json.dumps({**row, "resources": sizes, "sandbox_url": url}).encode()]
                )
            elif said.moved and self.path.startswith("/old"):
                self.say(404, "application/json", [b"{}"])
            else:
                self.say(said.status, said.kind, said.chunks, count=True)

        do_GET = do_POST = do_PUT = do_DELETE = reply

        def say(self, status: int, kind: str, chunks: list[bytes], count: bool = False) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            for name, value in said.headers.items():
                self.send_header(name, value)
            self.send_header("connection", "close")
            self.end_headers()
            try:
                while True:
                    for chunk in chunks:
                        self.wfile.write(chunk)
                        said.sent += len(chunk) if count else 0
                    if not count or not said.endless or said.sent > ENDLESS:
                        return
            except OSError:
                return  # the reader has hung up

    def call(work: Callable[[TensorlakeSandboxes], Awaitable[_T]]) -> _T:
        async def main() -> _T:
            host = TensorlakeSandboxes(
                api_url=url, api_key=Secret("TENSORLAKE_API_KEY", "tl-no-key"), bind_seconds=20.0
            )
            try:
                return await work(host)
            finally:
                await host.aclose()

        return asyncio.run(main())

    with stub_server(Handler) as url:
        yield said, call


async def run(host: TensorlakeSandboxes, limit: int = 100_000) -> Any:
    return await host.run("box", "x", [], env={}, user=None, working_dir=None, timeout=60.0, limit=limit)


async def followed(host: TensorlakeSandboxes, limit: int = 1_000) -> list[Any]:
    return [item async for item in host.follow_output("box", "worker", silence=20.0, limit=limit)]


FLOODS: Final = {
    "lines": [frame("x" * 1_000)] * 50,
    "empty lines": [frame("")] * 500,
    "one line without an end": [b"data: " + b"x" * 60_000],
    "one frame of many lines": [b"data: " + b"x" * 1_000 + b"\n"] * 60,
    "comments": [b": " + b"x" * 1_000 + b"\n\n"] * 60,
    "errors": [frame("x" * 1_000, "stderr")] * 50,
}
CALLS: Final[dict[str, Callable[[TensorlakeSandboxes], Awaitable[Any]]]] = {
    "run": run,
    "follow": followed,
    "file": lambda host: host.read_file("box", "/x", 100_000),
    "list": lambda host: host.process_names("box"),
    "state": lambda host: host.process_state("box", "worker"),
    "start's answer": lambda host: host.kill("box", "worker"),
}


@pytest.mark.parametrize("flood", FLOODS)
@pytest.mark.parametrize("call", CALLS)
def test_a_flood_is_given_up_at_the_limit(daemon: Any, flood: str, call: str) -> None:
    said, calling = daemon
    said.chunks, said.endless = FLOODS[flood], True
    outcome = calling(CALLS[call])
    last = outcome[-1] if isinstance(outcome, list) else outcome
    assert isinstance(last, Doubtful | Refused), outcome
    assert "larger than" in last.reason
    assert said.sent < ENDLESS / 4


def test_the_first_lines_of_a_flooded_output_are_read(daemon: Any) -> None:
    said, calling = daemon
    said.kind, said.endless = "application/json", True
    said.chunks = [b'{"pid": 1, "lines": ["ready", "' + b"x" * 900 + b'"', *[b', "more"'] * 5_000]
    lines = calling(lambda host: host.process_output("box", "worker", 10_000))
    assert lines[:2] == ["ready", "x" * 900]
    assert set(lines[2:]) == {"more"}
    assert said.sent < ENDLESS / 4


def test_all_answers_together_have_a_budget(daemon: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensorlake_sandboxes, "BYTES_IN_FLIGHT", 100_000)
    said, calling = daemon
    said.chunks, said.endless = [b"x" * 10_000], True
    outcome = calling(lambda host: host.read_file("box", "/x", 50_000_000))
    assert outcome == Doubtful("too much is being read from sandboxes at once")
    said.chunks, said.endless, said.kind = [frame("hi"), EXIT], False, "text/event-stream"
    assert calling(lambda host: run(host, SMALL)) == CommandOutput(0, "hi", "", timed_out=False)


def test_what_small_answers_need_is_set_aside_and_given_back() -> None:
    budget = ByteBudget(400_000)
    with budget.hold(1_000_000) as large:
        large.grow(300_000)
        with pytest.raises(BudgetUsedUp):
            large.grow(1)
        with budget.hold(SMALL) as small:
            small.grow(SMALL)
    with budget.hold(1_000_000) as again:
        again.grow(300_000)


FLOODED: Final = """
import asyncio, json, resource, sys
from shared.adapters.tensorlake_sandboxes import TensorlakeSandboxes
from shared.secret import Secret
MIB = 1024 * 1024
resource.setrlimit(resource.RLIMIT_DATA, (512 * MIB, 512 * MIB))

def most():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) // 1024

async def main():
    key = Secret("TENSORLAKE_API_KEY", "tl-no-key")
    host = TensorlakeSandboxes(api_url=sys.argv[1], api_key=key, bind_seconds=60.0)
    def program():
        return host.run("box", "x", [], env={}, user=None, working_dir=None, timeout=60.0, limit=512 * 1024)
    def listing():
        return host.read_file("box", "/listing", MIB)
    async def worker():
        return [item async for item in host.follow_output("box", "worker", silence=60.0)][-1]
    await asyncio.gather(program(), listing(), worker())
    before = most()
    ended = await asyncio.gather(*(call() for call in (program, listing, worker) for _ in range(16)))
    print(json.dumps([most() - before, sorted({type(each).__name__ for each in ended})]))

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory was used at most")
def test_flooded_from_48_sides_this_process_takes_less_than_64_mib_more(daemon: Any) -> None:
    """Programs, files and workers at once, with half a gibibyte for all that the process allocates."""
    said, calling = daemon
    said.chunks, said.endless = [frame("x" * 60_000)] * 5, True
    done = calling(lambda host: asyncio.to_thread(flooded, host._api_url))
    assert done.returncode == 0, done.stderr[-2000:]
    grown, outcomes = json.loads(done.stdout)
    assert grown < 64
    assert set(outcomes) <= {"Doubtful", "Refused"}


@pytest.fixture
def half_a_gibibyte() -> Iterator[Path]:
    """A memory cgroup of 512 MiB, of either version; skips where none can be made."""
    group = _limited("/sys/fs/cgroup", "memory.max") or _limited("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
    if group is None:
        pytest.skip("no memory cgroup can be made here")
    yield group
    until(lambda: not (group / "cgroup.procs").read_text(), "a process is left in the cgroup")
    group.rmdir()


def _limited(top: str, limit: str) -> Path | None:
    group = Path(top, f"hands-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        return None
    try:
        if (group / limit).exists():
            (group / limit).write_text(str(512 << 20))
            return group
    except OSError:
        pass
    group.rmdir()
    return None


@pytest.mark.skipif(sys.platform != "linux", reason="cgroups are Linux's")
def test_flooded_in_a_cgroup_of_half_a_gibibyte_it_grows_no_more_than_that(daemon: Any, half_a_gibibyte: Path) -> None:
    said, calling = daemon
    said.chunks, said.endless = [frame("x" * 60_000)] * 5, True
    enter = ["/bin/sh", "-c", 'echo $$ > "$0/cgroup.procs" && exec "$@"', str(half_a_gibibyte)]
    done = calling(lambda host: asyncio.to_thread(flooded, host._api_url, enter))
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
    assert json.loads(done.stdout)[0] < 64


def flooded(url: str, wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [*wrapper, sys.executable, "-c", FLOODED, url]
    return subprocess.run(command, capture_output=True, text=True, timeout=240, env={"PATH": "/usr/bin:/bin"})


def test_who_has_a_share_takes_no_more_than_that_and_its_tasks_take_of_it() -> None:
    async def main() -> None:
        budget, race = ByteBudget(4_000_000), Share(200_000)

        async def branch(wanted: int) -> str:
            with within(Share(150_000)), budget.hold(1_000_000) as held:
                try:
                    held.grow(wanted)
                except BudgetUsedUp:
                    return "given up"
                await asyncio.sleep(0)
                return "read"

        with within(race):
            assert await branch(160_000) == "given up"  # its own share
            assert list(await asyncio.gather(branch(140_000), branch(140_000))) == ["read", "given up"]  # the race's
            assert await branch(140_000) == "read"
        assert race.free == 200_000
        with budget.hold(1_000_000) as other:
            other.grow(900_000)

    asyncio.run(main())


def test_an_output_arrives_as_it_was_written(daemon: Any) -> None:
    said, calling = daemon
    said.chunks = [
        b'data: {"handle":1,"pid":42,"started_at":1}\r\n\r\n',
        frame("one")[:9],
        frame("one")[9:] + frame("err", "stderr") + frame(""),
        b": a comment\n\nevent: other\ndata: {\n\ndata: [1]\n\n" + frame("Größe \U0001f600"),
        b'data: {"line":"no time","stream":"stdout"}\n\n',
        b'data: {"signal":9,\ndata: "reason":"timed_out","oom_killed":false}\n\n',
    ]
    assert calling(run) == CommandOutput(-9, "one\n\nGröße \U0001f600", "err", timed_out=True)


@pytest.mark.parametrize(
    ("chunks", "kind", "reason"),
    [
        ([frame("hi")], "text/event-stream", "the stream ended before the program's end was told"),
        ([EXIT], "text/html", "the answer is no event stream"),
    ],
)
def test_an_answer_that_is_not_whole_is_doubtful(daemon: Any, chunks: list[bytes], kind: str, reason: str) -> None:
    said, calling = daemon
    said.chunks, said.kind = chunks, kind
    assert calling(run) == Doubtful(reason)


def test_a_compressed_answer_is_not_unpacked_and_a_redirect_not_followed(daemon: Any) -> None:
    said, calling = daemon
    said.chunks, said.headers = [b"x"], {"content-encoding": "gzip"}
    assert isinstance(calling(lambda host: host.read_file("box", "/x", 10)), Doubtful)
    said.status, said.headers = 307, {"location": "/elsewhere"}
    assert calling(lambda host: host.read_file("box", "/x", 10)) == Doubtful("HTTP 307")
    assert not any("elsewhere" in path for path in said.asked)


def test_followed_lines_end_with_their_outcome(daemon: Any) -> None:
    said, calling = daemon
    said.chunks = [b"event: output\n" + frame("a"), b"event: output\n" + frame("b"), b"event: eof\ndata: {}\n\n"]
    assert calling(followed) == ["a", "b", OutputEnded()]
    del said.chunks[-1]
    assert calling(followed) == ["a", "b", Doubtful("the stream was closed before its end")]
    said.status = 404
    assert calling(followed) == [Absent()]


def test_a_sandbox_that_moved_is_served_at_its_new_address(daemon: Any) -> None:
    """An address is a cache: it is dropped when nothing is there any more."""
    said, calling = daemon
    said.kind, said.chunks = "application/json", [b'{"status": "running"}']

    async def twice(host: TensorlakeSandboxes) -> Any:
        before = await host.process_state("box", "worker")
        said.moved = True
        return before, await host.process_state("box", "worker")

    state = ProcessState("worker", running=True)
    assert calling(twice) == (state, state)
    assert [path for path in said.asked if "/new/" in path] == ["GET /new/api/v1/processes/worker"]
