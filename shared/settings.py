"""Settings: read once from the environment into one frozen object, checked, and passed on.

The plain variables describe one environment, with the names of the reference quickstart. `ENVIRONMENTS_FILE` names a
TOML file that describes several instead:

    [environments.env_01Ab]
    key = "file:/run/secrets/env_01Ab"      # or the key itself, or env:NAME
    image = "agent-cli"                      # the rest falls back to the plain variables
    cpus = 2.0
    memory_mb = 4096
    disk_mb = 25600
    timeout_seconds = 3600
    allow_out = ["api.anthropic.com", "pypi.org"]

Nothing else in the project reads the process's environment, but for secrets that a setting refers to.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, TypeVar
from urllib.parse import urlsplit

from shared import names
from shared.egress import EgressPolicy
from shared.errors import SettingsError
from shared.secret import Secret

ANTHROPIC_URL: Final = "https://api.anthropic.com"
TENSORLAKE_URL: Final = "https://api.tensorlake.ai"
LONGEST_AGENT_RACE: Final = 120.0  # seconds; a tool call gets 150 (contract claude 5), and the rest is for its ends
LOOPBACK: Final = ("localhost", "127.0.0.1")  # exactly these: contract tensorlake 2.1

_JUDGE: Final = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9_-]{0,63})\s*=\s*(?P<target>entry-point:[\w.-]+|[A-Za-z_][\w.]*:[A-Za-z_]\w*)", re.ASCII
)

DrainMode = Literal["auto", "inline", "background", "enqueue"]
Auth = Literal["token", "platform"]
_Choice = TypeVar("_Choice", bound=str)


@dataclass(frozen=True, slots=True)
class Environment:
    """One self-hosted environment and the sandboxes of its sessions."""

    id: str
    key: Secret
    image: str
    cpus: float
    memory_mb: int
    disk_mb: int
    timeout_seconds: int
    egress: EgressPolicy


@dataclass(frozen=True, slots=True)
class ClaimTimes:
    """The claim protocol's times, in seconds. `Settings` checks the order that they must keep.

    reclaim: R, after which an item that was claimed and not acked is offered again; sent on every poll.
    bind: the longest that a sandbox may take to be running.
    handover: the longest from starting the worker to its `ready`.
    stranded: T, the age from which an acked item without a heartbeat counts as stranded.
    poison_age: an item that fails at this age or later is given up, and so is one whose worker has failed
        `poison_attempts` times in its sandbox.
    """

    reclaim: float = 90.0
    bind: float = 45.0
    handover: float = 30.0
    stranded: float = 180.0
    poison_age: float = 21_600.0
    poison_attempts: int = 5

    @property
    def gate(self) -> float:
        """How long a worker asks for the lease of an item that is not acked: longer than T (design 5)."""
        return self.stranded + 60.0 if self.stranded >= 60.0 else self.stranded * 2


@dataclass(frozen=True, slots=True)
class DrainLimits:
    """Bounds of one drain. `deadline` seconds in all; no claim is made later than `deadline - bind - handover`."""

    deadline: float = 110.0
    max_items: int = 500
    concurrency: int = 64
    polls_in_flight: int = 8


@dataclass(frozen=True, slots=True)
class ReconcileTimes:
    """When the reconciler acts, in seconds, and how much it may do in one tick.

    deadline: bound of one pass; it comes on top of the tick's drain.
    idle_grace: from a session's last sign of work until its sandbox is suspended.
    end_grace: from the mark of a sandbox whose session is over until its end, for collecting results.
    retention: how long a sandbox that sleeps is kept.
    """

    deadline: float = 40.0
    idle_grace: float = 30.0
    end_grace: float = 300.0
    retention: float = 604_800.0
    pages: int = 20
    lookups: int = 100
    touches: int = 100


@dataclass(frozen=True, slots=True)
class RaceLimits:
    """Bounds of best-of-N races, whatever a request asks for; `agent_`: of those that an agent asks for itself."""

    max_branches: int = 64
    max_parallel: int = 16
    deadline: float = 900.0
    agent_branches: int = 8
    agent_seconds: float = 120.0
    output_bytes: int = 1_048_576
    artifact_bytes: int = 2_097_152
    judges: Mapping[str, str] = field(default_factory=dict)
    """Plug-ins by name: `module:function`, or `entry-point:NAME` of the group serverless_hands.judges."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the bundle is told. Build it with `from_environ`."""

    environments: Mapping[str, Environment]
    anthropic_url: str
    tensorlake_url: str
    tensorlake_key: Secret
    signing_keys: tuple[Secret, ...]
    functions_token: Secret | None
    prefix: str
    sandbox_user: str
    workdir: str
    max_idle_seconds: float | None
    worker_lifetime: float
    resume_suspended: bool
    drain_mode: DrainMode
    enqueue_to: str
    dry_run: bool
    times: ClaimTimes
    drain: DrainLimits
    reconcile: ReconcileTimes
    races: RaceLimits
    fork_url: str | None = None
    """Where a session's sandbox reaches fork_best_of_n; None where agents may not ask for races."""
    server_sandbox: str = ""
    """Id or name of the sandbox that this very process serves in; empty elsewhere. No race starts from it."""
    self_tick_seconds: float = 0.0
    """How often a long-lived server ticks by itself; 0: never, somebody else's schedule calls it."""
    standstill_seconds: float = 15.0
    """A long-lived server that is so late has slept (functions/server/suspend_detector.py)."""
    auth: Auth = "token"
    """Who is the operator: `platform` also believes Cloud Run's front end (functions/cloud_run_iam.py)."""
    auth_callers: tuple[str, ...] = ()
    auth_own_url: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Raises SettingsError, which names the variable and says what it should be."""
        read = _Reader(environ)
        anthropic_url = _service_url("ANTHROPIC_BASE_URL", read.text("ANTHROPIC_BASE_URL", ANTHROPIC_URL))
        tensorlake_url = tensorlake_address(read.text("TENSORLAKE_API_URL", TENSORLAKE_URL))
        times = ClaimTimes(
            reclaim=read.seconds("RECLAIM_SECONDS", 90.0),
            bind=read.seconds("BIND_SECONDS", 45.0),
            handover=read.seconds("HANDOVER_SECONDS", 30.0),
            stranded=read.seconds("STRANDED_SECONDS", 180.0),
            poison_age=read.seconds("POISON_AGE_SECONDS", 21_600.0),
            poison_attempts=read.whole("POISON_ATTEMPTS", 5),
        )
        drain = DrainLimits(
            deadline=read.seconds("DRAIN_DEADLINE_SECONDS", 110.0),
            max_items=read.whole("DRAIN_MAX_ITEMS", 500),
            concurrency=read.whole("DRAIN_CONCURRENCY", 64),
            polls_in_flight=read.whole("DRAIN_POLLS_IN_FLIGHT", 8),
        )
        _check_times(times, drain)
        drain_mode: DrainMode = read.choice("DRAIN_MODE", "auto", ("auto", "inline", "background", "enqueue"))
        fork_url = _fork_url(read)
        return cls(
            environments=_environments(read, anthropic_url, fork_url),
            anthropic_url=anthropic_url,
            tensorlake_url=tensorlake_url,
            tensorlake_key=read.secret("TENSORLAKE_API_KEY"),
            signing_keys=tuple(
                Secret("ANTHROPIC_WEBHOOK_SIGNING_KEY", key)
                for key in read.text("ANTHROPIC_WEBHOOK_SIGNING_KEY", "").replace(",", " ").split()
            ),
            functions_token=read.secret("FUNCTIONS_TOKEN") if read.text("FUNCTIONS_TOKEN", "") else None,
            prefix=_prefix(read.text("SANDBOX_PREFIX", "hands")),
            sandbox_user=read.text("SANDBOX_USER", "agent"),
            workdir=read.text("SANDBOX_WORKDIR", "/workspace"),
            max_idle_seconds=read.seconds("RUNNER_MAX_IDLE_SECONDS", 60.0) or None,
            worker_lifetime=read.seconds("WORKER_LIFETIME_SECONDS", 86_400.0),
            resume_suspended=read.flag("RESUME_SUSPENDED_SESSIONS", True),
            drain_mode=drain_mode,
            enqueue_to=_enqueue_to(read.text("ENQUEUE_TO", ""), drain_mode),
            dry_run=read.flag("DRY_RUN", False),
            times=times,
            drain=drain,
            reconcile=ReconcileTimes(
                deadline=read.seconds("RECONCILE_SECONDS", 40.0),
                idle_grace=read.seconds("IDLE_GRACE_SECONDS", 30.0),
                end_grace=read.seconds("END_GRACE_SECONDS", 300.0),
                retention=read.seconds("RETENTION_SECONDS", 604_800.0),
                pages=read.whole("RECONCILE_PAGES", 20),
                lookups=read.whole("RECONCILE_LOOKUPS", 100),
                touches=read.whole("RECONCILE_TOUCHES", 100),
            ),
            races=RaceLimits(
                max_branches=read.whole("RACE_MAX_BRANCHES", 64),
                max_parallel=read.whole("RACE_MAX_PARALLEL", 16),
                deadline=read.seconds("RACE_DEADLINE_SECONDS", 900.0),
                agent_branches=read.whole("RACE_AGENT_MAX_BRANCHES", 8),
                agent_seconds=_agent_seconds(read),
                output_bytes=read.whole("RACE_OUTPUT_BYTES", 1_048_576),
                artifact_bytes=read.whole("RACE_ARTIFACT_BYTES", 2_097_152),
                judges=_judges(read.text("RACE_JUDGES", "")),
            ),
            fork_url=fork_url,
            server_sandbox=read.text("SERVER_SANDBOX", ""),
            self_tick_seconds=read.seconds("SELF_TICK_SECONDS", 0.0),
            standstill_seconds=_standstill(read),
            auth=_auth(read),
            auth_callers=tuple(read.text("AUTH_CALLERS", "").replace(",", " ").split()),
            auth_own_url=read.text("AUTH_OWN_URL", "").rstrip("/"),
        )


class _Reader:
    """Typed look-ups in a mapping of texts; an empty text counts as not set."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def text(self, name: str, default: str) -> str:
        return self._environ.get(name, "").strip() or default

    def required(self, name: str, why: str) -> str:
        value = self.text(name, "")
        if not value:
            raise SettingsError(f"{name} is not set: {why}")
        return value

    def secret(self, name: str) -> Secret:
        return Secret(name, self.required(name, "put it into .env or the environment of this process"))

    def whole(self, name: str, default: int) -> int:
        return int(self._number(name, default, whole=True))

    def seconds(self, name: str, default: float) -> float:
        return self._number(name, default, whole=False)

    def _number(self, name: str, default: float, *, whole: bool) -> float:
        text = self.text(name, str(default))
        try:
            value = int(text) if whole else float(text)
        except ValueError:
            value = -1
        if not 0 <= value < math.inf:
            kind = "a whole number" if whole else "a number of seconds"
            raise SettingsError(f"{name} must be {kind} that is not negative")
        return value

    def flag(self, name: str, default: bool) -> bool:
        text = self.text(name, str(default)).lower()
        if text in ("1", "true", "yes", "on"):
            return True
        if text in ("0", "false", "no", "off"):
            return False
        raise SettingsError(f"{name} must be true or false")

    def choice(self, name: str, default: _Choice, choices: tuple[_Choice, ...]) -> _Choice:
        text = self.text(name, default)
        for choice in choices:
            if text == choice:
                return choice
        raise SettingsError(f"{name} must be one of {', '.join(choices)}")


