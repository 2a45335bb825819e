"""The variables that commands read and functions do not, in the manner of shared/settings_table.py."""

from __future__ import annotations

from typing import Any, Final

from image.session.definition import DEFAULT_BASE, DEFAULT_GIT_EMAIL, DEFAULT_GIT_NAME
from infra.aws import plan as aws
from infra.cli.agents import DEFAULT_MODEL
from infra.gcp import plan as gcp
from infra.operator_code import OperatorCode
from infra.sandbox.plan import ServerSettings
from shared.setting_kinds import Address, Choice, Flag, Key, KeyKind, Setting, Text, Texts
from shared.settings_table import SECTIONS, settings_of


class Commands:
    """The command line"""

    ANTHROPIC_API_KEY = Key(
        KeyKind.API, "For agent, session, repair and doctor. No function needs it; no sandbox ever sees it."
    )
    ANTHROPIC_AGENT_ID = Text("", "The agent of new sessions, as `make agent` prints it.")
    ANTHROPIC_AGENT_MODEL = Text(DEFAULT_MODEL, "The model of `make agent`.")
    ANTHROPIC_WORKSPACE_ID = Text("", "Makes `make session` print a link into the Console.")
    TENSORLAKE_ORGANIZATION_ID = Text(
        "", "Makes `make cost` tell what sandboxes used and cost, too (docs/ui.md#what-it-costs)."
    )
    FUNCTIONS_URL = Address("", "Where the functions are served: tick, fork and doctor ask there.")
    WEBHOOK_URL = Address("", "The address of the webhook, which doctor probes. Default: the server sandbox's.")
    OFFLINE = Flag(False, "1: use the offline platform in spite of keys (docs/offline.md).")
    HANDS_OFFLINE_ENV = Text("", "The file of another offline platform than the first.")


class Images:
    """Building images"""

    SANDBOX_IMAGE_BASE = Text(DEFAULT_BASE, "What `make build` builds on: a Debian or Ubuntu image.")
    SANDBOX_DOCKERFILE = Text(
        "", "A Dockerfile of your own that `make build` goes on from, its folder as the build context."
    )
    SANDBOX_IMAGE_VARIANT = Choice(("full", "slim"), "slim leaves out compilers, Node and most tools.")
    SANDBOX_PACKAGES = Texts((), "Further apt packages of the image, with =version if need be.")
    SANDBOX_PIP_PACKAGES = Text(
        "", "Packages of pip for the agent's Python, with versions if need be, or file:PATH of a requirements file."
    )
    SANDBOX_NPM_PACKAGES = Text(
        "", "Packages of npm for the agent, with @version if need be, or file:PATH of a package-lock.json."
    )
    SANDBOX_GIT_NAME = Text(DEFAULT_GIT_NAME, "Who commits in a sandbox, where a repository does not say otherwise.")
    SANDBOX_GIT_EMAIL = Text(DEFAULT_GIT_EMAIL, "The address for that.")
    SANDBOX_SEED_REPOSITORY = Text("", "A repository that `make build` puts into the workspace of the image.")
    SANDBOX_SEED_REVISION = Text("", "Its branch or tag.")
    SANDBOX_TOOLS = Text(
        "", "A folder of Python files with tools of your own, which `make build` puts into the image (docs/tools.md)."
    )
    SANDBOX_PRIVATE_TOOLS = Text(
        "", "The same for tools that run as another user than the agent, with what TOOL_SECRETS names."
    )
    SANDBOX_MCP = Text("", "A JSON file with `mcpServers`, whose tools are served beside them.")


ALL_SECTIONS: Final = (*SECTIONS, ServerSettings, Commands, Images, aws.AwsDeployment, gcp.GcpDeployment, OperatorCode)
ALL: Final[tuple[Setting[Any], ...]] = settings_of(*ALL_SECTIONS)
