"""gs:// through Google's own library, against local servers."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.outputs.stores import StoreFailed, open_store
from tests.shared.claims.test_setup_access import SessionQueue, access, session
from tests.support.http_stub import StubHandler, stub_server

pytest.importorskip("google.cloud.storage", reason="the extra gcp is not installed")


class _Buckets(StubHandler):
    """As much of Cloud Storage's JSON API as a store asks; there is one bucket, `results`."""

    objects: dict[str, bytes]

    def do_GET(self) -> None:
        found = re.fullmatch(r"/download/storage/v1/b/results/o/([^/]+)", urlsplit(self.path).path)
        name = unquote(found[1]) if found else ""
        if name in self.objects:
            self.answer(200, self.objects[name], {"content-type": "application/octet-stream"})
        else:
            self.answer(404, b'{"error": {"code": 404, "message": "there is none"}}')

    def do_POST(self) -> None:
        body, boundary = self.body(), re.search(r'boundary="?([^";]+)', self.headers["content-type"])
        if boundary is None or urlsplit(self.path).path != "/upload/storage/v1/b/results/o":
            self.answer(404, b'{"error": {"code": 404, "message": "no such bucket"}}')
            return
        _, facts, content, _ = body.split(f"--{boundary[1]}".encode())
        name = json.loads(facts.split(b"\r\n\r\n", 1)[1])["name"]
        self.objects[name] = content.split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")
        self.answer(200, json.dumps({"name": name, "bucket": "results"}).encode())


@pytest.fixture
def objects(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, bytes]]:
    kept: dict[str, bytes] = {}
    with stub_server(type("Handler", (_Buckets,), {"objects": kept})) as url:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", url)
        monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "project-of-nobody")
        yield kept


def test_a_bucket_takes_and_gives_objects_and_says_what_is_wrong(objects: dict[str, bytes], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    store = open_store("gs://results/team/a")
    assert store.read("x/manifest.json") is None
    store.write("x/files/ü b.csv", tmp_path / "file")
    assert store.read("x/files/ü b.csv") == b"content" and objects == {"team/a/x/files/ü b.csv": b"content"}
    with pytest.raises(StoreFailed, match="Cloud Storage: NotFound"):
        open_store("gs://none").write("x", tmp_path / "file")


def test_without_credentials_the_reason_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    with pytest.raises(StoreFailed, match="Cloud Storage: DefaultCredentialsError"):
        open_store("gs://results").read("x")


def test_an_object_is_signed_with_the_service_accounts_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    account = {
        "type": "service_account",
        "project_id": "project-of-nobody",
        "client_email": "signer@project-of-nobody.iam.gserviceaccount.com",
        "token_uri": "https://oauth2.googleapis.com/token",
        "private_key": key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode(),
    }
    (tmp_path / "account.json").write_text(json.dumps(account))
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "account.json"))
    wanted = session({"files": "gs://data/in/a.csv gs://other/b.csv"})
    signed = access(SessionQueue(wanted), SETUP_STORES="gs://data/in/").signed
    assert signed is not None and list(signed) == ["gs://data/in/a.csv"]
    parts = urlsplit(signed["gs://data/in/a.csv"])
    query = parse_qs(parts.query)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "storage.googleapis.com", "/data/in/a.csv")
    assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"] and len(query["X-Goog-Signature"][0]) == 512
    assert query["X-Goog-Credential"][0].startswith(account["client_email"])


ACCOUNT: Final = "hands-tick@project-of-nobody.iam.gserviceaccount.com"
KEY: Final = rsa.generate_private_key(public_exponent=65537, key_size=2048)


class _Google(StubHandler):
    """A Cloud Run instance's metadata server, and IAM, which signs for the account whose token is shown."""

    allowed: bool

    def do_GET(self) -> None:
        answers: dict[str, Any] = {
            "/computeMetadata/v1/project/project-id": "project-of-nobody",
            "/computeMetadata/v1/universe/universe-domain": "googleapis.com",
            "/computeMetadata/v1/instance/service-accounts/default/": {"email": ACCOUNT, "scopes": ["all"]},
            "/computeMetadata/v1/instance/service-accounts/default/token": {"access_token": "t0", "expires_in": 3600},
        }
        path = urlsplit(self.path).path
        found = answers.get(path, "" if path == "/" else None)
        kind = "application/text" if isinstance(found, str) else "application/json"
        body = found if isinstance(found, str) else json.dumps(found)
        self.answer(404 if found is None else 200, body.encode(), {"metadata-flavor": "Google", "content-type": kind})

    def do_POST(self) -> None:
        asked = json.loads(self.body())
        if self.path.partition("?")[0] != f"/v1/projects/-/serviceAccounts/{ACCOUNT}:signBlob":
            self.answer(404)
        elif not self.allowed or self.headers["authorization"] != "Bearer t0":
            self.answer(403, b'{"error": {"message": "iam.serviceAccounts.signBlob denied to SECRET"}}')
        else:
            blob = KEY.sign(base64.b64decode(asked["payload"]), padding.PKCS1v15(), SHA256())
            self.answer(200, json.dumps({"keyId": "1", "signedBlob": base64.b64encode(blob).decode()}).encode())


@pytest.fixture
def cloud_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[_Google]]:
    """This process has Cloud Run's identity, whose private key only Google has."""
    import requests
    from google.auth.compute_engine import _metadata

    monkeypatch.setattr(_metadata, "_NO_GCE_CHECK", False)  # what the environment said at the import
    for name in ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GOOGLE_CLOUD_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    for name in ("HOME", "CLOUDSDK_CONFIG"):
        monkeypatch.setenv(name, str(tmp_path))
    handler = type("Handler", (_Google,), {"allowed": True})
    send = requests.adapters.HTTPAdapter.send
    with stub_server(handler) as url:

        def here(self: Any, request: Any, **more: Any) -> Any:
            hosts = r"https?://(iamcredentials\.googleapis\.com|metadata\.google\.internal|169\.254\.169\.254)"
            request.url = re.sub(hosts, url, request.url)
            return send(self, request, **more)

        monkeypatch.setattr(requests.adapters.HTTPAdapter, "send", here)
        yield handler


@pytest.mark.usefixtures("cloud_run")
def test_on_cloud_run_iam_signs_an_object_in_the_services_own_name() -> None:
    signed = access(SessionQueue(session({"files": "gs://data/in/a.csv"})), SETUP_STORES="gs://data/in/").signed
    assert signed is not None
    address, _, signature = signed["gs://data/in/a.csv"].partition("&X-Goog-Signature=")
    parts, query = urlsplit(address), parse_qs(urlsplit(address).query)
    assert query["X-Goog-Credential"][0].startswith(f"{ACCOUNT}/")
    request = f"GET\n{parts.path}\n{parts.query}\nhost:{parts.netloc}\n\nhost\nUNSIGNED-PAYLOAD"
    scope = query["X-Goog-Credential"][0].partition("/")[2]
    digest = hashlib.sha256(request.encode()).hexdigest()
    text = f"GOOG4-RSA-SHA256\n{query['X-Goog-Date'][0]}\n{scope}\n{digest}"
    KEY.public_key().verify(bytes.fromhex(signature), text.encode(), padding.PKCS1v15(), SHA256())


def test_an_identity_that_may_not_sign_is_told_which_role_it_needs(
    cloud_run: type[_Google], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    cloud_run.allowed = False
    assert access(SessionQueue(session({"files": "gs://data/a"})), SETUP_STORES="gs://data/").signed is None
    assert f"{ACCOUNT}: it needs roles/iam.serviceAccountTokenCreator on itself" in caplog.text
    assert "SECRET" not in caplog.text
