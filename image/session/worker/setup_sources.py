"""Where a session's repository comes from: git over https. Files: setup_download.py.

Everything is made in a staging folder beside its place and moved there when it is whole, so that nobody ever finds half
of it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from image.session.setup import BadSetup, SetupPolicy, Wishes, bare
from image.session.worker.setup_commands import CommandFailed, SetupCommands, SourceFailed, printable

_SILENCE: Final = 60.0  # seconds without a byte
_COMMIT: Final = re.compile(r"[0-9a-f]{7,40}")
_UNREACHED: Final = re.compile(
    r"could not resolve|failed to connect|couldn't connect|connection (refused|timed out|reset)|timed out|"
    r"network is unreachable|no route to host",
    re.IGNORECASE,
)
_PRIVATE: Final = re.compile(
    r"could not read (username|password)|authentication failed|repository .*not found|terminal prompts disabled|"
    r"returned error: (401|403|404)",
    re.IGNORECASE,
)

log = logging.getLogger(__name__)


class DoesNotFit(Exception):
    """What a prepared start has is not what can be gone on from; the text says why."""


@dataclass(frozen=True, slots=True)
class Checkout:
    """What of a repository was checked out, and its commit."""

    what: str
    commit: str


async def clone(
    wishes: Wishes,
    policy: SetupPolicy,
    target: Path,
    env: Mapping[str, str],
    commands: SetupCommands,
    credential: Mapping[str, str] | None = None,
) -> Checkout:
    """The repository at its revision, in a folder that does not exist yet. Raises SourceFailed, BadSetup.

    credential: `username` and `password`, for the repository's own host alone. git reads it from an anonymous file: it
    stands in no argument, no variable and nowhere on the disk, and is gone with the last of its processes.
    """
    policy.reaches(wishes.repo)
    try:
        with _anonymous(credential) as descriptor:
            return await _Clone(wishes, policy, target, env, commands, descriptor).run()
    except CommandFailed as failed:
        raise SourceFailed(_explained(str(failed), failed.tail, wishes.repo), failed.tail) from None


async def update(
    wishes: Wishes,
    policy: SetupPolicy,
    target: Path,
    env: Mapping[str, str],
    commands: SetupCommands,
    credential: Mapping[str, str] | None = None,
    *,
    as_before: bool,
) -> Checkout | None:
    """Brings a clone that an earlier set-up has made to its revision; None where it is there. Raises as `clone` does,
    and DoesNotFit for one that cannot be brought there.

    as_before: the earlier set-up was asked for the same branch, tag or commit.
    """
    policy.reaches(wishes.repo)
    try:
        with _anonymous(credential) as descriptor:
            return await _Clone(wishes, policy, target, env, commands, descriptor).update(as_before=as_before)
    except CommandFailed as failed:
        raise SourceFailed(_explained(str(failed), failed.tail, wishes.repo), failed.tail) from None


@contextlib.contextmanager
def _anonymous(credential: Mapping[str, str] | None) -> Iterator[int | None]:
    """A descriptor of what git's credential helpers answer (git-credential(1))."""
    if credential is None:
        yield None
        return
    if not hasattr(os, "memfd_create"):
        raise SourceFailed("a private repository needs Linux in the sandbox")
    descriptor = os.memfd_create("credential")
    try:
        os.write(descriptor, f"username={credential['username']}\npassword={credential['password']}\n".encode())
        yield descriptor
    finally:
        os.close(descriptor)


def _explained(what: str, said: str, url: str) -> str:
    host = urlsplit(url).hostname or ""
    if _UNREACHED.search(said):
        return f"{what}: {host} was not reached; if the sandbox may not reach it, SANDBOX_ALLOW_OUT lacks it"
    if _PRIVATE.search(said):
        return f"{what}: {bare(url)} is not there, or is private and no credential for it is at hand"
    return what


