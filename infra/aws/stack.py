"""The AWS side of a deployment: a bucket for the code, a change set for the stack, values for its secrets.

Every step may be repeated: what is there already is used, and what has not changed is left alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from infra.aws.package import Built
from infra.aws.plan import SECRETS, TEMPLATE, AwsPlan
from shared.errors import HandsError

_BODY_LIMIT: Final = 51_200  # bytes; a larger template must come from a bucket
_LONGEST: Final = 1800.0
_TAGS: Final = [{"Key": "project", "Value": "serverless-hands"}]


# From these a stack can only be deleted; others have a way back.
_DELETE_ONLY: Final = ("CREATE_FAILED", "ROLLBACK_COMPLETE", "ROLLBACK_FAILED", "DELETE_FAILED")
_WAYS_BACK: Final = {"UPDATE_FAILED": "rollback-stack", "UPDATE_ROLLBACK_FAILED": "continue-update-rollback"}


class NotDeployedToAws(HandsError):
    """AWS did not do it. The text says what to do about it and holds no secret."""


@dataclass(frozen=True, slots=True)
class Aws:
    """Clients of one region. In seconds: `pause` between two looks at a stack; `settle` is how long, at most, a look
    may still show what was there before a deletion was asked for."""

    session: Any
    region: str
    say: Callable[[str], None]
    pause: float = 3.0
    settle: float = 60.0

    def client(self, service: str) -> Any:
        return self.session.client(service, region_name=self.region)

    def bucket(self, name: str | None) -> str:
        """The bucket for code: this one, or the account's own for this project; made where it is not there."""
        account = self.client("sts").get_caller_identity()["Account"]
        bucket = name or f"serverless-hands-{account}-{self.region}"
        s3 = self.client("s3")
        try:
            s3.head_bucket(Bucket=bucket, ExpectedBucketOwner=account)
        except s3.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchBucket"):
                raise NotDeployedToAws(
                    f"The bucket {bucket} is not yours to use: name another with AWS_BUCKET."
                ) from None
            where = {} if self.region == "us-east-1" else {"LocationConstraint": self.region}
            s3.create_bucket(Bucket=bucket, **({"CreateBucketConfiguration": where} if where else {}))
            closed = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")
            s3.put_public_access_block(Bucket=bucket, PublicAccessBlockConfiguration=dict.fromkeys(closed, True))
            s3.put_bucket_tagging(Bucket=bucket, Tagging={"TagSet": _TAGS})
            self.say(f"made the bucket {bucket}")
        return bucket

    def upload(self, bucket: str, built: Built) -> str:
        """The zip's key; nothing is sent where the same zip is there already."""
        key = f"code/{built.sha256}.zip"
        s3 = self.client("s3")
        try:
            s3.head_object(Bucket=bucket, Key=key)
        except s3.exceptions.ClientError as error:
            if error.response["Error"]["Code"] not in ("404", "NoSuchKey"):
                raise
            self.say(f"uploading {built.size // 2**20} MiB ...")
            s3.upload_file(str(built.path), bucket, key)
        return key

    def apply(self, plan: AwsPlan, bucket: str, code_key: str) -> bool:
        """Create or update the stack by a change set, and wait for it. False where nothing had to change.

        Raises NotDeployedToAws.
        """
        cloudformation = self.client("cloudformation")
        status = self._status(plan.stack)
        if status is not None and (status.endswith("_FAILED") or status == "ROLLBACK_COMPLETE"):
            raise NotDeployedToAws(
                f"The stack {plan.stack} is in {status}, from which AWS goes no further by itself. "
                f"{self._way_out(plan.stack, status)}\n{self._why(plan.stack)}"
            )
        if status is not None and status.endswith("_IN_PROGRESS") and status != "REVIEW_IN_PROGRESS":
            raise NotDeployedToAws(f"The stack {plan.stack} is in {status}: somebody else deploys. Try again later.")
        fresh = status in (None, "REVIEW_IN_PROGRESS")
        parameters = {**plan.parameters, "CodeBucket": bucket, "CodeKey": code_key}
        change_set = f"deploy-{int(time.time())}"
        cloudformation.create_change_set(
            StackName=plan.stack,
            ChangeSetName=change_set,
            ChangeSetType="CREATE" if fresh else "UPDATE",
            Capabilities=["CAPABILITY_IAM"],
            Parameters=[{"ParameterKey": name, "ParameterValue": value} for name, value in sorted(parameters.items())],
            Tags=_TAGS,
            **self._template(bucket),
        )
        if not self._change_set_ready(plan.stack, change_set):
            cloudformation.delete_change_set(StackName=plan.stack, ChangeSetName=change_set)
            return False
        cloudformation.execute_change_set(StackName=plan.stack, ChangeSetName=change_set)
        ended = self._wait(plan.stack)
        if ended not in ("CREATE_COMPLETE", "UPDATE_COMPLETE"):
            way_out = f" {self._way_out(plan.stack, ended)}" if ended is not None else ""
            raise NotDeployedToAws(f"The stack {plan.stack} ended in {ended}.{way_out}\n{self._why(plan.stack)}")
        return True

    def outputs(self, stack: str) -> Mapping[str, str]:
        found = self.client("cloudformation").describe_stacks(StackName=stack)["Stacks"][0]
        return {output["OutputKey"]: output["OutputValue"] for output in found.get("Outputs", [])}

    def store(self, plan: AwsPlan, outputs: Mapping[str, str]) -> list[str]:
        """Puts the secrets' values where the stack reads them; the variables whose value was not there yet."""
        manager = self.client("secretsmanager")
        changed = []
        for variable, value in plan.secrets.items():
            place = outputs[SECRETS[variable]]
            try:
                present = manager.get_secret_value(SecretId=place).get("SecretString")
            except manager.exceptions.ResourceNotFoundException:  # it has no value yet
                present = None
            if present != value:
                manager.put_secret_value(SecretId=place, SecretString=value)
                changed.append(variable)
        return changed

    def remove(self, stack: str) -> None:
        """Delete the stack and wait. Its secrets stay recoverable for AWS's own time; the bucket stays."""
        before = self._status(stack)
        if before is None:
            return
        self.client("cloudformation").delete_stack(StackName=stack)
        ended = self._wait(stack, before=before)
        if ended not in (None, "DELETE_COMPLETE"):
            raise NotDeployedToAws(f"The stack {stack} ended in {ended}.\n{self._why(stack)}")

    def _template(self, bucket: str) -> dict[str, str]:
        body = TEMPLATE.read_bytes()
        if len(body) <= _BODY_LIMIT:
            return {"TemplateBody": body.decode()}
        self.client("s3").put_object(Bucket=bucket, Key="template.yaml", Body=body)
        suffix = "amazonaws.com.cn" if self.region.startswith("cn-") else "amazonaws.com"
        return {"TemplateURL": f"https://{bucket}.s3.{self.region}.{suffix}/template.yaml"}

    def _status(self, stack: str) -> str | None:
        cloudformation = self.client("cloudformation")
        try:
            return str(cloudformation.describe_stacks(StackName=stack)["Stacks"][0]["StackStatus"])
        except cloudformation.exceptions.ClientError as error:
            if "does not exist" in str(error):
                return None
            raise

    def _change_set_ready(self, stack: str, name: str) -> bool:
        """False where it holds no change."""
        end = time.monotonic() + 300
        while time.monotonic() < end:
            found = self.client("cloudformation").describe_change_set(StackName=stack, ChangeSetName=name)
            reason = found.get("StatusReason", "")
            if found["Status"] == "CREATE_COMPLETE":
                return True
            if found["Status"] == "FAILED":
                if "didn't contain changes" in reason or "No updates are to be performed" in reason:
                    return False
                raise NotDeployedToAws(f"AWS refuses the change: {reason}")
            time.sleep(self.pause)
        raise NotDeployedToAws("AWS did not work out the change within five minutes; try again.")

    def _wait(self, stack: str, *, before: str | None = None) -> str | None:
        """The status that it ends in, None where it is gone. `before` is the one that a look may still show for
        `settle` seconds. Raises NotDeployedToAws."""
        began = time.monotonic()
        end = began + _LONGEST
        shown = None
        while time.monotonic() < end:
            status = self._status(stack)
            if status != shown:
                shown = status
                self.say(f"stack {stack}: {status or 'gone'}")
            stale = status == before and time.monotonic() - began < self.settle
            if status is None or not (stale or status.endswith("_IN_PROGRESS")):
                return status
            if status != before:
                before = None  # it has begun, so what was before may come again in earnest
            time.sleep(self.pause)
        raise NotDeployedToAws(f"The stack {stack} was not done within {_LONGEST / 60:g} minutes; see the AWS console.")

    def _way_out(self, stack: str, status: str) -> str:
        """One or two sentences: what to do about a stack in this status."""
        if status in _DELETE_ONLY:
            return "Remove it (make undeploy-aws), then deploy again."
        if (command := _WAYS_BACK.get(status)) is not None:
            return (
                f"Have AWS finish the way back to what ran before: aws cloudformation {command} --stack-name {stack} "
                f"--region {self.region}. Then deploy again. What runs there stays; nothing has to be removed."
            )
        if status.endswith("_ROLLBACK_COMPLETE"):
            return "What ran before runs again."
        return "The AWS console shows what it needs."

    def _why(self, stack: str) -> str:
        """What failed first, in AWS's words, and what helps against the commonest of it."""
        events = self.client("cloudformation").describe_stack_events(StackName=stack)["StackEvents"]
        failed = [event for event in events if event.get("ResourceStatus", "").endswith("_FAILED")]
        lines = [f"  {event['LogicalResourceId']}: {event.get('ResourceStatusReason', '')}" for event in failed[::-1]]
        text = "\n".join(lines[:5])
        if "ReservedConcurrentExecutions" in text:
            text += "\n  The account's quota is small: set AWS_WEBHOOK_CONCURRENCY=0 AWS_TICK_CONCURRENCY=0"
            text += " AWS_FORK_CONCURRENCY=0, or ask AWS for a larger one."
        return text
