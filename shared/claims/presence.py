"""Whether a worker of ours lives in a sandbox: it may hold a lease, which no copy of its memory may share
(docs/architecture.md#i3), and what it works on is not suspended."""

from __future__ import annotations

from shared.claims.worker_process import WORKER_NAMES
from shared.ports import Absent, Doubtful, SandboxHost


async def worker_lives(host: SandboxHost, sandbox_id: str, prefix: str = WORKER_NAMES) -> bool | None:
    """None where that is unknown. Asking wakes a sandbox that sleeps. A sandbox that is not there has no worker.
    prefix: of the names of the workers that are meant."""
    listed = await host.process_names(sandbox_id)
    if isinstance(listed, Absent):
        return False
    if isinstance(listed, Doubtful):
        return None
    return any(process.running and process.name.startswith(prefix) for process in listed)
