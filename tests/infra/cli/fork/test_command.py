"""`fork` as a person runs it: in this process against real sandboxes, and where the functions are served."""

from __future__ import annotations

import asyncio
import contextlib
import html
import http.server
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import pytest
from rich.console import Console
from typer.testing import CliRunner

from infra.cli.__main__ import app
from infra.cli.environ import Loaded
from infra.cli.fork.client import RecordingHost
from infra.cli.fork.command import ForkOptions, RaceConsole, cancel, run, wait
from infra.cli.fork.request import BadInput, Flags, read_request
from shared import names
from shared.errors import SettingsError
from shared.ports import Absent, CommandOutput, Doubtful, SandboxRecord, SandboxSpec
from shared.races import events
from shared.service import Service
from tests.functions.test_fork_best_of_n import SESSION, for_a_minute, served
from tests.support.checkout import copy_checkout
from tests.support.fake_host import FakeCall, FakeHost
from tests.support.http_stub import StubHandler, stub_server
from tests.support.serving import TOKEN
from tests.support.waiting import until
from tests.support.world import IMAGE, Place

PATIENT: Final = {
    "RECLAIM_SECONDS": "90",
    "BIND_SECONDS": "45",
    "HANDOVER_SECONDS": "30",
    "STRANDED_SECONDS": "180",
    "DRAIN_DEADLINE_SECONDS": "110",
    "FUNCTIONS_URL": "",
}
# What a terminal must not see, in an output that a person looks at.
HOSTILE: Final = r"printf '\033[2J\033]0;owned\007<b>loud</b>\n'"


def environ_of(place: Place) -> dict[str, str]:
    return {**place.environ, **PATIENT}


def ran(
    environ: dict[str, str], flags: Flags, options: ForkOptions | None = None, stand: RaceConsole | None = None
) -> int:
    request = read_request("", flags)
    return asyncio.run(run(Loaded(environ, None), request, options or ForkOptions(), stand))


def snapshots_of(place: Place) -> list[str]:
    """Ids of the snapshots of this environment's sandboxes, the ended ones included."""
    state = place.sandbox_state()
    ours = {box["id"] for box in state["sandboxes"]}
    return [row["id"] for row in state["snapshots"] if row["sandbox_id"] in ours and row["status"] != "deleted"]


def prefix_of(place: Place) -> str:
    return f"{place.settings.prefix}-{names.environment_tag(place.environment_id)}-"


def check_nothing_is_left(place: Place) -> None:
    assert (place.sandboxes(), snapshots_of(place)) == ([], [])


# ------------------------------------------------------------------------------------------------- in this process


