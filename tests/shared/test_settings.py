"""Settings: one environment from plain variables, several from a file, and clear errors that hold no value."""

from __future__ import annotations

from pathlib import Path

import pytest

from shared.egress import EgressPolicy
from shared.errors import SecretUnavailable, SettingsError
from shared.secret import CACHE_SECONDS, Secret
from shared.settings import Settings

PLAIN = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
}


def test_the_plain_variables_of_the_quickstart_make_one_environment() -> None:
    settings = Settings.from_environ(PLAIN | {"SANDBOX_IMAGE_NAME": "my-image", "RUNNER_MAX_IDLE_SECONDS": "300"})
    (environment,) = settings.environments.values()
    assert (environment.id, environment.image) == ("env_1", "my-image")
    assert environment.key.reveal() == "not-a-real-environment-key"
    assert settings.max_idle_seconds == 300
    assert settings.resume_suspended is True
    assert settings.anthropic_url == "https://api.anthropic.com"


def test_a_file_makes_several_environments_that_fall_back_to_the_plain_variables(tmp_path: Path) -> None:
    file = tmp_path / "environments.toml"
    file.write_text(
        '[environments.env_a]\nkey = "env:KEY_A"\nimage = "one"\nallow_out = ["example.com"]\n'
        '[environments.env_b]\nkey = "key-b"\ncpus = 4\n'
    )
    settings = Settings.from_environ(
        {"TENSORLAKE_API_KEY": "k", "ENVIRONMENTS_FILE": str(file), "SANDBOX_IMAGE_NAME": "fallback"}
    )
    assert [environment.image for environment in settings.environments.values()] == ["one", "fallback"]
    assert settings.environments["env_a"].egress == EgressPolicy(allow=("example.com", "api.anthropic.com"))
    assert settings.environments["env_b"].cpus == 4.0


def test_egress_is_an_allow_list_with_the_api_host_unless_told_otherwise() -> None:
    (environment,) = Settings.from_environ(PLAIN).environments.values()
    assert environment.egress == EgressPolicy(allow=("api.anthropic.com",))
    (environment,) = Settings.from_environ(PLAIN | {"SANDBOX_ALLOW_OUT": "*"}).environments.values()
    assert environment.egress == EgressPolicy()


