"""Assumptions about what a sandbox reaches (docs/wire/tensorlake.md#51-create, docs/wire/tensorlake.md#510-ports).

Two hosts are tried from inside, of which a list has one. Offline they are names of the platform's own
(infra/local/tensorlake/egress.py).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from image.session import claim as wire
from infra.cli.certify.check import ServiceCheck
from infra.cli.certify.ground import Ground
from infra.cli.certify.observation import NotTried, Observed
from infra.cli.certify.sandbox_looks import reason
from infra.cli.doctor import inside
from infra.local.tensorlake.egress import TRIAL_HOSTS
from shared.egress import EgressPolicy
from shared.ports import CommandOutput, Created, NoCapacity, Refused, SandboxRecord

_HOSTS: Final = ("api.anthropic.com", "example.com")


async def wildcards(ground: Ground) -> Observed:
    """Whether a list takes them, whether one opens what it names, and no more than a list of whole names opens."""
    first, second = _hosts(ground)
    made = await _made(ground, EgressPolicy(allow=(f"*.{first.partition('.')[2]}",)))
    if isinstance(made, Refused):
        return Observed(False, f"refused: HTTP {made.status}", {"tensorlake.wildcard_status": made.status})
    reached = await _reached(ground, made)
    await ground.end_sandbox(str(made.name))
    seen = f"taken; {first}: {reached[first]}; {second}, which it does not name: {reached[second]}"
    names, others = (reached[host] == inside.REACHED for host in (first, second))
    if not names or others:
        plain = await _reached(ground, await _allowed(ground, first))
        if plain[first] != inside.REACHED:
            raise NotTried(f"{first} is not reached where it is listed: {plain[first]}")
        if not names:
            return Observed(False, seen, {"tensorlake.wildcards_open": "nothing"})
        if plain[second] != inside.REACHED:
            return Observed(False, seen, {"tensorlake.wildcards_open": "everything"})
        seen += ", as with a list of whole names"
    return Observed(True, seen, {"tensorlake.wildcard_status": None, "tensorlake.wildcards_open": "names"})


async def egress_holds(ground: Ground) -> Observed:
    """Each of two hosts where it is listed and where it is not, and both without internet access."""
    first, second = _hosts(ground)
    seen: list[str] = []
    for policy in (EgressPolicy(allow=(first,)), EgressPolicy(allow=(second,)), EgressPolicy(internet=False)):
        made = await _made(ground, policy)
        if isinstance(made, Refused):
            raise NotTried(f"refused: HTTP {made.status}")
        reached = await _reached(ground, made)
        await ground.end_sandbox(str(made.name))
        lost = [host for host in policy.allow if reached[host] != inside.REACHED]
        if lost:
            raise NotTried(f"{lost[0]} is not reached where it is listed: {reached[lost[0]]}")
        through = [host for host in (first, second) if host not in policy.allow and reached[host] == inside.REACHED]
        listed = f"{policy.allow[0]} alone" if policy.allow else "none"
        if through:
            told = f"{', '.join(through)} reached, where the list says: {listed}"
            return Observed(False, told, {"tensorlake.egress_enforced": False})
        seen.append(listed)
    return Observed(True, f"reached as the lists say: {'; '.join(seen)}", {"tensorlake.egress_enforced": True})


def _hosts(ground: Ground) -> tuple[str, str]:
    return TRIAL_HOSTS if ground.context.offline else _HOSTS


async def _allowed(ground: Ground, host: str) -> SandboxRecord:
    made = await _made(ground, EgressPolicy(allow=(host,)))
    if isinstance(made, Refused):
        raise NotTried(f"a list of whole names is refused: HTTP {made.status}")
    return made


async def _made(ground: Ground, policy: EgressPolicy) -> SandboxRecord | Refused:
    name = ground.new_name()
    ground.owe(name, lambda: ground.end_sandbox(name))
    made = await ground.host.create(ground.spec(name, egress=policy))
    match made:
        case Created(sandbox=sandbox):
            return sandbox
        case Refused() if not isinstance(made, NoCapacity):
            return made
        case _:
            raise NotTried(f"a sandbox could not be made: {reason(made)}")


async def _reached(ground: Ground, sandbox: SandboxRecord) -> dict[str, str]:
    """Of each host REACHED, or why not."""
    api = urlsplit(ground.context.settings.anthropic_url)
    urls = {
        host: f"http://{host}:{api.port}" if ground.context.offline else f"https://{host}" for host in _hosts(ground)
    }
    found = (await _seen_inside(ground, sandbox, urls))["reach"]
    return {host: str(found[host])[:80] for host in urls}


async def _seen_inside(ground: Ground, sandbox: SandboxRecord, reach: Mapping[str, str]) -> dict[str, Any]:
    """What doctor's program finds out inside. Raises NotTried."""
    ran = await ground.host.run(
        sandbox.id,
        wire.WORKER_PYTHON,
        ["-I", "-c", inspect.getsource(inside), json.dumps({"reach": reach, "daemon": ground.daemon_port})],
        env={},
        user=ground.context.settings.sandbox_user,
        working_dir="/",
        timeout=45.0,
    )
    if not isinstance(ran, CommandOutput) or ran.exit_code != 0:
        raise NotTried(f"nothing could be run in it: {reason(ran)}")
    try:
        found = dict(json.loads(ran.stdout))
        if found.keys() >= {"reach", "daemon"} and found["reach"].keys() >= reach.keys():
            return found
    except (ValueError, TypeError, AttributeError):
        pass
    raise NotTried("what was run in it says nothing that can be read")


async def daemon_inside(ground: Ground) -> Observed:
    answers: dict[str, dict[str, Any]] = (await _seen_inside(ground, await ground.shared(), {}))["daemon"]
    told = [
        f"{what} {status}"
        for daemon in answers.values()
        for what, status in daemon.items()
        if what != "root" and 200 <= status < 300
    ]
    seen = f"answers without a token: {', '.join(sorted(set(told)))}" if told else "refuses, or is not there"
    return Observed(not told, seen, {"tensorlake.daemon_open_inside": bool(told)})


_CREATE: Final = "docs/wire/tensorlake.md#51-create"

CHECKS: Final = (
    ServiceCheck(
        "sandbox.egress-holds",
        _CREATE,
        "a sandbox reaches the hosts of its egress list alone, and none without internet access",
        "a list protects nothing: an agent can send what it reads anywhere",
        egress_holds,
    ),
    ServiceCheck(
        "sandbox.wildcards",
        _CREATE,
        "an entry of an egress list that begins with `*.` opens the names that end so, and no others",
        "`SANDBOX_ALLOW_OUT` must name each host",
        wildcards,
    ),
    ServiceCheck(
        "sandbox.daemon-inside",
        "docs/wire/tensorlake.md#510-ports",
        "the daemon's port obeys nobody inside who has no token",
        "an agent may be root in its own sandbox (HANDS703): nothing may be in it that the agent must not have",
        daemon_inside,
    ),
)
