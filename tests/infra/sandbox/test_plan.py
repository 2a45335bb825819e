"""What the server is told and what it may reach, for the real services: nothing is contacted."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from infra.sandbox import plan
from infra.sandbox.plan import plan_from
from shared import names
from shared.errors import SettingsError
from shared.settings import Settings

REAL = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "an-environment-key",
    "TENSORLAKE_API_KEY": "a-tensorlake-key",
}
ELSEWHERE = {
    "ANTHROPIC_API_KEY": "the-persons-own",
    "AWS_SECRET_ACCESS_KEY": "another",
    "PATH": "/bin",
    "HOME": "/root",
}


@pytest.fixture(autouse=True)
def one_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "source_files", lambda: {"functions/asgi.py": b""})


def test_the_server_is_told_what_settings_read_and_nothing_else() -> None:
    told = plan_from({**REAL, **ELSEWHERE, "RECLAIM_SECONDS": "100", "LOG_LEVEL": "DEBUG"}).variables
    assert told == {
        **REAL,
        "RECLAIM_SECONDS": "100",
        "LOG_LEVEL": "DEBUG",
        "LOG_FORMAT": "json",
        "SELF_TICK_SECONDS": "60",
    }


def test_secrets_by_reference_are_told_by_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "token").write_text("a-token\n")
    monkeypatch.setenv("MY_SIGNING_KEY", "whsec_bm9uZQ==")
    environ = {
        **REAL,
        "FUNCTIONS_TOKEN": f"file:{tmp_path}/token",
        "ANTHROPIC_WEBHOOK_SIGNING_KEY": "whsec_b2xk, env:MY_SIGNING_KEY",
    }
    told = plan_from(environ).variables
    assert told["FUNCTIONS_TOKEN"] == "a-token"
    assert told["ANTHROPIC_WEBHOOK_SIGNING_KEY"] == "whsec_b2xk,whsec_bm9uZQ=="
    assert Settings.from_environ(told).signing_keys[1].reveal() == "whsec_bm9uZQ=="


def test_several_environments_are_told_in_a_file_without_a_key(tmp_path: Path) -> None:
    file = tmp_path / "environments.toml"
    file.write_text('[environments.env_a]\nkey = "key-a"\n[environments.env_b]\nkey = "key-b"\nallow_out = ["*"]\n')
    environ = {"ENVIRONMENTS_FILE": str(file), "TENSORLAKE_API_KEY": "a-tensorlake-key"}
    made = plan_from(environ)
    assert "key-a" not in made.environments_file and "ENVIRONMENTS_FILE" not in made.variables
    assert sorted(tomllib.loads(made.environments_file)["environments"]) == ["env_a", "env_b"]
    there = tmp_path / "there.toml"
    there.write_text(made.environments_file)
    told = Settings.from_environ({**made.variables, "ENVIRONMENTS_FILE": str(there)})
    here = Settings.from_environ(environ)
    assert repr(told.environments["env_b"].egress) == repr(here.environments["env_b"].egress)
    assert [made.variables[f"HANDS_ENVIRONMENT_KEY_{number}"] for number in (0, 1)] == ["key-a", "key-b"]


def test_set_ups_tools_and_outputs_are_told_so_that_they_work_there(tmp_path: Path) -> None:
    """Nothing of this machine is there: no file with a script, no variable with a secret."""
    (tmp_path / "setup.sh").write_text("echo 'it''s here'\nmake\n")
    (tmp_path / "environments.toml").write_text(
        '[environments.env_a]\nkey = "key-a"\nsetup_env = { REGION = "eu", "A2" = "Ü😀" }\n'
        f'setup_scripts = {{ test = "file:{tmp_path}/setup.sh" }}\nallow_out = ["git.example"]\n'
        f'setup_repository = "https://git.example/a"\ntool_secrets = "DB=file:{tmp_path}/db"\n'
        '[environments.env_b]\nkey = "key-b"\nsetup_prepared_by_ticks = true\n'
    )
    (tmp_path / "db").write_text("secret-of-a-database\n")
    common = {
        "TENSORLAKE_API_KEY": "a-tensorlake-key",
        "SETUP_SCRIPT": f"file:{tmp_path}/setup.sh",
        "TOOL_SECRETS": f"DB=file:{tmp_path}/db TWO=file:{tmp_path}/db",
        "OUTPUTS_TO": "https://account.blob.example/box",
        "OUTPUTS_SIGNATURE": f"file:{tmp_path}/db",
    }
    for environ in ({**REAL, **common}, {**common, "ENVIRONMENTS_FILE": str(tmp_path / "environments.toml")}):
        made = plan_from(environ)
        here = Settings.from_environ(environ)
        there = {**made.variables}
        if made.environments_file:
            (tmp_path / "there.toml").write_text(made.environments_file)
            there["ENVIRONMENTS_FILE"] = str(tmp_path / "there.toml")
        assert not [name for name, text in there.items() if "file:" in text]
        assert "file:" not in made.environments_file and "secret-of" not in made.environments_file
        told = Settings.from_environ(there)
        for id_, mine in here.environments.items():
            theirs = told.environments[id_]
            assert (theirs.setup, theirs.prepared_by_ticks) == (mine.setup, mine.prepared_by_ticks)
            refers = {
                name: there[secret._reference.removeprefix("env:")] for name, secret in theirs.tool_secrets.items()
            }
            assert refers == dict.fromkeys(mine.tool_secrets, "secret-of-a-database")
        assert told.outputs is not None and told.outputs.signature is not None
        assert told.outputs.signature.reveal() == "secret-of-a-database"
        assert "account.blob.example" in made.hosts


def test_egress_is_both_apis_the_sdks_own_host_and_what_was_asked_for() -> None:
    assert plan_from({**REAL, plan.ALLOW_OUT: "logs.example.com"}).hosts == (
        "api.anthropic.com",
        "api.tensorlake.ai",
        "logs.example.com",
        "sandbox.tensorlake.ai",
    )
    assert plan_from({**REAL, plan.ALLOW_OUT: "*"}).hosts == ("*",)


def test_telemetry_is_told_with_its_headers_by_value_and_its_collectors_can_be_reached(tmp_path: Path) -> None:
    (tmp_path / "headers").write_text("x-key=of-nobody\n")
    sent = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example:4318",
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://metrics.example/v1/metrics",
        "OTEL_SERVICE_NAME": "mine",
    }
    headers = {"OTEL_EXPORTER_OTLP_HEADERS": f"file:{tmp_path}/headers", "OTEL_EXPORTER_OTLP_PASSWORD": "stays-here"}
    made = plan_from({**REAL, **sent, **headers})
    told = {name: text for name, text in made.variables.items() if name.startswith("OTEL_")}
    assert told == {**sent, "OTEL_EXPORTER_OTLP_HEADERS": "x-key=of-nobody"}
    assert {"collector.example", "metrics.example"} <= set(made.hosts)
    assert "metrics.example" not in plan_from({**REAL, **sent, "OTEL_METRICS_EXPORTER": "prometheus"}).hosts


@pytest.mark.parametrize(
    "wrong",
    [
        {"OTEL_TRACES_EXPORTER": "zipkin"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector:4318"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://user:secret@collector.example"},
    ],
)
def test_telemetry_that_cannot_work_is_refused_before_anything_is_started(wrong: dict[str, str]) -> None:
    with pytest.raises(SettingsError, match="OTEL_") as caught:
        plan_from({**REAL, **wrong})
    assert "secret" not in str(caught.value)


def test_every_setting_key_port_and_file_has_its_own_process_name(monkeypatch: pytest.MonkeyPatch) -> None:
    changes = [
        {},
        {"ANTHROPIC_ENVIRONMENT_KEY": "rotated"},
        {"TENSORLAKE_API_KEY": "rotated"},
        {"FUNCTIONS_TOKEN": "new"},
        {"ANTHROPIC_WEBHOOK_SIGNING_KEY": "whsec_bm9uZQ=="},
        {"IDLE_GRACE_SECONDS": "31"},
    ]
    names = [plan_from({**REAL, **change}).process(5051) for change in changes]
    monkeypatch.setattr(plan, "source_files", lambda: {"functions/asgi.py": b"pass"})
    names += [plan_from(REAL).process(port) for port in (5051, 5052)]
    assert len(set(names)) == len(names)
    assert plan_from(REAL).process(1) == plan_from({**REAL, **ELSEWHERE}).process(
        1
    )  # what is not told restarts nothing
    assert not [name for name in names if json.dumps(name).count("key")]


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ({plan.TIMEOUT: "soon"}, plan.TIMEOUT),
        ({plan.TIMEOUT: "0"}, plan.TIMEOUT),
        ({plan.PORT: "99999"}, plan.PORT),
        ({"DRAIN_MODE": "enqueue", "ENQUEUE_TO": "aws-lambda:x"}, "DRAIN_MODE"),
        ({"OUTPUTS_TO": "s3://results"}, "OUTPUTS_TO: a server in a sandbox cannot write to s3:"),
        ({"OUTPUTS_TO": "file:///results"}, "OUTPUTS_TO: a server in a sandbox cannot write to file:"),
        ({"SETUP_STORES": "s3://inputs/"}, "SETUP_STORES: a server in a sandbox has no credentials"),
        ({"SETUP_CREDENTIALS": "forge:credential"}, "SETUP_CREDENTIALS: your function is not among what is deployed"),
        ({"RACE_JUDGES": "a=forge:judge"}, "RACE_JUDGES: your function is not among what is deployed"),
        ({"TENSORLAKE_API_KEY": ""}, "TENSORLAKE_API_KEY"),
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        plan_from({**REAL, **wrong})


def test_what_may_surprise_is_noted() -> None:
    notes = list(plan_from({**REAL, plan.TIMEOUT: "60"}).notes())
    assert len(notes) == 2 and plan.TIMEOUT in notes[0] and "FUNCTIONS_TOKEN" in notes[1]
    assert list(plan_from({**REAL, "FUNCTIONS_TOKEN": "t"}).notes()) == []


def test_names_are_random_and_recognised() -> None:
    given = {names.new_server_name("hands") for _ in range(50)}
    assert len(given) == 50 and all(len(name) <= names.LONGEST_NAME for name in given)
    assert all(names.parse("hands", name) == names.ServerSandbox("hands") for name in given)
    assert names.parse("other", given.pop()) == names.ForeignName()