def test_a_race_ends_with_a_table_a_page_and_0(
    place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    page = tmp_path / "race.html"
    tries = ("good=echo 2 > score", f"hostile={HOSTILE}; echo 1 > score", "bad=echo boom >&2; exit 3")
    flags = Flags(image=IMAGE, tries=tries, score="cat score", setup="echo x > base", artifacts=("score",))
    assert ran(environ_of(place), flags, ForkOptions(page=page)) == 0
    out, err = capsys.readouterr()
    lines = [line.split() for line in out.splitlines()]
    assert lines[0][0] == "race" and lines[0][2:] == ["3", "branches"]
    assert ["★", "good", "ok", "2", "0"] in [line[:5] for line in lines]
    assert "ended with exit code 3: boom" in out and "<b>loud</b>" in out
    assert "good won" in out and "2 artifacts" in out and out.splitlines()[-1].endswith("nothing is left.")
    assert "\x1b" not in out + err and "\x07" not in out + err
    assert html.escape("<b>loud</b>") in page.read_text(encoding="utf-8")
    check_nothing_is_left(place)


def test_json_is_the_report_alone_and_shows_no_control_character(
    place: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = Flags(image=IMAGE, tries=(f"a={HOSTILE}; printf '\\177'",))
    assert ran(environ_of(place), flags, ForkOptions(as_json=True)) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert report["winner"] == "a"
    assert "\x1b" in report["branches"][0]["stdout_tail"] and "\x7f" in report["branches"][0]["stdout_tail"]
    assert all(character == "\n" or " " <= character <= "~" for character in out)
    assert "a: running" in err and "\x1b" not in err


def test_a_race_without_a_winner_is_a_1(place: Place, capsys: pytest.CaptureFixture[str]) -> None:
    assert ran(environ_of(place), Flags(image=IMAGE, tries=("a=exit 1",))) == 1
    assert "Nobody won" in capsys.readouterr().out
    assert ran(environ_of(place), Flags(image=IMAGE, tries=("a=true",), dry_run=True)) == 1
    assert ran(environ_of(place), Flags(session="sesn_0Absent", tries=("a=true",))) == 1
    assert "✗" not in capsys.readouterr().out


def test_what_may_not_be_asked_here_is_a_2(place: Place, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert ran(environ_of(place), Flags(image=IMAGE, tries=("a=true",), deadline=80_000.0)) == 2
    assert "deadline" in capsys.readouterr().err
    with pytest.raises(SettingsError, match="TENSORLAKE_API_KEY"):
        ran({**environ_of(place), "TENSORLAKE_API_KEY": ""}, Flags(image=IMAGE, tries=("a=true",)))
    with pytest.raises(BadInput, match="--report"):
        ran(environ_of(place), Flags(image=IMAGE, tries=("a=true",)), ForkOptions(page=tmp_path / "no" / "such.html"))


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--image", "i", "--try", "no equals sign"], "--try:"),
        (["--image", "i", "--try", "a b=true"], "branches.0.name"),
        (["--image", "i", "--session", "s", "--try", "a=true"], "source"),
        (["--image", "i", "--try", "a=true", "--promote", "everything"], "promote"),
        (["not-there.yaml"], "not-there.yaml"),
        ([], "nothing was asked for"),
    ],
)
def test_a_wrong_command_line_is_a_2_that_says_what_is_wrong(args: list[str], said: str) -> None:
    clean = {"HANDS_RACE_FILE": "", "HANDS_SESSION": "", "FUNCTIONS_URL": ""}
    result = CliRunner().invoke(app, ["fork", *args], env=clean)
    assert (result.exit_code, said in result.stderr) == (2, True), result.output


def test_on_a_terminal_the_race_is_a_table_that_moves() -> None:
    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(0, "done \x1b[2J", "", timed_out=False)

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100, height=30, highlight=False, color_system=None)
    with offered(FakeHost(latency=0.02, program=program)) as url:
        assert ran({"FUNCTIONS_TOKEN": TOKEN}, AT_A_SESSION, ForkOptions(url=url), RaceConsole(console)) == 0
    shown = screen.getvalue()
    assert "last line" in shown and re.search(r"\b[ab] won", shown)  # alike: whoever was faster
    assert "\x1b[?25l" in shown and shown.rindex("\x1b[?25h") > shown.rindex("\x1b[?25l")  # the cursor comes back
    assert "\x1b[2J" not in shown


# -------------------------------------------------------------------------------------------------------- ctrl-C


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path / "checkout")


@asynccontextmanager
async def service_of(place: Place) -> AsyncIterator[Service]:
    service = Service(place.settings)
    try:
        yield service
    finally:
        await service.aclose()


@contextlib.contextmanager
def racing(checkout: Path, place: Place) -> Iterator[subprocess.Popen[str]]:
    """The command with two branches that take their time, both of which run."""
    args = ["fork", "--image", IMAGE, "--try", "a=sleep 60", "--try", "b=sleep 60", "--setup", "echo x > y"]
    with subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *args],
        cwd=checkout,
        env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **environ_of(place)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            both = itertools.islice((line for line in process.stdout if line.endswith(": running\n")), 2)
            assert {line.split()[2] for line in both} == {"a:", "b:"}
            yield process
        finally:
            process.kill()


