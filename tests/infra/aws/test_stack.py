"""The deployment against moto: what `make deploy-aws` makes, changes and removes, read back from each service."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import botocore.client
import botocore.loaders
import pytest
from botocore.exceptions import ClientError

from functions.aws_lambda import environ_of
from functions.invocations import Invocation, NotEnqueued, enqueue
from infra.aws import package, plan
from infra.aws.package import Built
from infra.aws.stack import Aws, NotDeployedToAws
from infra.cli.deploy import aws as command
from infra.operator_code import CarriedCode
from shared.errors import SettingsError
from shared.secret import Secret
from shared.settings import Settings
from tests.support.capabilities import accepted

REGION = "eu-west-1"
ENVIRON: Mapping[str, str] = {
    "AWS_REGION": REGION,
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    "ANTHROPIC_ENVIRONMENT_KEY": "not-a-real-environment-key",
    "TENSORLAKE_API_KEY": "not-a-real-tensorlake-key",
    "SANDBOX_CPUS": "4",
    "LOG_LEVEL": "DEBUG",
}


@pytest.fixture(scope="module", autouse=True)
def models() -> Iterator[None]:
    """What botocore knows of the services is read once: each session, and each command makes one, parses megabytes."""
    files = botocore.loaders.JSONFileLoader
    read = functools.cache(functools.partial(files.load_file, files()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "load_file", lambda _, path: read(path))
        yield


@pytest.fixture(scope="module", autouse=True)
def types() -> None:
    from tests.infra.aws import moto_types  # moto is long to import, and every process of the tests collects this file

    moto_types.install()


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """AWS in memory, with credentials that open nothing elsewhere."""
    from moto import mock_aws

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setattr(package, "build", _small_build)
    session = SimpleNamespace(client=lambda service, region_name: client(service))
    monkeypatch.setattr(command, "_aws", lambda region: Aws(session, region, print, pause=0.0))
    with mock_aws(config={"lambda": {"use_docker": False}}):
        yield


def _small_build(
    folder: Path, python: str, architecture: package.Architecture, *, extras: Collection[str], own: CarriedCode
) -> Built:
    return package.write_zip(folder / "bundle.zip", {"functions/aws_lambda.py": b"# code\n"}, byte_code=False)


def client(service: str) -> Any:
    from tests.infra.aws.moto_types import client_of

    return client_of(service, REGION)


def deploy(**extra: str) -> int:
    return command.deploy({**ENVIRON, **extra}, dry_run=False)


def outputs() -> dict[str, str]:
    (stack,) = client("cloudformation").describe_stacks(StackName="serverless-hands")["Stacks"]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def variables(function: str) -> dict[str, str]:
    configuration = client("lambda").get_function_configuration(FunctionName=f"serverless-hands-{function}")
    return dict(configuration["Environment"]["Variables"])


@pytest.mark.usefixtures("aws")
def test_a_deployment_makes_everything_and_its_functions_find_their_settings(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deploy() == 0
    said = capsys.readouterr().out
    made = outputs()
    assert made["WebhookUrl"] in said
    assert "not-a-real" not in said
    for function in ("on-run-started", "poll-tick", "fork-best-of-n"):
        settings = Settings.from_environ(environ_of(variables(function)))
        assert settings.environments["env_1"].cpus == 4.0
    assert variables("on-run-started")["ENQUEUE_TO"].endswith(":function:serverless-hands-poll-tick")
    tick = client("lambda").get_function(FunctionName=made["TickFunction"])
    assert tick["Configuration"]["Handler"] == "functions.aws_lambda.poll_tick"
    assert tick["Concurrency"]["ReservedConcurrentExecutions"] == 5
    (schedule,) = client("scheduler").list_schedules()["Schedules"]
    target = client("scheduler").get_schedule(Name=schedule["Name"])["Target"]
    assert target["Arn"] == tick["Configuration"]["FunctionArn"]
    assert json.loads(target["Input"]) == {"do": "tick"}
    retries = client("lambda").get_function_event_invoke_config(FunctionName=made["TickFunction"])
    assert retries["DestinationConfig"]["OnFailure"]["Destination"] == target["DeadLetterConfig"]["Arn"]
    groups = client("logs").describe_log_groups(logGroupNamePrefix="/aws/lambda/serverless-hands")["logGroups"]
    assert [group["retentionInDays"] for group in groups] == [30, 30, 30]


@pytest.mark.usefixtures("aws")
def test_the_webhook_function_wakes_the_tick_function_and_waits_for_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deploy() == 0
    called: list[tuple[str, Mapping[str, Any]]] = []
    really = botocore.client.BaseClient._make_api_call

    def remember(self: Any, operation: str, parameters: Mapping[str, Any]) -> Any:
        called.append((operation, parameters))
        return really(self, operation, parameters)

    monkeypatch.setattr(botocore.client.BaseClient, "_make_api_call", remember)
    asyncio.run(enqueue(variables("on-run-started")["ENQUEUE_TO"], Invocation("drain", at=1.5)))
    (parameters,) = [parameters for operation, parameters in called if operation == "Invoke"]
    assert parameters["FunctionName"].endswith(":function:serverless-hands-poll-tick")
    assert parameters["InvocationType"] == "Event"
    assert json.loads(parameters["Payload"]) == {"do": "drain", "at": 1.5}


def test_a_wake_up_that_aws_does_not_take_is_an_error_without_the_details(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "functions.invocations._invoke", lambda name, payload: (_ for _ in ()).throw(OSError("details"))
    )
    with pytest.raises(NotEnqueued) as caught:
        asyncio.run(enqueue("aws-lambda:nobody", Invocation("drain")))
    assert str(caught.value) == "OSError"


@pytest.mark.usefixtures("aws")
def test_the_secrets_values_are_in_secrets_manager_and_nowhere_in_the_stack(monkeypatch: pytest.MonkeyPatch) -> None:
    assert deploy(ANTHROPIC_WEBHOOK_SIGNING_KEY="whsec_bm90LXJlYWw=") == 0
    cloudformation = client("cloudformation")
    stack = cloudformation.describe_stacks(StackName="serverless-hands")["Stacks"][0]
    told = json.dumps([stack["Parameters"], outputs(), variables("poll-tick"), variables("on-run-started")])
    assert "not-a-real" not in told
    assert "whsec_" not in told
    settings = Settings.from_environ(variables("poll-tick"))
    assert settings.environments["env_1"].key.reveal() == "not-a-real-environment-key"
    assert settings.tensorlake_key.reveal() == "not-a-real-tensorlake-key"
    assert settings.capability_key is not None
    assert len(settings.capability_key.reveal()) == 48
    (key,) = Settings.from_environ(variables("on-run-started")).signing_keys
    assert key.reveal() == "whsec_bm90LXJlYWw="


def readers(secret: str) -> set[str]:
    """The roles (by the last part of their resource's name) that may read this secret by a policy of their own."""
    iam = client("iam")
    found = set()
    for role in iam.list_roles()["Roles"]:
        for name in iam.list_role_policies(RoleName=role["RoleName"])["PolicyNames"]:
            policy = iam.get_role_policy(RoleName=role["RoleName"], PolicyName=name)["PolicyDocument"]
            if secret in json.dumps(policy):
                found |= {each for each in ("WebhookRole", "TickRole", "ForkRole") if each in role["RoleName"]}
    return found


@pytest.mark.usefixtures("aws")
def test_the_fork_function_alone_signs_the_calls_at_a_races_end() -> None:
    key = "whsec_bm90LXJlYWwtYnV0LWxvbmctZW5vdWdoLWtleQ=="
    assert deploy(RACE_WEBHOOK_SIGNING_KEY=key, RACE_WEBHOOK_HOSTS="receiver.example:8443") == 0
    races = Settings.from_environ(environ_of(variables("fork-best-of-n"))).races
    assert races.webhook_hosts == ("receiver.example:8443",)
    assert races.webhook_key is not None and races.webhook_key.reveal() == key
    place = outputs()["RaceWebhookKey"]
    assert readers(place) == {"ForkRole"}
    for other in ("poll-tick", "on-run-started"):
        assert "RACE_WEBHOOK_SIGNING_KEY" not in variables(other)
    stack = client("cloudformation").describe_stacks(StackName="serverless-hands")["Stacks"][0]
    assert key not in json.dumps([stack["Parameters"], outputs(), variables("fork-best-of-n")])
    arn = client("secretsmanager").create_secret(Name="mine", SecretString=key)["ARN"]
    assert deploy(RACE_WEBHOOK_SIGNING_KEY=f"aws-sm:{arn}") == 0
    assert variables("fork-best-of-n")["RACE_WEBHOOK_SIGNING_KEY"] == f"aws-sm:{arn}"
    assert readers(arn) == {"ForkRole"}


@pytest.mark.usefixtures("aws")
def test_every_function_gets_the_telemetry_variables_and_its_headers_are_a_secret(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    headers = "authorization=Bearer not-a-real-collector-token"
    plain = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example", "OTEL_SERVICE_NAME": "mine"}
    built: list[tuple[str, ...]] = []

    def build(
        folder: Path, python: str, architecture: package.Architecture, *, extras: Collection[str], own: CarriedCode
    ) -> Built:
        built.append(tuple(extras))
        return _small_build(folder, python, architecture, extras=extras, own=own)

    monkeypatch.setattr(package, "build", build)
    assert deploy(**plain, OTEL_EXPORTER_OTLP_HEADERS=headers, OTEL_SOME_PASSWORD="not-a-real-password") == 0
    place = outputs()["OtlpHeaders"]
    for function in ("on-run-started", "poll-tick", "fork-best-of-n"):
        found = environ_of(variables(function))
        assert {name: text for name, text in found.items() if name.startswith("OTEL_")} == {
            **plain,
            "OTEL_EXPORTER_OTLP_HEADERS": f"aws-sm:{place}",
        }
    assert Secret("x", f"aws-sm:{place}").reveal() == headers
    assert readers(place) == {"WebhookRole", "TickRole", "ForkRole"}
    stack = client("cloudformation").describe_stacks(StackName="serverless-hands")["Stacks"][0]
    assert "not-a-real" not in json.dumps([stack["Parameters"], outputs()]) + capsys.readouterr().out
    assert deploy(OTEL_SERVICE_NAME="mine") == 0  # nothing is exported by that alone, and the secret goes
    assert "OTEL_EXPORTER_OTLP_HEADERS" not in variables("poll-tick")
    assert built == [("otel",), ()]


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "https://user:password@collector.example"),
        ("OTEL_EXPORTER_OTLP_HEADERS", "file:/etc/headers"),
        ("OTEL_TRACES_EXPORTER", "zipkin"),
    ],
)
def test_telemetry_that_could_not_work_there_is_refused_before_anything_is_made(variable: str, text: str) -> None:
    with pytest.raises(SettingsError, match=variable) as caught:
        plan.make({**ENVIRON, variable: text})
    assert "password" not in str(caught.value)


