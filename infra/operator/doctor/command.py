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

from infra.operator import environ as operator_environ
from infra.operator.doctor import configured, images, probe, remains, report, runner, schedule, services, webhook, work
from infra.operator.doctor.findings import Finding, Say, Severity, error, exit_code, info, worst
from infra.operator.doctor.ground import Ground
from infra.operator.doctor.masking import Masker
from infra.operator.doctor.runner import Check
from infra.operator.environ import CHECKOUT, Loaded, NoServices
from shared.errors import SecretUnavailable, SettingsError
from shared.settings import Settings

_CHECK_SECONDS: Final = 60.0
_SECRET_SECONDS: Final = 30.0
_MOST_PROBES: Final = 3
URLS: Final = ("WEBHOOK_URL", "FUNCTIONS_URL")
"""Where the webhook's address is taken from, in this order; `--url` comes before both."""


@dataclass(frozen=True, slots=True)
class Options:
    url: str = ""
    json: bool = False
    probe: bool = True


def run(environ: Mapping[str, str], options: Options, folder: Path = CHECKOUT) -> int:
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
        findings, where = asyncio.run(examine(loaded, options)), loaded.where
    if options.json:
        print(report.as_json(findings, where, time.monotonic() - began))
    else:
        with contextlib.suppress(AttributeError, ValueError):  # a terminal without a tick shows a question mark
            sys.stdout.reconfigure(errors="replace")  # type: ignore[union-attr]  # the suppress covers other streams
        report.show(findings, where, Console(highlight=False, soft_wrap=True))
    return exit_code(findings)


async def examine(loaded: Loaded, options: Options) -> list[Finding]:
    """Every finding, in the order of the codes, with no secret in any text."""
    findings: list[Finding] = []
    environ = loaded.environ
    secrets: dict[str, tuple[str, ...]] = {}

    async def look_at_settings(say: Say) -> None:
        async with asyncio.timeout(_SECRET_SECONDS):
            secrets.update(await asyncio.to_thread(configured.secrets_of, environ, say))

    findings += await runner.run([Check("the secrets", _SECRET_SECONDS + 1.0, look_at_settings)])
    masker = Masker.of(environ, [value for values in secrets.values() for value in values])
    settings = configured.check_settings(environ, findings.append)
    configured.check_kinds(secrets, environ, findings.append)
    configured.check_redirections(environ, findings.append)
    configured.check_doors(secrets, findings.append)
    if settings is None or worst(findings) is Severity.ERROR:
        findings.append(info("HANDS002", "nothing was sent to anybody: correct the settings first"))
    else:
        masker = Masker.of(environ, [*(v for values in secrets.values() for v in values), *_keys(settings)])
        url = options.url or next((environ[name].strip() for name in URLS if environ.get(name, "").strip()), "")
        ground = Ground(environ, settings, offline=loaded.offline is not None, url=url)
        try:
            findings += await runner.run(list(checks(ground, options)))
        finally:
            await ground.aclose()
        findings += _not_looked_at(ground, options)
    findings.sort(key=lambda finding: finding.code)
    return [
        replace(each, seen=masker.clean(each.seen), fix=masker.clean(each.fix) if each.fix else None)
        for each in dict.fromkeys(findings)
    ]


def checks(ground: Ground, options: Options) -> Iterator[Check]:
    """What is looked at over the network. The probes come first, as they take longest."""
    environments = list(ground.settings.environments.values())
    if options.probe:
        for environment in environments[:_MOST_PROBES]:
            look = partial(probe.check_probe, ground, environment)
            yield Check("the probe sandbox", probe.seconds(ground), look)
    for environment in environments:
        yield Check("the work queue", _CHECK_SECONDS, partial(work.check_environment, ground, environment))
    for image in sorted({environment.image for environment in environments}):
        yield Check("the image", _CHECK_SECONDS, partial(images.check_image, ground, image))
    for name, check in (
        ("the clocks", services.check_clock),
        ("Tensorlake", services.check_tensorlake),
        ("the API key", services.check_person),
        ("the webhook and the schedule", _check_doors),
        ("the sandboxes", remains.check_remains),
    ):
        yield Check(name, _CHECK_SECONDS, partial(check, ground))


async def _check_doors(ground: Ground, say: Say) -> None:
    """In this order: a server sandbox that the webhook's probe woke can tell who ticks it."""
    await webhook.check_webhook(ground, say)
    await schedule.check_schedule(ground, say)


def _not_looked_at(ground: Ground, options: Options) -> Iterator[Finding]:
    beyond = len(ground.settings.environments) - _MOST_PROBES
    if not options.probe:
        yield info("HANDS002", "no probe sandbox was made: egress, daemon, worker and times are not known")
    elif beyond > 0:
        yield info("HANDS002", f"{beyond} environment(s) got no probe sandbox")


def _keys(settings: Settings) -> Iterator[str]:
    for environment in settings.environments.values():
        with contextlib.suppress(SecretUnavailable):
            yield environment.key.reveal()
