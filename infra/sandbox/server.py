"""Bring a server sandbox to what the plan says: doors, egress, code, process. Restarts only what has changed.

What runs is read off the process itself: its name holds the digest of code and settings (plan.py), so there is no
record that could differ from the truth. Reading it needs a sandbox that is awake; who applies a plan wakes it anyway.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from functions.server import UVICORN_OPTIONS
from image.server.code import packed
from image.server.definition import BAKED, BROUGHT, LOCK_COPY, PYTHON
from image.session import programs
from infra.sandbox.account import Account
from infra.sandbox.plan import PROCESS, ServerPlan
from shared.errors import HandsError
from shared.owner_keys import PARAMETER, owner_key
from shared.setting_kinds import LOOPBACK

if TYPE_CHECKING:
    from tensorlake.sandbox import ProcessInfo, Sandbox, SandboxInfo

START_SECONDS: Final = 60.0
OTHERS_SECONDS: Final = 300.0
"""So old is a second server sandbox that nobody is just making: longer than a create and the look after it."""
_LAST_WORDS: Final = 15
_RESTART: Final = {"policy": "always", "initial_backoff_ms": 500, "max_backoff_ms": 30_000}
_CHECK: Final = {"initial_delay_ms": 1_000, "interval_ms": 5_000, "timeout_ms": 2_000, "failure_threshold": 3}


class ServerFailed(HandsError):
    """The server could not be brought up. The text has its last words."""


@dataclass(frozen=True, slots=True)
class Applied:
    """`changed`: why the process was started, or "" where it runs on. `warnings`: for people."""

    info: SandboxInfo
    changed: str
    warnings: tuple[str, ...]


def bring_up(account: Account, plan: ServerPlan, free_port: Callable[[], int], say: Callable[[str], None]) -> Applied:
    """Get or create the sandbox and have the plan's server run in it. Raises ServerFailed, tensorlake SandboxErrors."""
    found = account.find()
    if found is None:
        say("Creating a sandbox for the server ...")
        handle = account.create(plan, plan.port or free_port())
    else:
        say(f"Attaching to {found.name} ({found.status.value}) ...")
        handle = account.connect(found.sandbox_id)
    applied = apply(handle, plan, free_port, say)
    return replace(applied, warnings=(*applied.warnings, *_end_others(account, say)))


def apply(handle: Sandbox, plan: ServerPlan, free_port: Callable[[], int], say: Callable[[str], None]) -> Applied:
    info, port = _open_doors(handle, plan, free_port)
    name = plan.process(port)
    live = live_servers(handle)
    warnings = _drift(handle, info, port, plan)
    if [each.managed.name for each in live] == [name] and _is_well(live[0]):
        return Applied(info, "", tuple(warnings))
    changed = _what_changed(live, name, plan)
    folder = _bring_code(handle, plan, say)
    if plan.environments_file:
        handle.write_file(plan.environments_path, plan.environments_file.encode())
    for each in live:
        handle.kill_process(each.managed.name)
    say(f"Starting the server ({changed}) ...")
    _start(handle, plan, name, str(info.name), port, folder)
    _await_health(handle, name)
    warnings += _out_of_reach(handle, info, plan)
    return Applied(info, changed, tuple(warnings))


def _end_others(account: Account, say: Callable[[str], None]) -> list[str]:
    """A start that died between its create and its second look left a sandbox that nothing calls. One that is young may
    be somebody's who starts at this moment, and ends it himself."""
    left = []
    for info in account.servers()[1:]:
        if info.created_at is not None and time.time() - info.created_at.timestamp() > OTHERS_SECONDS:
            say(f"Ending {info.name}, which a start that was cut off left behind ...")
            account.terminate(info.sandbox_id)
        else:
            left.append(f"there is a second server sandbox, {info.name}: make webhook-sandbox again in a few minutes")
    return left


