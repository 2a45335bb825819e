"""A project's server sandboxes: found by name, since a sandbox has no other mark (docs/wire/tensorlake.md#51-create).

It is a `ServerSandbox` by its name (shared/names.py), so neither dispatcher nor reconciler ever touches one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from infra.sandbox.plan import ServerPlan
from shared import names
from shared.secret import Secret
from shared.setting_kinds import LOOPBACK
from shared.settings import tensorlake_address
from shared.settings_table import Sandboxes, Services

if TYPE_CHECKING:
    from tensorlake.sandbox import Sandbox, SandboxInfo

CALL_SECONDS: Final = 60.0
LONGEST_WAKE: Final = 120.0
_OVER: Final = ("terminated", "failed")
CPUS: Final = 1.0
MEMORY_MB: Final = 1024


@dataclass(frozen=True, slots=True)
class Account:
    """Whose sandboxes. Raises tensorlake's SandboxError where the service cannot be asked."""

    api_url: str
    api_key: Secret
    prefix: str

    @classmethod
    def of(cls, plan: ServerPlan) -> Account:
        return cls(plan.settings.tensorlake_url, plan.settings.tensorlake_key, plan.settings.prefix)

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Account:
        """For looking only: needs no more than the key. Raises SettingsError."""
        key = Services.TENSORLAKE_API_KEY.required(environ, "put it into .env")
        return cls(tensorlake_address(environ), key, Sandboxes.SANDBOX_PREFIX.read(environ))

    def find(self) -> SandboxInfo | None:
        """The server, or None; of several the one that came first, whose URL was told. Wakes nothing."""
        servers = self.servers()
        return servers[0] if servers else None

    def servers(self) -> list[SandboxInfo]:
        """Oldest first."""
        from tensorlake.sandbox import Sandbox

        found = [
            info
            for info in Sandbox.list(**self._sdk())
            if info.status.value not in _OVER
            if isinstance(names.parse(self.prefix, info.name), names.ServerSandbox)
        ]
        return sorted(
            found, key=lambda info: (info.created_at.timestamp() if info.created_at else 0.0, info.name or "")
        )

    def create(self, plan: ServerPlan, port: int) -> Sandbox:
        """A sandbox of a new name, or, where somebody else made one at the same time, that one."""
        from tensorlake.sandbox import Sandbox

        made = Sandbox.create(
            name=names.new_server_name(self.prefix),
            image=plan.image,
            cpus=CPUS,
            memory_mb=MEMORY_MB,
            timeout_secs=plan.timeout_seconds,
            allow_out=None if plan.hosts == ("*",) else list(plan.hosts),
            exposed_ports=[port],
            allow_unauthenticated_access=True,
            **self._sdk(),
        )
        first = self.find()
        if first is None or first.sandbox_id == made.sandbox_id:
            return made
        made.terminate()
        return self.connect(first.sandbox_id)

    def connect(self, sandbox_id: str) -> Sandbox:
        """A handle of one that runs, waking it where it sleeps."""
        from tensorlake.sandbox import Sandbox

        handle = Sandbox.connect(sandbox_id, **self._sdk())
        if handle.status.value in ("suspended", "suspending"):
            handle.resume(timeout=LONGEST_WAKE)
        return handle

    def terminate(self, sandbox_id: str) -> None:
        """Also where somebody else did."""
        from tensorlake.sandbox import Sandbox, SandboxNotFoundError

        with contextlib.suppress(SandboxNotFoundError):
            Sandbox.connect(sandbox_id, **self._sdk()).terminate()

    def url(self, info: SandboxInfo) -> str:
        """Where everybody reaches its port: the webhook's address. Ends with a slash."""
        (port, *_) = info.exposed_ports or (0,)
        if urlsplit(self.api_url).hostname in LOOPBACK:
            return f"{self.api_url}/_ports/{info.name}/{port}/"  # *.localhost does not resolve everywhere
        address = info.url_for_port(port)
        return f"{address.rstrip('/')}/" if address else ""

    def _sdk(self) -> dict[str, Any]:
        return {"api_url": self.api_url, "api_key": self.api_key.reveal(), "request_timeout": CALL_SECONDS}
