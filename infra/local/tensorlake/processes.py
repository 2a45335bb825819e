"""What a start request may ask for, and what is handed to the supervisor (docs/wire/tensorlake.md#7-processes)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.local.tensorlake.errors import TensorlakeApiError, bad_request
from infra.local.tensorlake.layers import AGENT_UID
from infra.local.tensorlake.names import new_id
from infra.local.tensorlake.records import Resources, Sandbox
from infra.local.tensorlake.settings import TensorlakeSettings

_DEFAULTS = TensorlakeSettings()
STREAMS = {"stdout": ["stdout"], "stderr": ["stderr"], "output": ["stdout", "stderr"]}


class RestartConfig(BaseModel):
    """The SDK's defaults are the daemon's (docs/wire/tensorlake.md#71-start_process)."""

    model_config = ConfigDict(extra="ignore")

    policy: Literal["never", "on_failure", "always"] = "on_failure"
    max_restarts: int | None = Field(default=None, ge=0)
    initial_backoff_ms: int = Field(default=500, ge=0)
    max_backoff_ms: int = Field(default=30_000, ge=0)


class HealthCheck(BaseModel):
    """A check on the sandbox's own loopback."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["http", "tcp"]
    port: int = Field(ge=1, le=65_535)
    path: str = Field(default="/", pattern=r"^/[!-~]*$")
    initial_delay_ms: int = Field(default=5_000, ge=0)
    interval_ms: int = Field(default=1_000, ge=1)
    timeout_ms: int = Field(default=500, ge=1)
    failure_threshold: int = Field(default=3, ge=1)


class StartRequest(BaseModel):
    """Both of `run` and of `start_process`; `timeout` counts for `run` only."""

    model_config = ConfigDict(extra="ignore")

    command: str = Field(min_length=1)
    args: list[str] = []
    env: dict[str, str] = {}
    working_dir: str | None = None
    user: str | int | dict[str, Any] | None = None
    timeout: float | None = Field(default=None, gt=0)
    stdin_mode: Literal["pipe", "closed"] = "closed"
    stdout_mode: Literal["capture", "discard"] = "capture"
    stderr_mode: Literal["capture", "discard"] = "capture"
    name: str | None = None
    restart: RestartConfig | None = None
    health_check: HealthCheck | None = None


def start_request(sandbox: Sandbox, body: dict[str, Any], settings: TensorlakeSettings = _DEFAULTS) -> dict[str, Any]:
    """The supervisor's `start` (or, with another `op`, `run`) request. Raises 400, and `root_status` for a start as
    root where the settings have one."""
    try:
        asked = StartRequest.model_validate(body)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise bad_request("; ".join(problems)) from None
    managed = _managed(asked)
    if sandbox.box is None:
        raise bad_request(f"sandbox is {sandbox.status}")
    _check_texts([asked.command, *asked.args, *asked.env, *asked.env.values(), asked.working_dir or ""])
    box = sandbox.box
    runtime = box.base.runtime
    note = _user_note(asked.user, runtime.user)
    if note is not None and settings.root_status is not None:
        raise TensorlakeApiError(settings.root_status, "FORBIDDEN", "processes of root are not allowed")
    workdir = asked.working_dir or runtime.workdir
    if not workdir.startswith("/"):
        workdir = f"{runtime.workdir}/{workdir}"
    request: dict[str, Any] = {
        "op": "start",
        "command": box.shown_path(asked.command),
        "args": [box.shown_text(argument) for argument in asked.args],
        "shown_command": asked.command,
        "shown_args": asked.args,
        "env": box.environment({**_processors(sandbox.resources), **asked.env}),
        "working_dir": box.shown_path(workdir),
        "stdin_mode": asked.stdin_mode,
        "stdout_mode": asked.stdout_mode,
        "stderr_mode": asked.stderr_mode,
    }
    if asked.timeout is not None:
        request["timeout"] = asked.timeout
    if managed is not None:
        request["managed"] = managed
    if note is not None and not settings.root_ignored:
        request["note"] = note
        if note not in sandbox.notes:
            sandbox.notes.append(note)
    return request


def _processors(resources: Resources) -> dict[str, str]:
    """How many processors programs are to count on: nproc reads the first (coreutils manual, nproc), Python's
    os.cpu_count the second. Pinning would tell them the same, and make neighbours share one of several free ones."""
    count = str(max(1, min(int(resources.cpus), os.cpu_count() or 1)))
    return {"OMP_NUM_THREADS": count, "PYTHON_CPU_COUNT": count}


def _managed(asked: StartRequest) -> dict[str, Any] | None:
    """What the supervisor is to do about its ends. A name, a restart policy or a health check opts in to it."""
    if asked.name is not None and (not asked.name or "/" in asked.name or asked.name.isdigit()):
        raise bad_request("process name must be non-empty, without '/', and not all digits")
    if asked.name is None and asked.restart is None and asked.health_check is None:
        return None
    check = asked.health_check.model_dump() if asked.health_check is not None else None
    if check is not None and check["type"] == "tcp":
        check["path"] = None
    return {
        "id": asked.name or f"managed-{new_id()}",
        "name": asked.name,
        "restart": (asked.restart or RestartConfig()).model_dump(),
        "health_check": check,
    }


def _check_texts(texts: Iterable[str]) -> None:
    if any("\0" in text for text in texts):
        raise bad_request("command, args, env and working_dir must not contain a null character")


def _user_note(asked: str | int | dict[str, Any] | None, user: str) -> str | None:
    """None if the process runs as asked; a note if root was asked for; a 400 for a user that is not there."""
    if isinstance(asked, dict):
        asked = asked.get("uid")
    wanted = "" if asked is None else str(asked)
    if wanted in ("", user, str(AGENT_UID)):
        return None
    if wanted in ("root", "0"):
        return f"user 'root' was asked for; ran as '{user}', the only user of an offline sandbox"
    raise bad_request(f"user '{wanted}' does not exist in this sandbox (it has '{user}')")
