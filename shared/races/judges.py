"""From a branch that ended to its score. A judge that fails is that branch's failure, with the judge's reason."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Final

from shared.races import junit, safe_regex, scores
from shared.races.errors import RaceError
from shared.races.judge_child import JudgeChild
from shared.races.plugins import JudgeContext, JudgeFailed, Plugin
from shared.races.request import (
    CommandJudge,
    ExitCodeJudge,
    FileJudge,
    Judge,
    JunitJudge,
    PluginJudge,
    RegexJudge,
)
from shared.races.scores import NoScore
from shared.races.shell import FileContents, NotApart, NotDone, NotRun, Ran, SandboxShell, SetAside

_LARGEST_METRICS: Final = 1_048_576
_LONGEST_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class Score:
    """What the judge says; finite. `tail` is what a score command has written, `failing` are names of failed tests."""

    value: float
    tail: str = ""
    failing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unjudged:
    """The branch is not in the running. `score` is there where it has one all the same."""

    reason: str
    score: float | None = None
    tail: str = ""


@dataclass(frozen=True, slots=True)
class JudgeInput:
    """Where a judge works. What the branch left running is ended first, and nothing is judged where that failed.

    `child` is the fresh child for it, None where the checkpoint is none that one could be made of. `restores`: the
    branch's sandbox lives on (the winner's changes are promoted), so a judge's files are taken out of it again.
    `plugin` is the loaded one where the judge is a plug-in.
    """

    shell: SandboxShell
    sandbox_id: str
    branch: str
    env: Mapping[str, str]
    restores: bool = False
    plugin: Plugin | None = None
    child: JudgeChild | None = None


class _NotJudged(Exception):
    """The text is the branch's reason, less `judge: `."""


async def judge(by: Judge, ran: Ran, judge_input: JudgeInput) -> Score | Unjudged:
    """Scores a branch whose program has ended (not one whose time was up)."""
    verdict = await _judged(by, ran, judge_input)
    if isinstance(verdict, Score) and by.score_range is not None:
        least, largest = by.score_range
        if not least <= verdict.value <= largest:
            reason = f"judge: the score {verdict.value:g} is outside of {least:g} to {largest:g}"
            return Unjudged(reason, tail=verdict.tail)
    return verdict


async def _judged(by: Judge, ran: Ran, judge_input: JudgeInput) -> Score | Unjudged:
    if ran.exit_code != 0 and not isinstance(by, PluginJudge):
        reason = f"ended with exit code {ran.exit_code}"
        return Unjudged(reason, 0.0 if isinstance(by, ExitCodeJudge) else None)
    match by:
        case ExitCodeJudge():
            return Score(1.0)
        case RegexJudge():
            return await _by_pattern(by, ran)
        case CommandJudge() | JunitJudge() | FileJudge() | PluginJudge():
            try:
                async with _place(by, judge_input) as sandbox_id:
                    return await _in_sandbox(by, ran, judge_input, sandbox_id)
            except (_NotJudged, NoScore) as error:
                return Unjudged(f"judge: {error}")


async def _in_sandbox(
    by: CommandJudge | JunitJudge | FileJudge | PluginJudge, ran: Ran, judge_input: JudgeInput, sandbox_id: str
) -> Score | Unjudged:
    match by:
        case CommandJudge() | JunitJudge():
            return await _by_program(by, judge_input, sandbox_id)
        case FileJudge():
            text = await _file(judge_input.shell, sandbox_id, by.path)
            return Score(await _read(text.decode(errors="replace"), by.json_path))
        case PluginJudge():
            return await _by_plugin(by, ran, judge_input, sandbox_id)


@asynccontextmanager
async def _place(
    by: CommandJudge | JunitJudge | FileJudge | PluginJudge, judge_input: JudgeInput
) -> AsyncIterator[str]:
    """The sandbox to judge in. Raises _NotJudged."""
    match await judge_input.shell.clear(judge_input.sandbox_id):
        case NotDone(reason=reason):
            raise _NotJudged(reason)
        case NotApart() if by.place == "branch":
            raise _NotJudged("what the branch left running cannot be told from other processes: judge in a child")
    if by.place == "branch":
        yield judge_input.sandbox_id
        return
    if judge_input.child is None:
        raise _NotJudged("there is no checkpoint to make a child of: say in: branch")
    async with AsyncExitStack() as stack:
        try:
            child_id = await stack.enter_async_context(judge_input.child.made())
        except RaceError as error:
            raise _NotJudged(f"no child for it: {error}") from None
        yield child_id


