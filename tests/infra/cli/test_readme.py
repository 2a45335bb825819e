"""README and settings page against the program: settings, commands, files, the example."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import pytest

from functions.requests import read_model
from image.session.definition import DEFAULT_BASE
from infra.cli.agents import DEFAULT_MODEL
from infra.cli.settings_table import ALL
from infra.sandbox.plan import ServerSettings
from shared.races.request import RaceRequest
from shared.settings import Settings
from tests.support.checkout import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
SETTINGS = (ROOT / "docs" / "reference" / "settings.md").read_text(encoding="utf-8")
PAGES = [README, *(page.read_text(encoding="utf-8") for page in (ROOT / "docs").rglob("*.md"))]
REQUIRED = {"ANTHROPIC_ENVIRONMENT_ID": "env_1", "ANTHROPIC_ENVIRONMENT_KEY": "k", "TENSORLAKE_API_KEY": "t"}

BESIDE = {"K_SERVICE", "LOG_LEVEL", "LOG_FORMAT"}
"""Read on Cloud Run alone, and by logging (tests/shared/test_settings_table.py)."""


class Recorded(dict[str, str]):
    """Remembers which variables were asked for."""

    def __init__(self, values: Mapping[str, str]) -> None:
        super().__init__(values)
        self.asked: set[str] = set()

    def get(self, name: str, default: str = "") -> str:  # type: ignore[override]  # one of dict.get's forms is enough
        self.asked.add(name)
        return super().get(name, default)


def tables() -> list[dict[str, str]]:
    """The settings tables, those of the functions and those of commands: variable -> default, as written."""
    section = SETTINGS.split("## Several environments")[0]
    parts = section.split(f"## {ServerSettings.__doc__}")
    assert len(parts) == 2
    return [dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \|", part, re.MULTILINE)) for part in parts]


def settings_table() -> dict[str, str]:
    return tables()[0]


def test_the_settings_table_has_every_variable_that_the_settings_read_and_no_other() -> None:
    environ = Recorded({**REQUIRED, "OUTPUTS_TO": "s3://results"})
    Settings.from_environ(environ)
    assert set(settings_table()) - BESIDE == environ.asked


def literal_defaults() -> list[tuple[str, str]]:
    return [
        (name, text.strip("`"))
        for name, text in settings_table().items()
        if text.startswith("`") and name not in BESIDE | {"AUTH", "AGENT_FORK", "AGENT_FORK_ACCEPT_ONLY"}
    ]


@pytest.mark.parametrize(("name", "default"), literal_defaults())
def test_a_default_in_the_table_is_the_one_in_force(name: str, default: str) -> None:
    plain = Settings.from_environ(REQUIRED)
    assert repr(Settings.from_environ({**REQUIRED, name: default})) == repr(plain)


@pytest.mark.parametrize(("name", "default"), literal_defaults())
def test_another_value_than_the_default_makes_a_difference(name: str, default: str) -> None:
    other = {
        "ANTHROPIC_BASE_URL": "https://api.example.com",
        "TENSORLAKE_API_URL": "https://api.example.com",
        "RESUME_SUSPENDED_SESSIONS": "false",
        "DRY_RUN": "true",
        "DRAIN_MODE": "inline",
        "SANDBOX_IMAGE_NAME": "other",
        "SANDBOX_PREFIX": "other",
        "SANDBOX_USER": "other",
        "SANDBOX_WORKDIR": "/other",
        "HANDOVER_SECONDS": "29",
        "RACE_AGENT_SECONDS": "60",
        "TOOL_SECONDS": "60",
        "OUTPUTS_DIR": "/other",
        "RACE_REPORTS": "all",
        "SETUP_CALLER_KEYS": "repo",
        "SETUP_ON_FAILURE": "continue",
        "SETUP_PREPARED_BY_TICKS": "true",
    }
    value = other.get(name) or (str(int(default) + 1) if default.isdigit() else str(float(default) + 1))
    usual = {**REQUIRED, **({"OUTPUTS_TO": "s3://results"} if name.startswith("OUTPUTS_") else {})}
    assert repr(Settings.from_environ({**usual, name: value})) != repr(Settings.from_environ(usual))


def test_required_means_required() -> None:
    assert {name for name, default in settings_table().items() if default == "required"} == set(REQUIRED)


def test_the_commands_variables_are_read_somewhere_with_those_defaults() -> None:
    commands = tables()[1]
    program = "".join(
        path.read_text(encoding="utf-8")
        for folder in ("infra", "shared", "image", "functions")
        for path in (ROOT / folder).rglob("*.py")
    )
    assert [name for name in commands if name not in {each.name for each in ALL}] == []
    assert [name for name in commands if name not in program] == []
    assert commands["ANTHROPIC_AGENT_MODEL"] == f"`{DEFAULT_MODEL}`"
    assert commands["SANDBOX_IMAGE_BASE"] == f"`{DEFAULT_BASE}`"


def test_every_variable_of_the_example_files_is_documented() -> None:
    documented = {name for table in tables() for name in table}
    for file in (".env.example", ".env.local.example"):
        names = re.findall(r"^#?([A-Z][A-Z_]+)=", (ROOT / file).read_text(encoding="utf-8"), re.MULTILINE)
        assert names and set(names) <= documented


def test_every_target_that_is_named_exists() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    code = " ".join(each for page in PAGES for each in re.findall(r"```.*?```|`[^`]+`", page, re.DOTALL))
    named = set(re.findall(r"\bmake ([a-z][a-z-]+)\b", code))
    assert named and named <= targets


def test_every_path_that_is_named_exists() -> None:
    paths = [
        path
        for page in PAGES
        for path in re.findall(r"`((?:functions|shared|image|infra|tests|docs|examples)/[A-Za-z0-9_./-]*)`", page)
    ]
    assert len(paths) > 8
    assert [path for path in paths if not (ROOT / path).exists()] == []


def test_the_example_race_is_a_valid_request() -> None:
    body = re.search(r"-d '\n(\{.*?\})'", README, re.DOTALL)
    assert body is not None
    race = read_model(RaceRequest, body[1].encode())
    assert [branch.script for branch in race.candidates()] == [f"echo {i} > score.txt" for i in range(3)]


def test_nothing_of_a_developers_machine_is_in_it() -> None:
    for page in PAGES:
        assert not re.search(r"(?<![./}])/(?:home|Users|root|work)/[a-z]", page)
        assert str(Path.home()) + "/" not in page


def test_it_is_read_in_five_minutes() -> None:
    assert len(README.splitlines()) <= 150
