"""What a sandbox starts from: a root-owned part and a stack of read-only layers of the agent's files.

A base comes from an image or from a snapshot. With overlays a snapshot is its source's stack plus one copied
layer, so a fork copies what the source changed and never what it started from. Layers are shared, so they are
counted, and removed with their last user.
"""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field
from pathlib import Path

from infra.local.tensorlake import trees

AGENT_UID = 1000
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


VENV = "/opt/hands/venv"
"""Where every sandbox finds the Python environment that this platform itself runs on."""


@dataclass(frozen=True)
class Runtime:
    """How processes run in a sandbox: what an image's ENV, WORKDIR and USER say."""

    env: dict[str, str] = field(default_factory=dict)
    workdir: str = "/workspace"
    user: str = "root"
    owned: tuple[str, ...] = ()
    """Further paths given to the user by `--chown`."""

    @property
    def home(self) -> str:
        return "/root" if self.user == "root" else f"/home/{self.user}"

    @property
    def own_path(self) -> str:
        """PATH as the image has it."""
        return self.env.get("PATH", DEFAULT_PATH)

    @property
    def agent_paths(self) -> tuple[str, ...]:
        """Absolute paths the sandbox's one user may write; none lies within another. The rest is root's."""
        wanted = {self.workdir, self.home, "/tmp", "/var/tmp", "/var/lib/hands", "/mnt", "/run", *self.owned}
        if self.user == "root":
            wanted |= {"/workspace", "/home", "/opt", "/srv", "/var", "/media", "/data"}
        paths = sorted(path.rstrip("/") for path in wanted if path.strip("/"))
        return tuple(
            path for path in paths if not any(path != other and path.startswith(f"{other}/") for other in paths)
        )

    def owns(self, path: str) -> bool:
        return any(path == mine or path.startswith(f"{mine}/") for mine in self.agent_paths)


@dataclass(eq=False)
class Layer:
    """A directory laid out like the root, with files below agent paths only."""

    directory: Path
    users: int = 0


@dataclass(frozen=True)
class BaseRoot:
    """`system` is a template: each sandbox gets its own (hard-linked) one. `binds` are folders of an image's own root
    that lie in it, read-only, as (here, there)."""

    runtime: Runtime
    system: Path
    layers: tuple[Layer, ...]
    binds: tuple[tuple[str, str], ...] = ()


class LayerStore:
    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)

    def new(self) -> Layer:
        directory = self._directory / str(next(self._numbers))
        directory.mkdir(parents=True)
        return Layer(directory)

    def hold(self, base: BaseRoot) -> BaseRoot:
        for layer in base.layers:
            layer.users += 1
        return base

    async def release(self, base: BaseRoot) -> None:
        for layer in base.layers:
            layer.users -= 1
            if layer.users == 0:
                await asyncio.to_thread(trees.remove, layer.directory)
