"""The operator's commands as a person runs them, against a running offline platform."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from image.session.worker import fork_tool_schema
from infra.local import discovery
from infra.local.platform import Options
from tests.support.checkout import copy_checkout
from tests.support.command_line import CommandLine, command_line
from tests.support.waiting import PATIENCE, until

QUICKSTART = "create hello.txt with 'hi' then read it back"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("checkout")) as shell:
        yield shell


@pytest.fixture(scope="module")
def unserved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    """`make up` alone: nothing serves."""
    options = Options(claude={"ping_interval": 1.0})
    with command_line(tmp_path_factory.mktemp("unserved"), options, served=False) as shell:
        yield shell


def read_until(process: subprocess.Popen[str], word: str) -> str:
    """Read standard output up to the line with this word; returns that line."""
    assert process.stdout is not None
    for line in process.stdout:
        if word in line:
            return line
    pytest.fail(f"ended without {word!r}")


def test_a_session_is_shown_plainly_in_a_pipe_and_says_how_to_go_on(served: CommandLine) -> None:
    done = served.run("session", QUICKSTART)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    wanted = ["· running", "· thinking", "→ write  hello.txt content='hi'", "→ read  hello.txt", "← hi", "· done"]
    assert [line for line in lines if line in wanted] == wanted
    assert "\x1b" not in done.stdout + done.stderr
    identity = str(served.sessions()[-1]["id"])
    assert lines[0].startswith(f"session {identity}")
    assert f"make session SESSION={identity}" in done.stderr


def test_a_session_goes_on_in_the_same_sandbox_and_shows_only_the_new_turn(served: CommandLine) -> None:
    first = served.run("session", "write kept.txt: from the first turn")
    identity = first.stdout.split()[1]
    again = served.run("session", "read kept.txt", "--session", identity.replace("sesn_", "session_"))
    assert again.returncode == 0, again.stderr
    assert "← from the first turn" in again.stdout
    assert "→ write" not in again.stdout
    watched = served.run("session", "--session", identity)
    assert watched.returncode == 0, watched.stderr
    assert "→ read  kept.txt" in watched.stdout and "→ write" not in watched.stdout


def test_streams_that_the_service_ends_lose_nothing(served: CommandLine) -> None:
    with served.start("session", "$ sleep 1.5; echo survived") as process:
        read_until(process, "→ bash")
        for _ in range(3):
            served.platform.claude.post("streams/close")
            time.sleep(0.3)
        rest, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 0, errors
    assert rest.count("← survived") == 1
    assert "→ bash" not in rest


def test_a_tool_that_fails_is_shown_and_is_no_failure_of_the_session(served: CommandLine) -> None:
    done = served.run("session", "read not-there.txt")
    assert done.returncode == 0, done.stderr
    assert "✗ " in done.stdout


def test_colour_where_it_is_wanted(served: CommandLine) -> None:
    forced = served.run("session", QUICKSTART, FORCE_COLOR="1", TERM="xterm-256color")
    assert forced.returncode == 0, forced.stderr
    assert "\x1b[1m→ write" in forced.stdout


def test_without_a_worker_it_says_so_and_ctrl_c_leaves_the_session_running(unserved: CommandLine) -> None:
    with unserved.start("session", "$ echo never") as process:
        identity = read_until(process, "session sesn_").split()[1]
        read_until(process, "→ bash")
        assert process.stderr is not None
        assert "bash  echo never waits, and no worker serves the session" in process.stderr.readline()
        assert "make serve" in process.stderr.readline()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 130
    assert f"make session SESSION={identity}" in errors and "Traceback" not in errors
    found = next(session for session in unserved.sessions() if session["id"] == identity)
    assert found["archived_at"] is None and found["open_calls"] != []


def test_a_terminated_session_is_a_failure(unserved: CommandLine) -> None:
    with unserved.start("session", "$ echo never") as process:
        identity = read_until(process, "session sesn_").split()[1]
        read_until(process, "→ bash")
        with unserved.api() as api:
            api.beta.sessions.archive(identity)
        rest, _ = process.communicate(timeout=PATIENCE)
    assert process.returncode == 1
    assert "terminated" in rest


@pytest.mark.parametrize(
    ("args", "environ", "code", "text"),
    [
        (["session", "hi", "--session", "sesn_000000000000000000000000"], {}, 1, "answered 404"),
        (["session", "hi", "--session", "../etc"], {}, 2, "SESSION must be"),
        (["session", ""], {}, 2, "needs a prompt"),
        (
            ["session", "hi"],
            {"ANTHROPIC_API_KEY": "wrong", "ANTHROPIC_BASE_URL": "{url}"},
            2,
            "ANTHROPIC_AGENT_ID is not set",
        ),
        (["agent", "x"], {"ANTHROPIC_API_KEY": "wrong", "ANTHROPIC_BASE_URL": "{url}"}, 1, "Check ANTHROPIC_API_KEY"),
        (["poll"], {"ANTHROPIC_API_KEY": "k"}, 2, "is not set"),
        (["build"], {"ANTHROPIC_API_KEY": "k"}, 2, "TENSORLAKE_API_KEY is not set"),
    ],
)
def test_what_is_wrong_is_said_in_a_line_without_a_traceback(
    served: CommandLine, args: list[str], environ: dict[str, str], code: int, text: str
) -> None:
    filled = {name: value.format(url=served.platform.urls[0]) for name, value in environ.items()}
    done = served.run(*args, **filled)
    assert (done.returncode, text in done.stderr) == (code, True), done.stderr
    assert "Traceback" not in done.stderr


def test_without_keys_and_platform_every_command_says_how_to_start(tmp_path: Path, served: CommandLine) -> None:
    empty = CommandLine(copy_checkout(tmp_path), served.platform)
    for command in ("session", "agent", "build", "serve", "poll", "tick"):
        done = empty.run(command, *(["x"] if command == "session" else []))
        assert done.returncode == 2, command
        assert "make up" in done.stderr and ".env.example" in done.stderr


def test_an_agent_is_made_once_for_each_name(served: CommandLine) -> None:
    first = served.run("agent", "My agent")
    assert first.returncode == 0, first.stderr
    again = served.run("agent", HANDS_AGENT_NAME="My agent")
    assert again.returncode == 1
    assert first.stdout.split()[-1] == again.stdout.split()[-1]
    with served.api() as api:
        made = next(agent for agent in api.beta.agents.list() if agent.name == "My agent")
    tools: dict[str, Any] = dict(made.tools[0].to_dict())
    enabled = {config["name"] for config in tools["configs"] if config["enabled"]}
    assert {"bash", "read", "write", "edit", "glob", "grep"} <= enabled
    assert tools["default_config"]["enabled"] is False
    assert len(made.tools) == 1


def test_an_agent_that_may_fork_gets_the_tool_for_it(served: CommandLine) -> None:
    assert served.run("agent", "My forker", AGENT_FORK="true").returncode == 0
    with served.api() as api:
        made = next(agent for agent in api.beta.agents.list() if agent.name == "My forker")
    assert [tool.to_dict() for tool in made.tools[1:]] == [fork_tool_schema.definition()]


def test_an_agent_that_is_there_is_told_apart_and_brought_up_to_date_on_request(
    served: CommandLine, tmp_path: Path
) -> None:
    def tool(text: str) -> None:
        head = "from anthropic import beta_tool\n\n\n@beta_tool\n"
        code = f'{head}def count(text: str) -> str:\n    """{text}"""\n    return ""\n'
        (tmp_path / "tools.py").write_text(code)

    def agent() -> Any:
        with served.api() as api:
            return next(agent for agent in api.beta.agents.list() if agent.name == "My toolsmith")

    own = {"SANDBOX_TOOLS": str(tmp_path)}
    assert served.run("agent", "My toolsmith").returncode == 0
    theirs: Any = {
        "type": "custom",
        "name": "theirs",
        "description": "of a program",
        "input_schema": {"type": "object"},
    }
    with served.api() as api:
        first = agent()
        kept: list[Any] = [each.to_dict() for each in first.tools]
        api.beta.agents.update(first.id, tools=[*kept, theirs], system="A person's prompt.")
    tool("Counts the words.")
    said = served.run("agent", "My toolsmith", **own)
    assert said.returncode == 1 and "count: not declared" in said.stdout and "UPDATE=1" in said.stdout
    assert "theirs: not of these settings, left as it is" in said.stdout and agent().version == 2
    assert served.run("agent", "My toolsmith", "--update", **own).returncode == 0
    names = [each.name for each in agent().tools if each.type == "custom"]
    assert names == ["theirs", "count"] and agent().system == "A person's prompt." and agent().version == 3
    assert agent().tools[0].to_dict() == kept[0]
    again = served.run("agent", "My toolsmith", "--update", **own)
    assert again.returncode == 1 and "has the custom tools of these settings" in again.stdout
    tool("Counts the words of a text.")
    assert "count: declared otherwise" in served.run("agent", "My toolsmith", "--update", **own).stdout
    assert [each.description for each in agent().tools if each.type == "custom"][1] == "Counts the words of a text."
    assert agent().version == 4


def test_the_image_is_built_by_the_same_command_offline(served: CommandLine) -> None:
    done = served.run("build")
    assert done.returncode == 0, done.stderr
    assert "Registered 'agent-cli'" in done.stdout


def test_a_tick_in_process_serves_what_waits_and_reports_it(unserved: CommandLine) -> None:
    with unserved.api() as api:
        created = api.beta.sessions.create(
            agent=unserved.platform.environ["ANTHROPIC_AGENT_ID"],
            environment_id=unserved.platform.environ["ANTHROPIC_ENVIRONMENT_ID"],
        )
    done = unserved.run("tick")
    assert done.returncode == 0, done.stderr
    items = [item for drain in json.loads(done.stdout)["drains"] for item in drain["items"]]
    assert (created.id, "handed_over") in [(item["session_id"], item["end"]) for item in items]


def test_a_tick_over_http_uses_the_token(served: CommandLine) -> None:
    functions = served.platform.functions_url
    done = served.run("tick", "--url", functions)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["drains"][0]["end"] == "empty"
    unreachable = served.run("tick", "--url", "http://127.0.0.1:9")
    assert unreachable.returncode == 2 and "no poll_tick answers" in unreachable.stderr


def healthy(url: str) -> bool:
    try:
        return bool(httpx2.get(f"{url}healthz", trust_env=False).json() == {"ok": True})
    except httpx2.HTTPError:
        return False


def test_serve_takes_the_offline_webhooks_while_it_runs(served: CommandLine) -> None:
    def endpoints() -> list[str]:
        return [endpoint["url"] for endpoint in served.platform.claude.get("webhooks")["data"]]

    before = endpoints()
    with served.start("serve", "--port", "0") as process:
        assert process.stderr is not None
        assert "the offline platform" in process.stderr.readline()
        url = process.stderr.readline().split()[1]
        assert "/poll_tick" in process.stderr.readline()
        assert "schedule" in process.stderr.readline()
        until(lambda: endpoints() == [*before, url], "the webhook is not announced")
        until(lambda: healthy(url), "the server does not answer")
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert endpoints() == before


@pytest.mark.parametrize("exported", ["the file", "all", "all but the admin tokens"])
def test_serve_in_another_checkout_goes_by_what_is_exported(served: CommandLine, tmp_path: Path, exported: str) -> None:
    """It is for this machine alone there, too, and has webhooks where it may ask for them."""
    elsewhere = CommandLine(copy_checkout(tmp_path), served.platform)
    admin = exported != "all but the admin tokens"
    variables: dict[str, Any] = {
        "the file": {discovery.OFFLINE_FILE: str(discovery.find_running(served.checkout))},
        "all": dict(served.platform.environ),
        "all but the admin tokens": {
            name: value for name, value in served.platform.environ.items() if not name.startswith("OFFLINE_")
        },
    }[exported]

    def webhooks() -> list[str]:
        return [endpoint["url"] for endpoint in served.platform.claude.get("webhooks")["data"]]

    before = webhooks()
    with elsewhere.start("serve", "--port", "0", **variables) as process:
        assert process.stderr is not None
        said = [process.stderr.readline() for _ in range(4 if admin else 5)]
        url = said[1].split()[1]
        assert "on the offline platform" in said[0] and url.startswith("http://127.0.0.1:")
        until(lambda: healthy(url), "the server does not answer")
        assert webhooks() == [*before, url][: len(before) + admin]
        assert admin or "no webhook is sent here: export HANDS_OFFLINE_ENV" in said[4]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0
    assert webhooks() == before


def test_serve_on_a_taken_port_says_so(served: CommandLine) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = served.run("serve", "--port", str(port))
    assert done.returncode == 2
    assert f"port {port} is in use" in done.stderr


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (("--port", "99999"), "there is no port 99999"),
        (("--port", "-1"), "there is no port -1"),
        (("--port", "0", "--host", "192.0.2.1"), "192.0.2.1 is no address of this machine"),
        (("--port", "0", "--host", "not a host"), "'not a host' is no address and no known host name"),
    ],
)
def test_serve_says_in_one_line_why_it_cannot_listen(served: CommandLine, args: tuple[str, ...], says: str) -> None:
    done = served.run("serve", *args, FUNCTIONS_TOKEN="a-token-that-is-long-enough")
    assert done.returncode == 2
    assert done.stderr.startswith(says) and len(done.stderr.splitlines()) == 1


def test_serve_answers_at_an_ipv6_address(served: CommandLine) -> None:
    with socket.create_server(("::1", 0), family=socket.AF_INET6) as probe:
        port = probe.getsockname()[1]
    with served.start("serve", "--host", "::1", "--port", str(port)) as process:
        assert process.stderr is not None
        line = next(line for line in process.stderr if "webhook" in line)
        answer = httpx2.get(f"http://[::1]:{port}/healthz", trust_env=False)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert f"http://[::1]:{port}/ " in line
    assert answer.json() == {"ok": True}
    assert process.returncode == 0


def test_serve_finds_what_was_queued_before_it_began(unserved: CommandLine) -> None:
    with unserved.start("session", "$ echo found") as session:
        read_until(session, "→ bash")
        with unserved.start("serve", "--port", "0", FUNCTIONS_TOKEN="") as server:
            rest, errors = session.communicate(timeout=PATIENCE)
            server.send_signal(signal.SIGTERM)
            server.communicate(timeout=PATIENCE)
    assert session.returncode == 0, errors
    assert "← found" in rest


def test_poll_serves_sessions_and_sigterm_stops_it_calmly(unserved: CommandLine) -> None:
    with unserved.start("poll") as poller:
        assert poller.stderr is not None
        assert "Polling" in poller.stderr.readline()
        done = unserved.run("session", QUICKSTART)
        poller.send_signal(signal.SIGTERM)
        _, errors = poller.communicate(timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert "handed_over" in errors and "Stopped." in errors
    assert poller.returncode == 0