@pytest.mark.parametrize("missing", sorted(PLAIN))
def test_a_missing_variable_is_named(missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        Settings.from_environ({name: value for name, value in PLAIN.items() if name != missing})


@pytest.mark.parametrize(
    "variable, value",
    [
        ("TENSORLAKE_API_URL", "http://emulator:8900"),
        ("TENSORLAKE_API_URL", "http://127.0.0.2:8900"),
        ("TENSORLAKE_API_URL", "http://[::1]:8900"),
        ("TENSORLAKE_API_URL", "localhost:8900"),
        ("TENSORLAKE_API_URL", "https://emulator.example"),
        ("TENSORLAKE_API_URL", "https://user:password@api.example"),
        ("ANTHROPIC_BASE_URL", "http://api.anthropic.com"),
        ("ANTHROPIC_BASE_URL", "ftp://localhost"),
        ("RECLAIM_SECONDS", "75"),
        ("RECLAIM_SECONDS", "-1"),
        ("RECLAIM_SECONDS", "nan"),
        ("STRANDED_SECONDS", "80"),
        ("DRAIN_DEADLINE_SECONDS", "60"),
        ("DRAIN_CONCURRENCY", "0"),
        ("DRAIN_CONCURRENCY", "two"),
        ("DRAIN_MODE", "later"),
        ("RESUME_SUSPENDED_SESSIONS", "maybe"),
        ("SANDBOX_PREFIX", "No"),
        ("ENVIRONMENTS_FILE", "/nowhere/environments.toml"),
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(variable: str, value: str) -> None:
    with pytest.raises(SettingsError, match=variable):
        Settings.from_environ(PLAIN | {variable: value})


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.0.0.1:1", "https://api.example.com"])
def test_addresses_that_the_sdk_keeps_are_accepted(url: str) -> None:
    assert Settings.from_environ(PLAIN | {"TENSORLAKE_API_URL": url + "/"}).tensorlake_url == url


def test_i6_no_secret_shows_in_the_settings_printed_form() -> None:
    printed = repr(Settings.from_environ(PLAIN | {"FUNCTIONS_TOKEN": "a-token", "ANTHROPIC_WEBHOOK_SIGNING_KEY": "w1"}))
    assert not [secret for secret in ("not-a-real", "a-token", "w1'") if secret in printed]


def test_a_secret_in_a_file_is_read_again_after_some_minutes_so_that_rotation_works(tmp_path: Path) -> None:
    now = [0.0]
    file = tmp_path / "key"
    file.write_text("old\n")
    secret = Secret("SOME_KEY", f"file:{file}", clock=lambda: now[0])
    assert secret.reveal() == "old"
    file.write_text("new\n")
    assert secret.reveal() == "old"
    now[0] = CACHE_SECONDS + 1
    assert secret.reveal() == "new"


def test_a_secret_that_cannot_be_read_names_the_setting_and_the_place(tmp_path: Path) -> None:
    with pytest.raises(SecretUnavailable, match=r"SOME_KEY.*missing"):
        Secret("SOME_KEY", f"file:{tmp_path}/missing").reveal()


STRONG = "a-long-token-of-nobody-in-particular"
AGENT_FORK = {"AGENT_FORK": "true", "FUNCTIONS_TOKEN": STRONG, "FUNCTIONS_PUBLIC_URL": "https://f.example"}


@pytest.mark.parametrize("hosts", ["packages.example.com,git.example.com", "packages.example.com api.anthropic.com"])
def test_no_allow_list_takes_the_api_away_from_the_workers(hosts: str, tmp_path: Path) -> None:
    (environment,) = Settings.from_environ(PLAIN | {"SANDBOX_ALLOW_OUT": hosts}).environments.values()
    assert environment.egress.allow.count("api.anthropic.com") == 1
    assert "packages.example.com" in environment.egress.allow
    file = tmp_path / "environments.toml"
    file.write_text('[environments.env_a]\nkey = "k"\nallow_out = []\n')
    environ = {"TENSORLAKE_API_KEY": "k", "ENVIRONMENTS_FILE": str(file)}
    assert Settings.from_environ(environ).environments["env_a"].egress.allow == ("api.anthropic.com",)


def test_with_agent_fork_the_functions_join_the_allow_list_and_nothing_is_added_to_an_open_one() -> None:
    settings = Settings.from_environ(PLAIN | AGENT_FORK)
    assert settings.fork_url == "https://f.example/fork_best_of_n"
    assert settings.environments["env_1"].egress == EgressPolicy(allow=("api.anthropic.com", "f.example"))
    (environment,) = Settings.from_environ(PLAIN | AGENT_FORK | {"SANDBOX_ALLOW_OUT": "*"}).environments.values()
    assert environment.egress == EgressPolicy()
    off = Settings.from_environ(PLAIN | AGENT_FORK | {"AGENT_FORK": "false"})
    assert (off.fork_url, off.environments["env_1"].egress.allow) == (None, ("api.anthropic.com",))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"FUNCTIONS_PUBLIC_URL": ""}, "FUNCTIONS_PUBLIC_URL"),
        ({"FUNCTIONS_PUBLIC_URL": "http://f.example"}, "FUNCTIONS_PUBLIC_URL"),
        ({"FUNCTIONS_TOKEN": ""}, "FUNCTIONS_TOKEN"),
        ({"FUNCTIONS_TOKEN": "x"}, "FUNCTIONS_TOKEN"),
        ({"FUNCTIONS_TOKEN": STRONG[:31]}, "FUNCTIONS_TOKEN"),
        ({"FUNCTIONS_TOKEN": "letmein2024", "CAPABILITY_KEY": STRONG}, "FUNCTIONS_TOKEN"),
        ({"CAPABILITY_KEY": "letmein2024"}, "CAPABILITY_KEY"),
        ({"CAPABILITY_KEY": f"{STRONG}, old"}, "CAPABILITY_KEY"),
        ({"RACE_AGENT_SECONDS": "121"}, "RACE_AGENT_SECONDS"),
        ({"RACE_AGENT_SECONDS": "0"}, "RACE_AGENT_SECONDS"),
    ],
)
def test_agent_fork_says_what_it_lacks(changes: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named) as caught:
        Settings.from_environ(PLAIN | AGENT_FORK | changes)
    assert "letmein2024" not in str(caught.value) and STRONG not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"FUNCTIONS_TOKEN": "", "CAPABILITY_KEY": STRONG},
        {"FUNCTIONS_TOKEN": STRONG[:32]},
        {"CAPABILITY_KEY": f"{STRONG} {STRONG[:32]}"},
        {"FUNCTIONS_TOKEN": "file:/x"},
    ],
)
def test_agent_fork_needs_one_secret_that_nobody_guesses(changes: dict[str, str]) -> None:
    assert Settings.from_environ(PLAIN | AGENT_FORK | changes).fork_url is not None


