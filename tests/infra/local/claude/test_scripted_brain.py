"""What the scripted brain understands, and what it says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from infra.local.claude.brain import Conversation, Reply, Round, ToolCall, ToolOutcome, load_brain
from infra.local.claude.grammar import parse
from infra.local.claude.scripted import SIGNATURE, ScriptedBrain
from infra.local.claude.scripts import load_script


def calls(text: str) -> list[tuple[str, dict[str, Any]]]:
    return [(call.name, call.input) for call in parse(text).calls]


WRITE_THEN_READ = [
    ("write", {"file_path": "hello.txt", "content": "hi"}),
    ("read", {"file_path": "hello.txt"}),
]


@pytest.mark.parametrize(
    "prompt",
    [
        "create hello.txt with 'hi' then read it back",
        "Create hello.txt with 'hi', then read it back.",
        'Create a file called hello.txt with the text "hi" and then read it back',
        "please create a file named hello.txt containing 'hi' and read it back",
        "Make a new file hello.txt that says 'hi', then show it.",
        "Write 'hi' to hello.txt, then read the file back",
        "Can you create hello.txt with 'hi' and then read hello.txt?",
        "create hello.txt with ‘hi’ then read it back",
    ],
)
def test_the_quickstart_prompt_and_its_variants(prompt: str) -> None:
    assert calls(prompt) == WRITE_THEN_READ


@pytest.mark.parametrize(
    ("line", "name", "given"),
    [
        ("$ echo 'a then b' | wc", "bash", {"command": "echo 'a then b' | wc"}),
        ("run `ls -la`", "bash", {"command": "ls -la"}),
        ("read notes/a.md", "read", {"file_path": "notes/a.md"}),
        ("write a.txt: one\\ntwo", "write", {"file_path": "a.txt", "content": "one\ntwo"}),
        ("edit a.py: x = 1 => x = 2", "edit", {"file_path": "a.py", "old_string": "x = 1", "new_string": "x = 2"}),
        ("glob **/*.py", "glob", {"pattern": "**/*.py"}),
        ("grep TODO in src", "grep", {"pattern": "TODO", "path": "src"}),
        ("grep 'two words'", "grep", {"pattern": "two words"}),
        ("list the files", "glob", {"pattern": "*"}),
        ("search the web for cats", "web_search", {"query": "cats"}),
        ("fetch https://example.com/x", "web_fetch", {"url": "https://example.com/x"}),
        ('call get_order {"order_id": "7"}', "get_order", {"order_id": "7"}),
        (
            "fork {branches: [{name: a, script: make then test}], promote: none}",
            "fork_best_of_n",
            {"branches": [{"name": "a", "script": "make then test"}], "promote": "none"},
        ),
    ],
)
def test_one_line_is_one_call(line: str, name: str, given: dict[str, Any]) -> None:
    assert calls(line) == [(name, given)]


def test_lines_become_calls_in_order_and_prose_between_them_is_counted() -> None:
    plan = parse("Please do this for me:\n$ mkdir x\nwrite x/a: 1\n\n$ cat x/a")
    assert [call.name for call in plan.calls] == ["bash", "write", "bash"]
    assert plan.ignored == ("Please do this for me:",)


@pytest.mark.parametrize("text", ["", "What is love?", "open the pod bay doors", "read it", "call x {not json}"])
def test_what_is_not_understood_makes_no_call(text: str) -> None:
    assert calls(text) == []


def ask(brain: ScriptedBrain, message: str, *rounds: Round, **more: Any) -> Reply:
    conversation = Conversation("sesn_1", {}, ["bash"], 1, message, rounds, **more)
    return asyncio.run(brain.respond(conversation))


def done(name: str, given: dict[str, Any], text: str, *, is_error: bool = False) -> Round:
    call = ToolCall(name, given)
    return Round(Reply(calls=[call]), [ToolOutcome(call, text, is_error)])


def test_one_call_a_round_and_then_an_account_of_what_came_back() -> None:
    brain = ScriptedBrain()
    first = ask(brain, "$ one\n$ two")
    assert (first.thinking, [call.input for call in first.calls]) == (True, [{"command": "one"}])
    ran = done("bash", {"command": "one"}, "1")
    second = ask(brain, "$ one\n$ two", ran)
    assert (second.thinking, [call.input for call in second.calls]) == (False, [{"command": "two"}])
    last = ask(brain, "$ one\n$ two", ran, done("bash", {"command": "two"}, "exit 3", is_error=True))
    assert last.calls == ()
    assert last.text == f"bash one returned: 1\nbash two failed: exit 3\n{SIGNATURE}"


def test_it_says_that_it_is_no_model_and_what_it_understands() -> None:
    text = ask(ScriptedBrain(), "Tell me a joke").text or ""
    assert text.startswith(SIGNATURE)
    assert "edit F: OLD => NEW" in text and "This agent's tools: bash." in text


SCRIPT = """
turns:
  - when: deploy
    rounds:
      - {thinking: true, say: looking, calls: [{tool: bash, input: {command: ls}}]}
      - say: "saw {last}"
  - rounds:
      - calls: [{tool: bash, input: {command: date}}]
"""


def test_a_script_turn_is_chosen_by_its_message_and_used_once() -> None:
    brain = ScriptedBrain(load_script(SCRIPT))
    opening = ask(brain, "deploy it")
    assert (opening.text, opening.calls[0].input) == ("looking", {"command": "ls"})
    assert ask(brain, "deploy it", done("bash", {}, "files")).text == "saw files"
    assert ask(brain, "anything", earlier_messages=["deploy it"]).calls[0].input == {"command": "date"}
    assert ask(brain, "$ ls", earlier_messages=["deploy it", "anything"]).calls[0].input == {"command": "ls"}


def test_a_round_with_calls_at_the_end_gets_a_closing_round() -> None:
    brain = ScriptedBrain(load_script(SCRIPT))
    assert ask(brain, "x", done("bash", {"command": "date"}, "today")).text == "today"


@pytest.mark.parametrize(
    "text", ["turns: [{rounds: []}]", "turns: [{round: 1}]", "{", "turns: [{when: '(', rounds: [{}]}]"]
)
def test_a_wrong_script_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        load_script(text)


def test_a_wrong_inline_script_is_answered_with_what_is_wrong() -> None:
    text = ask(ScriptedBrain(), "script:\n- sya: typo").text or ""
    assert "That script is not right" in text and "sya" in text


def test_a_brain_can_be_loaded_by_name_and_a_bad_name_is_explained() -> None:
    assert isinstance(load_brain("infra.local.claude.scripted:ScriptedBrain"), ScriptedBrain)
    for bad in ("nowhere:Brain", "infra.local.claude.scripted:Nothing", "infra.local.claude.scripted"):
        with pytest.raises(ValueError, match="no brain at"):
            load_brain(bad)
