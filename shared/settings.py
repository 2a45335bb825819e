"""Settings: read once from the environment into one frozen object, checked, and passed on.

The plain variables describe one environment, with the names of the reference quickstart. `ENVIRONMENTS_FILE` names a
file that describes several instead (shared/environments_file.py).

Nothing else in the project reads the process's environment, but for secrets that a setting refers to. What each
variable means, and its default, is said once: in settings_table.py. A cold start makes these classes: they are named
tuples, which take a tenth of a dataclass's time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple
from urllib.parse import urlsplit

from shared.environment_settings import Environment, read_environments
from shared.errors import SettingsError
from shared.operator_code import NAMED
from shared.secret import SHORTEST_SECRET, Secret, is_reference, strong
from shared.setting_kinds import LOOPBACK, Text
from shared.settings_table import (
    LONGEST_AGENT_RACE,
    LONGEST_TOOL_CALL,
    Access,
    Auth,
    Claims,
    DrainMode,
    Drains,
    Outputs,
    Races,
    Reconcile,
    Sandboxes,
    Server,
    Services,
    Telemetry,
    Workers,
)

if TYPE_CHECKING:
    from shared.output_settings import OutputSettings

_CLUSTER: Final = ".svc.cluster.local"  # Kubernetes' own network
_JUDGE: Final = rf"(?P<name>[a-z0-9][a-z0-9_-]{{0,63}})\s*=\s*(?P<target>{NAMED})"


class ClaimTimes(NamedTuple):
    """The claim protocol's times, in seconds. `Settings` checks the order that they must keep.

    reclaim: R, after which an item that was claimed and not acked is offered again; sent on every poll.
    bind: the longest that a sandbox may take to be running.
    handover: the longest from starting the worker to its `ready`.
    stranded: T, the age from which an acked item without a heartbeat counts as stranded.
    poison_age: an item that was acked so long ago and never beaten is released whatever its sandbox says.
    poison_attempts: an item whose workers have died so often in its sandbox without a call in hand is given up.
    """

    reclaim: float = Claims.RECLAIM_SECONDS.default
    bind: float = Claims.BIND_SECONDS.default
    handover: float = Claims.HANDOVER_SECONDS.default
    stranded: float = Claims.STRANDED_SECONDS.default
    poison_age: float = Claims.POISON_AGE_SECONDS.default
    poison_attempts: int = Claims.POISON_ATTEMPTS.default

    @property
    def gate(self) -> float:
        """How long a worker asks for the lease of an item that is not acked: longer than T
        (docs/claim-protocol.md#times)."""
        return self.stranded + 60.0 if self.stranded >= 60.0 else self.stranded * 2


class DrainLimits(NamedTuple):
    """Bounds of one drain. `deadline` seconds in all; no claim is made later than what follows it needs.

    inline: the longest that a webhook waits for its drain where that runs inline.
    """

    deadline: float = Drains.DRAIN_DEADLINE_SECONDS.default
    inline: float = Drains.INLINE_SECONDS.default
    max_items: int = Drains.DRAIN_MAX_ITEMS.default
    concurrency: int = Drains.DRAIN_CONCURRENCY.default
    polls_in_flight: int = Drains.DRAIN_POLLS_IN_FLIGHT.default


class ReconcileTimes(NamedTuple):
    """When the reconciler acts, in seconds, and how much it may do in one tick.

    deadline: bound of one pass; it comes on top of the tick's drain.
    idle_grace: from a session's last sign of work until its sandbox is suspended.
    end_grace: from the mark of a sandbox whose session is over until its end, for collecting results.
    retention: how long a sandbox that sleeps is kept.
    waiting_sleep: how long a session may wait for a person before its sandbox sleeps; 0 for any time.
    """

    deadline: float = Reconcile.RECONCILE_SECONDS.default
    idle_grace: float = Reconcile.IDLE_GRACE_SECONDS.default
    end_grace: float = Reconcile.END_GRACE_SECONDS.default
    retention: float = Reconcile.RETENTION_SECONDS.default
    waiting_sleep: float = Reconcile.WAITING_SLEEP_SECONDS.default
    pages: int = Reconcile.RECONCILE_PAGES.default
    lookups: int = Reconcile.RECONCILE_LOOKUPS.default
    touches: int = Reconcile.RECONCILE_TOUCHES.default


class CallLimits(NamedTuple):
    """Calls a minute that this process makes at most. The defaults are the limits of an organisation
    (docs/wire/anthropic.md); 0 is no limit."""

    anthropic_reads: int = Services.ANTHROPIC_READS_PER_MINUTE.default
    anthropic_writes: int = Services.ANTHROPIC_WRITES_PER_MINUTE.default
    tensorlake: int = Services.TENSORLAKE_CALLS_PER_MINUTE.default


class RaceLimits(NamedTuple):
    """Bounds of best-of-N races, whatever a request asks for; `agent_`: of those that an agent asks for itself."""

    max_branches: int = Races.RACE_MAX_BRANCHES.default
    max_parallel: int = Races.RACE_MAX_PARALLEL.default
    deadline: float = Races.RACE_DEADLINE_SECONDS.default
    record_seconds: float = Races.RACE_RECORD_SECONDS.default
    keeps_reports: bool = False
    handed_to: str = ""
    handed_at: str = ""
    """The address of fork_best_of_n for whoever has a race run there; empty where it is invoked by its name."""
    at_once: int = Races.RACES_AT_ONCE.default
    calls_per_minute: int = Races.RACE_CALLS_PER_MINUTE.default
    agent_calls_per_minute: int = Races.RACE_AGENT_CALLS_PER_MINUTE.default
    agent_branches: int = Races.RACE_AGENT_MAX_BRANCHES.default
    agent_seconds: float = Races.RACE_AGENT_SECONDS.default
    agent_sandbox_seconds: float = Races.RACE_AGENT_SANDBOX_SECONDS_PER_DAY.default
    output_bytes: int = Races.RACE_OUTPUT_BYTES.default
    artifact_bytes: int = Races.RACE_ARTIFACT_BYTES.default
    webhook_hosts: tuple[str, ...] = ()
    webhook_key: Secret | None = None
    judges: Mapping[str, str] = MappingProxyType({})
    """Plug-ins by name: `module:function`, or `entry-point:NAME` of the group serverless_hands.judges."""


class Settings(NamedTuple):
    """Everything the bundle is told. Build it with `from_environ`."""

    environments: Mapping[str, Environment]
    anthropic_url: str
    tensorlake_url: str
    tensorlake_key: Secret
    signing_keys: tuple[Secret, ...]
    functions_token: Secret | None
    capability_key: Secret | None
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
    calls: CallLimits = CallLimits()
    outputs: OutputSettings | None = None
    """None: nothing is collected."""
    weak_token: bool = False
    """FUNCTIONS_TOKEN is set and so short that it could be guessed; refused where agents could do it off line."""
    agent_fork: bool = False
    """Whether agents may ask for races: their tokens are accepted here, and issued where there is a fork_url."""
    fork_url: str | None = None
    """Where a session's sandbox reaches fork_best_of_n; None where no tokens are issued."""
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
    tool_seconds: float = LONGEST_TOOL_CALL
    tool_output_bytes: int = Workers.TOOL_OUTPUT_BYTES.default
    worker_otlp: str = ""
    """Where workers send their spans; empty: nowhere."""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> Settings:
        """Raises SettingsError, which names the variable and says what it should be."""
        anthropic_url = Services.ANTHROPIC_BASE_URL.read(environ)
        tensorlake_url = tensorlake_address(environ)
        times = ClaimTimes(
            reclaim=Claims.RECLAIM_SECONDS.read(environ),
            bind=Claims.BIND_SECONDS.read(environ),
            handover=Claims.HANDOVER_SECONDS.read(environ),
            stranded=Claims.STRANDED_SECONDS.read(environ),
            poison_age=Claims.POISON_AGE_SECONDS.read(environ),
            poison_attempts=Claims.POISON_ATTEMPTS.read(environ),
        )
        drain = DrainLimits(
            deadline=Drains.DRAIN_DEADLINE_SECONDS.read(environ),
            inline=Drains.INLINE_SECONDS.read(environ),
            max_items=Drains.DRAIN_MAX_ITEMS.read(environ),
            concurrency=Drains.DRAIN_CONCURRENCY.read(environ),
            polls_in_flight=Drains.DRAIN_POLLS_IN_FLIGHT.read(environ),
        )
        _check_times(times, drain)
        drain_mode = Drains.DRAIN_MODE.read(environ)
        fork_url = _fork_url(environ)
        worker_otlp = Telemetry.WORKER_OTLP_ENDPOINT.read(environ)
        return cls(
            environments=read_environments(environ, (anthropic_url, fork_url or "", worker_otlp)),
            anthropic_url=anthropic_url,
            tensorlake_url=tensorlake_url,
            tensorlake_key=Services.TENSORLAKE_API_KEY.required(
                environ, "put it into .env or the environment of this process"
            ),
            signing_keys=Access.ANTHROPIC_WEBHOOK_SIGNING_KEY.read(environ),
            functions_token=Access.FUNCTIONS_TOKEN.read(environ),
            capability_key=Access.CAPABILITY_KEY.read(environ),
            prefix=_prefix(Sandboxes.SANDBOX_PREFIX.read(environ)),
            sandbox_user=Sandboxes.SANDBOX_USER.read(environ),
            workdir=Sandboxes.SANDBOX_WORKDIR.read(environ),
            max_idle_seconds=Workers.RUNNER_MAX_IDLE_SECONDS.read(environ) or None,
            worker_lifetime=Workers.WORKER_LIFETIME_SECONDS.read(environ),
            tool_seconds=_tool_seconds(environ),
            tool_output_bytes=Workers.TOOL_OUTPUT_BYTES.read(environ),
            resume_suspended=Sandboxes.RESUME_SUSPENDED_SESSIONS.read(environ),
            drain_mode=drain_mode,
            enqueue_to=_enqueue_to(_function_named(Drains.ENQUEUE_TO, environ), drain_mode),
            dry_run=Drains.DRY_RUN.read(environ),
            times=times,
            drain=drain,
            reconcile=ReconcileTimes(
                deadline=Reconcile.RECONCILE_SECONDS.read(environ),
                idle_grace=Reconcile.IDLE_GRACE_SECONDS.read(environ),
                end_grace=Reconcile.END_GRACE_SECONDS.read(environ),
                retention=Reconcile.RETENTION_SECONDS.read(environ),
                waiting_sleep=Reconcile.WAITING_SLEEP_SECONDS.read(environ),
                pages=Reconcile.RECONCILE_PAGES.read(environ),
                lookups=Reconcile.RECONCILE_LOOKUPS.read(environ),
                touches=Reconcile.RECONCILE_TOUCHES.read(environ),
            ),
            outputs=_outputs(environ),
            calls=CallLimits(
                anthropic_reads=Services.ANTHROPIC_READS_PER_MINUTE.read(environ),
                anthropic_writes=Services.ANTHROPIC_WRITES_PER_MINUTE.read(environ),
                tensorlake=Services.TENSORLAKE_CALLS_PER_MINUTE.read(environ),
            ),
            races=RaceLimits(
                max_branches=Races.RACE_MAX_BRANCHES.read(environ),
                max_parallel=Races.RACE_MAX_PARALLEL.read(environ),
                deadline=Races.RACE_DEADLINE_SECONDS.read(environ),
                record_seconds=max(
                    Races.RACE_RECORD_SECONDS.read(environ), 2 * Races.RACE_DEADLINE_SECONDS.read(environ) + 600.0
                ),
                keeps_reports=Races.RACE_REPORTS.read(environ) == "all",
                **_races_handed_to(environ),
                at_once=_at_once(environ),
                calls_per_minute=Races.RACE_CALLS_PER_MINUTE.read(environ),
                agent_calls_per_minute=Races.RACE_AGENT_CALLS_PER_MINUTE.read(environ),
                agent_branches=Races.RACE_AGENT_MAX_BRANCHES.read(environ),
                agent_seconds=_agent_seconds(environ),
                agent_sandbox_seconds=Races.RACE_AGENT_SANDBOX_SECONDS_PER_DAY.read(environ),
                output_bytes=Races.RACE_OUTPUT_BYTES.read(environ),
                artifact_bytes=Races.RACE_ARTIFACT_BYTES.read(environ),
                webhook_hosts=Races.RACE_WEBHOOK_HOSTS.read(environ),
                webhook_key=Races.RACE_WEBHOOK_SIGNING_KEY.read(environ),
                judges=_judges(Races.RACE_JUDGES.read(environ)),
            ),
            weak_token=_is_weak(Access.FUNCTIONS_TOKEN.text(environ)),
            agent_fork=Races.AGENT_FORK.read(environ),
            fork_url=fork_url,
            server_sandbox=Server.SERVER_SANDBOX.read(environ),
            self_tick_seconds=Server.SELF_TICK_SECONDS.read(environ),
            standstill_seconds=_standstill(environ),
            auth=_auth(environ),
            auth_callers=Access.AUTH_CALLERS.read(environ),
            auth_own_url=Access.AUTH_OWN_URL.text(environ).rstrip("/"),
            worker_otlp=worker_otlp,
        )


def _outputs(environ: Mapping[str, str]) -> OutputSettings | None:
    if not Outputs.OUTPUTS_TO.read(environ):
        return None
    from shared.output_settings import read_outputs

    return read_outputs(environ)


def _fork_url(environ: Mapping[str, str]) -> str | None:
    """None where AGENT_FORK is off, or tokens are issued by another function.

    What agents show is signed with a key that comes from CAPABILITY_KEY or FUNCTIONS_TOKEN, so one must be set, and
    what is set must be too long to guess. A secret that is only referred to is looked at when it is read
    (shared/capability.py)."""
    url = Races.FUNCTIONS_PUBLIC_URL.text(environ)
    accepts_only = Races.AGENT_FORK_ACCEPT_ONLY.read(environ)
    if not Races.AGENT_FORK.read(environ):
        return None
    if not url and not accepts_only:
        raise SettingsError("AGENT_FORK is on: set FUNCTIONS_PUBLIC_URL to the functions' address as a sandbox sees it")
    secrets = (Access.CAPABILITY_KEY, Access.FUNCTIONS_TOKEN)
    if not any(each.text(environ) for each in secrets):
        raise SettingsError(
            "AGENT_FORK is on: set FUNCTIONS_TOKEN, or CAPABILITY_KEY; agents' tokens are signed with one of them"
        )
    for each in secrets:
        text = each.text(environ)
        if text and not is_reference(text):
            for one in text.replace(",", " ").split() if each is Access.CAPABILITY_KEY else (text,):
                strong(each.name, one)
    if accepts_only:
        return None
    return f"{Races.FUNCTIONS_PUBLIC_URL.parse(url)}/fork_best_of_n"


def _is_weak(token: str) -> bool:
    return bool(token) and not is_reference(token) and len(token) < SHORTEST_SECRET


def _auth(environ: Mapping[str, str]) -> Auth:
    """`platform` only where the runtime may know who calls, and where that it does can be tried."""
    auth = Access.AUTH.read(environ)
    if auth == "token":
        return auth
    service = Access.K_SERVICE.required(
        environ, "AUTH=platform is for Cloud Run, which sets it; elsewhere use AUTH=token"
    )
    Access.AUTH_CALLERS.required(environ, "AUTH=platform needs the e-mail addresses of the identities that may call")
    url = Access.AUTH_OWN_URL.required(
        environ, "AUTH=platform needs this service's own run.app address, to ask it namelessly"
    )
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.path:
        raise SettingsError("AUTH_OWN_URL must be the bare address, without a path")
    if host not in LOOPBACK and not (host.startswith(f"{service}-") and host.endswith(".run.app")):
        raise SettingsError(f"AUTH_OWN_URL must be the address of this very service: https://{service}-....run.app")
    return auth


def _at_once(environ: Mapping[str, str]) -> int:
    at_once = Races.RACES_AT_ONCE.read(environ)
    if not at_once:
        raise SettingsError("RACES_AT_ONCE must be at least 1")
    return at_once


def _agent_seconds(environ: Mapping[str, str]) -> float:
    seconds = Races.RACE_AGENT_SECONDS.read(environ)
    if not 0 < seconds <= LONGEST_AGENT_RACE:
        raise SettingsError(f"RACE_AGENT_SECONDS must be above 0 and at most {LONGEST_AGENT_RACE:g} seconds")
    return seconds


def _tool_seconds(environ: Mapping[str, str]) -> float:
    seconds = Workers.TOOL_SECONDS.read(environ)
    if not 0 < seconds <= LONGEST_TOOL_CALL:
        raise SettingsError(f"TOOL_SECONDS must be above 0 and at most {LONGEST_TOOL_CALL:g} seconds")
    return seconds


def _standstill(environ: Mapping[str, str]) -> float:
    seconds = Server.STANDSTILL_SECONDS.read(environ)
    if seconds < 1:  # below it the look itself would be most of what the server does
        raise SettingsError("STANDSTILL_SECONDS must be at least 1")
    return seconds


def tensorlake_address(environ: Mapping[str, str]) -> str:
    """The SDK sends the key to the real cloud for any host that it does not know
    (docs/wire/tensorlake.md#21-which-host-goes-where)."""
    checked = Services.TENSORLAKE_API_URL.read(environ)
    host = urlsplit(checked).hostname or ""
    if host not in LOOPBACK and not host.startswith("api."):
        raise SettingsError("TENSORLAKE_API_URL must have a host that begins with api., or localhost or 127.0.0.1")
    return checked


def _function_named(variable: Text, environ: Mapping[str, str]) -> str:
    target = variable.read(environ)
    scheme, _, name = target.partition(":")
    if target and (scheme != "aws-lambda" or not name):
        raise SettingsError(f"{variable.name} must be aws-lambda: and the name or ARN of a function")
    return target


def _races_handed_to(environ: Mapping[str, str]) -> dict[str, str]:
    """`handed_to` and `handed_at` of RaceLimits."""
    variable = Races.RACES_HANDED_TO
    target = variable.read(environ)
    if not target or target.startswith("aws-lambda:"):
        return {"handed_to": _function_named(variable, environ)}
    if re.fullmatch(r"gcp-tasks:projects/[^/\s]+/locations/[^/\s]+/queues/[^/\s]+", target):
        own = Races.FUNCTIONS_PUBLIC_URL
        url = own.required(environ, f"{variable.name} names a queue, and its tasks are sent to the functions' address")
        return {"handed_to": target, "handed_at": f"{url}/fork_best_of_n"}
    parts = urlsplit(target)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username or parts.query:
        raise SettingsError(
            f"{variable.name} must be aws-lambda:NAME, gcp-tasks:projects/P/locations/L/queues/Q or an address"
        )
    if parts.scheme == "http" and parts.hostname not in LOOPBACK and not parts.hostname.endswith(_CLUSTER):
        raise SettingsError(f"{variable.name} must use https, unless its host ends with {_CLUSTER}")
    return {"handed_to": target.rstrip("/"), "handed_at": target.rstrip("/")}


def _enqueue_to(target: str, mode: DrainMode) -> str:
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
        match = re.fullmatch(_JUDGE, entry, re.ASCII)
        if match is None or match["name"] in judges:
            raise SettingsError(
                "RACE_JUDGES must be name=module:function or name=entry-point:NAME, with commas between; "
                "a name has lower-case letters, digits, - and _, and stands once"
            )
        judges[match["name"]] = match["target"]
    return judges


def _prefix(prefix: str) -> str:
    if prefix == Sandboxes.SANDBOX_PREFIX.default:
        return prefix  # right by itself: a cold start that refuses its caller needs no names
    from shared import names

    try:
        return names.check_prefix(prefix)
    except names.BadName as error:
        raise SettingsError(f"SANDBOX_PREFIX: {error}") from None
