"""The hand-over's wire schema: what the dispatcher tells a worker, and what the worker answers.

Both ends read this one module. It imports the standard library only, and little of that (dataclasses alone would be
half of its time), since in the sandbox it is loaded before anything else (docs/claim-protocol.md#step-3-hand-over).

The dispatcher starts `COMMAND` as a named process with one environment variable, `CLAIM_VARIABLE`, that holds a
`Claim` as JSON. The worker answers on standard output with one JSON object a line (`Notice`), and at the end with
its exit status (`Exit`).
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

PROTOCOL_VERSION: Final = 1
CLAIM_VARIABLE: Final = "HANDS_CLAIM"
STATE_VARIABLE: Final = "HANDS_STATE"  # where the lock lives, if not in STATE_DIRECTORY
USER_VARIABLE: Final = "HANDS_USER"  # whom a worker that starts as root becomes before anything else
WORKER_DIRECTORY: Final = "/opt/hands"
WORKER_PYTHON: Final = "/opt/hands/venv/bin/python"
STATE_DIRECTORY: Final = "/var/lib/hands"
SESSION_FILE: Final = "session"  # in the state directory: the id of the session that this sandbox belongs to
IDENTITY_FILE: Final = f"{STATE_DIRECTORY}/{SESSION_FILE}"
AGENT_USER: Final = "agent"  # the worker and the agent's tools run as this user of the image
DEFAULT_WORKDIR: Final = "/workspace"
NEW_WORKSPACE_FILE: Final = "THIS-WORKSPACE-IS-NEW.txt"  # in the workdir, for the agent
NEW_WORKSPACE_TEXT: Final = "This workspace is new. What this session had made before is not here:"
GIVE_UP_SIGNAL: Final = 23
"""SIGURG on Linux, whose number it is wherever the dispatcher runs: end, unless you have started. Who has never heard
of it ignores it, the tools in the worker's process group included (docs/claim-protocol.md#a-worker-that-is-overdue)."""
STOP_SIGNAL: Final = 28
"""SIGWINCH on Linux: the operator has stopped the work, so end now, and the command that runs as well. Who has never
heard of it ignores it, and learns of the stop with its next heartbeat."""
START_GRACE: Final = 30.0  # seconds for a start's steps that wait for nobody, on the busiest machine
LAST_DEATH: Final = "the last worker died in call "  # how a remark with `ready` begins that tells of it
LAST_SETUP: Final = "the last set-up failed: "  # how one begins that tells of that
LONGEST_DETAIL: Final = 500  # characters of a notice's detail
_LONGEST_FIELD: Final = 128
_LATEST: Final = 1e11  # Unix seconds


def worker_path(digest: str) -> str:
    """Where the worker archive with this SHA-256 (hex) lives in a sandbox: the content names the path, so a newer
    bundle never overwrites the file that a running worker still reads."""
    return f"{WORKER_DIRECTORY}/worker-{digest[:16]}.pyz"


def modules_path(digest: str) -> str:
    """Where an image has the modules of the worker archive with this digest, compiled (image/session/archive.py)."""
    return f"{WORKER_DIRECTORY}/modules-{digest[:16]}"


class ClaimError(ValueError):
    """A claim that cannot be used. The text names the field and never quotes a value."""


class Exit(enum.IntEnum):
    """Exit statuses of the worker. 0 means served, and nothing else does."""

    SERVED = 0
    FAILED = 1
    UNREADABLE = 2  # the interpreter's own status when the worker file is missing
    LEASE_LOST = 10
    NEVER_ACKED = 11
    LOCKED_OUT = 12
    PASSED_ON = 13
    BAD_CLAIM = 14
    REFUSED = 15
    STOPPED = 16
    LIFETIME = 17
    UNREACHABLE = 18  # the service answered no heartbeat: no way out of the sandbox
    HUNG = 19  # something that was to be quick did not return
    NO_USER = 20  # it was started as root, and the user to become is not there or could not be become
    GIVEN_UP = 21  # the dispatcher asked, and it had not said that it is ready
    SETUP_FAILED = 22  # served, and each call was told that the session's set-up had failed, or it ran without


class Word(enum.StrEnum):
    """What a notice says."""

    READY = "ready"  # the lock is held and the service has answered a heartbeat
    WAITING = "waiting"  # for the lock, or for the service's first answer; the detail says which and why
    LEASED = "leased"
    SETUP = "setup"  # the detail says what is done to make the session ready
    ENDED = "ended"