def live_servers(handle: Sandbox) -> list[ProcessInfo]:
    """The processes that are servers, of any plan, and run or will be restarted."""
    managed = [each for each in handle.list_processes() if each.managed is not None]
    servers = [each for each in managed if (each.managed.name or "").startswith(PROCESS)]
    return [each for each in servers if each.managed.status.value != "stopped"]


def _is_well(process: ProcessInfo) -> bool:
    return not {"backing_off", "unhealthy"} & {process.managed.status.value, process.managed.health_status.value}


def _open_doors(handle: Sandbox, plan: ServerPlan, free_port: Callable[[], int]) -> tuple[SandboxInfo, int]:
    """One port for everybody, and the egress that the server needs. Which port never changes: the URL has it."""
    from tensorlake.sandbox import CLEAR_NETWORK_POLICY, NetworkConfig

    info = handle.info()
    wanted: dict[str, Any] = {}
    port = info.exposed_ports[0] if info.exposed_ports else plan.port or free_port()
    if info.exposed_ports != [port] or not info.allow_unauthenticated_access:
        wanted |= {"exposed_ports": [port], "allow_unauthenticated_access": True}
    hosts = _all_hosts(info, plan)
    policy = info.network_policy
    if sorted(policy.allow_out if policy is not None else ()) != sorted(hosts):
        wanted["network"] = NetworkConfig(allow_out=list(hosts)) if hosts else CLEAR_NETWORK_POLICY
    if wanted:
        handle.update(**wanted)
        info = handle.info()
    return info, port


def _all_hosts(info: SandboxInfo, plan: ServerPlan) -> tuple[str, ...]:
    """The plan's hosts, and those where this project's sandboxes are reached, which only a sandbox's record tells.

    Empty for `*`. Where each sandbox has a host of its own, all of them can only be named with a wildcard; whether the
    service takes one is not documented, hence the look from inside after the start (`_out_of_reach`).
    """
    if plan.hosts == ("*",):
        return ()
    hosts = list(plan.hosts)
    for address in (info.sandbox_url, info.ingress_endpoint):
        host = urlsplit(address or "").hostname or ""
        if host in LOOPBACK or not host:
            continue
        first, _, rest = host.partition(".")
        hosts.append(f"*.{rest}" if info.sandbox_id in first else host)
    return tuple(dict.fromkeys(hosts))


def _drift(handle: Sandbox, info: SandboxInfo, port: int, plan: ServerPlan) -> list[str]:
    """What a sandbox that exists cannot be given any more, or not without another URL."""
    advice = "make webhook-sandbox-rm and make webhook-sandbox again (the URL changes)"
    found = []
    if plan.port not in (None, port):
        found.append(f"its port is {port}, not {plan.port}: {advice}")
    if info.timeout_secs != plan.timeout_seconds:
        found.append(f"it sleeps after {info.timeout_secs} s, not {plan.timeout_seconds}: {advice}")
    if info.image not in (None, plan.image):
        found.append(f"it was made from the image {info.image}, not {plan.image}: {advice}")
    if _lock_there(handle) != hashlib.sha256(plan.lock).hexdigest():
        found.append(f"its dependencies are of other locks (requirements/): make build-webhook, {advice}")
    return found


def _lock_there(handle: Sandbox) -> str:
    """The digest of the lock that the sandbox's dependencies came from; "" for an image that has none."""
    from tensorlake.sandbox import RemoteAPIError

    try:
        return hashlib.sha256(bytes(handle.read_file(LOCK_COPY).value)).hexdigest()
    except RemoteAPIError as error:
        if error.status_code == 404:
            return ""
        raise


def _what_changed(live: list[ProcessInfo], name: str, plan: ServerPlan) -> str:
    if not live:
        return "none was running"
    if any(each.managed.name == name for each in live):
        return "it was not healthy, or not alone"
    same_code = any(argument.endswith(f"/{plan.folder}") for each in live for argument in each.args)
    return "other settings or keys" if same_code else "other code"


