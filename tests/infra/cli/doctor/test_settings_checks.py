"""Settings and keys: what is missing, malformed, swapped or misleading, without asking anybody."""

from __future__ import annotations

import pytest

from infra.cli.doctor import settings_checks
from infra.cli.doctor.findings import Finding, Severity
from tests.infra.cli.doctor.bench import bad, seen
from tests.support.signing import KEY

API = "sk-ant-api03-of-no-real-account"
GOOD = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_01Abc",
    "ANTHROPIC_ENVIRONMENT_KEY": "sk-ant-oat01-of-no-real-account",
    "TENSORLAKE_API_KEY": "tl_apiKey_of_no_real_account",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": KEY,
    "FUNCTIONS_TOKEN": "an operator's token of nobody at all".replace(" ", "-"),
    "ANTHROPIC_API_KEY": API,
}


def look(**changes: str | None) -> list[Finding]:
    environ = {name: value for name, value in {**GOOD, **changes}.items() if value is not None}
    findings: list[Finding] = []
    secrets = settings_checks.secrets_of(environ, findings.append)
    settings_checks.check_settings(environ, findings.append)
    settings_checks.check_kinds(secrets, environ, findings.append)
    settings_checks.check_redirections(environ, findings.append)
    settings_checks.check_doors(secrets, findings.append)
    return findings


def test_a_complete_configuration_is_well() -> None:
    findings = look()
    assert {each.severity for each in findings} == {Severity.OK}
    assert {each.code for each in findings} == {f"HANDS{number}" for number in range(101, 107)}


def names(**files: str) -> list[Finding]:
    findings: list[Finding] = []
    settings_checks.check_names(files, findings.append)
    return findings


@pytest.mark.parametrize(
    ("slip", "meant"),
    [
        ("SANDBOX_CPU", "SANDBOX_CPUS"),
        ("FUNCTION_TOKEN", "FUNCTIONS_TOKEN"),
        ("ANTHROPIC_KEY", "ANTHROPIC_API_KEY"),
        ("sandbox_cpus", "SANDBOX_CPUS"),
        ("SANDBOX_MEMORY", "SANDBOX_MEMORY_MB"),
    ],
)
def test_a_name_in_a_file_that_is_almost_a_settings_is_a_warning_with_the_right_one(slip: str, meant: str) -> None:
    findings = names(**{slip: "s3cret", "FUNCTIONS_URL": "http://x"})
    assert bad(findings) == {"HANDS107": Severity.WARNING}
    assert slip in seen(findings, "HANDS107") and f"is {meant} meant" in seen(findings, "HANDS107")
    assert "s3cret" not in seen(findings, "HANDS107")


def test_names_of_others_in_a_file_are_told_and_are_no_warning() -> None:
    findings = names(EDITOR="vi", HTTPS_PROXY="http://p", TENSORLAKE_API_KEY="env:VAULT_ENTRY", VAULT_ENTRY="k")
    assert [(each.severity, each.seen) for each in findings] == [
        (Severity.INFO, "no setting has the name EDITOR, and none reads it")
    ]
    assert [each.severity for each in names(**GOOD)] == [Severity.OK] and names() == []


def test_everything_that_is_missing_or_malformed_is_named_at_once() -> None:
    findings = look(TENSORLAKE_API_KEY=None, SANDBOX_CPUS="many", DRAIN_MODE="sometimes", ANTHROPIC_ENVIRONMENT_ID=None)
    assert bad(findings) == {"HANDS101": Severity.ERROR}
    for name in ("TENSORLAKE_API_KEY", "SANDBOX_CPUS", "DRAIN_MODE", "ANTHROPIC_ENVIRONMENT_ID"):
        assert name in seen(findings, "HANDS101")