async def _by_program(by: CommandJudge | JunitJudge, judge_input: JudgeInput, sandbox_id: str) -> Score | Unjudged:
    shell = judge_input.shell
    freed = (by.path,) if isinstance(by, JunitJudge) else ()
    in_branch = by.place == "branch"
    paths = (*by.files, *freed)
    aside = await shell.set_aside(sandbox_id, paths) if in_branch and judge_input.restores and paths else None
    if isinstance(aside, NotDone):
        raise _NotJudged(aside.reason)
    # Written only now: a candidate that runs on could replace them.
    folders = await shell.prepare_judge(sandbox_id, by.files, freed)
    if isinstance(folders, NotDone):
        raise _NotJudged(folders.reason)
    env = {**folders.environ(), **by.env, **judge_input.env}
    scored = await shell.run(sandbox_id, by.argv, env=env, timeout=by.timeout)
    found: bytes | str | None
    if isinstance(by, JunitJudge):
        found = await _file(shell, sandbox_id, by.path)
    else:
        found = await shell.score_file(sandbox_id, folders)
    if isinstance(aside, SetAside):
        restored = await shell.put_back(sandbox_id, paths, aside)
        if isinstance(restored, NotDone):
            raise _NotJudged(restored.reason)
    if isinstance(scored, NotRun):
        raise _NotJudged(scored.reason)
    tail = "\n".join(filter(None, (scored.stdout.strip(), scored.stderr.strip())))
    if scored.timed_out:
        return Unjudged(f"judge: the score command did not end within {by.timeout:g} s", tail=tail)
    try:
        if isinstance(found, bytes):
            suite = await asyncio.to_thread(junit.read, found)
            return Score(suite.share, tail, suite.failing)
        if scored.exit_code != 0:
            said = scored.stderr.strip()[-_LONGEST_REASON:]
            reason = f"judge: the score command ended with {scored.exit_code}" + (f": {said}" if said else "")
            if "ModuleNotFoundError" in scored.stderr:
                reason += " (the working directory is on no path of modules: see env and PYTHONPATH)"
            return Unjudged(reason, tail=tail)
        if isinstance(by, CommandJudge) and found:
            return Score(await _read(found, by.json_path), tail)
        return Score(await _read(scored.stdout, by.json_path if isinstance(by, CommandJudge) else None), tail)
    except NoScore as error:
        return Unjudged(f"judge: {error}", tail=tail)


async def _by_pattern(by: RegexJudge, ran: Ran) -> Score | Unjudged:
    try:
        found = await safe_regex.search(by.pattern, ran.stdout if by.stream == "stdout" else ran.stderr, by.group)
        if not found.matched:
            return Unjudged(f"judge: the pattern does not match {by.stream}", 0.0)
        return Score(1.0 if found.text is None else scores.whole(found.text))
    except (safe_regex.BadPattern, safe_regex.NotSearched, NoScore) as error:
        return Unjudged(f"judge: {error}")


async def _file(shell: SandboxShell, sandbox_id: str, path: str) -> bytes:
    match await shell.read(sandbox_id, path, _LARGEST_METRICS):
        case FileContents(data=data):
            return data
        case NotDone(reason=reason):
            raise _NotJudged(reason)


async def _by_plugin(by: PluginJudge, ran: Ran, judge_input: JudgeInput, sandbox_id: str) -> Score | Unjudged:
    if judge_input.plugin is None:
        raise TypeError("a plug-in judge without its plug-in")
    context = JudgeContext(
        branch=judge_input.branch,
        exit_code=ran.exit_code,
        stdout=ran.stdout,
        stderr=ran.stderr,
        options=by.options,
        _shell=judge_input.shell,
        _sandbox_id=sandbox_id,
        _env=judge_input.env,
    )
    try:
        async with asyncio.timeout(by.timeout) as scope:
            value = await judge_input.plugin(context)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return Unjudged("judge: the plug-in gave no number")
        return Score(scores.finite(float(value)))
    except (JudgeFailed, NoScore) as error:
        return Unjudged(f"judge: {str(error)[:_LONGEST_REASON]}")
    except Exception as error:  # the edge to somebody else's code: whatever it raises is this branch's failure
        if scope.expired():
            return Unjudged(f"judge: the plug-in did not end within {by.timeout:g} s")
        return Unjudged(f"judge: the plug-in failed ({type(error).__name__})")


async def _read(text: str, json_path: str | None) -> float:
    """A mebibyte takes tens of milliseconds, which nobody else waits for."""
    if json_path is None:
        return await asyncio.to_thread(scores.stated, text)
    return await asyncio.to_thread(scores.from_json, text, json_path)
