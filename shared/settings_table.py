"""The table of settings: each variable is declared here once, with its default, kind and meaning.

`Settings.from_environ` parses by it, `make doctor` checks by it, deployments hand over what it lists, and
docs/reference/settings.md is generated from it. To add a setting, add one line to a section below and read it in
settings.py (CONTRIBUTING.md#how-to-add-a-setting). A cold start imports this module: plain classes, no pydantic.

A setting that only commands read is declared beside them, with the same kinds (setting_kinds.py): in
infra/cli/settings_table.py and the deployments' plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, Literal

from shared.setting_kinds import (
    Address,
    Choice,
    Flag,
    Key,
    KeyKind,
    Keys,
    Number,
    Pairs,
    References,
    Seconds,
    SetBy,
    Setting,
    Text,
    Texts,
    Whole,
)

# seconds; a tool call gets 150 (docs/wire/anthropic.md#5-session-tool-runner), and the rest is for its ends
LONGEST_AGENT_RACE: Final = 120.0
LONGEST_TOOL_CALL: Final = 120.0  # seconds; the same, and the rest is for starting and ending what runs the tool

DrainMode = Literal["auto", "inline", "background", "enqueue"]
Auth = Literal["token", "platform"]
OnFailure = Literal["tell", "continue"]


class Services:
    """The environment that is served, and the two services"""

    ANTHROPIC_ENVIRONMENT_ID = Text("", "The id of the self-hosted environment.")
    ANTHROPIC_ENVIRONMENT_KEY = Key(KeyKind.ENVIRONMENT, "That environment's key.", file_key="key")
    TENSORLAKE_API_KEY = Key(KeyKind.TENSORLAKE, "Sandboxes and images land in this key's project.")
    ENVIRONMENTS_FILE = Text("", "A TOML file with one table for each of several environments.")
    ANTHROPIC_BASE_URL = Address("https://api.anthropic.com", "Where the Claude API is.")
    TENSORLAKE_API_URL = Address("https://api.tensorlake.ai", "Where Tensorlake is: a host that begins with api.")
    ANTHROPIC_READS_PER_MINUTE = Whole(1200, "Reads that this process makes at most; 0: no limit.", unit="calls")
    ANTHROPIC_WRITES_PER_MINUTE = Whole(300, "The same for calls that change something.", unit="calls")
    TENSORLAKE_CALLS_PER_MINUTE = Whole(3000, "The same for calls to Tensorlake.", unit="calls")


class Access:
    """Who may call the functions"""

    ANTHROPIC_WEBHOOK_SIGNING_KEY = Keys(
        KeyKind.SIGNING, "Signing secrets of the webhook. Without one on_run_started refuses every call."
    )
    FUNCTIONS_TOKEN = Key(
        KeyKind.UNKNOWN,
        "The operator's bearer token, a random text. Without it poll_tick and fork_best_of_n are closed.",
    )
    CAPABILITY_KEY = Key(
        KeyKind.UNKNOWN,
        "What agents' tokens are signed with, a random text of 32 characters or more; two while one is rotated, "
        "the new one first. Without it they are signed with a key that is derived from FUNCTIONS_TOKEN.",
    )
    AUTH: Choice[Auth] = Choice(
        ("token", "platform"),
        "Who is the operator. With platform, Cloud Run's own check of the caller counts too (docs/deploy/gcp.md).",
        set_by="deployment",
    )
    AUTH_CALLERS = Texts((), "With AUTH=platform: the e-mail addresses that may call.", set_by="deployment")
    AUTH_OWN_URL = Address("", "With AUTH=platform: this service's own run.app address.", set_by="deployment")
    K_SERVICE = Text("", "Cloud Run's name of the service. AUTH=platform needs it.", set_by="runtime")


class Sandboxes:
    """The sandboxes of sessions"""

    SANDBOX_IMAGE_NAME = Text("agent-cli", "The image that they start from.", file_key="image")
    SANDBOX_POOL = Text(
        "", "Id of a pool of the service that new ones are claimed from (docs/pool.md). Empty: none.", file_key="pool"
    )
    SANDBOX_CPUS = Number(2.0, "Processors of each.", file_key="cpus")
    SANDBOX_MEMORY_MB = Whole(4096, "Memory of each.", unit="MB", file_key="memory_mb")
    SANDBOX_DISK_MB = Whole(25_600, "Disk of each.", unit="MB", file_key="disk_mb")
    SANDBOX_TIMEOUT_SECONDS = Whole(
        3600, "Idle time after which Tensorlake suspends one.", unit="seconds", file_key="timeout_seconds"
    )
    SANDBOX_ALLOW_OUT = Texts(
        (),
        "Hosts that it may reach beside those of ANTHROPIC_BASE_URL and FUNCTIONS_PUBLIC_URL; * opens it to all.",
        file_key="allow_out",
    )
    SANDBOX_PREFIX = Text(
        "hands",
        "Names of our sandboxes begin so. Nothing without it is ever touched: after a change their sessions get new "
        "ones, and nothing ends the old ones (`HANDS608`).",
    )
    SANDBOX_USER = Text("agent", "The user that tools run as.")
    SANDBOX_WORKDIR = Text("/workspace", "Their working folder, and what a race compares.")
    RESUME_SUSPENDED_SESSIONS = Flag(True, "false: a session whose sandbox is suspended gets a fresh one.")


class Workers:
    """The worker in a sandbox"""

    RUNNER_MAX_IDLE_SECONDS = Seconds(60.0, "How long it waits for more work of an idle session; 0: without limit.")
    WORKER_LIFETIME_SECONDS = Seconds(86_400.0, "The longest that one worker lives.")
    TOOL_SECONDS = Seconds(LONGEST_TOOL_CALL, "The longest call of a tool of your own (docs/tools.md); 120 at most.")
    TOOL_OUTPUT_BYTES = Whole(102_400, "The longest text that such a call returns.", unit="bytes")
    TOOL_SECRETS = References(
        {},
        "What private tools and MCP servers find in their environment: NAME=reference, with spaces between, such as "
        "DB_PASSWORD=aws-sm:db. The agent cannot read it, and a tool that is badly written can give it away "
        "(docs/tools.md#what-private-does-not-protect-against).",
        file_key="tool_secrets",
    )


class SessionStart:
    """What a session starts with (docs/setup.md)"""

    SETUP_REPOSITORY = Text("", "An https URL of a repository for every session.", file_key="setup_repository")
    SETUP_REVISION = Text("", "Its branch, tag or commit.", file_key="setup_revision")
    SETUP_SUBDIR = Text("", "The only folder of it that is checked out.", file_key="setup_subdir")
    SETUP_FILES = Text(
        "", "URLs of files for every session, each with #sha256=HEX&target=PATH if need be.", file_key="setup_files"
    )
    SETUP_SCRIPT = Text("", "A script for every session: its text, or file:PATH.", file_key="setup_script")
    SETUP_ENV = Pairs({}, "Variables of the agent's tools. An agent can read them.", file_key="setup_env")
    SETUP_SCRIPTS = Pairs(
        {}, "Scripts that a session's metadata may name: name=TEXT or name=file:PATH.", file_key="setup_scripts"
    )
    SETUP_STORES = Texts(
        (),
        "Prefixes of objects that the functions may sign for a session: s3://bucket/folder/ or gs://bucket/.",
        file_key="setup_stores",
    )
    SETUP_CREDENTIALS = Text(
        "",
        "Your own function that gives a repository's credential: module:function, or entry-point:NAME "
        "of the group serverless_hands.credentials.",
        file_key="setup_credentials",
    )
    SETUP_CALLER_KEYS = Texts(
        ("repo", "ref", "subdir", "files", "setup"),
        "Keys of metadata that whoever creates a session may set. There are setup.inline, env.NAME and env.* besides; "
        "none: nothing.",
        file_key="setup_caller_keys",
    )
    SETUP_OTHER_KEYS = Texts(
        (), "Keys of metadata that mean something else, PREFIX* for many.", file_key="setup_other_keys"
    )
    SETUP_SECONDS = Seconds(600.0, "The longest set-up.", file_key="setup_seconds")
    SETUP_ON_FAILURE: Choice[OnFailure] = Choice(
        ("tell", "continue"),
        "tell: the session's calls get an error; continue: it runs, with SETUP_FAILED.txt in its workspace.",
        file_key="setup_on_failure",
    )
    SETUP_CLONE_DEPTH = Whole(
        1, "Commits of history that a repository comes with; 0: all.", unit="commits", file_key="setup_clone_depth"
    )
    SETUP_PREPARED_SECONDS = Seconds(
        604_800.0,
        "How long what `make prepare` has made counts as new; sessions start from it for twice as long at most. 0: "
        "sessions are started from no prepared sandbox.",
        file_key="setup_prepared_seconds",
    )
    SETUP_PREPARED_BY_TICKS = Flag(
        False,
        "true: ticks make what `make prepare` makes, and make it anew when it is old or the set-up has changed.",
        file_key="setup_prepared_by_ticks",
    )


class Claims:
    """The claim protocol's times (docs/claim-protocol.md)"""

    RECLAIM_SECONDS = Seconds(90.0, "R: an item that was claimed and not acked is offered again after it.")
    BIND_SECONDS = Seconds(45.0, "The longest that a sandbox may take to be running.")
    HANDOVER_SECONDS = Seconds(30.0, "The longest from starting the worker to its `ready`.")
    STRANDED_SECONDS = Seconds(180.0, "T: from this age an acked item without a heartbeat is stranded.")
    POISON_AGE_SECONDS = Seconds(
        21_600.0, "An item that was acked so long ago and never beaten is released whatever its sandbox says."
    )
    POISON_ATTEMPTS = Whole(
        5, "An item whose workers have died this often without a call in hand is given up.", unit="deaths"
    )


