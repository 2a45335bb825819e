"""`build`: the image of the session sandboxes, built and registered under SANDBOX_IMAGE_NAME.

The same code builds against the real service and against the offline platform, which applies the files of the image
and runs none of its commands.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import Any

from image.session.definition import BadRecipe, recipe_from
from image.session.definition import build as build_recipe
from infra.cli.environ import Loaded
from infra.cli.tools import own_tools
from infra.sandbox.account import Account
from shared.errors import SettingsError
from shared.secret import Secret
from shared.telemetry import LONGEST_MESSAGE
from shared.texts import printable
from shared.unanswered import unanswered, was_not_sent


def build(loaded: Loaded) -> int:
    """0 when the image is registered, 1 when the build failed. Raises SettingsError."""
    key = Secret("TENSORLAKE_API_KEY", loaded.need("TENSORLAKE_API_KEY", "create one in the Tensorlake console"))
    from tensorlake.image.sandbox_builder import SandboxImageError

    try:
        recipe = recipe_from(loaded.environ, own_tools(loaded.environ))
    except BadRecipe as error:
        raise SettingsError(str(error)) from None
    print(
        f"Building {recipe.name!r} on {loaded.where}; minutes the first time on the real service ...", file=sys.stderr
    )
    began = time.monotonic()
    try:
        record = build_recipe(
            recipe,
            api_key=key.reveal(),
            api_url=loaded.environ.get("TENSORLAKE_API_URL", "").strip() or None,
            emit=progress,
        )
    except BadRecipe as error:
        raise SettingsError(str(error)) from None
    except SandboxImageError as error:
        print(f"The build failed: {why(error, loaded)}", file=sys.stderr)
        return 1
    for entry in recipe.tools.entries:
        print(f"  {entry.kind.value} tool {entry.name}")
    print(f"Registered {record.get('name', recipe.name)!r} in {time.monotonic() - began:.1f} s.")
    return 0


def why(error: Exception, loaded: Loaded) -> str:
    """Why a build failed."""
    return unanswered(error, Account.from_environ(loaded.environ).api_url) if was_not_sent(error) else str(error)


def progress(event: Mapping[str, Any]) -> None:
    """Shows what a build says of itself."""
    message = event.get("message")
    if isinstance(message, str) and message.strip():
        print(f"  {printable(message.rstrip(), LONGEST_MESSAGE)}", file=sys.stderr, flush=True)
