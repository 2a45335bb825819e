"""The offline platform with one assumption broken at a time: the knob, and the check that must name it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any, Final

from infra.cli.certify.check import CheckResult
from infra.cli.certify.command import certify, chosen
from infra.cli.certify.ground import Ground
from infra.cli.doctor.context import DoctorContext
from shared.settings import Settings

QUEUE: Final[tuple[tuple[str, str, Any], ...]] = (
    ("queue.counted-calls", "counted_calls", ["GET /work/poll", "POST /ack"]),
    ("queue.fence", "beats_not_fenced", ["stale"]),
    ("queue.refusal-state", "refusals_tell_lease", False),
    ("queue.lease", "lease_ttl", 120.0),
    ("queue.ttl-bounds", "longest_ttl", 3600.0),
    ("queue.reclaim", "fixed_reclaim_ms", 3000),
    ("queue.lapsed-pending", "lapsed_is_pending", False),
    ("queue.ack-unclaimed", "ack_needs_claim", True),
    ("queue.stopped-ack", "stopped_ack_status", 404),
    ("queue.poll-order", "poll_order", "newest_first"),
    ("queue.deleted-session", "stale_poll", "handed out"),
    ("queue.archived-session", "archive_stops_item", True),
    ("queue.result-mirrored", "mirrors_results", True),
    ("queue.events-by-environment-key", "results_only_for_workers", True),
    ("queue.two-items", "message_adds_item", True),
    ("queue.message-at-stop", "message_at_stop_enqueues", False),
    ("queue.stream-names", "event_names", "message"),
    ("queue.stream-ping", "ping_interval", 60.0),
    ("queue.api-key-lists", "api_key_lists", False),
    ("queue.api-key-serves", "api_key_serves", True),
    ("queue.token-scope", "token_reach", ["stats"]),
    ("queue.refused-keys", "refused_elsewhere", 404),
    ("queue.foreign-key", "foreign_work_status", 404),
    ("queue.date", "date_offset", -60.0),
    ("queue.oldest-version", "oldest_version", "2026-10-21"),
    ("queue.page-limits", "longest_work_page", 1000),
    ("queue.results-enqueue", "results_enqueue", False),
    ("queue.results-by-environment-key", "no_events_from_environment_keys", True),
    ("queue.second-result", "second_result_status", 409),
    ("queue.interrupt-ends-calls", "interrupt_ends_calls", False),
    ("queue.startup-lease", "startup_lease", 120.0),
    ("queue.requeue-fields", "requeue_keeps_times", True),
    ("queue.beat-before-ack", "beat_claims_unacked", True),
    ("queue.list-order", "list_order", "oldest_first"),
    ("queue.list-stopped", "list_has_stopped", False),
    ("queue.secret", "null_secret", True),
    ("queue.second-ack", "second_ack_status", 409),
    ("queue.second-stop", "second_stop_status", 409),
    ("queue.create-enqueues", "create_enqueues", False),
    ("queue.desired-ttl", "honour_desired_ttl", False),
    ("queue.block-limit", "longest_block_ms", 1500),
    ("queue.api-key-polls", "api_key_polls", True),
    ("queue.beta-header", "require_beta_header", False),
)
SANDBOX: Final[tuple[tuple[str, str, Any], ...]] = (
    ("sandbox.boot-time", "create_seconds", 11.0),
    ("sandbox.resume-time", "resume_seconds", 11.0),
    ("sandbox.name-release", "name_release_seconds", 7.0),
    ("sandbox.name-taken", "name_taken_status", 400),
    ("sandbox.root-start", "root_status", 403),
    ("sandbox.root-start", "root_ignored", True),
    ("sandbox.missing-program", "missing_program_status", None),
    ("sandbox.relative-path", "relative_paths", True),
    ("sandbox.follow", "follow_waits", True),
    ("sandbox.quiet-command", "open_requests_are_activity", False),
    ("sandbox.followed-output", "follows_are_activity", False),
    ("sandbox.touch", "touches_are_activity", False),
    ("sandbox.idle-suspends", "processes_are_activity", True),
    ("sandbox.idle-suspends", "idle_ends", True),
    ("sandbox.idle-suspends", "sleep_ends_processes", True),
    ("sandbox.port-wakes", "port_traffic_wakes", False),
    ("sandbox.unwoken", "unwoken_status", None),
    ("sandbox.unwoken", "unwoken_status", 423),
    ("sandbox.sleeper-url", "sleepers_have_url", False),
    ("sandbox.traffic-wakes", "traffic_wakes", False),
    ("sandbox.look-leaves-asleep", "looks_wake", True),
    ("sandbox.process-name", "process_names_unique", False),
    ("sandbox.resume-moves", "resume_moves", True),
    ("sandbox.list-order", "list_order", "newest_first"),
    ("sandbox.list-ended", "list_has_ended", False),
    ("sandbox.list-pages", "page_key", "next_cursor"),
    ("sandbox.pool-rename", "pool_rename_status", 400),
    ("sandbox.snapshot-listing", "snapshots_have_type", False),
    ("sandbox.from-snapshot", "snapshots_keep_files", False),
    ("sandbox.egress-holds", "egress_enforced", False),
    ("sandbox.wildcards", "wildcard_status", 400),
    ("sandbox.wildcards", "wildcards_open", "nothing"),
    ("sandbox.wildcards", "wildcards_open", "everything"),
    ("sandbox.copy", "copy_status", 403),
    ("sandbox.copy", "copies_keep", ["network", "ports", "timeout"]),
    ("sandbox.copy", "copies_keep", ["network"]),
    ("sandbox.copy", "copies_keep", ["timeout"]),
    ("sandbox.daemon-inside", "daemon_open_inside", True),
    ("sandbox.counted-calls", "calls_a_minute", 100_000),
    ("sandbox.quota", "over_quota_status", 400),
)


NOT_SHOWN_OFFLINE: Final = {"sandbox.root-start": "an offline sandbox has one user, and none starts as root"}
"""What the offline platform cannot show, with what its check says."""


def certified(environ: Mapping[str, str], *only: str, quota: int = 0) -> dict[str, CheckResult]:
    """What these checks saw; nothing is left over."""
    context = DoctorContext(environ, Settings.from_environ(environ), offline=True)
    results, left_over = asyncio.run(certify(Ground(context, quota=quota), chosen(only, quota)))
    assert left_over == []
    return {result.check.id: result for result in results}


def not_holding(results: dict[str, CheckResult]) -> dict[str, str]:
    """The checks that do not hold, with what they saw, but for what the offline platform cannot show."""
    seen = {name: each.observed.seen for name, each in results.items() if each.observed.holds is not True}
    return dict(seen.items() - NOT_SHOWN_OFFLINE.items())
