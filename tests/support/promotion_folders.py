"""Three folders of this machine as the sandboxes of a workspace promotion."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, cast

from image.session.programs.workspace import operations
from image.session.programs.workspace.entries import TEMPORARY
from shared.ports import (
    LARGEST_OUTPUT,
    Absent,
    CommandOutput,
    Doubtful,
    Refused,
    SandboxHost,
    SandboxRecord,
    SandboxStatus,
)
from shared.races.shell import SandboxShell
from shared.races.workspace_promotion import OnConflict, PromotionLimits, WorkspacePromotion, promote_workspace

SITES: Final = ("base", "winner", "source")


class Folders:
    """What a promotion needs of ports.SandboxHost: each sandbox is a folder. `before(operation)` is called before the
    program runs in the source; `real` runs it in a process of its own."""

    def __init__(self, root: Path, *, real: bool = False) -> None:
        self.root = root
        self.real = real
        self.before: Callable[[str], None] = lambda operation: None
        self.lose: Callable[[str], bool] = lambda call: False
        self.written: set[str] = set()
        self.scratches: set[str] = set()
        for site in SITES:
            (root / site).mkdir()

    async def run(
        self,
        sandbox_id: str,
        command: str,
        args: Sequence[str],
        *,
        env: Mapping[str, str],
        user: str | None,
        working_dir: str | None,
        timeout: float,
        limit: int = LARGEST_OUTPUT,
    ) -> CommandOutput | Doubtful:
        operation = args[6]
        self.scratches.add(args[5])
        if sandbox_id == "source":
            self.before(operation)
        if self.real:
            done = subprocess.run(
                [command, *args], cwd=self.root / sandbox_id, capture_output=True, text=True, check=False
            )
            output = CommandOutput(done.returncode, done.stdout, done.stderr, timed_out=False)
        else:
            try:
                said = operations.main(list(args[5:]), str(self.root / sandbox_id))
                output = CommandOutput(0, said, "", timed_out=False)
            except RuntimeError:
                output = CommandOutput(-9, "", "", timed_out=False)
        return Doubtful("dropped") if self.lose(f"{operation} {sandbox_id}") else output

    async def write_file(self, sandbox_id: str, path: str, data: bytes) -> Doubtful | None:
        if self.lose(f"write {sandbox_id}"):
            return Doubtful("dropped")
        self.written.add(path)
        Path(path).write_bytes(data)
        return None

    async def read_file(self, sandbox_id: str, path: str, limit: int) -> bytes | Absent | Refused | Doubtful:
        if self.lose(f"read {sandbox_id}"):
            return Doubtful("dropped")
        data = Path(path).read_bytes()
        return data if len(data) <= limit else Refused(413, "too large")

    async def delete_file(self, sandbox_id: str, path: str) -> Absent | Doubtful | None:
        if self.lose(f"delete {sandbox_id}"):
            return Doubtful("dropped")
        self.written.discard(path)
        if not Path(path).exists():
            return Absent()
        Path(path).unlink()
        return None

    def promote(self, on_conflict: OnConflict = "refuse", **limits: Any) -> WorkspacePromotion:
        host = cast(SandboxHost, self)
        base, winner, source = (SandboxRecord(site, site, SandboxStatus.RUNNING) for site in SITES)
        return asyncio.run(
            promote_workspace(
                host=host,
                shell=SandboxShell(host, "agent", "/workspace"),
                base=base,
                winner=winner,
                source=source,
                on_conflict=on_conflict,
                limits=PromotionLimits(**limits),
            )
        )

    def check_nothing_is_left(self) -> None:
        assert not self.written
        assert not [each for each in self.scratches if Path(each).exists()]
        assert not [each for each in self.root.rglob("*") if each.name.startswith(TEMPORARY.decode())]

    def everywhere(self, make: Callable[[Path], object]) -> None:
        for site in SITES:
            make(self.root / site)

    def __getitem__(self, site: str) -> Path:
        return self.root / site
