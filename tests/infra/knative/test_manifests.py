"""The manifests against schemas of the fields that they use, and the program with exactly their environment.

The schemas are this project's own and closed (a field that is not in them fails); no cluster has seen the manifests.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jsonschema
import pytest
import yaml

from shared.settings import Settings
from tests.support.capabilities import accepted
from tests.support.checkout import ROOT

FOLDER = ROOT / "infra" / "knative"
NAME = {"type": "string", "pattern": "^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$"}
LABELS = {"type": "object", "additionalProperties": {"type": "string", "maxLength": 63}}
NATURAL = {"type": "integer", "minimum": 0}


def closed(required: Mapping[str, Any], **optional: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": list(required),
        "properties": {**required, **optional},
        "additionalProperties": False,
    }


SECRET_REF = closed({"secretKeyRef": closed({"name": NAME, "key": {"type": "string", "pattern": "^[-._a-zA-Z0-9]+$"}})})
ENV = {
    "type": "array",
    "items": {
        "oneOf": [
            closed({"name": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"}, "value": {"type": "string"}}),
            closed({"name": {"type": "string", "pattern": "^[A-Z][A-Z0-9_]*$"}, "valueFrom": SECRET_REF}),
        ]
    },
}
LIMITS = closed({"limits": closed({"cpu": {"type": "string"}, "memory": {"type": "string", "pattern": "^[0-9]+Mi$"}})})
IMAGE = {"type": "string", "pattern": r"^[a-z0-9.-]+/[a-z0-9./-]+:[\w.-]+$"}
# What Knative lets through of a container's; all of it is asked for.
CONFINED = closed(
    {
        "runAsNonRoot": {"const": True},
        "runAsUser": {"const": 10001},  # as in the Dockerfile
        "allowPrivilegeEscalation": {"const": False},
        "readOnlyRootFilesystem": {"const": True},
        "capabilities": closed({"drop": {"const": ["ALL"]}}),
        "seccompProfile": closed({"type": {"const": "RuntimeDefault"}}),
    }
)
SERVICE = closed(
    {
        "apiVersion": {"const": "serving.knative.dev/v1"},
        "kind": {"const": "Service"},
        "metadata": closed({"name": NAME}, labels=LABELS),
        "spec": closed(
            {
                "template": closed(
                    {
                        "metadata": closed({}, labels=LABELS, annotations=LABELS),
                        "spec": closed(
                            {
                                "timeoutSeconds": {"type": "integer", "minimum": 1, "maximum": 600},
                                "containerConcurrency": NATURAL,
                                "automountServiceAccountToken": {"const": False},
                                "containers": {
                                    "type": "array",
                                    "minItems": 1,
                                    "maxItems": 1,
                                    "items": closed(
                                        {"image": IMAGE, "env": ENV, "securityContext": CONFINED},
                                        ports={
                                            "type": "array",
                                            "maxItems": 1,
                                            "items": closed(
                                                {"name": {"enum": ["http1", "h2c"]}, "containerPort": NATURAL}
                                            ),
                                        },
                                        resources=LIMITS,
                                    ),
                                },
                            },
                        ),
                    }
                )
            }
        ),
    }
)
POD = closed(
    {
        "restartPolicy": {"enum": ["Never", "OnFailure"]},
        "containers": {
            "type": "array",
            "minItems": 1,
            "items": closed(
                {"name": NAME, "image": IMAGE, "command": {"type": "array", "items": {"type": "string"}}, "env": ENV},
                securityContext=closed(
                    {
                        "allowPrivilegeEscalation": {"const": False},
                        "readOnlyRootFilesystem": {"const": True},
                        "capabilities": closed({"drop": {"const": ["ALL"]}}),
                    }
                ),
                resources=LIMITS,
            ),
        },
    },
    automountServiceAccountToken={"const": False},
    securityContext=closed(
        {
            "runAsNonRoot": {"const": True},
            "runAsUser": {"type": "integer", "minimum": 1},
            "seccompProfile": closed({"type": {"const": "RuntimeDefault"}}),
        }
    ),
)
CRON_JOB = closed(
    {
        "apiVersion": {"const": "batch/v1"},
        "kind": {"const": "CronJob"},
        "metadata": closed({"name": NAME}, labels=LABELS),
        "spec": closed(
            {
                "schedule": {"type": "string", "pattern": r"^(\S+ ){4}\S+$"},
                "jobTemplate": closed(
                    {
                        "spec": closed(
                            {"template": closed({"spec": POD})}, backoffLimit=NATURAL, activeDeadlineSeconds=NATURAL
                        )
                    }
                ),
            },
            concurrencyPolicy={"enum": ["Allow", "Forbid", "Replace"]},
            successfulJobsHistoryLimit=NATURAL,
            failedJobsHistoryLimit=NATURAL,
        ),
    }
)


def manifest(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def container(name: str) -> Any:
    spec = manifest(name)["spec"]
    pod = spec["template"] if name == "service.yaml" else spec["jobTemplate"]["spec"]["template"]
    return pod["spec"]["containers"][0]


@pytest.mark.parametrize(("name", "schema"), [("service.yaml", SERVICE), ("tick.yaml", CRON_JOB)])
def test_a_manifest_is_of_its_kind(name: str, schema: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(manifest(name), schema)


def test_the_schema_would_notice_a_misspelt_field() -> None:
    wrong = manifest("service.yaml")
    wrong["spec"]["template"]["spec"]["timeoutSecond"] = 1
    with pytest.raises(jsonschema.ValidationError, match="timeoutSecond"):
        jsonschema.validate(wrong, SERVICE)


def test_the_environment_is_enough_and_every_secret_is_a_reference() -> None:
    env = container("service.yaml")["env"]
    plain = {entry["name"]: entry["value"] for entry in env if "value" in entry}
    references = {entry["name"] for entry in env if "valueFrom" in entry}
    assert references == {
        "ANTHROPIC_ENVIRONMENT_KEY",
        "TENSORLAKE_API_KEY",
        "ANTHROPIC_WEBHOOK_SIGNING_KEY",
        "FUNCTIONS_TOKEN",
    }
    settings = Settings.from_environ(plain | dict.fromkeys(references, "x"))
    assert settings.drain_mode == "inline"
    longest = settings.drain.deadline + settings.reconcile.deadline
    assert manifest("service.yaml")["spec"]["template"]["spec"]["timeoutSeconds"] > longest


def test_a_token_that_the_service_issues_is_accepted_by_every_pod_of_it() -> None:
    env = container("service.yaml")["env"]
    plain = {entry["name"]: entry["value"] for entry in env if "value" in entry}
    secrets = {entry["name"]: f"{entry['name']}-of-nobody-in-particular" for entry in env if "valueFrom" in entry}
    forking = {"AGENT_FORK": "true", "FUNCTIONS_PUBLIC_URL": "https://hands.example.com"}
    one, other = (Settings.from_environ({**plain, **secrets, **forking}) for _ in range(2))
    assert accepted(one, other)
    rotated = {"FUNCTIONS_TOKEN": "another-token-of-nobody-in-particular"}
    assert not accepted(one, Settings.from_environ({**plain, **secrets, **forking, **rotated}))


def test_the_tick_calls_the_service_by_its_name_with_the_same_token_and_image() -> None:
    service, tick = manifest("service.yaml"), container("tick.yaml")
    env = {entry["name"]: entry for entry in tick["env"]}
    assert env["TICK_URL"]["value"].startswith(f"http://{service['metadata']['name']}.")
    assert env["FUNCTIONS_TOKEN"] in container("service.yaml")["env"]
    assert tick["image"] == container("service.yaml")["image"]
    compile(tick["command"][-1], "tick.yaml", "exec")
    assert re.search(r"timeout=(\d+)", tick["command"][-1])
