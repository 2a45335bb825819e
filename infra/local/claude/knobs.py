"""What can be changed about the service while it runs (admin API, `/_admin/settings`)."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Knobs(BaseModel):
    """Durations in seconds. The defaults are the live service's values where those are known
    (docs/wire/anthropic.md#10-numbers)."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)

    lease_ttl: float = Field(default=300.0, gt=0, description="from the last heartbeat until the item is queued again")
    startup_lease: float | None = Field(
        default=None, gt=0, description="from the ack until an item that never beat is queued again; null: never"
    )
    reported_startup_ttl: int = Field(default=120, gt=0, description="`ttl_seconds` shown for an item that never beat")
    token_grace: float = Field(default=30.0, ge=0, description="how long a sessions token outlives its item")
    token_lifetime: float | None = Field(default=None, gt=0, description="of a sessions token; null: with its item")
    null_secret: bool = Field(default=False, description="poll hands out items without a secret")
    heartbeat_412: int = Field(
        default=0, ge=0, description="so many heartbeats to come meet a 412 whatever they expect"
    )
    beat_claims_unacked: bool = Field(default=False, description="a first heartbeat takes an item nobody acknowledged")
    beats_not_fenced: list[Literal["stale", "first"]] = Field(
        default=[], description="heartbeats on a living lease that are taken: with an old value, and as the first one"
    )
    refusals_tell_lease: bool = Field(default=True, description="a 412 has the `current_state` of the lease")
    second_ack_status: Literal[200, 409] = Field(default=200, description="of an item that is acknowledged already")
    stopped_ack_status: Literal[200, 404, 409, 412] = Field(default=200, description="of an item that is stopped")
    ack_needs_claim: bool = Field(default=False, description="409 to the ack of an item that no poll handed out")
    second_stop_status: Literal[200, 409] = Field(default=200, description="of an item that is stopped already")
    requeue_keeps_times: bool = Field(default=False, description="re-queueing leaves acknowledged_at and started_at")
    honour_desired_ttl: bool = Field(default=True, description="`desired_ttl_seconds` shortens a lease")
    longest_ttl: float | None = Field(
        default=None, gt=0, description="to which `desired_ttl_seconds` lengthens a lease; null: not over `lease_ttl`"
    )
    fixed_reclaim_ms: int | None = Field(
        default=None, ge=0, description="the window of reservations whatever a poll says; null: what it says"
    )
    lapsed_is_pending: bool = Field(
        default=True, description="stats count a reservation past the last poll's window as `pending`, not as `depth`"
    )
    poll_order: Literal["oldest_first", "newest_first"] = Field(default="oldest_first", description="of hand-outs")
    stale_poll: Literal["404", "skipped", "handed out"] = Field(
        default="404", description="what a poll makes of the item of a deleted session"
    )
    archive_stops_item: bool = Field(default=False, description="the item of an archived session is stopped with it")
    create_enqueues: bool = Field(default=True, description="a session without initial events is queued at once")
    results_enqueue: bool = Field(
        default=True, description="answers to tool calls queue their session again where no item lives"
    )
    message_at_stop_enqueues: bool = Field(
        default=True, description="a message that no worker saw before its item's stop queues the session again"
    )
    message_adds_item: bool = Field(default=False, description="a message makes a second item where one lives")
    mirrors_results: bool = Field(default=False, description="`agent.tool_result` follows a `user.tool_result`")
    second_result_status: Literal[200, 400, 409] = Field(default=200, description="of a result to an answered call")
    interrupt_ends_calls: bool = Field(default=True, description="an interrupt ends a turn that waits for results")
    list_order: Literal["newest_first", "oldest_first"] = Field(default="newest_first", description="of work items")
    list_has_stopped: bool = Field(default=True, description="work list has items that are stopped")
    longest_work_page: int = Field(default=100, ge=1, le=10_000, description="a larger `limit` of work is refused")
    longest_sessions_page: int = Field(default=100, ge=1, le=10_000, description="the same of sessions")
    longest_events_page: int = Field(default=1000, ge=1, le=10_000, description="the same of events")
    longest_block_ms: int = Field(default=999, ge=1, le=60_000, description="a longer `block_ms` is refused")
    api_key_polls: bool = Field(default=False, description="an API key may poll, too")
    api_key_lists: bool = Field(default=True, description="an API key may list work and read its stats")
    api_key_serves: bool = Field(default=False, description="an API key may ack and beat")
    token_reach: list[Literal["ack", "list", "stats", "skills", "sessions"]] = Field(
        default=[], description="what a sessions token may do beyond its item and its session"
    )
    refused_on_administration: Literal[401, 403, 404] = Field(
        default=401, description="to a key that may not use agents, environments, or the list of sessions"
    )
    refused_elsewhere: Literal[401, 403, 404] = Field(default=403, description="to one that may not use another route")
    foreign_work_status: Literal[401, 403, 404] = Field(
        default=403, description="to the key of another environment, on a queue"
    )
    foreign_session_status: Literal[401, 403, 404] = Field(default=404, description="to the same, on a session")
    limits_told: bool = Field(
        default=True, description="calls that the documentation counts against the limits say so in a header"
    )
    counted_calls: list[str] = Field(
        default=[],
        description="calls of the queue that do so, too: a method and a route's end",
    )
    date_offset: float | None = Field(
        default=0.0, description="so far off is the `Date` of each answer; null: no answer has one"
    )
    oldest_version: str = Field(default="", description="an older `anthropic-version` is refused with 400")
    require_beta_header: bool = Field(default=True, description="managed-agents routes answer 404 without it")
    results_only_for_workers: bool = Field(
        default=False, description="refuse events other than tool results from environment keys and sessions tokens"
    )
    no_events_from_environment_keys: bool = Field(
        default=False, description="refuse every event, results too, from environment keys"
    )
    event_names: Literal["type", "message", "none"] = Field(
        default="type", description="on event streams: the event's type, the word `message`, or no such line"
    )
    ping_interval: float = Field(default=15.0, gt=0, description="between pings on an event stream")
    think_seconds: float = Field(default=0.0, ge=0, description="each model request takes at least so long")
    webhook_backoff_min: float = Field(default=5.0, ge=0)
    webhook_backoff_max: float = Field(default=120.0, ge=0)
    webhook_backoff_scale: float = Field(default=1.0, ge=0, description="multiplies both; 0: retry at once")
    webhook_timeout: float = Field(default=10.0, gt=0)
    webhook_duplicates: float = Field(
        default=0.0, ge=0, description="extra copies of an event; 0.5: of every second one"
    )
    webhook_reorder_window: float = Field(default=0.0, ge=0, description="each delivery waits a random time up to this")
    webhook_drop: float = Field(default=0.0, ge=0, le=1, description="share of events never sent")
    webhook_disable_after: float | None = Field(
        default=None, gt=0, description="an endpoint that failed for so long without one 2xx is disabled; null: never"
    )
