"""Secrets that live in a cloud's own store, read by the identity that the runtime gives to this process.

    aws-sm:NAME-OR-ARN            the whole text of a secret in AWS Secrets Manager
    aws-sm:NAME-OR-ARN#KEY        one field of it, where the text is a JSON object
    aws-ssm:/PATH                 a parameter of AWS Systems Manager, decrypted
    gcp-sm:projects/P/secrets/S   the latest version in Google Secret Manager (or .../versions/V)

The AWS library comes with Lambda's runtime; it is imported on the first read (a quarter of a second), so a process
whose settings refer to no such place never pays for it. Each call is bounded to a few seconds.
"""

from __future__ import annotations

import base64
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final

import orjson

_CONNECT_SECONDS: Final = 3
_READ_SECONDS: Final = 5
_GOOGLE_TOKEN: Final = "http://metadata.google.internal/computeMetadata/v1/instance/service-accounts/default/token"  # noqa: S105 - an address
_GOOGLE_SECRETS: Final = "https://secretmanager.googleapis.com/v1"


class NotReadable(Exception):
    """The text says why and holds nothing of a secret."""


def read(scheme: str, place: str) -> str:
    """The secret at `place`. Blocking, at most about twenty seconds. Raises NotReadable."""
    try:
        return STORES[scheme](place)
    except NotReadable:
        raise
    except Exception as error:  # the libraries' errors are many, and their texts may quote what was read
        raise NotReadable(_kind(error)) from None


def _secrets_manager(place: str) -> str:
    name, _, key = place.partition("#")
    text = _aws("secretsmanager", name).get_secret_value(SecretId=name).get("SecretString")
    if not isinstance(text, str):
        raise NotReadable("the secret holds bytes, not a text")
    return _field(text, key) if key else text


def _parameter(place: str) -> str:
    return str(_aws("ssm", place).get_parameter(Name=place, WithDecryption=True)["Parameter"]["Value"])


def _aws(service: str, place: str) -> Any:
    try:
        import botocore.session
        from botocore.config import Config
    except ImportError:
        raise NotReadable("the package boto3 is not installed") from None
    parts = place.split(":")
    region = parts[3] if parts[0] == "arn" and len(parts) > 3 else None  # else AWS_REGION and the like
    config = Config(
        connect_timeout=_CONNECT_SECONDS, read_timeout=_READ_SECONDS, retries={"mode": "standard", "max_attempts": 2}
    )
    return botocore.session.get_session().create_client(service, region_name=region, config=config)


def _google(place: str) -> str:
    version = place if "/versions/" in place else f"{place}/versions/latest"
    found = google_call(f"{_GOOGLE_SECRETS}/{version}:access")
    return base64.b64decode(found["payload"]["data"], validate=True).decode()


def google_call(url: str, body: bytes | None = None) -> Any:
    """What a Google API answers to this process's own identity; with a `body` (JSON) it is posted. Blocking. Raises
    what urllib and orjson do."""
    token = _json(_GOOGLE_TOKEN, {"Metadata-Flavor": "Google"})["access_token"]
    kind = {} if body is None else {"Content-Type": "application/json"}
    return _json(url, {"Authorization": f"Bearer {token}", **kind}, body)


def _json(url: str, headers: Mapping[str, str], body: bytes | None = None) -> Any:
    request = urllib.request.Request(url, body, dict(headers))  # noqa: S310 - fixed hosts
    with urllib.request.urlopen(request, timeout=_READ_SECONDS) as answer:  # noqa: S310
        return orjson.loads(answer.read())


def _field(text: str, key: str) -> str:
    try:
        fields = orjson.loads(text)
    except ValueError:
        raise NotReadable(f"the secret is not JSON, so it has no field {key}") from None
    value = fields.get(key) if isinstance(fields, dict) else None
    if not isinstance(value, str):
        raise NotReadable(f"the secret has no field {key} that holds a text")
    return value


def _kind(error: Exception) -> str:
    """The name of what went wrong; for a refusal by AWS its code, such as AccessDeniedException."""
    answer = getattr(error, "response", None)
    code = answer.get("Error", {}).get("Code") if isinstance(answer, dict) else None
    return code if isinstance(code, str) else type(error).__name__


STORES: Final[Mapping[str, Callable[[str], str]]] = {
    "aws-sm": _secrets_manager,
    "aws-ssm": _parameter,
    "gcp-sm": _google,
}
