"""The level without isolation: a sandbox is a folder, and its absolute paths are rewritten to it.

A process there sees the machine's own root. So `/workspace/x` in a command, an argument, an environment value
or a working directory becomes `<folder>/workspace/x` before the start. What a program computes by itself, or
reads from a file, is not rewritten: this level is a convenience for machines without namespaces, not a sandbox.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.local.tensorlake.layers import VENV

# An absolute path inside a shell text: not after a character that would make it part of a longer word.
_PATH = re.compile(r"(?<![\w./~$}-])/[^\s'\"`;|&<>()=,:*?\[\]{}$\\]+")


@dataclass(frozen=True)
class FolderMapping:
    root: Path
    agent_paths: tuple[str, ...]
    prefix: Path
    """The real location of what the sandbox knows as `/opt/hands/venv`."""

    def path(self, path: str) -> str:
        """The host path of a sandbox path that the sandbox owns; any other path unchanged."""
        if path == VENV or path.startswith(f"{VENV}/"):
            return str(self.prefix) + path[len(VENV) :]
        if self._ours(path):
            return f"{self.root}{path}"
        return path

    def _ours(self, path: str) -> bool:
        root = str(self.root)
        if path == root or path.startswith(f"{root}/"):
            return False
        if any(path == mine or path.startswith(f"{mine}/") for mine in self.agent_paths):
            return True
        # Elsewhere the machine's own files win: only what the sandbox alone has is meant.
        here, there = "", self.root
        for part in path.strip("/").split("/"):
            here, there = f"{here}/{part}", there / part
            if not os.path.lexists(there):
                return False
            if not os.path.lexists(here):
                return True
        return False

    def text(self, text: str) -> str:
        """A command line, argument or value with every path in it mapped."""
        return _PATH.sub(lambda match: self.path(match.group()), text)

    def value(self, text: str) -> str:
        """An environment value: perhaps a list of paths separated by colons."""
        if text.startswith("/"):
            return ":".join(self.text(part) for part in text.split(":"))
        return self.text(text)

    def env(self, env: Mapping[str, str], workdir: str) -> dict[str, str]:
        return {
            "WORKSPACE": self.path(workdir),
            **{key: self.value(value) for key, value in env.items()},
        }
