"""A name that stands for two things misleads whoever searches for it."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.support.checkout import ROOT

ROOMS = ("examples", "functions", "image", "infra", "shared", "tests")


def test_no_class_of_the_tests_has_the_name_of_another_class() -> None:
    places = defaultdict(list)
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE):
                places[name].append(str(path.relative_to(ROOT)))
    assert len(places) > 500, "few classes were found"
    shared = {name: there for name, there in places.items() if len(there) > 1}
    twice = {name: there for name, there in shared.items() if any(each.startswith("tests/") for each in there)}
    assert twice == {}