class Drains:
    """The bounds of one drain"""

    DRAIN_MODE: Choice[DrainMode] = Choice(
        ("auto", "inline", "background", "enqueue"),
        "How a webhook is answered: after the drain, or before it (docs/architecture.md).",
        set_by="deployment",
    )
    ENQUEUE_TO = Text("", "With DRAIN_MODE=enqueue: whom to invoke, aws-lambda:NAME.", set_by="deployment")
    INLINE_SECONDS = Seconds(10.0, "The longest that a webhook waits for its inline drain, which goes on behind it.")
    DRY_RUN = Flag(False, "true: the functions claim, start and delete nothing, and say what they would do.")
    DRAIN_DEADLINE_SECONDS = Seconds(110.0, "The longest that a drain claims and serves.")
    DRAIN_MAX_ITEMS = Whole(500, "Items that one round of polls claims at most.", unit="items")
    DRAIN_CONCURRENCY = Whole(64, "Items of one environment that are served at a time.", unit="sandboxes")
    DRAIN_POLLS_IN_FLIGHT = Whole(8, "Polls of one environment that are under way at a time.", unit="polls")


class Reconcile:
    """When the reconciler acts, and how much one tick does (docs/reconciler.md)"""

    RECONCILE_SECONDS = Seconds(40.0, "The longest pass. It comes on top of the tick's drain.")
    IDLE_GRACE_SECONDS = Seconds(30.0, "From a session's last sign of work until its sandbox is suspended.")
    END_GRACE_SECONDS = Seconds(300.0, "From the mark of a sandbox whose session is over until it is deleted.")
    RETENTION_SECONDS = Seconds(604_800.0, "How long a suspended sandbox is kept.")
    WAITING_SLEEP_SECONDS = Seconds(
        0.0, "A session that has waited for a person for so long lets its sandbox sleep; the answer wakes it. 0: never."
    )
    RECONCILE_PAGES = Whole(20, "Pages of the list of work items that one pass reads at least.", unit="pages")
    RECONCILE_LOOKUPS = Whole(100, "Sessions that one pass looks up at least.", unit="sessions")
    RECONCILE_TOUCHES = Whole(
        100, "Sandboxes that one pass keeps awake at least (docs/reconciler.md#limits).", unit="sandboxes"
    )


