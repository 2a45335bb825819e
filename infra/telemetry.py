"""What a deployment hands over for OpenTelemetry: the standard OTEL_* variables (docs/observability.md)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Final
from urllib.parse import urlsplit

from shared.errors import SettingsError
from shared.otel import SECRETS, exporters
from shared.secret import Secret

_SECRET_LIKE: Final = re.compile("HEADERS|PASSWORD|TOKEN|SECRET")


def variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Every OTEL_* that is set and holds no secret. What looks like one and is not in shared.otel.SECRETS stays here:
    no exporter of ours reads it. Raises SettingsError for an address with a credential in it."""
    found = {
        name: text
        for name in sorted(environ)
        if name.startswith("OTEL_") and not _SECRET_LIKE.search(name) and (text := environ[name].strip())
    }
    for name, text in found.items():
        if name.endswith("_ENDPOINT") and _has_credential(text):
            raise SettingsError(
                f"{name} must be an address without a credential: put that into OTEL_EXPORTER_OTLP_HEADERS"
            )
    return found


def secrets(environ: Mapping[str, str]) -> dict[str, str]:
    """By value, for a place that cannot read what a reference names. Raises SecretUnavailable."""
    return {name: Secret(name, text).reveal() for name in SECRETS if (text := environ.get(name, "").strip())}


def collectors(environ: Mapping[str, str]) -> Iterator[str]:
    """The addresses that something is sent to by OTLP. Raises SettingsError."""
    for signal in ("TRACES", "METRICS"):
        if "otlp" in exporters(environ, signal):
            own, common = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"
            address = environ.get(own, "").strip() or environ.get(common, "").strip()
            if address:
                yield address


def exports(environ: Mapping[str, str]) -> bool:
    """Whether these variables have something sent or shown, which takes the SDK. Raises SettingsError."""
    return bool(exporters(environ, "TRACES") or exporters(environ, "METRICS"))


def _has_credential(address: str) -> bool:
    try:
        return "@" in urlsplit(address).netloc
    except ValueError:
        return True
