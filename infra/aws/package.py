"""The zip that Lambda runs: our own code, the locked dependencies for Lambda's platform, and byte code for both.

The same input gives the same bytes: sorted names, one date, one mode, nothing that an installer writes about itself.
So the digest names the content, and an upload of what is there already can be left out.

Byte code halves a cold start (docs/wire/runtimes.md#5-packaging). It belongs to one Python version, so it is made only
when this Python is the version that the function will run on; `Built.byte_code` says whether it was.
"""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import os
import subprocess
import sys
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal

from image import locks
from image.server.code import source_files
from infra import operator_code
from infra.operator_code import CarriedCode
from shared.errors import HandsError

CHECKOUT: Final = Path(__file__).resolve().parents[2]
RUNTIMES: Final = ("3.11", "3.12", "3.13", "3.14")
ZIP_LIMIT: Final = 250 * 1024 * 1024  # bytes unpacked; a zip from S3 has no limit of its own
_NOT_ON_LAMBDA: Final = ("functions/main.py", "functions/asgi.py")
_DATE: Final = (1980, 1, 1, 0, 0, 0)
_MODE: Final = 0o100644 << 16
_INSTALLERS_NOTES: Final = ("RECORD", "INSTALLER", "REQUESTED", "direct_url.json")
_ROOT: Final = "/var/task"

Architecture = Literal["x86_64", "arm64"]


class NotBuilt(HandsError):
    """The zip could not be made. The text says why."""


@dataclass(frozen=True, slots=True)
class Built:
    """`sha256` in hex; sizes in bytes."""

    path: Path
    sha256: str
    size: int
    unpacked: int
    byte_code: bool


def own_python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def own_files() -> dict[str, bytes]:
    """Our part of the zip: path in it -> content. The worker's sources are in it, since they are handed over."""
    return {name: content for name, content in source_files().items() if name not in _NOT_ON_LAMBDA}


def install(
    target: Path, python: str, architecture: Architecture, *, extras: Collection[str] = (), more: str = ""
) -> None:
    """The locked dependencies of the run time and of these extras as wheels for Lambda, whatever this machine is.
    `more`: requirements of the operator's own code. Raises NotBuilt, SettingsError."""
    lock = target.with_name("requirements.txt")
    lock.write_text(operator_code.joined(locks.requirements(extras=extras), more), encoding="utf-8")
    command = [
        *(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--only-binary=:all:"),
        *("--require-hashes", "--requirement", str(lock), "--target", str(target)),
        *("--implementation", "cp", "--python-version", python),
    ]
    for platform in _platforms(python, architecture):
        command += ["--platform", platform]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=900, env=_pip_environ())
    if done.returncode != 0:
        raise NotBuilt(f"pip could not fetch the dependencies for Python {python}:\n{done.stderr.strip()[-2000:]}")


def installed_files(target: Path) -> dict[str, bytes]:
    """What was installed there, without commands, tests' caches and installers' notes."""
    return {name: path.read_bytes() for name, path in _walk(target)}


def with_byte_code(files: Mapping[str, bytes]) -> dict[str, bytes]:
    """The files and byte code of this Python for each module, never checked against its source at run time.

    What does not compile (a template, a file for another Python) stays without.
    """
    everything = dict(files)
    for name, source in files.items():
        if name.endswith(".py") and (code := _compiled(name, source)) is not None:
            folder, _, file = name.rpartition("/")
            cached = f"{file.removesuffix('.py')}.{sys.implementation.cache_tag}.pyc"
            everything[f"{folder}/__pycache__/{cached}" if folder else f"__pycache__/{cached}"] = code
    return everything


def write_zip(path: Path, files: Mapping[str, bytes], byte_code: bool) -> Built:
    """Raises NotBuilt for more than Lambda takes."""
    unpacked = sum(len(content) for content in files.values())
    if unpacked > ZIP_LIMIT:
        raise NotBuilt(f"{unpacked // 2**20} MiB unpacked is more than Lambda's {ZIP_LIMIT // 2**20} MiB")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=6) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = _MODE
            entry.create_system = 3  # Unix, whatever built it
            archive.writestr(entry, files[name])
    return Built(path, hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_size, unpacked, byte_code)


def build(folder: Path, python: str, architecture: Architecture, *, extras: Collection[str], own: CarriedCode) -> Built:
    """The whole zip, in this folder. Takes about a minute. Raises NotBuilt, SettingsError."""
    target = folder / "dependencies"
    install(target, python, architecture, extras=extras, more=own.requirements)
    files = {**installed_files(target), **own.files, **own_files()}
    byte_code = python == own_python()
    return write_zip(folder / "bundle.zip", with_byte_code(files) if byte_code else files, byte_code)


def _compiled(name: str, source: bytes) -> bytes | None:
    try:
        code = compile(source, f"{_ROOT}/{name}", "exec", dont_inherit=True)
    except (SyntaxError, ValueError):
        return None
    # PEP 552: the flag 1 means a hash of the source, which the interpreter is not to check.
    header = importlib.util.MAGIC_NUMBER + (1).to_bytes(4, "little") + importlib.util.source_hash(source)
    return header + marshal.dumps(code)


def _walk(target: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(target.rglob("*")):
        relative = path.relative_to(target)
        if not path.is_file() or "__pycache__" in relative.parts or relative.parts[0] == "bin":
            continue
        if relative.parts[0].endswith(".dist-info") and path.name in _INSTALLERS_NOTES:
            continue
        yield relative.as_posix(), path


def _platforms(python: str, architecture: Architecture) -> tuple[str, ...]:
    """Wheel platforms that run there: Python 3.11 is on Amazon Linux 2 (glibc 2.26), later ones on 2023 (2.34)."""
    machine = "aarch64" if architecture == "arm64" else "x86_64"
    tags = ("manylinux2014", "manylinux_2_17", *(() if python == "3.11" else ("manylinux_2_28",)))
    return tuple(f"{tag}_{machine}" for tag in tags)


def _pip_environ() -> dict[str, str]:
    """Without what would put files elsewhere; where packages come from stays this machine's business."""
    dropped = ("PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_USER", "PYTHONPATH", "PYTHONHOME")
    kept = {name: value for name, value in os.environ.items() if name not in dropped}
    return kept | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"}