def _fork_url(read: _Reader) -> str | None:
    """None where AGENT_FORK is off. What agents show is derived from FUNCTIONS_TOKEN, so that must be set."""
    url = read.text("FUNCTIONS_PUBLIC_URL", "")
    if not read.flag("AGENT_FORK", False):
        return None
    if not url:
        raise SettingsError("AGENT_FORK is on: set FUNCTIONS_PUBLIC_URL to the functions' address as a sandbox sees it")
    if not read.text("FUNCTIONS_TOKEN", ""):
        raise SettingsError("AGENT_FORK is on: set FUNCTIONS_TOKEN, from which the agents' tokens are derived")
    return f"{_service_url('FUNCTIONS_PUBLIC_URL', url)}/fork_best_of_n"


def _auth(read: _Reader) -> Auth:
    """`platform` only where the runtime may know who calls, and where that it does can be tried."""
    auth: Auth = read.choice("AUTH", "token", ("token", "platform"))
    if auth == "token":
        return auth
    service = read.required("K_SERVICE", "AUTH=platform is for Cloud Run, which sets it; elsewhere use AUTH=token")
    read.required("AUTH_CALLERS", "AUTH=platform needs the e-mail addresses of the identities that may call")
    url = read.required("AUTH_OWN_URL", "AUTH=platform needs this service's own run.app address, to ask it namelessly")
    parts = urlsplit(_service_url("AUTH_OWN_URL", url))
    host = parts.hostname or ""
    if parts.path:
        raise SettingsError("AUTH_OWN_URL must be the bare address, without a path")
    if host not in LOOPBACK and not (host.startswith(f"{service}-") and host.endswith(".run.app")):
        raise SettingsError(f"AUTH_OWN_URL must be the address of this very service: https://{service}-....run.app")
    return auth


