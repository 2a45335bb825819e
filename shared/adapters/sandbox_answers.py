"""What the service's answers and errors mean, in the words of shared/ports.py: the one place that knows the SDK's
exceptions (docs/wire/tensorlake.md#33-exceptions).

Nothing that a sandbox says is trusted: an answer that cannot be read is Doubtful.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, TypeVar

import orjson

from shared.egress import EgressPolicy
from shared.ports import (
    Absent,
    Doubtful,
    Listing,
    NoAnswer,
    NoCapacity,
    PoolRecord,
    ProcessState,
    Refused,
    SandboxStatus,
    SnapshotRecord,
)
from shared.unanswered import unanswered

if TYPE_CHECKING:
    from tensorlake.sandbox import AsyncSandboxClient

log = logging.getLogger(__name__)

LONGEST_REASON: Final = 200
_NO_ROOM: Final = re.compile(r"quota|limit|capacity|exceed|too many|no room", re.IGNORECASE)
NOT_ROUTABLE: Final = (SandboxStatus.TERMINATED.value, SandboxStatus.FAILED.value)
_RESTORABLE: Final = ("local_ready", "replicating", "completed")  # docs/wire/tensorlake.md#6-snapshots

_T = TypeVar("_T")


def state_of(name: str, info: Any) -> ProcessState:
    code = info["exit_code"] if isinstance(info.get("exit_code"), int) else None
    pid = info["pid"] if isinstance(info.get("pid"), int) else None
    return ProcessState(name=name, running=info["status"] == "running", exit_code=code, pid=pid)


def named_states(info: Any) -> Iterator[ProcessState]:
    """None for a process without a name: nobody asks for it."""
    managed = info.get("managed")
    if isinstance(managed, dict) and isinstance(managed.get("name"), str) and managed["name"]:
        yield state_of(managed["name"], info)


def effect_of(outcome: bytes | Absent | Refused | Doubtful) -> Absent | Refused | Doubtful | None:
    return None if isinstance(outcome, bytes) else outcome


def read_as(outcome: bytes | Absent | Refused | Doubtful, read: Callable[[Any], _T]) -> _T | Absent | Doubtful:
    if not isinstance(outcome, bytes):
        return without_refusal(outcome)
    try:
        return read(orjson.loads(outcome))
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        return Doubtful(f"the sandbox's answer cannot be read ({type(error).__name__})")


_LINES: Final = re.compile(r'"lines"\s*:\s*\[\s*')
_BETWEEN: Final = re.compile(r"\s*,\s*")


def first_lines(answer: bytes) -> list[str] | Doubtful:
    """The lines of an answer that may have been cut anywhere."""
    text = answer.decode(errors="replace")
    found = _LINES.search(text)
    if found is None:
        return Doubtful("the sandbox's answer cannot be read (no lines)")
    lines, place = [], found.end()
    while text.startswith('"', place):
        try:
            line, place = json.JSONDecoder().raw_decode(text, place)
        except ValueError:
            break  # cut here
        lines.append(line)
        comma = _BETWEEN.match(text, place)
        if comma is None:
            break
        place = comma.end()
    return lines


async def readable_rows(
    client: AsyncSandboxClient, method: str, key: str, read: Callable[[Any], Any], record: Callable[[Any], _T]
) -> Listing[_T]:
    """The rows that can be read. The SDK gives nothing at all where it cannot read one of them
    (docs/wire/tensorlake.md#33-exceptions): a status that is new would end all clean-up. Then they are taken one by one
    from the answer that the SDK itself reads."""
    from tensorlake.sandbox.exceptions import RemoteAPIError, SandboxConnectionError

    try:
        return Listing([record(info) for info in await getattr(client, method)()], complete=True)
    except (RemoteAPIError, SandboxConnectionError):
        raise
    except Exception as error:  # no class of its own: the SDK wraps whatever its reading of a row raised
        log.warning("tensorlake.list_unreadable list=%s error=%s", key, type(error).__name__)
    wire = {"list": "list_sandboxes_json_async", "list_snapshots": "list_snapshots_json_async"}[method]
    _, answer = await getattr(client._rust_client, wire)()
    rows, unreadable = [], 0
    for row in orjson.loads(answer)[key]:
        try:
            rows.append(record(read(row)))
        except (ValueError, TypeError, KeyError, AttributeError):  # pydantic's error is a ValueError
            unreadable += 1
    return Listing(rows, complete=False, unreadable=unreadable)


def egress_of(policy: Any) -> EgressPolicy:
    if policy is None:
        return EgressPolicy()
    return EgressPolicy(policy.allow_internet_access, tuple(policy.allow_out), tuple(policy.deny_out))


def pool_record(info: Any) -> PoolRecord:
    return PoolRecord(
        id=info.pool_id,
        image=info.image,
        cpus=info.resources.cpus,
        memory_mb=info.resources.memory_mb,
        disk_mb=info.resources.disk_mb,
        timeout_seconds=info.timeout_secs,
        egress=egress_of(info.network_policy),
        entrypoint=bool(info.entrypoint),
    )


def snapshot_record(info: Any) -> SnapshotRecord:
    filesystem = info.snapshot_type.value == "filesystem" if info.snapshot_type is not None else None
    ready = info.status.value in _RESTORABLE
    return SnapshotRecord(info.snapshot_id, info.sandbox_id, filesystem, info.created_at, ready)


def known_rows(outcome: _T | Absent | Refused | Doubtful) -> _T | Doubtful:
    """For a listing: neither a 404 nor a refusal says anything about its rows."""
    match outcome:
        case Absent():
            return Doubtful("HTTP 404")
        case Refused(status=status):
            return Doubtful(f"HTTP {status}")
        case _:
            return outcome


def without_refusal(outcome: _T | Absent | Refused | Doubtful) -> _T | Absent | Doubtful:
    return Doubtful(f"HTTP {outcome.status}") if isinstance(outcome, Refused) else outcome


def or_no_capacity(outcome: _T | Absent | Refused | Doubtful) -> _T | Absent | Refused | Doubtful:
    """NoCapacity for what says so. How a quota is told is documented nowhere: 402, 403 and 429 are all plausible
    (docs/wire/tensorlake.md#11-quotas-and-prices)."""
    match outcome:
        case Refused(status=402, reason=reason):
            return NoCapacity(402, reason)
        case Refused(status=403, reason=reason) if _NO_ROOM.search(reason):
            return NoCapacity(403, reason)
        case Doubtful(reason=reason) if reason.startswith("HTTP 429"):
            return NoCapacity(429, reason)
        case Doubtful(reason=reason) if reason.startswith("HTTP 503") and _NO_ROOM.search(reason):
            return NoCapacity(503, reason)
        case _:
            return outcome


_UNTRUSTED: Final = "invalid peer certificate"
NOT_TRUSTED: Final = (
    "the certificate shown for Tensorlake is not trusted, and its SDK trusts public authorities alone (SSL_CERT_FILE "
    "has no part in it): have api.tensorlake.ai and sandbox.tensorlake.ai exempted from what reads TLS here"
)
"""docs/wire/tensorlake.md#1-pointing-the-sdk-at-a-local-server"""


def sdk_reason(error: Exception, url: str) -> str:
    """What a report or a person is told of an error of the SDK at `url`."""
    outcome = sdk_outcome(error, url, describe=True)
    return "HTTP 404" if isinstance(outcome, Absent) else outcome.reason


def sdk_outcome(error: Exception, url: str, *, describe: bool) -> Absent | Refused | Doubtful:
    from tensorlake.sandbox import (
        RemoteAPIError,
        SandboxConnectionError,
        SandboxError,
        SandboxNotFoundError,
        SandboxNotRoutableError,
    )
    from tensorlake.sandbox.exceptions import PoolNotFoundError

    if isinstance(error, SandboxNotFoundError | PoolNotFoundError):
        return Absent()
    if isinstance(error, SandboxNotRoutableError) and error.status is not None and error.status.value in NOT_ROUTABLE:
        return Absent()
    if isinstance(error, RemoteAPIError):
        status = error.status_code
        reason = f"HTTP {status}" + (f": {error.message[:LONGEST_REASON]}" if describe else "")
        if status == 404:
            return Absent()
        if 400 <= status < 500 and status not in (408, 429):
            return Refused(status, reason)
        return Doubtful(reason)
    if _UNTRUSTED in str(error):
        return NoAnswer(NOT_TRUSTED)
    if isinstance(error, SandboxConnectionError | TimeoutError):
        return NoAnswer(unanswered(error, url))
    if isinstance(error, SandboxError) and describe:
        return Doubtful(f"{type(error).__name__}: {str(error)[:LONGEST_REASON]}")
    return Doubtful(type(error).__name__)
