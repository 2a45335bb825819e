"""A sandbox's folders without a sandbox: set-ups run in them as in a series of workers."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from image.session.setup import CALLER_KEYS, SetupPolicy
from image.session.worker.output import Redactor
from image.session.worker.session_setup import SessionSetup
from image.session.worker.state_directory import StateDirectory

OPEN = SetupPolicy(callers=(*CALLER_KEYS, "env.*"))


class SetupBox:
    """A workdir and a state directory, as a series of workers finds them."""

    def __init__(self, root: Path) -> None:
        self.workdir = root / "workspace"
        self.workdir.mkdir(parents=True)
        self.state = StateDirectory(root / "state")
        self.said: list[str] = []
        self.credential: dict[str, str] | None = None
        self.tail = ""

    def setup(self, policy: SetupPolicy = OPEN, *, prepares: bool = False) -> SessionSetup:
        self.said = []
        return SessionSetup(
            policy, self.state, self.workdir, Redactor(), self.said.append, None, self.credential, prepares=prepares
        )

    def run(self, metadata: dict[str, str], policy: SetupPolicy = OPEN, *, prepares: bool = False) -> SessionSetup:
        async def one_worker() -> SessionSetup:
            setup = self.setup(policy, prepares=prepares)
            setup.begin(json.dumps({"metadata": metadata}).encode())
            assert await setup.over()
            self.tail = setup._commands.tail
            return setup

        return asyncio.run(one_worker())

    def files(self) -> set[str]:
        return {path.name for path in self.workdir.iterdir()}