def _agent_seconds(read: _Reader) -> float:
    seconds = read.seconds("RACE_AGENT_SECONDS", LONGEST_AGENT_RACE)
    if not 0 < seconds <= LONGEST_AGENT_RACE:
        raise SettingsError(f"RACE_AGENT_SECONDS must be above 0 and at most {LONGEST_AGENT_RACE:g} seconds")
    return seconds


def _standstill(read: _Reader) -> float:
    seconds = read.seconds("STANDSTILL_SECONDS", 15.0)
    if seconds < 1:  # below it the look itself would be most of what the server does
        raise SettingsError("STANDSTILL_SECONDS must be at least 1")
    return seconds


def _environments(read: _Reader, anthropic_url: str, fork_url: str | None) -> Mapping[str, Environment]:
    api_host = urlsplit(anthropic_url).hostname or ""
    fork_host = urlsplit(fork_url).hostname if fork_url else None
    defaults: dict[str, Any] = {
        "image": read.text("SANDBOX_IMAGE_NAME", "agent-cli"),
        "cpus": read.seconds("SANDBOX_CPUS", 2.0),
        "memory_mb": read.whole("SANDBOX_MEMORY_MB", 4096),
        "disk_mb": read.whole("SANDBOX_DISK_MB", 25_600),
        "timeout_seconds": read.whole("SANDBOX_TIMEOUT_SECONDS", 3600),
        "allow_out": read.text("SANDBOX_ALLOW_OUT", api_host).replace(",", " ").split(),
    }
    file = read.text("ENVIRONMENTS_FILE", "")
    if file:
        return {id_: _environment(id_, defaults | table, fork_host) for id_, table in _tables(file).items()}
    id_ = read.required("ANTHROPIC_ENVIRONMENT_ID", "the id of your self-hosted environment, from the Console")
    key = read.required("ANTHROPIC_ENVIRONMENT_KEY", "generate one on the environment's page in the Console")
    return {id_: _environment(id_, defaults | {"key": key}, fork_host)}


