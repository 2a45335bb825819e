"""What a start request may ask for, and what is handed to the supervisor (contract section 7)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.local.tensorlake.errors import bad_request, not_supported
from infra.local.tensorlake.layers import AGENT_UID
from infra.local.tensorlake.records import Sandbox

STREAMS = {"stdout": ["stdout"], "stderr": ["stderr"], "output": ["stdout", "stderr"]}


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
    restart: dict[str, Any] | None = None
    health_check: dict[str, Any] | None = None


def start_request(sandbox: Sandbox, body: dict[str, Any]) -> dict[str, Any]:
    """The supervisor's `start` (or, with another `op`, `run`) request. Raises 400 and 501."""
    try:
        asked = StartRequest.model_validate(body)
    except ValidationError as error:
        problems = (f"{'.'.join(map(str, item['loc']))}: {item['msg']}" for item in error.errors())
        raise bad_request("; ".join(problems)) from None
    _check_managed(asked)
    if sandbox.box is None:
        raise bad_request(f"sandbox is {sandbox.status}")
    _check_texts([asked.command, *asked.args, *asked.env, *asked.env.values(), asked.working_dir or ""])
    box = sandbox.box
    runtime = box.base.runtime
    note = _user_note(asked.user, runtime.user)
    workdir = asked.working_dir or runtime.workdir
    if not workdir.startswith("/"):
        workdir = f"{runtime.workdir}/{workdir}"
    request: dict[str, Any] = {
        "op": "start",
        "command": box.shown_path(asked.command),
        "args": [box.shown_text(argument) for argument in asked.args],
        "shown_command": asked.command,
        "shown_args": asked.args,
        "env": box.environment(asked.env),
        "working_dir": box.shown_path(workdir),
        "stdin_mode": asked.stdin_mode,
        "stdout_mode": asked.stdout_mode,
        "stderr_mode": asked.stderr_mode,
    }
    if asked.timeout is not None:
        request["timeout"] = asked.timeout
    if asked.name is not None:
        request["name"] = asked.name
    if note is not None:
        request["note"] = note
        if note not in sandbox.notes:
            sandbox.notes.append(note)
    return request


def _check_managed(asked: StartRequest) -> None:
    """A name alone opts into supervision, whose default on the service restarts what fails."""
    advice = 'send restart={"policy": "never"}'
    if asked.health_check is not None:
        raise not_supported("health checks of managed processes")
    if asked.restart is not None and asked.restart.get("policy") != "never":
        raise not_supported(f"restart policy '{asked.restart.get('policy')}'", advice)
    if asked.name is None:
        return
    if not asked.name or "/" in asked.name or asked.name.isdigit():
        raise bad_request("process name must be non-empty, without '/', and not all digits")
    if asked.restart is None:
        raise not_supported("a named process without a restart policy, which would be restarted on failure", advice)


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
