"""`session` over real sockets: long prompts, lost answers, silence in words, programs, and questions at a terminal."""

from __future__ import annotations

import itertools
import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import CommandLine, command_line
from tests.support.waiting import PATIENCE


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("checkout")) as shell:
        yield shell


@pytest.fixture(scope="module")
def unserved(tmp_path_factory: pytest.TempPathFactory) -> Iterator[CommandLine]:
    with command_line(tmp_path_factory.mktemp("unserved"), served=False) as shell:
        yield shell


def messages(shell: CommandLine, session: str) -> list[str]:
    with shell.api() as api:
        events: list[Any] = list(api.beta.sessions.events.list(session))
    return ["".join(part.text for part in event.content) for event in events if event.type == "user.message"]


def test_a_prompt_from_a_file_and_from_standard_input_arrives_to_the_letter(
    served: CommandLine, tmp_path: Path
) -> None:
    text = "run echo it-ran\n" + 'it\'s "quoted", $HOME, `id`, %s, ünïcode \\\n' * 5_000
    file = tmp_path / "a prompt.txt"
    file.write_text(text, encoding="utf-8")
    for args, given in ((("--prompt-file", str(file)), None), (("--prompt-file", "-"), text)):
        done = served.run("session", *args, given=given)
        assert done.returncode == 0, done.stderr
        assert messages(served, str(served.sessions()[-1]["id"])) == [text]
        assert len(done.stdout) < 20_000


def test_a_prompt_that_is_not_utf8_makes_no_session(served: CommandLine) -> None:
    before = len(served.sessions())
    done = served.run("session", b"$ echo caf\xe9")
    assert done.returncode == 2
    assert "not UTF-8" in done.stderr and len(done.stderr.splitlines()) == 1
    assert len(served.sessions()) == before


def test_title_and_metadata_are_given_to_a_new_session_and_refused_for_an_old_one(served: CommandLine) -> None:
    done = served.run("session", "$ echo hi", "--title", "nightly", "--meta", "a=1", HANDS_META="b='two words'")
    assert done.returncode == 0, done.stderr
    session = served.sessions()[-1]
    with served.api() as api:
        record = api.beta.sessions.retrieve(str(session["id"]))
    assert (record.title, record.metadata) == ("nightly", {"a": "1", "b": "two words"})
    again = served.run("session", "$ echo hi", "--session", str(session["id"]), "--title", "other")
    assert again.returncode == 2 and "new session" in again.stderr


def test_a_message_whose_answer_is_lost_is_sent_and_served_once(served: CommandLine) -> None:
    rule = {"method": "POST", "path": "/v1/sessions/[^/]+/events$", "action": "drop_after", "times": 1}
    served.platform.claude.post("faults", rule)
    done = served.run("session", "$ echo ran >> ran.log; wc -l < ran.log")
    assert done.returncode == 0, done.stderr
    assert "← 1\n" in done.stdout
    assert len(messages(served, str(served.sessions()[-1]["id"]))) == 1


def test_programs_get_one_line_of_json_an_event_and_nothing_else(served: CommandLine) -> None:
    done = served.run("session", "$ printf '\\033[31mred\\n'; echo ünïcode", "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii() and "\x1b" not in done.stdout
    events: list[Mapping[str, Any]] = [json.loads(line) for line in done.stdout.splitlines()]
    assert events[0]["type"] == "hands.session" and events[-1] == {
        "type": "hands.finish", "session": events[0]["session"], "finish": "done",
    }  # fmt: skip
    kinds = [event["type"] for event in events]
    assert {"user.message", "agent.tool_use", "user.tool_result", "session.status_idle"} <= set(kinds)
    (result,) = [event for event in events if event["type"] == "user.tool_result"]
    assert "ünïcode" in result["content"][0]["text"]


def test_while_a_command_runs_it_is_named_with_its_time_and_no_worker_is_missed(served: CommandLine) -> None:
    with served.start("session", "$ sleep 600; echo over") as watching:
        assert watching.stderr is not None
        line = watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        _, rest = watching.communicate(timeout=PATIENCE)
    assert line.startswith("  bash  sleep 600; echo over runs, ") and line.endswith(" s so far\n")
    assert watching.returncode == 130
    session = str(served.sessions()[-1]["id"])
    assert f"make session SESSION={session}" in rest and "Traceback" not in rest
    with served.api() as api:
        api.beta.sessions.events.send(session, events=[{"type": "user.interrupt"}])


def test_where_nobody_serves_it_is_said_with_the_way_out(unserved: CommandLine) -> None:
    with unserved.start("session", "$ echo never") as watching:
        assert watching.stderr is not None
        lines = [watching.stderr.readline(), watching.stderr.readline()]
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=PATIENCE)
    assert "no worker serves the session" in lines[0] and "bash  echo never waits" in lines[0]
    assert "make serve" in lines[1]