def test_an_environment_id_that_is_none_is_an_error() -> None:
    findings = look(ANTHROPIC_ENVIRONMENT_ID="my environment")
    assert bad(findings) == {"HANDS101": Severity.ERROR}
    assert "my environment" not in seen(findings, "HANDS101")


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("ANTHROPIC_ENVIRONMENT_KEY", API, "holds a Claude API key, not an environment key"),
        ("ANTHROPIC_API_KEY", "sk-ant-oat01-another", "holds an environment key, not a Claude API key"),
        ("TENSORLAKE_API_KEY", "whsec_aGVsbG8=", "holds a webhook signing key, not a Tensorlake key"),
        ("ANTHROPIC_WEBHOOK_SIGNING_KEY", "tl_apiKey_another", "holds a Tensorlake key, not a webhook signing key"),
        ("FUNCTIONS_TOKEN", "sk-ant-api03-another-key-of-nobody", "where a random text of your own belongs"),
        ("SANDBOX_IMAGE_NAME", "sk-ant-api03-another-key", "SANDBOX_IMAGE_NAME holds a key"),
        ("ANTHROPIC_API_KEY", "'sk-ant-api03-quoted'", "quotes or white space"),
    ],
)
def test_a_key_in_the_wrong_variable_is_named_by_its_kind(variable: str, value: str, words: str) -> None:
    findings = look(**{variable: value})
    assert bad(findings) == {"HANDS102": Severity.ERROR}
    assert words in seen(findings, "HANDS102") and variable in seen(findings, "HANDS102")
    assert value not in repr(findings)


def test_one_value_in_two_variables_and_one_of_no_known_kind_are_noticed() -> None:
    assert "hold the same value" in seen(look(FUNCTIONS_TOKEN=GOOD["TENSORLAKE_API_KEY"]), "HANDS102")
    assert bad(look(ANTHROPIC_ENVIRONMENT_KEY="something-else")) == {"HANDS102": Severity.WARNING}
    assert bad(look(TENSORLAKE_API_KEY="something-else")) == {}


def test_one_of_two_signing_keys_may_not_be_another_kind() -> None:
    assert bad(look(ANTHROPIC_WEBHOOK_SIGNING_KEY=f"{KEY},{API}x")) == {"HANDS102": Severity.ERROR}
    assert bad(look(ANTHROPIC_WEBHOOK_SIGNING_KEY=f"{KEY}, {KEY}")) == {}


@pytest.mark.parametrize(
    "url", ["http://emulator:8900", "http://[::1]:8900", "localhost:8900", "https://127.0.0.2", "https://tensorlake.ai"]
)
def test_the_host_trap_has_a_code_of_its_own(url: str) -> None:
    assert bad(look(TENSORLAKE_API_URL=url)) == {"HANDS103": Severity.ERROR}


def test_variables_and_proxies_that_lead_elsewhere_are_found() -> None:
    local = {"TENSORLAKE_API_URL": "http://127.0.0.1:8900"}
    assert bad(look(TENSORLAKE_SANDBOX_API_URL="https://elsewhere.example")) == {"HANDS104": Severity.WARNING}
    assert bad(look(HTTP_PROXY="http://proxy.example:3128", **local)) == {"HANDS104": Severity.ERROR}
    assert bad(look(HTTP_PROXY="http://proxy.example:3128", NO_PROXY="localhost,127.0.0.1", **local)) == {}
    assert bad(look(HTTP_PROXY="http://proxy.example:3128")) == {}


def test_closed_doors_are_worth_knowing_and_a_short_token_is_a_warning() -> None:
    findings = look(ANTHROPIC_WEBHOOK_SIGNING_KEY=None, FUNCTIONS_TOKEN=None)
    assert [each.code for each in findings if each.severity is Severity.INFO] == ["HANDS105", "HANDS106"]
    assert bad(look(FUNCTIONS_TOKEN="short")) == {"HANDS106": Severity.WARNING}


def test_a_secret_that_cannot_be_read_from_its_place_is_an_error_that_names_the_variable() -> None:
    findings = look(TENSORLAKE_API_KEY="file:/nowhere/at/all")
    assert bad(findings) == {"HANDS101": Severity.ERROR}
    assert seen(findings, "HANDS101").startswith("TENSORLAKE_API_KEY")
