"""The bundle's own code: which files a server needs, their digest, and how they travel.

The digest names the folder that holds them in a sandbox, so new code never overwrites what a running server reads,
and who looks at the server's process sees which code it runs. Standard library only.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
_WHOLE: Final = ("functions", "shared", "image/session")
_KINDS: Final = ("*.py", "*.sh")
_SINGLE: Final = ("image/__init__.py",)


def source_files() -> Mapping[str, bytes]:
    """Path below the project's root -> content, sorted."""
    return dict(sorted({**files_below(_WHOLE), **{name: (ROOT / name).read_bytes() for name in _SINGLE}}.items()))


def files_below(folders: Iterable[str]) -> Mapping[str, bytes]:
    """The programs in these folders of the project: path below its root -> content, sorted."""
    found = [path for folder in folders for kind in _KINDS for path in (ROOT / folder).rglob(kind)]
    return {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in sorted(found)}


def code_digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 (hex) of names and contents."""
    total = hashlib.sha256()
    for name, content in sorted(files.items()):
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def packed(files: Mapping[str, bytes]) -> bytes:
    """A gzipped tar: the same bytes for the same files."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.USTAR_FORMAT) as archive,
    ):
        for name, content in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(content), 0o644
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()
