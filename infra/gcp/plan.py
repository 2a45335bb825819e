"""What a deployment will call, worked out from the variables before anything is called.

Three services, since they differ in who may call them:
- on_run_started is public: Anthropic has no Google identity. It believes signatures alone.
- poll_tick is closed by IAM; Cloud Scheduler may call it with an identity of its own (AUTH=platform).
- fork_best_of_n is public and asks for FUNCTIONS_TOKEN: an agent in a sandbox has no Google identity either. Without
  that variable it is left out.

Secrets never stand in an argument or a file: they go to Secret Manager over standard input.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from image import locks
from infra import operator_code, telemetry
from infra.gcp.grants import BucketGrant, Grants, grants
from shared import otel
from shared.errors import SettingsError
from shared.secret import SCHEMES
from shared.session_setup import inlined
from shared.setting_kinds import Text
from shared.settings import Settings
from shared.settings_table import Races, Workers, handed_over


class GcpDeployment:
    """Google Cloud Run functions (docs/deploy/gcp.md)"""

    GCP_PROJECT = Text("", "Where. Required.")
    GCP_REGION = Text("", "Where. Required.")
    GCP_NAME = Text("hands", "First part of every name; one for each environment.")
    GCP_PROJECT_NUMBER = Text("", "With it a dry run shows the very addresses. Without it gcloud is asked.")
    GCP_SCHEDULE = Text("* * * * *", "Of poll_tick, in the form of cron.")
    GCP_PYTHON = Text("python313", "The base image.")


# Variable -> the secret's name behind the deployment's own.
SECRETS: Final[Mapping[str, str]] = {
    "ANTHROPIC_ENVIRONMENT_KEY": "environment-key",
    "TENSORLAKE_API_KEY": "tensorlake-key",
    "ANTHROPIC_WEBHOOK_SIGNING_KEY": "signing-key",
    "FUNCTIONS_TOKEN": "functions-token",
    "CAPABILITY_KEY": "capability-key",
    "RACE_WEBHOOK_SIGNING_KEY": "race-webhook-key",
    "OUTPUTS_SIGNATURE": "outputs-signature",
    "OTEL_EXPORTER_OTLP_HEADERS": "otlp-headers",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS": "otlp-traces-headers",
    "OTEL_EXPORTER_OTLP_METRICS_HEADERS": "otlp-metrics-headers",
}
APIS: Final = ("run", "cloudbuild", "artifactregistry", "cloudscheduler", "cloudtasks", "secretmanager", "iam")
_SIGNING: Final = "iamcredentials"
NUMBER_UNKNOWN: Final = "PROJECT_NUMBER"
"""Stands in a dry run for what only the first call would tell."""
_REFERENCE: Final = "gcp-sm:"
_PYTHONS: Final = ("python311", "python312", "python313", "python314")

Argv = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DeployStep:
    """One thing that is to be so. `look` fails where it is not there yet: then `absent` is called, else `present`."""

    why: str
    absent: Argv
    look: Argv | None = None
    present: Argv | None = None
    settles: bool = False
    """Google may need some seconds to know of an account that was just made: worth another try."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The newest version of a secret is to be this variable's value: `look` shows it, `add` reads a new one."""

    variable: str
    look: Argv
    add: Argv
    value: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class CloudRunService:
    """One Cloud Run service. `environ` holds no secret; `secrets` says where each comes from."""

    name: str
    target: str
    public: bool
    seconds: int
    most: int
    environ: Mapping[str, str]
    secrets: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class GcpPlan:
    """A deployment of one environment into one project."""

    project: str
    number: str
    region: str
    name: str
    python: str
    schedule: str
    services: tuple[CloudRunService, ...]
    stored: Mapping[str, str] = field(repr=False)
    referred: Mapping[str, str]
    tool_secrets: tuple[str, ...] = ()
    """Those that TOOL_SECRETS names; whoever hands items over reads them."""
    extras: tuple[str, ...] = ()
    """Of pyproject.toml: what the functions need beside the run-time lock."""
    own: operator_code.CarriedCode = field(default_factory=operator_code.CarriedCode)
    grants: Grants = field(default_factory=Grants)
    races_at_once: int = Races.RACES_AT_ONCE.default

    def url(self, service: CloudRunService) -> str:
        return _url(service.name, self.number, self.region)

    def account(self, service: CloudRunService) -> str:
        """The identity of one service alone: it reads its own secrets and nothing else."""
        return f"{self.name}-{_ACCOUNTS[service.target]}@{self.project}.iam.gserviceaccount.com"

    def _readers(self, variable: str) -> Iterator[str]:
        for service in self.services:
            if variable in service.secrets or variable in service.environ:
                yield self.account(service)

    @property
    def caller(self) -> str:
        return _caller(self.name, self.project)

    def before(self) -> Iterator[DeployStep | Stored]:
        """What the services need."""
        apis = (*APIS, _SIGNING) if self.grants.reads else APIS
        yield DeployStep("APIs", _gcloud(self, "services", "enable", *(f"{api}.googleapis.com" for api in apis)))
        for account in (*(self.account(service) for service in self.services), self.caller):
            yield DeployStep(
                "an account of its own",
                _gcloud(self, "iam", "service-accounts", "create", account.partition("@")[0]),
                look=_gcloud(self, "iam", "service-accounts", "describe", account),
            )
        for variable, value in self.stored.items():
            secret = _secret(self.name, variable)
            yield DeployStep(
                "a place for a secret",
                _gcloud(self, "secrets", "create", secret, "--replication-policy=automatic"),
                look=_gcloud(self, "secrets", "describe", secret),
            )
            yield Stored(
                variable,
                look=_gcloud(self, "secrets", "versions", "access", "latest", f"--secret={secret}"),
                add=_gcloud(self, "secrets", "versions", "add", secret, "--data-file=-"),
                value=value,
            )
        places = {variable: _secret(self.name, variable) for variable in self.stored} | dict(self.referred)
        readers = [(secret, account) for variable, secret in places.items() for account in self._readers(variable)]
        hand_over = [self.account(service) for service in self.services if service.target in _HAND_OVER]
        readers += [(secret, account) for secret in self.tool_secrets for account in hand_over]
        for secret, account in readers:
            yield DeployStep(
                f"{account.partition('@')[0]} may read it",
                _gcloud(
                    self,
                    *("secrets", "add-iam-policy-binding", secret, f"--member=serviceAccount:{account}"),
                    "--role=roles/secretmanager.secretAccessor",
                ),
                settles=True,
            )
        yield from self._storage()
        yield from self._queue()

    def _queue(self) -> Iterator[DeployStep]:
        """What calls fork_best_of_n for the races that nobody waits for. A second attempt finds the race taken."""
        for service in self.services:
            if service.target != "fork_best_of_n":
                continue
            queue = (races_queue(self.name), f"--location={self.region}")
            bounds = (f"--max-concurrent-dispatches={self.races_at_once}", "--max-attempts=3")
            yield DeployStep(
                "a queue for races that nobody waits for",
                _gcloud(self, "tasks", "queues", "create", *queue, *bounds),
                look=_gcloud(self, "tasks", "queues", "describe", *queue),
                present=_gcloud(self, "tasks", "queues", "update", *queue, *bounds),
            )
            account = self.account(service)
            yield DeployStep(
                f"{account.partition('@')[0]} may fill it",
                _gcloud(
                    self,
                    *("tasks", "queues", "add-iam-policy-binding", *queue),
                    *(f"--member=serviceAccount:{account}", "--role=roles/cloudtasks.enqueuer"),
                ),
                settles=True,
            )

    def _storage(self) -> Iterator[DeployStep]:
        """Whoever hands items over signs addresses of objects, and IAM does it in its name: it has no key."""
        for service in self.services:
            account = self.account(service)
            signs = self.grants.reads if service.target in _HAND_OVER else ()
            for grant in (*signs, *(self.grants.outputs if service.target == "poll_tick" else ())):
                yield self._in_bucket(grant, account)
            if signs:
                yield DeployStep(
                    f"{account.partition('@')[0]} may sign in its own name",
                    _gcloud(
                        self,
                        *("iam", "service-accounts", "add-iam-policy-binding", account),
                        f"--member=serviceAccount:{account}",
                        *("--role=roles/iam.serviceAccountTokenCreator", "--condition=None"),
                    ),
                    settles=True,
                )

    def _in_bucket(self, grant: BucketGrant, account: str) -> DeployStep:
        return DeployStep(
            f"{account.partition('@')[0]} may use objects of {grant.bucket}",
            _gcloud(
                self,
                *("storage", "buckets", "add-iam-policy-binding", f"gs://{grant.bucket}"),
                *(f"--member=serviceAccount:{account}", f"--role={grant.role}"),
                f"--condition=expression={grant.condition},title=hands",
            ),
            settles=True,
        )

    def deploys(self, source: str, environs: str) -> Iterator[DeployStep]:
        """Each service from the folder `source`; its variables are in `environs`, in NAME.json."""
        for service in self.services:
            yield DeployStep(
                f"{service.target}: {'public' if service.public else 'closed by IAM'}",
                _gcloud(
                    self,
                    *("run", "deploy", service.name, f"--region={self.region}", f"--source={source}"),
                    *(f"--function={service.target}", f"--base-image={self.python}"),
                    f"--service-account={self.account(service)}",
                    "--allow-unauthenticated" if service.public else "--no-allow-unauthenticated",
                    f"--env-vars-file={environs}/{service.name}.json",
                    f"--set-secrets={_listed(service.secrets)}" if service.secrets else "--clear-secrets",
                    *(f"--timeout={service.seconds}s", f"--max-instances={service.most}", "--min-instances=0"),
                    *("--memory=512Mi", "--cpu=1", "--cpu-boost", f"--labels=app={self.name}"),
                ),
            )

    def after(self) -> Iterator[DeployStep]:
        """The schedule, and its right to call."""
        tick = next(service for service in self.services if service.target == "poll_tick")
        yield DeployStep(
            "the schedule may call poll_tick",
            _gcloud(
                self,
                *("run", "services", "add-iam-policy-binding", tick.name, f"--region={self.region}"),
                *(f"--member=serviceAccount:{self.caller}", "--role=roles/run.invoker"),
            ),
            settles=True,
        )
        job = (
            *(tick.name, f"--location={self.region}", f"--schedule={self.schedule}", f"--uri={self.url(tick)}"),
            *("--http-method=POST", f"--oidc-service-account-email={self.caller}"),
            *(f"--oidc-token-audience={self.url(tick)}", f"--attempt-deadline={tick.seconds}s"),
        )
        yield DeployStep(
            "the schedule",
            _gcloud(self, "scheduler", "jobs", "create", "http", *job),
            look=_gcloud(self, "scheduler", "jobs", "describe", tick.name, f"--location={self.region}"),
            present=_gcloud(self, "scheduler", "jobs", "update", "http", *job),
        )

    def removal(self) -> Iterator[DeployStep]:
        """Nothing is called for what is not there. Secrets, accounts and the queue stay: a queue's name is not free for
        days after its end."""
        tick = next(service for service in self.services if service.target == "poll_tick")
        where = f"--location={self.region}"
        yield DeployStep(
            "the schedule",
            (),
            look=_gcloud(self, "scheduler", "jobs", "describe", tick.name, where),
            present=_gcloud(self, "scheduler", "jobs", "delete", tick.name, where),
        )
        for target in _TARGETS:
            name = service_name(self.name, target)
            where = f"--region={self.region}"
            yield DeployStep(
                target,
                (),
                look=_gcloud(self, "run", "services", "describe", name, where),
                present=_gcloud(self, "run", "services", "delete", name, where),
            )


