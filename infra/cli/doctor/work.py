"""The work queue of one environment: may it be served, does work wait, is an item stranded, who else polls?

Nothing here polls: a poll would claim an item.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from infra.cli.doctor.context import NO_CLAUDE, DoctorContext, claude_client, is_environment_id
from infra.cli.doctor.findings import Finding, Say, error, info, ok, warning
from shared import names
from shared.environment_settings import Environment
from shared.errors import SecretUnavailable
from shared.ports import Doubtful, ItemState, ListedItem, Refused, SandboxStatus
from shared.reconcile.lookups import Lookups
from shared.reconcile.plan import due
from shared.reconcile.world import Items, World
from shared.reports import Act
from shared.secret import Secret
from shared.unanswered import unanswered

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic
    from anthropic.types.beta.environments import BetaSelfHostedWorkQueueStats

_BEATS: Final = timedelta(seconds=90)  # a worker beats every 30 s at most (docs/wire/anthropic.md#10-numbers)
_SHOWN: Final = 5


async def check_environment(context: DoctorContext, environment: Environment, say: Say) -> None:
    """All about one environment; what comes later needs what comes first."""
    from anthropic import APIConnectionError, APIStatusError

    about = context.about(environment)
    try:
        key = environment.key.reveal()
    except SecretUnavailable as problem:
        say(error("HANDS101", str(problem)))
        return
    if not is_environment_id(environment.id):
        return  # HANDS101 says so, and it has no place in an address
    async with claude_client(context.settings.anthropic_url, environment_key=key) as client:
        try:
            stats = await client.beta.environments.work.stats(environment.id)
        except APIStatusError as problem:
            say(_refusal(about, problem.status_code))
            return
        except APIConnectionError as problem:
            say(error("HANDS201", f"{about}the Claude API: {unanswered(problem)}", NO_CLAUDE))
            return
        say(ok("HANDS201", f"{about}the Claude API answers, and takes the environment key"))
        if not await _is_self_hosted(client, environment, about, say):
            return
    await _archived(context, environment, say)
    await _check_items(context, environment, stats, say)


def _refusal(about: str, status: int) -> Finding:
    match status:
        case 401:
            return error("HANDS201", f"{about}the environment key is refused: HTTP 401")
        case 403:
            return error("HANDS202", f"{about}the key is another environment's: HTTP 403")
        case 404:
            return error("HANDS202", f"{about}there is no such environment for this key: HTTP 404")
        case _:
            return error("HANDS201", f"{about}the queue cannot be read: HTTP {status}")


async def _is_self_hosted(client: AsyncAnthropic, environment: Environment, about: str, say: Say) -> bool:
    """The queue of a cloud environment has statistics and no list (docs/wire/anthropic.md#12-credentials)."""
    from anthropic import APIConnectionError, APIStatusError

    try:
        await client.beta.environments.work.list(environment.id, limit=1)
    except APIStatusError as problem:
        if problem.status_code in (400, 404):
            say(error("HANDS202", f"{about}it is not self-hosted: its queue has no items to list"))
        else:
            say(error("HANDS201", f"{about}work cannot be listed: HTTP {problem.status_code}"))
        return False
    except APIConnectionError as problem:
        say(error("HANDS201", f"{about}the Claude API: {unanswered(problem)}", NO_CLAUDE))
        return False
    return True


async def _archived(context: DoctorContext, environment: Environment, say: Say) -> None:
    """What only the API key may ask, where there is one."""
    from anthropic import AnthropicError

    about = context.about(environment)
    text = context.environ.get("ANTHROPIC_API_KEY", "").strip()
    try:
        key = Secret("ANTHROPIC_API_KEY", text).reveal() if text else ""
    except SecretUnavailable:
        key = ""
    if not key:
        say(ok("HANDS202", f"{about}the environment may be served with this key"))
        return
    async with claude_client(context.settings.anthropic_url, key=key) as client:
        try:
            record = await client.beta.environments.retrieve(environment.id)
        except AnthropicError as problem:
            kind = type(problem).__name__
            say(info("HANDS202", f"{about}the environment may be served; the API key cannot look at it ({kind})"))
            return
    if record.config.type != "self_hosted":
        say(error("HANDS202", f"{about}its hosting type is not self_hosted"))
    elif record.archived_at is not None:
        say(warning("HANDS202", f"{about}it is archived: work that is queued is served, and no session can be new"))
    else:
        say(ok("HANDS202", f"{about}the environment is self-hosted, and may be served with this key"))


async def _check_items(
    context: DoctorContext, environment: Environment, stats: BetaSelfHostedWorkQueueStats, say: Say
) -> None:
    settings, about = context.settings, context.about(environment)
    now = datetime.fromtimestamp(context.now(), UTC)
    _say_depth(context, environment, stats, now, say)
    listing = await context.service.queue(environment).list_items(settings.reconcile.pages)
    if isinstance(listing, Refused | Doubtful):
        say(warning("HANDS001", f"{about}the work items could not be listed: {listing.reason}"))
        return
    items = Items.of(listing, settings.prefix, environment.id)
    repairs = due(World(now, items=items), Lookups(), settings)
    stranded = [repair.target for repair in repairs if repair.act in (Act.RELEASE, Act.STOP_ITEM)]
    if stranded:
        say(error("HANDS302", f"{about}{len(stranded)} stranded: {_some(stranded)}"))
    else:
        part = "" if items.complete else " among those that were listed"
        say(ok("HANDS302", f"{about}no item is stranded{part}"))
    await _say_other_pollers(context, environment, stats, list(items.live.values()), now, say)


def _say_depth(
    context: DoctorContext, environment: Environment, stats: BetaSelfHostedWorkQueueStats, now: datetime, say: Say
) -> None:
    about = context.about(environment)
    waiting = (stats.depth or 0) + (stats.pending or 0)
    if not waiting or not stats.oldest_queued_at:
        say(ok("HANDS301", f"{about}nothing waits"))
        return
    age = (now - _moment(stats.oldest_queued_at)).total_seconds()
    seen = f"{about}{stats.depth} wait, {stats.pending} are claimed, the oldest for {age:.0f} s"
    if age > context.settings.times.reclaim:
        say(warning("HANDS305", seen) if stats.workers_polling else error("HANDS301", seen))
    elif stats.workers_polling:
        say(ok("HANDS301", seen))
    else:
        say(info("HANDS301", f"{seen}; nobody polls now"))


async def _say_other_pollers(
    context: DoctorContext,
    environment: Environment,
    stats: BetaSelfHostedWorkQueueStats,
    live: list[ListedItem],
    now: datetime,
    say: Say,
) -> None:
    """The statistics count pollers and name none (docs/wire/anthropic.md#32-endpoints), so another poller shows by what
    it serves: an item whose worker beats, and whose session has no sandbox of ours in this project."""
    about = context.about(environment)
    polling = stats.workers_polling
    count = "nobody polled" if not polling else f"{polling} polled"
    seen = f"{about}{count} within 30 s (each copy of the functions counts as one)"
    beating = [
        item
        for item in live
        if item.state is ItemState.ACTIVE
        and item.latest_heartbeat_at is not None
        and now - item.latest_heartbeat_at < _BEATS
    ]
    listing = await context.service.host.list_sandboxes()  # after the items: whoever beats has had his sandbox before
    if isinstance(listing, Doubtful) or not listing.complete:
        say(info("HANDS303", f"{seen}; whose workers serve them is not known"))
        return
    ours = {sandbox.name for sandbox in listing.rows if sandbox.status is not SandboxStatus.TERMINATED}
    foreign = [item.session_id for item in beating if _name(context, environment, item) not in ours]
    if foreign:
        say(warning("HANDS303", f"{seen}; a worker that is not in a sandbox of this project serves {_some(foreign)}"))
    elif not polling and (stats.depth or stats.pending):
        say(info("HANDS303", f"{seen}, and work waits: start `make serve` or `make poll` where none runs"))
    else:
        say(ok("HANDS303", f"{seen}; every live worker is in a sandbox of this project"))


def _name(context: DoctorContext, environment: Environment, item: ListedItem) -> str:
    return names.sandbox_name(context.settings.prefix, environment.id, item.session_id)


def _moment(value: object) -> datetime:
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(str(value))
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)


def _some(names: list[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
