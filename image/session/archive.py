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

# Python puts the archive itself on the module path, so the modules keep the names they have here. An image has them
# beside it as well, with their byte code, which an archive for any Python cannot have; else the archive's are used.
_MAIN: Final = (
    "import sys\n\n"
    'place, _, name = sys.argv[0].rpartition("/worker-")\n'
    'sys.path.insert(0, place + "/modules-" + name.removesuffix(".pyz"))\n\n'
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
    files = {**_modules(), "__main__.py": _MAIN}
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = _REGULAR_FILE
            entry.create_system = 3  # Unix, whatever built it
            archive.writestr(entry, files[name])
    return buffer.getvalue()


def unpack_modules(directory: Path) -> None:
    """The archive's modules into a new folder, with the byte code of this Python."""
    import compileall  # a cold start of the functions has no use for them
    from py_compile import PycInvalidationMode

    for name, text in _modules().items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text)
    compileall.compile_dir(directory, quiet=2, invalidation_mode=PycInvalidationMode.UNCHECKED_HASH)


def _modules() -> dict[str, bytes]:
    root = Path(__file__).resolve().parents[2]
    files = {name: (root / name).read_bytes() for name in _PACKAGES}
    for module in (root / "image/session/worker").glob("*.py"):
        files[module.relative_to(root).as_posix()] = module.read_bytes()
    return files


def digest(data: bytes) -> str:
    """SHA-256, hex."""
    return hashlib.sha256(data).hexdigest()
