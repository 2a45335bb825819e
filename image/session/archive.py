"""The worker as one file: a zip archive that Python runs, the same bytes from the same sources everywhere.

Its digest names its path in a sandbox (`claim.worker_path`), so a dispatcher can tell an outdated worker from its
own, and bring its own along. Standard library only.
"""

from __future__ import annotations

import functools
import hashlib
import io
import zipfile
from pathlib import Path
from typing import Final

from image.session.claim import CLAIM_VARIABLE, STATE_VARIABLE, USER_VARIABLE

_EPOCH: Final = (1980, 1, 1, 0, 0, 0)  # the earliest date that a zip file knows
_REGULAR_FILE: Final = 0o100644 << 16

# Python puts the archive itself on the module path, so the modules keep the names they have here.
_MAIN: Final = (
    "from image.session.worker.__main__ import main\n\n"
    f"main({CLAIM_VARIABLE!r}, {STATE_VARIABLE!r}, {USER_VARIABLE!r})\n"
).encode()
_PACKAGES: Final = (
    "image/__init__.py",
    "image/session/__init__.py",
    "image/session/claim.py",
    "image/session/setup.py",
)


@functools.cache
def build_archive() -> bytes:
    """The worker program, for `python -I worker-XXXX.pyz`. Not compressed, since compressors differ and the whole is
    small."""
    root = Path(__file__).resolve().parents[2]
    files = {name: (root / name).read_bytes() for name in _PACKAGES}
    for module in (root / "image/session/worker").glob("*.py"):
        files[module.relative_to(root).as_posix()] = module.read_bytes()
    files["__main__.py"] = _MAIN
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = _REGULAR_FILE
            entry.create_system = 3  # Unix, whatever built it
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def digest(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()
