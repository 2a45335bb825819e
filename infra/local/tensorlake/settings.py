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


class TensorlakeSettings(BaseModel):
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
    name_taken_status: int = Field(default=409, ge=400, le=499)
    """What a create under a name that somebody holds is refused with."""
    failed_keeps_name: bool = True
    default_timeout_secs: int = Field(default=600, ge=1)
    longest_timeout_secs: int = Field(default=86_400, ge=1)
    """What a `timeout_secs` of 0 stands for."""
    open_requests_are_activity: bool = True
    """Whether a data-plane request that is still open (a quiet `run`) holds the idle timer back."""
    follows_are_activity: bool = True
    """Whether lines of a followed output hold the idle timer back."""
    touches_are_activity: bool = True
    """Whether a look at the daemon's health holds the idle timer back."""
    processes_are_activity: bool = False
    """Whether a running process holds the idle timer back by itself."""
    idle_ends: bool = False
    """Whether a named sandbox is ended at its time-out, and not suspended."""
    sleep_ends_processes: bool = False
    """Whether a suspend ends what runs."""
    max_sandboxes: int | None = Field(default=None, ge=0)
    """Live sandboxes at most; over it, creates answer `over_quota_status`."""
    over_quota_status: int = Field(default=429, ge=400, le=599)
    calls_a_minute: int | None = Field(default=None, ge=1)
    """Calls to the lifecycle plane at most: answers tell what is left, and over it they are 429. None: no limit."""
    max_file_bytes: int = Field(default=256 * MIB, ge=1)
    max_stdin_bytes: int = Field(default=64 * MIB, ge=1)
    max_port_body_bytes: int = Field(default=64 * MIB, ge=1)
    max_context_bytes: int = Field(default=512 * MIB, ge=1)
    build_log_seconds: float = Field(default=0.0, ge=0)
    """How long a finished build reads as running to who asks, so that its log is followed. The SDK then asks again
    after 3 s."""
    list_order: Literal["oldest_first", "newest_first"] = "oldest_first"
    page_key: Literal["cursor", "next_cursor"] = "cursor"
    """How a list names the cursor of its next page."""
    list_has_ended: bool = True
    """Whether ended sandboxes are listed."""
    sleepers_have_url: bool = True
    """Whether a suspended sandbox's record says where it is reached."""
    retention_seconds: float | None = Field(default=None, gt=0)
    """How long a suspended sandbox is kept, before it is ended; None: for good. The live service's is not known."""
    traffic_wakes: bool = True
    """Whether a data-plane request wakes a suspended sandbox that may resume by itself."""
    port_traffic_wakes: bool = True
    """Whether a request to a port wakes one."""
    unwoken_status: int | None = Field(default=409, ge=400, le=599)
    """What a data-plane request to a sleeper that may not wake by itself is refused with; None: it wakes all the
    same."""
    looks_wake: bool = False
    """Whether a GET or a list wakes a suspended sandbox."""
    process_names_unique: bool = True
    """Whether a start under the name of a running process is refused."""
    resume_moves: bool = False
    """Whether a resume gives a sandbox another address."""
    root_status: int | None = Field(default=None, ge=400, le=499)
    """What a start as root is refused with; None: it is taken."""
    root_ignored: bool = False
    """Whether a start as root runs as the image's user without a word. Otherwise the process has a `note` of it."""
    missing_program_status: int | None = Field(default=400, ge=400, le=499)
    """What a start of a program that is not there is refused with; None: it is taken, and ends with 127."""
    relative_paths: bool = False
    """Whether the files' calls take relative paths, as below the working directory."""
    follow_waits: bool = False
    """Whether a followed output comes when its process has ended."""
    pool_rename_status: int | None = Field(default=None, ge=400, le=499)
    """What naming a sandbox of a pool is refused with; None: it is done."""
    snapshots_have_type: bool = True
    snapshots_keep_files: bool = True
    """Whether a sandbox that is made from a snapshot has its files, and not the image's."""
    egress_enforced: bool = True
    """Whether network policies hold for the names that are there to try them (egress.py)."""
    wildcard_status: int | None = Field(default=None, ge=400, le=499)
    """What a create with `*.` in its egress list is refused with; None: it is taken."""
    wildcards_open: Literal["names", "nothing", "everything"] = "names"
    """What an entry of an egress list that begins with `*.` opens."""
    copy_status: int | None = Field(default=None, ge=400, le=499)
    """What a live copy is refused with; None: it is made."""
    copies_keep: list[Literal["network", "ports", "timeout"]] = ["network", "timeout"]
    """What a live copy has of its source beside image and resources."""
    launcher: str | None = None
    """Path of a Unix socket: who listens there starts the workers and servers of sandboxes made from now on, in place
    of an interpreter of their own (`inside/launcher.py`). Only where sandboxes are isolated."""
    daemon_open_inside: bool = False
    """Whether the daemon answers without a token to who knows its port."""
    start_faults: list[StartFault] = []