def _environment(id_: str, table: Mapping[str, Any], fork_host: str | None = None) -> Environment:
    """`fork_host` is let through beside the hosts of an allow-list: there the agent's races are asked for."""
    where = f"environment {id_}"
    unknown = sorted(set(table) - {"key", "image", "cpus", "memory_mb", "disk_mb", "timeout_seconds", "allow_out"})
    if unknown:
        raise SettingsError(f"{where}: unknown setting {unknown[0]}")
    key, hosts = table.get("key"), table["allow_out"]
    if not isinstance(key, str) or not key:
        raise SettingsError(f"{where}: key is missing")
    if not isinstance(hosts, list) or not all(isinstance(host, str) for host in hosts):
        raise SettingsError(f"{where}: allow_out must be a list of host names")
    open_to_all = "*" in hosts
    if fork_host and hosts and fork_host not in hosts:
        hosts = [*hosts, fork_host]
    try:
        return Environment(
            id=id_,
            key=Secret(f"{where}: key", key),
            image=str(table["image"]),
            cpus=float(table["cpus"]),
            memory_mb=int(table["memory_mb"]),
            disk_mb=int(table["disk_mb"]),
            timeout_seconds=int(table["timeout_seconds"]),
            egress=EgressPolicy() if open_to_all else EgressPolicy(allow=tuple(hosts)),
        )
    except (TypeError, ValueError):
        raise SettingsError(f"{where}: cpus, memory_mb, disk_mb and timeout_seconds must be numbers") from None


