"""The offline platform's admin API, as a command has need of it: in place of the Console, which is clicked by hand."""

from __future__ import annotations

from typing import Final

from infra.cli.environ import Loaded
from infra.local.admin_client import AdminClient
from infra.local.platform import CLAUDE_ADMIN

HOW_TO_REACH_IT: Final = f"export HANDS_OFFLINE_ENV, which make up prints, or {CLAUDE_ADMIN} of the file that it names"


def console(loaded: Loaded) -> AdminClient | None:
    """Of the Claude side. None with the real services, and where the platform's admin token is not at hand."""
    token = loaded.environ.get(CLAUDE_ADMIN, "").strip()
    return AdminClient(loaded.environ["ANTHROPIC_BASE_URL"], token) if loaded.offline and token else None
