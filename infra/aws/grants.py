"""What poll_tick may read and write for sessions, as parameters of the template: no more than the settings name."""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.settings import Settings
from shared.settings_table import Workers


def grants(environ: Mapping[str, str], settings: Settings, region: str) -> Mapping[str, str]:
    """`settings` are those of `environ`. Raises SettingsError for what a Lambda function cannot reach."""
    return {**_tools(environ, region), **_stores(settings, region), **_outputs(settings, region)}


def _partition(region: str) -> str:
    return {"cn": "aws-cn", "us-gov": "aws-us-gov"}.get(region.rpartition("-")[0].rpartition("-")[0], "aws")


def _tools(environ: Mapping[str, str], region: str) -> dict[str, str]:
    """A secret that is named by its name has six characters more in its ARN
    (https://docs.aws.amazon.com/secretsmanager/latest/userguide/auth-and-access_iam-policies.html)."""
    found: dict[str, list[str]] = {"ToolSecrets": [], "ToolParameters": []}
    here = f"arn:{_partition(region)}"
    for entry in Workers.TOOL_SECRETS.text(environ).replace(",", " ").split():
        name, _, reference = entry.partition("=")
        scheme, _, place = reference.partition(":")
        place = place.partition("#")[0]
        match scheme:
            case "aws-sm":
                arn = place if place.startswith("arn:") else f"{here}:secretsmanager:{region}:*:secret:{place}-??????"
                found["ToolSecrets"].append(arn)
            case "aws-ssm":
                path = place if place.startswith("/") else f"/{place}"
                arn = place if place.startswith("arn:") else f"{here}:ssm:{region}:*:parameter{path}"
                found["ToolParameters"].append(arn)
            case _:
                raise SettingsError(
                    f"TOOL_SECRETS: {name}: a Lambda function cannot read {scheme}: references; use aws-sm: or aws-ssm:"
                )
    return {name: ",".join(dict.fromkeys(arns)) for name, arns in found.items() if arns}


def _stores(settings: Settings, region: str) -> dict[str, str]:
    arns = []
    for environment in settings.environments.values():
        for prefix in environment.setup_stores:
            parts = urlsplit(prefix)
            if parts.scheme != "s3":
                raise SettingsError("SETUP_STORES: a Lambda function has no credentials for gs://")
            arns.append(f"arn:{_partition(region)}:s3:::{parts.netloc}{parts.path}*")
    return {"SetupObjects": ",".join(dict.fromkeys(arns))} if arns else {}


def _outputs(settings: Settings, region: str) -> dict[str, str]:
    if settings.outputs is None:
        return {}
    parts = urlsplit(settings.outputs.to)
    match parts.scheme:
        case "s3":
            prefix = f"{parts.path.strip('/')}/".lstrip("/")
            bucket = f"arn:{_partition(region)}:s3:::{parts.netloc}"
            return {
                "OutputsObjects": f"{bucket}/{prefix}*",
                "OutputsBucket": bucket,
                "OutputsPrefix": f"{prefix}*",
            }
        case "http" | "https":
            return {}
        case scheme:
            raise SettingsError(f"OUTPUTS_TO: a Lambda function cannot write to {scheme}:; use s3:// or https://")
