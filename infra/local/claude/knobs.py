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
    second_ack_status: Literal[200, 409] = Field(default=200, description="of an item that is acknowledged already")
    second_stop_status: Literal[200, 409] = Field(default=200, description="of an item that is stopped already")
    requeue_keeps_times: bool = Field(default=False, description="re-queueing leaves acknowledged_at and started_at")
    honour_desired_ttl: bool = Field(default=True, description="`desired_ttl_seconds` shortens a lease")
    create_enqueues: bool = Field(default=True, description="a session without initial events is queued at once")
    results_enqueue: bool = Field(
        default=True, description="answers to tool calls queue their session again where no item lives"
    )
    second_result_status: Literal[200, 400, 409] = Field(default=200, description="of a result to an answered call")
    interrupt_ends_calls: bool = Field(default=True, description="an interrupt ends a turn that waits for results")
    list_order: Literal["newest_first", "oldest_first"] = Field(default="newest_first", description="of work items")
    list_has_stopped: bool = Field(default=True, description="work list has items that are stopped")
    longest_block_ms: int = Field(default=999, ge=1, le=60_000, description="a longer `block_ms` is refused")
    api_key_polls: bool = Field(default=False, description="an API key may poll, too")
    counted_calls: list[str] = Field(
        default=[],
        description="calls that count against the limits, and say so in a header: a method and a route's end",
    )
    date_offset: float = Field(default=0.0, description="so far off is the `Date` of each answer")
    require_beta_header: bool = Field(default=True, description="managed-agents routes answer 404 without it")
    results_only_for_workers: bool = Field(
        default=False, description="refuse events other than tool results from environment keys and sessions tokens"
    )
    no_events_from_environment_keys: bool = Field(
        default=False, description="refuse every event, results too, from environment keys"
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
