"""A file that a reader does not take in at once is more than one thing."""

from __future__ import annotations

from tests.docs.test_names import ROOMS
from tests.support.checkout import ROOT

MOST_LINES = 500


def test_no_file_of_code_is_long() -> None:
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for room in (*ROOMS, "requirements")
        for path in (ROOT / room).rglob("*.py")
    }
    assert len(lines) > 600, "few files were found"
    assert {path: count for path, count in lines.items() if count > MOST_LINES} == {}
