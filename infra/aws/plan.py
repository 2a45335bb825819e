"""What a deployment will do, worked out from the variables before anything is called.

Settings of yours that are no secret go into the template's parameter MoreSettings as they are. Secrets go into Secrets
Manager afterwards, never into the template or its parameters.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from image import locks
from infra import operator_code, telemetry
from infra.aws.grants import grants
from infra.aws.package import RUNTIMES, Architecture, own_python
from shared import otel
from shared.errors import SettingsError
from shared.secret import SCHEMES
from shared.session_setup import inlined
from shared.setting_kinds import Choice, Text
from shared.settings import Settings
from shared.settings_table import handed_over


class AwsDeployment:
    """AWS Lambda (docs/deploy/aws.md)"""

    AWS_REGION = Text("", "Where. Required. Without it AWS_DEFAULT_REGION counts.")
    AWS_STACK = Text("serverless-hands", "One stack serves one environment.")
    AWS_BUCKET = Text("", "For the zip. Default: serverless-hands-ACCOUNT-REGION.")
    AWS_PYTHON = Text("", "The functions' Python. Default: this machine's; byte code is made only for that.")
    AWS_ARCHITECTURE: Choice[Architecture] = Choice(("x86_64", "arm64"), "The functions' processor.")
    AWS_SCHEDULE = Text("rate(1 minute)", "Of poll_tick.")
    AWS_LOG_DAYS = Text("30", "How long logs are kept.")
    AWS_ALARM_TOPIC = Text("", "ARN of an SNS topic that is told of alarms. Default: alarms tell nobody.")
    AWS_WEBHOOK_CONCURRENCY = Text("10", "Reserved for on_run_started; 0 reserves nothing.")
    AWS_TICK_CONCURRENCY = Text("5", "Reserved for poll_tick; 0 reserves nothing.")
    AWS_FORK_CONCURRENCY = Text("3", "Reserved for fork_best_of_n; 0 reserves nothing.")


TEMPLATE: Final = Path(__file__).with_name("template.yaml")
_AROUND: Final = 15.0  # seconds of an invocation that are before a claim, and for its answer

# Variable -> the template's resource, output and (with "Secret" behind it) parameter.
SECRETS: Final[Mapping[str, str]] = {
    "ANTHROPIC_ENVIRONMENT_KEY": "EnvironmentKey",
    "TENSORLAKE_API_KEY": "TensorlakeKey",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": "SigningKey",
    "FUNCTIONS_TOKEN": "FunctionsToken",
    "CAPABILITY_KEY": "CapabilityKey",
    "OUTPUTS_SIGNATURE": "OutputsSignature",
    "RACE_WEBHOOK_SIGNING_KEY": "RaceWebhookKey",
    "OTEL_EXPORTER_OTLP_HEADERS": "OtlpHeaders",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "OtlpTracesHeaders",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "OtlpMetricsHeaders",
}
# Of these the stack has none unless one is set.
_OPTIONAL: Final = ("OUTPUTS_SIGNATURE", "RACE_WEBHOOK_SIGNING_KEY", *otel.SECRETS)
# The template's own business, or this command's: DRY_RUN=1 is about the deployment here.
_NOT_PASSED_ON: Final = frozenset({"ANTHROPIC_ENVIRONMENT_ID", "LOG_LEVEL", "LOG_FORMAT", "DRY_RUN"})
_STORED: Final = "aws-sm:"
_LATER: Final = "set-by-the-stack"
_DRAWN: Final = "x" * 48  # as long as the token that the stack draws


@dataclass(frozen=True, slots=True)
class AwsPlan:
    """`parameters` are the template's, without the code's; `secrets` the values to store, by variable; `extras`: of
    pyproject.toml, what the functions need beside the run-time lock; `own`: the operator's code."""

    region: str
    stack: str
    bucket: str | None
    python: str
    architecture: Architecture
    parameters: Mapping[str, str]
    secrets: Mapping[str, str] = field(repr=False)
    extras: tuple[str, ...] = ()
    own: operator_code.CarriedCode = field(default_factory=operator_code.CarriedCode)

    def lines(self) -> list[str]:
        """For people. No value of a secret is in it."""
        stored = ", ".join(self.secrets) or "none"
        referred = [f"{name}Secret" for name in SECRETS.values() if f"{name}Secret" in self.parameters]
        return [
            f"region        {self.region}",
            f"stack         {self.stack}",
            f"bucket        {self.bucket or 'serverless-hands-<account>-' + self.region} (made if it is not there)",
            f"code          Python {self.python} on {self.architecture}, "
            + ("with byte code" if self.python == own_python() else f"no byte code: needs Python {self.python} here")
            + "".join(f", with the extra {extra}" for extra in self.extras),
            *(f"parameter     {name}={value}" for name, value in sorted(self.parameters.items())),
            f"secrets       stored in Secrets Manager: {stored}",
            f"              already there: {', '.join(referred) or 'none'}",
        ]


def where(environ: Mapping[str, str]) -> tuple[str, str]:
    """Region and name of the stack: all that it takes to remove it. Raises SettingsError, which names the variable."""
    region = AwsDeployment.AWS_REGION.text(environ) or environ.get("AWS_DEFAULT_REGION", "").strip()
    if not re.fullmatch(r"[a-z]{2}(-[a-z]+)+-\d", region):
        raise SettingsError("AWS_REGION must be the name of a region, such as eu-west-1")
    stack = AwsDeployment.AWS_STACK.read(environ)
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9-]{0,40}", stack):
        raise SettingsError("AWS_STACK must be at most 41 letters, digits and hyphens, a letter first")
    return region, stack