def make(environ: Mapping[str, str], number: str = "") -> GcpPlan:
    """`number`: the project's, where it is known. Raises SettingsError, which names the variable."""
    if environ.get("ENVIRONMENTS_FILE", "").strip():
        raise SettingsError("ENVIRONMENTS_FILE: deploy each environment by itself instead (GCP_NAME names them)")
    environ = {**environ, **inlined(environ)}
    plain = {name: value for name, value in environ.items() if name not in _OWN_CHOICE}
    settings = Settings.from_environ(plain)  # whatever is wrong is said here, not by a function in the cloud
    code = operator_code.carried(environ, settings, "Cloud Run")
    project = _checked(environ, GcpDeployment.GCP_PROJECT, r"[a-z][a-z0-9-]{4,28}[a-z0-9]", "a project's id")
    region = _checked(environ, GcpDeployment.GCP_REGION, r"[a-z]+-[a-z]+\d+", "a region, such as europe-west1")
    name = _checked(environ, GcpDeployment.GCP_NAME, r"[a-z]([a-z0-9-]{0,16}[a-z0-9])?", "at most 18 of a-z, 0-9 and -")
    if not number:
        known = GcpDeployment.GCP_PROJECT_NUMBER
        number = _checked(environ, known, r"\d+", "a number") if known.text(environ) else NUMBER_UNKNOWN
    python = _checked(environ, GcpDeployment.GCP_PYTHON, "|".join(_PYTHONS), f"one of {', '.join(_PYTHONS)}")
    schedule = GcpDeployment.GCP_SCHEDULE.read(environ)
    stored, referred = _secrets(environ)
    common = handed_over(environ, "operator") | telemetry.variables(environ)
    common |= {"DRAIN_MODE": "inline", "LOG_FORMAT": "json"}
    common.pop("DRY_RUN", None)  # is about the deployment here
    agents = environ.get("AGENT_FORK", "").strip().lower() in ("1", "true", "yes", "on")
    if agents:
        common["FUNCTIONS_PUBLIC_URL"] = _url(service_name(name, "fork_best_of_n"), number, region)
    signer = "CAPABILITY_KEY" if (stored.keys() | referred.keys()) & {"CAPABILITY_KEY"} else "FUNCTIONS_TOKEN"
    services = []
    for target in _TARGETS:
        needs = set(_NEEDS[target]) | set(otel.SECRETS) | ({signer} if agents else set())
        if target == "fork_best_of_n" and not (stored.keys() | referred.keys()) & {"FUNCTIONS_TOKEN"}:
            continue
        variables = dict(common)
        if target == "poll_tick":
            own = _url(service_name(name, target), number, region)
            variables |= {"AUTH": "platform", "AUTH_CALLERS": _caller(name, project), "AUTH_OWN_URL": own}
        if target == "fork_best_of_n":
            variables["FUNCTIONS_PUBLIC_URL"] = _url(service_name(name, target), number, region)
            place = f"projects/{project}/locations/{region}/queues/{races_queue(name)}"
            variables["RACES_HANDED_TO"] = f"gcp-tasks:{place}"
        variables |= {each: environ[each].strip() for each in sorted(needs & referred.keys())}
        services.append(
            CloudRunService(
                service_name(name, target),
                target,
                public=target != "poll_tick",
                seconds=_seconds(target, settings),
                most=_MOST[target],
                environ=variables,
                secrets={each: f"{_secret(name, each)}:latest" for each in sorted(needs & stored.keys())},
            )
        )
    granted = grants(settings)
    return GcpPlan(
        *(project, number, region, name, python, schedule, tuple(services), stored, referred),
        tool_secrets=_tool_secrets(environ),
        extras=_extras(environ, granted),
        own=code,
        grants=granted,
        races_at_once=settings.races.at_once,
    )


