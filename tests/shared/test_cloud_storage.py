"""gs:// through Google's own library. The locks do not hold it: these tests run where google-cloud-storage is there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from shared.outputs.stores import StoreFailed, open_store
from tests.shared.claims.test_setup_access import Queue, access, session
from tests.support.http_stub import StubHandler, stub_server

pytest.importorskip("google.cloud.storage")


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
    signed = access(Queue(wanted), SETUP_STORES="gs://data/in/").signed
    assert signed is not None and list(signed) == ["gs://data/in/a.csv"]
    parts = urlsplit(signed["gs://data/in/a.csv"])
    query = parse_qs(parts.query)
    assert (parts.scheme, parts.netloc, parts.path) == ("https", "storage.googleapis.com", "/data/in/a.csv")
    assert query["X-Goog-Algorithm"] == ["GOOG4-RSA-SHA256"] and len(query["X-Goog-Signature"][0]) == 512
    assert query["X-Goog-Credential"][0].startswith(account["client_email"])
