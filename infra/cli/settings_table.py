"""The variables that commands read and functions do not, in the manner of shared/settings_table.py."""

from __future__ import annotations

from shared.settings_table import Address, Key, KeyKind, Text


class Commands:
    """The command line"""

    ANTHROPIC_API_KEY = Key(
        KeyKind.API, "For agent, session, repair and doctor. No function needs it; the sandboxes never see it."
    )
    ANTHROPIC_AGENT_ID = Text("", "The agent of new sessions, as `make agent` printed it.")
    ANTHROPIC_WORKSPACE_ID = Text("", "The workspace that doctor expects.")
    WEBHOOK_URL = Address("", "Where doctor finds on_run_started.")
    FUNCTIONS_URL = Address("", "Where the functions are, for doctor and fork.")
