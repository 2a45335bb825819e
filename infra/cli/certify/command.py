"""`certify`: try every assumption that the code relies on against the services that the settings name.

Exit codes: 0 all that can be seen here holds, 1 something differs, could not be tried or was left over, 2 a setting is
wrong, 130 ctrl-C, 143 SIGTERM, 129 the terminal is gone. A run that a signal ends takes away what it made, and writes
what it saw; a second signal does not wait for the first of these.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, NoReturn

from infra.cli import environ as operator_environ
from infra.cli.certified import FOLDER, OFFLINE, own_code, own_version
from infra.cli.certify import (
    egress_checks,
    idle_checks,
    left_behind,
    limit_checks,
    pool_checks,
    process_checks,
    queue_checks,
    report,
    runs,
    sandbox_checks,
)
from infra.cli.certify.check import CheckResult, ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import CheckVerdict, NotHere, NotTried, Observed
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.redaction import ReportRedactor
from infra.cli.environ import CHECKOUT
from infra.cli.offline_console import console
from shared.errors import SecretUnavailable, SettingsError
from shared.settings import Settings

CHECKS: Final[tuple[ServiceCheck, ...]] = (
    *queue_checks.CHECKS,
    *sandbox_checks.CHECKS,
    *process_checks.CHECKS,
    *idle_checks.CHECKS,
    *egress_checks.CHECKS,
    *pool_checks.CHECKS,
    *limit_checks.CHECKS,
)
COST: Final = """\
With your keys this makes about twenty sandboxes (one processor each, two at once at most), about twenty sessions,
most of them without a message, and one environment, and ends them all. It costs a few cents of sandbox time and
four short turns of the agent's model, and takes about ten minutes. Nobody else may work on the environment meanwhile:
a check that finds somebody says so."""


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_BY_SIGNAL: Final = 128
"""Exit code of a program that a signal ends, without the signal's number."""

_Found = tuple[list[CheckResult], list[str]]


@dataclass(frozen=True, slots=True)
class CertifyOptions:
    """`only`: ids of checks, or beginnings of ids; empty: all. `rest`: of these the ones that the report of this place
    lacks, as a run was interrupted or the code is another one. `quota`: how many sandboxes the account may have at
    once, to see how one more is refused; 0 leaves that out. `write`: into docs/certified."""

    only: Sequence[str] = ()
    rest: bool = False
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
    """Ask, try, write and print; returns the exit code. Raises SettingsError."""
    checks = chosen(options.only, options.quota)
    loaded = operator_environ.load(environ)
    operator_environ.apply(loaded, os.environ)
    # Without an admin token, what is on this machine may be a way to the real services, which cost money.
    offline = console(loaded) is not None
    where = OFFLINE if offline else ReportRedactor.of(loaded.environ).clean(loaded.where)
    if options.rest:
        wanted = report.rest(CHECKS, where, own_version(), own_code(), folder)
        checks = [check for check in checks if check.id in wanted]
    if not checks:
        print("There is no rest: the report has all of it.", file=sys.stderr)
        return 0
    if not offline and not options.yes and not _agreed(options.quota):
        return 1
    settings = Settings.from_environ(loaded.environ)
    context = DoctorContext(loaded.environ, settings, offline=offline)
    return asyncio.run(_Run(Ground(context, quota=options.quota), checks, where, options, folder).play())


