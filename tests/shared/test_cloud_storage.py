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
from urllib.parse import parse_qs, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from gcp_storage_emulator.server import create_server

from shared.outputs.stores import StoreFailed, open_store
from tests.shared.claims.test_setup_access import SessionQueue, access, session
from tests.support.http_stub import StubHandler, stub_server

storage = pytest.importorskip("google.cloud.storage", reason="the extra gcp is not installed")


@pytest.fixture
def emulator(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Cloud Storage as somebody else wrote it, with one bucket, `results`."""
    server = create_server("127.0.0.1", 0, in_memory=True, default_bucket="results")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server._api._httpd.server_address[1]}")
    yield
    server.stop()


@pytest.mark.usefixtures("emulator")
def test_a_bucket_takes_and_gives_objects_and_says_what_is_wrong(tmp_path: Path) -> None:
    large = bytes(range(256)) * 4096 * 18  # 18 MiB: three parts
    (tmp_path / "file").write_text("content")
    (tmp_path / "large").write_bytes(large)
    (tmp_path / "empty").touch()
    store = open_store("gs://results/team/a")
    assert store.read("x/manifest.json") is None
    for name, file in (("r.csv", "file"), ("r.csv", "large"), ("ü b#1", "file"), ("none", "empty")):
        store.write(f"x/files/{name}", tmp_path / file)
    assert store.read("x/files/r.csv") == large and store.read("x/files/none") == b""
    client: Any = storage.Client(project="project-of-nobody")
    kept = {blob.name: blob.size for blob in client.list_blobs("results")}
    assert kept == {"team/a/x/files/r.csv": len(large), "team/a/x/files/none": 0, "team/a/x/files/ü b#1": 7}
    with pytest.raises(StoreFailed, match="Cloud Storage: FileNotFoundError"):
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
