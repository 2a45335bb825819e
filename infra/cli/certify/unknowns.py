"""The unknowns of docs/wire, each with the checks that look at it or the reason why none does.

A row has the words of its page (docs/wire/anthropic.md#13-unknowns, docs/wire/tensorlake.md#16-unknowns): a new
unknown is written in both places (tests/infra/cli/certify/test_unknowns.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

ANTHROPIC: Final = "docs/wire/anthropic.md#13-unknowns"
TENSORLAKE: Final = "docs/wire/tensorlake.md#16-unknowns"


@dataclass(frozen=True, slots=True)
class Unknown:
    """Either `checks`, their ids, or `why`: the reason why it is not tried. `choices`: how what the page marks as the
    offline platform's own answer to it begins."""

    matter: str
    anchor: str
    checks: tuple[str, ...] = ()
    why: str = ""
    choices: tuple[str, ...] = ()


_HOURS: Final = "it takes hours"
_CONSOLE: Final = "endpoints of webhooks are made in the Console"
_MODEL: Final = "it takes a model's turn of its own kind; drivers take both"
_MANY: Final = "more than two sandboxes would be needed"
_HOST: Final = "no call chooses the host"
_LARGE: Final = "large transfers are slow and cost money"


def _claude(matter: str, *checks: str, why: str = "", emu: tuple[str, ...] = ()) -> Unknown:
    return Unknown(matter, ANTHROPIC, checks, why, emu)


def _tensorlake(matter: str, *checks: str, why: str = "", emu: tuple[str, ...] = ()) -> Unknown:
    return Unknown(matter, TENSORLAKE, checks, why, emu)


