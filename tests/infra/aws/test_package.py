"""The zip: the same input gives the same bytes, and what it holds runs."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from image import locks
from infra.aws import package
from infra.aws.package import NotBuilt
from tests.support.checkout import ROOT

_BUILD = (
    "import sys; from pathlib import Path; from infra.aws import package as p; "
    "print(p.write_zip(Path(sys.argv[1]), p.with_byte_code(p.own_files()), True).sha256)"
)


def test_two_machines_would_build_the_same_bytes(tmp_path: Path) -> None:
    """Two processes whose hashes of texts differ, as they do between any two."""
    digests = set()
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, str(tmp_path / f"{seed}.zip")],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
        digests.add(done.stdout.strip())
    assert len(digests) == 1
    assert digests == {hashlib.sha256((tmp_path / "1.zip").read_bytes()).hexdigest()}


def test_other_code_gives_another_digest(tmp_path: Path) -> None:
    one = package.write_zip(tmp_path / "1.zip", {"a.py": b"a = 1\n"}, byte_code=False)
    two = package.write_zip(tmp_path / "2.zip", {"a.py": b"a = 2\n"}, byte_code=False)
    assert one.sha256 != two.sha256


def test_every_module_has_byte_code_that_the_interpreter_takes_without_a_look_at_the_source(tmp_path: Path) -> None:
    files = package.with_byte_code({"pkg/__init__.py": b"", "pkg/a.py": b"VALUE = 'compiled'\n", "pkg/bad.py": b"def"})
    tag = sys.implementation.cache_tag
    assert set(files) - {"pkg/__init__.py", "pkg/a.py", "pkg/bad.py"} == {
        f"pkg/__pycache__/__init__.{tag}.pyc",
        f"pkg/__pycache__/a.{tag}.pyc",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "pkg/a.py").write_text("VALUE = 'source'\n", encoding="utf-8")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pkg.a; print(pkg.a.VALUE)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "compiled"


def test_our_part_holds_what_the_functions_need_and_nothing_of_other_runtimes() -> None:
    files = package.own_files()
    assert {"functions/aws_lambda.py", "shared/settings.py", "image/session/worker/program.py"} <= set(files)
    assert not [name for name in files if name.startswith(("infra/", "tests/")) or name == "functions/main.py"]


def test_the_whole_worker_is_in_it_since_it_is_handed_over_from_its_sources() -> None:
    worker = {path.relative_to(ROOT).as_posix() for path in (ROOT / "image/session/worker").glob("*.py")}
    assert len(worker) > 10
    assert worker | {"image/__init__.py", "image/session/__init__.py", "image/session/claim.py"} <= set(
        package.own_files()
    )


def test_installers_notes_and_commands_stay_out_and_metadata_stays_in(tmp_path: Path) -> None:
    for name in ("bin/tool", "a/__init__.py", "a/__pycache__/x.pyc", "a-1.dist-info/RECORD", "a-1.dist-info/METADATA"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name, encoding="utf-8")
    assert set(package.installed_files(tmp_path)) == {"a/__init__.py", "a-1.dist-info/METADATA"}


def test_more_than_lambda_takes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "ZIP_LIMIT", 10)
    with pytest.raises(NotBuilt, match="more than Lambda's"):
        package.write_zip(tmp_path / "x.zip", {"a.py": b"x" * 11}, byte_code=False)


def test_the_wheels_are_for_lambdas_machine_and_python_whatever_this_one_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[str]] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(command)
        return subprocess.CompletedProcess(command, 1, "", "no such wheel")

    monkeypatch.setattr("infra.aws.package.subprocess.run", run)
    for python, newest in (("3.13", "manylinux_2_28_aarch64"), ("3.11", "manylinux_2_17_aarch64")):
        with pytest.raises(NotBuilt, match="no such wheel"):
            package.install(tmp_path, python, "arm64")
        assert seen[-1][-1] == newest
        assert seen[-1][seen[-1].index("--python-version") + 1] == python
        assert "--require-hashes" in seen[-1]


def test_packages_of_an_extra_that_is_asked_for_are_installed_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        seen.append(Path(command[command.index("--requirement") + 1]).read_text(encoding="utf-8"))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr("infra.aws.package.subprocess.run", run)
    for extras in ((), ("otel", "aws")):
        package.install(tmp_path / "dependencies", "3.13", "x86_64", extras=extras)
    without, with_it = seen
    for name in (*locks.of_extra("otel"), "s3fs", "aiobotocore", "botocore", "boto3"):
        assert f"{name}==" not in without and f"{name}==" in with_it
    assert "anthropic==" in without and "anthropic==" in with_it


def test_the_zip_is_what_a_reader_of_zips_expects(tmp_path: Path) -> None:
    built = package.write_zip(tmp_path / "x.zip", {"b.py": b"2", "a.py": b"1"}, byte_code=False)
    with zipfile.ZipFile(built.path) as archive:
        assert archive.namelist() == ["a.py", "b.py"]
        assert {entry.external_attr >> 16 for entry in archive.infolist()} == {0o100644}
        assert archive.testzip() is None
    assert (built.size, built.unpacked) == (built.path.stat().st_size, 2)
