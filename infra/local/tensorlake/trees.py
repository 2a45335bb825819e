"""Directory trees: copy, hard-link, remove. Blocking; call in a thread where a tree may be large."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

LONGEST_LINK_CHAIN = 40


class CopyError(Exception):
    """A tree could not be copied; the text is the copying program's."""


def copy_into(source: Path, target: Path) -> None:
    """Copy what is in `source` into `target` with modes, links, times, extended attributes and whiteouts.

    `cp` does it without holding the interpreter, and shares blocks where the file system can.
    """
    target.mkdir(parents=True, exist_ok=True)
    if not source.is_dir() or not any(source.iterdir()):
        return
    sharing = ["--reflink=auto"] if sys.platform.startswith("linux") else ["-c"]
    command = ["cp", "-a", *sharing, "--", f"{source}/.", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise CopyError(done.stderr.strip()[-500:])


def link_into(source: Path, target: Path) -> None:
    """Rebuild `source` in `target` with hard links for its files: no data is copied.

    Safe only where files are replaced as a whole and never written in place.
    """
    target.mkdir(parents=True, exist_ok=True)
    with os.scandir(source) as entries:
        for entry in entries:
            there = target / entry.name
            if entry.is_symlink():
                there.symlink_to(Path(entry.path).readlink())
            elif entry.is_dir():
                link_into(Path(entry.path), there)
                there.chmod(entry.stat().st_mode & 0o7777)
            else:
                try:
                    there.hardlink_to(entry.path)
                except OSError:
                    shutil.copy2(entry.path, there)


def remove(tree: Path) -> None:
    """Remove a tree whatever modes its directories were given (overlay work directories have none at all)."""
    if not tree.exists():
        return
    try:
        shutil.rmtree(tree, ignore_errors=True)
        if tree.exists():
            for directory, names, _ in os.walk(tree):
                for name in names:
                    inner = Path(directory, name)
                    if not inner.is_symlink():
                        with contextlib.suppress(OSError):
                            inner.chmod(0o700)
            shutil.rmtree(tree, ignore_errors=True)
    except RecursionError:  # folders in folders, deeper than Python's own functions go
        subprocess.run(["rm", "-rf", "--", str(tree)], check=False, capture_output=True)


def within(root: Path, path: str) -> Path:
    """The host path of an absolute sandbox path below `root`."""
    return root / path.lstrip("/")


def resolve_in(root: Path, path: str, stop: Callable[[str], bool] = lambda _: False) -> str:
    """An absolute path below `root` without symbolic links, as if `root` were the file system's root.

    What `stop` holds for is not looked at any more. Raises OSError for a chain of links without end.
    """
    pending = path.strip("/").split("/")
    done = ""
    links = 0
    while pending:
        part = pending.pop(0)
        if part in ("", "."):
            continue
        if part == "..":
            done = done.rpartition("/")[0]
            continue
        here = f"{done}/{part}"
        if stop(here):
            return "/".join([here, *pending])
        real = within(root, here)
        if not real.is_symlink():
            done = here
            continue
        links += 1
        if links > LONGEST_LINK_CHAIN:
            raise OSError(errno.ELOOP, "too many symbolic links", path)
        target = str(real.readlink())
        if target.startswith("/"):
            done = ""
        pending = [*target.split("/"), *pending]
    return done or "/"