def make(environ: Mapping[str, str]) -> AwsPlan:
    """Raises SettingsError, which names the variable."""
    if environ.get("ENVIRONMENTS_FILE", "").strip():
        raise SettingsError("ENVIRONMENTS_FILE: deploy one stack for each environment instead (AWS_STACK names them)")
    environ = {**environ, **inlined(environ)}
    settings = Settings.from_environ(_as_there(environ))  # what is wrong is said here, not by a function in the cloud
    own = operator_code.carried(environ, settings, "Lambda")
    _check_time(settings)
    more = _passed_on(environ) | telemetry.variables(environ)
    region, stack = where(environ)
    parameters = {"EnvironmentId": environ["ANTHROPIC_ENVIRONMENT_ID"].strip()}
    secrets = {}
    for variable, name in SECRETS.items():
        value = environ.get(variable, "").strip()
        scheme, separator, place = value.partition(":")
        if value.startswith(_STORED):
            parameters[f"{name}Secret"] = place
        elif separator and scheme in SCHEMES:
            raise SettingsError(f"{variable}: a Lambda function cannot read {scheme}: references; use {_STORED}ARN")
        elif value:
            secrets[variable] = value
    for variable in _OPTIONAL:
        if variable in secrets:
            parameters[f"{SECRETS[variable]}Secret"] = ""  # a new one; without this there is none
    parameters |= grants(environ, settings, region)
    if more:
        parameters["MoreSettings"] = _bounded(json.dumps(more, sort_keys=True, separators=(",", ":")))
    for variable, name in _OPTIONS.items():
        if value := environ.get(variable, "").strip():
            parameters[name] = value
    extras = [locks.TELEMETRY] if telemetry.exports(environ) else []
    if "OutputsObjects" in parameters:
        extras.append(locks.S3)
    python, architecture = _runtime(environ)
    parameters |= {"Runtime": f"python{python}", "Architecture": architecture}
    bucket = AwsDeployment.AWS_BUCKET.text(environ) or None
    return AwsPlan(region, stack, bucket, python, architecture, parameters, secrets, tuple(extras), own)


def _check_time(settings: Settings) -> None:
    """Raises SettingsError where the template gives poll_tick less time than a sandbox and its worker may take: each
    item that takes as long would be claimed again and again, and never served."""
    tick = TEMPLATE.read_text().partition("\n  TickFunction:\n")[2]
    timeout = re.match(r"(?:    .*\n)*?      Timeout: (\d+)", tick)
    if timeout is None:
        raise SettingsError(f"{TEMPLATE}: TickFunction has no Timeout")
    needed = settings.times.bind + settings.times.handover + _AROUND
    if needed > int(timeout[1]):
        raise SettingsError(
            f"BIND_SECONDS and HANDOVER_SECONDS: poll_tick needs {needed:g} s for an item with these settings, and has "
            f"{timeout[1]} s: lower them, or raise TickFunction's Timeout in {TEMPLATE.name} (900 s at most)"
        )


_OPTIONS: Final = {
    "AWS_SCHEDULE": "ScheduleExpression",
    "AWS_LOG_DAYS": "LogRetentionDays",
    "AWS_ALARM_TOPIC": "AlarmTopicArn",
    "AWS_WEBHOOK_CONCURRENCY": "WebhookConcurrency",
    "AWS_TICK_CONCURRENCY": "TickConcurrency",
    "AWS_FORK_CONCURRENCY": "ForkConcurrency",
    "LOG_LEVEL": "LogLevel",
}


def _bounded(text: str) -> str:
    """A parameter of a stack has 4,096 bytes, as has the whole environment of a function."""
    if len(text.encode()) > _LONGEST_SETTINGS:
        raise SettingsError(
            f"the settings take {len(text.encode())} bytes, and Lambda leaves {_LONGEST_SETTINGS} for them: put the "
            "longest set-up script into the image or the repository, and call it"
        )
    return text


_LONGEST_SETTINGS: Final = 3_500  # the stack's own variables have the rest


def _passed_on(environ: Mapping[str, str]) -> dict[str, str]:
    """Every setting that is set and that the functions would read, but for what has its own way there."""
    return {name: text for name, text in handed_over(environ, "operator").items() if name not in _NOT_PASSED_ON}


def _as_there(environ: Mapping[str, str]) -> dict[str, str]:
    """With stand-ins for what the stack sets: the functions' address is known only then, and a token may be drawn."""
    there = {
        name: value for name, value in environ.items() if name not in ("DRAIN_MODE", "ENQUEUE_TO", "RACES_HANDED_TO")
    }
    there["FUNCTIONS_PUBLIC_URL"] = f"https://{_LATER}.invalid"
    if not environ.get("FUNCTIONS_TOKEN", "").strip():
        there["FUNCTIONS_TOKEN"] = _DRAWN
    return there


def _runtime(environ: Mapping[str, str]) -> tuple[str, Architecture]:
    python = AwsDeployment.AWS_PYTHON.text(environ) or (own_python() if own_python() in RUNTIMES else "3.13")
    if python not in RUNTIMES:
        raise SettingsError(f"AWS_PYTHON must be one of {', '.join(RUNTIMES)}")
    match environ.get("AWS_ARCHITECTURE", "").strip() or "x86_64":
        case "x86_64":
            return python, "x86_64"
        case "arm64":
            return python, "arm64"
    raise SettingsError("AWS_ARCHITECTURE must be x86_64 or arm64")