def _bring_code(handle: Sandbox, plan: ServerPlan, say: Callable[[str], None]) -> str:
    """The folder that holds the plan's code in the sandbox, brought there where the image has another."""
    for folder in (f"{BAKED}/{plan.folder}", f"{BROUGHT}/{plan.folder}"):
        if handle.run("test", ["-f", f"{folder}/functions/asgi.py"]).exit_code == 0:
            return folder
    say("Bringing the code ...")
    folder = f"{BROUGHT}/{plan.folder}"
    handle.write_file(f"{folder}.tar.gz", packed(plan.files))
    done = handle.run("sh", ["-c", programs.text("bring_code.sh"), "sh", folder, PYTHON], timeout=120.0)
    if done.exit_code != 0:
        raise ServerFailed(f"the new code does not start; the old one goes on.\n{done.stderr[-2000:]}")
    return folder


def server_arguments(folder: str, address: str, port: int) -> list[str]:
    """What the image's Python is started with, for the code in `folder`."""
    return [
        *("-P", "-m", "uvicorn", "functions.asgi:app", "--app-dir", folder, "--host", address, "--port", str(port)),
        *UVICORN_OPTIONS,
        *("--no-access-log", "--log-level", "warning", "--timeout-graceful-shutdown", "8"),
    ]


def _start(handle: Sandbox, plan: ServerPlan, name: str, sandbox: str, port: int, folder: str) -> None:
    from tensorlake.sandbox import ProcessHealthCheck, RemoteAPIError, RestartPolicyConfig

    variables = {**plan.variables, "SERVER_SANDBOX": sandbox}
    if plan.environments_file:
        variables["ENVIRONMENTS_FILE"] = plan.environments_path
    health = owner_key(plan.settings.tensorlake_key.reveal(), "health")
    address = "127.0.0.1" if plan.offline else "0.0.0.0"
    try:
        handle.start_process(
            PYTHON,
            server_arguments(folder, address, port),
            env=variables,
            working_dir=BROUGHT,
            name=name,
            restart=RestartPolicyConfig(**_RESTART),
            health_check=ProcessHealthCheck(type="http", port=port, path=f"/healthz?{PARAMETER}={health}", **_CHECK),
        )
    except RemoteAPIError as error:
        # The name is taken: by somebody who applies the same plan at this moment, or by an end of this very plan's
        # server (the SDK also sends a start again after a 502 to 504).
        if error.status_code != 409:
            raise
        if name not in [each.managed.name for each in live_servers(handle)]:
            handle.restart_process(name)


def _await_health(handle: Sandbox, name: str) -> None:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        managed = handle.get_process(name).value.managed
        if managed is not None and managed.health_status.value == "healthy":
            return
        if managed is None or managed.restart_count:
            break
        time.sleep(0.1)
    words = "\n".join(handle.get_output(name).value.lines[-_LAST_WORDS:])
    raise ServerFailed(f"the server did not become healthy within {START_SECONDS:g} s. Its last words:\n{words}")


def _out_of_reach(handle: Sandbox, info: SandboxInfo, plan: ServerPlan) -> list[str]:
    """Asked from inside: which of the addresses that the server needs do not take a connection."""
    urls = [plan.settings.anthropic_url, plan.settings.tensorlake_url, info.sandbox_url or ""]
    if not plan.offline:
        urls += [f"https://{host}" for host in plan.hosts if host.startswith("sandbox.")]
    targets = set()
    for url in urls:
        parts = urlsplit(url)
        if parts.hostname:
            targets.add((parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)))
    done = handle.run(PYTHON, ["-I", "-c", programs.text("out_of_reach.py"), json.dumps(sorted(targets))], timeout=30.0)
    try:
        missed = json.loads(done.stdout)
    except ValueError:
        return ["what the server can reach could not be asked from inside"]
    return [f"from inside {host} cannot be reached ({problem}): WEBHOOK_SANDBOX_ALLOW_OUT" for host, problem in missed]
