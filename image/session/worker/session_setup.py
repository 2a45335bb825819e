"""A session's sandbox is made ready: with the lease held and beating, as the agent's user, before the first tool call.

Once: what has been asked for is marked on disk by its digest. A mark `running` that a worker finds at its start is of
one that was interrupted: that set-up is done again in full, and what it left is removed first. A set-up that failed is
done again by the next worker, except where the session was let run in spite of it (docs/setup.md#once).

In a sandbox that was started from a prepared one the environment's part is there, marked `prepared`: then only what
differs is fetched (docs/setup.md#prepared-starts).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from image.session.claim import Claim, Ended, Exit
from image.session.setup import FAILED_FILE, STAGING, BadSetup, FileSource, SetupPolicy, Wishes, bare
from image.session.worker.output import Redactor
from image.session.worker.setup_commands import LONGEST_TAIL, CommandFailed, SetupCommands, SourceFailed, printable
from image.session.worker.setup_download import download, same_file
from image.session.worker.setup_mark import DONE, FAILED, GIVEN_UP, PREPARED, RUNNING, SetupMark
from image.session.worker.setup_sources import DoesNotFit, clone, place, update
from image.session.worker.state_directory import StateDirectory

_LONGEST_REASON: Final = 1000  # characters

log = logging.getLogger(__name__)


class SessionSetup:
    """One session's set-up in one worker. Made on the event loop; `begin` is called when the session is known."""

    def __init__(
        self,
        policy: SetupPolicy,
        state: StateDirectory,
        workdir: Path,
        redactor: Redactor,
        say: Callable[[str], object],
        signed: Mapping[str, str] | None = None,
        credential: Mapping[str, str] | None = None,
        *,
        prepares: bool = False,
    ) -> None:
        """`say` tells the operator a step. `signed`: where an object of a store is fetched, by its s3:// or gs://
        URL. `prepares`: what is made ready here is what sessions are started from."""
        self._policy = replace(policy, go_on=False) if prepares else policy
        self._end_state = PREPARED if prepares else DONE
        self._state = state
        self._workdir = workdir
        self._redactor = redactor
        self._say = say
        self._commands = SetupCommands()
        self._mark = SetupMark()
        self._signed = signed or {}
        self._credential = credential
        for secret in (*self._signed.values(), (credential or {}).get("password")):
            redactor.add(secret)
        self._task: asyncio.Task[None] | None = None
        self._aborted = ""
        self.failure = ""
        """Why no tool may run, in words for the agent; empty where they may. Known once it is `over`."""
        self.reason = self.tail = ""
        """Of a failure, for the operator: why, and the end of what was said."""
        self.variables: Mapping[str, str] = {}
        """For the agent's tools."""

    def begin(self, session: bytes) -> None:
        """Starts it, once; `session` is the session's JSON."""
        if self._task is None:
            self._task = asyncio.create_task(self._run(session))

    async def over(self, patience: float | None = None) -> bool:
        """Waits for its end, at most `patience` seconds, and says whether it has come. One that has not begun is over:
        the session is known before its first call."""
        if self._task is None:
            return True
        await asyncio.wait({self._task}, timeout=patience)
        return self._task.done()

    def abort(self, why: str) -> None:
        """Ends it where it is; the next worker begins anew."""
        if self._task is not None and not self._task.done():
            self._aborted = why
            self._task.cancel()

    async def aclose(self) -> None:
        self.abort("the worker ends")
        await self.over()

    async def _run(self, session: bytes) -> None:
        self._mark = SetupMark.read(self._state)
        try:
            wishes = self._policy.wishes(metadata_of(session))
            self.variables = dict(wishes.env)
            if wishes.work:
                await self._unless_done(wishes)
        except BadSetup as error:
            self._fail(str(error), "")
        except asyncio.CancelledError:
            self.failure = f"The set-up of this session was broken off: {self._aborted}. Its next turn begins it anew."
            self._tell(f"broken off: {self._aborted}")
        except Exception as error:  # the edge: a bug in a set-up is told and ends no worker
            log.exception("setup.bug")
            self._fail(f"{type(error).__name__}: {error}", "")

    async def _unless_done(self, wishes: Wishes) -> None:
        digest = wishes.digest()
        if self._mark.digest == digest and self._mark.state in (DONE, GIVEN_UP):
            log.info("setup.known state=%s digest=%s", self._mark.state, digest[:12])
            return
        # No tool of the agent's runs before the end: what an unfinished one has put somewhere is nobody's work.
        unfinished = self._mark.state in (RUNNING, FAILED)
        prepared = self._mark.state == PREPARED
        fits = prepared and self._mark.digest == self._policy.base.digest()
        made = self._mark.made if unfinished or prepared else ()
        self._tell("goes on from a prepared start" if fits else "begins anew" if unfinished else "begins")
        began = time.monotonic()
        reason, tail = await self._bounded(wishes, SetupMark(digest, RUNNING, made), fits=fits)
        if reason:
            self._mark = self._mark._replace(digest=digest, state=GIVEN_UP if self._policy.go_on else FAILED)
            self._fail(reason, tail)
        else:
            self._tell(f"done in {time.monotonic() - began:.1f} s")

    async def _bounded(self, wishes: Wishes, mark: SetupMark, *, fits: bool) -> tuple[str, str]:
        """Why it failed and the end of what was said; two empty texts where it is done."""
        try:
            async with asyncio.timeout(self._policy.seconds):
                self._note(mark)
                await self._work(wishes, fits=fits)
                self._note(self._mark._replace(state=self._end_state))
        except TimeoutError:
            return f"it took longer than {self._policy.seconds:g} s (SETUP_SECONDS)", self._commands.tail
        except (SourceFailed, CommandFailed) as error:
            return str(error), error.tail
        except BadSetup as error:
            return str(error), ""
        except (OSError, Ended) as error:
            said = error.strerror if isinstance(error, OSError) else str(error)
            return f"the sandbox's files: {said or type(error).__name__}", ""
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, self._staging, ignore_errors=True))
        return "", ""

    def _note(self, mark: SetupMark) -> None:
        """Raises OSError, Ended."""
        mark.write(self._state)
        self._mark = mark

    def _tell(self, what: str) -> None:
        log.info("setup.%s", what)
        self._say(what)

    @property
    def _staging(self) -> Path:
        return self._workdir / STAGING

    async def _work(self, wishes: Wishes, *, fits: bool) -> None:
        """`fits`: the environment's part is there, of a prepared start."""
        await asyncio.to_thread(_remove, self._staging)
        self._staging.mkdir(mode=0o700)
        (self._workdir / FAILED_FILE).unlink(missing_ok=True)
        env = {**os.environ, **wishes.env}
        if fits:
            try:
                await self._what_differs(wishes, env)
            except DoesNotFit as error:
                self._tell(f"makes everything anew, the prepared start does not fit: {error}")
                for target in self._mark.made:
                    await asyncio.to_thread(_remove, self._workdir / target)
            else:
                return
        cwd = await self._cloned(wishes, env) if wishes.repo else self._workdir
        for number, source in enumerate(wishes.files):
            await self._fetched(number, source)
        await self._scripts(wishes, 0, cwd, env)

    async def _what_differs(self, wishes: Wishes, env: Mapping[str, str]) -> None:
        """The environment's scripts run again where anything that they may have read is another now. Raises
        DoesNotFit."""
        base, cwd = self._policy.base, self._workdir
        differs = dict(wishes.env) != dict(base.env)
        if base.repo:
            if (wishes.repo, wishes.subdir) != (base.repo, base.subdir):
                raise DoesNotFit("another repository, or another folder of it, is asked for")
            cwd = self._workdir / base.folder
            as_before = wishes.ref == base.ref
            new = await update(wishes, self._policy, cwd, env, self._commands, self._credential, as_before=as_before)
            differs |= new is not None
            now = "is at its revision already" if new is None else f"brought to {new.what} at {new.commit}"
            self._tell(f"{bare(wishes.repo)} {now}")
        elif wishes.repo:
            cwd, differs = await self._cloned(wishes, env), True
        for number, source in enumerate(wishes.files):
            there = self._workdir / source.target
            if source in base.files and source.sha256 and there.is_file():
                continue
            differs |= await self._fetched(number, source, before=there if source in base.files else None)
        await self._scripts(wishes, 0 if differs else len(base.scripts), cwd, env)

    async def _cloned(self, wishes: Wishes, env: Mapping[str, str]) -> Path:
        self._tell(f"clones {bare(wishes.repo)} at {wishes.ref or 'its default branch'}")
        made = self._staging / "repository"
        checkout = await clone(wishes, self._policy, made, env, self._commands, self._credential)
        await self._put(made, wishes.folder)
        self._tell(f"cloned {bare(wishes.repo)}: {checkout.what} at {checkout.commit}")
        return self._workdir / wishes.folder

    async def _fetched(self, number: int, source: FileSource, before: Path | None = None) -> bool:
        """Whether it is another one than what lies at `before`."""
        made = self._staging / f"file-{number}"
        size = await download(source, self._url_of(source.url), self._policy, made)
        differs = before is None or not await asyncio.to_thread(same_file, made, before)
        if differs:
            await self._put(made, source.target)
        self._tell(f"fetched {bare(source.url)}: {size} bytes in {source.target}")
        return differs

    async def _scripts(self, wishes: Wishes, first: int, cwd: Path, env: Mapping[str, str]) -> None:
        for number, text in enumerate(wishes.scripts[first:], first + 1):
            what = f"set-up script {number} of {len(wishes.scripts)}" if len(wishes.scripts) > 1 else "set-up script"
            self._tell(f"runs the {what}")
            await self._script(text, what, cwd, env)

    def _url_of(self, url: str) -> str:
        if url.startswith("https:") or url.startswith("http:"):
            return url
        if url not in self._signed:
            raise BadSetup(f"{bare(url)}: the functions have made no address for it to be fetched from (docs/setup.md)")
        return self._signed[url]

    async def _put(self, made: Path, target: str) -> None:
        """What lies in its place is ours where an unfinished set-up has put it there; else it is somebody's work, and
        is renamed."""
        there = self._workdir / target
        if target in self._mark.made:
            await asyncio.to_thread(_remove, there)
        with contextlib.suppress(FileNotFoundError):
            aside = there.with_name(f"{there.name}.left-{time.time_ns()}")
            there.rename(aside)
            self._tell(f"set aside what lay at {target}: {aside.name}")
        self._note(self._mark._replace(made=(*self._mark.made, target)))
        place(made, there, self._workdir)

    async def _script(self, text: str, what: str, cwd: Path, env: Mapping[str, str]) -> None:
        """As CI systems run one: it ends at the first command that fails. One with a `#!` line chooses its program."""
        script = self._staging / "script"
        script.write_text(text if text.endswith("\n") else f"{text}\n", encoding="utf-8")
        script.chmod(0o700)
        shell = ["/bin/bash", "--noprofile", "--norc", "-eo", "pipefail"]
        await self._commands.run(what, [*([] if text.startswith("#!") else shell), str(script)], cwd=cwd, env=env)

    def _fail(self, reason: str, tail: str) -> None:
        reason = self._redactor.apply(reason)[:_LONGEST_REASON]
        tail = self._redactor.apply(tail)[-LONGEST_TAIL:]
        self.reason, self.tail = reason, tail
        self._tell(f"failed: {printable(reason, _LONGEST_REASON)}")
        with contextlib.suppress(OSError, Ended):
            self._note(self._mark._replace(reason=printable(reason, _LONGEST_REASON)))
        said = f"\n\nThe end of what it said:\n{tail}" if tail else ""
        if self._policy.go_on:
            with contextlib.suppress(OSError):
                text = f"The set-up of this session failed: {reason}.{said}\n"
                (self._workdir / FAILED_FILE).write_text(text, encoding="utf-8", errors="replace")
            return
        self.failure = (
            f"This call was not run: the set-up of this session failed: {reason}. The session's next turn tries it "
            f"again from the start; what is wrong has to be mended outside of the sandbox first.{said}"
        )


def setup_of(
    claim: Claim, state: StateDirectory, redactor: Redactor, say: Callable[[str], object], *, prepares: bool = False
) -> SessionSetup | None:
    """None where the claim names none. Raises Ended(BAD_CLAIM) where it names one that cannot be read."""
    if claim.setup is None:
        return None
    try:
        policy = SetupPolicy.from_wire(claim.setup)
    except BadSetup as error:
        raise Ended(Exit.BAD_CLAIM, str(error)) from None
    workdir = Path(claim.workdir).absolute()
    return SessionSetup(policy, state, workdir, redactor, say, claim.signed, claim.credential, prepares=prepares)


def metadata_of(session: bytes) -> dict[str, str]:
    """A session's metadata, from its JSON; what is no text is left out."""
    try:
        raw: Any = json.loads(session).get("metadata")
    except (ValueError, AttributeError):
        return {}
    if not isinstance(raw, dict):
        return {}
    return {key: value for key, value in raw.items() if isinstance(key, str) and isinstance(value, str)}


def _remove(path: Path) -> None:
    """Whatever lies there, if anything does; a link itself."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
