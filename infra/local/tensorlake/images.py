"""Registered images: a local root and how to run in it (docs/wire/tensorlake.md#10-images).

An image is split once, when it is registered: what belongs to the agent becomes a layer that sandboxes share
read-only, the rest a template of the root-owned part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from infra.local.tensorlake import trees
from infra.local.tensorlake.errors import bad_request
from infra.local.tensorlake.host import Host
from infra.local.tensorlake.layers import BaseRoot, LayerStore, Runtime
from infra.local.tensorlake.names import new_id

STOCK = ("tensorlake/ubuntu-minimal", "tensorlake/ubuntu-systemd", "tensorlake/debian-minimal")
"""Names of the service's own images; here each of them is the same built-in default."""
DEFAULT_RUNTIME = Runtime()


@dataclass(frozen=True)
class Image:
    id: str
    name: str
    base: BaseRoot
    parent: str | None = None
    not_executed: tuple[str, ...] = ()
    """RUN steps: recorded, never executed here."""
    notes: tuple[str, ...] = ()
    dockerfile: str = ""
    size_bytes: int = 0
    created_at: float = field(default_factory=time.time)

    def record(self) -> dict[str, Any]:
        """The wire form; all keys are required and both timestamps are strings (docs/wire/tensorlake.md#10-images)."""
        at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self.created_at))
        return {
            "id": self.id,
            "name": self.name,
            "snapshot_id": f"image-{self.id}",
            "global": self.name in STOCK,
            "physical_size_bytes": self.size_bytes,
            "logical_size_bytes": self.size_bytes,
            "created_at": at,
            "updated_at": at,
        }

    def report(self) -> dict[str, Any]:
        runtime = self.base.runtime
        return {
            "name": self.name,
            "from": self.parent,
            "env": sorted(runtime.env),
            "workdir": runtime.workdir,
            "user": runtime.user,
            "agent_paths": runtime.agent_paths,
            "not_executed": self.not_executed,
            "notes": self.notes,
        }


class ImageStore:
    def __init__(self, directory: Path, host: Host, layers: LayerStore) -> None:
        self._directory = directory
        self.host = host
        self._layers = layers
        self._images: dict[str, Image] = {}
        self._default = self.make("tensorlake/ubuntu-minimal", DEFAULT_RUNTIME)

    def make(
        self,
        name: str,
        runtime: Runtime,
        fill: Callable[[Path], None] | None = None,
        *,
        parent: str | None = None,
        not_executed: tuple[str, ...] = (),
        notes: tuple[str, ...] = (),
        dockerfile: str = "",
    ) -> Image:
        """Build an image's root (skeleton, `fill`, furniture) and split it. Blocking; does not register it."""
        image_id = new_id()
        root = self._directory / image_id
        self.host.skeleton(root)
        self.host.begin(root, runtime)
        if fill is not None:
            fill(root)
        # A single file cannot be the agent's own: only directories are mounted writable.
        mine = tuple(path for path in runtime.owned if trees.within(root, path).is_dir())
        runtime = replace(runtime, owned=mine)
        layer = self._layers.new()
        size = 0
        for path in runtime.agent_paths:
            ours = trees.within(root, path)
            there = trees.within(layer.directory, path)
            if ours.is_dir() and any(ours.iterdir()):
                size += sum(file.lstat().st_size for file in ours.rglob("*") if file.is_file())
                there.parent.mkdir(parents=True, exist_ok=True)
                ours.rename(there)
        binds = self.host.furnish(root, runtime)
        base = self._layers.hold(BaseRoot(runtime, root, (layer,), binds))
        return Image(image_id, name, base, parent, not_executed, notes, dockerfile, size)

    def register(self, image: Image) -> Image | None:
        """Make it known under its name; returns the image it replaces."""
        before = self._images.get(image.name)
        self._images[image.name] = image
        return before

    def find(self, name: str) -> Image | None:
        if name in STOCK:
            return self._default
        return self._images.get(name) or self._images.get(name.lower())

    def for_create(self, name: str | None) -> Image:
        """The image a create names, or the default; a 400 with the service's words if it is unknown."""
        if name is None:
            return self._default
        image = self.find(name)
        if image is None:
            raise bad_request(f"Image '{name}' is not registered; build it with `Image.build()` first")
        return image

    async def forget(self, name: str) -> bool:
        image = self._images.pop(name, None)
        if image is not None:
            await self.discard(image)
        return image is not None

    async def discard(self, image: Image) -> None:
        """Drop what no sandbox uses any more (a sandbox has its own copy of the root-owned part)."""
        trees.remove(image.base.system)
        await self._layers.release(image.base)

    def all(self) -> list[Image]:
        return list(self._images.values())
