"""The template: what AWS's own schemas say about it, and what they cannot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from functions import aws_lambda
from functions.invocations import Invocation
from functions.tick_remarks import remarks
from infra.aws.plan import TEMPLATE
from shared.races.records import DEAD_MAN_SECONDS
from shared.settings import Settings

TEXT = TEMPLATE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def template() -> Mapping[str, Any]:
    """The template with its short forms written out."""
    from cfnlint import decode  # long to import, and every process of the tests collects this file

    document, problems = decode.decode_str(TEXT)
    assert not problems
    return json.loads(json.dumps(document))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def resources(template: Mapping[str, Any]) -> Mapping[str, Any]:
    return template["Resources"]  # type: ignore[no-any-return]


def of_type(resources: Mapping[str, Any], kind: str) -> dict[str, Any]:
    found = {name: resource["Properties"] for name, resource in resources.items() if resource["Type"] == kind}
    assert found
    return found


def statements(resources: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, role in of_type(resources, "AWS::IAM::Role").items():
        for policy in role["Policies"]:
            for statement in policy["PolicyDocument"]["Statement"]:
                yield name, statement


def lint(text: str, *regions: str) -> Sequence[object]:
    from cfnlint import api
    from cfnlint.config import ManualArgs

    return api.lint(text, config=ManualArgs(regions=list(regions)))  # type: ignore[no-any-return]


def test_cfn_lint_finds_nothing() -> None:
    assert lint(TEXT, "us-east-1", "eu-west-1") == []


def test_a_mistake_would_be_found() -> None:
    wrong = TEXT.replace("MemorySize: 512", "MemorySize: 64")
    assert lint(wrong, "us-east-1") != []


def test_each_url_has_both_permissions_that_aws_asks_for(resources: Mapping[str, Any]) -> None:
    permissions = of_type(resources, "AWS::Lambda::Permission").values()
    for url in of_type(resources, "AWS::Lambda::Url").values():
        function = url["TargetFunctionArn"]["Fn::GetAtt"][0]
        mine = [each for each in permissions if each["FunctionName"] == {"Ref": function}]
        by_url = {"Action": "lambda:InvokeFunctionUrl", "FunctionUrlAuthType": "NONE"}
        by_invoke = {"Action": "lambda:InvokeFunction", "InvokedViaFunctionUrl": True}
        common = {"FunctionName": {"Ref": function}, "Principal": "*"}
        assert sorted(mine, key=str) == sorted([by_url | common, by_invoke | common], key=str)


def test_only_the_webhook_and_the_fork_can_be_reached_from_outside(resources: Mapping[str, Any]) -> None:
    open_to_all = {each["FunctionName"]["Ref"] for each in of_type(resources, "AWS::Lambda::Permission").values()}
    assert open_to_all == {"WebhookFunction", "ForkFunction"}


def test_no_role_may_do_anything_to_everything(resources: Mapping[str, Any]) -> None:
    for name, statement in statements(resources):
        assert "*" not in json.dumps(statement["Action"]), name
        assert "*" not in json.dumps(statement["Resource"]), name


def test_the_webhooks_role_reads_the_signing_key_alone_and_may_wake_poll_tick_alone(
    resources: Mapping[str, Any],
) -> None:
    mine = {str(each["Action"]): each["Resource"] for name, each in statements(resources) if name == "WebhookRole"}
    assert "SigningKey" in json.dumps(mine["secretsmanager:GetSecretValue"])
    for other in ("EnvironmentKey", "TensorlakeKey", "FunctionsToken"):
        assert other not in json.dumps(mine)
    assert mine["lambda:InvokeFunction"] == {"Fn::GetAtt": ["TickFunction", "Arn"]}


def test_the_forks_role_may_invoke_its_own_function_alone_and_nobody_repeats_that(resources: Mapping[str, Any]) -> None:
    (invoking,) = [each for name, each in statements(resources) if name == "ForkRole" and "Invoke" in str(each)]
    function = resources["ForkFunction"]["Properties"]
    name = function["FunctionName"]["Fn::Sub"]
    own = f"arn:${{AWS::Partition}}:lambda:${{AWS::Region}}:${{AWS::AccountId}}:function:{name}"
    assert (invoking["Action"], invoking["Resource"]) == ("lambda:InvokeFunction", {"Fn::Sub": own})
    assert function["Environment"]["Variables"]["RACES_HANDED_TO"] == {"Fn::Sub": f"aws-lambda:{name}"}
    retries = resources["ForkRetries"]["Properties"]
    assert (retries["FunctionName"], retries["MaximumRetryAttempts"]) == ({"Ref": "ForkFunction"}, 0)
    assert retries["MaximumEventAgeInSeconds"] < DEAD_MAN_SECONDS, "a race that is lost does not begin later"
    assert "DestinationConfig" not in retries


def test_no_value_of_a_secret_is_in_it_and_every_function_reads_its_own_by_reference(
    resources: Mapping[str, Any],
) -> None:
    for secret in of_type(resources, "AWS::SecretsManager::Secret").values():
        assert "SecretString" not in secret
    for function in of_type(resources, "AWS::Lambda::Function").values():
        for name, value in function["Environment"]["Variables"].items():
            if re.search("KEY|TOKEN|HEADERS", name):
                given = value["Fn::If"][1] if "Fn::If" in value else value  # one that is there only where it is set
                text = given if isinstance(given, str) else given["Fn::Sub"][0]
                assert text.startswith(("aws-sm:", "env:NOT_HERE")), name


def test_each_handler_exists_and_each_function_logs_to_a_group_that_forgets(resources: Mapping[str, Any]) -> None:
    groups = of_type(resources, "AWS::Logs::LogGroup")
    functions = of_type(resources, "AWS::Lambda::Function")
    assert len(functions) == 3
    for function in functions.values():
        module, _, name = function["Handler"].rpartition(".")
        assert module == "functions.aws_lambda"
        assert callable(getattr(aws_lambda, name))
        assert groups[function["LoggingConfig"]["LogGroup"]["Ref"]]["RetentionInDays"] == {"Ref": "LogRetentionDays"}
        assert function["Tags"]


def test_the_settings_of_each_function_are_complete(resources: Mapping[str, Any]) -> None:
    for name, function in of_type(resources, "AWS::Lambda::Function").items():
        variables = function["Environment"]["Variables"]
        plain = {
            key: value if isinstance(value, str) else f"https://{key}.example/of-nobody"
            for key, value in variables.items()
        }
        more = {
            "HANDS_SETTINGS": '{"AGENT_FORK": "true"}',
            **{name: "aws-lambda:x" for name in ("ENQUEUE_TO", "RACES_HANDED_TO") if name in plain},
        }
        settings = Settings.from_environ(aws_lambda.environ_of({**plain, **more}))
        assert (settings.drain_mode == "enqueue") == (name == "WebhookFunction")
        assert bool(settings.races.handed_to) == (name == "ForkFunction")
        assert (settings.fork_url is not None) == (name == "TickFunction")
        assert settings.agent_fork == (name != "WebhookFunction")


def test_each_function_reads_only_the_secrets_that_it_needs(resources: Mapping[str, Any]) -> None:
    wanted = {
        "WebhookRole": {"SigningKey"},
        "TickRole": {"EnvironmentKey", "TensorlakeKey", "CapabilityKey"},
        "ForkRole": {"EnvironmentKey", "TensorlakeKey", "CapabilityKey", "FunctionsToken"},
    }
    secrets = set(of_type(resources, "AWS::SecretsManager::Secret"))
    for role, statement in statements(resources):
        if statement["Action"] == "secretsmanager:GetSecretValue":
            text = json.dumps(statement["Resource"])
            assert {name for name in secrets if f'"{name}"' in text} == wanted.pop(role)
    assert not wanted


def test_a_person_is_told_of_what_was_given_up_of_alarm_lines_and_of_a_full_webhook(
    resources: Mapping[str, Any],
) -> None:
    alarms = of_type(resources, "AWS::CloudWatch::Alarm")
    watched = {each["MetricName"] for each in alarms.values()}
    assert watched == {"ApproximateNumberOfMessagesVisible", "AlarmLines", "Errors", "Throttles"}
    assert all("AlarmActions" in each for each in alarms.values())
    (lines,) = of_type(resources, "AWS::Logs::MetricFilter").values()
    assert lines["LogGroupName"] == {"Ref": "TickLogs"}
    pattern = re.fullmatch(r'\{ \$\.message = "(.*)\*" \}', lines["FilterPattern"])
    assert pattern is not None
    report = {"reconciled": [{"environment_id": "e", "actions": [], "alarms": ["x"], "needs_interrupt": []}]}
    (said,) = remarks(report)
    assert f"tick.remark {said}".startswith(pattern[1])  # as functions/tick_remarks.py logs it


def test_a_tick_and_a_drain_fit_into_the_functions_time(resources: Mapping[str, Any]) -> None:
    settings = Settings.from_environ(
        {"ANTHROPIC_ENVIRONMENT_ID": "e", "ANTHROPIC_ENVIRONMENT_KEY": "k", "TENSORLAKE_API_KEY": "t"}
    )
    timeout = resources["TickFunction"]["Properties"]["Timeout"]
    assert timeout > settings.drain.deadline + settings.reconcile.deadline + 10
    assert resources["ForkFunction"]["Properties"]["Timeout"] == 900


def test_the_schedule_sends_a_tick_and_keeps_what_it_could_not_deliver(resources: Mapping[str, Any]) -> None:
    schedule = resources["Schedule"]["Properties"]
    target = schedule["Target"]
    assert Invocation.read(json.loads(target["Input"])) == Invocation("tick")
    assert target["Arn"] == {"Fn::GetAtt": ["TickFunction", "Arn"]}
    assert target["DeadLetterConfig"]["Arn"] == {"Fn::GetAtt": ["DeadLetters", "Arn"]}
    assert target["RetryPolicy"]["MaximumRetryAttempts"] > 0
    retries = resources["TickRetries"]["Properties"]
    assert retries["DestinationConfig"]["OnFailure"]["Destination"] == {"Fn::GetAtt": ["DeadLetters", "Arn"]}


@pytest.mark.parametrize("good", ["rate(1 minute)", "rate(2 minutes)", "rate(15 minutes)"])
@pytest.mark.parametrize(
    "bad", ["rate(1 minutes)", "rate(2 minute)", "rate(0 minutes)", "rate(1 day)", "cron(* * * * *)"]
)
def test_the_rate_is_one_that_the_scheduler_takes(template: Mapping[str, Any], good: str, bad: str) -> None:
    parameter = template["Parameters"]["ScheduleExpression"]
    pattern = re.compile(parameter["AllowedPattern"])
    assert pattern.fullmatch(parameter["Default"])
    assert pattern.fullmatch(good)
    assert not pattern.fullmatch(bad)