@pytest.mark.usefixtures("aws")
def test_a_second_deployment_changes_what_changed_and_uploads_nothing_twice(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert deploy() == 0
    before = outputs()
    capsys.readouterr()
    assert deploy(AWS_SCHEDULE="rate(5 minutes)") == 0
    said = capsys.readouterr().out
    assert "uploading" not in said
    assert "stored" not in said.replace("stored in Secrets Manager", "")
    assert outputs()["WebhookUrl"] == before["WebhookUrl"]
    (schedule,) = client("scheduler").list_schedules()["Schedules"]
    assert client("scheduler").get_schedule(Name=schedule["Name"])["ScheduleExpression"] == "rate(5 minutes)"
    assert deploy(TENSORLAKE_API_KEY="another-key-of-nobody", FUNCTIONS_TOKEN="an-operators-token-of-nobody-at-al") == 0
    said = capsys.readouterr().out
    assert "stored TENSORLAKE_API_KEY" in said
    assert "get-secret-value" not in said  # none was drawn


@pytest.mark.usefixtures("aws")
def test_a_secret_that_is_there_already_is_referred_to_and_not_made() -> None:
    arn = client("secretsmanager").create_secret(Name="mine", SecretString='{"key": "from-a-field"}')["ARN"]
    assert deploy(TENSORLAKE_API_KEY=f"aws-sm:{arn}#key") == 0
    assert Settings.from_environ(variables("poll-tick")).tensorlake_key.reveal() == "from-a-field"
    names = [secret["Description"] for secret in client("secretsmanager").list_secrets()["SecretList"][1:]]
    assert sorted(names) == [
        "ANTHROPIC_ENVIRONMENT_KEY",
        "ANTHROPIC_WEBHOOK_SIGNING_KEY",
        "CAPABILITY_KEY",
        "FUNCTIONS_TOKEN",
    ]
    roles = client("iam").list_roles()["Roles"]
    (role,) = [role["RoleName"] for role in roles if "TickRole" in role["RoleName"]]
    policy = client("iam").get_role_policy(RoleName=role, PolicyName="own-work")["PolicyDocument"]
    assert arn in json.dumps(policy)
    assert "#key" not in json.dumps(policy)


@pytest.mark.usefixtures("aws")
def test_removing_leaves_nothing_but_the_bucket() -> None:
    assert deploy() == 0
    assert command.undeploy(ENVIRON, dry_run=False) == 0
    assert client("lambda").list_functions()["Functions"] == []
    assert client("scheduler").list_schedules()["Schedules"] == []
    assert client("iam").list_roles()["Roles"] == []
    assert client("sqs").list_queues().get("QueueUrls", []) == []
    assert len(client("s3").list_buckets()["Buckets"]) == 1
    assert command.undeploy(ENVIRON, dry_run=False) == 0


@pytest.mark.usefixtures("aws")
def test_the_bucket_is_closed_and_code_is_named_by_its_digest() -> None:
    assert deploy(AWS_BUCKET="a-bucket-of-mine") == 0
    block = client("s3").get_public_access_block(Bucket="a-bucket-of-mine")["PublicAccessBlockConfiguration"]
    assert set(block.values()) == {True}
    (found,) = client("s3").list_objects_v2(Bucket="a-bucket-of-mine")["Contents"]
    body = client("s3").get_object(Bucket="a-bucket-of-mine", Key=found["Key"])["Body"].read()
    assert found["Key"] == f"code/{hashlib.sha256(body).hexdigest()}.zip"


class Stub:
    """A CloudFormation that shows one status after another, and the last one from then on; None: no such stack."""

    def __init__(self, *statuses: str | None, reason: str = "no reason") -> None:
        self._statuses = list(statuses)
        self._reason = reason
        self.exceptions = SimpleNamespace(ClientError=ClientError)
        self.deleted: list[str] = []

    def aws(self, **options: float) -> Aws:
        return Aws(SimpleNamespace(client=lambda service, region_name: self), REGION, print, pause=0.0, **options)

    def describe_stacks(self, StackName: str) -> Any:
        status = self._statuses.pop(0) if len(self._statuses) > 1 else self._statuses[0]
        if status is None:
            refused = {"Error": {"Code": "ValidationError", "Message": f"Stack with id {StackName} does not exist"}}
            raise ClientError(refused, "DescribeStacks")
        return {"Stacks": [{"StackStatus": status}]}

    def describe_stack_events(self, StackName: str) -> Any:
        failed = {"ResourceStatus": "CREATE_FAILED", "LogicalResourceId": "TickFunction"}
        return {"StackEvents": [failed | {"ResourceStatusReason": self._reason}]}

    def delete_stack(self, StackName: str) -> None:
        self.deleted.append(StackName)

    def create_change_set(self, **_: object) -> None:
        pass

    def describe_change_set(self, **_: object) -> Any:
        return {"Status": "CREATE_COMPLETE"}

    def execute_change_set(self, **_: object) -> None:
        pass


def test_a_stack_that_aws_gave_up_is_named_with_the_reason_and_the_way_out() -> None:
    reason = "Specified ReservedConcurrentExecutions for function decreases account's concurrency"
    with pytest.raises(
        NotDeployedToAws, match=r"(?s)ROLLBACK_COMPLETE.*undeploy-aws.*TickFunction.*AWS_TICK_CONCURRENCY=0"
    ):
        Stub("ROLLBACK_COMPLETE", reason=reason).aws().apply(plan.make(ENVIRON), "bucket", "key")


@pytest.mark.parametrize(
    "status, way", [("UPDATE_FAILED", "rollback-stack"), ("UPDATE_ROLLBACK_FAILED", "continue-update-rollback")]
)
@pytest.mark.parametrize("before", [(), ("UPDATE_COMPLETE", "UPDATE_IN_PROGRESS")])
def test_a_stack_that_serves_and_whose_update_failed_is_never_to_be_removed(
    status: str, way: str, before: Sequence[str]
) -> None:
    """Found so, and left so by this deployment."""
    with pytest.raises(NotDeployedToAws) as caught:
        Stub(*before, status).aws().apply(plan.make(ENVIRON), "bucket", "key")
    assert status in str(caught.value)
    assert f"aws cloudformation {way} --stack-name serverless-hands --region {REGION}" in str(caught.value)
    assert "undeploy" not in str(caught.value)


@pytest.mark.parametrize("before", ["UPDATE_COMPLETE", "CREATE_COMPLETE", "UPDATE_ROLLBACK_COMPLETE", "DELETE_FAILED"])
def test_a_look_that_still_shows_what_was_before_a_deletion_is_not_its_end(before: str) -> None:
    stub = Stub(before, before, before, "DELETE_IN_PROGRESS", None)
    stub.aws().remove("a-stack")
    assert stub.deleted == ["a-stack"]


def test_a_deletion_that_fails_or_never_begins_is_said() -> None:
    with pytest.raises(NotDeployedToAws, match="DELETE_FAILED"):
        Stub("DELETE_FAILED", "DELETE_IN_PROGRESS", "DELETE_FAILED").aws().remove("a-stack")
    with pytest.raises(NotDeployedToAws, match="UPDATE_COMPLETE"):
        Stub("UPDATE_COMPLETE").aws(settle=0.0).remove("a-stack")


@pytest.mark.usefixtures("aws")
def test_removing_needs_a_region_and_the_stacks_name_and_no_key(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("infra.cli.environ.CHECKOUT", tmp_path)
    (tmp_path / ".env").write_text("AWS_STACK=mine\n", encoding="utf-8")
    assert deploy(AWS_STACK="mine") == 0
    assert command.run("undeploy", {"AWS_REGION": REGION}, dry_run=True) == 0
    assert len(client("lambda").list_functions()["Functions"]) == 3
    assert command.run("undeploy", {"AWS_REGION": REGION}, dry_run=False) == 0
    assert client("lambda").list_functions()["Functions"] == []
    with pytest.raises(SettingsError, match="AWS_REGION"):
        command.run("undeploy", {}, dry_run=False)


@pytest.mark.usefixtures("aws")
def test_agents_may_race_without_an_address_or_a_token_set_by_hand(capsys: pytest.CaptureFixture[str]) -> None:
    assert deploy(AGENT_FORK="true") == 0
    said = capsys.readouterr().out
    settings = Settings.from_environ(environ_of(variables("poll-tick")))
    assert settings.fork_url == outputs()["ForkUrl"].rstrip("/") + "/fork_best_of_n"
    assert settings.functions_token is None  # whoever may invoke it was let in by IAM
    forking = Settings.from_environ(environ_of(variables("fork-best-of-n")))
    assert forking.agent_fork and forking.fork_url is None
    assert forking.functions_token is not None and forking.capability_key is not None
    drawn = forking.functions_token.reveal()
    assert len(drawn) == 48
    assert settings.capability_key is not None
    assert settings.capability_key.reveal() == forking.capability_key.reveal() != drawn
    assert drawn not in said
    assert f"aws secretsmanager get-secret-value --secret-id {outputs()['FunctionsToken']} " in said


@pytest.mark.usefixtures("aws")
def test_a_token_that_the_dispatching_function_issues_is_accepted_by_the_forking_one() -> None:
    assert deploy(AGENT_FORK="true") == 0
    dispatching, forking = (
        Settings.from_environ(environ_of(variables(name))) for name in ("poll-tick", "fork-best-of-n")
    )
    assert accepted(dispatching, forking)
    assert deploy(AGENT_FORK="false") == 0
    assert not accepted(dispatching, Settings.from_environ(environ_of(variables("fork-best-of-n"))))


def test_what_stands_in_for_the_stacks_own_settings_is_never_handed_over() -> None:
    planned = plan.make({**ENVIRON, "AGENT_FORK": "true", "DRAIN_MODE": "enqueue"})
    assert json.loads(planned.parameters["MoreSettings"]) == {"AGENT_FORK": "true", "SANDBOX_CPUS": "4"}
    assert "FUNCTIONS_TOKEN" not in planned.secrets
    assert "set-by-the-stack" not in repr(planned.parameters)


def test_a_dry_run_calls_nothing_and_shows_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_aws", lambda region: pytest.fail("AWS was called"))
    monkeypatch.setattr(package, "build", lambda *_: pytest.fail("something was built"))
    assert command.deploy(ENVIRON, dry_run=True) == 0
    said = capsys.readouterr().out
    assert "ANTHROPIC_ENVIRONMENT_KEY, TENSORLAKE_API_KEY" in said
    assert 'MoreSettings={"SANDBOX_CPUS":"4"}' in said
    assert "not-a-real" not in said


SLOW: Final = {
    **{"BIND_SECONDS": "90", "HANDOVER_SECONDS": "91", "RECLAIM_SECONDS": "200", "STRANDED_SECONDS": "300"},
    "DRAIN_DEADLINE_SECONDS": "200",
}


@pytest.mark.parametrize(
    "extra, named",
    [
        ({"AWS_REGION": ""}, "AWS_REGION"),
        ({"AWS_STACK": "1 stack"}, "AWS_STACK"),
        ({"AWS_PYTHON": "3.8"}, "AWS_PYTHON"),
        ({"AWS_ARCHITECTURE": "riscv"}, "AWS_ARCHITECTURE"),
        ({"TENSORLAKE_API_KEY": "file:/run/key"}, "TENSORLAKE_API_KEY"),
        ({"ENVIRONMENTS_FILE": "environments.toml"}, "ENVIRONMENTS_FILE"),
        ({"RECLAIM_SECONDS": "1"}, "RECLAIM_SECONDS"),
        (SLOW, "BIND_SECONDS.*needs 196 s.*has 180 s"),
    ],
)
def test_what_cannot_be_deployed_is_said_before_anything_is_called(
    extra: Mapping[str, str], named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "_loaded", lambda variables: variables)
    with pytest.raises(SettingsError, match=named):
        command.run("deploy", {**ENVIRON, **extra}, dry_run=True)


def test_missing_credentials_are_said_in_plain_words(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setattr(command, "_loaded", lambda variables: variables)
    assert command.run("deploy", ENVIRON, dry_run=False) == 1
    assert "No AWS credentials" in capsys.readouterr().err
