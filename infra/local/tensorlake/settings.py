"""Knobs of the platform: set at start and changed while it runs through `PATCH /_admin/settings`."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

MIB = 1024 * 1024


class StartFault(BaseModel):
    """What the next creates meet, in place of a sandbox that runs (docs/wire/tensorlake.md#51-create)."""

    model_config = ConfigDict(extra="forbid")

    outcome: Literal["stuck_pending", "failed", "terminated", "suspended", "no_url", "timeout"]
    name_pattern: str = ""
    """Regular expression searched in the sandbox's name (an ephemeral one has the name '')."""
    times: int | None = Field(default=1, ge=1)
    status: int = Field(default=200, ge=200, le=599)
    """HTTP status of the create's answer for `failed` and `terminated`."""
    reason: str = "ConfigurationError"
    pending_reason: str = "no_resources_available"


class Settings(BaseModel):
    """All durations in seconds."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    create_seconds: float = Field(default=0.0, ge=0)
    resume_seconds: float = Field(default=0.0, ge=0)
    suspend_seconds: float = Field(default=0.0, ge=0)
    process_start_seconds: float = Field(default=0.0, ge=0)
    snapshot_local_seconds: float = Field(default=0.0, ge=0)
    """From the request to `local_ready`, besides the copying itself."""
    snapshot_completed_seconds: float = Field(default=0.0, ge=0)
    """From `local_ready` to `completed`."""
    snapshot_failures: int = Field(default=0, ge=0)
    """So many of the next snapshots end `failed`."""
    name_release_seconds: float = Field(default=0.0, ge=0)
    """After terminate the name still resolves, and reads `running`, for so long; the live service: about 1."""
    failed_keeps_name: bool = True
    default_timeout_secs: int = Field(default=600, ge=1)
    longest_timeout_secs: int = Field(default=86_400, ge=1)
    """What a `timeout_secs` of 0 stands for."""
    open_requests_are_activity: bool = True
    """Whether a data-plane request that is still open (a quiet `run`) holds the idle timer back."""
    max_sandboxes: int | None = Field(default=None, ge=0)
    """Live sandboxes at most; over it, creates answer `over_quota_status`."""
    over_quota_status: int = Field(default=429, ge=400, le=599)
    max_file_bytes: int = Field(default=256 * MIB, ge=1)
    max_stdin_bytes: int = Field(default=64 * MIB, ge=1)
    max_port_body_bytes: int = Field(default=64 * MIB, ge=1)
    max_context_bytes: int = Field(default=512 * MIB, ge=1)
    start_faults: list[StartFault] = []
