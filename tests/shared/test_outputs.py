"""Outputs are collected: each version once, whole, and with a word about what was left."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast

import boto3
import pytest
from moto.server import ThreadedMotoServer

from shared.errors import SettingsError
from shared.output_settings import OutputSettings
from shared.outputs.collector import Collector, NotCollected
from shared.outputs.stores import FolderStore, StoreFailed, open_store
from shared.secret import Secret
from shared.settings import Settings
from tests.shared.test_sandbox_files import ThisMachine, awaited
from tests.shared.test_settings import PLAIN
from tests.support.web import web

NOW = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)


class Counting(FolderStore):
    """`fails` is the reason of a target that takes nothing."""

    fails = ""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.written: list[str] = []

    def write(self, name: str, file: Path) -> None:
        if self.fails:
            raise StoreFailed(self.fails)
        super().write(name, file)
        self.written.append(name)


class Bench:
    def __init__(self, root: Path) -> None:
        self.outputs = root / "outputs"
        self.store = Counting(root / "target")
        self.settings = OutputSettings("file:///unused", None, str(self.outputs), 60.0, 1_000_000, 3600.0)
        self.now = NOW

    def collector(self, **changes: float) -> Collector:
        settings = self.settings._replace(**changes)  # type: ignore[arg-type]
        return Collector(settings, ThisMachine(), user=None, store=self.store, now=lambda: self.now)  # type: ignore[arg-type]

    def manifest(self) -> dict[str, object]:
        found: dict[str, object] = json.loads(self.store.read("sesn_1/manifest.json") or b"{}")
        return found


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@awaited
async def test_each_version_is_collected_once_and_the_manifest_tells_when_all_was_seen(bench: Bench) -> None:
    collector = bench.collector()
    assert (await collector.collect("sesn_1", "box")).files == 0  # no folder yet, and that is noted
    assert await collector.current("sesn_1", NOW) and not await collector.current("sesn_1", NOW + timedelta(seconds=1))
    assert not await collector.current("sesn_1", None) and not await collector.current("sesn_2", NOW)
    (bench.outputs / "deep").mkdir(parents=True)
    (bench.outputs / "report.csv").write_text("a,b\n")
    (bench.outputs / "deep" / "empty").touch()
    (bench.outputs / "link").symlink_to("/etc/passwd")
    assert (await collector.collect("sesn_1", "box")).files == 2
    bench.store.written.clear()
    assert (await collector.collect("sesn_1", "box")).files == 0
    assert bench.store.written == ["sesn_1/manifest.json"]
    (bench.outputs / "report.csv").write_text("a,b\n1,2\n")
    bench.now += timedelta(hours=1)
    assert (await collector.collect("sesn_1", "box")).files == 1
    assert bench.store.read("sesn_1/files/report.csv") == b"a,b\n1,2\n"
    manifest = bench.manifest()
    assert manifest["complete_at"] == bench.now.isoformat()
    assert isinstance(manifest["files"], list)
    assert {row["path"]: row["size"] for row in manifest["files"]} == {"deep/empty": 0, "report.csv": 8}
    # What took this sandbox's place has collected since its mark: that stays.
    (bench.outputs / "report.csv").write_text("old")
    await collector.collect("sesn_1", "box", marked_at=NOW)
    assert bench.store.read("sesn_1/files/report.csv") == b"a,b\n1,2\n"


@awaited
async def test_what_is_left_out_and_what_fails_is_said_and_the_rest_is_kept(bench: Bench) -> None:
    bench.outputs.mkdir()
    (bench.outputs / "small").write_text("s")
    (bench.outputs / "large").write_bytes(b"x" * 2000)
    with pytest.raises(NotCollected, match=r"1 of its files were left out \(large: larger than 1000 bytes"):
        await bench.collector(largest=1000).collect("sesn_1", "box")
    assert bench.store.read("sesn_1/files/small") == b"s" and bench.manifest()["complete_at"] is None
    bench.store.fails = "the disk is full"
    with pytest.raises(NotCollected, match="OUTPUTS_TO: the disk is full"):
        await bench.collector().collect("sesn_1", "box")
    with pytest.raises(NotCollected, match="OUTPUTS_SECONDS"):
        await bench.collector(seconds=0.0).collect("sesn_1", "box")
    (bench.store._folder / "sesn_1" / "manifest.json").write_text("nonsense")
    bench.store.fails = ""
    assert (await bench.collector().collect("sesn_1", "box")).files == 2  # a manifest that is none: all anew


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "of-nobody")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    server = cast(Any, ThreadedMotoServer)("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://{}:{}".format(*server.get_host_and_port()))
        boto3.client("s3").create_bucket(Bucket="results")
        yield "results"
    finally:
        server.stop()


def test_s3_takes_and_gives_objects_and_says_what_is_wrong(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = bytes(range(256)) * 4096 * 18  # 18 MiB: three parts
    (tmp_path / "file").write_text("content")
    (tmp_path / "large").write_bytes(large)
    (tmp_path / "empty").touch()
    store = open_store(f"s3://{bucket}/team/a")
    assert store.read("x/manifest.json") is None
    for name, file in (("r.csv", "file"), ("r.csv", "large"), ("ü b?versionId=1", "file"), ("none", "empty")):
        store.write(f"x/files/{name}", tmp_path / file)
    assert store.read("x/files/r.csv") == large and store.read("x/files/none") == b""
    kept = {row["Key"]: row["Size"] for row in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]}
    name = "team/a/x/files/ü b%3FversionId=1"  # s3fs would cut it off at the question mark
    assert kept == {"team/a/x/files/r.csv": len(large), "team/a/x/files/none": 0, name: 7}
    with pytest.raises(StoreFailed, match="S3: NoSuchBucket"):
        open_store("s3://none").write("x", tmp_path / "file")
    with pytest.raises(StoreFailed, match="S3: NoSuchBucket"):
        open_store("s3://none").read("x")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(StoreFailed, match="S3: NoCredentialsError"):
        open_store(f"s3://{bucket}").read("x")


def test_s3_that_does_not_answer_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "b"), ("AWS_MAX_ATTEMPTS", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with pytest.raises(StoreFailed, match="S3: EndpointConnectionError"):
        open_store("s3://results").read("x")


@pytest.mark.parametrize(
    ("target", "modules", "package"),
    [
        ("s3://bucket", ("s3fs",), r"serverless-hands\[aws\]"),
        ("gs://bucket", ("gcsfs", "gcsfs.core"), r"serverless-hands\[gcp\]"),
    ],
)
def test_a_store_whose_library_is_missing_names_it(
    target: str, modules: tuple[str, ...], package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in modules:
        monkeypatch.setitem(sys.modules, name, None)  # its import fails
    (tmp_path / "file").write_text("content")
    with pytest.raises(StoreFailed, match=f"pip install .*{package}"):
        open_store(target).read("x")
    with pytest.raises(StoreFailed, match=f"pip install .*{package}"):
        open_store(target).write("x", tmp_path / "file")


def test_a_signed_address_gets_each_object_with_its_signature_which_no_error_shows(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("content")
    with web(tmp_path) as server:
        store = open_store(f"{server.url}/box", Secret("OUTPUTS_SIGNATURE", "?sig=SECRET"))
        store.write("s/files/a b.csv", tmp_path / "file")
        assert server.put == {"/box/s/files/a%20b.csv": b"content"}
        assert server.asked == ["PUT /box/s/files/a%20b.csv?sig=SECRET"]
        assert store.read("s/manifest.json") is None
        server.guard = lambda path, authorization: 403
        with pytest.raises(StoreFailed, match="answered HTTP 403 to GET") as caught:
            store.read("s/manifest.json")
    with pytest.raises(StoreFailed) as gone:
        store.read("s/manifest.json")
    assert "SECRET" not in f"{caught.value}{gone.value}"


@pytest.mark.parametrize(
    "target",
    ["/tmp/x", "file://host/x", "s3://", "https://me:pw@h/x", "https://h/x?sig=1", "http://h/x", "ftp://h/x"],
)
def test_a_target_that_is_none_is_refused(target: str) -> None:
    with pytest.raises(SettingsError, match="OUTPUTS_TO must be"):
        Settings.from_environ({**PLAIN, "OUTPUTS_TO": target})


def test_outputs_are_off_unless_they_have_a_target_and_sleepers_are_kept() -> None:
    assert Settings.from_environ(PLAIN).outputs is None
    on = {**PLAIN, "OUTPUTS_TO": "s3://results", "OUTPUTS_DIR": "/workspace/out/"}
    outputs = Settings.from_environ(on).outputs
    assert outputs is not None and (outputs.folder, outputs.largest) == ("/workspace/out", 1_024_000_000)
    with pytest.raises(SettingsError, match="OUTPUTS_TO needs RESUME_SUSPENDED_SESSIONS"):
        Settings.from_environ({**on, "RESUME_SUSPENDED_SESSIONS": "false"})