def _extras(environ: Mapping[str, str], granted: Grants) -> tuple[str, ...]:
    wanted = {locks.TELEMETRY: telemetry.exports(environ), locks.CLOUD_STORAGE: granted.library}
    return tuple(extra for extra, asked in wanted.items() if asked)


_OWN_CHOICE: Final = ("AUTH", "ENQUEUE_TO", "DRAIN_MODE", "RACES_HANDED_TO")
_TARGETS: Final = ("on_run_started", "poll_tick", "fork_best_of_n")
_HAND_OVER: Final = ("on_run_started", "poll_tick")
_BOTH_SERVICES: Final = ("ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY")
_NEEDS: Final[Mapping[str, tuple[str, ...]]] = {
    "on_run_started": (*_BOTH_SERVICES, "ANTHROPIC_WEBHOOK_SIGNING_KEY"),
    "poll_tick": (*_BOTH_SERVICES, "OUTPUTS_SIGNATURE"),
    "fork_best_of_n": (*_BOTH_SERVICES, "FUNCTIONS_TOKEN", "RACE_WEBHOOK_SIGNING_KEY"),
}
_ACCOUNTS: Final = {"on_run_started": "webhook", "poll_tick": "tick", "fork_best_of_n": "fork"}
_MOST: Final = {"on_run_started": 5, "poll_tick": 2, "fork_best_of_n": 5}


