"""What `make deploy-aws` and `make undeploy-aws` call: `python -m infra.cli.deploy.aws deploy|undeploy`. DRY_RUN=1 only
prints."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from infra.aws import package, plan
from infra.aws.stack import Aws, NotDeployed
from infra.cli import environ
from infra.local import dotenv
from shared.errors import HandsError, SettingsError

_NEXT = """
Next: in the Claude Console, create a webhook to the address above for "Session lifecycle: Run started" (and Terminated,
Archived, Deleted). {signing}"""


def main(arguments: list[str], variables: Mapping[str, str]) -> int:
    """0 done, 1 AWS did not do it, 2 not configured."""
    try:
        if arguments == ["deploy"]:
            return deploy(_loaded(variables), dry_run=_flag(variables))
        if arguments == ["undeploy"]:
            return undeploy(_with_files(variables), dry_run=_flag(variables))
        print("usage: python -m infra.cli.deploy.aws deploy|undeploy", file=sys.stderr)
        return 2
    except NotDeployed as error:
        print(error, file=sys.stderr)
        return 1
    except HandsError as error:
        print(error, file=sys.stderr)
        return 2
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
        built = package.build(Path(folder), planned.python, planned.architecture)
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
    loaded = environ.load(variables)
    if loaded.offline is not None:
        raise SettingsError("The offline platform cannot be reached from AWS: fill in .env with your own keys.")
    return loaded.environ


def _with_files(variables: Mapping[str, str]) -> Mapping[str, str]:
    """As `environ.load` has them, for a command that needs neither keys nor services."""
    merged = dict(variables)
    try:
        for name in (".env", ".env.local"):
            merged.update(dotenv.read(environ.CHECKOUT / name))
    except dotenv.DotenvError as error:
        raise SettingsError(str(error)) from None
    return merged


def _flag(variables: Mapping[str, str]) -> bool:
    return variables.get("DRY_RUN", "").strip().lower() in ("1", "true", "yes", "on")


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


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
