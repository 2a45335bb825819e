"""The codes, the reference page and the checks: in step, word for word."""

from __future__ import annotations

import re
from pathlib import Path

from infra.cli.doctor.catalogue import CATALOGUE, GROUPS, group_of
from tests.support.checkout import ROOT

_FOLDER = ROOT / "infra" / "cli" / "doctor"


def test_the_readme_has_a_line_for_each_code_and_no_other() -> None:
    readme = (ROOT / "docs" / "reference" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(HANDS\d+)` \| (.*) \| (.*) \| (.*) \|$", readme, re.MULTILINE)
    assert rows == [(code, entry.symptom, entry.cause, entry.fix) for code, entry in CATALOGUE.items()]


def test_every_code_is_used_by_a_check_and_every_code_that_a_check_uses_is_known() -> None:
    modules = [path for path in _FOLDER.glob("*.py") if path.name != "catalogue.py"]
    used = {code for path in modules for code in re.findall(r"HANDS\d{3}", Path(path).read_text(encoding="utf-8"))}
    assert used == set(CATALOGUE)


def test_codes_stand_in_order_each_in_a_group_and_no_text_breaks_the_table() -> None:
    assert list(CATALOGUE) == sorted(CATALOGUE)
    assert {group_of(code) for code in CATALOGUE} == set(GROUPS.values())
    texts = [text for entry in CATALOGUE.values() for text in (entry.symptom, entry.cause, entry.fix)]
    assert [text for text in texts if "|" in text or "\n" in text or not text] == []