UNKNOWNS: Final = (
    _claude("the start-up lease", "queue.startup-lease"),
    _claude("whether `desired_ttl_seconds` sets a lease's length", "queue.desired-ttl"),
    _claude("bounds of `desired_ttl_seconds`", "queue.ttl-bounds"),
    _claude("the length of a lease", "queue.lease"),
    _claude("whether an old heartbeat, or a second first one, is refused while a lease lives", "queue.fence"),
    _claude("what a 412 tells of the lease", "queue.refusal-state"),
    _claude("when an item that nobody acked is handed out again", "queue.reclaim"),
    _claude(
        "whether a re-queued item keeps its id, `acknowledged_at` and `started_at`",
        "queue.requeue-fields",
        emu=("EMU: same id",),
    ),
    _claude("a second ack", "queue.second-ack", emu=("EMU idempotent 200",)),
    _claude("an ack by who did not claim, or after a reclaim", "queue.ack-unclaimed"),
    _claude("the ack of a stopped item", "queue.stopped-ack"),
    _claude("a second stop", "queue.second-stop", emu=("EMU: return 200",)),
    _claude("poll order", "queue.poll-order", emu=("EMU oldest first",)),
    _claude("list order of work", "queue.list-order", emu=("EMU newest first",)),
    _claude("whether stopped items stay in the list of work", "queue.list-stopped"),
    _claude("limits of list pages", "queue.page-limits"),
    _claude("a poll with `block_ms` over 999", "queue.block-limit", emu=("EMU 400",)),
    _claude("a poll with an API key", "queue.api-key-polls"),
    _claude(
        "ack, heartbeat, list and stats with an API key",
        *("queue.api-key-lists", "queue.api-key-serves"),
        emu=("EMU: allow both",),
    ),
    _claude(
        "the status for a key that a route does not take", "queue.refused-keys", emu=("EMU rule for a credential",)
    ),
    _claude("ack, list, stats, skills and other sessions with a sessions token", "queue.token-scope"),
    _claude("a healthcheck item's payload and cadence", why="the service sends them when it likes"),
    _claude(
        "whether a creation without messages queues the session",
        "queue.create-enqueues",
    ),
    _claude("when a session counts as long dormant", why=_HOURS),
    _claude("items of archived and deleted sessions", "queue.archived-session", "queue.deleted-session"),
    _claude("the length of a sessions token's life", why=_HOURS),
    _claude("a sessions token's prefix", why="no report has a character of a secret"),
    _claude("whether a poll's secret is there", "queue.secret"),
    _claude("the keys inside `secret` beside the token", why="a secret is never looked into but for its token"),
    _claude("whether results queue a session again that has no item", "queue.results-enqueue"),
    _claude("whether a session has two items at once", "queue.two-items", emu=("EMU rule: at most one live",)),
    _claude("whether a lapsed reservation counts as pending", "queue.lapsed-pending", emu=("EMU counts it",)),
    _claude("a second result of one call", "queue.second-result", emu=("EMU 200 and ignored",)),
    _claude(
        "what an interrupt does to a turn whose item was stopped",
        "queue.interrupt-ends-calls",
        emu=("EMU ends the turn",),
    ),
    _claude(
        "a message between a worker's last look and its stop",
        "queue.message-at-stop",
        emu=("EMU enqueues a new item",),
    ),
    _claude("whether an environment key may send results", "queue.results-by-environment-key"),
    _claude("which other events an environment key may send", "queue.events-by-environment-key"),
    _claude("the status for another environment's key", "queue.foreign-key", emu=("EMU 403 on work",)),
    _claude(
        "whether `user.tool_result` is mirrored as `agent.tool_result`",
        "queue.result-mirrored",
        emu=("EMU: user.tool_result only",),
    ),
    _claude(
        "whether a round of a server-side tool has a running pair of its own", why=_MODEL, emu=("EMU: it emits none",)
    ),
    _claude("position of custom tool uses relative to spans", why=_MODEL),
    _claude(
        "names of server-sent events, and the ping cadence",
        *("queue.stream-names", "queue.stream-ping"),
        emu=("EMU: name = event type",),
    ),
    _claude("the longest age of an event stream", why=_HOURS),
    _claude("webhook time-outs, and when an endpoint is disabled", why=_CONSOLE),
    _claude("whether `session.created`, `running` and `requires_action` are emitted", why=_CONSOLE),
    _claude("whether poll, ack, heartbeat and stop count against the limits", "queue.counted-calls"),
    _claude("a first heartbeat before the ack", "queue.beat-before-ack"),
    _claude("work routes without the beta header", "queue.beta-header"),
    _claude("whether an old `anthropic-version` is taken", "queue.oldest-version"),
    _claude("whether each answer has a `Date`, and by which clock", "queue.date"),
    _tensorlake("the name's exact rule", why="our names are lower-case letters, digits and hyphens, and short"),
    _tensorlake(
        "the status and the body of a create under a name that is held",
        "sandbox.name-taken",
        emu=('EMU:\n  `{"error": "..."', 'EMU:\n  `{"error":"sandbox name'),
    ),
    _tensorlake("whether a name is held while its old sandbox ends, and for how long", "sandbox.name-release"),
    _tensorlake("whether a suspended sandbox has `sandbox_url`", "sandbox.sleeper-url"),
    _tensorlake("whether a running sandbox can be copied, and the copy be named", "sandbox.copy"),
    _tensorlake("ports, time-out and network of a copy", "sandbox.copy"),
    _tensorlake("open connections of a copy, and how many copies", why=_MANY),
    _tensorlake("statuses and bodies over a quota", "sandbox.quota"),
    _tensorlake("any rate limit", "sandbox.counted-calls"),
    _tensorlake("size limits of files and standard input", why=_LARGE),
    _tensorlake("the rule for relative paths", "sandbox.relative-path"),
    _tensorlake("whether an open request is activity", "sandbox.quiet-command"),
    _tensorlake("whether lines of a followed output are activity", "sandbox.followed-output"),
    _tensorlake("whether a look at the daemon's health is activity", "sandbox.touch"),
    _tensorlake("whether a running process is activity, and outlives the time-out", "sandbox.idle-suspends"),
    _tensorlake("whether an open terminal is activity", why="a person at a terminal types"),
    _tensorlake("whether an idle ephemeral sandbox is ended or suspended", why="every sandbox here has a name"),
    _tensorlake(
        "whether traffic wakes a sleeper, and traffic to a port", "sandbox.traffic-wakes", "sandbox.port-wakes"
    ),
    _tensorlake("whether traffic to a port is activity", why="it wakes a sleeper, so a server loses its first seconds"),
    _tensorlake("whether a look at its record wakes a sleeper", "sandbox.look-leaves-asleep"),
    _tensorlake("how long a request to a sleeper may wait", "sandbox.resume-time"),
    _tensorlake(
        "the status of a request to a sleeper that may not wake by itself",
        "sandbox.unwoken",
        emu=("EMU: 409, since",),
    ),
    _tensorlake("whether a resume gives another address", "sandbox.resume-moves"),
    _tensorlake("retention of suspended sandboxes and of their snapshots", why="it takes days"),
    _tensorlake("the quota of snapshots", why=_MANY),
    _tensorlake("order of the list of sandboxes", "sandbox.list-order"),
    _tensorlake("whether ended sandboxes are listed", "sandbox.list-ended"),
    _tensorlake("`cursor` versus `next_cursor`", "sandbox.list-pages"),
    _tensorlake("page size", why=_MANY, emu=("EMU: 100 rows",)),
    _tensorlake("memory snapshots on another host: compatibility, clock, network", why=_HOST),
    _tensorlake("whether a `local_ready` snapshot can be restored at once anywhere", why=_HOST),
    _tensorlake("a start under the name of a running process", "sandbox.process-name"),
    _tensorlake(
        "the answer to a start of a program that is not there",
        "sandbox.missing-program",
        emu=("EMU: 400 with the name",),
    ),
    _tensorlake(
        "a start as root where the image's user is another, and whether it can drop to the agent's",
        "sandbox.root-start",
        emu=("EMU: a start as `root`",),
    ),
    _tensorlake("whether a sandbox of a pool can be named", "sandbox.pool-rename"),
    _tensorlake("what a snapshot's row has", "sandbox.snapshot-listing"),
    _tensorlake("whether a sandbox that is made from a snapshot has its files", "sandbox.from-snapshot"),
    _tensorlake("whether an egress list is enforced", "sandbox.egress-holds"),
    _tensorlake("whether an egress list takes wildcards, and what they open", "sandbox.wildcards"),
    _tensorlake("whether the daemon's port is open inside", "sandbox.daemon-inside"),
    _tensorlake("whether a followed output comes as it is written", "sandbox.follow"),
    _tensorlake("how long a sandbox of the session image takes to run", "sandbox.boot-time"),
    _tensorlake("which keys may read the usage", why="`hands cost` says what was refused"),
)
