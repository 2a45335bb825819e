"""`doctor`: look at everything that this project needs, and say what is wrong, why it matters and what to do.

Exit codes: 0 nothing worse than worth knowing, 1 a warning, 2 an error.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from rich.console import Console

from infra.cli import environ as operator_environ
from infra.cli.doctor import (
    certification,
    images,
    leftover_checks,
    pools,
    probe,
    report,
    runner,
    schedule,
    services,
    settings_checks,
    webhook,
    work,
)
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Finding, Say, Severity, error, exit_code, info, worst
from infra.cli.doctor.redaction import ReportRedactor
from infra.cli.doctor.runner import DoctorCheck
from infra.cli.environ import CHECKOUT, Loaded, NoServices
from shared.errors import SecretUnavailable, SettingsError
from shared.settings import Settings

_CHECK_SECONDS: Final = 60.0
_SECRET_SECONDS: Final = 30.0
_MOST_PROBES: Final = 3
URLS: Final = ("WEBHOOK_URL", "FUNCTIONS_URL")
"""Where the webhook's address is taken from, in this order; `--url` comes before both."""


@dataclass(frozen=True, slots=True)
class DoctorOptions:
    url: str = ""
    json: bool = False
    probe: bool = True


def run(environ: Mapping[str, str], options: DoctorOptions, folder: Path = CHECKOUT) -> int:
    """Examine and print; returns the exit code."""
    began = time.monotonic()
    try:
        loaded = operator_environ.load(environ, folder)
    except NoServices as problem:
        findings, where = [error("HANDS100", str(problem).partition("\n")[0])], "nothing yet"
    except SettingsError as problem:
        findings, where = [error("HANDS101", str(problem))], "nothing yet"
    else:
        operator_environ.apply(loaded, os.environ)
        if options.probe and not options.json and sys.stderr.isatty():
            print("Looking; a probe sandbox takes up to a minute ...", file=sys.stderr)
        findings = asyncio.run(examine(loaded, options, operator_environ.in_files(folder)))
        where = ReportRedactor.of(loaded.environ).clean(loaded.where)
    if options.json:
        print(report.as_json(findings, where, time.monotonic() - began))
    else:
        with contextlib.suppress(AttributeError, ValueError):  # a terminal without a tick shows a question mark
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # the suppress covers other streams
        report.show(findings, where, Console(highlight=False, soft_wrap=True))
    return exit_code(findings)


async def examine(loaded: Loaded, options: DoctorOptions, files: Mapping[str, str] | None = None) -> list[Finding]:
    """Every finding, in the order of the codes, with no secret in any text. `files`: the variables of `.env` and
    `.env.local`."""
    findings: list[Finding] = []
    environ = loaded.environ
    secrets: dict[str, tuple[str, ...]] = {}

    async def look_at_settings(say: Say) -> None:
        async with asyncio.timeout(_SECRET_SECONDS):
            secrets.update(await asyncio.to_thread(settings_checks.secrets_of, environ, say))

    findings += await runner.run([DoctorCheck("the secrets", _SECRET_SECONDS + 1.0, look_at_settings)])
    redactor = ReportRedactor.of(environ, [value for values in secrets.values() for value in values])
    settings = settings_checks.check_settings(environ, findings.append)
    settings_checks.check_names(files or {}, findings.append)
    settings_checks.check_kinds(secrets, environ, findings.append)
    settings_checks.check_redirections(environ, findings.append)
    settings_checks.check_doors(secrets, findings.append)
    if settings is None or worst(findings) is Severity.ERROR:
        findings.append(info("HANDS002", "nothing was sent to anybody: correct the settings first"))
    else:
        redactor = ReportRedactor.of(environ, [*(v for values in secrets.values() for v in values), *_keys(settings)])
        url = options.url or next((environ[name].strip() for name in URLS if environ.get(name, "").strip()), "")
        context = DoctorContext(environ, settings, offline=loaded.offline, url=url)
        try:
            findings += await runner.run(list(checks(context, options)))
        finally:
            await context.aclose()
        findings += _not_looked_at(context, options)
    findings.sort(key=lambda finding: finding.code)
    return [
        replace(each, seen=redactor.clean(each.seen), fix=redactor.clean(each.fix) if each.fix else None)
        for each in dict.fromkeys(findings)
    ]


def checks(context: DoctorContext, options: DoctorOptions) -> Iterator[DoctorCheck]:
    """What is looked at over the network. The probes come first, as they take longest."""
    environments = list(context.settings.environments.values())
    if options.probe:
        for environment in environments[:_MOST_PROBES]:
            look = partial(probe.check_probe, context, environment)
            yield DoctorCheck("the probe sandbox", probe.seconds(context), look)
    for environment in environments:
        yield DoctorCheck("the work queue", _CHECK_SECONDS, partial(work.check_environment, context, environment))
        if environment.pool:
            yield DoctorCheck("the pool", _CHECK_SECONDS, partial(pools.check_pool, context, environment))
    for image in sorted({environment.image for environment in environments}):
        yield DoctorCheck("the image", _CHECK_SECONDS, partial(images.check_image, context, image))
    for name, check in (
        ("the clocks", services.check_clock),
        ("Tensorlake", services.check_tensorlake),
        ("the API key", services.check_person),
        ("the webhook and the schedule", _check_doors),
        ("the certifications", certification.check_certification),
        ("the sandboxes", leftover_checks.check_remains),
    ):
        yield DoctorCheck(name, _CHECK_SECONDS, partial(check, context))


async def _check_doors(context: DoctorContext, say: Say) -> None:
    """In this order: a server sandbox that the webhook's probe woke can tell who ticks it."""
    await webhook.check_webhook(context, say)
    await schedule.check_schedule(context, say)


def _not_looked_at(context: DoctorContext, options: DoctorOptions) -> Iterator[Finding]:
    beyond = len(context.settings.environments) - _MOST_PROBES
    if not options.probe:
        yield info("HANDS002", "no probe sandbox was made: egress, daemon, worker and times are not known")
    elif beyond > 0:
        yield info("HANDS002", f"{beyond} environment(s) got no probe sandbox")


def _keys(settings: Settings) -> Iterator[str]:
    for environment in settings.environments.values():
        with contextlib.suppress(SecretUnavailable):
            yield environment.key.reveal()
