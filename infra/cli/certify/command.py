"""`certify`: try every assumption that the code relies on against the services that the settings name.

Exit codes: 0 all that was tried holds, 1 something differs, could not be tried or was left over, 2 a setting is wrong.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from infra.cli import environ as operator_environ
from infra.cli.certified import FOLDER, OFFLINE, own_version
from infra.cli.certify import limit_checks, pool_checks, queue_checks, report, sandbox_checks
from infra.cli.certify.check import CheckResult, ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import CheckVerdict, NotTried, Observed
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.redaction import ReportRedactor
from infra.cli.environ import CHECKOUT
from shared.errors import SecretUnavailable, SettingsError
from shared.settings import Settings

CHECKS: Final[tuple[ServiceCheck, ...]] = (
    *queue_checks.CHECKS,
    *sandbox_checks.CHECKS,
    *pool_checks.CHECKS,
    *limit_checks.CHECKS,
)
COST: Final = """\
With your keys this makes about ten sandboxes (one processor each, two at once at most) and about twenty sessions,
most of them without a message, and ends them all. It costs a few cents of sandbox time and four short turns of the
agent's model, and takes about ten minutes. Nobody else may work on the environment meanwhile: a check that finds
somebody says so."""


_Found = tuple[list[CheckResult], list[str]]


@dataclass(frozen=True, slots=True)
class CertifyOptions:
    """`only`: ids of checks, or beginnings of ids; empty: all. `quota`: how many sandboxes the account may have at
    once, to see how one more is refused; 0 leaves that out. `write`: into docs/certified."""

    only: Sequence[str] = ()
    quota: int = 0
    yes: bool = False
    json: bool = False
    write: bool = True


def chosen(only: Sequence[str], quota: int = 0) -> list[ServiceCheck]:
    """Raises SettingsError for what names no check, and for a quota that is not met for a few cents."""
    if not 0 <= quota <= limit_checks.MOST_SANDBOXES:
        raise SettingsError(f"--quota {quota}: give 1 to {limit_checks.MOST_SANDBOXES}, so many sandboxes run at once")
    for text in only:
        if not any(check.id.startswith(text) for check in CHECKS):
            raise SettingsError(f"--only {text}: no check is called so. There are: {', '.join(c.id for c in CHECKS)}")
        if not quota and any(check.asked and check.id == text for check in CHECKS):
            raise SettingsError(f"--only {text}: give --quota, too: how many sandboxes your account may have at once")
    wanted = [check for check in CHECKS if quota or not check.asked]
    return [check for check in wanted if not only or check.id.startswith(tuple(only))]


def run(environ: Mapping[str, str], options: CertifyOptions, folder: Path = FOLDER) -> int:
    """Ask, try, print and write; returns the exit code. Raises SettingsError."""
    checks = chosen(options.only, options.quota)
    loaded = operator_environ.load(environ)
    operator_environ.apply(loaded, os.environ)
    offline = loaded.offline is not None
    if not offline and not options.yes and not _agreed(options.quota):
        return 1
    settings = Settings.from_environ(loaded.environ)
    context = DoctorContext(loaded.environ, settings, offline=offline)
    say = None if options.json else _say
    results, left_over = asyncio.run(
        _until_told(certify(Ground(context, 2 if offline else 60, options.quota), checks, say))
    )
    where = OFFLINE if offline else ReportRedactor.of(loaded.environ).clean(loaded.where)
    data = report.as_data(results, where=where, version=own_version(), at=datetime.now(UTC), left_over=left_over)
    _conclude(data, options, folder)
    well = all(result.observed.verdict is CheckVerdict.HOLDS for result in results) and not left_over
    return 0 if well else 1


async def _until_told(work: Coroutine[Any, Any, _Found]) -> _Found:
    """SIGTERM ends it as ctrl-C does, by cancelling: what was made is taken away first."""
    task = asyncio.ensure_future(work)
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    return await task


async def certify(
    ground: Ground, checks: Sequence[ServiceCheck], say: Callable[[CheckResult], None] | None = None
) -> _Found:
    """Every result in the order of the checks, and what could not be taken away. What a check made is gone before the
    next begins."""
    redactor = _redactor(ground)
    results: dict[str, CheckResult] = {}

    async def one_after_another() -> None:
        for check in checks:
            began = time.monotonic()
            observed = await _look(ground, check)
            observed = replace(observed, seen=redactor.clean(observed.seen))
            results[check.id] = CheckResult(check, observed, time.monotonic() - began)
            if say is not None:
                say(results[check.id])

    async with ground:
        await one_after_another()
    left = [redactor.clean(each) for each in ground.left_over]
    return [results[check.id] for check in checks if check.id in results], left


async def _look(ground: Ground, check: ServiceCheck) -> Observed:
    try:
        async with ground.own_things(), asyncio.timeout(check.seconds):
            return await check.look(ground)
    except NotTried as why:
        return Observed(None, str(why))
    except TimeoutError:
        return Observed(None, f"not done within {check.seconds:g} s")
    except Exception as error:  # the edge: the type alone, since a text may quote what was sent
        return Observed(None, f"the check broke ({type(error).__name__})")


def _redactor(ground: Ground) -> ReportRedactor:
    keys = []
    for environment in ground.context.settings.environments.values():
        try:
            keys.append(environment.key.reveal())
        except SecretUnavailable:
            continue
    return ReportRedactor.of(ground.context.environ, keys)


def _agreed(quota: int) -> bool:
    print(COST, file=sys.stderr)
    if quota:
        print(f"With --quota it makes up to {quota + 1} sandboxes at once, for seconds.", file=sys.stderr)
    if not sys.stdin.isatty():
        print("Nothing was done: say --yes where nobody can be asked.", file=sys.stderr)
        return False
    return input("Go on? [y/N] ").strip().lower() in ("y", "yes")


def _say(result: CheckResult) -> None:
    mark = {CheckVerdict.HOLDS: "✓", CheckVerdict.DIFFERS: "✗", CheckVerdict.UNKNOWN: "?"}[result.observed.verdict]
    print(f"{mark} {result.check.id:34} {result.observed.seen}", flush=True)


def _conclude(data: Mapping[str, Any], options: CertifyOptions, folder: Path) -> None:
    if options.json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    for row in data["checks"]:
        if row["verdict"] == CheckVerdict.DIFFERS.value and not options.json:
            print(f"\n{row['id']} differs: assumed was that {row['assumed']} ({row['anchor']}).\n  {row['otherwise']}")
    for each in data["left_over"]:
        print(f"Left over: {each}", file=sys.stderr)
    if options.write:
        page, _ = report.write(data, CHECKS, folder)
        print(
            f"The report is in {page.relative_to(CHECKOUT) if page.is_relative_to(CHECKOUT) else page}", file=sys.stderr
        )