def test_ctrl_c_cancels_the_race_and_says_what_it_ended(place: Place, checkout: Path) -> None:
    with racing(checkout, place) as process:
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "Traceback" not in err
    ended = next(line for line in err.splitlines() if "Ended:" in line)
    assert ended.count(prefix_of(place)) == 3  # the base and both branches, and the checkpoint beside them
    assert len(ended.split("Ended: ")[1].split(", ")) == 4
    check_nothing_is_left(place)


def test_a_second_ctrl_c_leaves_at_once_and_names_who_ends_the_rest(place: Place, checkout: Path) -> None:
    admin = place.world.tensorlake_admin
    with racing(checkout, place) as process:
        admin.post("faults", {"method": "DELETE", "action": "delay", "seconds": 60})
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "ctrl-C again leaves" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "reconciler" in err and "Traceback" not in err
    admin.delete("faults")
    left = place.sandboxes()
    assert len(left) == 2

    async def end() -> None:
        async with service_of(place) as service:
            for box in left:
                assert await service.host.terminate(str(box["id"])) is None
            for snapshot in snapshots_of(place):
                assert await service.host.delete_snapshot(snapshot) is None

    asyncio.run(end())
    check_nothing_is_left(place)


def test_the_ledger_knows_what_a_lost_answer_may_have_made(place: Place) -> None:
    def fault(action: str) -> None:
        rule = {"method": "POST", "path": "/sandboxes$", "action": action, "times": 1}
        place.world.tensorlake_admin.post("faults", rule)

    async def scene() -> None:
        ledger = RecordingHost(place.adjusted(**PATIENT).settings)
        names = [f"{prefix_of(place)}lost-{number}" for number in range(2)]
        try:
            for name, action in zip(names, ("drop_after", "drop_before"), strict=True):
                fault(action)
                assert isinstance(await ledger.create(SandboxSpec(name=name, image=IMAGE)), Doubtful)
            assert ledger.living == names
            found = [await ledger.find(name) for name in names]
            assert isinstance(found[0], SandboxRecord) and isinstance(found[1], Absent)
            assert ledger.living == names[:1]
            assert await ledger.terminate(found[0].id) is None
            assert (ledger.living, ledger.ended) == ([], names[:1])
        finally:
            await ledger.aclose()

    asyncio.run(scene())
    check_nothing_is_left(place)


# ---------------------------------------------------------------------------------------------- at FUNCTIONS_URL

AT_A_SESSION: Final = Flags(session=SESSION, tries=("a=true", "b=true"))


@contextlib.contextmanager
def offered(host: FakeHost | None = None, *, background: bool = False) -> Iterator[str]:
    """The address of served functions whose host has the session's sandbox."""
    made = host or FakeHost(latency=0.001)
    made.add(names.sandbox_name("hands", "env_1", SESSION))
    with served(made, background=background) as url:
        yield url.removesuffix("/fork_best_of_n") + "/"


def test_served_functions_race_with_their_token_and_no_other_key(capsys: pytest.CaptureFixture[str]) -> None:
    with offered() as url:
        assert ran({"FUNCTIONS_TOKEN": TOKEN}, AT_A_SESSION, ForkOptions(url=url)) == 0
        out = capsys.readouterr().out
        assert "b: running" in out and "a won" in out
        clean = {"FUNCTIONS_URL": url, "FUNCTIONS_TOKEN": "a-token-of-nobody", "HANDS_RACE_FILE": ""}
        assert ran(clean, AT_A_SESSION, ForkOptions(url=url)) == 2
        with pytest.raises(SettingsError, match="FUNCTIONS_TOKEN"):
            ran({}, AT_A_SESSION, ForkOptions(url=url))
    assert TOKEN not in out + capsys.readouterr().err


