"""Where a session's sandbox was lost, however that came, the agent finds a word about it in its new workspace."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from image.session.claim import NEW_WORKSPACE_FILE, NEW_WORKSPACE_TEXT, SESSION_FILE, Exit
from image.session.worker import identity
from image.session.worker.new_workspace import NewWorkspace
from image.session.worker.state_directory import StateDirectory
from tests.image.session.worker.harness import make_claim, sandbox
from tests.image.session.worker.service import running
from tests.image.session.worker.test_shell import bash, text

EARLIER: list[dict[str, Any]] = [
    {"type": "agent.tool_use", "id": "sevt_old", "name": "bash", "input": {}, "processed_at": "2026-10-19T09:00:00Z"},
    {"type": "user.tool_result", "id": "sevt_done", "tool_use_id": "sevt_old", "processed_at": "2026-10-19T09:00:01Z"},
]


def page(*events: dict[str, Any]) -> bytes:
    return json.dumps({"data": events, "next_page": None}).encode()


def told(workdir: Path) -> bool:
    return (workdir / NEW_WORKSPACE_FILE).exists()


def test_a_session_that_had_worked_elsewhere_finds_it_with_its_first_call(tmp_path: Path) -> None:
    calls = [bash(f"cat {NEW_WORKSPACE_FILE}")]
    with running(tool_calls=calls, events=list(EARLIER)) as service, sandbox(tmp_path) as box:
        service.ack()
        worker = box.start(make_claim(service.url, box.workdir))
        assert worker.exit() is Exit.SERVED, worker.report()
        assert text(service.results[0]).startswith(NEW_WORKSPACE_TEXT)


def test_it_is_told_before_the_first_call_and_never_of_what_was_made_here(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    identity.settle(state, "sesn_1")
    first = NewWorkspace(state, str(tmp_path))
    first.look(page(*EARLIER))
    assert not told(tmp_path), "a set-up may want an empty folder"

    identity.settle(state, "sesn_1")  # the first worker was killed before a call came
    second = NewWorkspace(state, str(tmp_path))
    second.look(page())
    second.look(page(*EARLIER))
    second.settle()
    assert told(tmp_path)

    (tmp_path / NEW_WORKSPACE_FILE).unlink()
    identity.settle(state, "sesn_1")
    later = NewWorkspace(state, str(tmp_path))
    later.look(page(*EARLIER))
    later.settle()
    assert not told(tmp_path), "once"


def test_a_first_workspace_is_not_called_new(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    identity.settle(state, "sesn_1")
    first = NewWorkspace(state, str(tmp_path))
    first.look(page(EARLIER[0]))
    first.look(b"no JSON")
    first.settle()
    again = NewWorkspace(state, str(tmp_path))
    again.look(page(*EARLIER))
    again.settle()
    assert not told(tmp_path)


def test_sandboxes_of_before_and_records_that_an_agent_broke_are_no_first_use(tmp_path: Path) -> None:
    state = StateDirectory(tmp_path / "state")
    for record in (b"sesn_1\n", b""):
        (tmp_path / "state" / SESSION_FILE).write_bytes(record)
        identity.settle(state, "sesn_1")
        assert not NewWorkspace(state, str(tmp_path)).in_question


def test_what_the_functions_have_told_is_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / NEW_WORKSPACE_FILE).write_text("they know why")
    state = StateDirectory(tmp_path / "state")
    identity.settle(state, "sesn_1")
    workspace = NewWorkspace(state, str(tmp_path))
    workspace.look(page(*EARLIER))
    workspace.settle()
    assert (tmp_path / NEW_WORKSPACE_FILE).read_text() == "they know why"