def test_a_weak_token_is_known_where_agents_have_none_of_it_and_refused_nowhere() -> None:
    without = PLAIN | AGENT_FORK | {"AGENT_FORK": "false"}
    assert Settings.from_environ(without | {"FUNCTIONS_TOKEN": "letmein2024"}).weak_token
    for token in ("", STRONG, "file:/x"):
        assert not Settings.from_environ(without | {"FUNCTIONS_TOKEN": token}).weak_token


def test_a_set_up_comes_from_plain_variables_or_from_the_file(tmp_path: Path) -> None:
    script = tmp_path / "test.sh"
    script.write_text("make test\n")
    plain = {
        "SETUP_REPOSITORY": "https://git.example/app",
        "SETUP_REVISION": "v1",
        "SETUP_FILES": "https://git.example/f.csv#target=in.csv",
        "SETUP_SCRIPT": "make deps",
        "SETUP_SCRIPTS": f"test=file:{script} lint='make lint'",
        "SETUP_ENV": "A=1 B='two words'",
        "SETUP_ON_FAILURE": "continue",
        "SANDBOX_ALLOW_OUT": "git.example",
    }
    (environment,) = Settings.from_environ(PLAIN | plain).environments.values()
    setup = environment.setup
    assert setup is not None
    assert (setup.base.repo, setup.base.ref, setup.base.scripts) == ("https://git.example/app", "v1", ("make deps",))
    assert setup.base.env == {"A": "1", "B": "two words"} and setup.base.files[0].target == "in.csv"
    assert setup.scripts == {"test": "make test", "lint": "make lint"} and setup.go_on
    assert setup.callers == ("repo", "ref", "subdir", "files", "setup") and setup.hosts is not None
    file = tmp_path / "environments.toml"
    file.write_text(
        '[environments.env_a]\nkey = "k"\nsetup_env = { A = "2" }\nsetup_scripts = {}\nsetup_revision = "v2"\n'
        '[environments.env_b]\nkey = "k"\nsetup_repository = ""\nsetup_revision = ""\nsetup_files = ""\n'
        'setup_script = ""\nsetup_env = {}\nsetup_caller_keys = []\n'
    )
    settings = Settings.from_environ(PLAIN | plain | {"ENVIRONMENTS_FILE": str(file)})
    one, none = settings.environments["env_a"].setup, settings.environments["env_b"].setup
    assert one is not None and (one.base.env, one.base.ref, one.scripts) == ({"A": "2"}, "v2", {})
    assert none is None


def test_who_may_ask_for_a_set_up_is_the_same_where_no_other_setting_of_it_is_given() -> None:
    (usual,) = Settings.from_environ(PLAIN).environments.values()
    (spelt,) = Settings.from_environ(PLAIN | {"SETUP_SECONDS": "601"}).environments.values()
    assert usual.setup is not None and spelt.setup is not None
    assert usual.setup.to_wire() == spelt.setup.to_wire() | {"seconds": 600.0}
    (closed,) = Settings.from_environ(PLAIN | {"SETUP_CALLER_KEYS": "none"}).environments.values()
    assert closed.setup is not None and closed.setup.callers == ()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"SETUP_REPOSITORY": "git@git.example:app"}, "repo must be a URL with https"),
        ({"SETUP_REPOSITORY": "https://git.example/app"}, "may not reach 'git.example'.*SANDBOX_ALLOW_OUT"),
        ({"SETUP_REVISION": "v1"}, "setup_revision and setup_subdir are of setup_repository"),
        ({"SETUP_CALLER_KEYS": "repo,rev"}, "setup_caller_keys has 'rev'"),
        ({"SETUP_SCRIPT": "file:/nowhere/at/all"}, "the set-up script /nowhere/at/all cannot be read"),
        ({"SETUP_SCRIPT": "x" * 30_000}, "24576 at most travel with a claim"),
        ({"SETUP_ENV": "A"}, "SETUP_ENV must be name=value pairs"),
        ({"SETUP_ENV": "ANTHROPIC_API_KEY=x"}, "cannot be the name of a variable"),
        ({"SETUP_SCRIPTS": "'A b'=x"}, "cannot be the name of a script"),
        ({"SETUP_SECONDS": "0"}, "setup_seconds must be above 0"),
    ],
)
def test_a_set_up_that_no_session_could_have_is_refused_at_start(variables: dict[str, str], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        Settings.from_environ(PLAIN | variables)