class Outputs:
    """What comes out of a session (docs/files.md)"""

    OUTPUTS_TO = Text(
        "", "Where outputs are collected to: file:///folder, s3://bucket/prefix, gs://bucket/prefix or https://..."
    )
    OUTPUTS_SIGNATURE = Key(KeyKind.UNKNOWN, "The query of an https address that is signed.")
    OUTPUTS_DIR = Text("/workspace/outputs", "The folder in a sandbox that is collected.")
    OUTPUTS_SECONDS = Seconds(25.0, "The longest that one look at a session's outputs may take.")
    OUTPUTS_FILE_MB = Whole(1024, "The largest file that is collected.", unit="MB")
    OUTPUTS_PATIENCE_SECONDS = Seconds(86_400.0, "How long uncollected outputs delay an end.")


class Races:
    """The bounds of races, whatever a request asks for (docs/races.md)"""

    RACE_MAX_BRANCHES = Whole(64, "Copies of one race.", unit="branches")
    RACE_MAX_PARALLEL = Whole(16, "Copies that run at a time.", unit="branches")
    RACE_DEADLINE_SECONDS = Seconds(900.0, "The longest race.")
    RACE_RECORD_SECONDS = Seconds(
        86_400.0,
        "From the call of a race with Prefer: respond-async or an Idempotency-Key until what is kept of it is deleted; "
        "never less than twice RACE_DEADLINE_SECONDS and ten minutes.",
    )
    RACE_REPORTS = Choice(
        ("asked", "all"),
        "Of which races the report is kept as long: of those that were asked for so, or of all, agents' too. Each is "
        "a small sandbox that sleeps.",
    )
    RACES_HANDED_TO = Text(
        "",
        "Where the runtime stops what runs once it has answered: who has a race run that nobody waits for, "
        "aws-lambda:NAME, gcp-tasks:projects/P/locations/L/queues/Q, or the own https address of fork_best_of_n "
        "(docs/races.md). Without it Prefer: respond-async is answered 501 there.",
        set_by="deployment",
    )
    RACES_AT_ONCE = Whole(16, "Races at once in one process; a quarter is kept for the operator.", unit="races")
    RACE_CALLS_PER_MINUTE = Whole(
        600, "Calls of poll_tick and fork_best_of_n with the operator's token; 0: without limit.", unit="calls"
    )
    RACE_AGENT_CALLS_PER_MINUTE = Whole(
        30, "Calls of fork_best_of_n for one work item, refused and dry ones too; 0: without limit.", unit="calls"
    )
    RACE_AGENT_MAX_BRANCHES = Whole(8, "Copies of a race that an agent asks for.", unit="branches")
    RACE_AGENT_SECONDS = Seconds(LONGEST_AGENT_RACE, "The longest race that an agent asks for; 120 at most.")
    RACE_AGENT_SANDBOX_SECONDS_PER_DAY = Seconds(
        36_000.0, "What the sandboxes of one session's own races live a day (of UTC), all together; 0: without limit."
    )
    RACE_WEBHOOK_HOSTS = Texts(
        (), "Hosts (host or host:port) that a race's on_finish may call, over https; http to this machine's loopback."
    )
    RACE_WEBHOOK_SIGNING_KEY = Key(
        KeyKind.SIGNING, "What on_finish calls are signed with: whsec_ and at least 24 random bytes as base64."
    )
    RACE_OUTPUT_BYTES = Whole(1_048_576, "What is kept of a branch's output.", unit="bytes")
    RACE_ARTIFACT_BYTES = Whole(2_097_152, "What a branch may hand over as artifacts.", unit="bytes")
    RACE_JUDGES = Text("", "Judges of your own: name=module:function or name=entry-point:NAME, with commas between.")
    AGENT_FORK = Flag(
        False,
        "true: agents may ask for races in their own sessions. Needs FUNCTIONS_TOKEN or CAPABILITY_KEY, of at least 32 "
        "characters.",
    )
    AGENT_FORK_ACCEPT_ONLY = Flag(
        False,
        "true: this function accepts agents' tokens and issues none, so that it need not know its own address.",
        set_by="deployment",
    )
    FUNCTIONS_PUBLIC_URL = Address("", "The functions' address as a sandbox reaches it.", set_by="deployment")


