"""`deploy gcp` and `undeploy gcp`. A dry run prints every gcloud call as a shell would take it, and calls nothing."""

from __future__ import annotations

import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, Literal

from infra.cli import environ
from infra.gcp import plan, source
from shared.errors import HandsError, SettingsError

Action = Literal["deploy", "undeploy"]
_ABSENT: Final = ("NOT_FOUND", "not found", "Cannot find", "could not be found", "or it may not exist")
_STAGED: Final = "STAGED_SOURCE"
_SETTLING: Final = (5.0, 15.0)


class NotDeployedToGcp(HandsError):
    """gcloud did not do it. The text is what it said."""


class Gcloud:
    """Runs the calls of a plan, and says each before it is made."""

    def __init__(self, say: Callable[[str], None], sleep: Callable[[float], None] = time.sleep) -> None:
        self._say = say
        self._sleep = sleep

    def do(self, steps: Iterable[plan.DeployStep | plan.Stored]) -> None:
        """Raises NotDeployedToGcp at the first that fails."""
        for step in steps:
            if isinstance(step, plan.Stored):
                self._store(step)
                continue
            argv = step.absent
            if step.look is not None and self._is_there(step.look):
                argv = step.present or ()
            if argv:
                self._say(shlex.join(argv))
                self._call(argv, pauses=_SETTLING if step.settles else ())

    def answer(self, argv: plan.Argv) -> str:
        self._say(shlex.join(argv))
        return self._call(argv).strip()

    def _store(self, stored: plan.Stored) -> None:
        done = _run(stored.look)
        if done.returncode == 0 and done.stdout == stored.value:
            return
        if done.returncode != 0 and not _says_absent(done.stderr):
            raise _failure(stored.look, done.stderr)
        self._say(f"{shlex.join(stored.add)}  < {stored.variable}")
        self._call(stored.add, stored.value)

    def _is_there(self, argv: plan.Argv) -> bool:
        done = _run(argv)
        if done.returncode != 0 and not _says_absent(done.stderr):
            raise _failure(argv, done.stderr)  # a failed look is not "not there"
        return done.returncode == 0

    def _call(self, argv: plan.Argv, given: str = "", pauses: Iterable[float] = ()) -> str:
        done = _run(argv, given)
        for pause in pauses:
            if done.returncode == 0:
                break
            self._sleep(pause)
            done = _run(argv, given)
        if done.returncode != 0:
            raise _failure(argv, done.stderr)
        return done.stdout


def run(action: Action, variables: Mapping[str, str], *, dry_run: bool) -> int:
    """Do it; 0 done, 1 Google did not do it. Raises SettingsError."""
    try:
        if action == "deploy":
            return deploy(_loaded(variables), dry_run=dry_run)
        return undeploy(_loaded(variables), dry_run=dry_run)
    except NotDeployedToGcp as error:
        print(error, file=sys.stderr)
        return 1


def deploy(variables: Mapping[str, str], *, dry_run: bool) -> int:
    """Prepare, deploy each service, set the schedule, say what comes next."""
    planned = plan.make(variables)
    if dry_run:
        _show(planned)
        return 0
    gcloud = Gcloud(_print)
    if planned.number == plan.NUMBER_UNKNOWN:
        planned = plan.make(variables, gcloud.answer(plan.number_of(planned.project)))
    gcloud.do(planned.before())
    with tempfile.TemporaryDirectory() as folder:
        staged, environs = Path(folder, "source"), Path(folder, "environ")
        environs.mkdir()
        source.stage(staged, extras=planned.extras, own=planned.own)
        for service in planned.services:
            (environs / f"{service.name}.json").write_text(plan.environ_file(service), encoding="utf-8")
        gcloud.do(planned.deploys(str(staged), str(environs)))
    gcloud.do(planned.after())
    _next(planned)
    return 0


def undeploy(variables: Mapping[str, str], *, dry_run: bool) -> int:
    """Delete services and schedule."""
    planned = plan.make(variables)
    if dry_run:
        for step in planned.removal():
            _show_step(step)
    else:
        Gcloud(_print).do(planned.removal())
    _print("Secrets and service accounts stay.")
    return 0


def _show(planned: plan.GcpPlan) -> None:
    if planned.number == plan.NUMBER_UNKNOWN:
        _print(f"# {plan.NUMBER_UNKNOWN} is what this answers (or set GCP_PROJECT_NUMBER)")
        _print(shlex.join(plan.number_of(planned.project)))
    for step in planned.before():
        _show_step(step)
    for service in planned.services:
        _print(f"# {_STAGED}/environ/{service.name}.json: {plan.environ_file(service)}")
    for step in [*planned.deploys(f"{_STAGED}/source", f"{_STAGED}/environ"), *planned.after()]:
        _show_step(step)
    _print("DRY_RUN: nothing was called.")


def _show_step(step: plan.DeployStep | plan.Stored) -> None:
    if isinstance(step, plan.Stored):
        _print(f"{shlex.join(step.look)}\n# and unless it answers {step.variable}'s value:")
        _print(f"{shlex.join(step.add)}  < {step.variable}")
        return
    _print(f"# {step.why}")
    if step.look is not None:
        _print(shlex.join(step.look))
    for when, argv in (("not there", step.absent), ("there", step.present or ())):
        if argv and step.look is not None:
            _print(f"# and if it is {when}:")
        if argv:
            _print(shlex.join(argv))


def _next(planned: plan.GcpPlan) -> None:
    for service in planned.services:
        _print(f"{service.target:15} {planned.url(service)}")
    known = {"ANTHROPIC_WEBHOOK_SIGNING_KEY"} & (planned.stored.keys() | planned.referred.keys())
    _print("\nNext: in the Claude Console, create a webhook to the first address for Run started, Terminated, Deleted.")
    if not known:
        _print("Put its secret into .env as ANTHROPIC_WEBHOOK_SIGNING_KEY and deploy again: it gets 503 before.")
    if all(service.target != "fork_best_of_n" for service in planned.services):
        _print("FUNCTIONS_TOKEN is not set, so fork_best_of_n was left out.")


def _run(argv: plan.Argv, given: str = "") -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(argv, input=given, capture_output=True, text=True, check=False, timeout=1800)
    except FileNotFoundError:
        raise SettingsError("gcloud is not on PATH: install the Google Cloud CLI") from None
    except subprocess.TimeoutExpired:
        raise NotDeployedToGcp(f"no answer for half an hour: {shlex.join(argv)}") from None


def _says_absent(text: str) -> bool:
    return any(words in text for words in _ABSENT)


def _failure(argv: plan.Argv, text: str) -> NotDeployedToGcp:
    return NotDeployedToGcp(f"{shlex.join(argv)}\n{text.strip()[-2000:]}")


def _loaded(variables: Mapping[str, str]) -> Mapping[str, str]:
    return environ.load_for_cloud(variables, "Google Cloud")


def _print(text: str) -> None:
    print(text, flush=True)
