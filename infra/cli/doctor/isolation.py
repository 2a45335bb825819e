"""Egress, the daemon's port and the tools' user, proved from inside a probe sandbox by inside.py.

The offline platform records egress lists and enforces none; what it shows is said as that, and never as a proof.
"""

from __future__ import annotations

import contextlib
import inspect
import json
import socket
from collections.abc import Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from image.session import claim as wire
from infra.cli.doctor import inside
from infra.cli.doctor.context import DoctorContext
from infra.cli.doctor.findings import Say, error, info, ok, warning
from shared.egress import EgressPolicy
from shared.environment_settings import Environment
from shared.ports import CommandOutput

RUN_SECONDS: Final = 45.0
_MOST_HOSTS: Final = 5
_API: Final = "the Claude API"
_OFF_LIST: Final[Mapping[str, str]] = {"example.com": "https://example.com", "1.1.1.1": "https://1.1.1.1"}
_OTHER_LOOPBACK: Final = "127.0.0.2"
_ENFORCED_NOT: Final = "not enforced here: the offline platform records the list, and its sandboxes share this network"


async def check_inside(context: DoctorContext, environment: Environment, sandbox_id: str, say: Say) -> None:
    with contextlib.ExitStack() as stack:
        allowed = _allowed(context, environment.egress)
        forbidden = dict(_forbidden(context, environment.egress, stack))
        request = {"reach": {**allowed, **forbidden}, "daemon": context.daemon_port}
        answer = await context.service.host.run(
            sandbox_id,
            wire.WORKER_PYTHON,
            ["-I", "-c", inspect.getsource(inside), json.dumps(request)],
            env={},
            user=context.settings.sandbox_user,
            working_dir="/",
            timeout=RUN_SECONDS,
        )
    about = context.about(environment)
    found = _answer(answer)
    if found is None:
        reason = _tail(answer) if isinstance(answer, CommandOutput) else str(getattr(answer, "reason", "it is gone"))
        say(error("HANDS603", f"{about}nothing can be run in it as {context.settings.sandbox_user!r}: {reason}"))
        return
    _say_user(found, context, about, say)
    _say_allowed(found["reach"], list(allowed), about, say)
    _say_forbidden(found["reach"], list(forbidden), environment.egress, context, about, say)
    _say_daemon(found["daemon"], context, about, say)


def _allowed(context: DoctorContext, policy: EgressPolicy) -> dict[str, str]:
    """The API as the worker calls it, and the first plain host names of the list."""
    api = urlsplit(context.settings.anthropic_url)
    names = [host for host in policy.allow if host != api.hostname and _is_name(host)]
    return {_API: context.settings.anthropic_url, **{host: f"https://{host}" for host in names[:_MOST_HOSTS]}}


def _forbidden(context: DoctorContext, policy: EgressPolicy, stack: contextlib.ExitStack) -> Iterator[tuple[str, str]]:
    """What the list does not have. Offline that is another address of this machine, where we listen ourselves: the
    world outside may be out of reach for reasons of its own."""
    if policy.internet and not policy.allow:
        return
    if not context.offline:
        yield from ((host, url) for host, url in _OFF_LIST.items() if not _is_listed(host, policy))
        return
    with contextlib.suppress(OSError):  # macOS has no such address
        listener = stack.enter_context(socket.create_server((_OTHER_LOOPBACK, 0)))
        yield _OTHER_LOOPBACK, f"tcp://{_OTHER_LOOPBACK}:{listener.getsockname()[1]}"


def _is_name(host: str) -> bool:
    return "*" not in host and "/" not in host and host.rpartition(".")[2].isalpha()


def _is_listed(host: str, policy: EgressPolicy) -> bool:
    return any(host == entry or (entry.startswith("*.") and host.endswith(entry[1:])) for entry in policy.allow)


def _answer(answer: object) -> dict[str, Any] | None:
    if not isinstance(answer, CommandOutput) or answer.exit_code != 0:
        return None
    try:
        found = json.loads(answer.stdout.strip().splitlines()[-1])
        return found if found.keys() >= {"uid", "sudo", "reach", "daemon"} else None
    except (ValueError, IndexError, AttributeError):
        return None


def _tail(output: CommandOutput) -> str:
    lines = (output.stderr or output.stdout).strip().splitlines()
    return (lines[-1] if lines else f"exit status {output.exit_code}")[:160]


def _say_user(found: Mapping[str, Any], context: DoctorContext, about: str, say: Say) -> None:
    user = context.settings.sandbox_user
    if found["uid"] == 0:
        say(warning("HANDS704", f"{about}{user!r} is root inside"))
    elif found["sudo"]:
        say(warning("HANDS704", f"{about}{user!r} becomes root by sudo without a password"))
    else:
        say(ok("HANDS704", f"{about}tools run as {user!r}, uid {found['uid']}"))


def _say_allowed(reached: Mapping[str, str], names: list[str], about: str, say: Say) -> None:
    lost = [f"{name} ({reached[name]})" for name in names if reached[name] != inside.REACHED]
    if reached[_API] != inside.REACHED:
        say(error("HANDS701", f"{about}not reached from inside: {', '.join(lost)}: no worker can serve"))
    elif lost:
        say(warning("HANDS701", f"{about}on the list and not reached from inside: {', '.join(lost)}"))
    else:
        say(ok("HANDS701", f"{about}reached from inside: {', '.join(names)}"))


def _say_forbidden(
    reached: Mapping[str, str], names: list[str], policy: EgressPolicy, context: DoctorContext, about: str, say: Say
) -> None:
    through = [name for name in names if reached[name] == inside.REACHED]
    if policy.internet and not policy.allow:
        say(info("HANDS702", f"{about}everything may be reached: the list is open (SANDBOX_ALLOW_OUT=*)"))
    elif through and context.offline:
        say(info("HANDS702", f"{about}{', '.join(through)} is not on the list and was reached; {_ENFORCED_NOT}"))
    elif through:
        say(error("HANDS702", f"{about}not on the list and reached all the same: {', '.join(through)}"))
    elif context.offline:
        say(info("HANDS702", f"{about}{_ENFORCED_NOT}"))
    elif names:
        say(ok("HANDS702", f"{about}not on the list and not reached: {', '.join(names)}"))
    else:
        say(info("HANDS702", f"{about}not tried: the hosts that would be tried are on the list"))


def _say_daemon(daemons: Mapping[str, Mapping[str, Any]], context: DoctorContext, about: str, say: Say) -> None:
    open_at = {
        address: [what for what, status in answers.items() if what != "root" and 200 <= status < 300]
        for address, answers in daemons.items()
    }
    is_root = any(answers.get("root") for answers in daemons.values())
    where = f"port {context.daemon_port}"
    told = "; ".join(f"{address}: {', '.join(whats)}" for address, whats in open_at.items() if whats)
    if told:
        root = ", and runs commands as root" if is_root else ""
        say(warning("HANDS703", f"{about}{where} answers the tools' user without a token ({told}){root}"))
    elif any(daemons.values()):
        say(ok("HANDS703", f"{about}{where} refuses the tools' user"))
    elif context.offline:
        say(info("HANDS703", f"{about}nothing listens on {where} in an offline sandbox: says nothing of a real one"))
    else:
        say(ok("HANDS703", f"{about}nothing listens on {where} inside"))
