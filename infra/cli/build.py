"""`build`: the image of the session sandboxes, built and registered under SANDBOX_IMAGE_NAME.

The same code builds against the real service and against the offline platform, which applies the files of the image
and runs none of its commands.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from image.session.definition import DEFAULT_BASE, BadRecipe, Recipe
from image.session.definition import build as build_recipe
from infra.cli.environ import Loaded
from shared.errors import SettingsError
from shared.secret import Secret

LONGEST_BUILD = 1800.0
_BASE = "SANDBOX_IMAGE_BASE"
_REPOSITORY = "SANDBOX_SEED_REPOSITORY"
_REVISION = "SANDBOX_SEED_REVISION"


def recipe_from(environ: Mapping[str, str]) -> Recipe:
    """What the variables ask for; empty ones count as not set. Raises SettingsError."""
    try:
        return Recipe(
            name=environ.get("SANDBOX_IMAGE_NAME", "").strip() or "agent-cli",
            base_image=environ.get(_BASE, "").strip() or DEFAULT_BASE,
            seed_repository=environ.get(_REPOSITORY, "").strip() or None,
            seed_revision=environ.get(_REVISION, "").strip() or None,
        )
    except BadRecipe as error:
        raise SettingsError(f"{error} (SANDBOX_IMAGE_NAME, {_BASE}, {_REPOSITORY}, {_REVISION})") from None


def build_session_image(
    environ: Mapping[str, str],
    key: str,
    emit: Callable[[dict[str, Any]], None] | None = None,
    timeout: float = LONGEST_BUILD,
) -> Mapping[str, Any]:
    """Build and register; returns the image's record. `timeout` in seconds.

    Raises SettingsError, and tensorlake's SandboxImageError.
    """
    try:
        return build_recipe(
            recipe_from(environ),
            api_key=key,
            api_url=environ.get("TENSORLAKE_API_URL", "").strip() or None,
            timeout=timeout,
            emit=emit,
        )
    except BadRecipe as error:
        raise SettingsError(str(error)) from None


def build(loaded: Loaded) -> int:
    """0 when the image is registered, 1 when the build failed."""
    key = Secret("TENSORLAKE_API_KEY", loaded.need("TENSORLAKE_API_KEY", "create one in the Tensorlake console"))
    from tensorlake.image.sandbox_builder import SandboxImageError

    name = recipe_from(loaded.environ).name
    print(f"Building {name!r} on {loaded.where}; minutes the first time on the real service ...", file=sys.stderr)
    began = time.monotonic()
    try:
        record = build_session_image(loaded.environ, key.reveal(), _progress)
    except SandboxImageError as error:
        print(f"The build failed: {error}", file=sys.stderr)
        return 1
    print(f"Registered {record.get('name', name)!r} in {time.monotonic() - began:.1f} s.")
    return 0


def _progress(event: Mapping[str, Any]) -> None:
    message = event.get("message")
    if isinstance(message, str) and message.strip():
        print(f"  {message.rstrip()}", file=sys.stderr)
