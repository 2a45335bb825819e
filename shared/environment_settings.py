"""The environments that are served: one that plain variables describe, or several of ENVIRONMENTS_FILE
(shared/environments_file.py). A cold start reads them: settings.py says what follows from that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

from shared.egress import EgressPolicy
from shared.errors import SettingsError
from shared.operator_code import NAMED
from shared.secret import Secret
from shared.setting_kinds import Choice, Pairs, Setting, Text, Texts
from shared.settings_table import TABLE, Services, SessionStart, Workers

if TYPE_CHECKING:
    from image.session.setup import SetupPolicy

_FILE_KEYS: Final = {each.file_key: each for each in TABLE if each.file_key}
_USUAL_SETUP: Final = {
    name: list(each.default) if isinstance(each, Texts) else each.default
    for name, each in _FILE_KEYS.items()
    if name.startswith("setup_")
}


class Environment(NamedTuple):
    """One self-hosted environment and the sandboxes of its sessions."""

    id: str
    key: Secret
    image: str
    cpus: float
    memory_mb: int
    disk_mb: int
    timeout_seconds: int
    egress: EgressPolicy
    hosts_added: tuple[str, ...] = ()  # to the list of hosts that was given, since nothing works without them
    pool: str = ""
    """Id of the pool that new sandboxes are claimed from; empty: each is created."""
    setup_given: SetupPolicy | None = None
    """What is said of set-ups, where that is more than who may ask for what."""
    setup_callers: tuple[str, ...] = ()
    """What callers may ask for where nothing else is said."""
    setup_stores: tuple[str, ...] = ()
    """Prefixes of objects that are signed for a session."""
    setup_credentials: str = ""
    """`module:function` that gives a repository's credential, or `entry-point:NAME` of the group
    serverless_hands.credentials."""
    prepared_seconds: float = 0.0
    """How long a prepared start is new; 0: sessions start from none."""
    prepared_by_ticks: bool = False
    tool_secrets: Mapping[str, Secret] = MappingProxyType({})

    @property
    def setup(self) -> SetupPolicy | None:
        """None: nothing is made ready, and callers may ask for nothing."""
        if self.setup_given is not None or not self.setup_callers:
            return self.setup_given
        from image.session.setup import SetupPolicy  # a cold start that refuses its caller does without it

        return SetupPolicy(callers=self.setup_callers, hosts=self.egress.allow or None)


def read_environments(environ: Mapping[str, str], reached: Sequence[str]) -> Mapping[str, Environment]:
    """`reached`: addresses that every sandbox has business with, or empty texts."""
    keyed = Services.ANTHROPIC_ENVIRONMENT_KEY
    defaults: dict[str, Any] = {name: each.read(environ) for name, each in _FILE_KEYS.items() if each is not keyed}
    needed = tuple(host for url in reached if (host := urlsplit(url).hostname))
    for name in [name for name, each in _FILE_KEYS.items() if isinstance(each, Texts)]:
        defaults[name] = list(defaults[name])
    file = Services.ENVIRONMENTS_FILE.read(environ)
    if file:
        from shared.environments_file import tables

        return {id_: _environment(id_, defaults | table, needed) for id_, table in tables(file).items()}
    id_ = Services.ANTHROPIC_ENVIRONMENT_ID.required(
        environ, "the id of your self-hosted environment, from the Console"
    )
    keyed.required(environ, "generate one on the environment's page in the Console")
    key = keyed.text(environ)
    return {id_: _environment(id_, defaults | {"key": key}, needed)}


def _environment(id_: str, table: Mapping[str, Any], needed: Sequence[str]) -> Environment:
    """`needed`: hosts that no allow-list takes away. Without the API's no worker could serve, and at the functions' the
    agent's races are asked for."""
    where = f"environment {id_}"
    unknown = sorted(set(table) - _FILE_KEYS.keys())
    if unknown:
        raise SettingsError(f"{where}: unknown setting {unknown[0]}")
    key, hosts = table.get("key"), table["allow_out"]
    if not isinstance(key, str) or not key:
        raise SettingsError(f"{where}: key is missing")
    for name, each in _FILE_KEYS.items():
        _check_kind(where, name, each, table.get(name))
    open_to_all = "*" in hosts
    missing = tuple(dict.fromkeys(host for host in needed if host not in hosts))
    egress = EgressPolicy() if open_to_all else EgressPolicy(allow=(*hosts, *missing))
    secrets = table["tool_secrets"]
    usual = all(table[name] == default for name, default in _USUAL_SETUP.items())
    try:
        return Environment(
            id=id_,
            key=Secret(f"{where}: key", key),
            image=str(table["image"]),
            cpus=float(table["cpus"]),
            memory_mb=int(table["memory_mb"]),
            disk_mb=int(table["disk_mb"]),
            timeout_seconds=int(table["timeout_seconds"]),
            hosts_added=missing if hosts and not open_to_all else (),
            egress=egress,
            pool=_pool(where, table["pool"].strip()),
            setup_given=None if usual else _setup(where, table, egress),
            setup_callers=SessionStart.SETUP_CALLER_KEYS.default if usual else (),
            setup_stores=_stores(where, table["setup_stores"]),
            setup_credentials=_plugin(where, table["setup_credentials"].strip()),
            prepared_seconds=float(table["setup_prepared_seconds"]),
            prepared_by_ticks=bool(table["setup_prepared_by_ticks"]),
            tool_secrets=secrets if isinstance(secrets, Mapping) else Workers.TOOL_SECRETS.parse(str(secrets)),
        )
    except (TypeError, ValueError):
        raise SettingsError(f"{where}: cpus, memory_mb, disk_mb and timeout_seconds must be numbers") from None


def _check_kind(where: str, name: str, setting: Setting[Any], value: object) -> None:
    """A value of ENVIRONMENTS_FILE, or one that has been parsed already. Raises SettingsError."""
    match setting:
        case Texts() if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
            raise SettingsError(f"{where}: {name} must be a list of texts")
        case Pairs() if not isinstance(value, Mapping) or not all(isinstance(each, str) for each in value.values()):
            raise SettingsError(f"{where}: {name} must be a table of texts")
        case Text() if not isinstance(value, str):
            raise SettingsError(f"{where}: {name} must be a text")
        case Choice(choices=choices) if value not in choices:
            raise SettingsError(f"{where}: {name} must be one of {', '.join(choices)}")


def _setup(where: str, table: Mapping[str, Any], egress: EgressPolicy) -> SetupPolicy | None:
    """Raises SettingsError, ValueError where a number is none."""
    wanted = ("setup_repository", "setup_files", "setup_script", "setup_env", "setup_caller_keys")
    if not any(table[each] for each in wanted):
        return None
    from shared.session_setup import read_setup

    return read_setup(where, table, egress)


def _stores(where: str, prefixes: Sequence[str]) -> tuple[str, ...]:
    for prefix in prefixes:
        if not re.fullmatch(r"(s3|gs)://[^/?#]+/([^?#]*/)?", prefix):
            raise SettingsError(f"{where}: setup_stores must be prefixes that end with /: s3://bucket/folder/")
    return tuple(prefixes)


def _pool(where: str, pool: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_-]{0,100}", pool):
        raise SettingsError(f"{where}: pool must be the id of a pool: letters, digits, - and _")
    return pool


def _plugin(where: str, target: str) -> str:
    if target and not re.fullmatch(NAMED, target, re.ASCII):
        raise SettingsError(f"{where}: setup_credentials must be module:function or entry-point:NAME")
    return target