def _tables(file: str) -> dict[str, dict[str, Any]]:
    import tomllib  # a cold start with plain variables does without it

    try:
        tables = tomllib.loads(Path(file).read_text(encoding="utf-8")).get("environments")
    except OSError as error:
        raise SettingsError(f"ENVIRONMENTS_FILE cannot be read ({type(error).__name__})") from None
    except ValueError:
        raise SettingsError("ENVIRONMENTS_FILE is not TOML") from None
    if not isinstance(tables, dict) or not tables or not all(isinstance(table, dict) for table in tables.values()):
        raise SettingsError("ENVIRONMENTS_FILE has no table [environments.<environment id>]")
    return tables


def _service_url(name: str, url: str) -> str:
    """An address that a key may be sent to: https, or plain http to this machine alone."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise SettingsError(f"{name} must be an address such as https://host, without user or query")
    if parts.scheme != "https" and parts.hostname not in LOOPBACK:
        raise SettingsError(f"{name} must use https unless its host is exactly localhost or 127.0.0.1")
    return url.rstrip("/")


def tensorlake_address(url: str) -> str:
    """The SDK sends the key to the real cloud for any host that it does not know (contract tensorlake 2.1)."""
    checked = _service_url("TENSORLAKE_API_URL", url)
    host = urlsplit(checked).hostname or ""
    if host not in LOOPBACK and not host.startswith("api."):
        raise SettingsError("TENSORLAKE_API_URL must have a host that begins with api., or localhost or 127.0.0.1")
    return checked


def _enqueue_to(target: str, mode: DrainMode) -> str:
    scheme, _, name = target.partition(":")
    if target and (scheme != "aws-lambda" or not name):
        raise SettingsError("ENQUEUE_TO must be aws-lambda: and the name or ARN of a function")
    if mode == "enqueue" and not target:
        raise SettingsError("ENQUEUE_TO is not set: DRAIN_MODE=enqueue needs to know whom to wake")
    return target


def _check_times(times: ClaimTimes, drain: DrainLimits) -> None:
    if times.reclaim <= times.bind + times.handover:
        raise SettingsError("RECLAIM_SECONDS must be larger than BIND_SECONDS plus HANDOVER_SECONDS")
    if times.stranded <= times.reclaim:
        raise SettingsError("STRANDED_SECONDS must be larger than RECLAIM_SECONDS")
    if drain.deadline <= times.bind + times.handover:
        raise SettingsError("DRAIN_DEADLINE_SECONDS must be larger than BIND_SECONDS plus HANDOVER_SECONDS")
    if not drain.max_items or not drain.concurrency or not drain.polls_in_flight:
        raise SettingsError("DRAIN_MAX_ITEMS, DRAIN_CONCURRENCY and DRAIN_POLLS_IN_FLIGHT must be at least 1")


def _judges(text: str) -> Mapping[str, str]:
    """`name=module:function` or `name=entry-point:NAME`, with commas between; nothing is imported here."""
    judges: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(","))):
        match = _JUDGE.fullmatch(entry)
        if match is None or match["name"] in judges:
            raise SettingsError(
                "RACE_JUDGES must be name=module:function or name=entry-point:NAME, with commas between; "
                "a name has lower-case letters, digits, - and _, and stands once"
            )
        judges[match["name"]] = match["target"]
    return judges


def _prefix(prefix: str) -> str:
    try:
        return names.check_prefix(prefix)
    except names.BadName as error:
        raise SettingsError(f"SANDBOX_PREFIX: {error}") from None
