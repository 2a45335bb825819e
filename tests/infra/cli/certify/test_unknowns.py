"""Every unknown of docs/wire has a check, or a reason why none looks at it."""

from __future__ import annotations

import re

import pytest

from infra.cli.certify.command import CHECKS
from infra.cli.certify.unknowns import ANTHROPIC, TENSORLAKE, UNKNOWNS
from tests.support.checkout import ROOT


def on_the_page(anchor: str) -> list[str]:
    """The bullets of the section at `anchor`, each as `matter: answer`."""
    page, _, slug = anchor.partition("#")
    title = slug.split("-")[0] + ". Unknowns"
    _, found, section = (ROOT / page).read_text(encoding="utf-8").partition(f"\n## {title}\n")
    assert found, f"{page} has no section `{title}`"
    return re.findall(r"^- (.+)\.$", section.split("\n## ")[0], re.MULTILINE)


@pytest.mark.parametrize("anchor", [ANTHROPIC, TENSORLAKE])
def test_the_pages_say_of_each_unknown_what_looks_at_it(anchor: str) -> None:
    rows = [
        f"{each.matter}: "
        + (", ".join(f"`{check}`" for check in each.checks) if each.checks else f"not tried, {each.why}")
        for each in UNKNOWNS
        if each.anchor == anchor
    ]
    assert on_the_page(anchor) == rows


@pytest.mark.parametrize("anchor", [ANTHROPIC, TENSORLAKE])
def test_each_choice_of_the_emulator_belongs_to_an_unknown(anchor: str) -> None:
    text = (ROOT / anchor.partition("#")[0]).read_text(encoding="utf-8").replace('"EMU" marks a choice', "")
    choices = [choice for each in UNKNOWNS if each.anchor == anchor for choice in each.choices]
    for choice in choices:
        assert text.count(choice) == 1, choice
    for mark in re.finditer(r"\bEMU\b|\bemulator:\s", text):
        assert text.startswith(tuple(choices), mark.start()), text[mark.start() :][:60]


def test_each_unknown_has_a_check_that_exists_or_a_reason() -> None:
    ids = {check.id for check in CHECKS}
    for each in UNKNOWNS:
        assert bool(each.checks) != bool(each.why), each.matter
        assert set(each.checks) <= ids, each.matter


def test_each_check_looks_at_an_unknown() -> None:
    assert {check.id for check in CHECKS} == {check for each in UNKNOWNS for check in each.checks}
