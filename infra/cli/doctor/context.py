"""What all checks are given: the settings, the clients, and what kind of place this is."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from infra.cli.environ import CHECKOUT
from infra.sandbox.account import Account
from shared.environment_settings import Environment
from shared.service import Service
from shared.setting_kinds import LOOPBACK
from shared.settings import Settings

if TYPE_CHECKING:
    import httpx2
    from anthropic import AsyncAnthropic

DAEMON_PORT: Final = 9501  # docs/wire/tensorlake.md#510-ports
CALL_SECONDS: Final = 10.0
NO_CLAUDE: Final = "the network, a proxy or `ANTHROPIC_BASE_URL` is at fault and no key: mend it and run doctor again"
NO_TENSORLAKE: Final = (
    "the network, a proxy or `TENSORLAKE_API_URL` is at fault and no key: mend it and run doctor again; have "
    "Tensorlake exempted from what reads TLS"
)
"""The fix where a service does not answer; the catalogue's is for one that refuses a key."""
_ENVIRONMENT_ID: Final = re.compile(r"env_[A-Za-z0-9_-]{1,80}")


@dataclass
class DoctorContext:
    """`url`: the webhook's, "" where none was given: then a server sandbox's, if there is one. `offline`: both services
    are stand-ins on this machine.

    now: seconds since the epoch.
    """

    environ: Mapping[str, str] = field(repr=False)
    settings: Settings = field(repr=False)
    offline: bool
    url: str = ""
    daemon_port: int = DAEMON_PORT
    now: Callable[[], float] = time.time
    locks: Path = CHECKOUT / "requirements"
    certified: Path | None = None
    """Where certifications are; None: where `make certify` writes them."""

    @cached_property
    def service(self) -> Service:
        return Service(self.settings)

    def about(self, environment: Environment) -> str:
        """What a finding begins with where there are several environments."""
        return f"{shown_id(environment.id)}: " if len(self.settings.environments) > 1 else ""

    async def aclose(self) -> None:
        if "service" in self.__dict__:
            await self.service.aclose()


def account_of(context: DoctorContext) -> Account:
    """Whose sandboxes are looked at, the server's among them."""
    settings = context.settings
    return Account(settings.tensorlake_url, settings.tensorlake_key, settings.prefix)


def shown_id(environment_id: str) -> str:
    """The id, unless it is something else that was pasted there."""
    return environment_id if _ENVIRONMENT_ID.fullmatch(environment_id) else "an environment without a proper id"


def is_environment_id(text: str) -> bool:
    return _ENVIRONMENT_ID.fullmatch(text) is not None


def is_loopback(url: str) -> bool:
    return urlsplit(url).hostname in LOOPBACK


def http_client(url: str, **headers: str) -> httpx2.AsyncClient:
    """For calls that no SDK has. Proxies count, but never for this machine; no redirect is followed."""
    import httpx2

    return httpx2.AsyncClient(
        timeout=httpx2.Timeout(CALL_SECONDS), headers=headers, follow_redirects=False, trust_env=not is_loopback(url)
    )


def claude_client(base_url: str, *, key: str | None = None, environment_key: str | None = None) -> AsyncAnthropic:
    from anthropic import AsyncAnthropic

    if environment_key is not None:
        return AsyncAnthropic(auth_token=environment_key, base_url=base_url, timeout=CALL_SECONDS, max_retries=1)
    return AsyncAnthropic(api_key=key, base_url=base_url, timeout=CALL_SECONDS, max_retries=1)
