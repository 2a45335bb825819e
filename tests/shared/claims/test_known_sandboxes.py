"""What a process remembers of where it served a session."""

from __future__ import annotations

from shared.claims.known_sandboxes import KnownSandboxes
from shared.ports import SandboxRecord, SandboxStatus


def test_a_sandbox_is_believed_to_have_its_name_for_a_while_and_the_oldest_are_forgotten() -> None:
    now = 0.0
    known = KnownSandboxes(lambda: now, 60.0)
    boxes = [SandboxRecord(f"box{n}", f"name{n}", SandboxStatus.RUNNING) for n in range(5000)]
    for box in boxes:
        known.seen(str(box.name), box)
    assert known.get("name0") is None, "it costs no more memory than for some thousands"
    assert known.get("name4999") is boxes[4999]
    known.forget("name4999")
    assert known.get("name4999") is None
    now = 60.0
    assert known.get("name4998") is None
