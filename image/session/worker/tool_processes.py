"""Starts the supervisors of the operator's tools (tool_supervisor.py), one for each kind. Standard library only.

The one of private tools is started while the worker is still root, as a user of its own: the agent's user can read
neither its memory nor its environment nor its files, and the only other end of its socket is the worker's.
"""

from __future__ import annotations

import logging
import os
import pwd
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from image.session.claim import Claim, ClaimError
from image.session.worker import tool_manifest
from image.session.worker.tool_frames import pack
from image.session.worker.tool_manifest import TOOLS_DIRECTORY, TOOLS_HOME, TOOLS_USER, ToolKind

SUPERVISOR_ARGUMENT: Final = "--tool-supervisor"
_PATH: Final = "/usr/local/bin:/usr/bin:/bin"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ToolSettings:
    """What a claim says of them: seconds of a call, bytes of a result's text, and what private tools may know.

    one_user: whether private tools may run as the user that everything else runs as, if there is no other one.
    """

    workdir: str
    seconds: float
    longest: int
    secrets: Mapping[str, str]
    one_user: bool = False

    @classmethod
    def of(cls, claim: Claim) -> ToolSettings:
        # Plain http is this machine's offline platform and nothing else: its sandboxes have one user.
        offline = claim.base_url.startswith("http://")
        return cls(claim.workdir, claim.tool_seconds, claim.tool_output_bytes, claim.tool_secrets or {}, offline)


class NotPrivate(Exception):
    """Private tools would have to run as the agent's user."""


def start_as_root(text: str, archive: str, directory: Path = TOOLS_DIRECTORY) -> tuple[str, socket.socket | None]:
    """For a worker that is root still: the supervisor of the image's private tools, and the claim without what only
    they may know. No socket where the image has no such tools or no such user: the claim is as it was then."""
    try:
        claim = Claim.from_json(text)
        private = any(entry.kind is ToolKind.PRIVATE for entry in tool_manifest.read(directory))
        user = pwd.getpwnam(TOOLS_USER) if private else None
    except (ClaimError, ValueError, KeyError):  # told where it is read next
        return text, None
    if user is None:
        return claim._replace(tool_secrets=None).to_json(), None
    configuration = _private_configuration(ToolSettings.of(claim), TOOLS_HOME, directory)
    try:
        started = _spawn(archive, configuration, user=user.pw_uid, group=user.pw_gid)
    except (OSError, subprocess.SubprocessError):  # then there are no private tools, and the session goes on
        started = None
    return claim._replace(tool_secrets=None).to_json(), started


@dataclass(frozen=True, slots=True)
class OperatorTools:
    """How the worker comes to the supervisors. `private`: what `start_as_root` started."""

    archive: str
    private: socket.socket | None = None
    directory: Path = TOOLS_DIRECTORY

    def start_public(self, settings: ToolSettings, variables: Mapping[str, str]) -> socket.socket:
        """Tools of the agent's user, with the environment and the working folder of that user's shell."""
        made = _configuration(ToolKind.PUBLIC, settings, {**os.environ, **variables}, settings.workdir, self.directory)
        return _spawn(self.archive, made)

    def start_private(self, settings: ToolSettings) -> socket.socket:
        """Where no other user is to be had: hidden as well as the worker itself is, and no better. Raises NotPrivate
        where that may not be."""
        if self.private is not None:
            return self.private
        if not settings.one_user:
            raise NotPrivate("private tools are not served here: this worker could not start them as another user")
        log.info("tools.not_private: this sandbox has one user, and private tools run as it")
        home = TOOLS_HOME if os.access(TOOLS_HOME, os.W_OK) else tempfile.mkdtemp(prefix="tools-")
        return _spawn(self.archive, _private_configuration(settings, home, self.directory))


def _private_configuration(settings: ToolSettings, home: str, directory: Path) -> dict[str, Any]:
    own = {"PATH": _PATH, "HOME": home, "LANG": "C.UTF-8", "USER": TOOLS_USER, "LOGNAME": TOOLS_USER}
    ways_out = {name: os.environ[name] for name in ("HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY") if name in os.environ}
    made = _configuration(ToolKind.PRIVATE, settings, {**own, **ways_out, **settings.secrets}, home, directory)
    return {**made, "secrets": list(settings.secrets.values())}


def _configuration(
    kind: ToolKind, settings: ToolSettings, env: dict[str, str], cwd: str, directory: Path
) -> dict[str, Any]:
    return {
        "kind": kind.value,
        "directory": str(directory),
        "env": env,
        "secrets": [],
        "cwd": cwd,
        "seconds": settings.seconds,
        "longest": settings.longest,
    }


def _spawn(
    archive: str, configuration: Mapping[str, Any], user: int | None = None, group: int | None = None
) -> socket.socket:
    """As another user where one is given. The configuration goes by the socket, which has no name."""
    ours, theirs = socket.socketpair()
    try:
        subprocess.Popen(
            [sys.executable, "-I", archive, SUPERVISOR_ARGUMENT, str(theirs.fileno())],
            env={name: configuration["env"][name] for name in ("PATH", "HOME", "LANG") if name in configuration["env"]},
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(theirs.fileno(),),
            start_new_session=True,
            user=user,
            group=group,
            extra_groups=None if user is None else [],
        )
    finally:
        theirs.close()
    ours.sendall(pack(configuration))
    return ours