class Claim(NamedTuple):
    """One work item on its way to its worker. Times are in seconds."""

    work_id: str
    environment_id: str
    session_id: str
    secret: str
    base_url: str
    worker_digest: str
    workdir: str = DEFAULT_WORKDIR
    max_idle: float | None = 60.0
    reach: float = 20.0  # how long the service may leave the first heartbeat without an answer
    gate: float = 240.0  # how long to ask for the lease of an item that nobody has acked yet
    lock_wait: float = 10.0  # how long to wait for a worker that serves another item
    lifetime: float = 86_400.0
    protocol: int = PROTOCOL_VERSION
    capability_token: str | None = None  # with `fork_url`: the agent may call fork_best_of_n there
    fork_url: str | None = None
    session_key: str | None = None  # the same in all claims of a session: workers prove to each other what they are
    nonce: str = ""  # each notice of this claim's process carries it
    traceparent: str | None = None  # W3C Trace Context: what the worker does is part of this trace
    otlp_url: str | None = None  # with `traceparent`: where the worker sends its spans, by OTLP over HTTP
    setup: dict[str, Any] | None = None  # image/session/setup.py's SetupPolicy; None: nothing is made ready
    signed: dict[str, str] | None = None  # where the set-up's objects of a store are fetched, by their URLs
    credential: dict[str, str] | None = None  # `username` and `password` for the set-up's repository
    tool_seconds: float = 120.0  # how long a call of one of the operator's own tools may take
    tool_output_bytes: int = 102_400
    tool_secrets: Mapping[str, str] | None = None  # the environment of the operator's private tools
    prepares: bool = False  # no session: the sandbox is made ready for sessions to be started from it

    def __repr__(self) -> str:
        return f"Claim(work_id={self.work_id!r}, session_id={self.session_id!r}, protocol={self.protocol})"

    @property
    def start_limit(self) -> float:
        """Seconds that a worker has from its first steps to its `ready`; then it ends by itself, as HUNG."""
        return self.lock_wait + self.reach + START_GRACE

    def to_json(self) -> str:
        return json.dumps(self._asdict(), separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str) -> Claim:
        """Raises ClaimError for anything but a complete claim of this protocol version; unknown keys are ignored."""
        try:
            raw = json.loads(text)
        except ValueError:
            raise ClaimError("the claim is not JSON") from None
        if not isinstance(raw, dict):
            raise ClaimError("the claim is not a JSON object")
        if raw.get("protocol") != PROTOCOL_VERSION:
            raise ClaimError(f"the claim's protocol is not {PROTOCOL_VERSION}")
        known = {name: raw[name] for name in cls._fields if name in raw}
        for name in (
            "work_id",
            "environment_id",
            "session_id",
            "secret",
            "base_url",
            "worker_digest",
            "workdir",
        ):
            value = known.get(name, DEFAULT_WORKDIR if name == "workdir" else None)
            if not isinstance(value, str) or not value:
                raise ClaimError(f"the claim's {name} is missing or not a text")
        for name in ("reach", "gate", "lock_wait", "lifetime", "max_idle", "tool_seconds", "tool_output_bytes"):
            value = known.get(name, 0.0)
            if name == "max_idle" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ClaimError(f"the claim's {name} is not a number that it can be")
        if not isinstance(known.get("prepares", False), bool):
            raise ClaimError("the claim's prepares is neither true nor false")
        if not isinstance(known.get("nonce", ""), str):
            raise ClaimError("the claim's nonce is not a text")
        for name in ("capability_token", "fork_url", "session_key", "traceparent", "otlp_url"):
            value = known.get(name)
            if value is not None and not isinstance(value, str):
                raise ClaimError(f"the claim's {name} is not a text")
        for name in ("setup", "signed", "credential"):
            if not isinstance(known.get(name), dict | None):
                raise ClaimError(f"the claim's {name} is not an object")
        secrets = known.get("tool_secrets") or {}
        if not isinstance(secrets, dict) or not all(isinstance(text, str) for text in secrets.values()):
            raise ClaimError("the claim's tool_secrets are not texts")
        return cls(**known)


class Notice(NamedTuple):
    """One line of the worker's standard output."""

    word: Word
    work_id: str
    protocol: int
    worker: str  # SHA-256 (hex) of the archive that runs
    sdk: str  # version of the anthropic package in the sandbox, "" where none is installed
    pid: int
    detail: str = ""
    on_behalf: bool = False  # said by a process that passed its claim on to the holder of the lock
    nonce: str = ""  # the claim's, which only its own worker knows
    at: float = 0.0  # Unix seconds by the sandbox's clock; 0 where the worker does not tell

    def to_json(self) -> str:
        return json.dumps({"hands": PROTOCOL_VERSION, **self._asdict()}, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str) -> Notice | None:
        """None for a line that is not a notice: a sandbox may print anything."""
        if '"hands"' not in line:
            return None
        try:
            raw: Any = json.loads(line)
            return cls(
                word=Word(raw["word"]),
                work_id=str(raw["work_id"]),
                protocol=int(raw["protocol"]),
                worker=str(raw["worker"])[:_LONGEST_FIELD],
                sdk=str(raw["sdk"])[:_LONGEST_FIELD],
                pid=int(raw["pid"]),
                detail=str(raw.get("detail", ""))[:LONGEST_DETAIL],
                on_behalf=bool(raw.get("on_behalf", False)),
                nonce=str(raw.get("nonce", "")),
                at=_moment(raw.get("at")),
            )
        except (ValueError, TypeError, KeyError):
            return None


def _moment(value: Any) -> float:
    known = isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < _LATEST
    return float(value) if known else 0.0


class Ended(Exception):
    """The run is over. `detail` is shown to the operator, so it holds no secret."""

    def __init__(self, exit_status: Exit, detail: str = "") -> None:
        super().__init__(detail or exit_status.name)
        self.exit_status = exit_status
        self.detail = detail
