"""What a server sandbox is to be: its size, its doors, its code, and what it is told.

It is told what the table of settings lists (shared/settings_table.py) and OpenTelemetry's own variables; nothing else
of this machine's environment: not the API key, which no server needs.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import urlsplit

from image.server.code import code_digest, source_files
from image.server.definition import BROUGHT, DEFAULT_NAME, folder_name, lock
from infra import operator_code, telemetry
from infra.sandbox.told import check, told
from shared.errors import SettingsError
from shared.setting_kinds import LOOPBACK, Text, Texts, Whole
from shared.settings import Settings


class ServerSettings:
    """The server that lives in a sandbox (docs/deploy/sandbox.md)"""

    WEBHOOK_SANDBOX_IMAGE_NAME = Text(DEFAULT_NAME, "Its image.")
    WEBHOOK_SANDBOX_TIMEOUT_SECONDS = Whole(
        300, "Idle time after which it is suspended, from the last request to it.", unit="seconds"
    )
    WEBHOOK_SANDBOX_PORT = Whole(5051, "Its port; offline any that is free.", unit="port")
    WEBHOOK_SANDBOX_ALLOW_OUT = Texts((), "Hosts that it may reach beside both services; * opens it to all.")


TIMEOUT: Final = ServerSettings.WEBHOOK_SANDBOX_TIMEOUT_SECONDS.name
IMAGE: Final = ServerSettings.WEBHOOK_SANDBOX_IMAGE_NAME.name
PORT: Final = ServerSettings.WEBHOOK_SANDBOX_PORT.name
ALLOW_OUT: Final = ServerSettings.WEBHOOK_SANDBOX_ALLOW_OUT.name
PROCESS: Final = "server-"
"""Names of server processes begin so; the digest of code and settings follows."""


@dataclass(frozen=True, slots=True)
class ServerPlan:
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
    lock: bytes = field(repr=False)
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


def plan_from(environ: Mapping[str, str]) -> ServerPlan:
    """Raises SettingsError, and SecretUnavailable for a secret that cannot be read here."""
    settings = Settings.from_environ(environ)
    check(settings)
    variables, environments_file = told(settings, environ)
    offline = urlsplit(settings.tensorlake_url).hostname in LOOPBACK
    own = operator_code.carried(environ, settings, "a sandbox")
    files = {**own.files, **source_files()}
    port = ServerSettings.WEBHOOK_SANDBOX_PORT
    return ServerPlan(
        settings=settings,
        image=ServerSettings.WEBHOOK_SANDBOX_IMAGE_NAME.read(environ),
        timeout_seconds=_whole(environ, ServerSettings.WEBHOOK_SANDBOX_TIMEOUT_SECONDS),
        port=None if offline and not port.text(environ) else _whole(environ, port),
        hosts=_hosts(
            settings,
            (*_collectors(environ), *_target(settings), *ServerSettings.WEBHOOK_SANDBOX_ALLOW_OUT.read(environ)),
        ),
        variables=variables,
        environments_file=environments_file,
        files=files,
        lock=server_lock(own),
        code=code_digest(files),
    )


def server_lock(own: operator_code.CarriedCode) -> bytes:
    """What the server's image installs. Raises SettingsError."""
    return operator_code.joined(lock().decode(), own.requirements).encode()


def _hosts(settings: Settings, more: tuple[str, ...]) -> tuple[str, ...]:
    """The two API hosts, the host that the SDK talks to in place of the second, and what was asked for."""
    if "*" in more:
        return ("*",)
    tensorlake = urlsplit(settings.tensorlake_url).hostname or ""
    hosts = [urlsplit(settings.anthropic_url).hostname or "", tensorlake, *more]
    if tensorlake.startswith("api."):  # docs/wire/tensorlake.md#21-which-host-goes-where
        hosts.append(f"sandbox.{tensorlake.removeprefix('api.')}")
    return tuple(dict.fromkeys(hosts))


def _target(settings: Settings) -> Iterator[str]:
    if settings.outputs is not None and (host := urlsplit(settings.outputs.to).hostname):
        yield host


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


def _whole(environ: Mapping[str, str], setting: Whole) -> int:
    name, text = setting.name, setting.text(environ) or str(setting.default)
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 86_400:
        raise SettingsError(f"{name} must be a whole number from 1 to 86400")
    return int(text)
