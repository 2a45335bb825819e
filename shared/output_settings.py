"""Where outputs are collected to, as the variables say it. A cold start that collects nothing does not import this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.secret import Secret
from shared.setting_kinds import LOOPBACK
from shared.settings_table import Outputs, Sandboxes


class OutputSettings(NamedTuple):
    """to: a target that `shared/outputs/stores.py` knows. signature: the query of one by https. folder: in a sandbox.
    seconds: bounds one look. largest: bytes of a file. patience: seconds that a failing target delays an end."""

    to: str
    signature: Secret | None
    folder: str
    seconds: float
    largest: int
    patience: float


def read_outputs(environ: Mapping[str, str]) -> OutputSettings:
    """Raises SettingsError."""
    if not Sandboxes.RESUME_SUSPENDED_SESSIONS.read(environ):
        raise SettingsError("OUTPUTS_TO needs RESUME_SUSPENDED_SESSIONS: sleepers would be ended with their outputs")
    folder = Outputs.OUTPUTS_DIR.read(environ)
    if not folder.startswith("/") or ".." in folder.split("/"):
        raise SettingsError("OUTPUTS_DIR must be an absolute path in the sandbox")
    return OutputSettings(
        to=_target(Outputs.OUTPUTS_TO.read(environ)),
        signature=Outputs.OUTPUTS_SIGNATURE.read(environ),
        folder=folder.rstrip("/") or "/",
        seconds=Outputs.OUTPUTS_SECONDS.read(environ),
        largest=Outputs.OUTPUTS_FILE_MB.read(environ) * 1_000_000,
        patience=Outputs.OUTPUTS_PATIENCE_SECONDS.read(environ),
    )


def _target(target: str) -> str:
    """Raises SettingsError."""
    parts = urlsplit(target)
    match parts.scheme:
        case "file" if not parts.netloc and parts.path.startswith("/") and not parts.query:
            return target
        case "s3" | "gs" if parts.netloc and not parts.query:
            return target
        case "https" if parts.hostname and not parts.username and not parts.query:
            return target
        case "http" if parts.hostname in LOOPBACK and not parts.username and not parts.query:
            return target
    raise SettingsError(
        "OUTPUTS_TO must be file:///folder, s3://bucket/prefix, gs://bucket/prefix, or an https address that takes "
        "PUT, whose query goes into OUTPUTS_SIGNATURE"
    )
