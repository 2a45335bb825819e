"""What is uploaded: our own modules, a `main.py` where the buildpack looks for it, and locked requirements.

functions-framework is no run-time dependency elsewhere, so its part of the lock is cut out of the users' lock
(image/locks.py).
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Final

from image import locks
from image.server.code import source_files
from infra.operator_code import CarriedCode, joined

FRAMEWORK: Final = "functions-framework"
_NOT_NEEDED: Final = frozenset({"functions/asgi.py", "functions/aws_lambda.py", "functions/lambda_http.py"})
_MAIN: Final = '''"""The buildpack and functions-framework look for the targets here."""

from functions.main import bundle, fork_best_of_n, on_run_started, poll_tick

__all__ = ["bundle", "fork_best_of_n", "on_run_started", "poll_tick"]
'''


def stage(folder: Path, *, extras: Collection[str] = (), own: CarriedCode | None = None) -> Path:
    """Fills an empty folder with everything that is uploaded, and returns it. Raises SettingsError."""
    own = own or CarriedCode()
    files = {name: content for name, content in source_files().items() if name not in _NOT_NEEDED}
    files["main.py"] = _MAIN.encode()
    files["requirements.txt"] = joined(requirements(extras=extras), own.requirements).encode()
    for name, content in (*own.files.items(), *files.items()):
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    return folder


def requirements(*, extras: Collection[str] = ()) -> str:
    """The run-time lock, the framework, and these extras: names, versions, hashes."""
    return locks.requirements(FRAMEWORK, extras=extras)
