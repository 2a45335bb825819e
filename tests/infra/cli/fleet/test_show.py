"""What `show` makes of what a sandbox and a session's events tell."""

from __future__ import annotations

import asyncio
from typing import Any

from infra.cli.environ import Loaded
from infra.cli.fleet.changes import MOST, Changes, FileChange, read
from infra.cli.fleet.one import races_of
from infra.cli.fleet.target import target
from shared.capability import FORK
from tests.support.many_sessions import ENVIRONMENT, many_sessions, variables


def test_a_young_sessions_items_are_found_without_all_that_is_older_than_it() -> None:
    async def pages(number: int) -> int:
        service.calls.clear()
        async with target(Loaded(variables(service), None), f"sesn_{number:024d}") as aim:
            assert [item.id for item in await aim.items()] == [f"work_{number}"]
        return service.calls[f"/v1/environments/{ENVIRONMENT}/work"]

    with many_sessions() as service:
        assert [asyncio.run(pages(number)) for number in (0, 250, 999)] == [1, 3, 10]


def test_an_answer_about_files_is_bounded_and_printable_and_nonsense_is_none() -> None:
    assert read("git\nM\ta b\nD\tgone\n?\tnew\x1b[2J\nX\todd\nno tab\n") == Changes(
        "git",
        (
            FileChange("a b", "changed"),
            FileChange("gone", "deleted"),
            FileChange("new\\x1b[2J", "added"),
            FileChange("odd", "changed"),
        ),
        complete=True,
    )
    assert read("times\n17.5\tx\n") == Changes("times", (FileChange("x", "written"),), complete=True)
    many = read("times\n" + f"1\t{'y' * 9_000}\n" * (MOST + 1))
    assert many is not None and len(many.files) == MOST and not many.complete and len(many.files[0].path) < 400
    assert read("") is read("pwned\nM\tx") is None


def test_races_of_the_agent_are_told_with_the_first_line_of_their_result() -> None:
    def result(call: str, *content: Any) -> dict[str, Any]:
        return {"type": "user.custom_tool_result", "custom_tool_use_id": call, "content": list(content)}

    def use(call: str, name: str = FORK) -> dict[str, Any]:
        return {"type": "agent.custom_tool_use", "id": call, "name": name}

    text = {"type": "text", "text": "Winner: b\x1b\n[b] ok"}
    events = [use("1"), result("1", text), use("2"), use("3", "other"), use("4"), result("4", 7)]
    assert races_of(events) == [
        {"call": "1", "over": True, "said": "Winner: b\\x1b"},
        {"call": "2", "over": False, "said": ""},
        {"call": "4", "over": True, "said": ""},
    ]