def test_a_race_is_begun_there_and_waited_for_later(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    environ = {"FUNCTIONS_TOKEN": TOKEN}
    page = tmp_path / "race.html"
    with offered(background=True) as url:
        options = ForkOptions(url=url, begin=True, key="nightly-7")
        assert ran(environ, AT_A_SESSION, options) == 0
        out, err = capsys.readouterr()
        race_id = out.strip()
        if names.is_race_id(race_id):  # else it was over before its answer
            assert f"hands fork --wait {race_id}" in err
        race_id = names.derived_race_id("env_1", "operator", "nightly-7")
        asked = read_request("", AT_A_SESSION)
        assert asyncio.run(wait(Loaded(environ, None), race_id, asked, ForkOptions(url=url, page=page))) == 0
        assert "a won" in capsys.readouterr().out and page.read_text(encoding="utf-8")
        assert ran(environ, AT_A_SESSION, ForkOptions(url=url, key="nightly-7", as_json=True)) == 0
        assert json.loads(capsys.readouterr().out)["race_id"] == race_id
        assert asyncio.run(wait(Loaded(environ, None), "0" * 12, None, ForkOptions(url=url))) == 1
        assert "no race of this id" in capsys.readouterr().err
        assert asyncio.run(cancel(Loaded(environ, None), race_id, ForkOptions(url=url, as_json=True))) == 0
        over = capsys.readouterr()
        assert json.loads(over.out) == {"race_id": race_id, "state": "finished"} and "was over: finished" in over.err
        assert asyncio.run(cancel(Loaded(environ, None), "0" * 12, ForkOptions(url=url))) == 1
        assert "no race of this id" in capsys.readouterr().err
    with offered() as url:
        assert ran(environ, AT_A_SESSION, ForkOptions(url=url, begin=True)) == 2
        assert "--async" not in capsys.readouterr().out


def test_what_is_for_served_functions_alone_says_so() -> None:
    with pytest.raises(BadInput, match="FUNCTIONS_URL"):
        ran({}, AT_A_SESSION, ForkOptions(begin=True))
    with pytest.raises(BadInput, match="FUNCTIONS_URL"):
        asyncio.run(wait(Loaded({}, None), "0" * 12, None, ForkOptions()))
    with pytest.raises(BadInput, match="FUNCTIONS_URL"):
        asyncio.run(cancel(Loaded({}, None), "0" * 12, ForkOptions()))


def test_a_race_that_was_begun_there_is_ended_there(capsys: pytest.CaptureFixture[str]) -> None:
    async def program(call: FakeCall) -> CommandOutput:
        await asyncio.sleep(300)
        raise AssertionError("nobody waits for it")

    loaded = Loaded({"FUNCTIONS_TOKEN": TOKEN}, None)
    with offered(FakeHost(latency=0.001, program=program), background=True) as url:
        assert ran(dict(loaded.environ), AT_A_SESSION, ForkOptions(url=url, begin=True)) == 0
        race_id = capsys.readouterr().out.strip()
        assert asyncio.run(cancel(loaded, race_id, ForkOptions(url=url))) == 0
        assert f"hands fork --wait {race_id}" in capsys.readouterr().err
        assert asyncio.run(wait(loaded, race_id, None, ForkOptions(url=url))) == 1
        assert "Nobody won" in (out := capsys.readouterr().out) and "was cancelled" in out


def test_what_served_functions_refuse_is_said_and_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    async def program(call: FakeCall) -> CommandOutput:
        return CommandOutput(2, "", "no rule\x1b[2J to make target", timed_out=False)

    environ = {"FUNCTIONS_TOKEN": TOKEN}
    with offered(FakeHost(latency=0.001, program=program)) as url:
        options = ForkOptions(url=url)
        assert ran(environ, Flags(session="sesn_0Absent", tries=("a=true",)), options) == 1
        assert ran(environ, Flags(session=SESSION, tries=("a=true",), deadline=80_000.0), options) == 2
        assert "deadline" in capsys.readouterr().err
        assert ran(environ, Flags(image="i", tries=("a=true",), setup="make"), options) == 1
        said = capsys.readouterr().err
        assert "no rule to make target" in said and "\x1b" not in said
        assert ran(environ, AT_A_SESSION, ForkOptions(url=f"{url}elsewhere")) == 2
    assert ran(environ, AT_A_SESSION, options) == 2  # nobody is there any more
    assert "no fork_best_of_n answers" in capsys.readouterr().err
    assert ran(environ, AT_A_SESSION, ForkOptions(url="no address")) == 2


def test_ctrl_c_hangs_up_and_the_functions_end_the_race(capsys: pytest.CaptureFixture[str]) -> None:
    source = names.sandbox_name("hands", "env_1", SESSION)
    host = FakeHost(latency=0.001, program=for_a_minute)

    class Impatient(RaceConsole):
        """Presses ctrl-C as soon as both branches run."""

        def tell(self, event: events.Event) -> None:
            super().tell(event)
            if [row.state for row in self.display.rows.values()] == ["running"] * 2:
                os.kill(os.getpid(), signal.SIGINT)

    with offered(host) as url:
        stand = Impatient(Console(file=io.StringIO()))
        assert ran({"FUNCTIONS_TOKEN": TOKEN}, AT_A_SESSION, ForkOptions(url=url), stand) == 130
        until(lambda: host.alive() == [source] and not host.snapshots, "the race went on")
    assert f"hung up: the functions cancel race {stand.display.race_id}" in capsys.readouterr().err


Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


@contextlib.contextmanager
def answering(answer: Answer) -> Iterator[str]:
    """A server that gives every POST this answer."""

    class Handler(StubHandler):
        def do_POST(self) -> None:
            self.body()
            answer(self)

    with stub_server(Handler) as url:
        yield url


def stream(*lines: bytes, length: int | None = None) -> Answer:
    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-type", "application/x-ndjson")
        request.send_header("content-length", str(length or sum(map(len, lines))))
        request.end_headers()
        request.wfile.write(b"".join(lines))

    return answer


BEGAN: Final = b'{"event":"race","race_id":"r1","branches":["a","b"],"at":0.0}\n'


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (stream(BEGAN), "the connection was lost"),
        (stream(BEGAN, b"\n\n", length=10_000), "the connection was lost"),
        (stream(BEGAN, b'{"event":"news"}\n'), "another version"),
        (stream(BEGAN, b"<html>\n"), "another version"),
        (
            stream(BEGAN, '{"event":"error","error":{"type":"internal","message":"a\u2028fault"}}\n'.encode()),
            "a\\u2028fault",
        ),
    ],
)
def test_a_stream_that_ends_without_a_report_is_a_1(
    answer: Answer, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with answering(answer) as url:
        assert ran({"FUNCTIONS_TOKEN": TOKEN}, AT_A_SESSION, ForkOptions(url=url)) == 1
    assert said in capsys.readouterr().err


def test_a_runtime_that_answers_all_at_once_is_understood(capsys: pytest.CaptureFixture[str]) -> None:
    report = {
        "race_id": "r1",
        "winner": None,
        "branches": [{"name": "a", "index": 0, "status": "failed"}],
        "checkpoint": None,
        "reaped": [],
        "leftovers": [],
        "timeline": [],
        "seconds": 1.0,
    }

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        body = json.dumps(report).encode()
        request.send_response(200)
        request.send_header("content-type", "application/json")
        request.send_header("content-length", str(len(body)))
        request.end_headers()
        request.wfile.write(body)

    with answering(answer) as url:
        assert ran({"FUNCTIONS_TOKEN": TOKEN}, AT_A_SESSION, ForkOptions(url=url)) == 1
    assert "Nobody won; 1.0 s." in capsys.readouterr().out