class _Clone:
    def __init__(
        self,
        wishes: Wishes,
        policy: SetupPolicy,
        target: Path,
        env: Mapping[str, str],
        commands: SetupCommands,
        descriptor: int | None,
    ) -> None:
        self._wishes = wishes
        self._descriptor = descriptor
        self._commands = commands
        self._depth = ["--depth", str(policy.depth)] if policy.depth else []
        self._target = target
        scheme = urlsplit(wishes.repo).scheme
        # Nothing that an earlier turn may have left in the home folder leads elsewhere; the image's settings count.
        self._env = {
            **env,
            "GIT_ALLOW_PROTOCOL": scheme,
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_TERMINAL_PROMPT": "0",
            "GIT_ASKPASS": "/bin/false",
            "GIT_HTTP_LOW_SPEED_LIMIT": "1",
            "GIT_HTTP_LOW_SPEED_TIME": f"{_SILENCE:.0f}",
        }
        if descriptor is not None:
            parts = urlsplit(wishes.repo)
            helper = f'!f() {{ test "$1" != get || cat /dev/fd/{descriptor}; }}; f'
            self._env |= {
                "GIT_CONFIG_COUNT": "1",
                "GIT_CONFIG_KEY_0": f"credential.{parts.scheme}://{parts.netloc}.helper",
                "GIT_CONFIG_VALUE_0": helper,
            }

    async def run(self) -> Checkout:
        self._target.mkdir(parents=True)
        await self._git("init", "--quiet", "--template=")
        await self._git("remote", "add", "origin", self._wishes.repo)
        if self._wishes.subdir:
            await self._git("config", "remote.origin.promisor", "true")
            await self._git("config", "remote.origin.partialclonefilter", "blob:none")
            await self._git("sparse-checkout", "set", "--cone", "--", self._wishes.subdir)
        return await self._checked_out()

    async def update(self, *, as_before: bool) -> Checkout | None:
        if not (self._target / ".git").is_dir():
            raise DoesNotFit("its repository is gone")
        here = await self._commit()
        if as_before and here == await self._wanted():
            return None
        if await self._git("status", "--porcelain", "--untracked-files=no", echo=False):
            raise DoesNotFit("its scripts have changed files of the repository, which is at another revision now")
        try:
            checkout = await self._checked_out()
        except SourceFailed as failed:
            raise DoesNotFit(str(failed)) from None
        except CommandFailed as failed:
            if str(failed).startswith("git checkout"):  # what a script has made lies in the way
                raise DoesNotFit(f"{failed}: {printable(failed.tail)}") from None
            raise
        return None if as_before and checkout.commit == here else checkout

    async def _wanted(self) -> str:
        """The commit that is asked for, where that can be told without fetching it; else empty."""
        ref = self._wishes.ref
        if len(ref) == 40 and _COMMIT.fullmatch(ref):
            return ref
        offered = await self._offered()
        branch = ref or offered.get("HEAD", "")
        return offered.get(f"refs/heads/{branch}") or offered.get(f"refs/tags/{ref}", "")

    async def _checked_out(self) -> Checkout:
        checkout = await self._check_out()
        if self._wishes.subdir and not (self._target / self._wishes.subdir).is_dir():
            raise SourceFailed(f"{bare(self._wishes.repo)} has no folder {self._wishes.subdir} at {checkout.what}")
        if (self._target / ".gitmodules").is_file() and not self._wishes.subdir:
            await self._git("submodule", "update", "--init", "--recursive", *self._depth)
        return checkout

    async def _check_out(self) -> Checkout:
        ref, url = self._wishes.ref, bare(self._wishes.repo)
        offered = await self._offered()
        branch = ref or offered.get("HEAD", "")
        if f"refs/heads/{branch}" in offered:
            await self._fetch(f"+refs/heads/{branch}:refs/remotes/origin/{branch}")
            await self._git("checkout", "--quiet", "-B", branch, "--track", f"origin/{branch}")
            return Checkout(f"branch {branch}", await self._commit())
        if not ref:
            raise SourceFailed(f"{url} has no branch that could be checked out: it is empty")
        if f"refs/tags/{ref}" in offered:
            await self._fetch(f"+refs/tags/{ref}:refs/tags/{ref}")
            await self._git("checkout", "--quiet", "--detach", f"refs/tags/{ref}")
            return Checkout(f"tag {ref}", await self._commit())
        if not _COMMIT.fullmatch(ref):
            raise SourceFailed(f"{url} has no branch or tag {ref}")
        await self._fetch_commit(ref)
        try:
            await self._git("checkout", "--quiet", "--detach", f"{ref}^{{commit}}")
        except CommandFailed as failed:
            raise SourceFailed(f"{url} has no branch, tag or commit {ref}", failed.tail) from None
        return Checkout("a commit", await self._commit())

    async def _fetch_commit(self, ref: str) -> None:
        """Alone where the server gives a commit by its name, else with everything."""
        if len(ref) == 40:
            try:
                await self._fetch(ref)
            except CommandFailed as failed:
                log.info("setup.commit_not_offered reason=%s", printable(failed.tail))
            else:
                return
        await self._git("fetch", "--progress", "--tags", *self._filter, "origin", "+refs/heads/*:refs/remotes/origin/*")

    async def _offered(self) -> dict[str, str]:
        """Commits by the full names of refs, with the default branch's short name as HEAD."""
        said = await self._git("ls-remote", "--symref", "origin", "HEAD", *self._patterns(), echo=False)
        offered: dict[str, str] = {}
        for line in said.splitlines():
            value, _, name = line.partition("\t")
            if value.startswith("ref: refs/heads/"):
                offered["HEAD"] = value.removeprefix("ref: refs/heads/")
                offered.setdefault(value.removeprefix("ref: "), "")
            elif name == "HEAD" and "HEAD" in offered:
                offered[f"refs/heads/{offered['HEAD']}"] = value
            elif name.startswith("refs/"):
                offered[name] = value
        return offered

    def _patterns(self) -> list[str]:
        ref = self._wishes.ref
        return [f"refs/heads/{ref}", f"refs/tags/{ref}"] if ref else []

    @property
    def _filter(self) -> list[str]:
        return ["--filter=blob:none"] if self._wishes.subdir else []

    async def _fetch(self, what: str) -> None:
        await self._git("fetch", "--progress", "--no-tags", *self._depth, *self._filter, "origin", what)

    async def _commit(self) -> str:
        return (await self._git("rev-parse", "HEAD", echo=False)).strip()

    async def _git(self, *arguments: str, echo: bool = True) -> str:
        name = f"git {arguments[0]}"
        try:
            return await self._commands.run(
                name, ["git", *arguments], cwd=self._target, env=self._env, echo=echo, passed=self._descriptor
            )
        except FileNotFoundError:
            raise SourceFailed("a repository needs git in the sandbox's image") from None


def place(made: Path, target: Path, workdir: Path) -> None:
    """Moves what was made to its place, where nothing lies. Raises BadSetup where a link leads out of the workdir."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(workdir.resolve()):
        raise BadSetup(f"{target.relative_to(workdir)} leads out of the workspace by a link")
    made.rename(target)
