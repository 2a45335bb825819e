"""Both offline services, wired: one environment with its key, one agent, one image, and the variables to use them.

    with Platform(Options()) as platform:
        subprocess.run(command, env={**os.environ, **platform.environ})

Each service runs in a process of its own and ends with this one, however this one ends. Every key is made at random
for one start, so that nothing of an earlier or another platform works here.
"""

from __future__ import annotations

import base64
import contextlib
import importlib
import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

from image.session.definition import BadRecipe, build, recipe_from
from infra.local.admin_client import AdminClient, AdminError
from infra.local.certification import behaviour_in
from infra.local.discovery import REDIRECTING
from infra.local.process import CannotListen, RunningService, ServiceStartError, listen, start_service

_LONGEST_BUILD: Final = 30.0  # seconds; offline nothing is executed, so it takes a tenth of one
IMAGE_NAME: Final = "agent-cli"
CLAUDE_ADMIN: Final = "OFFLINE_CLAUDE_ADMIN_TOKEN"
TENSORLAKE_ADMIN: Final = "OFFLINE_TENSORLAKE_ADMIN_TOKEN"
_LOOPBACK: Final = "127.0.0.1,localhost"
WEBHOOK_TYPES: Final = (
    "session.status_run_started",
    "session.status_terminated",
    "session.archived",
    "session.deleted",
)
"""What `on_run_started` has a use for: the first wakes it, the others let it clean up at once."""

