"""How the server sandbox fares, without waking it: for the status command and for doctor."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit

from infra.sandbox.account import Account
from infra.sandbox.plan import ServerPlan
from infra.sandbox.server import live_servers
from shared.owner_keys import HEADER, owner_key
from shared.setting_kinds import LOOPBACK

AWAKE: Final = ("running", "snapshotting")
_ASK_SECONDS: Final = 20.0


@dataclass(frozen=True, slots=True)
class ServerLook:
    """`status` is the sandbox's. The rest is known only while it is awake: `process` ("running, healthy"), `restarts`,
    `current` (whether it runs this checkout's code and settings), `report` (functions/server/lifecycle.py) or why there
    is none, in `silence`. `others`: further sandboxes of a server's name, which serve nobody.
    """

    name: str
    sandbox_id: str
    status: str
    url: str
    timeout_seconds: int | None
    process: str | None = None
    restarts: int = 0
    current: bool | None = None
    report: Mapping[str, Any] | None = None
    silence: str = ""
    others: tuple[str, ...] = ()

    @property
    def awake(self) -> bool:
        return self.status in AWAKE

    @property
    def outside_ticks(self) -> int | None:
        """How often a schedule has called `/poll_tick` since the server's start; None where that is not known."""
        return int(self.report["visits"]["ticks"]["count"]) if self.report is not None else None


def look(account: Account, plan: ServerPlan | None = None) -> ServerLook | None:
    """None where there is no server sandbox. Looking at one that is awake is traffic: its idle time begins anew.

    Raises tensorlake's SandboxError.
    """
    servers = account.servers()
    if not servers:
        return None
    info, others = servers[0], tuple(str(each.name) for each in servers[1:])
    name, status, url = str(info.name), str(info.status.value), account.url(info)
    seen = ServerLook(name, info.sandbox_id, status, url, info.timeout_secs, others=others)
    if not seen.awake:
        return seen
    handle = account.connect(info.sandbox_id)
    port = info.exposed_ports[0] if info.exposed_ports else 0
    live = [each.managed for each in live_servers(handle)]
    report, silence = _ask(account, url) if live else (None, "no server runs in it")
    return ServerLook(
        *(name, info.sandbox_id, status, url, info.timeout_secs),
        process=", ".join(f"{each.status.value}, {each.health_status.value}" for each in live) or None,
        restarts=sum(each.restart_count for each in live),
        current=[each.name for each in live] == [plan.process(port)] if plan is not None else None,
        report=report,
        silence=silence,
        others=others,
    )


def _ask(account: Account, url: str) -> tuple[Mapping[str, Any] | None, str]:
    """The server's own report through its public address, as any webhook would come."""
    import httpx2

    headers = {HEADER: owner_key(account.api_key.reveal(), "status")}
    loopback = urlsplit(url).hostname in LOOPBACK
    try:
        with httpx2.Client(trust_env=not loopback, timeout=_ASK_SECONDS) as client:
            answer = client.get(f"{url}status", headers=headers)
        report = json.loads(answer.content)
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        return None, f"{url} does not answer ({type(error).__name__})"
    if answer.status_code != 200 or not isinstance(report, dict) or "visits" not in report:
        return None, f"{url}status answers {answer.status_code}"
    return report, ""


def described(seen: ServerLook) -> Iterator[str]:
    """For people."""
    yield f"sandbox   {seen.name} ({seen.sandbox_id}): {seen.status}; sleeps after {seen.timeout_seconds} s"
    yield f"webhook   {seen.url}"
    for name in seen.others:
        yield f"WARNING: {name} is a second server sandbox and serves nobody: make webhook-sandbox ends it"
    if not seen.awake:
        yield "It sleeps at no cost for compute; the next webhook wakes it. What it counted is known when it is awake."
        return
    restarts = f", restarted {seen.restarts} times" if seen.restarts else ""
    yield f"server    {seen.process or 'none'}{restarts}"
    if seen.current is False:
        yield "          not this checkout's code and settings: make webhook-sandbox"
    if seen.report is None:
        yield f"          {seen.silence}"
        return
    report, request_counts = seen.report, seen.report["visits"]
    now = report["now"]
    yield f"up        {_ago(now - report['started_at'])}, stood still {report['stood_still']} times"
    if not report["webhooks_open"]:
        yield "          webhooks are answered 503: no signing key yet"
    failed = f", {request_counts['failures']['count']} met an error" if request_counts["failures"]["count"] else ""
    yield f"webhooks  {_counted(request_counts['webhooks'], now)}{failed}"
    own = report["own_ticks"]
    outside = _counted(request_counts["ticks"], now)
    yield f"ticks     {own['count']} by itself while awake, {own['failed']} failed; from outside {outside}"
    yield f"strangers {_counted(request_counts['strangers'], now)}: each wakes it and keeps it awake for its idle time"


def _counted(row: Mapping[str, Any], now: float) -> str:
    return f"{row['count']}" + (f" (the last {_ago(now - row['last_at'])} ago)" if row["last_at"] else "")


def _ago(seconds: float) -> str:
    return time.strftime("%Hh%Mm%Ss", time.gmtime(max(seconds, 0))) if seconds < 86_400 else f"{seconds / 86_400:.1f} d"
