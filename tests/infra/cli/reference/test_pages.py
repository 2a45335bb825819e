"""The reference pages are what the code says."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from infra.cli.reference import commands, settings
from infra.cli.reference.__main__ import PAGES, main, outdated, write
from infra.cli.settings_table import ALL, ALL_SECTIONS
from infra.local.__main__ import FLAGS
from shared.setting_kinds import Setting
from tests.support.checkout import ROOT


def test_the_pages_in_the_repository_are_up_to_date() -> None:
    assert outdated() == [], "run make docs-reference"


def test_what_a_deployments_plan_declares_is_on_the_page() -> None:
    plans = sorted((ROOT / "infra").glob("*/plan.py"))
    assert len(plans) >= 3
    for plan in plans:
        module = importlib.import_module(f"infra.{plan.parent.name}.plan")
        sections = [each for each in vars(module).values() if isinstance(each, type) and _declares(each)]
        assert sections and set(sections) <= set(ALL_SECTIONS), module.__name__


def _declares(section: type) -> bool:
    return any(isinstance(each, Setting) for each in vars(section).values())


def test_a_page_that_is_missing_or_differs_is_named_and_written_anew(tmp_path: Path) -> None:
    assert outdated(tmp_path) == list(PAGES)
    write(tmp_path)
    assert outdated(tmp_path) == []
    with (tmp_path / "settings.md").open("a", encoding="utf-8") as page:
        page.write("more\n")
    assert outdated(tmp_path) == ["settings.md"]


def test_the_check_says_what_to_run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("infra.cli.reference.__main__.outdated", lambda: ["cli.md"])
    assert main(["--check"]) == 1
    assert "docs/reference/cli.md is out of date: make docs-reference" in capsys.readouterr().err


def test_every_setting_of_every_table_has_one_row() -> None:
    page = settings.page()
    for each in ALL:
        assert page.count(f"\n| `{each.name}` |") == 1, each.name


def test_no_cell_breaks_its_table() -> None:
    rows = [line for line in settings.page().splitlines() if line.startswith("| `")]
    assert {line.replace("\\|", "").count("|") for line in rows} <= {3, 5}


def test_the_options_of_the_offline_platform_are_on_the_page() -> None:
    section = commands.page().partition("## hands up\n")[2].partition("\n## ")[0]
    assert [flag for flag in FLAGS if f"| `{flag} ‹" not in section] == []


def test_an_example_on_the_page_is_one_that_a_shell_takes() -> None:
    assert "jq '.sessions[] | " in commands.page() and "\\[" not in commands.page()