Isolation = Literal["auto", "overlay", "copy", "plain"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a platform is to be. Port 0 takes a free one. All times are seconds.

    latency: added to every round trip to either service.
    lease_ttl, startup_lease: as the Claude side's knobs; None leaves its defaults.
    claude, tensorlake: further knobs by name (`infra/local/claude/knobs.py`, `infra/local/tensorlake/settings.py`).
    image_root: a folder with the root that sandboxes have (docs/offline.md#an-images-own-root).
    certification: a report of `make certify`, whose service is imitated; the knobs above win.
    reclaim, stranded: R and T, where a test cannot wait for minutes; the times inside R shrink in proportion.
    """

    claude_port: int = 0
    tensorlake_port: int = 0
    isolation: Isolation = "auto"
    data_dir: Path | None = None
    image_root: Path | None = None
    script: Path | None = None
    latency: float = 0.0
    lease_ttl: float | None = None
    startup_lease: float | None = None
    claude: Mapping[str, Any] = field(default_factory=dict)
    tensorlake: Mapping[str, Any] = field(default_factory=dict)
    certification: Path | None = None
    reclaim: float | None = None
    stranded: float | None = None
    build_image: bool = True


def _signing_key() -> str:
    return f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}"


@dataclass(frozen=True, slots=True)
class PlatformKeys:
    """The secrets of one start."""

    api: str = field(default_factory=lambda: _key("sk-ant-api-offline-"), repr=False)
    environment: str = field(default_factory=lambda: _key("sk-ant-oat01-offline-"), repr=False)
    sandboxes: str = field(default_factory=lambda: _key("tl-offline-"), repr=False)
    signing: str = field(default_factory=_signing_key, repr=False)
    functions: str = field(default_factory=lambda: _key("functions-"), repr=False)


class Platform:
    """A context manager: entered, both services run and are wired; left, neither does.

    environ: the variables that point a program at it.
    claude, tensorlake: clients of the two admin APIs.
    isolation: what sandboxes get and what is not enforced, as the service reports it.
    functions_url: where `serve_functions` serves; empty before.

    `start_service` starts each service (process.py).
    """

    def __init__(
        self, options: Options | None = None, start_service: Callable[..., RunningService] = start_service
    ) -> None:
        self.options = options or Options()
        self._start_service = start_service
        if self.options.certification is not None:
            claude, tensorlake = behaviour_in(self.options.certification)
            self.options = replace(
                self.options,
                claude={**claude, **self.options.claude},
                tensorlake={**tensorlake, **self.options.tensorlake},
            )
        self.keys = PlatformKeys()
        self.environ: Mapping[str, str] = {}
        self.isolation: Mapping[str, Any] = {}
        self.functions_url = ""
        self._services: list[RunningService] = []

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """End both services and everything in their sandboxes. Idempotent."""
        services, self._services = self._services, []
        with ThreadPoolExecutor(max_workers=len(services) or 1) as pool:
            list(pool.map(RunningService.stop, services))

    def alive(self) -> bool:
        """False as soon as one of the services has ended."""
        return bool(self._services) and all(service.returncode is None for service in self._services)

    @property
    def urls(self) -> tuple[str, str]:
        """The Claude side's and the Tensorlake side's address."""
        return self.claude.url, self.tensorlake.url

    def why_stopped(self) -> str:
        """The last words of a service that has ended by itself."""
        return "\n".join(service.stderr_tail() for service in self._services if service.returncode is not None)

    def add_webhook(self, url: str, types: tuple[str, ...] = WEBHOOK_TYPES) -> str:
        """Have webhooks sent to this address, signed with the platform's key; returns the endpoint's id."""
        return add_webhook(self.claude, url, self.keys.signing, types)

    def serve_functions(self, port: int = 0, environ: Mapping[str, str] | None = None) -> RunningService:
        """The functions on this machine, in a process of their own, with webhooks sent to them. It ends with us.

        `environ` adds to the variables. Raises ServiceStartError.
        """
        variables = {**dict.fromkeys(REDIRECTING, ""), **self.environ, **(environ or {})}
        service = self._start_service("infra.local.functions_server", ["--port", str(port)], variables)
        self._services.insert(0, service)
        self.functions_url = service.url
        self.add_webhook(f"{service.url}/")
        return service

    def _start(self) -> None:
        for port in filter(None, (self.options.claude_port, self.options.tensorlake_port)):
            try:
                listen("127.0.0.1", port).close()
            except CannotListen as error:
                raise ServiceStartError(str(error)) from None
        # Side by side: each takes about half a second, most of it imports; so does what builds the image.
        with ThreadPoolExecutor(max_workers=3) as pool:
            starts = [pool.submit(self._start_claude), pool.submit(self._start_tensorlake)]
            if self.options.build_image:
                pool.submit(importlib.import_module, "tensorlake.image")
        started = [start.result() for start in starts if start.exception() is None]
        self._services = started
        for start in starts:
            start.result()
        claude, tensorlake = started
        self.claude = AdminClient(claude.url, claude.admin_token)
        self.tensorlake = AdminClient(tensorlake.url, tensorlake.admin_token)
        self.isolation = tensorlake.ready["isolation"]
        self.environ = self._variables(claude, tensorlake)
        if self.options.claude:
            try:
                self.claude.patch("settings", dict(self.options.claude))
            except AdminError as error:
                raise ServiceStartError(f"a knob of the Claude side is wrong: {error}") from None
        if self.options.latency:
            self.tensorlake.put("latency", {"seconds": self.options.latency})
        if self.options.build_image:
            self._build_image()

    def _start_claude(self) -> RunningService:
        options = self.options
        given = {
            "--latency": options.latency or None,
            "--lease-ttl": options.lease_ttl,
            "--startup-lease": options.startup_lease,
            "--script": options.script,
        }
        args = [part for name, value in given.items() if value is not None for part in (name, str(value))]
        keys = {"LOCAL_CLAUDE_API_KEY": self.keys.api, "LOCAL_CLAUDE_ENVIRONMENT_KEY": self.keys.environment}
        return self._start_service("infra.local.claude", ["--port", str(options.claude_port), *args], keys)

    def _start_tensorlake(self) -> RunningService:
        options = self.options
        args = ["--port", str(options.tensorlake_port), "--isolation", options.isolation]
        if options.data_dir is not None:
            args += ["--data-dir", str(options.data_dir)]
        if options.image_root is not None:
            args += ["--image-root", str(options.image_root.absolute())]
        if options.tensorlake:
            args += ["--settings", json.dumps(dict(options.tensorlake))]
        return self._start_service("infra.local.tensorlake", args, {"OFFLINE_TENSORLAKE_API_KEY": self.keys.sandboxes})

    def _build_image(self) -> None:
        from tensorlake.image.sandbox_builder import SandboxImageError

        try:
            build(
                recipe_from(self.environ),
                api_key=self.keys.sandboxes,
                api_url=self.environ["TENSORLAKE_API_URL"],
                timeout=_LONGEST_BUILD,
            )
        except (BadRecipe, SandboxImageError) as error:
            raise ServiceStartError(f"the session image could not be built offline: {error}") from None

    def _variables(self, claude: RunningService, tensorlake: RunningService) -> dict[str, str]:
        return {
            "ANTHROPIC_BASE_URL": claude.url,
            "ANTHROPIC_API_KEY": self.keys.api,
            "ANTHROPIC_AGENT_ID": claude.ready["agent_id"],
            "ANTHROPIC_ENVIRONMENT_ID": claude.ready["environment_id"],
            "ANTHROPIC_ENVIRONMENT_KEY": self.keys.environment,
            "ANTHROPIC_WEBHOOK_SIGNING_KEY": self.keys.signing,
            "TENSORLAKE_API_URL": tensorlake.url,
            "TENSORLAKE_API_KEY": self.keys.sandboxes,
            "SANDBOX_IMAGE_NAME": IMAGE_NAME,
            "FUNCTIONS_TOKEN": self.keys.functions,
            **_scaled_times(self.options.reclaim, self.options.stranded),
            # The SDKs honour a proxy even for this machine (docs/wire/tensorlake.md#25-environment-variables).
            "NO_PROXY": _LOOPBACK,
            "no_proxy": _LOOPBACK,
            CLAUDE_ADMIN: claude.admin_token,
            TENSORLAKE_ADMIN: tensorlake.admin_token,
        }


def add_webhook(claude: AdminClient, url: str, signing_key: str, types: tuple[str, ...] = WEBHOOK_TYPES) -> str:
    endpoint = claude.post("webhooks", {"url": url, "signing_key": signing_key, "types": list(types)})
    return str(endpoint["id"])


@contextlib.contextmanager
def webhooks_to(claude: AdminClient, url: str, signing_key: str) -> Iterator[None]:
    """Webhooks go to `url` inside the block."""
    endpoint = add_webhook(claude, url, signing_key)
    try:
        yield
    finally:
        with contextlib.suppress(AdminError):  # the platform may be gone already
            claude.delete(f"webhooks/{endpoint}")


def _scaled_times(reclaim: float | None, stranded: float | None) -> dict[str, str]:
    """R and T, and inside R the bind and the hand-over in the proportion of the defaults (45 and 30 of 90 s)."""
    if reclaim is None and stranded is None:
        return {}
    r = reclaim if reclaim is not None else 90.0
    t = stranded if stranded is not None else 2 * r
    return {
        "RECLAIM_SECONDS": f"{r:g}",
        "BIND_SECONDS": f"{r * 0.5:g}",
        "HANDOVER_SECONDS": f"{r * 0.33:g}",
        "STRANDED_SECONDS": f"{t:g}",
    }


def _key(prefix: str) -> str:
    return prefix + secrets.token_hex(16)
