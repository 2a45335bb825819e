"""The table of settings: every line is read, nothing beside it is, and deployments hand over by it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from shared.errors import SettingsError
from shared.setting_kinds import Number, Setting, Whole
from shared.settings import Settings
from shared.settings_table import SECTIONS, TABLE, Logging, handed_over, is_secret, settings_of

PLAIN = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
}
ON_CLOUD_RUN = {
    "AUTH": "platform",
    "K_SERVICE": "hands-poll-tick",
    "AUTH_CALLERS": "someone@example.com",
    "AUTH_OWN_URL": "https://hands-poll-tick-1.a.run.app",
}
WITH_AGENTS = {
    "AGENT_FORK": "1",
    "FUNCTIONS_TOKEN": "a-long-token-of-nobody-in-particular",
    "FUNCTIONS_PUBLIC_URL": "https://functions.example",
}


class AskedVariables(Mapping[str, str]):
    """An environment that remembers the names that it was asked for."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.names: set[str] = set()

    def __getitem__(self, name: str) -> str:
        self.names.add(name)
        return self._environ[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._environ)

    def __len__(self) -> int:
        return len(self._environ)


def test_settings_read_every_line_of_the_table_and_no_other_variable() -> None:
    asked = AskedVariables(PLAIN | ON_CLOUD_RUN | WITH_AGENTS | {"OUTPUTS_TO": "s3://results"})
    Settings.from_environ(asked)
    assert asked.names == {each.name for each in TABLE} - {each.name for each in settings_of(Logging)}


def test_each_variable_is_declared_once_with_a_meaning_in_a_section_with_a_title() -> None:
    names = [each.name for each in TABLE]
    assert sorted(names) == sorted(set(names))
    assert all(each.meaning.endswith(".") for each in TABLE)
    assert all(section.__doc__ and "\n" not in section.__doc__ for section in SECTIONS)


def test_each_default_is_a_value_that_its_own_setting_accepts() -> None:
    """With the exception of what has no default, since an empty text counts as not set."""
    for each in TABLE:
        if isinstance(each.default, str | int | float) and each.default != "":
            assert each.parse(str(each.default)) == each.default


def test_the_defaults_alone_are_settings_that_are_allowed() -> None:
    given = {each.name: str(each.default) for each in TABLE if each.default and not isinstance(each.default, tuple)}
    said, silent = Settings.from_environ(PLAIN | given), Settings.from_environ(PLAIN)
    assert repr(said) == repr(silent)


@pytest.mark.parametrize("name", ["SANDBOX_CPUS", "SANDBOX_MEMORY_MB", "RECLAIM_SECONDS", "RACE_MAX_BRANCHES"])
@pytest.mark.parametrize("value", ["-1", "inf", "nan", "many", "1_0x"])
def test_a_number_that_is_none_is_refused_and_not_repeated(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=name) as refused:
        Settings.from_environ(PLAIN | {name: value})
    assert value not in str(refused.value).removeprefix(name)


def test_what_a_file_may_say_of_an_environment_is_what_the_table_says(tmp_path: Path) -> None:
    numbers = {each.file_key for each in TABLE if isinstance(each, Number | Whole)} - {""}
    file = tmp_path / "environments.toml"
    file.write_text('[environments.env_a]\nkey = "k"\n' + "".join(f"{key} = 1\n" for key in sorted(numbers)))
    (environment,) = Settings.from_environ({**PLAIN, "ENVIRONMENTS_FILE": str(file)}).environments.values()
    assert {environment.cpus, environment.memory_mb, environment.disk_mb, environment.timeout_seconds} == {1}
    file.write_text('[environments.env_a]\nkey = "k"\nprefix = "other"\n')
    with pytest.raises(SettingsError, match="unknown setting prefix"):
        Settings.from_environ({**PLAIN, "ENVIRONMENTS_FILE": str(file)})


def test_no_deployment_is_handed_a_secret_or_what_is_not_set_or_what_is_no_setting() -> None:
    everything = {each.name: f"value of {each.name}" for each in TABLE}
    handed = handed_over(everything | {"PATH": "/bin", "LOG_LEVEL": " "}, "operator", "deployment", "runtime")
    assert handed.keys() == {each.name for each in TABLE if not is_secret(each)} - {"LOG_LEVEL"}


def test_a_cloud_chooses_what_is_its_own_business() -> None:
    everything = {each.name: f"value of {each.name}" for each in TABLE}
    assert not handed_over(everything, "operator").keys() & {
        *("AUTH", "AUTH_CALLERS", "AUTH_OWN_URL", "K_SERVICE", "DRAIN_MODE", "ENQUEUE_TO"),
        *("FUNCTIONS_PUBLIC_URL", "SELF_TICK_SECONDS", "SERVER_SANDBOX"),
    }


def test_a_setting_that_is_no_more_than_declared_is_found_by_its_name() -> None:
    class More:
        """A section of somebody else"""

        NEW_SETTING = Setting(1, "It is new.")

    assert [each.name for each in settings_of(More)] == ["NEW_SETTING"]
