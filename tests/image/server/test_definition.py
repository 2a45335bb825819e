"""The server's image: what is in it, and what is not."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

from image.server.code import code_digest, packed, source_files
from image.server.definition import PYTHON, SERVER_USER, dockerfile, folder_name, server_recipe, stage


def test_the_bundle_runs_from_its_files_alone(tmp_path: Path) -> None:
    """Every module that a server imports, and what a hand-over reads, is among them."""
    stage(server_recipe(), tmp_path)
    code = "import functions.asgi, shared.claims.dispatcher, shared.reconcile.reconciler, shared.races.race\n"
    code += "from image.session.archive import build_archive; assert build_archive()\n"
    code += "print(functions.asgi.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "bundle", capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.startswith(str(tmp_path / "bundle"))


def test_the_same_files_pack_to_the_same_bytes_and_unpack_to_themselves() -> None:
    files = source_files()
    assert packed(files) == packed({name: files[name] for name in sorted(files, reverse=True)})
    with tarfile.open(fileobj=io.BytesIO(packed(files))) as archive:
        streams = {name: archive.extractfile(name) for name in archive.getnames()}
        assert {name: stream.read() for name, stream in streams.items() if stream is not None} == files


def test_a_changed_a_moved_and_a_new_file_change_the_digest() -> None:
    files = {"a.py": b"1", "b.py": b"2"}
    others = [{"a.py": b"2", "b.py": b"1"}, {"a.py": b"1", "c.py": b"2"}, {**files, "c.py": b""}, {"a.py": b"1"}]
    assert len({code_digest(each) for each in (files, *others)}) == 5


def test_no_test_no_infra_and_no_secret_is_in_the_image(tmp_path: Path) -> None:
    stage(server_recipe(), tmp_path)
    names = {path.relative_to(tmp_path).parts[0] for path in tmp_path.rglob("*") if path.is_file()}
    assert names == {"Dockerfile", "runtime.lock", "bundle"}
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == {"functions", "shared", "image"}
    assert not [path for path in tmp_path.rglob("*") if path.name.startswith(".env") or path.suffix == ".pem"]


def test_what_opentelemetry_needs_is_in_the_image_pinned_and_hashed(tmp_path: Path) -> None:
    stage(server_recipe(), tmp_path)
    pinned = (tmp_path / "runtime.lock").read_text(encoding="utf-8")
    for package in ("opentelemetry-sdk", "opentelemetry-exporter-otlp-proto-http", "prometheus-client", "anthropic"):
        assert re.search(rf"^{package}==\S+ \\\n +--hash=sha256:", pinned, re.M), package


def test_dependencies_are_pinned_byte_compiled_and_roots(tmp_path: Path) -> None:
    text = dockerfile(server_recipe("server", "python:3.12-slim"), "ab" * 32)
    assert text.startswith("FROM python:3.12-slim\n")
    assert "--require-hashes" in text and "--only-binary :all:" in text
    assert f"{PYTHON} -m compileall -q -j 0 /opt/hands/{folder_name('ab' * 32)}" in text
    assert re.findall(r"^USER (.*)$", text, re.M) == [SERVER_USER]
    assert not re.findall(r"^(?:ENV|ARG) ", text, re.M)
