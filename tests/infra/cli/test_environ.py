"""Which services a command talks to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.cli import environ
from infra.cli.environ import NoServices, load
from infra.local import discovery
from shared.errors import SettingsError

OFFLINE = {
    "ANTHROPIC_BASE_URL": "http://127.0.0.1:1",
    "TENSORLAKE_API_URL": "http://127.0.0.1:2",
    "ANTHROPIC_API_KEY": "offline",
    "TENSORLAKE_API_KEY": "offline",
}


@pytest.fixture
def offline(tmp_path: Path) -> Iterator[Path]:
    with discovery.announced(tmp_path, OFFLINE) as file:
        yield file


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).write_text(text, encoding="utf-8")


def test_the_files_win_over_a_stale_shell_and_env_local_wins_over_env(tmp_path: Path) -> None:
    write(tmp_path, ".env", "TENSORLAKE_API_KEY=from-env\nANTHROPIC_API_KEY=from-env\n")
    write(tmp_path, ".env.local", "ANTHROPIC_API_KEY=from-local\n")
    loaded = load({"TENSORLAKE_API_KEY": "stale", "ANTHROPIC_API_KEY": "stale", "HOME": "/h"}, tmp_path)
    assert not loaded.offline and loaded.file is None
    assert loaded.environ == {"TENSORLAKE_API_KEY": "from-env", "ANTHROPIC_API_KEY": "from-local", "HOME": "/h"}


def test_keys_in_the_process_alone_are_enough(tmp_path: Path) -> None:
    assert not load({"ANTHROPIC_API_KEY": "k"}, tmp_path).offline


def test_without_keys_the_running_offline_platform_is_used(tmp_path: Path, offline: Path) -> None:
    loaded = load({"HOME": "/h", "ANTHROPIC_WORKSPACE_ID": "wrkspc_1", "ENVIRONMENTS_FILE": ""}, tmp_path)
    assert loaded.offline and loaded.file == offline
    assert loaded.environ == {"HOME": "/h", **OFFLINE, "HANDS_OFFLINE_ENV": str(offline)}


def test_with_keys_a_running_offline_platform_is_left_alone(tmp_path: Path, offline: Path) -> None:
    assert load({"TENSORLAKE_API_KEY": "real"}, tmp_path).environ == {"TENSORLAKE_API_KEY": "real"}


def test_the_offline_flag_sets_real_keys_aside(tmp_path: Path, offline: Path) -> None:
    real = {"ANTHROPIC_API_KEY": "real", "ANTHROPIC_ENVIRONMENT_KEY": "real", "ANTHROPIC_AUTH_TOKEN": "real"}
    loaded = load({**real, "OFFLINE": "1"}, tmp_path)
    assert loaded.offline and loaded.file == offline
    assert "real" not in loaded.environ.values()


def test_an_example_file_that_was_only_copied_counts_as_no_keys(tmp_path: Path) -> None:
    for name in (".env", ".env.local"):
        write(tmp_path, name, (environ.CHECKOUT / f"{name}.example").read_text(encoding="utf-8"))
    with pytest.raises(NoServices):
        load({}, tmp_path)


def test_with_neither_it_says_how_to_get_either(tmp_path: Path) -> None:
    with pytest.raises(NoServices, match="make up") as caught:
        load({}, tmp_path)
    assert ".env.example" in str(caught.value)


def test_a_platform_that_is_gone_is_not_used_whatever_it_left(tmp_path: Path) -> None:
    with discovery.announced(tmp_path, OFFLINE) as file:
        left = file.read_text(encoding="utf-8")
    file.write_text(left, encoding="utf-8")
    with pytest.raises(NoServices):
        load({}, tmp_path)


def test_a_second_platform_has_a_file_of_its_own_and_can_be_named(tmp_path: Path, offline: Path) -> None:
    with discovery.announced(tmp_path, {**OFFLINE, "WHICH": "second"}) as second:
        assert second != offline
        assert load({}, tmp_path).file == offline
        named = load({"HANDS_OFFLINE_ENV": str(second.relative_to(tmp_path))}, tmp_path)
        assert named.environ["WHICH"] == "second"
    assert not second.exists() and offline.exists()
    with pytest.raises(NoServices, match="HANDS_OFFLINE_ENV"):
        load({"HANDS_OFFLINE_ENV": str(second)}, tmp_path)


def test_when_the_first_platform_has_ended_the_second_is_found(tmp_path: Path) -> None:
    first = discovery.announced(tmp_path, OFFLINE)
    first.__enter__()
    with discovery.announced(tmp_path, OFFLINE) as second:
        first.__exit__(None, None, None)
        assert load({}, tmp_path).file == second


def test_the_file_is_its_owners_alone(offline: Path) -> None:
    assert offline.stat().st_mode & 0o777 == 0o600
    assert offline.parent.stat().st_mode & 0o077 == 0


def test_a_broken_file_is_named_and_its_content_is_not(tmp_path: Path) -> None:
    write(tmp_path, ".env", "sk-ant-secret\n")
    with pytest.raises(SettingsError, match="line 1") as caught:
        load({}, tmp_path)
    assert "sk-ant" not in str(caught.value)


def test_applying_takes_away_what_must_not_stay(tmp_path: Path, offline: Path) -> None:
    process = {"ANTHROPIC_AUTH_TOKEN": "real", "HOME": "/h"}
    environ.apply(load(process, tmp_path), process)
    assert process == {"HOME": "/h", **OFFLINE, "HANDS_OFFLINE_ENV": str(offline)}


def test_exported_variables_of_a_running_platform_mean_that_platform(tmp_path: Path) -> None:
    with discovery.announced(tmp_path, {**OFFLINE, "TOKEN": "of the console"}) as file:
        loaded = load({**OFFLINE, "ANTHROPIC_BASE_URL": "http://127.0.0.1:1/", "HOME": "/h"}, tmp_path)
        assert loaded.file == file and loaded.where == "the offline platform (offline.env)"
        assert loaded.environ["TOKEN"] == "of the console" and loaded.environ["HOME"] == "/h"
        other = load({**OFFLINE, "ANTHROPIC_BASE_URL": "http://127.0.0.1:9"}, tmp_path)
        assert other.offline and other.file is None and "TOKEN" not in other.environ
        assert other.where == "the offline platform at http://127.0.0.1:9 and http://127.0.0.1:2"


def test_exported_variables_mean_the_platform_of_another_checkout_too(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with discovery.announced(there, OFFLINE) as file:
        exported = discovery.read_if_running(file) or {}
        assert load(exported, here).file == file
        alone = load({discovery.OFFLINE_FILE: str(file)}, here)
        assert alone.offline and alone.environ.items() >= OFFLINE.items()


@pytest.mark.parametrize(
    ("claude", "sandboxes", "offline"),
    [
        ("http://127.0.0.1:1", "http://localhost:2/", True),
        ("http://[::1]:1", "http://127.0.0.1:2", True),
        ("https://elsewhere.example", "http://127.0.0.1:2", False),
        ("http://127.0.0.1:1", "https://elsewhere.example", False),
        ("http://127.0.0.1.example", "http://127.0.0.1:2", False),
        ("http://127.0.0.1:1", "", False),
        ("", "", False),
    ],
)
def test_what_is_offline_is_told_by_both_addresses_alone(
    tmp_path: Path, claude: str, sandboxes: str, offline: bool
) -> None:
    keys = {"ANTHROPIC_API_KEY": "k", "TENSORLAKE_API_KEY": "k"}
    loaded = load({**keys, "ANTHROPIC_BASE_URL": claude, "TENSORLAKE_API_URL": sandboxes}, tmp_path)
    assert loaded.offline is offline
    assert loaded.where.startswith("the offline platform at ") is offline


def test_only_keys_without_addresses_are_called_the_real_services(tmp_path: Path, offline: Path) -> None:
    assert load({"ANTHROPIC_API_KEY": "k", "TENSORLAKE_API_KEY": "k"}, tmp_path).where == "the real services"