def test_a_custom_tool_that_nobody_serves_is_named_with_the_reason(served: CommandLine) -> None:
    tool: Any = {
        "type": "custom",
        "name": "get_order",
        "description": "Finds an order.",
        "input_schema": {"type": "object", "properties": {}},
    }
    with served.api() as api:
        agent = api.beta.agents.create(
            name="with a tool of nobody's", model="claude-sonnet-4-6", tools=[{"type": "agent_toolset_20260401"}, tool]
        )
    with served.start("session", "call get_order {}", "--agent", agent.id) as watching:
        assert watching.stderr is not None
        lines = list(itertools.takewhile(lambda line: "custom_tool_result" not in line, watching.stderr))
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=60)
    said = "".join(lines)
    assert "it waits for the result of get_order" in said
    assert "nobody serves: the image of this sandbox has no tools of your own" in said
    with served.api() as api:
        api.beta.sessions.events.send(str(served.sessions()[-1]["id"]), events=[{"type": "user.interrupt"}])


def asking_agent(shell: CommandLine) -> str:
    with shell.api() as api:
        policy: Any = [{"name": "bash", "enabled": True, "permission_policy": {"type": "always_ask"}}]
        agent = api.beta.agents.create(
            name=f"asks-{os.urandom(4).hex()}",
            model="claude-sonnet-4-6",
            tools=[{"type": "agent_toolset_20260401", "configs": policy}],
        )
    return agent.id


def test_a_call_that_waits_for_a_person_is_asked_for_at_the_terminal(served: CommandLine) -> None:
    agent = asking_agent(served)
    offline: dict[str, Any] = {**served.platform.environ, "ANTHROPIC_AGENT_ID": agent}
    with served.terminal("session", "$ echo it-was-allowed", **offline) as terminal:
        terminal.expect("? allow bash  echo it-was-allowed   [y, n, n REASON]")
        terminal.type("perhaps\n")
        terminal.expect("? allow bash")
        terminal.type("y\n")
        terminal.expect("· allowed")
        terminal.expect("← it-was-allowed")
        assert terminal.end() == 0
    with served.terminal("session", "$ echo forbidden", **offline) as terminal:
        terminal.expect("? allow bash")
        terminal.type("n not on prod\n")
        terminal.expect("· denied: not on prod")
        terminal.end()


def test_a_call_that_somebody_else_allows_is_not_asked_for_any_longer(served: CommandLine) -> None:
    offline: dict[str, Any] = {**served.platform.environ, "ANTHROPIC_AGENT_ID": asking_agent(served)}
    with served.terminal("session", "$ echo elsewhere-$((40+2))", **offline) as terminal:
        terminal.expect("? allow bash")
        session = str(served.sessions()[-1]["id"])
        with served.api() as api:
            (call,) = [event for event in api.beta.sessions.events.list(session) if event.type == "agent.tool_use"]
            answer: Any = {"type": "user.tool_confirmation", "tool_use_id": call.id, "result": "allow"}
            api.beta.sessions.events.send(session, events=[answer])
        terminal.expect("answered elsewhere")
        terminal.expect("← elsewhere-42")
        assert terminal.end() == 0


def test_in_a_pipe_nobody_is_asked_and_the_way_to_answer_is_said(served: CommandLine) -> None:
    offline: dict[str, Any] = {**served.platform.environ, "ANTHROPIC_AGENT_ID": asking_agent(served)}
    with served.start("session", "$ echo waits", **offline) as watching:
        assert watching.stderr is not None
        line = watching.stderr.readline()
        watching.send_signal(signal.SIGINT)
        watching.communicate(timeout=PATIENCE)
    assert f"hands confirm {served.sessions()[-1]['id']}" in line


@pytest.mark.parametrize(
    "variables",
    [
        {"NO_PROXY": "localhost,[::1]", "no_proxy": "localhost,[::1]"},
        {"ALL_PROXY": "socks5h://127.0.0.1:9"},
        {"HTTPS_PROXY": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"},
        {"SSL_CERT_FILE": "/nowhere/at/all.pem"},
    ],
)
def test_what_is_on_this_machine_is_reached_whatever_the_shell_says_of_proxies(
    served: CommandLine, variables: Mapping[str, str]
) -> None:
    done = served.run("session", "$ echo served", **variables)
    assert done.returncode == 0, done.stderr
    ticked = served.run("tick", **variables)
    assert "Traceback" not in ticked.stderr and json.loads(ticked.stdout)["drains"]


def test_a_proxy_that_cannot_work_is_named_in_one_line(served: CommandLine) -> None:
    for command in (("session", "hi"), ("tick",), ("serve", "--port", "0"), ("poll",), ("repair",), ("build",)):
        done = served.run(*command, ALL_PROXY="socks5h://127.0.0.1:9", ANTHROPIC_API_KEY="sk-ant-api-x",
                          TENSORLAKE_API_KEY="tl_x")  # fmt: skip
        assert done.returncode == 2, command
        assert done.stderr.startswith("ALL_PROXY names a SOCKS proxy") and len(done.stderr.splitlines()) == 1