def _seconds(target: str, settings: Settings) -> int:
    """More than the function itself takes, so that Cloud Run never cuts it off; an hour is the most there is."""
    drain, repair, race = settings.drain.deadline, settings.reconcile.deadline, settings.races.deadline
    own = {"on_run_started": drain + 30, "poll_tick": drain + repair + 30, "fork_best_of_n": race + 60}[target]
    if own > _LONGEST[target]:
        raise SettingsError(f"{target} may take {own:g} s with these settings, more than the {_LONGEST[target]} s here")
    return math.ceil(own)


# Cloud Run's limit, and Cloud Scheduler's for what it waits for.
_LONGEST: Final = {"on_run_started": 3600, "poll_tick": 1800, "fork_best_of_n": 3600}


def _secrets(environ: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Values to store, and the secrets that are there already, both by variable."""
    stored, referred = {}, {}
    for variable in SECRETS:
        value = environ.get(variable, "").strip()
        scheme, separator, place = value.partition(":")
        if value.startswith(_REFERENCE):
            referred[variable] = place.partition("/versions/")[0]
        elif separator and scheme in SCHEMES:
            raise SettingsError(f"{variable}: Cloud Run cannot read {scheme}: references; use {_REFERENCE}...")
        elif value:
            stored[variable] = value
    return stored, referred


def _tool_secrets(environ: Mapping[str, str]) -> tuple[str, ...]:
    found = []
    for entry in Workers.TOOL_SECRETS.text(environ).replace(",", " ").split():
        name, _, reference = entry.partition("=")
        if not reference.startswith(_REFERENCE):
            scheme = reference.partition(":")[0]
            raise SettingsError(
                f"TOOL_SECRETS: {name}: Cloud Run cannot read {scheme}: references; use {_REFERENCE}..."
            )
        found.append(reference.removeprefix(_REFERENCE).partition("/versions/")[0])
    return tuple(dict.fromkeys(found))


def service_name(name: str, target: str) -> str:
    return f"{name}-{target.replace('_', '-')}"


def races_queue(name: str) -> str:
    return f"{name}-races"


def _url(service: str, number: str, region: str) -> str:
    """The address that Cloud Run gives a service whatever else it calls it: known before the first deployment."""
    return f"https://{service}-{number}.{region}.run.app"


def _caller(name: str, project: str) -> str:
    return f"{name}-schedule@{project}.iam.gserviceaccount.com"


def _secret(name: str, variable: str) -> str:
    return f"{name}-{SECRETS[variable]}"


def _listed(values: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in values.items())


def _gcloud(plan: GcpPlan, *arguments: str) -> Argv:
    return ("gcloud", *arguments, f"--project={plan.project}", "--quiet")


def number_of(project: str) -> Argv:
    """The call that tells the project's number."""
    return ("gcloud", "projects", "describe", project, "--format=value(projectNumber)", "--quiet")


def _checked(environ: Mapping[str, str], setting: Text, pattern: str, what: str) -> str:
    name, value = setting.name, setting.read(environ)
    if not re.fullmatch(pattern, value):
        raise SettingsError(f"{name} must be {what}" if value else f"{name} is not set: {what}")
    return value


def environ_file(service: CloudRunService) -> str:
    """JSON, which is YAML as well: what --env-vars-file reads."""
    return json.dumps(dict(sorted(service.environ.items())), indent=1)
