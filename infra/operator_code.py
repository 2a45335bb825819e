"""What of the operator's own code a deployment would leave behind."""

from __future__ import annotations

from shared.errors import SettingsError
from shared.settings import Settings


def refuse(settings: Settings, where: str) -> None:
    """Sessions about a private repository would each fail in their set-up. Raises SettingsError."""
    if any(each.setup_credentials for each in settings.environments.values()):
        raise SettingsError(
            f"SETUP_CREDENTIALS: your function is not among what is deployed to {where}; serve where you can install "
            "it (a host, or a container of your own on the Dockerfile)"
        )
