"""What a server sandbox is to be: its size, its doors, its code, and what it is told.

It is told what the table of settings lists (shared/settings_table.py), each secret by its value (a reference such as
`file:` means nothing there), and OpenTelemetry's own variables; nothing else of this machine's environment: not the API
key, which no server needs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from functions.server.scheduler import EVERY_SECONDS
from image.server.code import code_digest, source_files
from image.server.definition import BROUGHT, DEFAULT_NAME, folder_name
from infra import operator_code, telemetry
from shared.errors import SettingsError
from shared.settings import Settings
from shared.settings_table import LOOPBACK, Text, Texts, Whole, handed_over


class ServerSandbox:
    """The server that lives in a sandbox (docs/deploy/sandbox.md)"""

    WEBHOOK_SANDBOX_IMAGE_NAME = Text(DEFAULT_NAME, "Its image.")
    WEBHOOK_SANDBOX_TIMEOUT_SECONDS = Whole(
        300, "Idle time after which it is suspended, from the last request to it.", unit="seconds"
    )
    WEBHOOK_SANDBOX_PORT = Whole(5051, "Its port; offline any that is free.", unit="port")
    WEBHOOK_SANDBOX_ALLOW_OUT = Texts((), "Hosts that it may reach beside both services; * opens it to all.")


TIMEOUT: Final = ServerSandbox.WEBHOOK_SANDBOX_TIMEOUT_SECONDS.name
IMAGE: Final = ServerSandbox.WEBHOOK_SANDBOX_IMAGE_NAME.name
PORT: Final = ServerSandbox.WEBHOOK_SANDBOX_PORT.name
ALLOW_OUT: Final = ServerSandbox.WEBHOOK_SANDBOX_ALLOW_OUT.name
PROCESS: Final = "server-"
"""Names of server processes begin so; the digest of code and settings follows."""
_ALSO: Final = ("NO_PROXY", "no_proxy")


@dataclass(frozen=True, slots=True)
class Plan:
    """`variables` is the server's whole environment, but for its sandbox's name. `hosts`: what it must reach, or `*`.

    `port` is a new sandbox's: one that exists keeps its own, since its URL has it. None: any that is free there (the
    offline platform, where all sandboxes share this machine's ports).
    """

    settings: Settings = field(repr=False)
    image: str
    timeout_seconds: int
    port: int | None
    hosts: tuple[str, ...]
    variables: Mapping[str, str] = field(repr=False)
    environments_file: str
    files: Mapping[str, bytes] = field(repr=False)
    code: str

    @property
    def offline(self) -> bool:
        return urlsplit(self.settings.tensorlake_url).hostname in LOOPBACK

    @property
    def folder(self) -> str:
        """The name of the folder with the code."""
        return folder_name(self.code)

    @property
    def environments_path(self) -> str:
        return f"{BROUGHT}/environments-{hashlib.sha256(self.environments_file.encode()).hexdigest()[:16]}.toml"

    def process(self, port: int) -> str:
        """The name of the server's process on this port. It holds a digest of code, variables and port, so a changed
        setting, a rotated key and new code give another name; under the Tensorlake key, so that no guess at a weak
        secret can be checked against it."""
        told = json.dumps([self.code, sorted(self.variables.items()), self.environments_file, port])
        key = self.settings.tensorlake_key.reveal().encode(errors="surrogateescape")
        return PROCESS + hmac.new(key, told.encode(), hashlib.sha256).hexdigest()[:24]

    def notes(self) -> Iterator[str]:
        """What is allowed and may surprise."""
        longest = self.settings.drain.deadline + self.settings.reconcile.deadline
        if self.timeout_seconds < longest:
            yield (
                f"{TIMEOUT}={self.timeout_seconds} is shorter than a tick may take ({longest:g} s): work in hand "
                "when the sandbox falls asleep waits until something wakes it"
            )
        if self.settings.functions_token is None:
            yield "FUNCTIONS_TOKEN is not set: no schedule can call /poll_tick from outside, and no race be asked for"


def plan_from(environ: Mapping[str, str]) -> Plan:
    """Raises SettingsError, and SecretUnavailable for a secret that cannot be read here."""
    settings = Settings.from_environ(environ)
    operator_code.refuse(settings, "a sandbox")
    if settings.drain_mode == "enqueue":
        raise SettingsError("DRAIN_MODE=enqueue is for functions: a server in a sandbox drains by itself")
    variables = handed_over(environ, "operator", "deployment")
    variables |= {name: environ[name] for name in _ALSO if environ.get(name, "").strip()}
    variables |= {"TENSORLAKE_API_KEY": settings.tensorlake_key.reveal()}
    variables |= telemetry.variables(environ) | telemetry.secrets(environ)
    if settings.functions_token is not None:
        variables["FUNCTIONS_TOKEN"] = settings.functions_token.reveal()
    if settings.signing_keys:
        variables["ANTHROPIC_WEBHOOK_SIGNING_KEY"] = ",".join(key.reveal() for key in settings.signing_keys)
    if settings.races.webhook_key is not None:
        variables["RACE_WEBHOOK_SIGNING_KEY"] = settings.races.webhook_key.reveal()
    environments_file = ""
    if variables.pop("ENVIRONMENTS_FILE", ""):
        variables.pop("ANTHROPIC_ENVIRONMENT_ID", None)
        environments_file = _environments_file(settings)
        keys = [each.key.reveal() for each in settings.environments.values()]
        variables |= {f"HANDS_ENVIRONMENT_KEY_{number}": key for number, key in enumerate(keys)}
    else:
        (environment,) = settings.environments.values()
        variables["ANTHROPIC_ENVIRONMENT_KEY"] = environment.key.reveal()
    variables.setdefault("SELF_TICK_SECONDS", f"{EVERY_SECONDS:g}")
    variables.setdefault("LOG_FORMAT", "json")
    offline = urlsplit(settings.tensorlake_url).hostname in LOOPBACK
    files = source_files()
    port = ServerSandbox.WEBHOOK_SANDBOX_PORT
    return Plan(
        settings=settings,
        image=ServerSandbox.WEBHOOK_SANDBOX_IMAGE_NAME.read(environ),
        timeout_seconds=_whole(environ, ServerSandbox.WEBHOOK_SANDBOX_TIMEOUT_SECONDS),
        port=None if offline and not port.text(environ) else _whole(environ, port),
        hosts=_hosts(settings, (*_collectors(environ), *ServerSandbox.WEBHOOK_SANDBOX_ALLOW_OUT.read(environ))),
        variables=variables,
        environments_file=environments_file,
        files=files,
        code=code_digest(files),
    )


def _hosts(settings: Settings, more: tuple[str, ...]) -> tuple[str, ...]:
    """The two API hosts, the host that the SDK talks to in place of the second, and what was asked for."""
    if "*" in more:
        return ("*",)
    tensorlake = urlsplit(settings.tensorlake_url).hostname or ""
    hosts = [urlsplit(settings.anthropic_url).hostname or "", tensorlake, *more]
    if tensorlake.startswith("api."):  # docs/wire/tensorlake.md#21-which-host-goes-where
        hosts.append(f"sandbox.{tensorlake.removeprefix('api.')}")
    return tuple(dict.fromkeys(hosts))


def _collectors(environ: Mapping[str, str]) -> Iterator[str]:
    """The hosts of the collectors. Raises SettingsError."""
    for address in telemetry.collectors(environ):
        try:
            host = urlsplit(address).hostname
        except ValueError:
            host = None
        if not host:
            raise SettingsError("OTEL_EXPORTER_OTLP_ENDPOINT must be an address such as https://collector.example:4318")
        yield host


def _environments_file(settings: Settings) -> str:
    """ENVIRONMENTS_FILE for the server, without a key in it. JSON's texts, numbers and lists are TOML's, too."""
    lines: list[str] = []
    for number, each in enumerate(settings.environments.values()):
        table = {
            "key": f"env:HANDS_ENVIRONMENT_KEY_{number}",
            "image": each.image,
            "cpus": each.cpus,
            "memory_mb": each.memory_mb,
            "disk_mb": each.disk_mb,
            "timeout_seconds": each.timeout_seconds,
            "allow_out": list(each.egress.allow) or ["*"],
        }
        lines.append(f"[environments.{json.dumps(each.id)}]")
        lines += [f"{name} = {json.dumps(value)}" for name, value in table.items()]
    return "\n".join([*lines, ""])


def _whole(environ: Mapping[str, str], setting: Whole) -> int:
    name, text = setting.name, setting.text(environ) or str(setting.default)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 86_400:
        raise SettingsError(f"{name} must be a whole number from 1 to 86400")
    return int(text)
