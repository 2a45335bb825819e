"""What a deployment grants for set-up, tools and outputs: what the settings name, to poll_tick alone, and no more."""

from __future__ import annotations

import ast
import json
from typing import Any

import pytest

from functions.aws_lambda import environ_of
from infra.aws import plan
from shared.errors import SettingsError
from shared.settings import Settings
from tests.infra.aws.test_stack import ENVIRON, aws, client, deploy, models, outputs, types, variables

__all__ = ["aws", "models", "types"]

OWN = {"own-work", "tick"}  # each function's own, and the schedule's right to call
KEY = "arn:aws:secretsmanager:eu-west-1:1:secret:key-AbCdEf"
ASKED = {
    "TOOL_SECRETS": f"DB=aws-sm:prod/db#password KEY=aws-sm:{KEY} P=aws-ssm:/p/q",
    "SETUP_STORES": "s3://inputs/data/",
    "SETUP_FILES": "s3://inputs/data/a.csv",
    "OUTPUTS_TO": "s3://results/agents",
}


def granted() -> dict[tuple[str, str], Any]:
    """Statements by role and policy."""
    iam = client("iam")
    found: dict[tuple[str, str], Any] = {}
    for role in (each["RoleName"] for each in iam.list_roles()["Roles"]):
        for name in iam.list_role_policies(RoleName=role)["PolicyNames"]:
            document = iam.get_role_policy(RoleName=role, PolicyName=name)["PolicyDocument"]
            # moto gives a template's own policies as Python's text of them
            found[role, name] = (ast.literal_eval(document) if isinstance(document, str) else document)["Statement"]
    return found


@pytest.mark.usefixtures("aws")
def test_what_the_settings_name_is_granted_to_the_tick_and_nothing_else() -> None:
    assert deploy(**ASKED) == 0
    mine = {name: (role, each) for (role, name), each in granted().items() if name not in OWN}
    assert mine.keys() == {"tool-secrets", "tool-parameters", "setup-objects", "outputs"}
    (role,) = {role for role, _ in mine.values()}
    assert "TickRole" in role
    (secrets,) = mine["tool-secrets"][1]
    assert secrets["Resource"] == [
        "arn:aws:secretsmanager:eu-west-1:*:secret:prod/db-??????",
        KEY,
    ]
    (parameters,) = mine["tool-parameters"][1]
    assert parameters["Resource"] == ["arn:aws:ssm:eu-west-1:*:parameter/p/q"]
    (reads,) = mine["setup-objects"][1]
    assert (reads["Action"], reads["Resource"]) == ("s3:GetObject", ["arn:aws:s3:::inputs/data/*"])
    writes, lists = mine["outputs"][1]
    assert writes["Resource"] == "arn:aws:s3:::results/agents/*"
    assert set(writes["Action"]) == {"s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload"}
    assert lists["Resource"] == "arn:aws:s3:::results"
    assert lists["Condition"] == {"StringLike": {"s3:prefix": "agents/*"}}
    settings = Settings.from_environ(environ_of(variables("poll-tick")))
    assert settings.outputs is not None and settings.environments["env_1"].tool_secrets.keys() == {"DB", "KEY", "P"}
    assert "OUTPUTS_SIGNATURE" not in variables("poll-tick")


@pytest.mark.usefixtures("aws")
def test_nothing_is_granted_where_nothing_is_asked_for() -> None:
    assert deploy() == 0
    assert {name for _, name in granted()} == OWN


@pytest.mark.usefixtures("aws")
def test_the_signature_of_outputs_is_stored_and_read_by_the_tick_alone() -> None:
    assert deploy(OUTPUTS_TO="https://account.blob.example/box", OUTPUTS_SIGNATURE="sig=not-a-real-one") == 0
    place = outputs()["OutputsSignature"]
    assert client("secretsmanager").get_secret_value(SecretId=place)["SecretString"] == "sig=not-a-real-one"
    assert variables("poll-tick")["OUTPUTS_SIGNATURE"] == f"aws-sm:{place}"
    assert not {"OUTPUTS_SIGNATURE"} & {*variables("on-run-started"), *variables("fork-best-of-n")}
    assert "not-a-real-one" not in json.dumps(variables("poll-tick"))


@pytest.mark.parametrize(
    ("extra", "why"),
    [
        ({"TOOL_SECRETS": "DB=env:DB"}, "TOOL_SECRETS: DB: a Lambda function cannot read env:"),
        ({"SETUP_SCRIPT": "x" * 4000}, "the settings take 4[0-9]{3} bytes, and Lambda leaves 3500"),
        ({"OUTPUTS_TO": "file:///outputs"}, "OUTPUTS_TO: a Lambda function cannot write to file:"),
        ({"SETUP_CREDENTIALS": "forge:credential"}, "SETUP_CREDENTIALS: your function is not among what is deployed"),
        ({"RACE_JUDGES": "a=forge:judge"}, "RACE_JUDGES: your function is not among what is deployed"),
        ({"SETUP_STORES": "gs://inputs/data/"}, "SETUP_STORES: a Lambda function has no credentials for gs://"),
        ({"OUTPUTS_TO": "https://h/x", "OUTPUTS_SIGNATURE": "file:/sig"}, "OUTPUTS_SIGNATURE: a Lambda function"),
    ],
)
def test_what_a_function_cannot_reach_is_said_before_anything_is_made(extra: dict[str, str], why: str) -> None:
    with pytest.raises(SettingsError, match=why):
        plan.make({**ENVIRON, **extra})
