"""A name that stands for two things misleads whoever searches for it."""

from __future__ import annotations

import re
from collections import defaultdict

from tests.support.checkout import ROOT

ROOMS = ("examples", "functions", "image", "infra", "shared", "tests")


def test_no_two_classes_have_one_name() -> None:
    places = defaultdict(list)
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for name in re.findall(r"^class (\w+)", path.read_text(), re.MULTILINE):
                places[name].append(str(path.relative_to(ROOT)))
    assert len(places) > 500, "few classes were found"
    assert {name: there for name, there in places.items() if len(there) > 1} == {}
