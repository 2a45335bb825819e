"""What several checks ask of a sandbox."""

from __future__ import annotations

from typing import Any

from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried
from shared.ports import CommandOutput, ProcessSpec, SandboxRecord


async def run(ground: Ground, sandbox: SandboxRecord, script: str) -> Any:
    return await ground.host.run(
        sandbox.id, "sh", ["-c", script], env={}, user=None, working_dir="/", timeout=ground.idle_seconds + 60.0
    )


async def record(ground: Ground, sandbox: SandboxRecord) -> dict[str, Any]:
    answer = await ground.lifecycle("GET", f"/sandboxes/{sandbox.id}")
    if answer.status_code != 200:
        raise NotTried(f"its record could not be read: HTTP {answer.status_code}")
    return dict(answer.json())


async def listed(ground: Ground) -> list[SandboxRecord]:
    listing = await ground.host.list_sandboxes()
    rows = getattr(listing, "rows", None)
    if rows is None:
        raise NotTried(f"sandboxes could not be listed: {reason(listing)}")
    return list(rows)


def reason(outcome: object) -> str:
    if isinstance(outcome, CommandOutput):
        return f"exit status {outcome.exit_code}"
    return str(getattr(outcome, "reason", "it is gone"))


async def started(ground: Ground, sandbox: SandboxRecord, name: str, script: str) -> None:
    """A shell's script under this name. Raises NotTried."""
    refusal = await ground.host.start(sandbox.id, ProcessSpec(name, "sh", ["-c", script]))
    if refusal is not None:
        raise NotTried(f"a program could not be started: {reason(refusal)}")
