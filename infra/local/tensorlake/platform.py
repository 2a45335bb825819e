"""The platform's state: every sandbox, name, image, snapshot and knob. The rules are in the modules around it."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.faults import FaultRegistry
from infra.local.tensorlake import trees, workspace
from infra.local.tensorlake.box import Box
from infra.local.tensorlake.errors import not_found
from infra.local.tensorlake.images import ImageStore
from infra.local.tensorlake.isolation import Isolation, IsolationError
from infra.local.tensorlake.layers import LayerStore
from infra.local.tensorlake.names import NameIndex
from infra.local.tensorlake.records import Sandbox
from infra.local.tensorlake.rooted import RootError
from infra.local.tensorlake.settings import TensorlakeSettings


@dataclass
class TensorlakePlatform:
    directory: Path
    lock: workspace.DirectoryLock
    isolation: Isolation
    layers: LayerStore
    images: ImageStore
    settings: TensorlakeSettings
    """Set by `turn` alone."""
    api_key: str | None = None
    url: str = ""
    names: NameIndex = field(default_factory=NameIndex)
    sandboxes: dict[str, Sandbox] = field(default_factory=dict)
    faults: FaultRegistry = field(default_factory=FaultRegistry)
    sequence: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    warm: set[asyncio.Task[Box]] = field(default_factory=set)
    """Bodies of pools that nobody has claimed."""
    turned: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a knob is turned next."""
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _ending: list[asyncio.Task[None]] = field(default_factory=list)

    @classmethod
    async def open(
        cls,
        wanted: str,
        settings: TensorlakeSettings,
        api_key: str | None,
        data_dir: Path | None = None,
        image_root: Path | None = None,
    ) -> TensorlakePlatform:
        """Probe the isolation levels and lay out an empty platform below `data_dir` (default: a temporary one).

        Raises IsolationError if the wanted level does not work here.
        """
        directory, lock = workspace.make(data_dir)
        try:
            isolation = await Isolation.probe(wanted, directory, image_root)
            layers = LayerStore(directory / "l")
            images = await asyncio.to_thread(ImageStore, directory / "i", isolation.host, layers)
        except RootError as error:
            trees.remove(directory)
            lock.close()
            raise IsolationError(str(error)) from None
        except BaseException:
            trees.remove(directory)
            lock.close()
            raise
        return cls(directory, lock, isolation, layers, images, settings, api_key)

    def turn(self, settings: TensorlakeSettings) -> None:
        self.settings = settings
        self.turned.set()
        self.turned = asyncio.Event()

    def find(self, namespace: str, key: str) -> Sandbox:
        """By id or by name, in one namespace; a 404 otherwise. Ended sandboxes are found by id only."""
        sandbox = self.sandboxes.get(key)
        if sandbox is None or sandbox.namespace != namespace:
            sandbox = self.sandboxes.get(self.names.holder(namespace, key) or "")
        if sandbox is None:
            raise not_found(f"sandbox '{key}'")
        return sandbox

    def find_anywhere(self, key: str) -> Sandbox | None:
        """For the data plane, where a Host label is all there is."""
        return self.sandboxes.get(key) or self.sandboxes.get(self.names.holder_anywhere(key) or "")

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """A task that outlives the request that began it, and ends with the platform."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def end_boxes(self) -> list[asyncio.Task[None]]:
        """Begin to end every sandbox's body."""
        boxes = [sandbox.box for sandbox in self.sandboxes.values() if sandbox.box is not None]
        for sandbox in self.sandboxes.values():
            sandbox.box = None
        for start in self.warm:
            if not start.done():
                start.cancel()
            elif not start.cancelled() and start.exception() is None:
                boxes.append(start.result())
        self.warm.clear()
        self._ending += [asyncio.create_task(box.end()) for box in boxes]
        return self._ending

    async def close(self) -> None:
        """End every sandbox and remove everything."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        # What a cancelled start set in motion to undo itself.
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*self.end_boxes(), return_exceptions=True)
        await asyncio.to_thread(trees.remove, self.directory)
        self.lock.close()