class Server:
    """A long-lived server"""

    SELF_TICK_SECONDS = Seconds(
        0.0, "How often it ticks by itself; 0: a schedule from outside calls it.", set_by="deployment"
    )
    STANDSTILL_SECONDS = Seconds(15.0, "A server that is so late has been suspended, and catches up. At least 1.")
    SERVER_SANDBOX = Text(
        "", "Id or name of the sandbox that this server runs in; no race starts from it.", set_by="deployment"
    )


class Logging:
    """Logs"""

    LOG_LEVEL = Text("INFO", "The level of our own loggers. The SDKs' loggers stay as they are.")
    LOG_FORMAT = Choice(("text", "json"), "How a line looks.")


class Telemetry:
    """OpenTelemetry (docs/observability.md), beside its own OTEL_* variables"""

    WORKER_OTLP_ENDPOINT = Address(
        "",
        "Where workers in sandboxes send their spans, by OTLP over HTTP and without any credential: a collector's "
        "address. Its host is added to the sandboxes' allow-list.",
    )


SECTIONS: Final = (
    *(Services, Access, Sandboxes, Workers, SessionStart, Claims, Drains),
    *(Reconcile, Outputs, Races, Server, Logging, Telemetry),
)


def settings_of(*sections: type) -> tuple[Setting[Any], ...]:
    """What these sections declare, in the order of the text."""
    return tuple(each for section in sections for each in vars(section).values() if isinstance(each, Setting))


TABLE: Final[tuple[Setting[Any], ...]] = settings_of(*SECTIONS)


def is_secret(setting: Setting[Any]) -> bool:
    return isinstance(setting, Key | Keys)


def handed_over(environ: Mapping[str, str], *set_by: SetBy) -> dict[str, str]:
    """What a deployment passes on as it is: settings that are set, no secret, and the business of one of `set_by`."""
    return {
        each.name: text
        for each in sorted(TABLE, key=lambda each: each.name)
        if each.set_by in set_by and not is_secret(each) and (text := each.text(environ))
    }