class _Run:
    """One run: its checks, and the signals that end it early."""

    def __init__(
        self, ground: Ground, checks: Sequence[ServiceCheck], where: str, options: CertifyOptions, folder: Path
    ) -> None:
        self._ground, self._checks, self._where = ground, checks, where
        self._options, self._folder = options, folder
        self._results: list[CheckResult] = []
        self._signal = 0

    async def play(self) -> int:
        """The exit code."""
        with runs.living(self._ground.run, self._ground.runs_folder):
            work = asyncio.ensure_future(certify(self._ground, self._checks, self._note))
            loop = asyncio.get_running_loop()
            heard = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
            for number in heard:
                loop.add_signal_handler(number, self._told, number, work)
            try:
                await work
            except asyncio.CancelledError:
                if not self._signal:
                    raise
            finally:  # whatever broke, or whoever does not read any more
                self._conclude()
            for number in heard:
                loop.remove_signal_handler(number)
        if self._signal:
            return _BY_SIGNAL + self._signal
        well = all(each.observed.verdict is CheckVerdict.HOLDS or not each.observed.here for each in self._results)
        return 0 if well and not self._ground.left_over else 1

    def _note(self, result: CheckResult) -> None:
        self._results.append(result)
        if not self._options.json:
            _say(result)

    def _told(self, number: int, work: asyncio.Future[_Found]) -> None:
        if self._signal:
            self._leave()
        self._signal = number
        work.cancel()
        _remark("Stopping: what was made is taken away (ctrl-C again leaves at once).")

    def _leave(self) -> NoReturn:
        """Ends this process where it stands: an orderly end would wait for the very clean-up that is not waited for."""
        try:
            self._ground.left_over += [f"perhaps {each}" for each in self._ground.owed]
            self._conclude()
            _remark("The next certify in this checkout ends what was left over; a tick ends sandboxes in half an hour.")
            sys.stdout.flush()
        finally:
            os._exit(_BY_SIGNAL + self._signal)

    def _conclude(self) -> None:
        """Written first: whoever reads may be gone."""
        redactor = _redactor(self._ground)
        data = report.as_data(
            self._results,
            where=self._where,
            version=own_version(),
            code=own_code(),
            at=datetime.now(UTC),
            left_over=[redactor.clean(each) for each in self._ground.left_over],
            wanted=self._checks,
        )
        page = report.write(data, CHECKS, self._folder)[0] if self._options.write else None
        _tell(data, self._options, page)


async def certify(
    ground: Ground, checks: Sequence[ServiceCheck], say: Callable[[CheckResult], None] | None = None
) -> _Found:
    """Every result in the order of the checks, and what could not be taken away. What killed runs left is ended first,
    and what a check made is gone before the next begins. Cancelled, it takes away what it made."""
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
        if gone := await left_behind.end_earlier(ground):
            _remark(f"An earlier certify left these, and they are ended: {', '.join(gone)}.")
        await one_after_another()
    left = [redactor.clean(each) for each in ground.left_over]
    return [results[check.id] for check in checks if check.id in results], left


async def _look(ground: Ground, check: ServiceCheck) -> Observed:
    try:
        async with ground.own_things(), asyncio.timeout(check.seconds):
            observed = await check.look(ground)
            await asyncio.sleep(0)  # a cancellation that a call has put off comes here (unbroken.py)
            return observed
    except NotTried as why:
        return Observed(None, str(why), here=not isinstance(why, NotHere))
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


def _tell(data: Mapping[str, Any], options: CertifyOptions, page: Path | None) -> None:
    if options.json:
        print(json.dumps(data, indent=2, ensure_ascii=False))
    for row in data["checks"]:
        if row["verdict"] == CheckVerdict.DIFFERS.value and not options.json:
            print(f"\n{row['id']} differs: assumed was that {row['assumed']} ({row['anchor']}).\n  {row['otherwise']}")
    for each in data["left_over"]:
        _remark(f"Left over: {each}")
    if page is not None:
        _remark(f"The report is in {page.relative_to(CHECKOUT) if page.is_relative_to(CHECKOUT) else page}")
    if left := data["unfinished"]:
        rest = "--rest" if options.write else " ".join(f"--only {each}" for each in left)
        if options.quota:
            rest += f" --quota {options.quota}"
        made = len(data["checks"])
        _remark(f"Interrupted: {made} of {made + len(left)} checks are made.")
        _remark(f'The others: make certify CERTIFY="{rest}"')


def _remark(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
