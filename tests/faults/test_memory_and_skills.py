"""A session's memory stores and skills in its sandbox, over real sockets."""

from __future__ import annotations

from shared.reports import ItemEnd
from tests.faults.session_steps import (
    agent,
    session_with,
    wait_for_item,
    what_happened,
)
from tests.faults.test_claims_under_faults import drain_without_secrets, heal
from tests.support.world import Place


class TestMemory:
    def store(self, place: Place, **contents: str) -> str:
        stores = place.world.api.beta.memory_stores
        store_id = stores.create(name="Team Notes").id
        for name, content in contents.items():
            stores.memories.create(store_id, path=f"/{name}.md", content=content)
        return store_id

    def contents(self, place: Place, store_id: str) -> dict[str, str | None]:
        listed = place.world.api.beta.memory_stores.memories.list(store_id, view="full")
        return {row.path: row.content for row in listed if row.type == "memory"}

    def attached(self, store_id: str, access: str = "read_write") -> list[dict[str, str]]:
        return [{"type": "memory_store", "memory_store_id": store_id, "access": access}]

    def test_the_agent_reads_and_writes_an_attached_store(self, place: Place) -> None:
        store = self.store(place, known="the answer is 42")
        prompt = "$ cat /mnt/memory/team-notes/known.md\nwrite /mnt/memory/team-notes/learnt.md: a new thing"
        session = session_with(place, prompt, resources=self.attached(store))
        heal(place, session)
        assert "the answer is 42" in place.answers(session)[-1]
        wait_for_item(place, session, "stopped")
        assert self.contents(place, store) == {"/known.md": "the answer is 42", "/learnt.md": "a new thing"}

    def test_what_one_turn_wrote_is_there_in_the_next_with_another_worker(self, place: Place) -> None:
        store = self.store(place)
        session = session_with(place, "$ echo noted > /mnt/memory/team-notes/a.md", resources=self.attached(store))
        heal(place, session)
        wait_for_item(place, session, "stopped")
        place.say(session, "$ cat /mnt/memory/team-notes/a.md; ls /mnt/memory")
        heal(place, session, turns=2)
        answer = place.answers(session)[-1]
        assert "noted" in answer
        assert ".left-" not in answer

    def test_a_read_only_store_takes_no_writes(self, place: Place) -> None:
        store = self.store(place, known="fixed")
        prompt = "write /mnt/memory/team-notes/a.md: x\n$ echo y > /mnt/memory/team-notes/b.md"
        session = session_with(place, prompt, resources=self.attached(store, "read_only"))
        heal(place, session)
        assert "write /mnt/memory/team-notes/a.md failed" in place.answers(session)[-1]
        wait_for_item(place, session, "stopped")
        assert self.contents(place, store) == {"/known.md": "fixed"}

    def test_without_a_secret_the_item_is_reported_and_no_other_key_is_given(self, place: Place) -> None:
        store = self.store(place, known="the answer is 42")
        session = session_with(place, "$ cat /mnt/memory/team-notes/known.md", resources=self.attached(store))
        (item,) = drain_without_secrets(place).items
        assert item.end is ItemEnd.FAILED
        assert "no work secret" in item.reason
        assert place.sandboxes() == []
        assert place.item(session)["state"] == "queued"
        heal(place, session)  # the next hand-out has a secret again
        assert "the answer is 42" in place.answers(session)[-1]

    def test_the_memory_that_a_killed_worker_left_does_not_stop_the_next_one(self, place: Place) -> None:
        store = self.store(place, known="the answer is 42")
        once = (
            "test -e /workspace/killed || { touch /workspace/killed; echo unsaved > new.md; kill -9 $PPID; sleep 1; }"
        )
        prompt = f"$ cd /mnt/memory/team-notes; {once}; cat known.md; ls /mnt/memory /mnt/memory/*"
        session = session_with(place, prompt, resources=self.attached(store))
        heal(place, session)
        answer = place.answers(session)[-1]
        assert "the answer is 42" in answer
        assert "team-notes.left-" in answer, "what was not uploaded is kept"
        assert answer.partition(" returned:")[2].count("new.md") == 1, "and only there"
        assert "lease lapsed" in what_happened(place.item(session))
        assert len(place.items(session)) == 1


class TestSkills:
    def test_the_agents_skills_are_unpacked_for_the_worker(self, place: Place) -> None:
        text = b"---\nname: report\ndescription: Writes reports\n---\nSay hello.\n"
        files = [("report/SKILL.md", text), ("report/scripts/run.sh", b"echo ran the script\n")]
        skill = place.world.api.skills.create(files=files)
        skilled = agent(place, skills=[{"type": "custom", "skill_id": skill.id}])
        prompt = "read skills/report/SKILL.md\n$ bash /workspace/skills/report/scripts/run.sh"
        session = session_with(place, prompt, agent=skilled)
        heal(place, session)
        assert "Say hello." in place.answers(session)[-1]
        assert "returned: ran the script" in place.answers(session)[-1]
