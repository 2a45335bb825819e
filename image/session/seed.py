"""The seed repository: cloned by git on the building machine, shipped as one archive.

A build context loses symbolic links, empty folders and owners on its way to the builder; an archive keeps them.
"""

from __future__ import annotations

import os
import re
import subprocess
import tarfile
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

CLONE_LIMIT: Final = 300.0  # seconds

_REVISION: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]*")
_REPOSITORY: Final = re.compile(r"[A-Za-z0-9._~:/@%+-]+")
_URL_WITH_PASSWORD: Final = re.compile(r"^\s*(?:push)?url\s*=.*://[^\s/@]*:[^\s/@]*@", re.IGNORECASE | re.MULTILINE)

# What a person's own git settings may say must not change the files: the clone is used on another machine.
_NEUTRAL: Final = ("-c", "core.autocrlf=false", "-c", "core.eol=lf", "-c", "core.symlinks=true")


class SeedError(ValueError):
    """A seed repository that cannot be used. The text says why."""


def check_seed(url: str, revision: str | None) -> None:
    """No credential in the URL (the clone keeps it), and nothing that a shell or git could take for something else.

    Raises SeedError.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "ssh", "file") or not _REPOSITORY.fullmatch(url) or not parts.path.strip("/"):
        raise SeedError("the seed repository is not a plain https://, ssh:// or file:// URL")
    if parts.scheme != "file" and not parts.hostname:
        raise SeedError("the seed repository's URL names no host")
    if parts.password or (parts.username and parts.scheme != "ssh"):
        raise SeedError("the seed repository's URL holds a credential, which every sandbox would then hold too")
    if revision is not None and (not _REVISION.fullmatch(revision) or ".." in revision):
        raise SeedError(f"seed revision {revision!r} is not a branch or tag name")


def clone(url: str, revision: str | None, target: Path) -> None:
    """The newest commit with its submodules, by git on this machine and with whatever credential it has: none of it
    gets into the image. Raises SeedError."""
    branch = [] if revision is None else ["--branch", revision]
    depth = ["--depth", "1", "--recurse-submodules", "--shallow-submodules"]
    command = ["git", *_NEUTRAL, "clone", "--quiet", *depth, "--template=", *branch, "--", url, str(target)]
    try:
        done = subprocess.run(
            command,
            check=False,
            env={**os.environ, "GIT_TERMINAL_PROMPT": "0", "GIT_ALLOW_PROTOCOL": "https:ssh:file"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=CLONE_LIMIT,
        )
    except FileNotFoundError:
        raise SeedError("a seed repository needs git on this machine") from None
    except subprocess.TimeoutExpired:
        raise SeedError(f"cloning the seed repository took longer than {CLONE_LIMIT:g} s") from None
    if done.returncode != 0:
        raise SeedError(f"the seed repository could not be cloned: {done.stderr.strip()[-500:]}")
    for config in target.glob(".git/**/config"):
        if _URL_WITH_PASSWORD.search(config.read_text(encoding="utf-8", errors="replace")):
            raise SeedError("a submodule's URL holds a credential, which every sandbox would then hold too")


def pack(tree: Path, archive: Path) -> None:
    """Everything below `tree`, as a tar file: links as links, empty folders, modes; root's, until the image's steps
    give it to its user."""

    def as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.uid = member.gid = 0
        member.uname = member.gname = "root"
        return member

    with tarfile.open(archive, "w", format=tarfile.PAX_FORMAT) as tar:
        for path in sorted(tree.iterdir()):
            tar.add(path, path.name, filter=as_root)
