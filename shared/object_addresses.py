"""Signed addresses of objects in a bucket, good for a while, for a sandbox that has no credential of its own.

boto3 and google-cloud-storage are imported by the first address of their kind, and find their own credentials.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final
from urllib.parse import urlsplit

from shared.errors import HandsError

_GOOGLE_SCOPE: Final = "https://www.googleapis.com/auth/cloud-platform"


class NotSigned(HandsError):
    """These credentials cannot sign. The text says what to do and is fit for a log."""


def signed(urls: Sequence[str], seconds: int) -> Iterator[tuple[str, str]]:
    """Each s3:// and gs:// URL with an https address that reads it for so many seconds. Blocking. Raises NotSigned, and
    what the libraries raise."""
    for scheme, signer in (("s3", _of_s3), ("gs", _of_google)):
        wanted = [url for url in urls if urlsplit(url).scheme == scheme]
        if wanted:
            sign = signer()
            for url in wanted:
                parts = urlsplit(url)
                yield url, sign(parts.netloc, parts.path.lstrip("/"), seconds)


def _of_s3() -> Callable[[str, str, int], str]:
    import boto3

    client = boto3.client("s3")

    def sign(bucket: str, key: str, seconds: int) -> str:
        asked = {"Bucket": bucket, "Key": key}
        return str(client.generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds))

    return sign


def _of_google() -> Callable[[str, str, int], str]:
    """With a service account's key, or where the runtime's identity has none (Cloud Run) by asking IAM to sign in its
    name (docs/deploy/gcp.md#what-else-it-may-reach)."""
    import google.auth
    from google.auth.credentials import Signing
    from google.auth.exceptions import TransportError
    from google.auth.transport.requests import Request
    from google.cloud import storage

    found: Any = google.auth.default(scopes=[_GOOGLE_SCOPE])
    credentials, project = found
    by: dict[str, str] = {}
    if not isinstance(credentials, Signing):
        credentials.refresh(Request())  # only then does it know its own name
        account = getattr(credentials, "service_account_email", None)
        if not account:
            raise NotSigned("a person's Google credentials cannot sign: use a service account's")
        by = {"service_account_email": account, "access_token": credentials.token}
    client: Any = storage.Client(project=project, credentials=credentials)

    def sign(bucket: str, key: str, seconds: int) -> str:
        blob = client.bucket(bucket).blob(key)
        try:
            return str(blob.generate_signed_url(version="v4", expiration=seconds, **by))
        except TransportError:
            raise NotSigned(
                f"IAM did not sign for {by.get('service_account_email')}: it needs "
                "roles/iam.serviceAccountTokenCreator on itself, and the project iamcredentials.googleapis.com"
            ) from None

    return sign
