"""Workers in a root, for the project's own dispatcher: its processes are real, its one sandbox is the root."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import subprocess
from collections.abc import Sequence
from pathlib import Path

from shared.ports import LARGEST_OUTPUT, Absent, Doubtful, ProcessSpec, ProcessState, Refused
from tests.image_check.steps import BuiltRoot
from tests.support.fake_host import FakeHost


class RootHost(FakeHost):
    """Names and statuses of sandboxes in memory; processes run in `built`'s root, as whom their start names."""

    def __init__(self, built: BuiltRoot, logs: Path) -> None:
        super().__init__()
        self._built = built
        self._logs = logs
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    async def start(self, sandbox_id: str, process: ProcessSpec) -> Absent | Refused | Doubtful | None:
        if self._live(sandbox_id) is None:
            return Absent()
        user = process.user or self._built.user
        argv = self._built.root.command([process.command, *process.args], user=user, folder=self._built.folder)
        with self._output(process.name).open("wb") as out, (self._logs / "worker.log").open("ab") as log:
            self._processes[process.name] = await asyncio.to_thread(
                subprocess.Popen,
                argv,
                env={**self._built.env, **process.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=log,
                start_new_session=True,
            )
        return None

    async def process_names(self, sandbox_id: str) -> Sequence[ProcessState] | Absent | Doubtful:
        return [self._state(name) for name in self._processes]

    async def process_state(self, sandbox_id: str, name: str) -> ProcessState | Absent | Doubtful:
        return self._state(name) if name in self._processes else Absent()

    async def process_output(
        self, sandbox_id: str, name: str, limit: int = LARGEST_OUTPUT, both: bool = False
    ) -> Sequence[str] | Absent | Doubtful:
        if name not in self._processes:
            return Absent()
        return self._output(name).read_bytes()[:limit].decode(errors="replace").splitlines()

    async def signal(self, sandbox_id: str, name: str, number: int) -> Absent | Refused | Doubtful | None:
        os.killpg(self._processes[name].pid, number)
        return None

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> Absent | Refused | Doubtful | None:
        place = self._built.root.within(path)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
        return None

    def end(self) -> None:
        for process in self._processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signals.SIGKILL)
                process.wait()

    def _output(self, name: str) -> Path:
        return self._logs / f"{name}.out"

    def _state(self, name: str) -> ProcessState:
        status = self._processes[name].poll()
        return ProcessState(name, status is None, status if status is None or status >= 0 else None)
