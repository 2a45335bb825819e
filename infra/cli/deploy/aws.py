"""`deploy aws` and `undeploy aws`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from infra.aws import package, plan
from infra.aws.stack import Aws, NotDeployedToAws
from infra.cli import environ
from shared.errors import HandsError

Action = Literal["deploy", "undeploy"]
_NEXT = """
Next: in the Claude Console, create a webhook to the address above for "Session lifecycle: Run started" (and Terminated,
Archived, Deleted). {signing}"""


def run(action: Action, variables: Mapping[str, str], *, dry_run: bool) -> int:
    """Do it; 0 done, 1 AWS did not do it. Raises SettingsError."""
    try:
        if action == "deploy":
            return deploy(_loaded(variables), dry_run=dry_run)
        return undeploy(environ.with_files(variables), dry_run=dry_run)
    except NotDeployedToAws as error:
        print(error, file=sys.stderr)
        return 1
    except HandsError:
        raise
    except Exception as error:
        text = _in_plain_words(error)
        if text is None:
            raise
        print(text, file=sys.stderr)
        return 1


def deploy(variables: Mapping[str, str], *, dry_run: bool) -> int:
    """Package, upload, create or update, store the secrets, and say what comes next."""
    planned = plan.make(variables)
    print("\n".join(planned.lines()))
    if dry_run:
        print("DRY_RUN: nothing was built or called.")
        return 0
    aws = _aws(planned.region)
    bucket = aws.bucket(planned.bucket)
    with tempfile.TemporaryDirectory() as folder:
        print("building the zip ...", flush=True)
        built = package.build(
            Path(folder), planned.python, planned.architecture, extras=planned.extras, own=planned.own
        )
        code_key = aws.upload(bucket, built)
    print(f"code {built.sha256[:12]}: {built.size // 2**20} MiB, {built.unpacked // 2**20} MiB unpacked")
    if not aws.apply(planned, bucket, code_key):
        print("the stack is as it should be already")
    outputs = aws.outputs(planned.stack)
    for variable in aws.store(planned, outputs):
        print(f"stored {variable}; running functions read it within five minutes")
    for name in ("WebhookUrl", "ForkUrl", "TickFunction", "DeadLetters"):
        print(f"{name:13} {outputs[name]}")
    known = "ANTHROPIC_WEBHOOK_SIGNING_KEY" in planned.secrets or "SigningKeySecret" in planned.parameters
    signing = (
        "Its signing secret is stored already."
        if known
        else "Put its signing secret into .env as ANTHROPIC_WEBHOOK_SIGNING_KEY and deploy again: it gets 503 before."
    )
    print(_NEXT.format(signing=signing))
    if "FUNCTIONS_TOKEN" not in planned.secrets and "FunctionsTokenSecret" not in planned.parameters:
        print("FUNCTIONS_TOKEN was not set, so the stack drew one. To read it:")
        print(f"  aws secretsmanager get-secret-value --secret-id {outputs['FunctionsToken']} \\")
        print(f"    --region {planned.region} --query SecretString --output text")
    return 0


def undeploy(variables: Mapping[str, str], *, dry_run: bool) -> int:
    """Delete the stack. The bucket with the code stays. Of the variables only AWS_REGION and AWS_STACK are read."""
    region, stack = plan.where(variables)
    print(f"deleting the stack {stack} in {region}; the bucket with the code stays")
    if not dry_run:
        _aws(region).remove(stack)
    return 0


def _loaded(variables: Mapping[str, str]) -> Mapping[str, str]:
    return environ.load_for_cloud(variables, "AWS")


def _aws(region: str) -> Aws:
    import boto3

    return Aws(boto3.Session(), region, lambda text: print(text, flush=True))


def _in_plain_words(error: Exception) -> str | None:
    """For what the AWS library raises; None for a bug of ours."""
    from botocore import exceptions

    match error:
        case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
            return "No AWS credentials: run aws configure, or set AWS_PROFILE, or AWS_ACCESS_KEY_ID and its secret."
        case exceptions.ProfileNotFound():
            return "AWS_PROFILE names a profile that is not in your AWS configuration."
        case exceptions.EndpointConnectionError():
            return "AWS could not be reached: is the region right, and the network up?"
        case exceptions.ClientError():
            code = error.response.get("Error", {}).get("Code", "")
            if code in ("ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "RequestExpired"):
                return f"Your AWS credentials are no longer good ({code}): log in again."
            return f"AWS refused {error.operation_name}: {error.response.get('Error', {}).get('Message', code)}"
        case exceptions.BotoCoreError():
            return f"AWS: {error}"
    return None
