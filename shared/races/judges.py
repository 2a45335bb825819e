"""From a branch that ended to its score. A judge that fails is that branch's failure, with the judge's reason."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from shared.races import safe_regex, scores
from shared.races.plugins import JudgeContext, JudgeFailed, Plugin
from shared.races.request import CommandJudge, ExitCodeJudge, FileJudge, Judge, PluginJudge, RegexJudge
from shared.races.scores import NoScore
from shared.races.shell import NotDone, NotRun, Ran, SandboxShell

_LARGEST_METRICS: Final = 1_048_576
_LONGEST_REASON: Final = 200


@dataclass(frozen=True, slots=True)
class Score:
    """What the judge says; finite. `tail` is what a score command has written."""

    value: float
    tail: str = ""


@dataclass(frozen=True, slots=True)
class Unjudged:
    """The branch is not in the running. `score` is there where it has one all the same."""

    reason: str
    score: float | None = None
    tail: str = ""


@dataclass(frozen=True, slots=True)
class JudgeInput:
    """Where a judge works: the branch's sandbox. A judge that reads or runs anything there first ends what the branch
    left running (SandboxShell.clear), and does not judge where that failed.

    `restores`: the sandbox's files live on (the winner's are promoted), so a judge's files are taken out again.
    `plugin` is the loaded one where the judge is a plug-in.
    """

    shell: SandboxShell
    sandbox_id: str
    branch: str
    env: Mapping[str, str]
    restores: bool = False
    plugin: Plugin | None = None


async def judge(by: Judge, ran: Ran, judge_input: JudgeInput) -> Score | Unjudged:
    """Scores a branch whose program has ended (not one whose time was up)."""
    if isinstance(by, PluginJudge):
        return await _by_plugin(by, ran, judge_input)
    if ran.exit_code != 0:
        reason = f"ended with exit code {ran.exit_code}"
        return Unjudged(reason, 0.0 if isinstance(by, ExitCodeJudge) else None)
    match by:
        case ExitCodeJudge():
            return Score(1.0)
        case CommandJudge():
            return await _by_command(by, judge_input)
        case RegexJudge():
            return await _by_pattern(by, ran)
        case FileJudge():
            return await _by_file(by, judge_input)


async def _by_command(by: CommandJudge, judge_input: JudgeInput) -> Score | Unjudged:
    # Written only now: a candidate that runs on could replace its judge, or what the judge prints.
    shell, sandbox_id = judge_input.shell, judge_input.sandbox_id
    running = await shell.clear(sandbox_id)
    if isinstance(running, NotDone):
        return Unjudged(f"judge: {running.reason}")
    aside = await shell.set_aside(sandbox_id, by.files) if judge_input.restores and by.files else None
    if isinstance(aside, NotDone):
        return Unjudged(f"judge: {aside.reason}")
    written = await shell.install(sandbox_id, by.files)
    if isinstance(written, NotDone):
        return Unjudged(f"judge: {written.reason}")
    scored = await shell.run(sandbox_id, by.argv, env={**by.env, **judge_input.env}, timeout=by.timeout)
    if aside is not None:
        restored = await shell.put_back(sandbox_id, by.files, aside)
        if isinstance(restored, NotDone):
            return Unjudged(f"judge: {restored.reason}")
    if isinstance(scored, NotRun):
        return Unjudged(f"judge: {scored.reason}")
    tail = "\n".join(filter(None, (scored.stdout.strip(), scored.stderr.strip())))
    if scored.timed_out:
        return Unjudged(f"judge: the score command did not end within {by.timeout:g} s", tail=tail)
    if scored.exit_code != 0:
        said = scored.stderr.strip()[-_LONGEST_REASON:]
        reason = f"judge: the score command ended with {scored.exit_code}" + (f": {said}" if said else "")
        return Unjudged(reason, tail=tail)
    try:
        return Score(_read(scored.stdout, by.json_path, "the score command printed no number"), tail)
    except NoScore as error:
        return Unjudged(f"judge: {error}", tail=tail)


async def _by_pattern(by: RegexJudge, ran: Ran) -> Score | Unjudged:
    try:
        found = await safe_regex.search(by.pattern, ran.stdout if by.stream == "stdout" else ran.stderr, by.group)
        if not found.matched:
            return Unjudged(f"judge: the pattern does not match {by.stream}", 0.0)
        return Score(1.0 if found.text is None else scores.whole(found.text))
    except (safe_regex.NotSearched, NoScore) as error:
        return Unjudged(f"judge: {error}")


async def _by_file(by: FileJudge, judge_input: JudgeInput) -> Score | Unjudged:
    running = await judge_input.shell.clear(judge_input.sandbox_id)
    if isinstance(running, NotDone):
        return Unjudged(f"judge: {running.reason}")
    read = await judge_input.shell.read(judge_input.sandbox_id, by.path, _LARGEST_METRICS)
    if isinstance(read, NotDone):
        return Unjudged(f"judge: {read.reason}")
    try:
        return Score(_read(read.data.decode(errors="replace"), by.json_path, "the file holds no number"))
    except NoScore as error:
        return Unjudged(f"judge: {error}")


async def _by_plugin(by: PluginJudge, ran: Ran, judge_input: JudgeInput) -> Score | Unjudged:
    if judge_input.plugin is None:
        raise TypeError("a plug-in judge without its plug-in")
    running = await judge_input.shell.clear(judge_input.sandbox_id)
    if isinstance(running, NotDone):
        return Unjudged(f"judge: {running.reason}")
    context = JudgeContext(
        branch=judge_input.branch,
        exit_code=ran.exit_code,
        stdout=ran.stdout,
        stderr=ran.stderr,
        options=by.options,
        _shell=judge_input.shell,
        _sandbox_id=judge_input.sandbox_id,
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


def _read(text: str, json_path: str | None, none: str) -> float:
    if json_path is not None:
        return scores.from_json(text, json_path)
    number = scores.last_number(text)
    if number is None:
        raise NoScore(none)
    return scores.finite(number)
