"""A Linux root in a folder in place of this machine's programs (docs/offline.md#an-images-own-root).

Nothing in the folder is ever written: what is root's is bound read-only, the agent's paths and small files are copied.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from infra.local.tensorlake import inside, trees
from infra.local.tensorlake.host import Host, users
from infra.local.tensorlake.layers import AGENT_UID, Runtime

_PYTHONS: Final = ("/usr/local/bin/python3", "/usr/bin/python3", "/bin/python3")
_COPIED: Final = "/etc"
"""Copied as a whole: it is small, and the sandbox's own files go into it."""
_EMPTY: Final = ("/tmp", "/var/tmp", "/run", "/var/lib/hands")
"""What a root that was used has there is of that use: the session of the worker that ran in it, above all."""
_OWN_MOUNTS: Final = ("/proc", "/dev", "/sys")
_OF_THE_MACHINE: Final = ("hosts", "resolv.conf")


class RootError(trees.CopyError):
    """The folder cannot be a sandbox's root; the text says why and what to do."""


@dataclass(frozen=True)
class RootedHost(Host):
    """root: the folder, absolute and without a link."""

    root: Path = Path("/nowhere")

    @classmethod
    def at(cls, folder: Path, data_dir: Path) -> RootedHost:
        """Raises RootError."""
        if not sys.platform.startswith("linux"):
            raise RootError("an image's own root needs Linux")
        if not folder.is_dir():
            raise RootError(f"IMAGE_ROOT: {folder} is no folder; give one with a Linux root in it")
        root = folder.resolve()
        if not (root / "usr").is_dir() or not (root / "etc").is_dir():
            raise RootError(f"IMAGE_ROOT: {root} has no usr or no etc, so it is no Linux root")
        python = next((path for path in _PYTHONS if trees.within(root, trees.resolve_in(root, path)).is_file()), None)
        if python is None:
            raise RootError(f"IMAGE_ROOT: {root} has no python3 in {' or '.join(_PYTHONS)}; a session image has one")
        program = data_dir / "program"
        # As text: byte code would have to be of the root's own Python.
        (program / "inside").mkdir(parents=True, exist_ok=True)
        for module in Path(inside.__path__[0]).glob("*.py"):
            shutil.copyfile(module, program / "inside" / module.name)
        machine = Host.probe(data_dir)
        return cls(
            python=Path(python),
            prefix=machine.prefix,
            program=program,
            system_binds=(),
            python_binds=(),
            tool_binds=machine.tool_binds,
            root=root,
        )

    @property
    def image_root(self) -> str | None:
        return str(self.root)

    def path(self, runtime: Runtime) -> str:
        return runtime.own_path

    def skeleton(self, root: Path) -> None:
        """The root's own top: its folders and its links, such as `bin` to `usr/bin`."""
        root.mkdir(parents=True, exist_ok=True)
        for entry in self.root.iterdir():
            if entry.is_symlink():
                (root / entry.name).symlink_to(entry.readlink())
            elif entry.is_dir():
                (root / entry.name).mkdir(exist_ok=True)
        for name in ("proc", "dev", "etc"):
            (root / name).mkdir(exist_ok=True)

    def begin(self, root: Path, runtime: Runtime) -> None:
        """Copy the agent's paths: they are written to, and belong to the sandbox's one user."""
        for path in runtime.agent_paths:
            source = trees.within(self.root, trees.resolve_in(self.root, path))
            if source.is_dir():
                _copy_readable(source, trees.within(root, path))
        for path in _EMPTY:
            place = trees.within(root, path)
            if place.is_dir() and not place.is_symlink():
                trees.remove(place)
                place.mkdir()

    def furnish(self, root: Path, runtime: Runtime) -> tuple[tuple[str, str], ...]:
        binds = tuple(_graft(self.root, root, "", runtime))
        super().furnish(root, runtime)
        return binds

    def etc_binds(self, system: Path) -> list[str]:
        return []

    def _fill_etc(self, etc: Path) -> None:
        for name in _OF_THE_MACHINE:
            if Path("/etc", name).is_file():
                (etc / name).unlink(missing_ok=True)
                shutil.copyfile(Path("/etc", name), etc / name)

    def _write_users(self, etc: Path, runtime: Runtime) -> None:
        """The root's own tables; its line for the agent's user gets the one number that processes have here."""
        for name, lines in users(runtime).items():
            table = self.root / "etc" / name
            before = table.read_text(errors="replace").splitlines() if table.is_file() else []
            mine = {line.split(":")[0] for line in lines}
            rest = [line for line in before if line.split(":")[0] not in mine and _number(line) != str(AGENT_UID)]
            (etc / name).unlink(missing_ok=True)
            (etc / name).write_text("\n".join([*lines, *rest, ""]), errors="replace")


def _number(line: str) -> str:
    return [*line.split(":"), "", "", ""][2]


def _graft(source: Path, target: Path, path: str, runtime: Runtime) -> Iterator[tuple[str, str]]:
    """Lay what `source` has and `target` lacks into `target`; yields the folders to bind, as (here, there).

    A folder is bound as a whole unless the image has put something into it, or the agent has a path below it.
    """
    with os.scandir(source) as found:
        entries = sorted(found, key=lambda entry: entry.name)
    for entry in entries:
        inner = f"{path}/{entry.name}"
        there = target / entry.name
        if runtime.owns(inner) or inner in _OWN_MOUNTS:
            continue
        if entry.is_symlink():
            if not os.path.lexists(there):
                there.symlink_to(Path(entry.path).readlink())
        elif entry.is_dir():
            if there.is_symlink() or there.is_file() or not os.access(entry.path, os.R_OK | os.X_OK):
                continue
            there.mkdir(exist_ok=True)
            shared = any(there.iterdir()) or f"{inner}/".startswith(f"{_COPIED}/")
            if shared or any(mine.startswith(f"{inner}/") for mine in runtime.agent_paths):
                yield from _graft(Path(entry.path), there, inner, runtime)
            else:
                yield entry.path, inner
        elif entry.is_file() and not os.path.lexists(there) and os.access(entry.path, os.R_OK):
            shutil.copy2(entry.path, there)


def _copy_readable(source: Path, target: Path) -> None:
    """What this process's user may read, as its own. Raises RootError for any other reason."""
    target.mkdir(parents=True, exist_ok=True)
    command = ["cp", "-a", "--no-preserve=ownership", "--reflink=auto", "--", f"{source}/.", str(target)]
    done = subprocess.run(command, capture_output=True, text=True, env=_plain(os.environ), check=False)
    said = [line for line in done.stderr.splitlines() if not line.endswith(("Permission denied", "not permitted"))]
    if done.returncode != 0 and said:
        raise RootError(f"IMAGE_ROOT: {source} cannot be copied: {said[-1][-300:]}")


def _plain(environ: Mapping[str, str]) -> dict[str, str]:
    return {**environ, "LC_ALL": "C"}
