"""Secrets in the clouds' stores: read where a setting says, rotated without a restart, and never in an error."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from functions.signatures import is_signed
from shared import secret_stores
from shared.errors import SecretUnavailable
from shared.secret import CACHE_SECONDS, Secret
from tests.support.signing import KEY, OTHER_KEY, delivery, signed

REGION = "eu-west-1"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "testing")
    monkeypatch.delenv("AWS_PROFILE", raising=False)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")  # another one: an ARN says its own
    with mock_aws():
        yield


def made(name: str, **value: Any) -> str:
    """A secret in Secrets Manager; its ARN."""
    return str(boto3.client("secretsmanager", region_name=REGION).create_secret(Name=name, **value)["ARN"])


@pytest.mark.usefixtures("aws")
def test_a_secret_is_read_by_its_arn_whole_or_by_field() -> None:
    assert Secret("K", f"aws-sm:{made('plain', SecretString='a value')}").reveal() == "a value"
    arn = made("fields", SecretString=json.dumps({"one": "1", "two": "2", "number": 3}))
    assert Secret("K", f"aws-sm:{arn}#two").reveal() == "2"
    for wrong in ("three", "number"):
        with pytest.raises(SecretUnavailable, match=f"no field {wrong}"):
            Secret("K", f"aws-sm:{arn}#{wrong}").reveal()


@pytest.mark.usefixtures("aws")
def test_a_rotated_key_is_picked_up_when_the_cached_one_is_minutes_old() -> None:
    now = [0.0]
    arn = made("rotating", SecretString="old")
    secret = Secret("K", f"aws-sm:{arn}", clock=lambda: now[0])
    assert secret.reveal() == "old"
    boto3.client("secretsmanager", region_name=REGION).put_secret_value(SecretId=arn, SecretString="new")
    assert secret.reveal() == "old"
    now[0] = CACHE_SECONDS + 1
    assert secret.reveal() == "new"


@pytest.mark.usefixtures("aws")
def test_a_parameter_is_read_decrypted() -> None:
    ssm = boto3.client("ssm", region_name="us-east-1")
    ssm.put_parameter(Name="/hands/key", Value="a value", Type="SecureString")
    assert Secret("K", "aws-ssm:/hands/key").reveal() == "a value"


@pytest.mark.usefixtures("aws")
def test_what_cannot_be_read_names_the_setting_the_place_and_the_kind_and_no_value() -> None:
    not_json = made("text", SecretString="the-value-itself")
    cases = {
        "aws-sm:nothing": "ResourceNotFoundException",
        f"aws-sm:{made('empty')}": "ResourceNotFoundException",
        f"aws-sm:{made('bytes', SecretBinary=b'the-value-itself')}": "bytes",
        f"aws-sm:{not_json}#field": "not JSON",
        "aws-ssm:/nothing": "ParameterNotFound",
    }
    for reference, kind in cases.items():
        with pytest.raises(SecretUnavailable) as caught:
            Secret("SOME_KEY", reference).reveal()
        assert caught.value.setting == "SOME_KEY"
        assert kind in str(caught.value)
        assert "the-value-itself" not in str(caught.value)


@pytest.mark.usefixtures("aws")
def test_one_secret_may_hold_both_signing_keys_while_they_are_rotated() -> None:
    keys = [Secret("ANTHROPIC_WEBHOOK_SIGNING_KEY", f"aws-sm:{made('keys', SecretString=f'{OTHER_KEY}, {KEY}')}")]
    body = delivery()
    for key in (KEY, OTHER_KEY):
        assert asyncio.run(is_signed(body, signed(body, key), keys))


def test_googles_store_is_asked_with_the_machines_own_identity(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def answer(url: str, headers: dict[str, str], body: bytes | None = None) -> Any:
        asked.append((url, json.dumps(headers)))
        if "metadata" in url:
            return {"access_token": "a-token-of-nobody"}
        return {"payload": {"data": base64.b64encode(b"a value\n").decode()}}

    monkeypatch.setattr(secret_stores, "_json", answer)
    assert Secret("K", "gcp-sm:projects/p/secrets/s").reveal() == "a value"
    assert Secret("K", "gcp-sm:projects/p/secrets/s/versions/7").reveal() == "a value"
    assert [url.rpartition("/v1/")[2] for url, _ in asked if "metadata" not in url] == [
        "projects/p/secrets/s/versions/latest:access",
        "projects/p/secrets/s/versions/7:access",
    ]
    assert all("a-token-of-nobody" in headers for url, headers in asked if "metadata" not in url)
    assert all("a-token-of-nobody" not in headers for url, headers in asked if "metadata" in url)


def test_no_cloud_is_asked_for_a_value_that_only_looks_like_a_reference() -> None:
    assert Secret("K", "aws:something").reveal() == "aws:something"
